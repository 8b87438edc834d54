package healthcheck

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Limits on what a server may send to a gRPC probe. An answer takes some 150 bytes.
const (
	maxGRPCBytes   = 32 << 10 // in sum
	maxGRPCFrames  = 64
	maxGRPCHeader  = 8 << 10 // of one header list, unpacked
	maxGRPCMessage = 1 << 10
	maxGRPCAcks    = 4 // of settings and pings; a server that wants more of them wants something else
)

// grpcProber asks grpc.health.v1.Health/Check over a connection of its own, in
// HTTP/2 with prior knowledge. SERVING is a success. NOT_SERVING means draining, as
// HTTP 503 does: servers say it from the moment that they shut down, and what they
// have taken by then they finish. Everything else is a failure.
type grpcProber struct{ dialer }

// Probe asks once, within ctx.
func (p grpcProber) Probe(ctx context.Context, addr netip.AddrPort, spec Spec) error {
	conn, err := p.dial(ctx, addr, spec)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	defer bound(ctx, conn)()
	if _, err := conn.Write(appendCheck(nil, addr, spec.Path)); err != nil {
		// A server may refuse by answering and closing before it has read, so
		// what it said is looked at all the same.
		if f := classify(err); f.Reason != Reset {
			return f
		}
	}
	if err := readCheck(conn, spec.Path); err != nil {
		return classify(err).inTime("connected, but no complete gRPC answer", spec)
	}
	return nil
}

// checkStream is the one request's stream.
const checkStream = 1

// appendCheck writes all that a client has to say: the preface, its settings, and
// the request.
func appendCheck(b []byte, addr netip.AddrPort, service string) []byte {
	out := bytes.NewBuffer(append(b, http2.ClientPreface...))
	framer := http2.NewFramer(out, nil)
	var block bytes.Buffer
	fields := hpack.NewEncoder(&block)
	for _, f := range []hpack.HeaderField{
		{Name: ":method", Value: "POST"},
		{Name: ":scheme", Value: "http"},
		{Name: ":path", Value: "/grpc.health.v1.Health/Check"},
		{Name: ":authority", Value: addr.String()},
		{Name: "content-type", Value: "application/grpc"},
		{Name: "te", Value: "trailers"},
		{Name: "user-agent", Value: "eclusa-healthcheck"},
	} {
		_ = fields.WriteField(f) // as all below: a buffer takes everything
	}
	_ = framer.WriteSettings(
		http2.Setting{ID: http2.SettingEnablePush, Val: 0},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: maxGRPCHeader},
	)
	_ = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: checkStream, BlockFragment: block.Bytes(), EndHeaders: true})
	_ = framer.WriteData(checkStream, true, checkRequest(service))
	return out.Bytes()
}

// checkRequest returns a HealthCheckRequest, with the five bytes that gRPC puts in
// front of each message.
func checkRequest(service string) []byte {
	var message []byte
	if service != "" {
		message = append(message, 1<<3|2) // field 1, of a length
		for n := len(service); ; n >>= 7 {
			if n < 0x80 {
				message = append(message, byte(n))
				break
			}
			message = append(message, byte(n&0x7f|0x80))
		}
		message = append(message, service...)
	}
	n := len(message)
	return append([]byte{0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, message...) //nolint:gosec // names are short
}

// readers keep the buffers of answers; no answer is kept after its probe.
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 2048) }}

var errTooMuch = errors.New("too much")

// readCheck reads the answer from a connection, to which it writes what HTTP/2
// demands meanwhile, and judges it.
func readCheck(conn io.ReadWriter, service string) error {
	r := readers.Get().(*bufio.Reader)
	r.Reset(&limited{r: conn, left: maxGRPCBytes})
	defer func() {
		r.Reset(nil)
		readers.Put(r)
	}()
	if err := speaksHTTP2(r); err != nil {
		return err
	}
	framer := http2.NewFramer(conn, r)
	framer.SetMaxReadFrameSize(16 << 10) // the least that servers may count on
	framer.MaxHeaderListSize = maxGRPCHeader
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	a := grpcAnswer{service: service, framer: framer}
	for range maxGRPCFrames {
		frame, err := framer.ReadFrame()
		if err != nil {
			return a.unreadable(err)
		}
		if done, err := a.take(frame); done || err != nil {
			return err
		}
	}
	return notGRPC("more frames than any answer has")
}

// limited reads so many bytes at most.
type limited struct {
	r    io.Reader
	left int
}

func (l *limited) Read(b []byte) (int, error) {
	if l.left == 0 {
		return 0, errTooMuch
	}
	n, err := l.r.Read(b[:min(len(b), l.left)])
	l.left -= n
	return n, err
}

// speaksHTTP2 looks at the first bytes of an answer: people point checks at other
// ports than they think, and the frame's error would tell nobody.
func speaksHTTP2(r *bufio.Reader) error {
	const header = 9 // of a frame
	first, err := r.Peek(header)
	switch {
	case bytes.HasPrefix(first, []byte("HTTP/1")):
		return notGRPC("HTTP/1, where gRPC needs HTTP/2 without TLS; is this the port of a gRPC server?")
	case len(first) > 1 && (first[0] == 0x15 || first[0] == 0x16) && first[1] == 3:
		return &Failure{Reason: TLSErr, Text: "the port speaks TLS, and gRPC checks are made without it"}
	case err != nil:
		return unlessEnded(err)
	case http2.FrameType(first[3]) != http2.FrameSettings:
		return notGRPC("not HTTP/2 but " + quote(printable(first, header)))
	}
	return nil
}

// unreadable says why a frame cannot be read.
func (a *grpcAnswer) unreadable(err error) error {
	ce, isConn := errors.AsType[http2.ConnectionError](err)
	_, isStream := errors.AsType[http2.StreamError](err)
	switch {
	case errors.Is(err, errTooMuch):
		return notGRPC("more bytes than any answer has")
	case errors.Is(err, http2.ErrFrameTooLarge):
		return notGRPC("a frame larger than allowed")
	case isConn && http2.ErrCode(ce) == http2.ErrCodeCompression:
		return notGRPC("a header that cannot be unpacked")
	case isConn, isStream:
		return notGRPC("frames against the rules of HTTP/2, or a header without end")
	}
	return unlessEnded(err)
}

func notGRPC(what string) error {
	return &Failure{Reason: ProtocolErr, Text: "the answer is not gRPC: " + what}
}
