package proxy

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// gramBatch is the number of datagrams received at once.
	gramBatch = 32
	// gramSize holds every datagram: the largest has 65,507 bytes.
	gramSize = 64 << 10
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// datagrams is a loop's space to receive datagrams and to send them on. Only the
// parts that are used cost memory.
type datagrams struct {
	headers [gramBatch]mmsghdr
	vectors [gramBatch]unix.Iovec
	names   [gramBatch]unix.RawSockaddrInet6 // large enough for both families
	buffers []byte
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
func (d *datagrams) from(i int) netip.AddrPort {
	sa := &d.names[i]
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
	return d.call(unix.SYS_RECVMMSG, fd, 0, gramBatch)
}

// send sends the datagrams from to to, each to the address to, or to the peer of
// a connected socket if to is nil. It returns how many went out.
func (d *datagrams) send(fd, from, to int, name *unix.RawSockaddrInet6) (int, error) {
	for i := from; i < to; i++ {
		d.vectors[i].SetLen(int(d.headers[i].n))
		h := &d.headers[i].hdr
		h.Name, h.Namelen, h.Flags = nil, 0, 0
		if name != nil {
			h.Name, h.Namelen = (*byte)(unsafe.Pointer(name)), unix.SizeofSockaddrInet6 //nolint:gosec // as recvmmsg(2) and sendmmsg(2) have it
			if name.Family == unix.AF_INET {
				h.Namelen = unix.SizeofSockaddrInet4
			}
		}
	}
	return d.call(unix.SYS_SENDMMSG, fd, from, to-from)
}

func (d *datagrams) call(number uintptr, fd, at, n int) (int, error) {
	for {
		done, _, errno := unix.Syscall6(number, uintptr(fd), uintptr(unsafe.Pointer(&d.headers[at])), uintptr(n), unix.MSG_DONTWAIT, 0, 0) //nolint:gosec // as recvmmsg(2) and sendmmsg(2) have it
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
