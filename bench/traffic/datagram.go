package traffic

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// message is the kernel's struct mmsghdr.
type message struct {
	header unix.Msghdr
	length uint32
	_      [4]byte
}

// datagrams is a batch that is received and sent with one system call each.
type datagrams struct {
	messages []message
	vectors  []unix.Iovec
	names    []unix.RawSockaddrAny
	buffers  []byte
	size     int
}

func newDatagrams(n, size int) *datagrams {
	d := &datagrams{messages: make([]message, n), vectors: make([]unix.Iovec, n), names: make([]unix.RawSockaddrAny, n), buffers: make([]byte, n*size), size: size}
	for i := range d.messages {
		d.vectors[i].Base = &d.buffers[i*size]
		d.messages[i].header.Iov = &d.vectors[i]
		d.messages[i].header.Iovlen = 1
	}
	return d
}

// receive returns how many datagrams came, at most as many as the batch holds.
func (d *datagrams) receive(fd int, withNames bool) int {
	for i := range d.messages {
		d.vectors[i].SetLen(d.size)
		d.messages[i].header.Name, d.messages[i].header.Namelen = nil, 0
		if withNames {
			d.messages[i].header.Name, d.messages[i].header.Namelen = (*byte)(unsafe.Pointer(&d.names[i])), unix.SizeofSockaddrAny
		}
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&d.messages[0])), uintptr(len(d.messages)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// send sends the first n and returns how many were taken.
func (d *datagrams) send(fd, n int) int {
	sent, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&d.messages[0])), uintptr(n), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(sent)
}

// fill makes the first n datagrams of the given size to the socket's peer.
func (d *datagrams) fill(n, size int) {
	for i := range n {
		d.vectors[i].SetLen(size)
		d.messages[i].header.Name, d.messages[i].header.Namelen = nil, 0
	}
}

func (d *datagrams) echo(fd int) {
	n := d.receive(fd, true)
	for i := range n {
		d.vectors[i].SetLen(int(d.messages[i].length))
	}
	if n > 0 {
		d.send(fd, n)
	}
}

func (d *datagrams) swallow(fd int) { d.receive(fd, false) }
