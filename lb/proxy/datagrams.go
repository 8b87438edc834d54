package proxy

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// gramBatch is the number of messages received at once, and of those sent.
	gramBatch = 32
	// gramSize holds every message: the largest datagram has 65,507 bytes, and the
	// kernel joins no more than that.
	gramSize = 64 << 10
	// manyBatch is gramBatch when messages are of many datagrams: what a socket does
	// not take at once is lost, and waits better where it came from.
	manyBatch = 2
	// maxTrain is the number of bytes that go out in one message at most, and
	// maxGrams that of datagrams (UDP_MAX_SEGMENTS of older kernels).
	maxTrain, maxGrams = 60 << 10, 64
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// trainSize is the control message that makes the kernel cut a message into
// datagrams of one size (UDP_SEGMENT).
type trainSize struct {
	hdr  unix.Cmsghdr
	size uint16
	_    [6]byte
}

// joined is the control message in which the kernel tells of what size the datagrams
// are that it has joined to one message (UDP_GRO).
type joined struct {
	hdr  unix.Cmsghdr
	size int32
	_    [4]byte
}

// datagrams is a loop's space to receive datagrams and to send them on. Only the
// parts that are used cost memory.
type datagrams struct {
	headers [gramBatch]mmsghdr
	vectors [gramBatch]unix.Iovec
	joints  [gramBatch]joined
	names   [gramBatch]unix.RawSockaddrInet6 // large enough for both families
	buffers []byte

	many    bool         // the last messages had joined datagrams
	all     []unix.Iovec // the datagrams received
	message []int        // in which each came

	out      [gramBatch]mmsghdr // what is sent: trains of datagrams
	lengths  [gramBatch]int     // datagrams of each
	segments [gramBatch]trainSize
	noTrains bool // the kernel or the machine's link cannot cut them
}

func newDatagrams() *datagrams { return &datagrams{buffers: make([]byte, gramBatch*gramSize)} }

// datagrams returns the loop's space, made at the first use.
func (l *loop) datagrams() *datagrams {
	if l.grams == nil {
		l.grams = newDatagrams()
	}
	return l.grams
}

func (d *datagrams) buffer(i int) []byte { return d.buffers[i*gramSize : (i+1)*gramSize] }

// from returns the sender of the i-th datagram received.
func (d *datagrams) from(i int) netip.AddrPort { return addrPortOfRaw(&d.names[d.message[i]]) }

// size returns how long the i-th datagram received is.
func (d *datagrams) size(i int) int { return int(d.all[i].Len) } //nolint:gosec // shorter than gramSize

// addrPortOfRaw is the inverse of rawSockaddr; 4-in-6 addresses become IPv4.
func addrPortOfRaw(sa *unix.RawSockaddrInet6) netip.AddrPort {
	port := swapPort(sa.Port)
	if sa.Family == unix.AF_INET {
		sa4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa)) //nolint:gosec // as recvmmsg(2) and sendmmsg(2) have it
		return netip.AddrPortFrom(netip.AddrFrom4(sa4.Addr), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), port)
}

// joinDatagrams lets the kernel hand over datagrams of one sender together (UDP_GRO).
// Kernels before 5.0 cannot.
func joinDatagrams(fd int) { _ = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1) }

// receive receives what is there, at most a batch, and returns how many datagrams.
func (d *datagrams) receive(fd int) (int, error) {
	for i := range d.headers {
		b := d.buffer(i)
		d.vectors[i].Base = &b[0]
		d.vectors[i].SetLen(gramSize)
		h := &d.headers[i].hdr
		*h = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&d.names[i])), Namelen: unix.SizeofSockaddrInet6, Iov: &d.vectors[i]} //nolint:gosec // as recvmmsg(2) and sendmmsg(2) have it
		h.SetIovlen(1)
		h.Control = (*byte)(unsafe.Pointer(&d.joints[i])) //nolint:gosec // as recvmsg(2) has it
		h.SetControllen(int(unsafe.Sizeof(d.joints[i])))
	}
	at := gramBatch
	if d.many {
		at = manyBatch
	}
	n, err := call(unix.SYS_RECVMMSG, fd, d.headers[:at])
	d.all, d.message = d.all[:0], d.message[:0]
	for i := range n {
		d.part(i)
	}
	d.many = len(d.all) > n
	return len(d.all), err
}

