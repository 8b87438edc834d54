package healthcheck

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// grpcServer is a real gRPC server.
func grpcServer(t testing.TB, register func(*grpc.Server), o ...grpc.ServerOption) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	s := grpc.NewServer(o...)
	register(s)
	ended := make(chan error)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// healthServer is a real gRPC server with the usual health service.
func healthServer(t testing.TB, statuses map[string]healthpb.HealthCheckResponse_ServingStatus) netip.AddrPort {
	t.Helper()
	return grpcServer(t, func(s *grpc.Server) {
		h := health.NewServer()
		for service, status := range statuses {
			h.SetServingStatus(service, status)
		}
		healthpb.RegisterHealthServer(s, h)
	})
}

// frames returns what a server sends, after its settings.
func frames(write func(*http2.Framer)) []byte {
	var b bytes.Buffer
	f := http2.NewFramer(&b, nil)
	f.AllowIllegalWrites = true
	_ = f.WriteSettings()
	write(f)
	return b.Bytes()
}

// fields returns a header block of names and values.
func fields(pairs ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(pairs); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return b.Bytes()
}

func writeHeader(f *http2.Framer, end bool, pairs ...string) {
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: checkStream, BlockFragment: fields(pairs...), EndHeaders: true, EndStream: end})
}

var grpcHeader = []string{":status", "200", "content-type", "application/grpc+proto"}

// answer returns a whole answer with a message as it stands on the wire.
func answer(message string) []byte {
	return frames(func(f *http2.Framer) {
		writeHeader(f, false, grpcHeader...)
		_ = f.WriteData(checkStream, false, []byte(message))
		writeHeader(f, true, "grpc-status", "0")
	})
}

const serving = "\x00\x00\x00\x00\x02\x08\x01"

// sends answers a request with bytes, and waits for the client to go.
func sends(answer []byte) func(net.Conn) {
	return func(conn net.Conn) {
		_, _ = io.ReadFull(conn, make([]byte, len(http2.ClientPreface)))
		_, _ = conn.Write(answer)
		stay(conn)
	}
}

// over sends a piece again and again.
func over(first, piece []byte) func(net.Conn) {
	return func(conn net.Conn) {
		_, _ = conn.Write(first)
		many := bytes.Repeat(piece, 1+(1<<16)/len(piece))
		for {
			if _, err := conn.Write(many); err != nil {
				return
			}
		}
	}
}

