package healthcheck

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// serve answers every connection to a listener on the loopback with a function,
// until the test ends.
func serve(t testing.TB, handle func(net.Conn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[conn] = true
			mu.Unlock()
			wg.Go(func() {
				handle(conn)
				_ = conn.Close()
				mu.Lock()
				delete(open, conn)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for conn := range open {
			_ = conn.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// serve6 is serve on the IPv6 loopback, or the other one where there is none.
func serve6(t testing.TB) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		return serve(t, stay)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().(*net.TCPAddr).AddrPort() // the kernel accepts for it
}

// say answers a request with a text and closes.
func say(text string) func(net.Conn) {
	return func(conn net.Conn) {
		_, _ = http.ReadRequest(bufio.NewReader(conn))
		_, _ = io.WriteString(conn, text)
	}
}

// stay never says anything.
func stay(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

func reset(conn net.Conn) {
	_, _ = http.ReadRequest(bufio.NewReader(conn))
	_ = conn.(*net.TCPConn).SetLinger(0)
}

// trickle sends a text a byte a second.
func trickle(text string) func(net.Conn) {
	return func(conn net.Conn) {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for i := range len(text) {
			if _, err := conn.Write([]byte{text[i]}); err != nil {
				return
			}
			<-tick.C
		}
	}
}

// flood sends a header field that never ends.
func flood(conn net.Conn) {
	_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nX: ")
	junk := []byte(strings.Repeat("x", 1<<16))
	for {
		if _, err := conn.Write(junk); err != nil {
			return
		}
	}
}

// closed returns an address of the loopback where nobody listens.
func closed(t testing.TB) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func tlsServer(t testing.TB, handler http.HandlerFunc, configure func(*tls.Config)) netip.AddrPort {
	t.Helper()
	s := httptest.NewUnstartedServer(handler)
	s.Config.ErrorLog = quiet()
	s.TLS = &tls.Config{}
	if configure != nil {
		configure(s.TLS)
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	return netip.MustParseAddrPort(s.Listener.Addr().String())
}

func TestProbers(t *testing.T) {
	status := func(code int, body string) func(net.Conn) {
		return say(fmt.Sprintf("HTTP/1.1 %d %s\r\nContent-Length: %d\r\n\r\n%s", code, http.StatusText(code), len(body), body))
	}
	ok := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" || r.Method != http.MethodGet || r.Host == "" {
			w.WriteHeader(http.StatusBadRequest)
		}
	}
	const text503 = `HTTP 503 "{\"nodeEligible\": false}"`
	tests := []struct {
		name     string
		protocol Protocol
		addr     netip.AddrPort
		reason   Reason // empty: success
		text     string
		draining bool
	}{
		{"tcp", TCP, serve(t, stay), "", "", false},
		{"tcp refused", TCP, closed(t), Refused, "connection refused", false},
		{"tcp black hole", TCP, hole(t), Timeout, "no answer to the connection attempt within 200ms", false},

		{"tcp over IPv6", TCP, serve6(t), "", "", false},
		{"http 200", HTTP, serve(t, status(200, "ok")), "", "", false},
		{"http 204 without reason", HTTP, serve(t, say("HTTP/1.0 204\r\n\r\n")), "", "", false},
		{"http 200 that goes on", HTTP, serve(t, func(c net.Conn) { say("HTTP/1.1 200 OK\r\n\r\nx")(c); stay(c) }), "", "", false},
		{"http 200 before it was asked", HTTP, serve(t, func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"); stay(c) }), "", "", false},
		{"http interim answer", HTTP, serve(t, say("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")), "", "", false},
		{"http huge header", HTTP, serve(t, flood), "", "", false},
		{"http 503", HTTP, serve(t, status(503, `{"nodeEligible": false}`)), HTTPStatus, text503, true},
		{"http 503 chunked", HTTP, serve(t, say("HTTP/1.1 503 x\r\ntransfer-encoding: chunked\r\n\r\n17\r\n{\"nodeEligible\": false}\r\n0\r\n\r\n")), HTTPStatus, text503, true},
		{"http 503 whose body hangs", HTTP, serve(t, func(c net.Conn) { say("HTTP/1.1 503 x\r\n\r\nwait")(c); stay(c) }), HTTPStatus, `HTTP 503 "wait"`, true},
		{"http 500 binary", HTTP, serve(t, status(500, "a\x1b[31m\x00\n\n b")), HTTPStatus, `HTTP 500 "a.[31m. b"`, false},
		{"http 404 long", HTTP, serve(t, status(404, strings.Repeat("x", 10000))), HTTPStatus, `HTTP 404 "` + strings.Repeat("x", 64) + `"`, false},
		{"http redirect", HTTP, serve(t, say("HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n")), HTTPStatus, "HTTP 301", false},
		{"http refused", HTTP, closed(t), Refused, "connection refused", false},
		{"http black hole", HTTP, hole(t), Timeout, "no answer to the connection attempt within 200ms", false},
		{"http never answers", HTTP, serve(t, stay), Timeout, "connected, but no complete answer within 200ms", false},
		{"http byte a second", HTTP, serve(t, trickle("HTTP/1.1 200 OK\r\n\r\n")), Timeout, "connected, but no complete answer within 200ms", false},
		{"http resets", HTTP, serve(t, reset), Reset, "connection reset by peer", false},
		{"http closes", HTTP, serve(t, say("")), ProtocolErr, "connection closed before the answer was complete", false},
		{"http closes within the header", HTTP, serve(t, say("HTTP/1.1 200 OK\r\nA: b")), ProtocolErr, "connection closed before the answer was complete", false},
		{"another protocol", HTTP, serve(t, func(c net.Conn) { _, _ = io.WriteString(c, "SSH-2.0-x\r\n"); stay(c) }), ProtocolErr, `the answer is not HTTP/1: "SSH-2.0-x"`, false},

		{"https 200", HTTPS, tlsServer(t, ok, nil), "", "", false},
		{"https 503", HTTPS, tlsServer(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "go away", http.StatusServiceUnavailable) }, nil), HTTPStatus, `HTTP 503 "go away"`, true},
		{"https refused", HTTPS, closed(t), Refused, "connection refused", false},
		{"https to http", HTTPS, serve(t, say("HTTP/1.1 400 Bad Request\r\n\r\n")), TLSErr, "the answer to the TLS handshake is not TLS", false},
		{"https never answers", HTTPS, serve(t, stay), Timeout, "connected, but the TLS handshake was not completed within 200ms", false},
		{"https resets", HTTPS, serve(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 1)); _ = c.(*net.TCPConn).SetLinger(0) }), Reset, "connection reset by peer", false},
		{"https with client certificate", HTTPS, tlsServer(t, ok, func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert }), TLSErr, "tls: certificate required", false},
		{"https of another age", HTTPS, tlsServer(t, ok, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }), TLSErr, "tls: protocol version not supported", false},
	}
	c := New(Options{})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			spec := Spec{Protocol: tt.protocol, Timeout: sec(10)}.WithDefaults()
			if tt.reason == Timeout {
				spec.Timeout = ms(200)
			}
			k := &kind{spec: spec, prober: c.probers[tt.protocol]}
			began := time.Now()
			f := ask(t.Context(), tt.addr, k)
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("took %v; want at most the 200ms of a timeout, and some time to be scheduled", took)
			}
			if f == nil {
				f = &Failure{}
			}
			want := Failure{Reason: tt.reason, Text: tt.text, Draining: tt.draining}
			if *f != want {
				t.Errorf("got %+v; want %+v", *f, want)
			}
		})
	}
}

