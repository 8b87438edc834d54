package nftables

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	headerLen = unix.NLMSG_HDRLEN
	// nfgenLen is the length of struct nfgenmsg, which begins every message of
	// netfilter's subsystems.
	nfgenLen = 4
	// nested marks an attribute that holds attributes.
	nested = unix.NLA_F_NESTED
	// kindOfAttribute is the part of the number that is not flags.
	kindOfAttribute = 0x3fff
	// answerTimeout bounds the wait for an answer that the kernel has to give at
	// once.
	answerTimeout = 10 * time.Second
)

// buffer is a netlink message, or several, in the making.
type buffer struct{ b []byte }

func align(n int) int { return (n + 3) &^ 3 }

// begin starts a message and returns where, for end.
func (w *buffer) begin(kind, flags uint16, seq uint32, family uint8, res uint16) int {
	at := len(w.b)
	w.b = append(w.b, make([]byte, headerLen+nfgenLen)...)
	binary.NativeEndian.PutUint16(w.b[at+4:], kind)
	binary.NativeEndian.PutUint16(w.b[at+6:], flags|unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(w.b[at+8:], seq)
	w.b[at+headerLen] = family
	binary.BigEndian.PutUint16(w.b[at+headerLen+2:], res)
	return at
}

func (w *buffer) end(at int) { binary.NativeEndian.PutUint32(w.b[at:], uint32(len(w.b)-at)) }

// open starts an attribute and returns where, for close.
func (w *buffer) open(kind uint16) int {
	at := len(w.b)
	w.b = append(w.b, 0, 0, 0, 0)
	binary.NativeEndian.PutUint16(w.b[at+2:], kind)
	return at
}

func (w *buffer) close(at int) {
	binary.NativeEndian.PutUint16(w.b[at:], uint16(len(w.b)-at))
	for len(w.b)%4 != 0 {
		w.b = append(w.b, 0)
	}
}

func (w *buffer) nest(kind uint16, fill func()) {
	at := w.open(kind | nested)
	fill()
	w.close(at)
}

func (w *buffer) bytes(kind uint16, v []byte) {
	at := w.open(kind)
	w.b = append(w.b, v...)
	w.close(at)
}

func (w *buffer) text(kind uint16, s string) {
	at := w.open(kind)
	w.b = append(w.b, s...)
	w.b = append(w.b, 0)
	w.close(at)
}

func (w *buffer) u8(kind uint16, v uint8) { w.bytes(kind, []byte{v}) }

func (w *buffer) u16(kind uint16, v uint16) { w.bytes(kind, binary.BigEndian.AppendUint16(nil, v)) }

func (w *buffer) u32(kind uint16, v uint32) { w.bytes(kind, binary.BigEndian.AppendUint32(nil, v)) }

func (w *buffer) u64(kind uint16, v uint64) { w.bytes(kind, binary.BigEndian.AppendUint64(nil, v)) }

// attributes calls f for each attribute of a message's body or of a nest.
func attributes(b []byte, f func(kind uint16, v []byte)) {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&kindOfAttribute, b[4:n])
		b = b[min(align(n), len(b)):]
	}
}

// attribute returns the value of one attribute; nil if it is not there.
func attribute(b []byte, kind uint16) []byte {
	var found []byte
	attributes(b, func(k uint16, v []byte) {
		if k == kind {
			found = v
		}
	})
	return found
}

func be32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

func be64(b []byte) uint64 {
	if len(b) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

// socket is a netlink socket to netfilter. It is used by one goroutine at a time.
type socket struct {
	fd  int
	seq uint32
	in  []byte
	max int // what the send buffer takes
	// between, unless nil, is called while answers of very many come.
	between func()
	// stale tells that answers may come that nobody waits for any more; the next
	// request goes through another socket.
	stale bool
}

func dial() (*socket, error) {
	fd, err := open()
	if err != nil {
		return nil, err
	}
	return &socket{fd: fd, in: make([]byte, 256<<10), seq: 1}, nil
}

func open() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return -1, os.NewSyscallError("netlink socket", err)
	}
	fail := func(call string, err error) (int, error) {
		_ = unix.Close(fd)
		return -1, os.NewSyscallError(call, err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fail("bind netlink socket", err)
	}
	tv := unix.NsecToTimeval(answerTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return fail("setsockopt", err)
	}
	// Both only make errors shorter and clearer.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	return fd, nil
}

// renew takes another socket in place of one whose answers cannot be told apart.
func (s *socket) renew() error {
	fd, err := open()
	if err != nil {
		return err
	}
	_ = unix.Close(s.fd)
	s.fd, s.max, s.stale = fd, 0, false
	return nil
}

func (s *socket) close() { _ = unix.Close(s.fd) }

func (s *socket) next() uint32 {
	s.seq++
	return s.seq
}

