package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// backlog is the length of the queue of connections that wait to be accepted;
// the kernel cuts it to net.core.somaxconn.
const backlog = 8192

// udpBuffer is the size that the buffers of UDP listeners ask for; the kernel
// cuts it to net.core.rmem_max.
const udpBuffer = 4 << 20

// listen opens the socket of a frontend, that is not attached to its loop yet.
// Callers hold mu.
func (e *Engine) listen(fe *frontend, serves bool) (acceptor, error) {
	if !e.files.take(1) {
		return nil, fmt.Errorf("all %d descriptors are in use; raise the limit on open files (LimitNOFILE): %w",
			e.files.limit, lb.ErrExhausted)
	}
	fd, err := e.bind(fe.id)
	if err != nil {
		e.files.give(1)
		return nil, err
	}
	home := e.loops[e.homes%len(e.loops)]
	e.homes++
	if fe.id.Protocol == lb.UDP {
		return newUDPListener(fd, fe, home), nil
	}
	return &tcpListener{fd: fd, fe: fe, index: home.index, serving: serves}, nil
}

// bind opens a socket on the frontend's address, and listens if it is TCP.
func (e *Engine) bind(id lb.Frontend) (int, error) {
	addr := netip.AddrPortFrom(id.Addr.Unmap(), id.Port)
	kind, network := unix.SOCK_STREAM, "tcp"
	if id.Protocol == lb.UDP {
		kind, network = unix.SOCK_DGRAM, "udp"
	}
	fd, err := e.socket(addr, kind, network)
	if err != nil {
		return -1, err
	}
	if err := bindTo(fd, addr, id.Protocol); err != nil {
		closeFD(fd)
		return -1, err
	}
	return fd, nil
}

// bindTo binds a new socket to a frontend's address.
func bindTo(fd int, addr netip.AddrPort, p lb.Protocol) error {
	// The address may come to the machine after the bind, or only while this edge
	// owns it.
	var err error
	if addr.Addr().Is4() {
		err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_FREEBIND, 1)
	} else {
		err = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1)
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
		}
	}
	if err != nil {
		return os.NewSyscallError("setsockopt freebind", err)
	}
	if p == lb.TCP {
		// Without it connections in TIME_WAIT keep the port from being opened again.
		// UDP does without, where it would let sockets share a port.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return os.NewSyscallError("setsockopt reuseaddr", err)
		}
	} else {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, udpBuffer)
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, udpBuffer)
		joinDatagrams(fd)
	}
	if err := unix.Bind(fd, sockaddrOf(addr)); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if p == lb.TCP {
		if err := unix.Listen(fd, backlog); err != nil {
			return os.NewSyscallError("listen", err)
		}
	}
	return nil
}

// socket opens a socket for the address, that does not block and that Control
// has seen. Accepted sockets inherit TCP_NODELAY from the listening one.
func (e *Engine) socket(addr netip.AddrPort, kind int, network string) (int, error) {
	family := unix.AF_INET
	if addr.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if kind == unix.SOCK_STREAM {
		// Bytes are passed on as they come: whoever wants to gather them has done so.
		err = os.NewSyscallError("setsockopt nodelay", unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_NODELAY, 1))
	}
	if err == nil && e.opts.Control != nil {
		err = e.control(fd, addr, network)
	}
	if err != nil {
		closeFD(fd)
		return -1, err
	}
	return fd, nil
}

// control calls the hook of the options.
func (e *Engine) control(fd int, addr netip.AddrPort, network string) error {
	if addr.Addr().Is4() {
		network += "4"
	} else {
		network += "6"
	}
	return e.opts.Control(network, addr.String(), rawFD(fd))
}

// sockaddrOf returns the address in a form for system calls.
func sockaddrOf(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// addrPortOf is the inverse of sockaddrOf; 4-in-6 addresses become IPv4.
func addrPortOf(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port&0xffff))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port&0xffff))
	}
	return netip.AddrPort{}
}

// rawFD is a descriptor as Control hooks want it.
type rawFD int

func (f rawFD) Control(do func(fd uintptr)) error {
	do(uintptr(f))
	return nil
}

func (f rawFD) Read(func(uintptr) bool) error  { return errRawFD }
func (f rawFD) Write(func(uintptr) bool) error { return errRawFD }

var errRawFD = errors.New("only Control is possible before the socket is in use")

var _ syscall.RawConn = rawFD(0)

// closeFD closes a descriptor. Linux frees it whatever close(2) returns, and
// there is nothing to be done about the rest.
func closeFD(fd int) { _ = unix.Close(fd) }

// reset closes a TCP socket so that the peer gets a reset.
func reset(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	closeFD(fd)
}
