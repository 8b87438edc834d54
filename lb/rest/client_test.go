package rest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

func TestClientInfoAndConfig(t *testing.T) {
	b := listen(t, nil)
	c := b.client(nil)
	want, err := b.balance.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Info(t.Context())
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("Info: %v (-want +got):\n%s", err, diff)
	}
	config, digest, err := c.Config(t.Context())
	if err != nil || digest != "" || config.Revision != 0 {
		t.Errorf("Config before the first write: got %+v, %q, %v; want nothing", config, digest, err)
	}
	epoch := b.claim(c)
	big := bigConfig(50, 10)
	receipt, err := c.Set(t.Context(), lb.Write{Epoch: epoch, Config: big})
	if err != nil || !receipt.Durable {
		t.Fatalf("Set: got %+v, %v; want a durable receipt", receipt, err)
	}
	config, digest, err = c.Config(t.Context())
	if err != nil || digest != receipt.Digest {
		t.Errorf("Config: got digest %q, %v; want %q", digest, err, receipt.Digest)
	}
	if diff := cmp.Diff(big, config, compareAddrs); diff != "" {
		t.Errorf("Config (-want +got):\n%s", diff)
	}
}

func TestClientUsesOneConnection(t *testing.T) {
	b := listen(t, nil)
	conns := make(chan string, 100)
	s := NewServer(ServerOptions{Handler: b.server.Handler, TLS: b.tls})
	s.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		conns <- c.RemoteAddr().String()
		return ctx
	}
	addr := serve(t, s, true)
	c := b.client(func(o *ClientOptions) { o.Endpoint = "https://" + addr })
	for range 5 {
		if _, err := c.Info(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if len(conns) != 1 {
		t.Errorf("got %d connections for 5 calls; want 1", len(conns))
	}
}

// TestKindsSurvive sends each kind of error through both ends.
func TestKindsSurvive(t *testing.T) {
	b := listen(t, nil)
	c := b.client(nil)
	for _, k := range kinds {
		b.balance.FailNext(lbtest.CallInfo, fmt.Errorf("object %q: %w", "x\ny", k.err))
		_, err := c.Info(t.Context())
		if !errors.Is(err, k.err) || !errors.Is(kindOf(err), k.err) {
			t.Errorf("%s: got %v; want errors.Is with %v first", k.name, err, k.err)
		}
		if !strings.Contains(err.Error(), `object \"x\\ny\"`) && !strings.Contains(err.Error(), `object "x\ny"`) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %q; want the object, on one line", k.name, err)
		}
		if n := strings.Count(err.Error(), k.err.Error()); n != 1 {
			t.Errorf("%s: got %q; want the kind once", k.name, err)
		}
		if refused, ok := errors.AsType[*ProblemError](err); !ok || refused.Problem.Status != k.status {
			t.Errorf("%s: got %#v; want a ProblemError of status %d", k.name, err, k.status)
		}
	}
	held := &lb.RemovalHeldError{Keys: []string{"loadBalancers/a", "nodes/b"}, Largest: 7}
	b.balance.FailNext(lbtest.CallInfo, fmt.Errorf("set: %w", held))
	_, err := c.Info(t.Context())
	got, ok := errors.AsType[*lb.RemovalHeldError](err)
	if !ok || !errors.Is(err, lb.ErrRemovalHeld) || !errors.Is(err, lb.ErrConflict) {
		t.Fatalf("got %v; want a RemovalHeldError", err)
	}
	if diff := cmp.Diff(held, got); diff != "" {
		t.Errorf("RemovalHeldError (-want +got):\n%s", diff)
	}
	b.balance.FailNext(lbtest.CallInfo, errors.New("secret"))
	if _, err = c.Info(t.Context()); err == nil || strings.Contains(err.Error(), "secret") || kindOf(err) != nil || !strings.Contains(err.Error(), "internal error") {
		t.Errorf("internal error: got %v; want no kind and no reason", err)
	}
}