// send sends everything in one call, since a transaction must not be split.
func (s *socket) send(b []byte) error {
	if s.stale {
		if err := s.renew(); err != nil {
			return err
		}
	}
	if need := len(b) + len(b)/2 + 64<<10; need > s.max && s.allow(need) == nil {
		s.max = need
	}
	err := unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if errors.Is(err, unix.EMSGSIZE) {
		return fmt.Errorf("send %d kB to netfilter at once: %w: %s", len(b)>>10, err, largerBuffers)
	}
	return os.NewSyscallError("send to netfilter", err)
}

// largerBuffers is what helps against a buffer that is too small.
const largerBuffers = "raise net.core.wmem_max of the machine to 33554432, or give the program CAP_NET_ADMIN outside of all user namespaces"

// allow makes room for messages of a size. Without the privilege the machine's limit
// holds, and an error tells so.
func (s *socket) allow(need int) error {
	err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, need)
	if err != nil {
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, need)
	}
	return err
}

// errInterrupted tells that what was dumped changed meanwhile.
var errInterrupted = errors.New("netfilter's answer is not of one moment")

// receive reads once and calls f for each message. It returns true when a message
// ended a dump.
func (s *socket) receive(f func(kind uint16, seq uint32, body []byte) error) (done bool, err error) {
	n, _, err := unix.Recvfrom(s.fd, s.in, 0)
	if errors.Is(err, unix.EINTR) {
		return false, nil
	}
	if err != nil {
		s.stale = true
	}
	if errors.Is(err, unix.EAGAIN) {
		return false, fmt.Errorf("netfilter has not answered within %s", answerTimeout)
	}
	if err != nil {
		return false, os.NewSyscallError("receive from netfilter", err)
	}
	interrupted := false
	for b := s.in[:n]; len(b) >= headerLen; {
		size := int(binary.NativeEndian.Uint32(b))
		if size < headerLen || size > len(b) {
			s.stale = true
			return false, errors.New("netfilter sent a message of a wrong length")
		}
		kind := binary.NativeEndian.Uint16(b[4:])
		interrupted = interrupted || binary.NativeEndian.Uint16(b[6:])&unix.NLM_F_DUMP_INTR != 0
		if kind == unix.NLMSG_DONE {
			done = true
			break
		}
		if err := f(kind, binary.NativeEndian.Uint32(b[8:]), b[headerLen:size]); err != nil {
			return false, err
		}
		b = b[min(align(size), len(b)):]
	}
	if interrupted {
		return done, errInterrupted
	}
	return done, nil
}

// patienceWithOthers is how often a dump is begun again when others change what it
// is about.
const patienceWithOthers = 20

// dump sends a request for everything of a kind and calls f for each answer, all of
// which are of one moment. f must not keep the body.
func (s *socket) dump(w *buffer, f func(body []byte)) error {
	for tries := 1; ; tries++ {
		var all [][]byte
		err := s.stream(w, func(_ uint8, body []byte) { all = append(all, bytes.Clone(body)) })
		if errors.Is(err, errInterrupted) && tries < patienceWithOthers {
			continue
		}
		if err != nil {
			return err
		}
		for _, body := range all {
			f(body)
		}
		return nil
	}
}

// stream sends a request for everything of a kind and calls f for each answer as it
// comes, with its address family. If things change meanwhile some may be missing or
// come twice, which nf_tables tells by errInterrupted.
func (s *socket) stream(w *buffer, f func(af uint8, body []byte)) error {
	if err := s.send(w.b); err != nil {
		return err
	}
	want := binary.NativeEndian.Uint32(w.b[8:])
	var interrupted error
	for {
		done, err := s.receive(func(kind uint16, seq uint32, body []byte) error {
			switch {
			case seq != want:
			case kind == unix.NLMSG_ERROR:
				return answered(body)
			case len(body) >= nfgenLen:
				f(body[0], body[nfgenLen:])
			}
			return nil
		})
		if errors.Is(err, errInterrupted) {
			interrupted, err = err, nil
		}
		if err != nil {
			return err
		}
		if done {
			return interrupted
		}
		if s.between != nil {
			s.between()
		}
	}
}

// answered returns the error of an acknowledgement, nil if it tells success.
func answered(body []byte) error {
	if len(body) < 4 {
		return errors.New("netfilter sent a short acknowledgement")
	}
	code := -int32(binary.NativeEndian.Uint32(body))
	if code == 0 {
		return nil
	}
	err := error(unix.Errno(code))
	// With NETLINK_CAP_ACK the header of the request follows, then the kernel's
	// words about it.
	if len(body) > 4+headerLen {
		const message = 1
		if text := attribute(body[4+headerLen:], message); len(text) > 1 {
			err = fmt.Errorf("%w (%s)", err, text[:len(text)-1])
		}
	}
	return err
}
