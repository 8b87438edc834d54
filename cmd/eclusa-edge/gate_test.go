package main

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

// A paused gate leaves connections to whoever else has the socket, and takes them
// again when that one is gone.
func TestGate(t *testing.T) {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	g := newGate(l)
	accepted := make(chan error)
	go func() {
		for {
			c, err := g.Accept()
			accepted <- err
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	dial := func() {
		c, err := net.Dial("tcp", g.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	dial()
	if err := <-accepted; err != nil {
		t.Fatal(err)
	}
	g.pause()
	fd, err := g.duplicate() // as another process would have it
	if err != nil {
		t.Fatal(err)
	}
	successor, err := inherit(os.NewFile(uintptr(fd), "api"), l.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	dial()
	c, err := successor.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	successor.Close()
	dial() // waits in the queue
	select {
	case err := <-accepted:
		t.Errorf("a paused gate has taken a connection: %v", err)
	default:
	}
	g.resume()
	if err := <-accepted; err != nil {
		t.Errorf("after resume: %v; want the connection that waited", err)
	}
	g.pause()
	g.Close()
	if err := <-accepted; err == nil {
		t.Error("a closed gate has taken a connection")
	}
	if fd, err := g.duplicate(); err == nil {
		t.Errorf("duplicate of a closed gate: got %d; want an error", fd)
	}
}

// A descriptor that is not the listener that was configured is refused.
func TestInheritRefuses(t *testing.T) {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := l.Addr().(*net.TCPAddr).AddrPort()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	file := func(f func() (*os.File, error)) *os.File {
		got, err := f()
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for _, test := range []struct {
		name string
		file *os.File
		at   netip.AddrPort
		want string
	}{
		{"another port", file(l.File), netip.AddrPortFrom(at.Addr(), at.Port()+1), "listens on " + at.String()},
		{"another address", file(l.File), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), at.Port()), "listens on " + at.String()},
		{"another kind of socket", file(c.File), at, "does not listen"},
		{"no socket", null, at, "socket"},
	} {
		if g, err := inherit(test.file, test.at); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, %v; want an error with %q", test.name, g, err, test.want)
		}
	}
}

// The path under which the program was started may lead to another one later.
func TestOwnProgram(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	link, other := filepath.Join(dir, "edge"), filepath.Join(dir, "other")
	if err := os.Symlink(self, link); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(other, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	for _, test := range []struct{ arg, want string }{
		{link, link}, {"edge", link}, {other, self}, {"missing", self}, {self, self},
	} {
		if got, err := ownProgram(test.arg); got != test.want || err != nil {
			t.Errorf("started as %q: got %q, %v; want %q", test.arg, got, err, test.want)
		}
	}
}

// The first process of a container stays when its work has gone to another one.
func TestWaitIfFirst(t *testing.T) {
	asked, ask := context.WithCancel(t.Context())
	waitIfFirst(asked, 2, zap.NewNop()) // any other process ends
	over := make(chan struct{})
	go func() { waitIfFirst(asked, 1, zap.NewNop()); close(over) }()
	select {
	case <-over:
		t.Error("the first process did not wait")
	case <-time.After(20 * time.Millisecond):
	}
	ask()
	<-over
}

func TestSuccessorEnvironment(t *testing.T) {
	got := successorEnvironment([]string{"NOTIFY_SOCKET=/run/n", "WATCHDOG_USEC=1", "WATCHDOG_PID=7"})
	if want := []string{"NOTIFY_SOCKET=/run/n", "WATCHDOG_USEC=1"}; !slices.Equal(got, want) {
		t.Errorf("got %q; want %q", got, want)
	}
}
