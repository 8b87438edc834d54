// Command workload is the application that a lab's pods run, small enough to
// see what it does and talkative enough to see who answered whom:
//
//	HTTP on :8080      /                "hello from POD on NODE, you are ADDRESS"
//	                   /slow?ms=N       the same after N milliseconds
//	                   /bytes?n=N       N bytes
//	                   /status?code=N   the same with that status
//	                   /healthz         200
//	                   and gRPC's health service, over HTTP/2 without TLS
//	HTTPS on :8443     the same, with a certificate of nobody's
//	TCP echo on :7000  the pod's name in a line, then whatever it is sent
//	UDP echo on :7001  "POD on NODE, you are ADDRESS: PAYLOAD" for each datagram
//
// POD and NODE come from the variables POD_NAME (else the host name) and
// NODE_NAME. On SIGTERM it
// fails its health check, waits for requests to end (ten seconds at most), and
// ends.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "workload:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	host, err := os.Hostname() // a pod's host name is its own
	if err != nil {
		return err
	}
	a := app{pod: getenv("POD_NAME", host), node: getenv("NODE_NAME", "an unnamed node"), ending: ctx}
	tcp, err := net.Listen("tcp", ":7000")
	if err != nil {
		return err
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", ":7001")
	if err != nil {
		return err
	}
	defer udp.Close()
	cert, err := certificate(host)
	if err != nil {
		return err
	}
	web := a.server(":8080")
	secure := a.server(":8443")
	secure.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	ended := make(chan error, 4)
	go func() { ended <- a.echoTCP(tcp) }()
	go func() { ended <- a.echoUDP(udp) }()
	go func() { ended <- web.ListenAndServe() }()
	go func() { ended <- secure.ListenAndServeTLS("", "") }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return errors.Join(web.Shutdown(ctx), secure.Shutdown(ctx))
}

// server speaks HTTP/1 and, to clients that begin with it, HTTP/2 without TLS.
func (a app) server(address string) *http.Server {
	var both http.Protocols
	both.SetHTTP1(true)
	both.SetHTTP2(true)
	both.SetUnencryptedHTTP2(true)
	return &http.Server{Addr: address, Handler: a.handler(), ReadHeaderTimeout: 10 * time.Second, Protocols: &both}
}

// app is what the pod knows of itself.
type app struct {
	pod, node string
	ending    context.Context
}

func (a app) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", a.hello)
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(time.Duration(number(r, "ms", 60_000)) * time.Millisecond)
		a.hello(w, r)
	})
	mux.HandleFunc("/bytes", func(w http.ResponseWriter, r *http.Request) {
		n := number(r, "n", 10<<30)
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		// The client may leave early.
		_, _ = io.CopyN(w, letters{}, n)
	})
	mux.HandleFunc("/status", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(int(max(200, number(r, "code", 599))))
		a.hello(w, r)
	})
	mux.HandleFunc("/grpc.health.v1.Health/Check", a.check)
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if a.ending.Err() != nil {
			http.Error(w, "ending", http.StatusServiceUnavailable)
		}
	})
	return mux
}

func (a app) hello(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "hello from %s on %s, you are %s\n", a.pod, a.node, r.RemoteAddr)
}

func (a app) echoTCP(l net.Listener) error {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go a.echo(c)
	}
}

func (a app) echo(c net.Conn) {
	defer c.Close()
	fmt.Fprintln(c, a.pod)
	_, _ = io.Copy(c, c)
}

func (a app) echoUDP(c net.PacketConn) error {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		// An answer that cannot be sent is lost, as datagrams are.
		_, _ = c.WriteTo(fmt.Appendf(nil, "%s on %s, you are %s: %s", a.pod, a.node, from, buf[:n]), from)
	}
}

// letters is an endless source of bytes.
type letters struct{}

func (letters) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a' + byte(i%26)
	}
	return len(p), nil
}

// number reads a query parameter between 0 and most; 0 if it is anything else.
func number(r *http.Request, name string, most int64) int64 {
	n, err := strconv.ParseInt(r.URL.Query().Get(name), 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return min(n, most)
}

func getenv(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}
