package rest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"
)

// ServerOptions configure a server. Handler and TLS are required.
type ServerOptions struct {
	Handler http.Handler
	// TLS is from [ServerTLS].
	TLS *tls.Config
	// MaxConnections limits the connections open at once, those that have not
	// shown a certificate yet included; 0 means 256.
	MaxConnections int
	// Log gets what goes wrong with connections; nil means nowhere.
	Log *zap.Logger
}

// ServerTLS returns the server's end of the mutual authentication: TLS 1.3 only,
// and only clients with a certificate from clientCAs. cert is called for every
// connection, so that a renewed certificate is used as soon as it is there.
func ServerTLS(cert func() (*tls.Certificate, error), clientCAs *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert() },
		ClientAuth:     tls.RequireAndVerifyClientCert,
		ClientCAs:      clientCAs,
		NextProtos:     []string{"h2", "http/1.1"},
		// A resumed session would go on with a certificate that is not looked at
		// again; connections are few and long.
		SessionTicketsDisabled: true,
	}
}

// NewServer returns a server with a limit on everything that a client could keep
// open. It starts nothing: call ServeTLS(listener, "", ""). On Shutdown polls of
// the status end at once, other calls are finished.
func NewServer(o ServerOptions) *http.Server {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	most := int64(orDefault(o.MaxConnections, 256))
	complaints := &complaintWriter{log: o.Log, limiter: rate.NewLimiter(5, 20)}
	stop, stopped := context.WithCancel(context.Background())
	var registry shutdownRegistry = func(f func()) func() bool { return context.AfterFunc(stop, f) }
	base := context.WithValue(context.Background(), shutdownKey{}, registry)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	s := &http.Server{
		Handler:           o.Handler,
		TLSConfig:         o.TLS.Clone(),   // net/http adds to it
		ReadHeaderTimeout: 5 * time.Second, // of the TLS handshake too
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		Protocols:         protocols,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 32,
			SendPingTimeout:      15 * time.Second,
			PingTimeout:          5 * time.Second,
			WriteByteTimeout:     15 * time.Second,
		},
		ErrorLog:    log.New(complaints, "", 0),
		BaseContext: func(net.Listener) context.Context { return base },
	}
	var open atomic.Int64
	s.ConnState = func(c net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			if open.Add(1) > most {
				complaints.complain("connection refused; all are in use", zap.Stringer("remote", c.RemoteAddr()), zap.Int64("most", most))
				_ = c.Close()
			}
		case http.StateClosed, http.StateHijacked:
			open.Add(-1)
		default: // neither opened nor closed
		}
	}
	s.RegisterOnShutdown(stopped)
	return s
}

// shutdownKey is where a request's context has the shutdownRegistry.
type shutdownKey struct{}

// shutdownRegistry takes what is to be done when the server shuts down, and
// returns what undoes that.
type shutdownRegistry func(f func()) (undo func() bool)

// onShutdown calls f when the server of the request shuts down, unless cancelled
// before.
func onShutdown(request context.Context, f func()) (cancel func()) {
	registry, ok := request.Value(shutdownKey{}).(shutdownRegistry)
	if !ok {
		return func() {}
	}
	undo := registry(f)
	return func() { undo() }
}

// complaintWriter logs what net/http has to say about connections, a few lines a
// second: everybody who reaches the port can make it speak.
type complaintWriter struct {
	log     *zap.Logger
	limiter *rate.Limiter
}

// Write logs one line.
func (w *complaintWriter) Write(line []byte) (int, error) {
	w.complain("connection failed", zap.String("reason", clip(strings.TrimSpace(string(line)), maxDetail)))
	return len(line), nil
}

func (w *complaintWriter) complain(message string, fields ...zap.Field) {
	if w.limiter.Allow() {
		w.log.Warn(message, fields...)
	}
}
