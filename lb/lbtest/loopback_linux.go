package lbtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// Loopback returns the network on the loopback interface, that needs no
// privilege. It has one IPv6 address only.
func Loopback() Network { return &loopback{} }

type loopback struct{ given atomic.Uint32 }

func (n *loopback) Addresses(f lb.Family) int {
	if f == lb.IPv4 {
		return 1 << 16
	}
	if l, err := net.Listen("tcp", "[::1]:0"); err == nil {
		l.Close()
		return 1
	}
	return 0
}

// address returns another address of 127.0.0.0/8, which is local as a whole; the
// second byte keeps processes apart.
func (n *loopback) address(f lb.Family) netip.Addr {
	if f == lb.IPv6 {
		return netip.IPv6Loopback()
	}
	i := n.given.Add(1)
	return netip.AddrFrom4([4]byte{127, byte(64 + os.Getpid()%128), byte(i >> 8), byte(i)})
}

func (n *loopback) Member(f lb.Family) netip.Addr { return n.address(f) }
func (n *loopback) Client(f lb.Family) netip.Addr { return n.address(f) }

func (n *loopback) Frontend(p lb.Protocol, f lb.Family) lb.Frontend {
	port := 20000 + 10*(n.given.Add(1)%1000)
	return lb.Frontend{Addr: n.address(f), Port: uint16(port), Protocol: p}
}

func (n *loopback) Listen(a netip.AddrPort) (net.Listener, error) {
	return net.Listen("tcp", a.String())
}

func (n *loopback) ListenPacket(a netip.AddrPort) (net.PacketConn, error) {
	return net.ListenPacket("udp", a.String())
}

func (n *loopback) Dial(ctx context.Context, from netip.Addr, to lb.Frontend) (net.Conn, error) {
	return dial(ctx, from, to)
}

// dial dials in the network of the calling thread.
func dial(ctx context.Context, from netip.Addr, to lb.Frontend) (net.Conn, error) {
	var d net.Dialer
	if from.IsValid() {
		if to.Protocol == lb.UDP {
			d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
		} else {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
		}
	}
	return d.DialContext(ctx, string(to.Protocol), netip.AddrPortFrom(to.Addr, to.Port).String())
}

// Silence fills the queue of a listening socket that nobody accepts from: the
// kernel then ignores further connection requests.
func (n *loopback) Silence(t testing.TB, a netip.AddrPort) {
	t.Helper()
	if err := fillBacklog(t, a); err != nil {
		t.Fatalf("silence %s: %v", a, err)
	}
}

func fillBacklog(t testing.TB, a netip.AddrPort) error {
	family := unix.AF_INET6
	var sa unix.Sockaddr = &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	if ip := a.Addr().Unmap(); ip.Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: ip.As4()}
	}
	open := func() (int, error) {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			t.Cleanup(func() { unix.Close(fd) })
		}
		return fd, err
	}
	fd, err := open()
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, sa); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	for range 4 { // a queue of length zero takes one, and one more is half open
		c, err := open()
		if err != nil {
			return err
		}
		if err := unix.Connect(c, sa); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			return fmt.Errorf("connect: %w", err)
		}
	}
	return nil
}
