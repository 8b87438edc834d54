package proxy

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	// icmpBurst and icmpInterval bound the messages of a loop: 50 at once, and 1,000
	// a second, which is what the kernel allows itself for the whole machine.
	icmpBurst    = 50
	icmpInterval = int64(1_000_000)
	// The lengths of what a message begins with, and of what it quotes.
	icmpHead, ipv4Head, ipv6Head, udpHead = 8, 20, 40, 8
	// icmpFilter is ICMP_FILTER of raw(7).
	icmpFilter = 1
)

// icmp tells UDP clients that a port has nobody, where the kernel does not since
// the port is open for sessions that drain. It needs CAP_NET_RAW; without that
// clients get no answer.
type icmp struct {
	fd4, fd6 int   // zero before the first message that there is one for, -1 if there is none
	free     int64 // when there is room for the whole burst
	buffer   [icmpHead + ipv6Head + udpHead]byte
}

// unreachable tells a client that has sent a datagram of some bytes to a frontend.
func (l *loop) unreachable(client, frontend netip.AddrPort, size int) {
	m := &l.icmp
	if m.free > l.now+(icmpBurst-1)*icmpInterval {
		return
	}
	m.free = max(m.free, l.now) + icmpInterval
	// The message comes from the address that it is about, as the kernel's would.
	if frontend.Addr().Is4() {
		from := unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: frontend.Addr().As4()})
		l.sendICMP(&m.fd4, m.about4(client, frontend, size), from, client.Addr())
	} else {
		from := unix.PktInfo6(&unix.Inet6Pktinfo{Addr: frontend.Addr().As16()})
		l.sendICMP(&m.fd6, m.about6(client, frontend, size), from, client.Addr())
	}
}

func (l *loop) sendICMP(fd *int, message, control []byte, to netip.Addr) {
	if *fd == 0 {
		*fd = l.openICMP(to)
	}
	if *fd > 0 {
		_ = unix.Sendmsg(*fd, message, control, l.sockaddr(netip.AddrPortFrom(to, 0)), unix.MSG_DONTWAIT)
	}
}

// openICMP returns a socket for messages of a family, -1 if this program may not
// have one, and 0 if there is none for the moment.
func (l *loop) openICMP(to netip.Addr) int {
	if !l.e.files.take(1) {
		return 0
	}
	family, protocol := unix.AF_INET, unix.IPPROTO_ICMP
	if to.Is6() {
		family, protocol = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		l.e.files.give(1)
		return l.e.noICMP(err)
	}
	// Nobody reads what arrives: all types are filtered out.
	if family == unix.AF_INET {
		_ = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_FREEBIND, 1)
		_ = unix.SetsockoptInt(fd, unix.SOL_RAW, icmpFilter, -1)
	} else {
		_ = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
		var all unix.ICMPv6Filter
		for i := range all.Data {
			all.Data[i] = ^uint32(0)
		}
		_ = unix.SetsockoptICMPv6Filter(fd, unix.SOL_ICMPV6, unix.ICMPV6_FILTER, &all)
	}
	if l.e.opts.Control != nil {
		if err := l.e.control(fd, netip.AddrPortFrom(to, 0), "ip"); err != nil {
			closeFD(fd)
			l.e.files.give(1)
			return l.e.noICMP(err)
		}
	}
	return fd
}

// noICMP says what an error means, as openICMP does. Only that it is forbidden is
// there to stay, and is worth a line.
func (e *Engine) noICMP(err error) int {
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return 0
	}
	e.icmpDenied.Do(func() {
		e.opts.Log.Warn("UDP clients are not told when nobody serves them, since that is forbidden; give the program CAP_NET_RAW", zap.Error(err))
	})
	return -1
}

// close closes the sockets.
func (m *icmp) close(files *budget) {
	for _, fd := range []int{m.fd4, m.fd6} {
		if fd > 0 {
			closeFD(fd)
			files.give(1)
		}
	}
}

// about4 makes the message "port unreachable" (RFC 792), which quotes the headers of
// the datagram.
func (m *icmp) about4(client, frontend netip.AddrPort, size int) []byte {
	b := m.buffer[:icmpHead+ipv4Head+udpHead]
	clear(b)
	b[0], b[1] = 3, 3
	ip := b[icmpHead:]
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], clip16(ipv4Head+udpHead+size))
	from, to := client.Addr().As4(), frontend.Addr().As4()
	copy(ip[12:], from[:])
	copy(ip[16:], to[:])
	binary.BigEndian.PutUint16(ip[10:], checksum(ip[:ipv4Head]))
	quoteUDP(ip[ipv4Head:], client, frontend, size)
	binary.BigEndian.PutUint16(b[2:], checksum(b))
	return b
}

// about6 is about4 for IPv6 (RFC 4443), whose checksum the kernel fills in.
func (m *icmp) about6(client, frontend netip.AddrPort, size int) []byte {
	b := m.buffer[:]
	clear(b)
	b[0], b[1] = 1, 4
	ip := b[icmpHead:]
	ip[0], ip[6], ip[7] = 0x60, unix.IPPROTO_UDP, 64
	binary.BigEndian.PutUint16(ip[4:], clip16(udpHead+size))
	from, to := client.Addr().As16(), frontend.Addr().As16()
	copy(ip[8:], from[:])
	copy(ip[24:], to[:])
	quoteUDP(ip[ipv6Head:], client, frontend, size)
	return b
}

func quoteUDP(b []byte, client, frontend netip.AddrPort, size int) {
	binary.BigEndian.PutUint16(b, client.Port())
	binary.BigEndian.PutUint16(b[2:], frontend.Port())
	binary.BigEndian.PutUint16(b[4:], clip16(udpHead+size))
}

func clip16(n int) uint16 { return uint16(min(n, 1<<16-1)) } //nolint:gosec // bounded

// checksum is that of RFC 1071 over an even number of bytes.
func checksum(b []byte) uint16 {
	sum := uint32(0)
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	sum = sum&0xffff + sum>>16
	return ^uint16(sum + sum>>16)
}
