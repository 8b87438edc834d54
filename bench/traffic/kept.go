package traffic

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const tagKept, tagShort = int32(1), int32(2)

// keptConn is an open connection with at most one request under way.
type keptConn struct {
	to      netip.AddrPort
	open    bool
	busy    bool
	got     int
	started time.Time
}

// kept are connections that stay open.
type kept struct {
	spec   Spec
	poller *poller
	clock  clock
	result *Result
	conns  []keptConn // by descriptor
	idle   []int      // descriptors, used in turn
	open   int
	timed  bool // whether latencies are wanted
	times  []time.Duration
	buffer []byte
	next   int // of the targets
}

func newKept(s Spec, p *poller, r *Result) (*kept, error) {
	k := &kept{spec: s, poller: p, result: r, buffer: make([]byte, 64<<10), conns: make([]keptConn, 1<<16)}
	for range s.Width {
		if err := k.dial(); err != nil {
			return nil, err
		}
	}
	return k, nil
}

func (k *kept) dial() error {
	to := k.spec.To[k.next%len(k.spec.To)]
	k.next++
	fd, err := connect(to, k.spec.Patience)
	if err != nil {
		return err
	}
	if err := k.poller.add(fd, unix.EPOLLIN|unix.EPOLLRDHUP, tagKept); err != nil {
		unix.Close(fd)
		return err
	}
	k.conns[fd] = keptConn{to: to, open: true}
	k.idle = append(k.idle, fd)
	k.open++
	return nil
}

// ask sends a request on a connection that is idle; started is when it was due.
func (k *kept) ask(fd int, started time.Time) {
	c := &k.conns[fd]
	c.busy, c.got, c.started = true, 0, started
	if n, errno := send(fd, k.buffer[:requestSize]); n != requestSize {
		k.lose(fd, "send: "+errno.Error())
	}
}

// event reads an answer and tells whether it is complete.
func (k *kept) event(fd int, now time.Time) bool {
	c := &k.conns[fd]
	if !c.open {
		return false
	}
	n, errno := recv(fd, k.buffer[requestSize:], 0)
	switch {
	case errno == unix.EAGAIN:
		return false
	case errno != 0:
		k.lose(fd, errno.Error())
		return false
	case n == 0:
		k.lose(fd, "closed by the other side")
		return false
	}
	if c.got == 0 {
		k.result.nodes[k.buffer[requestSize]]++
	}
	if c.got += n; c.got < answerSize {
		return false
	}
	c.busy = false
	k.result.All++
	if now.After(k.clock.from) {
		k.result.Done++
		if k.timed {
			k.times = append(k.times, time.Since(c.started))
		}
	}
	return true
}

// lose gives a connection up.
func (k *kept) lose(fd int, why string) {
	k.result.kept("kept: " + why)
	closeFD(fd)
	k.conns[fd] = keptConn{}
	k.open--
	for i, f := range k.idle {
		if f == fd {
			k.idle = append(k.idle[:i], k.idle[i+1:]...)
			return
		}
	}
}

// expire gives up on answers that do not come.
func (k *kept) expire(now time.Time) {
	for fd := range k.conns {
		if c := &k.conns[fd]; c.busy && now.Sub(c.started) > k.spec.Patience {
			k.lose(fd, "no answer in time")
		}
	}
}

func (k *kept) close() {
	for fd := range k.conns {
		if k.conns[fd].open {
			closeFD(fd)
		}
	}
}

func runRequests(s Spec) (*Result, error) {
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	r := &Result{}
	k, err := newKept(s, p, r)
	if err != nil {
		return nil, err
	}
	k.clock = startClock(s)
	for _, fd := range k.idle {
		k.ask(fd, k.clock.start)
	}
	k.idle = nil
	now := k.clock.start
	for ; now.Before(k.clock.until) && k.open > 0; now = time.Now() {
		events, err := p.wait(10 * time.Millisecond)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			if k.event(int(e.Fd), now) {
				k.ask(int(e.Fd), now)
			}
		}
	}
	k.expire(now)
	r.finish(k.clock)
	k.close()
	return r, nil
}

func runSteadyRequests(s Spec) (*Result, error) {
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	k, err := newKept(s, p, &Result{})
	if err != nil {
		return nil, err
	}
	k.timed = true
	k.clock = startClock(s)
	pace := newPace(k.clock.start, s.Rate)
	var due []time.Time // requests for which no connection is idle
	for now := k.clock.start; now.Before(k.clock.until); now = time.Now() {
		for range pace.due(now) {
			due = append(due, now)
		}
		for len(due) > 0 && len(k.idle) > 0 {
			fd := k.idle[0]
			k.idle = k.idle[1:]
			k.ask(fd, due[0])
			due = due[1:]
		}
		events, err := p.wait(pace.until(time.Now()))
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			if fd := int(e.Fd); k.event(fd, time.Now()) {
				k.idle = append(k.idle, fd)
			}
		}
	}
	k.expire(time.Now())
	for range due {
		k.result.kept("never sent")
	}
	k.result.Latency = quantiles(k.times)
	k.result.finish(k.clock)
	k.close()
	return k.result, nil
}

// pace tells when something is due that comes at a fixed rate.
type pace struct {
	next  time.Time
	every time.Duration
}

func newPace(start time.Time, rate int) *pace {
	return &pace{start, time.Second / time.Duration(max(rate, 1))}
}

// due returns how many are due now that were not before.
func (p *pace) due(now time.Time) (n int) {
	for !p.next.After(now) {
		p.next = p.next.Add(p.every)
		n++
	}
	return n
}

func (p *pace) until(now time.Time) time.Duration { return p.next.Sub(now) }
