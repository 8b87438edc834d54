package traffic

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The kinds of descriptors of a server, as tags of their events.
const (
	tagRequests = int32(iota)
	tagCloses
	tagBulk
	tagEcho
	tagSink
	tagRequest // a connection, and so on
	tagClose
	tagSend
)

type server struct {
	poller   *poller
	buffer   []byte
	answer   []byte
	block    []byte
	datagram *datagrams
}

// Serve answers on all ports of a node until the standard input ends. Each answer
// begins with the node's number. It says "ready" when it listens.
func Serve(node byte) error {
	s := &server{buffer: make([]byte, 64<<10), answer: make([]byte, answerSize), block: make([]byte, 256<<10), datagram: newDatagrams(64, 2048)}
	for i := range s.answer {
		s.answer[i] = 'a' + byte(i%26)
	}
	s.answer[0] = node
	var err error
	if s.poller, err = newPoller(); err != nil {
		return err
	}
	for port, tag := range map[uint16]int32{RequestPort: tagRequests, ClosePort: tagCloses, BulkPort: tagBulk, EchoPort: tagEcho, SinkPort: tagSink} {
		if err := s.listen(netip.AddrPortFrom(netip.IPv4Unspecified(), port), tag); err != nil {
			return err
		}
	}
	go endWithInput()
	fmt.Println("ready")
	for {
		events, err := s.poller.wait(time.Minute)
		if err != nil {
			return err
		}
		for _, e := range events {
			s.serve(int(e.Fd), e.Events, e.Pad)
		}
	}
}

// endWithInput ends the process when whoever started it is gone.
func endWithInput() {
	_, _ = io.Copy(io.Discard, os.Stdin)
	end()
}

func (s *server) listen(at netip.AddrPort, tag int32) error {
	kind := unix.SOCK_STREAM
	if tag == tagEcho || tag == tagSink {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family(at), kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err == nil {
		err = unix.Bind(fd, sockaddr(at))
	}
	if err == nil && kind == unix.SOCK_STREAM {
		noDelay(fd)
		err = unix.Listen(fd, 4096)
	}
	if err == nil && kind == unix.SOCK_DGRAM {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	}
	if err == nil {
		err = s.poller.add(fd, unix.EPOLLIN, tag)
	}
	if err != nil {
		return fmt.Errorf("listen on %s: %w", at, err)
	}
	return nil
}

func (s *server) serve(fd int, events uint32, tag int32) {
	switch tag {
	case tagRequests, tagCloses, tagBulk:
		s.accept(fd, tag-tagRequests+tagRequest)
	case tagEcho:
		s.datagram.echo(fd)
	case tagSink:
		s.datagram.swallow(fd)
	case tagRequest:
		s.reply(fd, false)
	case tagClose:
		s.reply(fd, true)
	case tagSend:
		if n, errno := 0, unix.Errno(0); events&unix.EPOLLIN != 0 {
			if n, errno = recv(fd, s.buffer, 0); n == 0 || errno != 0 {
				closeFD(fd)
				return
			}
		}
		if _, errno := send(fd, s.block); errno != 0 && errno != unix.EAGAIN {
			closeFD(fd)
		}
	}
}

func (s *server) accept(fd int, tag int32) {
	for range 64 {
		c, errno := accept(fd)
		if errno != 0 {
			return
		}
		events := uint32(unix.EPOLLIN)
		if tag == tagSend {
			events |= unix.EPOLLOUT
		}
		if err := s.poller.add(c, events, tag); err != nil {
			closeFD(c)
		}
	}
}

// reply answers what came, which is one request: clients wait for the answer before
// they send another, and requests are too small to be cut.
func (s *server) reply(fd int, last bool) {
	n, errno := recv(fd, s.buffer, 0)
	if errno == unix.EAGAIN {
		return
	}
	if n <= 0 || errno != 0 {
		closeFD(fd)
		return
	}
	_, _ = send(fd, s.answer)
	if last {
		closeFD(fd)
	}
}
