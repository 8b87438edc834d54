package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/rest"
)

// credentials are the certificate of this cluster and the CA of the edges. Their
// files are read again when they have changed; what cannot be used then is not,
// and the one before is kept. Methods may be called concurrently.
type credentials struct {
	files   ClientConfig
	cluster lb.Cluster
	log     *zap.Logger

	mu       sync.Mutex
	pair     *tls.Certificate
	roots    *authorities
	pairSeen []stamp
	rootSeen []stamp
}

// stamp is what tells a file from what it was before.
type stamp struct {
	modified time.Time
	size     int64
}

// newCredentials reads the files for the first time. The name of the cluster is
// that of the certificate; any other of the claimed names, by where it was
// claimed, is an error.
func newCredentials(files ClientConfig, claimed map[string]string, log *zap.Logger) (*credentials, error) {
	c := &credentials{files: files, log: log}
	pair, err := readPair(files)
	if err != nil {
		return nil, err
	}
	name := pair.Leaf.Subject.CommonName
	if name == "" {
		return nil, fmt.Errorf("client.certFile %q: the certificate has no common name, which must be the name of the cluster", files.CertFile)
	}
	for where, n := range claimed {
		if n != "" && n != name {
			return nil, fmt.Errorf("%s is %q, and the certificate in client.certFile %q is that of cluster %q: edges would refuse everything", where, n, files.CertFile, name)
		}
	}
	roots, err := readRoots(files.CAFile)
	if err != nil {
		return nil, err
	}
	c.cluster, c.pair, c.roots = lb.Cluster(name), pair, roots
	c.pairSeen, c.rootSeen = stamps(files.CertFile, files.KeyFile), stamps(files.CAFile)
	return c, nil
}

// Certificate returns the certificate of this cluster.
func (c *credentials) Certificate() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := stamps(c.files.CertFile, c.files.KeyFile)
	if sameStamps(now, c.pairSeen) {
		return c.pair, nil
	}
	c.pairSeen = now
	pair, err := readPair(c.files)
	switch {
	case err != nil:
		c.log.Error("changed client certificate cannot be used, the one before is kept; put it right", zap.Error(err))
	case pair.Leaf.Subject.CommonName != string(c.cluster):
		c.log.Error("changed client certificate is another cluster's, the one before is kept; a change of the cluster's name needs a restart",
			zap.String("file", c.files.CertFile), zap.String("of", pair.Leaf.Subject.CommonName), zap.String("want", string(c.cluster)))
	default:
		c.pair = pair
		c.log.Info("client certificate has changed and is used for new connections", zap.String("file", c.files.CertFile), zap.Time("expires", pair.Leaf.NotAfter))
	}
	return c.pair, nil
}

// RootCAs returns the CA that edges' certificates must come from.
func (c *credentials) RootCAs() (*x509.CertPool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := stamps(c.files.CAFile)
	if sameStamps(now, c.rootSeen) {
		return c.roots.pool, nil
	}
	c.rootSeen = now
	roots, err := readRoots(c.files.CAFile)
	if err != nil {
		c.log.Error("changed CA of the edges cannot be used, the one before is kept; put it right", zap.Error(err))
		return c.roots.pool, nil
	}
	c.roots = roots
	c.log.Info("CA of the edges has changed and is used for new connections", zap.String("file", c.files.CAFile))
	return c.roots.pool, nil
}

// authorities are the CAs of a file.
type authorities struct {
	pool    *x509.CertPool
	expires map[string]time.Time // by subject
}

// inUse returns the certificate in use, and when the CAs in use expire, after
// looking whether the files have changed.
func (c *credentials) inUse() (*x509.Certificate, map[string]time.Time, error) {
	pair, err := c.Certificate()
	if err != nil {
		return nil, nil, err
	}
	if _, err := c.RootCAs(); err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return pair.Leaf, c.roots.expires, nil
}

func readPair(files ClientConfig) (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(files.CertFile, files.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("client.certFile %q with client.keyFile %q: %w", files.CertFile, files.KeyFile, err)
	}
	if pair.Leaf == nil {
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return nil, fmt.Errorf("client.certFile %q: %w", files.CertFile, err)
		}
	}
	if now := time.Now(); now.After(pair.Leaf.NotAfter) {
		return nil, fmt.Errorf("client.certFile %q: the certificate has expired at %s", files.CertFile, pair.Leaf.NotAfter.Format(time.RFC3339))
	}
	return &pair, nil
}

func readRoots(file string) (*authorities, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("client.caFile %q: %w", file, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("client.caFile %q: has no certificate in PEM", file)
	}
	return &authorities{roots, rest.Expiries(data)}, nil
}

// stamps returns what the files look like now; a file that cannot be looked at is
// a zero stamp.
func stamps(files ...string) []stamp {
	out := make([]stamp, len(files))
	for i, f := range files {
		if info, err := os.Stat(f); err == nil {
			out[i] = stamp{info.ModTime(), info.Size()}
		}
	}
	return out
}

func sameStamps(a, b []stamp) bool {
	for i := range a {
		if !a[i].modified.Equal(b[i].modified) || a[i].size != b[i].size {
			return false
		}
	}
	return true
}
