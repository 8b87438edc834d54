package main

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A gate is a listening socket that can leave connections in the queue of the
// kernel for a while: for this process, or for another one that has the socket
// too.
type gate struct {
	*net.TCPListener
	closed chan struct{}
	once   sync.Once

	mu   sync.Mutex
	open chan struct{} // closed while connections are taken
}

func newGate(l *net.TCPListener) *gate {
	g := &gate{TCPListener: l, closed: make(chan struct{}), open: make(chan struct{})}
	close(g.open)
	return g
}

// duplicate returns another descriptor of the socket, which is the caller's. It
// fails if the socket is closed.
func (g *gate) duplicate() (int, error) {
	raw, err := g.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	var dupErr error
	if err := raw.Control(func(of uintptr) { fd, dupErr = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return -1, err
	}
	return fd, os.NewSyscallError("fcntl", dupErr)
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