// part notes the datagrams that the i-th message has.
func (d *datagrams) part(i int) {
	b := d.buffer(i)[:d.headers[i].n]
	size, j := len(b), &d.joints[i]
	if d.headers[i].hdr.Controllen > 0 && j.hdr.Level == unix.SOL_UDP && j.hdr.Type == unix.UDP_GRO && j.size > 0 {
		size = int(j.size)
	}
	for {
		n := min(size, len(b))
		v := unix.Iovec{Base: unsafe.SliceData(b)} //nolint:gosec // as sendmmsg(2) has it
		v.SetLen(n)
		d.all, d.message = append(d.all, v), append(d.message, i)
		if b = b[n:]; len(b) == 0 {
			return
		}
	}
}

// send sends the datagrams from to to, each to the address to, or to the peer of
// a connected socket if to is nil. It returns how many went out, which may be fewer
// without an error. Those of one size go through the kernel together, which is most of
// what they cost.
func (d *datagrams) send(fd, from, to int, name *unix.RawSockaddrInet6) (int, error) {
	n, err := call(unix.SYS_SENDMMSG, fd, d.load(from, to, name, !d.noTrains))
	if err != nil && d.lengths[0] > 1 {
		switch {
		case errors.Is(err, unix.EIO): // nobody there who makes their checksums
			d.noTrains = true
		case !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EMSGSIZE): // larger than the link's packets
			return 0, err
		}
		n, err = call(unix.SYS_SENDMMSG, fd, d.load(from, to, name, false))
	}
	sent := 0
	for _, length := range d.lengths[:n] {
		sent += length
	}
	return sent, err
}

// load makes messages of the datagrams from to to, of as many as a batch holds.
func (d *datagrams) load(from, to int, name *unix.RawSockaddrInet6, trains bool) []mmsghdr {
	n := 0
	for i := from; i < to && n < gramBatch; n++ {
		length := 1
		if trains {
			length = d.train(i, to)
		}
		h := &d.out[n].hdr
		*h = unix.Msghdr{Iov: &d.all[i]}
		h.SetIovlen(length)
		if name != nil {
			h.Name, h.Namelen = (*byte)(unsafe.Pointer(name)), unix.SizeofSockaddrInet6 //nolint:gosec // as recvmmsg(2) and sendmmsg(2) have it
			if name.Family == unix.AF_INET {
				h.Namelen = unix.SizeofSockaddrInet4
			}
		}
		if length > 1 {
			s := &d.segments[n]
			s.hdr.Level, s.hdr.Type, s.size = unix.SOL_UDP, unix.UDP_SEGMENT, uint16(d.size(i)) //nolint:gosec // shorter than maxTrain
			s.hdr.SetLen(unix.CmsgLen(2))
			h.Control = (*byte)(unsafe.Pointer(s)) //nolint:gosec // as sendmsg(2) has it
			h.SetControllen(unix.CmsgSpace(2))
		}
		d.lengths[n] = length
		i += length
	}
	return d.out[:n]
}

// train returns how many datagrams from i on can go as one message: those of one
// size, of which only the last may be shorter.
func (d *datagrams) train(i, to int) int {
	size := d.size(i)
	length, total := 1, size
	for k := i + 1; k < to && size > 0 && length < maxGrams; k++ {
		n := d.size(k)
		if n > size || n == 0 || total+n > maxTrain {
			break
		}
		length++
		total += n
		if n < size {
			break
		}
	}
	return length
}

// call calls recvmmsg(2) or sendmmsg(2).
func call(number uintptr, fd int, headers []mmsghdr) (int, error) {
	for {
		done, _, errno := unix.RawSyscall6(number, uintptr(fd), uintptr(unsafe.Pointer(&headers[0])), uintptr(len(headers)), unix.MSG_DONTWAIT, 0, 0) //nolint:gosec // as recvmmsg(2) and sendmmsg(2) have it
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(done), nil
	}
}

// swapPort changes between the byte order of the machine and the network's.
func swapPort(p uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], p)
	return binary.BigEndian.Uint16(b[:])
}

// rawSockaddr returns the address as the kernel wants it.
func rawSockaddr(a netip.AddrPort) unix.RawSockaddrInet6 {
	var sa unix.RawSockaddrInet6
	sa.Port = swapPort(a.Port())
	if a.Addr().Is4() {
		sa.Family = unix.AF_INET
		(*unix.RawSockaddrInet4)(unsafe.Pointer(&sa)).Addr = a.Addr().As4() //nolint:gosec // as recvmmsg(2) and sendmmsg(2) have it
		return sa
	}
	sa.Family, sa.Addr = unix.AF_INET6, a.Addr().As16()
	return sa
}
