package nftables

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// selectorsPick: what is picked by a member or frontend has its flows, and of IPv4
// no others: the kernel leaves them out.
func selectorsPick(b *bench) {
	m, other := b.member(), b.member()
	f, g := b.add(lb.TCP, m), b.add(lb.TCP, other)
	b.set()
	b.dial(f)
	b.dial(g)
	b.dial(g)
	b.engine.mu.Lock()
	defer b.engine.mu.Unlock()
	for _, c := range []struct {
		which selector
		want  int
	}{
		{selector{}, 3},
		{selector{member: m}, 1},
		{selector{member: other}, 2},
		{selector{frontend: g.Addr}, 2},
		{selector{frontend: g.Addr, protocol: unix.IPPROTO_TCP}, 2},
		{selector{frontend: g.Addr, protocol: unix.IPPROTO_UDP}, 0},
		{selector{member: netip.MustParseAddr("192.0.2.1")}, 0},
	} {
		all, right := 0, 0
		if err := b.engine.tracking.selected(c.which, func(w *flow) {
			all++
			if (!c.which.member.IsValid() || w.member.Addr() == c.which.member) && (!c.which.frontend.IsValid() || w.frontend.Addr() == c.which.frontend) {
				right++
			}
		}); err != nil {
			b.Fatal(err)
		}
		if right != c.want || b.family == lb.IPv4 && all != right {
			b.Errorf("flows of %+v: got %d, %d of them right; want %d", c.which, all, right, c.want)
		}
	}
}

// TestFew: a selection stays small, and picks no less.
func TestFew(t *testing.T) {
	one := selector{member: netip.MustParseAddr("192.0.2.1")}
	var many []selector
	for i := range maxSelectors + 1 {
		many = append(many, selector{member: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})})
	}
	for _, c := range []struct {
		all  []selector
		want int
		rest bool // everything is picked
	}{
		{[]selector{one, one}, 1, false},
		{[]selector{one, {}}, 1, true},
		{many[:maxSelectors], maxSelectors, false},
		{many, 1, true},
	} {
		n := len(c.all)
		got := few(append([]selector(nil), c.all...))
		if len(got) != c.want || (got[0] == selector{}) != c.rest {
			t.Errorf("few of %d: got %v; want %d, everything: %v", n, got, c.want, c.rest)
		}
	}
}