func TestClientNamesCertificateTrouble(t *testing.T) {
	b := listen(t, nil)
	other := newAuthority(t, "other CA")
	for _, c := range []struct {
		name   string
		change func(*ClientOptions)
		edge   *tls.Certificate
		want   []string
	}{
		{"another name", func(o *ClientOptions) { o.ServerName = "edge-2" }, nil, []string{`"edge-1"`, `"edge-2"`}},
		{"host instead of name", func(o *ClientOptions) { o.ServerName = "localhost" }, nil, []string{`"localhost"`}},
		{"unknown CA", func(o *ClientOptions) { o.RootCAs = func() (*x509.CertPool, error) { return other.pool(), nil } }, nil, []string{"configured CA", `"test CA"`}},
		{"expired", nil, b.ca.issue(t, "edge", x509.ExtKeyUsageServerAuth, func(c *x509.Certificate) {
			c.DNSNames, c.NotAfter = []string{"edge-1"}, time.Now().Add(-time.Minute)
		}), []string{"expired at"}},
		{"not yet valid", nil, b.ca.issue(t, "edge", x509.ExtKeyUsageServerAuth, func(c *x509.Certificate) {
			c.DNSNames, c.NotBefore = []string{"edge-1"}, time.Now().Add(time.Minute)
		}), []string{"not valid before"}},
		{"common name only", nil, b.ca.issue(t, "edge-1", x509.ExtKeyUsageServerAuth, nil), []string{"does not count"}},
		{"a client's certificate", nil, b.ca.issue(t, "edge", x509.ExtKeyUsageClientAuth, func(c *x509.Certificate) { c.DNSNames = []string{"edge-1"} }), []string{"certificate of the edge"}},
		{"no CA", func(o *ClientOptions) {
			o.RootCAs = func() (*x509.CertPool, error) { return nil, errors.New("no such file") }
		}, nil, []string{"read CA", "no such file"}},
		{"our certificate of another CA", func(o *ClientOptions) {
			cert := other.clusterCert(t, "prod")
			o.Certificate = func() (*tls.Certificate, error) { return cert, nil }
		}, nil, []string{"our certificate"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.t = t
			change := c.change
			if c.edge != nil {
				s := NewServer(ServerOptions{Handler: b.server.Handler, TLS: ServerTLS(func() (*tls.Certificate, error) { return c.edge, nil }, b.ca.pool())})
				addr := serve(t, s, true)
				change = func(o *ClientOptions) { o.Endpoint = "https://" + addr }
			}
			_, err := b.client(change).Info(t.Context())
			if err == nil {
				t.Fatal("got no error; want one")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("got %q; want %q in it", err, w)
				}
			}
		})
	}
}

// answering is a server that speaks TLS like an edge and answers as f does.
func (b *testbed) answering(t *testing.T, f http.HandlerFunc) func(*ClientOptions) {
	t.Helper()
	addr := serve(t, NewServer(ServerOptions{Handler: f, TLS: b.tls}), true)
	return func(o *ClientOptions) { o.Endpoint = "https://" + addr }
}

func TestClientRefusesStrangeAnswers(t *testing.T) {
	b := listen(t, nil)
	text := func(status int, contentType, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", contentType)
			w.WriteHeader(status)
			io.WriteString(w, body)
		}
	}
	var followed int
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		want   string
	}{
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			followed++
			http.Redirect(w, r, "https://"+b.addr+"/v1/info", http.StatusTemporaryRedirect)
		}, "redirect"},
		{"HTML", text(200, "text/html", "<html>"), `"text/html"`},
		{"no JSON", text(200, TypeJSON, "{"), "cannot be read"},
		{"another shape", text(200, TypeJSON, `{"name":[]}`), "cannot be read"},
		{"too much", text(200, TypeJSON, `{"name":"`+strings.Repeat("x", maxInfo)+`"}`), "larger than"},
		{"a proxy's error", text(502, "text/html", "<h1>Bad\ngateway</h1>"), `not a problem document: "<h1>Bad\ngateway</h1>"`},
		{"a problem of another protocol", text(403, TypeProblem, `{"type":"https://example.com/x","detail":"go\naway"}`), `go\naway`},
		{"a broken problem", text(400, TypeProblem, `[]`), "not a problem document"},
		{"cut", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", TypeJSON)
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "{")
		}, "cut"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.t = t
			_, err := b.client(b.answering(t, c.answer)).Info(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v; want %q in it", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("got %q; want one line", err)
			}
		})
	}
	if followed != 1 {
		t.Errorf("the server with a redirect was asked %d times; want once", followed)
	}
}

func TestClientIgnoresProxies(t *testing.T) {
	b := listen(t, nil)
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "ALL_PROXY"} {
		t.Setenv(name, "http://192.0.2.1:1")
	}
	if _, err := b.client(nil).Info(t.Context()); err != nil {
		t.Errorf("Info: %v", err)
	}
}

