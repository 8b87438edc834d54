package proxy

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls on which most time is spent skip what read(2) and write(2) do for files
// of all kinds, and the scheduler of the runtime is not told of them: on sockets that
// do not block they never wait.

// receive is recv(2).
func receive(fd int, b []byte) (int, error) {
	return transfer(unix.SYS_RECVFROM, fd, b)
}

// send is send(2).
func send(fd int, b []byte) (int, error) {
	return transfer(unix.SYS_SENDTO, fd, b)
}

func transfer(number uintptr, fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall6(number, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0) //nolint:gosec // as recvfrom(2) and sendto(2) have it
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// accept is accept4(2). That of the package unix asks the kernel for the protocol,
// too, each time.
func accept(fd int) (int, netip.AddrPort, error) {
	var peer unix.RawSockaddrInet6 // large enough for both families
	size := uint32(unsafe.Sizeof(peer))
	conn, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&peer)), uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0) //nolint:gosec // as accept4(2) has it
	if errno != 0 {
		return -1, netip.AddrPort{}, errno
	}
	return int(conn), addrPortOfRaw(&peer), nil
}
