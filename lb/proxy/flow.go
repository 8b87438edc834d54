package proxy

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// quantum is how many bytes a direction moves before other connections of
	// the loop get a turn.
	quantum = 1 << 20
	// spliceAfter is the number of full reads in a row after which a direction
	// goes over to splice.
	spliceAfter = 4
	// spliceWorth is the size below which a splice is not worth its calls; after
	// spliceAfter of them in a row the direction goes back to copying.
	spliceWorth = scratchSize / 2
)

// flow is one direction of a connection.
type flow struct {
	rest *chunk // what the destination has not taken yet, of copying
	pipe *pipe  // the same, of splicing
	full uint8  // full reads in a row
	thin uint8  // splices in a row that were not worth it
	eof  bool   // the source has ended
	done bool   // and the destination was told
	head uint8  // bytes of the PROXY header that are not written yet
}

// chunk is a buffer for what a destination does not take.
type chunk struct {
	from, to int
	data     [scratchSize]byte
}

var chunks = sync.Pool{New: func() any { return new(chunk) }}

// pending tells whether there are bytes that the destination has not taken.
func (f *flow) pending() bool { return f.rest != nil || f.pipe != nil && f.pipe.held > 0 }

// release gives back what the flow holds.
func (f *flow) release(l *loop) {
	if f.rest != nil {
		chunks.Put(f.rest)
		f.rest = nil
	}
	if f.pipe != nil {
		l.putPipe(f.pipe)
		f.pipe = nil
	}
}

// pump moves what can be moved in both directions, and ends the connection when
// both have ended or one failed.
func (c *conn) pump(l *loop) {
	more := false
	for _, dir := range [2]struct {
		f        *flow
		src, dst *sock
	}{{&c.up, &c.client, &c.server}, {&c.down, &c.server, &c.client}} {
		again, err := c.move(l, dir.f, dir.src, dir.dst)
		if err != nil {
			c.close(l, true)
			return
		}
		more = more || again
	}
	switch {
	case c.up.done && c.down.done:
		c.close(l, false)
	case c.client.failed && c.up.eof, c.server.failed && c.down.eof:
		// Nothing is left to be read there, so only this tells of the reset.
		c.close(l, true)
	case more:
		l.later(c)
	}
}

// move moves bytes from src to dst until one of them has to wait. It returns true
// if there may be more but it is others' turn.
func (c *conn) move(l *loop, f *flow, src, dst *sock) (again bool, err error) {
	if f.done {
		return false, nil
	}
	for budget := quantum; budget > 0; {
		if dst.writable {
			if err := c.flush(l, f, dst); err != nil {
				return false, err
			}
		}
		if f.pending() {
			return false, dst.await(l)
		}
		if f.eof {
			f.done = true
			f.release(l)
			if !c.up.done || !c.down.done { // else both are closed right away
				_ = unix.Shutdown(dst.fd, unix.SHUT_WR)
			}
			return false, nil
		}
		if !src.readable {
			f.release(l)
			return false, nil
		}
		n, err := c.fill(l, f, src, dst)
		if err != nil {
			return false, err
		}
		budget -= n
	}
	return true, nil
}

// flush writes what was left over.
func (c *conn) flush(l *loop, f *flow, dst *sock) error {
	if p := f.pipe; p != nil && p.held > 0 {
		n, err := p.drain(dst)
		c.passed(l, f, n)
		return err
	}
	r := f.rest
	if r == nil {
		return nil
	}
	n, err := dst.write(r.data[r.from:r.to])
	r.from += n
	c.passed(l, f, n)
	if r.from == r.to {
		chunks.Put(r)
		f.rest = nil
	}
	return err
}

// fill reads once and writes what it got. It returns how much it read.
func (c *conn) fill(l *loop, f *flow, src, dst *sock) (int, error) {
	if f.full >= spliceAfter {
		if f.pipe == nil {
			f.pipe = l.getPipe()
		}
		if f.pipe != nil {
			return c.splice(l, f, src, dst)
		}
	}
	n, err := src.read(l.scratch)
	if err != nil || n <= 0 {
		f.eof = n == eof
		return 0, err
	}
	if n < len(l.scratch) {
		f.full = 0
	} else if f.full < spliceAfter {
		f.full++
	}
	sent, err := dst.write(l.scratch[:n])
	if err != nil {
		return n, err
	}
	c.passed(l, f, sent)
	if sent < n {
		f.keep(l.scratch[sent:n])
	}
	return n, nil
}

// keep keeps what the destination has not taken.
func (f *flow) keep(b []byte) {
	f.rest = chunks.Get().(*chunk)
	f.rest.from, f.rest.to = 0, copy(f.rest.data[:], b)
}

// eof is the number of bytes that a read from a socket that has ended brings.
const eof = -1

// read reads once: a number of bytes, zero if there is nothing now, or eof.
func (s *sock) read(b []byte) (int, error) {
	for {
		n, err := receive(s.fd, b)
		switch {
		case err == nil && n == 0:
			s.readable = false
			return eof, nil
		case err == nil:
			// A short read has emptied the socket; what comes later is an event. Not so
			// when the event of the end was here before: there is no other.
			if n < len(b) && !s.ended {
				s.readable = false
			}
			return n, nil
		case errors.Is(err, unix.EAGAIN):
			s.readable = false
			return 0, nil
		case !errors.Is(err, unix.EINTR):
			return 0, err
		}
	}
}

// await makes the kernel tell when the socket takes more.
func (s *sock) await(l *loop) error {
	if s.watched {
		return nil
	}
	s.watched = true
	return l.watch(s.slot, s.fd, unix.EPOLL_CTL_MOD, streamEvents)
}

// write writes what the socket takes now.
func (s *sock) write(b []byte) (int, error) {
	for {
		n, err := send(s.fd, b)
		switch {
		case err == nil:
			s.writable = n == len(b)
			return n, nil
		case errors.Is(err, unix.EAGAIN):
			s.writable = false
			return 0, nil
		case !errors.Is(err, unix.EINTR):
			return 0, err
		}
	}
}

// passed counts bytes that went through.
func (c *conn) passed(l *loop, f *flow, n int) {
	if n <= 0 {
		return
	}
	c.moved = l.now
	if f.head > 0 { // which does not come from the client
		skip := min(n, int(f.head))
		f.head -= uint8(skip) //nolint:gosec // at most head
		n -= skip
	}
	if f == &c.up {
		c.link.bytesIn.Add(uint64(n))
	} else {
		c.link.bytesOut.Add(uint64(n))
	}
}
