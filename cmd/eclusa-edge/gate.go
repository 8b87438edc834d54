package main

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// A gate is a listening socket that can leave connections in the queue of the
// kernel for a while: for this process, or for another one that has the socket
// too.
type gate struct {
	*net.TCPListener
	fd     int // of the socket
	closed chan struct{}
	once   sync.Once

	mu   sync.Mutex
	open chan struct{} // closed while connections are taken
}

func newGate(l *net.TCPListener) (*gate, error) {
	g := &gate{TCPListener: l, closed: make(chan struct{}), open: make(chan struct{})}
	close(g.open)
	raw, err := l.SyscallConn()
	if err == nil {
		// Its number, to be passed on while the socket is open. File would give
		// another one.
		err = raw.Control(func(fd uintptr) { g.fd = int(fd) })
	}
	if err != nil {
		_ = l.Close()
		return nil, err
	}
	return g, nil
}

// Accept waits for a connection while the gate is open.
func (g *gate) Accept() (net.Conn, error) {
	for {
		g.mu.Lock()
		open := g.open
		g.mu.Unlock()
		select {
		case <-open:
		case <-g.closed:
			return nil, net.ErrClosed
		}
		c, err := g.TCPListener.Accept()
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return c, err
		}
	}
}

// pause takes no more connections.
func (g *gate) pause() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = make(chan struct{})
	_ = g.SetDeadline(time.Unix(1, 0))
}

// resume undoes pause.
func (g *gate) resume() {
	g.mu.Lock()
	defer g.mu.Unlock()
	_ = g.SetDeadline(time.Time{})
	close(g.open)
}

// Close closes the socket, in this process.
func (g *gate) Close() error {
	g.once.Do(func() { close(g.closed) })
	return g.TCPListener.Close()
}