func TestClientAgainstPlainServer(t *testing.T) {
	b := listen(t, nil)
	addr := serve(t, &http.Server{Handler: b.server.Handler, ReadHeaderTimeout: time.Second}, false)
	_, err := b.client(func(o *ClientOptions) { o.Endpoint = "https://" + addr }).Info(t.Context())
	if err == nil || !strings.Contains(err.Error(), "does not speak TLS") {
		t.Errorf("HTTP: got %v; want that it does not speak TLS", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if conn, err := l.Accept(); err == nil {
			io.WriteString(conn, "SSH-2.0-OpenSSH_9.6\r\n")
			conn.Close()
		}
	}()
	_, err = b.client(func(o *ClientOptions) { o.Endpoint = "https://" + l.Addr().String() }).Info(t.Context())
	if err == nil || !strings.Contains(err.Error(), "does not speak TLS") {
		t.Errorf("SSH: got %v; want that it does not speak TLS", err)
	}
}

func TestClientRetries(t *testing.T) {
	b := listen(t, nil)
	for _, c := range []struct {
		name       string
		status     int
		retryAfter string
		call       func(*Client) error
		want       int
	}{
		{"GET busy", 503, "", getInfo, 3},
		{"GET limited", 429, "0", getInfo, 3},
		{"asked to wait long", 429, "3600", getInfo, 1},
		{"GET failed", 500, "", getInfo, 1},
		{"write busy", 503, "", set, 3},
		{"write failed", 500, "", set, 1},
		{"write refused", 409, "", set, 1},
		{"claim busy", 503, "", claim, 3},
		{"claim failed", 500, "", claim, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.t = t
			requests := 0
			client := b.client(b.answering(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, nounConfig) {
					w.Header().Set("Content-Type", TypeJSON)
					io.WriteString(w, "{}")
					return
				}
				requests++
				if c.retryAfter != "" {
					w.Header().Set("Retry-After", c.retryAfter)
				}
				w.WriteHeader(c.status)
			}))
			err := c.call(client)
			refused, ok := errors.AsType[*ProblemError](err)
			if !ok || refused.Problem.Status != c.status {
				t.Errorf("got %v; want a ProblemError of status %d", err, c.status)
			}
			if requests != c.want {
				t.Errorf("got %d requests; want %d", requests, c.want)
			}
		})
	}
}

func getInfo(c *Client) error {
	_, err := c.Info(context.Background())
	return err
}

func claim(c *Client) error {
	_, err := c.Claim(context.Background(), lb.Claim{})
	return err
}

func set(c *Client) error {
	_, err := c.Set(context.Background(), lb.Write{Epoch: "1.1"})
	return err
}

