package rest

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// testbed is an edge on a real socket that serves cluster "prod".
type testbed struct {
	t       testing.TB
	ca      authority
	cert    *tls.Certificate // of the cluster
	addr    string
	balance *lbtest.FakeBalancer
	server  *http.Server
	tls     *tls.Config
	logs    *observer.ObservedLogs

	mu       sync.Mutex
	requests []recorded
}

// recorded is a request that reached the handler.
type recorded struct {
	method, path, contentType string
	size                      int64
	header                    http.Header
	body                      []byte
}

// listen starts an edge. change may alter the options of the handler.
func listen(t testing.TB, change func(*HandlerOptions)) *testbed {
	t.Helper()
	b := &testbed{t: t, ca: newAuthority(t, "test CA"), balance: lbtest.NewFakeBalancer("edge-1")}
	b.cert = b.ca.clusterCert(t, "prod")
	core, logs := observer.New(zapcore.DebugLevel)
	b.logs = logs
	o := HandlerOptions{
		Balancer: func(c lb.Cluster) lb.Balancer {
			if c != "prod" {
				return nil
			}
			return b.balance
		},
		Log: zap.New(core),
	}
	if change != nil {
		change(&o)
	}
	edge := b.ca.edgeCert(t, "edge-1")
	handler := NewHandler(o)
	b.tls = ServerTLS(func() (*tls.Certificate, error) { return edge, nil }, b.ca.pool())
	b.server = NewServer(ServerOptions{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b.record(r)
			handler.ServeHTTP(w, r)
		}),
		TLS: b.tls,
		Log: zap.New(core),
	})
	b.addr = serve(t, b.server, true)
	return b
}

// serve runs a server on loopback until the test ends.
func serve(t testing.TB, s *http.Server, secure bool) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		if secure {
			done <- s.ServeTLS(l, "", "")
		} else {
			done <- s.Serve(l)
		}
	}()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("server: got %v; want ErrServerClosed", err)
		}
	})
	return l.Addr().String()
}

// record keeps what a request carries; small bodies too.
func (b *testbed) record(r *http.Request) {
	rec := recorded{method: r.Method, path: r.URL.Path, contentType: r.Header.Get("Content-Type"), size: r.ContentLength, header: r.Header.Clone()}
	if r.ContentLength > 0 && r.ContentLength < 1<<16 && r.Header.Get("Record") == "" && r.Method != http.MethodPost {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the handler's affair
		}
		rec.body = body
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests = append(b.requests, rec)
}

// seen returns the requests since the last call.
func (b *testbed) seen() []recorded {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.requests
	b.requests = nil
	return r
}

// options are those of a client that the edge accepts.
func (b *testbed) options() ClientOptions {
	return ClientOptions{
		Endpoint: "https://" + b.addr, ServerName: "edge-1", Cluster: "prod",
		Certificate: func() (*tls.Certificate, error) { return b.cert, nil },
		RootCAs:     func() (*x509.CertPool, error) { return b.ca.pool(), nil },
	}
}

// client connects to the edge. change may alter the options.
func (b *testbed) client(change func(*ClientOptions)) *Client {
	b.t.Helper()
	o := b.options()
	if change != nil {
		change(&o)
	}
	c, err := NewClient(o)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(c.Close)
	return c
}

// claim claims the cluster through the client.
func (b *testbed) claim(c *Client) lb.Epoch {
	b.t.Helper()
	epoch, err := c.Claim(b.t.Context(), lb.Claim{ClusterUID: "u", LeaseUID: "l", Holder: "h"})
	if err != nil {
		b.t.Fatal(err)
	}
	return epoch
}

// plain is an HTTP client that says what the test wants it to say.
func (b *testbed) plain(cert *tls.Certificate) *http.Client {
	b.t.Helper()
	tr := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: b.ca.pool(), MinVersion: tls.VersionTLS13},
		ForceAttemptHTTP2: false,
	}
	if cert != nil {
		tr.TLSClientConfig.Certificates = []tls.Certificate{*cert}
	}
	b.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// reply is an answer whose body was read.
type reply struct {
	StatusCode int
	Proto      string
	Header     http.Header
}

// ask sends a request with the cluster's certificate. The header is a list of
// names and values.
func (b *testbed) ask(method, path, body string, header ...string) (reply, Problem) {
	b.t.Helper()
	return b.askWith(b.plain(b.cert), method, path, body, header...)
}

func (b *testbed) askWith(client *http.Client, method, path, body string, header ...string) (reply, Problem) {
	b.t.Helper()
	var r io.Reader
	if body != "" {
		r = bytes.NewBufferString(body)
	}
	req, err := http.NewRequestWithContext(b.t.Context(), method, "https://"+b.addr+path, r)
	if err != nil {
		b.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		b.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatalf("%s %s: %v", method, path, err)
	}
	got := reply{resp.StatusCode, resp.Proto, resp.Header}
	if resp.StatusCode < 300 {
		return got, Problem{}
	}
	if got := resp.Header.Get("Content-Type"); got != TypeProblem {
		b.t.Errorf("%s %s: status %d with content type %q and body %q; want %q", method, path, resp.StatusCode, got, text, TypeProblem)
	}
	return got, decodeProblem(resp.StatusCode, resp.Header.Get("Content-Type"), text)
}

func logField(key, value string) zap.Field { return zap.String(key, value) }
