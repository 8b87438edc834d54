package healthcheck

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// excerptWait is how long an answer that is already decided is waited for, to
// have some of its body for the error.
const excerptWait = 50 * time.Millisecond

// httpProber sends one GET over a connection of its own and reads at most
// maxResponse bytes. A 2xx status is a success, 503 means draining, everything
// else, redirects among it, is a failure.
type httpProber struct {
	dialer
	tls *tls.Config // nil: plain http
}

// newHTTPSProber does not verify the members' certificates: they are addressed by
// IP and their certificates are the cluster's own. The check asks whether the
// member serves, not who it is, and sends nothing that is secret. Sessions are
// resumed, because a full handshake costs twenty times what a plain probe does.
func newHTTPSProber(d dialer) httpProber {
	return httpProber{dialer: d, tls: &tls.Config{
		InsecureSkipVerify: true, //nolint:gosec // members are addressed by IP, see above
		NextProtos:         []string{"http/1.1"},
		ClientSessionCache: tls.NewLRUClientSessionCache(1024),
	}}
}

// Probe asks once, within ctx.
func (p httpProber) Probe(ctx context.Context, addr netip.AddrPort, spec Spec) error {
	conn, err := p.dial(ctx, addr, spec)
	if err != nil {
		return err
	}
	// Closing the TCP connection alone leaves out TLS's farewell, which would
	// only be answered by a reset.
	defer func() { _ = conn.Close() }()
	defer bound(ctx, conn)()

	stream := conn
	if p.tls != nil {
		secured := tls.Client(conn, p.tls)
		if err := secured.HandshakeContext(ctx); err != nil {
			return classifyTLS(err).inTime("connected, but the TLS handshake was not completed", spec)
		}
		stream = secured
	}
	err = exchange(ctx, stream, addr, spec.Path)
	if err == nil {
		return nil
	}
	return classify(err).inTime("connected, but no complete answer", spec)
}

// bound makes reading and writing end with ctx, until the returned function is
// called.
func bound(ctx context.Context, conn net.Conn) func() bool {
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline) // cannot fail on an open connection
	return context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
}

// buffers hold the bytes of answers; no answer is kept after its probe.
var buffers = sync.Pool{New: func() any { return new([maxResponse]byte) }}

// exchange sends the request and judges the answer.
func exchange(ctx context.Context, stream net.Conn, addr netip.AddrPort, path string) error {
	buf := buffers.Get().(*[maxResponse]byte)
	defer buffers.Put(buf)
	if _, err := stream.Write(appendRequest(buf[:0], addr, path)); err != nil {
		// A server may refuse by answering and closing before it has read, so
		// what it said is looked at all the same.
		if f := classify(err); f.Reason != Reset {
			return f
		}
	}
	got, decided := 0, false
	for {
		n, err := stream.Read(buf[got:])
		got += n
		r, done, bad := parseResponse(buf[:got])
		switch {
		case bad != nil:
			return bad
		case done && (r.failure() == nil || r.excerpted() || err != nil || got == maxResponse):
			return orNil(r.failure())
		case done && !decided:
			decided = true
			patience(ctx, stream)
		case err != nil:
			return unlessEnded(err)
		}
	}
}

// patience shortens the deadline for what is left of a body.
func patience(ctx context.Context, stream net.Conn) {
	until := time.Now().Add(excerptWait)
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(until) {
		until = deadline
	}
	_ = stream.SetReadDeadline(until) // cannot fail on an open connection
}

// orNil keeps a nil *Failure from becoming an error that is not nil.
func orNil(f *Failure) error {
	if f == nil {
		return nil
	}
	return f
}

// unlessEnded says in which way an answer ended too early.
func unlessEnded(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// appendRequest writes the request. Validate has made sure that the path cannot
// end the request line.
func appendRequest(b []byte, addr netip.AddrPort, path string) []byte {
	if path == "" {
		path = DefaultPath
	}
	b = append(b, "GET "...)
	b = append(b, path...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, addr.String()...)
	return append(b, "\r\nUser-Agent: eclusa-healthcheck\r\nAccept: */*\r\nConnection: close\r\n\r\n"...)
}