func TestGRPCProber(t *testing.T) {
	real := healthServer(t, map[string]healthpb.HealthCheckResponse_ServingStatus{
		"": healthpb.HealthCheckResponse_SERVING, "shop.v1.Cart": healthpb.HealthCheckResponse_SERVING,
		"leaving": healthpb.HealthCheckResponse_NOT_SERVING, "new": healthpb.HealthCheckResponse_UNKNOWN,
		strings.Repeat("x", MaxService): healthpb.HealthCheckResponse_SERVING,
	})
	without := grpcServer(t, func(*grpc.Server) {})
	guarded := func(code codes.Code, text string) netip.AddrPort {
		return grpcServer(t, func(s *grpc.Server) { healthpb.RegisterHealthServer(s, health.NewServer()) },
			grpc.UnaryInterceptor(func(context.Context, any, *grpc.UnaryServerInfo, grpc.UnaryHandler) (any, error) {
				return nil, status.Error(code, text)
			}))
	}
	trailersOnly := func(pairs ...string) []byte {
		return frames(func(f *http2.Framer) { writeHeader(f, true, pairs...) })
	}
	tests := []struct {
		name     string
		addr     netip.AddrPort
		service  string
		reason   Reason // empty: success
		text     string
		draining bool
	}{
		{"serving", real, "", "", "", false},
		{"a service serving", real, "shop.v1.Cart", "", "", false},
		{"longest name", real, strings.Repeat("x", MaxService), "", "", false},
		{"not serving", real, "leaving", GRPCStatus, "gRPC NOT_SERVING", true},
		{"unknown", real, "new", GRPCStatus, "gRPC UNKNOWN: the server's health service has no status set; the server has to set SERVING when it serves", false},
		{"no such service", real, "shop.v1.Card", GRPCStatus, `gRPC NOT_FOUND: the server has no health of service "shop.v1.Card"; set a status for it there, or check the whole server (empty path)`, false},
		{"no status of the whole", grpcServer(t, func(s *grpc.Server) {
			h := health.NewServer()
			h.SetServingStatus("", healthpb.HealthCheckResponse_SERVICE_UNKNOWN)
			healthpb.RegisterHealthServer(s, h)
		}), "", GRPCStatus, `gRPC SERVICE_UNKNOWN: the server has no health of the whole server, service ""; set a status for it there, or name a service that it knows`, false},
		{"no health service", without, "", GRPCStatus, "gRPC status UNIMPLEMENTED: the server has no grpc.health.v1.Health service; register one there, or check by tcp", false},
		{"wants credentials", guarded(codes.Unauthenticated, "no token"), "", GRPCStatus, "gRPC status UNAUTHENTICATED: the server wants credentials, and checks have none; exempt grpc.health.v1.Health there, or check by tcp", false},
		{"overloaded", guarded(codes.ResourceExhausted, "too many\n\x1b[1m"), "", GRPCStatus, `gRPC status RESOURCE_EXHAUSTED "too many%0A%1B[1m"`, false},
		{"a code of tomorrow", serve(t, sends(trailersOnly(":status", "200", "content-type", "application/grpc", "grpc-status", "99"))), "", GRPCStatus, "gRPC status 99", false},

		{"settings, pings and interim answers", serve(t, sends(frames(func(f *http2.Framer) {
			_ = f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
			_ = f.WritePing(false, [8]byte{1})
			_ = f.WriteWindowUpdate(0, 1000)
			writeHeader(f, false, ":status", "103")
			_ = f.WriteGoAway(checkStream, http2.ErrCodeNo, nil)
			writeHeader(f, false, grpcHeader...)
			_ = f.WriteData(checkStream, false, []byte(serving[:3]))
			_ = f.WriteDataPadded(checkStream, false, []byte(serving[3:]), make([]byte, 9))
			writeHeader(f, true, "grpc-status", "0")
		}))), "", "", "", false},
		{"a field of tomorrow", serve(t, sends(answer("\x00\x00\x00\x00\x05\x12\x01x\x08\x01"))), "", "", "", false},

		{"refused", closed(t), "", Refused, "connection refused", false},
		{"black hole", hole(t), "", Timeout, "no answer to the connection attempt within 200ms", false},
		{"never answers", serve(t, stay), "", Timeout, "connected, but no complete gRPC answer within 200ms", false},
		{"settings and nothing else", serve(t, sends(frames(func(*http2.Framer) {}))), "", Timeout, "connected, but no complete gRPC answer within 200ms", false},
		{"byte a second", serve(t, trickle(string(answer(serving)))), "", Timeout, "connected, but no complete gRPC answer within 200ms", false},
		{"closes", serve(t, func(c net.Conn) { _, _ = io.ReadFull(c, make([]byte, 100)) }), "", Reset, "connection reset by peer", false},
		{"resets", serve(t, reset), "", Reset, "connection reset by peer", false},
		{"HTTP/1", serve(t, say("HTTP/1.1 400 Bad Request\r\n\r\n")), "", ProtocolErr, "the answer is not gRPC: HTTP/1, where gRPC needs HTTP/2 without TLS; is this the port of a gRPC server?", false},
		{"TLS", tlsServer(t, func(http.ResponseWriter, *http.Request) {}, nil), "", ProtocolErr, "", false},
		{"SSH", serve(t, sends([]byte("SSH-2.0-OpenSSH\r\n"))), "", ProtocolErr, `the answer is not gRPC: not HTTP/2 but "SSH-2.0-O"`, false},
		{"plain HTTP/2", serve(t, sends(frames(func(f *http2.Framer) {
			writeHeader(f, false, ":status", "200", "content-type", "text/html")
			_ = f.WriteData(checkStream, true, bytes.Repeat([]byte("<p>"), 1000))
		}))), "", ProtocolErr, `the answer is not gRPC: its content type is "text/html"`, false},
		{"a proxy without servers", serve(t, sends(trailersOnly(":status", "503"))), "", HTTPStatus, "HTTP 503 instead of a gRPC answer", true},
		{"no HTTP status", serve(t, sends(trailersOnly("grpc-status", "0"))), "", ProtocolErr, `the answer is not gRPC: its HTTP status is ""`, false},
		{"GOAWAY", serve(t, sends(frames(func(f *http2.Framer) { _ = f.WriteGoAway(0, http2.ErrCodeEnhanceYourCalm, []byte("too_many")) }))), "", ProtocolErr, `the server ends the connection: ENHANCE_YOUR_CALM "too_many"`, false},
		{"a server that shuts down", serve(t, sends(frames(func(f *http2.Framer) { _ = f.WriteGoAway(0, http2.ErrCodeNo, nil) }))), "", ProtocolErr, `the server ends the connection: NO_ERROR`, true},
		{"RST_STREAM", serve(t, sends(frames(func(f *http2.Framer) { _ = f.WriteRSTStream(checkStream, http2.ErrCodeRefusedStream) }))), "", ProtocolErr, "the server ends the request: REFUSED_STREAM", false},
		{"a push", serve(t, sends(frames(func(f *http2.Framer) {
			_ = f.WritePushPromise(http2.PushPromiseParam{StreamID: checkStream, PromiseID: 2, BlockFragment: fields(":path", "/"), EndHeaders: true})
		}))), "", ProtocolErr, "the answer is not gRPC: a push, which was not allowed", false},
		{"no status", serve(t, sends(frames(func(f *http2.Framer) {
			writeHeader(f, false, grpcHeader...)
			_ = f.WriteData(checkStream, true, []byte(serving))
		}))), "", ProtocolErr, "the answer is not gRPC: it ends without grpc-status", false},
		{"compressed", serve(t, sends(answer("\x01\x00\x00\x00\x02\x08\x01"))), "", ProtocolErr, "the answer is not gRPC: its message is no HealthCheckResponse", false},
		{"no message", serve(t, sends(answer(""))), "", ProtocolErr, "the answer is not gRPC: its message is no HealthCheckResponse", false},
		{"a large message", serve(t, sends(answer(strings.Repeat("x", 2000)))), "", ProtocolErr, "the answer is not gRPC: a message longer than that of any health service", false},
		{"a large header", serve(t, sends(frames(func(f *http2.Framer) {
			writeHeader(f, false, append(grpcHeader, "x", strings.Repeat("\xff", 6000), "y", strings.Repeat("\xff", 6000))...)
		}))), "", ProtocolErr, "the answer is not gRPC: a header longer than allowed", false},
		{"a header bomb", serve(t, sends(frames(func(f *http2.Framer) {
			block := fields("x", strings.Repeat("y", 3000))
			for range 10000 {
				block = append(block, 0x80|62) // that field once more
			}
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: checkStream, BlockFragment: block, EndHeaders: true})
		}))), "", ProtocolErr, "the answer is not gRPC: a header longer than allowed", false},
		{"a header without end", serve(t, over(
			frames(func(f *http2.Framer) {
				_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: checkStream, BlockFragment: fields(grpcHeader...)})
			}),
			frames(func(f *http2.Framer) { _ = f.WriteContinuation(checkStream, false, fields("x", "y")) })[9:],
		)), "", ProtocolErr, "the answer is not gRPC: frames against the rules of HTTP/2, or a header without end", false},
		{"empty settings for ever", serve(t, over(nil, frames(func(*http2.Framer) {}))), "", ProtocolErr, "the answer is not gRPC: more frames than any answer has", false},
		{"pings for ever", serve(t, over(frames(func(*http2.Framer) {}), frames(func(f *http2.Framer) { _ = f.WritePing(false, [8]byte{}) })[9:])), "", ProtocolErr, "the answer is not gRPC: more frames than any answer has", false},
		{"large frames for ever", serve(t, over(frames(func(*http2.Framer) {}), frames(func(f *http2.Framer) { _ = f.WriteRawFrame(0xee, 0, 0, make([]byte, 16<<10)) })[9:])), "", ProtocolErr, "the answer is not gRPC: more bytes than any answer has", false},
		{"a frame too large", serve(t, sends(frames(func(f *http2.Framer) { _ = f.WriteRawFrame(0xee, 0, 0, make([]byte, 17<<10)) }))), "", ProtocolErr, "the answer is not gRPC: a frame larger than allowed", false},
	}
	c := New(Options{})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			spec := Spec{Protocol: GRPC, Path: tt.service, Timeout: sec(10)}.WithDefaults()
			if bad := spec.Validate(); bad != nil {
				t.Fatal(bad)
			}
			if tt.reason == Timeout {
				spec.Timeout = ms(200)
			}
			began := time.Now()
			f := ask(t.Context(), tt.addr, &kind{spec: spec, prober: c.probers[GRPC]})
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("took %v; want at most the 200ms of a timeout, and some time to be scheduled", took)
			}
			if f == nil {
				f = &Failure{}
			}
			fit(t, f.Text)
			want := Failure{Reason: tt.reason, Text: tt.text, Draining: tt.draining}
			if tt.name == "TLS" { // Go's server answers HTTP/1 in the clear; see below for others
				want.Text = f.Text
			}
			if *f != want {
				t.Errorf("got %+v; want %+v", *f, want)
			}
		})
	}
}

