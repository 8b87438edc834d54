package lbtest

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"github.com/eclusa-lb/eclusa/lb"
)

// Network is where clients, the engine under test and members live. The engine
// is in this process; the network reaches the places of the others. Addresses are
// given out once each, so that cases do not meet. All methods may be called
// concurrently.
type Network interface {
	// Addresses is how many members and clients of a family can have addresses of
	// their own; zero means that there is no such family.
	Addresses(f lb.Family) int
	// Frontend returns a frontend that nobody uses, nor the 9 ports after it.
	Frontend(p lb.Protocol, f lb.Family) lb.Frontend
	// Member returns an address for a member.
	Member(f lb.Family) netip.Addr
	// Client returns an address for a client.
	Client(f lb.Family) netip.Addr

	// Listen and ListenPacket open a member's socket.
	Listen(a netip.AddrPort) (net.Listener, error)
	ListenPacket(a netip.AddrPort) (net.PacketConn, error)
	// Dial opens a client's connection to a frontend, from any client address if
	// from is the zero Addr.
	Dial(ctx context.Context, from netip.Addr, to lb.Frontend) (net.Conn, error)
	// Silence makes the member swallow what is sent to it, until the test ends.
	Silence(t testing.TB, a netip.AddrPort)
}
