package proxy

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// TestDrainingPortIsUnreachable: while sessions drain, new clients are told that
// nobody is there, from the frontend's address, and the sessions go on.
func TestDrainingPortIsUnreachable(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil && os.Getenv("CI") != "true" {
		t.Skipf("CAP_NET_RAW is needed: %v", err)
	} else if err != nil {
		t.Fatalf("CAP_NET_RAW is needed: %v", err)
	}
	unix.Close(fd)
	for _, family := range []lb.Family{lb.IPv4, lb.IPv6} {
		t.Run(string(family), func(t *testing.T) {
			p := newPlace(t, Options{}, lb.UDP, 1)
			if family == lb.IPv6 {
				at := freePort(t, netip.IPv6Loopback())
				front := lb.Frontend{Addr: at.Addr(), Port: at.Port(), Protocol: lb.UDP}
				p.table.Routes = map[lb.Frontend]lb.Route{front: p.table.Routes[p.front]}
				p.front = front
			}
			p.set()
			p.echo(0)
			old, err := p.ask("hello")
			if err != nil {
				t.Fatal(err)
			}
			p.drainAll(lb.Draining)
			for range 3 {
				if _, err := p.ask("hello"); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("a new client of a draining port: got %v; want connection refused", err)
				}
			}
			if err := again(old, "again"); err != nil {
				t.Errorf("a session of a draining port: %v", err)
			}
			if n := p.engine.panics.Load(); n > 0 {
				t.Fatalf("panics: got %d; want none", n)
			}
			refused := refusals(t, p, 1000)
			if refused == 0 || refused > 900 {
				t.Errorf("messages to 1,000 datagrams at once: got %d; want some, and not one each", refused)
			}
			p.drainAll(lb.Active)
			if _, err := p.ask("hello"); err != nil {
				t.Errorf("a new client after the member is back: %v", err)
			}
		})
	}
}

// drainAll sets the state of all members.
func (p *place) drainAll(s lb.BackendState) {
	p.t.Helper()
	groups := map[lb.GroupID]lb.Group{}
	for id, g := range p.table.Groups {
		b := append([]lb.Backend(nil), g.Backends...)
		for i := range b {
			b[i].State = s
		}
		groups[id] = lb.Group{Backends: b}
	}
	p.table = lb.Table{Routes: p.table.Routes, Groups: groups}
	p.set()
}

// refusals sends datagrams from sockets that are new, and counts those that are told.
func refusals(t *testing.T, p *place, n int) (refused int) {
	t.Helper()
	var all []*net.UDPConn
	for range n {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.front.Addr, p.front.Port)))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = c.Write([]byte("x"))
		all = append(all, c)
	}
	eventually(t, "the first is told", func() bool {
		for _, c := range all {
			raw, err := c.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			_ = raw.Control(func(fd uintptr) {
				if errno, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); err == nil && errno == int(unix.ECONNREFUSED) {
					refused++
				}
			})
		}
		return refused > 0
	})
	return refused
}

func TestChecksum(t *testing.T) {
	// The example of RFC 1071, section 3.
	if got := checksum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}); got != ^uint16(0xddf2) {
		t.Errorf("checksum: got %#x; want %#x", got, ^uint16(0xddf2))
	}
}
