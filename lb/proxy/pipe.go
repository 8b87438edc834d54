package proxy

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// pipeSize is what pipes ask for. An unprivileged user gets 64 MiB of pipes.
	pipeSize = 512 << 10
	// minPipe is the size below which a pipe is worse than copying: the kernel
	// hands out small ones when the user has too many.
	minPipe = 64 << 10
	// maxIdlePipes is the number of pipes that a loop keeps for later.
	maxIdlePipes = 16
	// spliceFlags never wait, and move pages where they can.
	spliceFlags = unix.SPLICE_F_NONBLOCK | unix.SPLICE_F_MOVE
)

// pipe carries bytes between two sockets within the kernel.
type pipe struct {
	r, w int
	held int // bytes in it
}

func newPipe() (*pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	p := &pipe{r: fds[0], w: fds[1]}
	_, _ = unix.FcntlInt(uintptr(p.r), unix.F_SETPIPE_SZ, pipeSize)
	if n, err := unix.FcntlInt(uintptr(p.r), unix.F_GETPIPE_SZ, 0); err != nil || n < minPipe {
		p.close()
		return nil, errors.New("pipe is too small")
	}
	return p, nil
}

func (p *pipe) close() {
	closeFD(p.r)
	closeFD(p.w)
}

// getPipe returns an empty pipe, nil if there is none to be had.
func (l *loop) getPipe() *pipe {
	if n := len(l.pipes); n > 0 {
		p := l.pipes[n-1]
		l.pipes = l.pipes[:n-1]
		return p
	}
	if !l.e.files.take(2) {
		return nil
	}
	p, err := newPipe()
	if err != nil {
		l.e.files.give(2)
		return nil
	}
	return p
}

// putPipe gives a pipe back.
func (l *loop) putPipe(p *pipe) {
	if p.held == 0 && len(l.pipes) < maxIdlePipes {
		l.pipes = append(l.pipes, p)
		return
	}
	p.close()
	l.e.files.give(2)
}

// splice is fill without copying. The pipe of the flow is there and empty.
func (c *conn) splice(l *loop, f *flow, src, dst *sock) (int, error) {
	n, err := f.pipe.fill(src)
	if err != nil || n <= 0 {
		f.eof = n == eof
		return 0, err
	}
	if n >= spliceWorth {
		f.thin = 0
	} else if f.thin++; f.thin >= spliceAfter {
		f.thin, f.full = 0, 0
	}
	sent, err := f.pipe.drain(dst)
	c.passed(l, f, sent)
	if f.full == 0 && f.pipe.held == 0 {
		f.release(l)
	}
	return n, err
}

// fill moves bytes from the socket into the empty pipe, as read does.
func (p *pipe) fill(s *sock) (int, error) {
	for {
		n, err := unix.Splice(s.fd, nil, p.w, nil, pipeSize, spliceFlags)
		switch {
		case err == nil && n == 0:
			s.readable = false
			return eof, nil
		case err == nil:
			p.held += int(n)
			return int(n), nil
		case errors.Is(err, unix.EAGAIN):
			s.readable = false
			return 0, nil
		case !errors.Is(err, unix.EINTR):
			return 0, err
		}
	}
}

// drain moves bytes from the pipe to the socket until it is empty or the socket
// takes no more.
func (p *pipe) drain(s *sock) (int, error) {
	total := 0
	for p.held > 0 {
		n, err := unix.Splice(p.r, nil, s.fd, nil, p.held, spliceFlags)
		switch {
		case err == nil:
			p.held -= int(n)
			total += int(n)
		case errors.Is(err, unix.EAGAIN):
			s.writable = false
			return total, nil
		case !errors.Is(err, unix.EINTR):
			return total, err
		}
	}
	return total, nil
}