func TestClientDeadlines(t *testing.T) {
	b := listen(t, nil)
	c := b.client(func(o *ClientOptions) { o.Timeout = 100 * time.Millisecond })
	if _, err := c.Info(t.Context()); err != nil { // connects, which takes time
		t.Fatal(err)
	}
	defer b.balance.Hold(lbtest.CallInfo)()
	_, err := c.Info(t.Context())
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "100ms") {
		t.Errorf("silent edge: got %v; want DeadlineExceeded after 100ms", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Info(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v; want Canceled", err)
	}
}

func TestClientFollowsRotation(t *testing.T) {
	b := listen(t, nil)
	c := b.client(nil)
	if _, err := c.Info(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.cert = b.ca.clusterCert(t, "stage")
	if _, err := c.Info(t.Context()); err != nil {
		t.Errorf("on the open connection: %v", err)
	}
	c.Close()
	_, _, err := c.Config(t.Context())
	if refused, ok := errors.AsType[*ProblemError](err); !ok || refused.Problem.Status != http.StatusForbidden {
		t.Errorf("on a new one: got %v; want 403 for the certificate of another cluster", err)
	}
}

func TestNewClientRefuses(t *testing.T) {
	b := listen(t, nil)
	for _, change := range []func(*ClientOptions){
		func(o *ClientOptions) { o.Endpoint = "http://edge:8443" },
		func(o *ClientOptions) { o.Endpoint = "https://edge" },
		func(o *ClientOptions) { o.Endpoint = "https://user:secret@edge:8443" },
		func(o *ClientOptions) { o.Endpoint = "https://edge:8443/v1" },
		func(o *ClientOptions) { o.Endpoint = "https://edge:8443?x" },
		func(o *ClientOptions) { o.Endpoint = "://" },
		func(o *ClientOptions) { o.Endpoint = "https://user:secret@edge:port" },
		func(o *ClientOptions) { o.ServerName = "" },
		func(o *ClientOptions) { o.Cluster = "" },
		func(o *ClientOptions) { o.Cluster = ".." },
		func(o *ClientOptions) { o.Certificate = nil },
		func(o *ClientOptions) { o.RootCAs = nil },
		func(o *ClientOptions) { o.PollWait = time.Hour },
	} {
		o := b.options()
		change(&o)
		if _, err := NewClient(o); !errors.Is(err, lb.ErrInvalid) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%+v: got %v; want an ErrInvalid without secrets", o, err)
		}
	}
}

func TestOddClusterName(t *testing.T) {
	const name = "a/b c%2F?"
	b := listen(t, nil)
	b.cert = b.ca.clusterCert(t, name)
	c := b.client(func(o *ClientOptions) { o.Cluster = name })
	_, _, err := c.Config(t.Context())
	if !errors.Is(err, lb.ErrNotFound) {
		t.Errorf("got %v; want that this edge does not serve the cluster", err)
	}
}

func TestClientStatus(t *testing.T) {
	b := listen(t, nil)
	c := b.client(func(o *ClientOptions) { o.PollWait = 300 * time.Millisecond })
	epoch := b.claim(c)
	if _, err := c.Set(t.Context(), lb.Write{Epoch: epoch, Config: bigConfig(3, 3)}); err != nil {
		t.Fatal(err)
	}
	first, err := c.Status(t.Context(), "")
	if err != nil || !first.Full || len(first.LoadBalancers) != 3 || first.Epoch != epoch || first.Revision != 1 {
		t.Fatalf("first: got %+v, %v; want everything", first, err)
	}
	none, err := c.Status(t.Context(), first.Cursor)
	if err != nil || none.Full || none.Cursor != first.Cursor || len(none.LoadBalancers) != 0 || none.Revision != 1 || !none.Durable || none.Digest != first.Digest {
		t.Errorf("no change: got %+v, %v; want an empty delta with the same head", none, err)
	}
	b.balance.SetMember("http:10256/healthz", "n1", &lb.MemberStatus{State: healthcheck.Down, Reason: healthcheck.Refused, Error: "connection refused"})
	second, err := c.Status(t.Context(), first.Cursor)
	if err != nil || second.Full || second.Checks["http:10256/healthz"].Members["n1"].State != healthcheck.Down || len(second.LoadBalancers) != 0 {
		t.Errorf("after a change: got %+v, %v; want only n1", second, err)
	}
	all, err := c.Status(t.Context(), "unknown.1")
	if err != nil || !all.Full || len(all.LoadBalancers) != 3 {
		t.Errorf("unknown cursor: got %+v, %v; want everything", all, err)
	}
	// A cursor that this client was not given last and that nothing follows.
	c2 := b.client(func(o *ClientOptions) { o.PollWait = 300 * time.Millisecond })
	if got, err := c2.Status(t.Context(), all.Cursor); err != nil || !got.Full {
		t.Errorf("cursor of another client: got %+v, %v; want everything", got, err)
	}
}

func TestStatusComesAtMostEvery200ms(t *testing.T) {
	b := listen(t, nil)
	c := b.client(nil)
	d, err := c.Status(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for i := range 5 {
		b.balance.SetMember("c", lb.NodeName(fmt.Sprint(i)), &lb.MemberStatus{})
		if d, err = c.Status(t.Context(), d.Cursor); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(start); took < 5*MinStatusGap-50*time.Millisecond {
		t.Errorf("5 answers came within %s; want at least %s", took, 5*MinStatusGap)
	}
}

func TestShutdownEndsPolls(t *testing.T) {
	b := listen(t, nil)
	c := b.client(nil)
	d, err := c.Status(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		delta lb.StatusDelta
		err   error
	}
	done := make(chan result, 1)
	go func() {
		d, err := c.Status(context.WithoutCancel(t.Context()), d.Cursor)
		done <- result{d, err}
	}()
	waitCalls(t, b, lbtest.CallStatus, 2)
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := b.server.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if got := <-done; got.err != nil || got.delta.Cursor != d.Cursor {
		t.Errorf("poll: got %+v; want that nothing changed", got)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("Shutdown took %s; want it not to wait for polls", took)
	}
}
