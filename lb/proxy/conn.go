package proxy

import (
	"errors"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// The states of a connection.
const (
	dialing uint8 = iota
	established
	closed
)

// What is asked of the kernel about a side of a connection. With edge triggering
// nothing has to be changed when it is full or empty.
const (
	readEvents   = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET
	streamEvents = readEvents | unix.EPOLLOUT
)

// idleCheck is the longest time after which a changed idle timeout is noticed.
const idleCheck = int64(time.Minute)

// conn is a TCP connection of a client and the one to the member. It belongs to
// one loop. There are many of them, and most are idle: keep it small.
type conn struct {
	client, server sock
	up, down       flow // from the client, to the client

	fe      *frontend
	spec    *spec
	link    *link // nil before the first pick
	tracked tracked
	timer   timer // of the dial, then of idleness

	src     netip.Addr
	tried   []*link // members that failed
	silent  bool    // one of them did not answer, rather than refuse
	started int64
	moved   int64  // when bytes moved last
	srcPort uint16 // of src
	tries   uint8
	state   uint8
	homeGen uint16 // see link.settle
	queued  bool   // in the loop's queue
}

// sock is one side of a connection.
type sock struct {
	c    *conn
	fd   int   // -1 is none
	slot int32 // -1 is none

	watched  bool // the kernel tells when the socket takes more
	readable bool // a read may bring something
	writable bool // a write may take something
	ended    bool // the peer sent FIN or is gone: read on until that shows
	failed   bool // the kernel holds an error for the socket
}

// newConn returns the connection of an accepted socket, that is counted by
// everyone but not started.
func newConn(fe *frontend, s *spec, src netip.AddrPort, fd int) *conn {
	c := &conn{fe: fe, spec: s, src: src.Addr(), srcPort: src.Port()}
	c.client = sock{c: c, fd: fd, slot: -1}
	c.server = sock{c: c, fd: -1, slot: -1}
	return c
}

// start begins to look for a member. The client's socket is watched only when
// there is one, since until then nothing can be done with what it sends.
func (c *conn) start(l *loop) {
	c.started = l.now
	// The ranges may have changed on the way to this loop, when nobody saw c.
	if s := c.fe.spec.Load(); s != c.spec && !s.allows(c.src) {
		c.fe.refused[refusedSource].Add(1)
		c.close(l, true)
		return
	}
	c.dial(l)
}

// dial tries members until one may answer, or resets the client.
func (c *conn) dial(l *loop) {
	o := &l.e.opts
	for int(c.tries) < o.DialAttempts && l.now < c.dialUntil(o) {
		k := c.fe.pick(l.now, c.src, c.tried)
		if k == nil && c.silent {
			// Nobody is left, but a packet may just have been lost: ask again.
			c.tried, c.silent = nil, false
			continue
		}
		if k == nil {
			break
		}
		c.tries++
		c.spec, c.link = c.fe.spec.Load(), k
		k.track(l, &c.tracked, c)
		err := c.connect(l)
		if err == nil {
			return
		}
		c.undial(l, err)
	}
	c.fe.refused[refusedNoMember].Add(1)
	c.close(l, true)
}

// dialTimeout is how long one attempt may take.
func (c *conn) dialTimeout(o *Options) int64 {
	if d := c.spec.ConnectTimeout; d > 0 {
		return int64(d)
	}
	return int64(o.DialTimeout)
}

// dialUntil is when the last attempt must have ended: there is time for four, one
// more than there are.
func (c *conn) dialUntil(o *Options) int64 {
	return c.started + max(int64(o.DialBudget), 4*c.dialTimeout(o))
}

// connect opens the connection to the member of the link.
func (c *conn) connect(l *loop) error {
	e := l.e
	addr := netip.AddrPortFrom(c.link.addr, c.spec.TargetPort)
	fd, err := e.socket(addr, unix.SOCK_STREAM, "tcp")
	if err != nil {
		return err
	}
	c.server.fd = fd
	err = unix.Connect(fd, l.sockaddr(addr))
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return os.NewSyscallError("connect", err)
	}
	if c.server.slot, err = l.add(fd, &c.server, streamEvents); err != nil {
		return err
	}
	l.timers.set(&c.timer, min(l.now+c.dialTimeout(&e.opts), c.dialUntil(&e.opts)), c)
	return nil
}

// undial gives up a member because of err, nil if it did nothing wrong.
func (c *conn) undial(l *loop, err error) {
	k := c.link
	c.closeSock(l, &c.server, false)
	c.tracked.remove()
	k.active.Add(-1)
	c.link = nil
	c.tried = append(c.tried, k)
	if err != nil {
		k.dialErrors.Add(1)
		l.e.blame(l.now, c.spec, k, err)
	}
}

// blame remembers that a member could not be reached, and tells the owner of the
// engine, unless the fault is this machine's.
func (e *Engine) blame(now int64, s *spec, k *link, err error) {
	if ownFault(err) {
		return
	}
	m := k.member.Load()
	if errors.Is(err, unix.ETIMEDOUT) || errors.Is(err, unix.EHOSTUNREACH) {
		m.mark.set(now) // the node is to blame, not the port
	}
	k.mark.set(now)
	if e.opts.OnDialError == nil {
		return
	}
	if _, ok := m.told.pass(now); ok {
		e.opts.OnDialError(s.Owner, *k.check.Load(), k.node, err)
	}
}