// A server of TLS answers what is no handshake with an alert.
func TestGRPCToTLS(t *testing.T) {
	alert := []byte{0x15, 3, 1, 0, 2, 2, 22}
	err := readCheck(&script{bytes.NewReader(alert), 0}, "")
	if f := classify(err); f.Reason != TLSErr || !strings.Contains(f.Text, "speaks TLS") {
		t.Errorf("got %+v; want TLS to be named", f)
	}
}

// The longest text names a service that the server does not know.
func TestGRPCTextsFit(t *testing.T) {
	for _, said := range []string{"NOT_FOUND", "SERVICE_UNKNOWN"} {
		text := (&grpcAnswer{service: strings.Repeat("x", MaxService)}).stranger(said).Error()
		fit(t, text)
		if !strings.HasSuffix(text, "(empty path)") {
			t.Errorf("got %q; want the remedy at the end", text)
		}
	}
}

// Probes leave no goroutine behind, whatever they meet.
func TestGRPCLeavesNoGoroutine(t *testing.T) {
	addr := serve(t, stay)
	before := runtime.NumGoroutine()
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		_ = grpcProber{}.Probe(ctx, addr, Spec{Protocol: GRPC, Timeout: ms(5)})
		cancel()
	}
	deadline := time.Now().Add(5 * time.Second)
	for runtime.NumGoroutine() > before && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond) // poll: the server notices the resets
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("got %d goroutines after 20 probes; want %d as before", n, before)
	}
}

