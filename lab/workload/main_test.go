package main

import (
	"bufio"
	"context"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestHTTP(t *testing.T) {
	ending, end := context.WithCancel(t.Context())
	a := app{pod: "web-1", node: "node-2", ending: ending}
	s := httptest.NewServer(a.handler())
	defer s.Close()
	get := func(path string) (int, string) {
		t.Helper()
		resp, err := s.Client().Get(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	const hello = "hello from web-1 on node-2, you are 127.0.0.1:"
	if _, body := get("/"); !strings.HasPrefix(body, hello) {
		t.Errorf("/: got %q, want it to begin with %q", body, hello)
	}
	start := time.Now()
	if _, body := get("/slow?ms=50"); !strings.HasPrefix(body, hello) || time.Since(start) < 50*time.Millisecond {
		t.Errorf("/slow: got %q after %v", body, time.Since(start))
	}
	if _, body := get("/bytes?n=100000"); len(body) != 100000 {
		t.Errorf("/bytes: got %d bytes, want 100000", len(body))
	}
	if code, body := get("/bytes?n=-1"); code != http.StatusOK || body != "" {
		t.Errorf("/bytes with a nonsensical number: got %d, %q; want nothing", code, body)
	}
	if code, body := get("/status?code=503"); code != http.StatusServiceUnavailable || !strings.HasPrefix(body, hello) {
		t.Errorf("/status?code=503: got %d, %q", code, body)
	}
	if code, _ := get("/healthz"); code != http.StatusOK {
		t.Errorf("/healthz: got %d, want 200", code)
	}
	end()
	if code, _ := get("/healthz"); code != http.StatusServiceUnavailable {
		t.Errorf("/healthz while ending: got %d, want 503", code)
	}
}

func TestEcho(t *testing.T) {
	a := app{pod: "web-1", node: "node-2", ending: t.Context()}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 2)
	go func() { ended <- a.echoTCP(tcp) }()
	go func() { ended <- a.echoUDP(udp) }()

	c, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "ping\n"); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	for _, want := range []string{"web-1\n", "ping\n"} {
		if got, err := r.ReadString('\n'); got != want {
			t.Errorf("TCP: got %q, %v; want %q", got, err, want)
		}
	}
	d, err := net.Dial("udp", udp.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := io.WriteString(d, "ping"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := d.Read(buf)
	if got, want := string(buf[:n]), "web-1 on node-2, you are "+d.LocalAddr().String()+": ping"; got != want {
		t.Errorf("UDP: got %q, %v; want %q", got, err, want)
	}
	tcp.Close()
	udp.Close()
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestGRPCHealth(t *testing.T) {
	ending, end := context.WithCancel(t.Context())
	a := app{pod: "web-1", node: "node-2", ending: ending}
	s := httptest.NewUnstartedServer(nil)
	s.Config = a.server("")
	s.Start()
	defer s.Close()
	var h2 http.Protocols
	h2.SetUnencryptedHTTP2(true)
	client := http.Client{Transport: &http.Transport{Protocols: &h2}}
	ask := func() (body []byte, status string) {
		t.Helper()
		resp, err := client.Post(s.URL+"/grpc.health.v1.Health/Check", "application/grpc", strings.NewReader("\x00\x00\x00\x00\x00"))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, err = io.ReadAll(resp.Body); err != nil {
			t.Fatal(err)
		}
		return body, resp.Trailer.Get("Grpc-Status")
	}
	if body, status := ask(); string(body) != "\x00\x00\x00\x00\x02\x08\x01" || status != "0" {
		t.Errorf("got %q, status %q; want SERVING", body, status)
	}
	end()
	if body, _ := ask(); string(body) != "\x00\x00\x00\x00\x02\x08\x02" {
		t.Errorf("ending: got %q; want NOT_SERVING", body)
	}
}

func TestCertificate(t *testing.T) {
	c, err := certificate("web-1")
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := leaf.VerifyHostname("web-1"); err != nil {
		t.Error(err)
	}
}