func TestProbeEndsWithItsContext(t *testing.T) {
	c := New(Options{})
	for protocol, addr := range map[Protocol]netip.AddrPort{TCP: hole(t), HTTP: serve(t, stay), HTTPS: serve(t, stay)} {
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		time.AfterFunc(50*time.Millisecond, cancel)
		err := c.probers[protocol].Probe(ctx, addr, Spec{Protocol: protocol, Path: "/", Timeout: sec(30)})
		if took := time.Since(began); err == nil || took > 5*time.Second {
			t.Errorf("%s: got %v after %v; want an error soon after 50ms", protocol, err, took)
		}
	}
}

func TestControl(t *testing.T) {
	addr := serve(t, stay)
	var seen string
	deny := error(nil)
	c := New(Options{Control: func(network, address string, _ syscall.RawConn) error {
		seen = network + " " + address
		return deny
	}})
	k := &kind{spec: Spec{}.WithDefaults(), prober: c.probers[TCP]}
	if f := ask(t.Context(), addr, k); f != nil || seen != "tcp4 "+addr.String() {
		t.Errorf("got %v, control saw %q; want success and %q", f, seen, "tcp4 "+addr.String())
	}
	deny = os.NewSyscallError("setsockopt", syscall.EPERM)
	if f := ask(t.Context(), addr, k); f == nil || !f.Own || f.Text != "operation not permitted" {
		t.Errorf("control refuses: got %+v; want a fault of this machine", f)
	}
}

