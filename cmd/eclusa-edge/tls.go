package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/lb/rest"
)

// lookInterval is how often files are looked at for changes, at most.
const lookInterval = time.Second

// identity is the edge's certificate and the CA of its clients, read again when
// the files change. What was read last stays in use while they cannot be read.
type identity struct {
	key                       string // of the block in the configuration
	certFile, keyFile, caFile string // caFile may be empty
	log                       *zap.Logger
	now                       func() time.Time

	mu      sync.Mutex
	looked  time.Time
	seen    [3]fileVersion
	cert    *tls.Certificate
	clients *x509.CertPool
	cas     map[string]time.Time // when those in clients expire, by subject
}

// fileVersion tells whether a file has changed.
type fileVersion struct {
	modified time.Time
	size     int64
}

// newIdentity reads the files of a block of the configuration for the first time.
func newIdentity(key, certFile, keyFile, caFile string, log *zap.Logger) (*identity, error) {
	i := &identity{key: key, certFile: certFile, keyFile: keyFile, caFile: caFile, log: log, now: time.Now}
	i.seen = i.versions()
	if err := i.read(); err != nil {
		return nil, err
	}
	i.looked = i.now()
	if left := time.Until(i.cert.Leaf.NotAfter); left < 30*24*time.Hour {
		log.Warn("a certificate expires soon; make a new one with: eclusa-edge pki edge --force",
			zap.String("key", key+".certFile"), zap.String("file", i.certFile), zap.Time("expires", i.cert.Leaf.NotAfter))
	}
	return i, nil
}

func (i *identity) versions() (v [3]fileVersion) {
	for n, path := range []string{i.certFile, i.keyFile, i.caFile} {
		v[n] = versionOf(path)
	}
	return v
}

// versionOf returns a file's version, the zero version if there is none.
func versionOf(path string) fileVersion {
	info, err := os.Stat(path)
	if err != nil {
		return fileVersion{}
	}
	return fileVersion{info.ModTime(), info.Size()}
}

func (i *identity) read() error {
	cert, err := tls.LoadX509KeyPair(i.certFile, i.keyFile)
	if err != nil {
		return fmt.Errorf("%s.certFile %q and %s.keyFile %q: %w", i.key, i.certFile, i.key, i.keyFile, err)
	}
	if i.caFile == "" {
		i.cert = &cert
		return nil
	}
	data, err := os.ReadFile(i.caFile)
	if err != nil {
		return fmt.Errorf("%s.clientCAFile: %w", i.key, err)
	}
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM(data) {
		return fmt.Errorf("%s.clientCAFile %q: %w", i.key, i.caFile, errors.New("holds no certificate"))
	}
	i.cert, i.clients, i.cas = &cert, clients, rest.Expiries(data)
	return nil
}

// current returns what is in use now.
func (i *identity) current() (*tls.Certificate, *x509.CertPool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if now := i.now(); now.Sub(i.looked) >= lookInterval {
		i.looked = now
		i.look()
	}
	return i.cert, i.clients
}

// look reads the files if they have changed. Callers hold mu.
func (i *identity) look() {
	seen := i.versions()
	if seen == i.seen {
		return
	}
	i.seen = seen
	if err := i.read(); err != nil {
		i.log.Error("the certificate files have changed and cannot be used; those of before stay in use", zap.Error(err))
		return
	}
	i.log.Info("the certificate files have changed and are in use", zap.String("subject", i.cert.Leaf.Subject.CommonName), zap.Time("expires", i.cert.Leaf.NotAfter))
}

// config returns the TLS configuration of the API's server, which follows the
// files.
func (i *identity) config() *tls.Config {
	return i.following(func(cert *tls.Certificate, clients *x509.CertPool) *tls.Config {
		return rest.ServerTLS(func() (*tls.Certificate, error) { return cert, nil }, clients)
	})
}

// optional returns the TLS configuration of a server that follows the files and
// verifies the certificates of clients that have one, if there is a CA to do so.
func (i *identity) optional() *tls.Config {
	return i.following(func(cert *tls.Certificate, clients *x509.CertPool) *tls.Config {
		c := &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*cert}, NextProtos: []string{"h2", "http/1.1"},
			// A resumed session would go on with a certificate that is not looked at
			// again.
			SessionTicketsDisabled: true,
		}
		if clients != nil {
			c.ClientAuth, c.ClientCAs = tls.VerifyClientCertIfGiven, clients
		}
		return c
	})
}

func (i *identity) following(from func(*tls.Certificate, *x509.CertPool) *tls.Config) *tls.Config {
	c := from(i.current())
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return from(i.current()), nil }
	return c
}
