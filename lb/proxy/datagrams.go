package proxy

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// gramBatch is the number of datagrams received at once.
	gramBatch = 32
	// gramSize holds every datagram: the largest has 65,507 bytes.
	gramSize = 64 << 10
	// maxTrain is the number of bytes that go out in one message at most.
	maxTrain = 60 << 10
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

// datagrams is a loop's space to receive datagrams and to send them on. Only the
// parts that are used cost memory.
type datagrams struct {
	headers [gramBatch]mmsghdr
	vectors [gramBatch]unix.Iovec
	names   [gramBatch]unix.RawSockaddrInet6 // large enough for both families
	buffers []byte

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
func (d *datagrams) from(i int) netip.AddrPort { return addrPortOfRaw(&d.names[i]) }

// addrPortOfRaw is the inverse of rawSockaddr; 4-in-6 addresses become IPv4.
func addrPortOfRaw(sa *unix.RawSockaddrInet6) netip.AddrPort {
	port := swapPort(sa.Port)
	if sa.Family == unix.AF_INET {
		sa4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa)) //nolint:gosec // as recvmmsg(2) and sendmmsg(2) have it
		return netip.AddrPortFrom(netip.AddrFrom4(sa4.Addr), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), port)
}

// receive receives what is there, at most a batch.
func (d *datagrams) receive(fd int) (int, error) {
	for i := range d.headers {
		b := d.buffer(i)
		d.vectors[i].Base = &b[0]
		d.vectors[i].SetLen(gramSize)
		h := &d.headers[i].hdr
		*h = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&d.names[i])), Namelen: unix.SizeofSockaddrInet6, Iov: &d.vectors[i]} //nolint:gosec // as recvmmsg(2) and sendmmsg(2) have it
		h.SetIovlen(1)
	}
	return call(unix.SYS_RECVMMSG, fd, d.headers[:])
}

// send sends the datagrams from to to, each to the address to, or to the peer of
// a connected socket if to is nil. It returns how many went out. Those of one size
// go through the kernel together, which is most of what they cost.
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

// load makes messages of the datagrams from to to.
func (d *datagrams) load(from, to int, name *unix.RawSockaddrInet6, trains bool) []mmsghdr {
	n := 0
	for i := from; i < to; n++ {
		length := 1
		if trains {
			length = d.train(i, to)
		}
		h := &d.out[n].hdr
		*h = unix.Msghdr{Iov: &d.vectors[i]}
		h.SetIovlen(length)
		if name != nil {
			h.Name, h.Namelen = (*byte)(unsafe.Pointer(name)), unix.SizeofSockaddrInet6 //nolint:gosec // as recvmmsg(2) and sendmmsg(2) have it
			if name.Family == unix.AF_INET {
				h.Namelen = unix.SizeofSockaddrInet4
			}
		}
		if length > 1 {
			s := &d.segments[n]
			s.hdr.Level, s.hdr.Type, s.size = unix.SOL_UDP, unix.UDP_SEGMENT, uint16(d.headers[i].n) //nolint:gosec // shorter than maxTrain
			s.hdr.SetLen(unix.CmsgLen(2))
			h.Control = (*byte)(unsafe.Pointer(s)) //nolint:gosec // as sendmsg(2) has it
			h.SetControllen(unix.CmsgSpace(2))
		}
		d.lengths[n] = length
		for range length {
			d.vectors[i].SetLen(int(d.headers[i].n))
			i++
		}
	}
	return d.out[:n]
}

// train returns how many datagrams from i on can go as one message: those of one
// size, of which only the last may be shorter.
func (d *datagrams) train(i, to int) int {
	size := d.headers[i].n
	length, total := 1, size
	for k := i + 1; k < to && size > 0; k++ {
		n := d.headers[k].n
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
