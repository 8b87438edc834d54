package rest

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// overHTTP2 is a client that speaks nothing else.
func (b *testbed) overHTTP2() *http.Client {
	b.t.Helper()
	p := new(http.Protocols)
	p.SetHTTP2(true)
	tr := &http.Transport{
		Protocols:       p,
		TLSClientConfig: &tls.Config{RootCAs: b.ca.pool(), MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*b.cert}},
	}
	b.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

// TestLongPollOutlivesTimeouts: the deadlines that stop slow clients must not
// stop one that waits, whichever version of HTTP it speaks.
func TestLongPollOutlivesTimeouts(t *testing.T) {
	b := listen(t, func(o *HandlerOptions) { o.BodyTimeout, o.CallTimeout = 50*time.Millisecond, 50*time.Millisecond })
	d, err := b.balance.Status(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for name, client := range map[string]*http.Client{"HTTP/1.1": b.plain(b.cert), "HTTP/2.0": b.overHTTP2()} {
		start := time.Now()
		resp, p := b.askWith(client, http.MethodGet, "/v1/clusters/prod/status?wait=500ms&after="+string(d.Cursor), "")
		if resp.StatusCode != http.StatusNoContent || resp.Proto != name {
			t.Errorf("%s: got %d %q over %s; want 204", name, resp.StatusCode, p.Detail, resp.Proto)
		}
		if took := time.Since(start); took < 450*time.Millisecond {
			t.Errorf("%s: got the answer after %s; want it after 500ms", name, took)
		}
		time.AfterFunc(300*time.Millisecond, b.balance.Restart)
		if resp, p = b.askWith(client, http.MethodGet, "/v1/clusters/prod/status?wait=30s&after="+string(d.Cursor), ""); resp.StatusCode != http.StatusOK {
			t.Errorf("%s: got %d %q; want the change", name, resp.StatusCode, p.Detail)
		}
		if d, err = b.balance.Status(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSlowBodyOverHTTP2(t *testing.T) {
	b, epoch, tag := claimed(t, func(o *HandlerOptions) { o.BodyTimeout = 100 * time.Millisecond })
	r, w := io.Pipe()
	defer w.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://"+b.addr+configPath, r)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{"Content-Type": TypeJSON, HeaderEpoch: epoch, "If-Match": tag} {
		req.Header.Set(k, v)
	}
	go io.WriteString(w, `{"revision":`)
	resp, err := b.overHTTP2().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	if p := decodeProblem(resp.StatusCode, resp.Header.Get("Content-Type"), text); resp.StatusCode != http.StatusRequestTimeout {
		t.Errorf("got %d %q; want 408", resp.StatusCode, p.Detail)
	}
}

func TestSetTooLarge(t *testing.T) {
	b := listen(t, func(o *HandlerOptions) { o.MaxBody = 10_000 })
	c := b.client(nil)
	big := bigConfig(1, 1)
	l := big.LoadBalancers["4f1c2d3e-0000-4000-8000-000000000000"]
	l.Name = strings.Repeat("x", 8<<20)
	big.LoadBalancers["x"] = l
	if _, err := c.Set(t.Context(), lb.Write{Epoch: b.claim(c), Config: big}); !errors.Is(err, lb.ErrExhausted) || !strings.Contains(err.Error(), "10000") {
		t.Errorf("got %v; want an ErrExhausted that names the limit", err)
	}
	if _, err := c.Info(t.Context()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestPollerThatGoesAway frees what it held.
func TestPollerThatGoesAway(t *testing.T) {
	b := listen(t, func(o *HandlerOptions) { o.MaxPolls = 1 })
	c := b.client(nil)
	d, err := c.Status(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Status(ctx, d.Cursor); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v; want DeadlineExceeded", err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		if _, err = c.Status(t.Context(), ""); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("poll after another was given up: %v", err)
		}
		time.Sleep(10 * time.Millisecond) // poll
	}
}

// TestClientOverHTTP11 polls and writes at the same time.
func TestClientOverHTTP11(t *testing.T) {
	b := listen(t, nil)
	old := b.tls.Clone()
	old.NextProtos = []string{"http/1.1"}
	s := NewServer(ServerOptions{Handler: b.server.Handler, TLS: old})
	s.Protocols.SetHTTP2(false)
	conns := make(chan struct{}, 100)
	s.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		conns <- struct{}{}
		return ctx
	}
	addr := serve(t, s, true)
	c := b.client(func(o *ClientOptions) { o.Endpoint = "https://" + addr })
	d, err := c.Status(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	w := lb.Write{Epoch: b.claim(c)}
	for i := range 5 {
		polled := make(chan error, 1)
		cursor := d.Cursor
		go func() {
			var err error
			d, err = c.Status(t.Context(), cursor)
			polled <- err
		}()
		w.Config = bigConfig(i, 3)
		if _, err := c.Set(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		if err := <-polled; err != nil {
			t.Fatal(err)
		}
	}
	if len(conns) > 3 {
		t.Errorf("got %d connections; want 2, or 3 when both were needed at once at the start", len(conns))
	}
}
