package traffic

import (
	"time"

	"golang.org/x/sys/unix"
)

// discard takes what is there from a socket without copying it.
func discard(fd int) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), 0, 4<<20, unix.MSG_TRUNC|unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}

func runBulk(s Spec) (*Result, error) {
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	for i := range s.Width {
		fd, err := connect(s.To[i%len(s.To)], s.Patience)
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		if err := p.add(fd, unix.EPOLLIN, tagKept); err != nil {
			return nil, err
		}
	}
	r, c := &Result{}, startClock(s)
	for now := c.start; now.Before(c.until); now = time.Now() {
		events, err := p.wait(10 * time.Millisecond)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			n, errno := discard(int(e.Fd))
			if errno == unix.EAGAIN {
				continue
			}
			if n <= 0 || errno != 0 {
				r.kept("stream: " + errno.Error())
				closeFD(int(e.Fd))
				continue
			}
			r.AllBytes += int64(n)
			if now.After(c.from) {
				r.Bytes += int64(n)
			}
		}
	}
	return r.finish(c), nil
}

// flows opens the sockets of datagrams.
func flows(s Spec, p *poller) ([]int, error) {
	var fds []int
	for i := range s.Width {
		to := s.To[i%len(s.To)]
		fd, err := unix.Socket(family(to), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		fds = append(fds, fd)
		if err := unix.Connect(fd, sockaddr(to)); err != nil {
			return nil, err
		}
		if err := p.add(fd, unix.EPOLLIN, tagKept); err != nil {
			return nil, err
		}
	}
	return fds, nil
}

func runEcho(s Spec) (*Result, error) {
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	fds, err := flows(s, p)
	if err != nil {
		return nil, err
	}
	window := max(s.Window, 1)
	out, in := newDatagrams(window, datagramSize), newDatagrams(window, 2048)
	last := make(map[int]time.Time, len(fds))
	r, c := &Result{}, startClock(s)
	looked := c.start
	ask := func(fd, n int, now time.Time) {
		out.fill(n, datagramSize)
		out.send(fd, n)
		last[fd] = now
	}
	for _, fd := range fds {
		ask(fd, window, c.start)
	}
	for now := c.start; now.Before(c.until); now = time.Now() {
		events, err := p.wait(5 * time.Millisecond)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			n := in.receive(int(e.Fd), false)
			if n == 0 {
				continue
			}
			r.All += int64(n)
			if now.After(c.from) {
				r.Done += int64(n)
			}
			r.nodes[in.buffers[0]]++
			ask(int(e.Fd), n, now)
		}
		if now.Sub(looked) < 10*time.Millisecond {
			continue
		}
		looked = now
		for _, fd := range fds {
			// Datagrams may be lost: a flow that is silent starts again.
			if now.Sub(last[fd]) > 50*time.Millisecond {
				r.kept("flow: no answer for 50 ms")
				ask(fd, window, now)
			}
		}
	}
	r.finish(c)
	for _, fd := range fds {
		unix.Close(fd)
	}
	return r, nil
}

// runFlood counts what was sent; what arrived, the nodes know.
func runFlood(s Spec) (*Result, error) {
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	fds, err := flows(s, p)
	if err != nil {
		return nil, err
	}
	window := max(s.Window, 1)
	out := newDatagrams(window, datagramSize)
	out.fill(window, datagramSize)
	r, c := &Result{}, startClock(s)
	for now := c.start; now.Before(c.until); now = time.Now() {
		for _, fd := range fds {
			n := int64(out.send(fd, window))
			r.All += n
			if now.After(c.from) {
				r.Done += n
			}
		}
	}
	r.finish(c)
	for _, fd := range fds {
		unix.Close(fd)
	}
	return r, nil
}
