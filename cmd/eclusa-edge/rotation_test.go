package main

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lb/rest"
)

// The CA is replaced as docs/operations.md says, while a client that follows its
// files makes a new connection for every call: not one fails.
func TestReplacingTheCAInterruptsNothing(t *testing.T) {
	w, _, c, _ := started(t)
	c.Close()
	next := filepath.Join(w.dir, "next")
	for _, args := range [][]string{
		{"pki", "init", "--dir", next, "--name", "second"},
		{"pki", "edge", "--dir", next, "--name", "edge-1", "--host", edgeAddr},
		{"pki", "cluster", "--dir", next, "--name", "prod"},
	} {
		w.must(execute(args...))
	}
	// The client's own copies of its files.
	mine := t.TempDir()
	w.copyFile(w.dir+"/prod.crt", mine+"/tls.crt")
	w.copyFile(w.dir+"/prod.key", mine+"/tls.key")
	w.copyFile(w.dir+"/ca.crt", mine+"/ca.crt")
	client, err := rest.NewClient(rest.ClientOptions{
		Endpoint: "https://" + apiAddr, ServerName: "edge-1", Cluster: "prod", Timeout: 5 * time.Second,
		Certificate: func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(mine+"/tls.crt", mine+"/tls.key")
			return &pair, err
		},
		RootCAs: func() (*x509.CertPool, error) {
			data, err := os.ReadFile(mine + "/ca.crt")
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(data)
			return roots, err
		},
	})
	w.must(err)
	defer client.Close()
	// goesOn calls for longer than it takes until changed files are seen.
	goesOn := func(step string) {
		t.Helper()
		for start := time.Now(); time.Since(start) < lookInterval+200*time.Millisecond; {
			if _, err := client.Info(t.Context()); err != nil {
				t.Fatalf("%s: %v", step, err)
			}
			client.Close()                    // the next call needs a handshake
			time.Sleep(10 * time.Millisecond) // poll
		}
	}
	goesOn("before")
	both := append(w.read(w.dir+"/ca.crt"), w.read(next+"/ca.crt")...)
	w.must(os.WriteFile(w.dir+"/ca.crt", both, 0o600))
	goesOn("the edge trusts both")
	w.must(os.WriteFile(mine+"/ca.crt", both, 0o600))
	goesOn("the cluster trusts both")
	// The key first: with the old certificate it is no pair, and not used.
	w.copyFile(next+"/edge-1.key", w.dir+"/edge-1.key")
	goesOn("the edge has half of a new pair")
	w.copyFile(next+"/edge-1.crt", w.dir+"/edge-1.crt")
	goesOn("the edge has a new certificate")
	w.copyFile(next+"/prod.crt", mine+"/tls.crt")
	w.copyFile(next+"/prod.key", mine+"/tls.key")
	goesOn("the cluster has a new certificate")
	w.copyFile(next+"/ca.crt", mine+"/ca.crt")
	w.copyFile(next+"/ca.crt", w.dir+"/ca.crt")
	goesOn("the former CA is gone")
	if _, err := w.get(vip); err != nil {
		t.Errorf("the load balancer: %v", err)
	}
	if _, err := w.client("prod", "prod").Info(t.Context()); err == nil {
		t.Error("a certificate of the former CA is still accepted")
	}
}

func (w *world) read(path string) []byte {
	w.t.Helper()
	data, err := os.ReadFile(path)
	w.must(err)
	return data
}

func (w *world) copyFile(from, to string) {
	w.t.Helper()
	w.must(os.WriteFile(to, w.read(from), 0o600))
}
