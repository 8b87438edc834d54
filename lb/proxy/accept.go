package proxy

import (
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	// acceptBatch is the number of connections accepted before others get a turn.
	acceptBatch = 64
	// acceptPause is how long a listener rests when the machine has no memory or
	// descriptors for another connection.
	acceptPause = 50 * time.Millisecond
	// slack is how many connections more than the least loaded loop a loop has
	// before it gives new ones away, since giving away costs a switch.
	slack = 4
)

// errEnded says that a socket has closed itself.
var errEnded = errors.New("the socket is closed")

// tcpListener is the listening socket of a TCP frontend. It belongs to one loop,
// which gives connections to the others when it has more than they.
type tcpListener struct {
	fd      int
	index   int
	slot    int32
	fe      *frontend
	serving bool
	paused  bool // another process may have the socket too
	rest    timer
	over    atomic.Bool
}

func (t *tcpListener) home() int   { return t.index }
func (t *tcpListener) ended() bool { return t.over.Load() }

func (t *tcpListener) attach(l *loop) error {
	var err error
	if t.slot, err = l.add(t.fd, t, unix.EPOLLIN); err != nil {
		t.slot = -1
		t.close(l)
		return err
	}
	if !t.serving {
		return t.serve(l, false)
	}
	return nil
}

func (t *tcpListener) assign(_ *loop, fe *frontend) { t.fe = fe }

// serve makes the kernel refuse connections by shutting the listening socket
// down, which keeps its address and port, and takes them again by listening.
func (t *tcpListener) serve(l *loop, on bool) error {
	t.serving = on
	var err error
	if on {
		if err = unix.Listen(t.fd, backlog); err == nil {
			err = l.watch(t.slot, t.fd, unix.EPOLL_CTL_ADD, unix.EPOLLIN)
		}
	} else {
		l.timers.stop(&t.rest)
		// A socket that was shut down would report a hang-up for ever.
		if err = l.watch(t.slot, t.fd, unix.EPOLL_CTL_DEL, 0); err == nil {
			err = unix.Shutdown(t.fd, unix.SHUT_RD)
		}
	}
	if err != nil {
		t.close(l)
	}
	return err
}

func (t *tcpListener) close(l *loop) {
	if t.over.Swap(true) {
		return
	}
	l.timers.stop(&t.rest)
	if t.slot >= 0 {
		l.drop(t.slot)
	}
	closeFD(t.fd)
	l.e.files.give(1)
}

func (t *tcpListener) retire(l *loop)  { t.close(l) }
func (t *tcpListener) abandon(l *loop) { t.close(l) }

// pause leaves connections in the queue of the kernel. The socket has to be taken
// out of the loop's set, since closing it does not do that while another process
// has it open.
func (t *tcpListener) pause(l *loop) {
	t.paused = true
	l.timers.stop(&t.rest)
	if t.serving {
		_ = l.watch(t.slot, t.fd, unix.EPOLL_CTL_DEL, 0)
	}
}

// resume makes the socket what it was, whatever the other process has done to it.
func (t *tcpListener) resume(l *loop) error {
	t.paused = false
	var err error
	if t.serving {
		if err = unix.Listen(t.fd, backlog); err == nil {
			err = l.watch(t.slot, t.fd, unix.EPOLL_CTL_ADD, unix.EPOLLIN)
		}
	} else if listens(t.fd) {
		err = unix.Shutdown(t.fd, unix.SHUT_RD)
	}
	if err != nil {
		t.close(l)
	}
	return err
}

// listens tells whether a socket takes connections. To shut one down that does not
// is answered with an error and done all the same: what it accepts when it listens
// again would be born shut down, too.
func listens(fd int) bool {
	on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil && on != 0
}

// adopt watches a socket that comes from another process.
func (t *tcpListener) adopt(l *loop) error {
	var err error
	if t.slot, err = l.add(t.fd, t, 0); err != nil {
		t.slot = -1
		t.close(l)
		return err
	}
	if err := l.watch(t.slot, t.fd, unix.EPOLL_CTL_DEL, 0); err != nil {
		t.close(l)
		return err
	}
	return t.resume(l)
}