func TestClassify(t *testing.T) {
	dialed := func(errno syscall.Errno) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", errno)}
	}
	own := Failure{Own: true}
	tests := []struct {
		err  error
		want Failure // texts are left out
	}{
		{dialed(syscall.ECONNREFUSED), Failure{Reason: Refused}},
		{dialed(syscall.ETIMEDOUT), Failure{Reason: Timeout}},
		{dialed(syscall.EHOSTUNREACH), Failure{Reason: Unreachable}},
		{dialed(syscall.ECONNRESET), Failure{Reason: Reset}},
		{dialed(syscall.EPIPE), Failure{Reason: Reset}},
		{dialed(syscall.EMFILE), own},
		{dialed(syscall.ENFILE), own},
		{dialed(syscall.ENOBUFS), own},
		{dialed(syscall.ENOMEM), own},
		{dialed(syscall.EADDRNOTAVAIL), own},
		{dialed(syscall.ENETUNREACH), own},
		{dialed(syscall.ENETDOWN), own},
		{dialed(syscall.EPERM), own},
		{context.DeadlineExceeded, Failure{Reason: Timeout}},
		{fmt.Errorf("read: %w", os.ErrDeadlineExceeded), Failure{Reason: Timeout}},
		{io.EOF, Failure{Reason: ProtocolErr}},
		{errors.New("something\x00else"), Failure{Reason: ProtocolErr}},
		{fmt.Errorf("outer: %w", &Failure{Reason: HTTPStatus, Draining: true, Text: "x"}), Failure{Reason: HTTPStatus, Draining: true}},
	}
	for _, tt := range tests {
		got := *classify(tt.err)
		if got.Text == "" || got.Error() != printable([]byte(got.Text), MaxError) {
			t.Errorf("%v: got text %q; want one that is printable", tt.err, got.Text)
		}
		if got.Text = ""; got != tt.want {
			t.Errorf("%v: got %+v; want %+v", tt.err, got, tt.want)
		}
	}
}

// TestCheckerWithRealServers lets a Checker run over every kind of member at once.
func TestCheckerWithRealServers(t *testing.T) {
	spec := Spec{Protocol: HTTP, Interval: ms(100), Timeout: ms(100)}.WithDefaults()
	want := map[netip.AddrPort]State{
		serve(t, say("HTTP/1.1 200 OK\r\n\r\n")): Up,
		serve(t, say("HTTP/1.1 503 No\r\n\r\n")): Draining,
		serve(t, stay):                           Down,
		serve(t, reset):                          Down,
		closed(t):                                Down,
		hole(t):                                  Down,
	}
	set := map[Target]Result{}
	for addr := range want {
		set[Target{addr, spec}] = Result{}
	}
	c := New(Options{})
	c.Set(set)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	ended := make(chan error)
	go func() { ended <- c.Run(ctx) }()
	for done := false; !done; {
		select {
		case <-c.Changed():
		case <-ctx.Done():
			t.Fatalf("after 20s: got %+v; want states %v", c.Results(), want)
		}
		done = true
		for target, r := range c.Results() {
			done = done && r.State == want[target.Addr]
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
}
