package rest

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

func TestAccess(t *testing.T) {
	b := listen(t, nil)
	stranger := newAuthority(t, "other CA")
	usage := x509.ExtKeyUsageClientAuth
	for _, c := range []struct {
		name   string
		cert   *tls.Certificate
		path   string
		status int // 0: no answer at all
		want   []string
	}{
		{"own cluster", b.cert, "/v1/clusters/prod/config", 200, nil},
		{"info", b.cert, "/v1/info", 200, nil},
		{"another cluster's certificate", b.ca.clusterCert(t, "stage"), "/v1/clusters/prod/config", 403, []string{`"stage"`, `"prod"`}},
		{"another cluster", b.cert, "/v1/clusters/stage/config", 403, []string{`"stage"`, `"prod"`}},
		{"cluster not served", b.ca.clusterCert(t, "stage"), "/v1/clusters/stage/config", 404, []string{`"stage"`}},
		{"info for a cluster not served", b.ca.clusterCert(t, "stage"), "/v1/info", 404, []string{`"stage"`}},
		{"no name", b.ca.clusterCert(t, ""), "/v1/info", 403, []string{"common name"}},
		{"no certificate", nil, "/v1/info", 0, []string{"certificate required"}},
		{"another CA", stranger.clusterCert(t, "prod"), "/v1/info", 0, []string{"certificate"}},
		{"expired", b.ca.issue(t, "prod", usage, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), "/v1/info", 0, []string{"certificate"}},
		{"not yet valid", b.ca.issue(t, "prod", usage, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), "/v1/info", 0, []string{"certificate"}},
		{"a server's certificate", b.ca.edgeCert(t, "prod"), "/v1/info", 0, []string{"certificate"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.status == 0 {
				checkNoAnswer(t, b, c.cert, c.path, c.want)
				return
			}
			resp, p := b.askWith(b.plain(c.cert), http.MethodGet, c.path, "")
			if resp.StatusCode != c.status {
				t.Errorf("got status %d; want %d", resp.StatusCode, c.status)
			}
			for _, w := range c.want {
				if !strings.Contains(p.Detail, w) {
					t.Errorf("got %q; want %q in it", p.Detail, w)
				}
			}
		})
	}
}

// checkNoAnswer asks in vain: the handshake must fail for one of the reasons.
func checkNoAnswer(t *testing.T, b *testbed, cert *tls.Certificate, path string, want []string) {
	t.Helper()
	resp, err := b.plain(cert).Get("https://" + b.addr + path)
	if err == nil {
		resp.Body.Close()
		t.Fatalf("got status %d; want no answer", resp.StatusCode)
	}
	// The alert may be overtaken by the end of the connection.
	for _, w := range append(want, "reset", "EOF", "broken pipe", "closed") {
		if strings.Contains(err.Error(), w) {
			return
		}
	}
	t.Errorf("got %v; want %q in it", err, want)
}

func TestPins(t *testing.T) {
	var pins [][32]byte
	b := listen(t, func(o *HandlerOptions) { o.Pins = func(lb.Cluster) [][32]byte { return pins } })
	pins = [][32]byte{{1}, keyHash(b.cert.Leaf)}
	if resp, p := b.ask(http.MethodGet, "/v1/info", ""); resp.StatusCode != 200 {
		t.Errorf("pinned key: got %d %q; want 200", resp.StatusCode, p.Detail)
	}
	resp, p := b.askWith(b.plain(b.ca.clusterCert(t, "prod")), http.MethodGet, "/v1/info", "")
	if resp.StatusCode != 403 || !strings.Contains(p.Detail, "pinned") {
		t.Errorf("another key: got %d %q; want 403 about the pin", resp.StatusCode, p.Detail)
	}
}

// TestExpiredOnOpenConnection: a connection outlives its certificate.
func TestExpiredOnOpenConnection(t *testing.T) {
	h := &handler{o: HandlerOptions{}.withDefaults()}
	ca := newAuthority(t, "CA")
	leaf := ca.issue(t, "prod", x509.ExtKeyUsageClientAuth, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }).Leaf
	state := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: [][]*x509.Certificate{{leaf}}}
	if _, err := h.authenticate(&http.Request{TLS: state}); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("got %v; want an error about the expiry", err)
	}
	for _, r := range []*http.Request{{}, {TLS: &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}}} {
		if _, err := h.authenticate(r); err == nil {
			t.Errorf("TLS %+v: got no error; want one", r.TLS)
		}
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	b := listen(t, nil)
	conn, err := tls.Dial("tcp", b.addr, &tls.Config{
		RootCAs: b.ca.pool(), MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*b.cert},
	})
	if err == nil {
		conn.Close()
		t.Fatal("TLS 1.2: got a connection; want a refusal")
	}
}

func TestClientWithoutTLS(t *testing.T) {
	b := listen(t, nil)
	resp, err := http.Get("http://" + b.addr + "/v1/info")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 400 || !strings.Contains(string(text), "HTTPS") {
		t.Errorf("got %d %q; want 400 that speaks of HTTPS", resp.StatusCode, text)
	}
}

func TestConnectionLimit(t *testing.T) {
	b := listen(t, nil)
	s := NewServer(ServerOptions{Handler: b.server.Handler, TLS: b.tls, MaxConnections: 2})
	addr := serve(t, s, true)
	var idle []net.Conn
	for range 2 {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		idle = append(idle, conn)
	}
	third, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	third.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := third.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("third connection: got %d bytes, %v; want its end", n, err)
	}
	idle[0].Close()
	c := b.client(func(o *ClientOptions) { o.Endpoint = "https://" + addr })
	deadline := time.Now().Add(10 * time.Second)
	for {
		_, err := c.Info(t.Context())
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after one was closed: got %v; want an answer", err)
		}
		time.Sleep(20 * time.Millisecond) // poll
	}
}

// TestHeaderFlood: a client whose header never ends is turned away.
func TestHeaderFlood(t *testing.T) {
	b := listen(t, nil)
	conn := b.raw(t)
	w := bufio.NewWriter(conn)
	w.WriteString("GET /v1/info HTTP/1.1\r\nHost: edge\r\nX: ")
	for range 64 {
		if _, err := w.WriteString(strings.Repeat("a", 1024)); err != nil {
			return // turned away already
		}
	}
	w.Flush()
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return
	}
	if !strings.Contains(line, "431") {
		t.Errorf("got %q; want status 431", line)
	}
}

// raw is a connection over which a test can say anything.
func (b *testbed) raw(t *testing.T) *tls.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", b.addr, &tls.Config{RootCAs: b.ca.pool(), ServerName: "edge-1", MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*b.cert}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}
