package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/edge"
	"github.com/eclusa-lb/eclusa/handover"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/version"
)

// lockFile is the name of the state directory's lock among the descriptors of an
// estate; those of listeners are made of their purpose and address.
const lockFile = "lock"

func listenerFile(purpose string, a netip.AddrPort) string { return purpose + " " + a.String() }

// A predecessor is a running edge with the same state directory, that this
// process takes over from. Nil is none: then this process starts from its files.
type predecessor struct {
	*handover.Taker
	log    *zap.Logger
	start  time.Time
	begun  func() // called when this process serves
	digest map[lb.Cluster]lb.Digest
	epochs map[lb.Cluster]lb.Epoch
}

// findPredecessor asks a running edge for its place, if there is one. From then
// on that one is paused, and waits.
func findPredecessor(ctx context.Context, c Config, log *zap.Logger) (*predecessor, error) {
	lock, locked := edge.Lock(c.StateDir)
	if locked == nil {
		return nil, lock.Close() // edge.New takes it again
	}
	if !errors.Is(locked, edge.ErrLocked) {
		return nil, locked
	}
	start := time.Now()
	conn, err := handover.Dial(ctx, c.StateDir)
	if err != nil {
		return nil, fmt.Errorf("%w (it cannot be asked for its place: %w)", locked, err)
	}
	log.Info("an edge runs with this state directory; asking it for its place", zap.Int("pid", conn.PID()))
	t, err := conn.Take(handover.Hello{Edge: c.Name, Version: version.Number(), Engine: c.Engine})
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("%w: %w", locked, err)
	}
	p := &predecessor{Taker: t, log: log, start: start, digest: make(map[lb.Cluster]lb.Digest), epochs: make(map[lb.Cluster]lb.Epoch)}
	for name, d := range t.Digests {
		p.digest[lb.Cluster(name)] = lb.Digest(d)
	}
	for name, e := range t.Epochs {
		p.epochs[lb.Cluster(name)] = lb.Epoch(e)
	}
	return p, nil
}

// forEdge returns what the edge has to know; nil if there is no predecessor.
func (p *predecessor) forEdge() (*edge.Predecessor, error) {
	if p == nil {
		return nil, nil
	}
	var leaving []edge.Leaving
	if p.Leaving != nil {
		if err := json.Unmarshal(p.Leaving, &leaving); err != nil {
			return nil, fmt.Errorf("the addresses that are leaving, as process %d tells them: %w", p.PID(), err)
		}
	}
	lock := p.File(lockFile)
	if lock == nil {
		return nil, fmt.Errorf("process %d did not pass the lock of the state directory", p.PID())
	}
	return &edge.Predecessor{
		Will:    edge.Will{Lock: lock, Digests: p.digest, Epochs: p.epochs, Health: p.Health, Leaving: leaving},
		Adopt:   p.adopt,
		Serving: p.serving,
	}, nil
}

func (p *predecessor) adopt(ctx context.Context, adopt func(context.Context, func() (lb.Parcel, error)) error) error {
	p.CloseFiles()
	err := p.Adopt(ctx, func(ctx context.Context, receive func() ([]byte, []int, error)) error {
		return adopt(ctx, func() (lb.Parcel, error) {
			data, files, err := receive()
			return lb.Parcel{Data: data, Files: files}, err
		})
	})
	if err != nil {
		p.fail(err)
	}
	return err
}

func (p *predecessor) serving() error {
	if err := p.Serving(); err != nil {
		p.log.Warn("the process before did not wait until this one served", zap.Error(err))
	}
	// Not before that: a disk that hangs must not keep the other one waiting.
	p.begun()
	p.log.Info("this process serves now; connections of before end in the one before", zap.Int("before", p.PID()),
		zap.String("versionBefore", p.Version), zap.Duration("took", time.Since(p.start).Round(time.Millisecond)))
	return nil
}

// fail tells the running edge why nothing comes of it, so that its log says so
// too.
func (p *predecessor) fail(why error) {
	if p != nil {
		p.Fail(why)
	}
}

// listen opens a listening socket, or takes that of the predecessor.
func (p *predecessor) listen(purpose string, a netip.AddrPort) (*gate, error) {
	if p != nil {
		if f := p.File(listenerFile(purpose, a)); f != nil {
			return inherit(f, a)
		}
	}
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(a))
	if err != nil {
		return nil, err
	}
	return newGate(l), nil
}

// inherit takes a socket that must listen on the address.
func inherit(f *os.File, want netip.AddrPort) (*gate, error) {
	defer f.Close() // the listener has its own
	if err := listens(f); err != nil {
		return nil, fmt.Errorf("the socket of the process before: %w", err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("the socket of the process before: %w", err)
	}
	t, ok := l.(*net.TCPListener)
	if !ok {
		_ = l.Close()
		return nil, fmt.Errorf("the socket of the process before is no TCP socket but %T", l)
	}
	got := t.Addr().(*net.TCPAddr).AddrPort()
	if got.Port() != want.Port() || got.Addr().Unmap().WithZone("") != want.Addr().Unmap().WithZone("") {
		_ = l.Close()
		return nil, fmt.Errorf("the socket of the process before listens on %s; want %s", got, want)
	}
	return newGate(t), nil
}

// listens says why f is no listening socket; nil if it is one. It leaves the mode
// alone, which the process before shares.
func listens(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var yes int
	var sockErr error
	if err := raw.Control(func(fd uintptr) {
		yes, sockErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	}); err != nil {
		return err
	}
	if sockErr == nil && yes == 0 {
		return errors.New("it does not listen")
	}
	return os.NewSyscallError("getsockopt", sockErr)
}
