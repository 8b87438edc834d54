package nftables

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// TestManyNodes holds the engine to its targets with as many nodes as packets can be
// routed to: a first Set in 2 s, a member's change in 5 ms.
func TestManyNodes(t *testing.T) {
	inNamespaces(t, func(lbtest.Network) {
		const firstLimit, changeLimit = 10 * time.Second * raceFactor, 50 * time.Millisecond * raceFactor // the order of magnitude: machines differ
		table := directTable(t, 100, maxGateways)
		e := New(Options{Direct: true})
		t.Cleanup(func() {
			_ = e.Shutdown(context.Background())
			if _, err := Cleanup(e.log); err != nil {
				t.Error(err)
			}
		})
		set := func() time.Duration {
			start := time.Now()
			if refused, err := e.Set(t.Context(), table); err != nil || len(refused) > 0 {
				t.Fatalf("Set: got refused %v, error %v; want neither", refused, err)
			}
			return time.Since(start)
		}
		first := set()
		var states, replaced []time.Duration
		for i := range 50 {
			table = withMember(table, 7, lb.BackendState(i%2)*lb.Dead)
			states = append(states, set())
			table = withAnother(table, i)
			replaced = append(replaced, set())
		}
		slices.Sort(states)
		slices.Sort(replaced)
		state, another := states[len(states)/2], replaced[len(replaced)/2]
		t.Logf("100 direct load balancers, %d nodes: first Set in %s, a node's state in %s, another node in its place in %s (medians; worst %s, %s)",
			maxGateways, first, state, another, states[len(states)-1], replaced[len(replaced)-1])
		if first > firstLimit {
			t.Errorf("first Set: took %s; want %s at most", first, firstLimit)
		}
		if state > changeLimit {
			t.Errorf("a node's state: took %s; want %s at most", state, changeLimit)
		}
	})
}

// directTable is a table of load balancers whose packets are routed to nodes on a
// link, which it makes.
func directTable(tb testing.TB, loadBalancers, nodes int) lb.Table {
	tb.Helper()
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "nodes"}, PeerName: "nobody"}
	if err := netlink.LinkAdd(link); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = netlink.LinkDel(link) })
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNetIn(netip.MustParsePrefix("10.210.255.1/16"))}); err != nil {
		tb.Fatal(err)
	}
	peer, err := netlink.LinkByName("nobody")
	if err != nil {
		tb.Fatal(err)
	}
	for _, l := range []netlink.Link{link, peer} {
		if err := netlink.LinkSetUp(l); err != nil {
			tb.Fatal(err)
		}
	}
	t := large(loadBalancers, 0)
	for f, r := range t.Routes {
		r.Direct, r.TargetPort = true, f.Port
		t.Routes[f] = r
	}
	for id := range t.Groups {
		g := lb.Group{}
		for i := range nodes {
			g.Backends = append(g.Backends, lb.Backend{Node: lb.NodeName(fmt.Sprint(i)), Addr: netip.AddrFrom4([4]byte{10, 210, byte(i >> 8), byte(i)}).Next(), Weight: 1})
		}
		t.Groups[id] = g
	}
	return t
}

// withAnother returns the table with a new node in the place of the last one.
func withAnother(t lb.Table, i int) lb.Table {
	groups := maps.Clone(t.Groups)
	for id, g := range groups {
		g.Backends = slices.Clone(g.Backends)
		last := &g.Backends[len(g.Backends)-1]
		last.Addr, last.Node = netip.AddrFrom4([4]byte{10, 210, 100, byte(i)}), lb.NodeName(fmt.Sprintf("new%d", i))
		groups[id] = g
	}
	return lb.Table{Routes: t.Routes, Groups: groups}
}

// BenchmarkSteering measures what the keeper's look costs, once a second.
func BenchmarkSteering(b *testing.B) {
	inNamespace(b)
	table := directTable(b, 1, maxGateways)
	e := New(Options{Direct: true})
	defer func() {
		_ = e.Shutdown(context.Background())
		_, _ = Cleanup(e.log)
	}()
	if refused, err := e.Set(context.Background(), table); err != nil || len(refused) > 0 {
		b.Fatal(refused, err)
	}
	var s steering
	defer s.close()
	addrs := make(map[netip.Addr]bool)
	for a := range e.direct.numbers {
		addrs[a] = true
	}
	gateways := e.direct.gateways()
	for b.Loop() {
		s.links(addrs)
		if wrong, _, err := s.survey(gateways, false); err != nil || len(wrong) > 0 {
			b.Fatal(wrong, err)
		}
	}
}