// ready accepts what is there.
func (t *tcpListener) ready(l *loop, _ uint32) {
	if t.paused {
		return // the event is from before
	}
	for range acceptBatch {
		fd, client, err := accept(t.fd)
		switch {
		case err == nil:
			t.accepted(l, fd, client)
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINVAL): // EINVAL: shut down meanwhile
			return
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
			t.exhausted(l, err)
			return
		default:
			// ECONNABORTED and the network errors that accept(2) lists are of the one
			// connection, that is gone.
		}
	}
}

// accepted checks the limits and hands the connection to a loop.
func (t *tcpListener) accepted(l *loop, fd int, client netip.AddrPort) {
	fe, e := t.fe, l.e
	s := fe.spec.Load()
	if !s.allows(client.Addr()) {
		fe.refused[refusedSource].Add(1)
		reset(fd)
		return
	}
	if !fe.owner.take(s.MaxConnections) {
		fe.refused[refusedLimit].Add(1)
		reset(fd)
		return
	}
	if !e.admit(l.now, 2) {
		fe.owner.active.Add(-1)
		fe.refused[refusedLimit].Add(1)
		reset(fd)
		return
	}
	fe.accepted.Add(1)
	fe.active.Add(1)
	c := newConn(fe, s, client, fd)
	to := e.lightest(l)
	to.load.Add(1)
	if to == l {
		c.start(l)
		return
	}
	to.post(func(l *loop) { l.guard(&c.client, func() { c.start(l) }) })
}

// admit counts one more connection or session with its descriptors, unless a
// limit of the engine is reached.
func (e *Engine) admit(now, files int64) bool {
	if !e.population.take(1) {
		e.logLimit(now, "connections", e.population.limit)
		return false
	}
	if !e.files.take(files) {
		e.population.give(1)
		e.logLimit(now, "descriptors", e.files.limit)
		return false
	}
	return true
}

// release is the opposite of admit.
func (e *Engine) release(files int64) {
	e.files.give(files)
	e.population.give(1)
}

func (e *Engine) logLimit(now int64, what string, limit int64) {
	if held, ok := e.limitLog.pass(now); ok {
		e.opts.Log.Warn("connections are refused, since the proxy's own limit is reached; raise the limit on open files (LimitNOFILE) or add edges",
			zap.String("limit", what), zap.Int64("value", limit), zap.Int64("refusedBefore", held))
	}
}

// lightest returns the loop for a new connection: this one, unless it has many
// more than another. Loops do not change while listeners accept.
func (e *Engine) lightest(l *loop) *loop {
	best, least := l, l.load.Load()-slack
	for _, other := range e.loops {
		if n := other.load.Load(); n < least {
			best, least = other, n
		}
	}
	return best
}

// exhausted is called when the machine has no descriptor or memory left for a
// connection. One connection is turned away with the descriptor kept for that,
// so that its client does not wait; then the listener rests.
func (t *tcpListener) exhausted(l *loop, err error) {
	t.fe.refused[refusedLimit].Add(1)
	if errors.Is(err, unix.EMFILE) {
		l.e.spareFD.turnAway(t.fd)
	}
	if held, ok := l.e.acceptLog.pass(l.now); ok {
		l.e.opts.Log.Error("connections cannot be accepted, since the machine or the program is out of descriptors or memory; raise the limit on open files (LimitNOFILE) or find who uses them up",
			zap.Stringer("frontend", t.fe.id), zap.Error(err), zap.Int64("timesBefore", held))
	}
	if l.watch(t.slot, t.fd, unix.EPOLL_CTL_MOD, 0) == nil {
		l.timers.set(&t.rest, l.now+int64(acceptPause), t)
	}
}

// expire ends the rest.
func (t *tcpListener) expire(l *loop) {
	_ = l.watch(t.slot, t.fd, unix.EPOLL_CTL_MOD, unix.EPOLLIN)
}

// spareFD is a descriptor to give up when there is no other.
type spareFD struct {
	mu sync.Mutex
	fd int // zero is none
}

func (s *spareFD) open() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fd, _ = unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
}

func (s *spareFD) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd > 0 {
		closeFD(s.fd)
	}
	s.fd = 0
}

// turnAway accepts one connection in place of the spare descriptor and resets it.
func (s *spareFD) turnAway(listener int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd > 0 {
		closeFD(s.fd)
	}
	if fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC); err == nil {
		reset(fd)
	}
	s.fd, _ = unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
}