// script is a connection on which everything was said already.
type script struct {
	io.Reader
	written int
}

func (s *script) Write(b []byte) (int, error) {
	s.written += len(b)
	return len(b), nil
}

// FuzzReadCheck checks that an answer is judged the same however it arrives, that
// it does not make the client talk much, and that every error is fit to be shown.
func FuzzReadCheck(f *testing.F) {
	f.Add(answer(serving))
	f.Add(answer("\x00\x00\x00\x00\x05\x12\x01x\x08\x02"))
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Add(frames(func(f *http2.Framer) {
		_ = f.WritePing(false, [8]byte{})
		_ = f.WriteGoAway(0, http2.ErrCodeProtocol, []byte("\x1b[1m"))
	}))
	f.Add(frames(func(f *http2.Framer) {
		writeHeader(f, true, ":status", "200", "content-type", "application/grpc", "grpc-status", "5", "grpc-message", "x")
	}))
	f.Fuzz(func(t *testing.T, said []byte) {
		whole := &script{bytes.NewReader(said), 0}
		err := readCheck(whole, "shop.v1.Cart")
		if whole.written > maxGRPCAcks*17 {
			t.Fatalf("%d bytes were written in answer to %q", whole.written, said)
		}
		if again := readCheck(&script{iotest.OneByteReader(bytes.NewReader(said)), 0}, "shop.v1.Cart"); (err == nil) != (again == nil) ||
			err != nil && *classify(err) != *classify(again) {
			t.Fatalf("%q: got %v whole, and %v byte by byte", said, err, again)
		}
		if err != nil {
			fit(t, classify(err).Text)
		}
	})
}

func BenchmarkGRPCProbe(b *testing.B) {
	addr := healthServer(b, map[string]healthpb.HealthCheckResponse_ServingStatus{"": healthpb.HealthCheckResponse_SERVING})
	spec := Spec{Protocol: GRPC}.WithDefaults()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	b.ReportAllocs()
	for b.Loop() {
		if err := (grpcProber{}).Probe(ctx, addr, spec); err != nil {
			b.Fatal(err)
		}
	}
}
