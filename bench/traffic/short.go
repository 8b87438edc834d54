package traffic

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// shortConn is a connection for one request.
type shortConn struct {
	open    bool
	sent    bool
	node    byte
	got     int
	started time.Time
}

// shorts are connections that carry one request each and end with its answer.
type shorts struct {
	spec   Spec
	to     []netip.AddrPort
	poller *poller
	clock  clock
	result *Result
	conns  []shortConn // by descriptor
	open   int
	timed  bool
	times  []time.Duration
	buffer []byte
	next   int // of the targets
	looked time.Time
}

func newShorts(s Spec, p *poller, r *Result) *shorts {
	return &shorts{spec: s, to: s.To, poller: p, result: r, buffer: make([]byte, 64<<10), conns: make([]shortConn, 1<<16)}
}

// begin opens a connection.
func (s *shorts) begin(now time.Time) {
	fd, err := begin(s.to[s.next%len(s.to)])
	s.next++
	if err == nil {
		err = s.poller.add(fd, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP|unix.EPOLLET, tagShort)
	}
	if err != nil {
		s.result.fail("short: "+err.Error(), now)
		return
	}
	s.conns[fd] = shortConn{open: true, started: now}
	s.open++
}

// event goes on with a connection and tells whether it has ended.
func (s *shorts) event(fd int, events uint32, now time.Time) bool {
	c := &s.conns[fd]
	if !c.open {
		return false
	}
	if events&unix.EPOLLERR != 0 {
		errno, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		return s.lose(fd, unix.Errno(errno).Error())
	}
	if !c.sent {
		c.sent = true
		if n, errno := send(fd, s.buffer[:requestSize]); n != requestSize {
			return s.lose(fd, "send: "+errno.Error())
		}
		if events&unix.EPOLLIN == 0 {
			return false
		}
	}
	// An edge-triggered event that tells of the end has all data behind it.
	n, errno := recv(fd, s.buffer[requestSize:], 0)
	if errno != 0 && errno != unix.EAGAIN {
		return s.lose(fd, errno.Error())
	}
	if n > 0 {
		c.node = s.buffer[requestSize]
		c.got += n
	}
	if events&unix.EPOLLRDHUP == 0 {
		return false
	}
	if c.got != answerSize {
		return s.lose(fd, "closed before the answer")
	}
	s.result.All++
	s.result.nodes[c.node]++
	if now.Sub(c.started) > Slow && c.started.After(s.result.LastSlow) {
		s.result.LastSlow = c.started
	}
	if now.After(s.clock.from) {
		s.result.Done++
		if s.timed {
			s.times = append(s.times, time.Since(c.started))
		}
	}
	s.close(fd)
	return true
}

func (s *shorts) close(fd int) {
	closeFD(fd)
	s.conns[fd] = shortConn{}
	s.open--
}

func (s *shorts) lose(fd int, why string) bool {
	s.result.fail("short: "+why, s.conns[fd].started)
	s.close(fd)
	return true
}

// expire gives up on connections that take too long.
func (s *shorts) expire(now time.Time) {
	if now.Sub(s.looked) < 50*time.Millisecond {
		return
	}
	s.looked = now
	for fd := range s.conns {
		if c := &s.conns[fd]; c.open && now.Sub(c.started) > s.spec.Patience {
			s.lose(fd, "no answer in time")
		}
	}
}

func runConnections(spec Spec) (*Result, error) {
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	s := newShorts(spec, p, &Result{})
	s.clock = startClock(spec)
	for now := s.clock.start; now.Before(s.clock.until); now = time.Now() {
		s.expire(now)
		for s.open < spec.Width {
			failed := s.result.Failed
			if s.begin(now); s.result.Failed > failed {
				break
			}
		}
		events, err := p.wait(10 * time.Millisecond)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			s.event(int(e.Fd), e.Events, now)
		}
	}
	return s.result.finish(s.clock), nil
}

func runSteadyConnections(spec Spec) (*Result, error) {
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	s := newShorts(spec, p, &Result{})
	s.timed = true
	s.clock = startClock(spec)
	pace := newPace(s.clock.start, spec.Rate)
	// Those under way at the end are waited for, since slow ones are what it is about.
	for now := s.clock.start; now.Before(s.clock.until) || s.open > 0; now = time.Now() {
		wait := 10 * time.Millisecond
		if now.Before(s.clock.until) {
			for range pace.due(now) {
				s.begin(now)
			}
			wait = pace.until(time.Now())
		}
		s.expire(now)
		events, err := p.wait(wait)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			s.event(int(e.Fd), e.Events, time.Now())
		}
	}
	s.result.Latency = quantiles(s.times)
	return s.result.finish(s.clock), nil
}
