package main

import (
	"context"
	"net"
	"slices"
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
	g, err := newGate(l)
	if err != nil {
		t.Fatal(err)
	}
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
	other, err := l.File() // as another process would have it
	if err != nil {
		t.Fatal(err)
	}
	successor, err := inherit(other)
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