// praise remembers that a member answered.
func (k *link) praise() {
	k.mark.clear()
	k.member.Load().mark.clear()
}

// ownFault tells whether an error says nothing about the member.
func ownFault(err error) bool {
	for _, own := range []error{
		unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.EADDRNOTAVAIL, unix.EADDRINUSE, unix.EAGAIN,
		unix.EPERM, unix.EACCES, unix.ENETUNREACH, unix.ENETDOWN, unix.EINVAL, unix.EAFNOSUPPORT,
	} {
		if errors.Is(err, own) {
			return true
		}
	}
	return false
}

// errNoAnswer is the error of a dial that took too long.
var errNoAnswer = os.NewSyscallError("connect", unix.ETIMEDOUT)

// dialed is called when the kernel knows more about the dial.
func (c *conn) dialed(l *loop, events uint32) {
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		errno, err := unix.GetsockoptInt(c.server.fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && errno != 0 {
			err = unix.Errno(errno)
		}
		if err != nil {
			c.undial(l, os.NewSyscallError("connect", err))
			c.dial(l)
			return
		}
	}
	if events&unix.EPOLLOUT == 0 {
		return
	}
	var err error
	// Nearly all clients can take all they get, and are asked about this only when
	// they cannot: the kernel would tell at once, and in vain.
	if c.client.slot, err = l.add(c.client.fd, &c.client, readEvents); err != nil {
		c.close(l, true)
		return
	}
	c.state, c.moved, c.tried = established, l.now, nil
	c.client.readable, c.client.writable = true, true // most clients have spoken by now
	c.server.watched = true
	c.link.connections.Add(1)
	c.link.praise()
	c.settle(l)
	l.timers.set(&c.timer, l.now+min(c.spec.idle, idleCheck), c)
	c.server.note(events)
	if c.spec.ProxyProtocol != lb.ProxyOff {
		if err := c.greet(l); err != nil {
			c.close(l, true)
			return
		}
	}
	c.pump(l)
}

// note takes down what the kernel tells of the socket.
func (s *sock) note(events uint32) {
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.readable = true
	}
	if events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.writable = true
	}
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.ended = true
	}
	if events&unix.EPOLLERR != 0 {
		s.failed = true
	}
}

func (s *sock) ready(l *loop, events uint32) {
	c := s.c
	if c.state == dialing {
		c.dialed(l, events)
		return
	}
	s.note(events)
	l.later(c) // once for what there is of both sides
}

func (s *sock) abandon(l *loop) { s.c.abandon(l) }

func (c *conn) ready(*loop, uint32) {}
func (c *conn) abandon(l *loop)     { c.close(l, true) }

// cut ends the connection; one that is not established goes to another member.
func (c *conn) cut(l *loop) {
	if c.state == dialing {
		c.undial(l, nil)
		c.dial(l)
		return
	}
	c.close(l, true)
}

func (c *conn) end(l *loop)            { c.close(l, true) }
func (c *conn) clientAddr() netip.Addr { return c.src }

// settle remembers where the client has its home.
func (c *conn) settle(l *loop) {
	if c.state == established {
		c.link.settle(l.now, c.src, &c.homeGen)
	}
}

// expire ends a dial that takes too long, or a connection on which nothing moves.
func (c *conn) expire(l *loop) {
	if c.state == dialing {
		c.silent = true
		c.undial(l, errNoAnswer)
		c.dial(l)
		return
	}
	// The timer is not moved with each read; it looks here what happened since.
	idle := c.fe.spec.Load().idle
	if due := c.moved + idle; due > l.now {
		l.timers.set(&c.timer, min(due, l.now+idleCheck), c)
		return
	}
	c.close(l, false)
}

// close ends the connection and gives everything back. With rst both peers get
// a reset, else what a close(2) sends.
func (c *conn) close(l *loop, rst bool) {
	if c.state == closed {
		return
	}
	c.state = closed
	l.timers.stop(&c.timer)
	c.tracked.remove()
	c.closeSock(l, &c.client, rst)
	c.closeSock(l, &c.server, rst)
	c.up.release(l)
	c.down.release(l)
	if c.link != nil {
		c.link.leave(l.now, c.src, &c.homeGen)
		c.link.active.Add(-1)
	}
	c.fe.active.Add(-1)
	c.fe.owner.active.Add(-1)
	l.load.Add(-1)
	l.e.release(2)
}

func (c *conn) closeSock(l *loop, s *sock, rst bool) {
	if s.fd < 0 {
		return
	}
	if s.slot >= 0 {
		l.drop(s.slot)
	}
	if rst {
		reset(s.fd)
	} else {
		closeFD(s.fd)
	}
	*s = sock{c: c, fd: -1, slot: -1}
}

// addrPort is short for the type that addresses have everywhere here.
type addrPort = netip.AddrPort
