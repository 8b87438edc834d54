package lbtest

import (
	"fmt"
	"net/netip"

	"github.com/eclusa-lb/eclusa/lb"
)

func roundRobinSpreads(r *rig) {
	n := min(3, r.net.Addresses(r.family))
	s := r.service(r.members(n, greet)...)
	r.set()
	const connections = 90
	got := r.spread(s, connections)
	for i := range n {
		node := lb.NodeName(fmt.Sprintf("n%d", i))
		if got[node] < connections/n/2 {
			r.Errorf("connections of %s: got %d of %d; want about %d", node, got[node], connections, connections/n)
		}
	}
}

func weightsCount(r *rig) {
	m := r.members(2, greet)
	s := r.service(m...)
	s.backend(m[1]).Weight = 3
	r.set()
	const connections = 80
	if got := r.spread(s, connections)[m[1].node]; got < 45 || got > 75 {
		r.Errorf("connections of the member of weight 3 beside one of 1: got %d of %d; want about %d", got, connections, connections*3/4)
	}
}

func leastConnections(r *rig) {
	m := r.members(2, greet)
	s := r.service(m...)
	s.route.Algorithm = lb.LeastConnections
	s.backend(m[1]).Weight = 2
	r.set()
	open := map[lb.NodeName][]*client{}
	for range 9 {
		c := r.connect(s)
		open[c.node] = append(open[c.node], c)
	}
	if len(open[m[0].node]) != 3 || len(open[m[1].node]) != 6 {
		r.Fatalf("open connections: got %d and %d; want 3 and 6 by weight", len(open[m[0].node]), len(open[m[1].node]))
	}
	if r.proto == lb.UDP {
		return // sessions end when they are idle only
	}
	for _, c := range open[m[0].node] {
		c.Close()
	}
	r.eventually("the closed connections are gone", func() bool { return r.counters(s).Active == 6 })
	for i := range 3 {
		if c := r.connect(s); c.node != m[0].node {
			r.Errorf("new connection %d: got %s; want %s, which has fewer", i, c.node, m[0].node)
		}
	}
}

func affinityHolds(r *rig) {
	const clients = 24
	m := r.members(3, greet)
	s := r.service(m...)
	s.route.AffinityFor = 3 * 60 * 60 * 1e9
	r.set()
	if r.net.Addresses(r.family) < clients {
		r.Skipf("%d client addresses are needed", clients)
	}
	addrs := make([]netip.Addr, clients)
	home := make([]lb.NodeName, clients)
	ask := func(i int) lb.NodeName {
		c, err := r.tryConnect(s, addrs[i])
		if err != nil {
			r.Fatalf("client %s: %v", addrs[i], err)
		}
		defer c.Close()
		return c.node
	}
	used := map[lb.NodeName]bool{}
	for i := range addrs {
		addrs[i] = r.net.Client(r.family)
		home[i] = ask(i)
		used[home[i]] = true
		for range 3 {
			if got := ask(i); got != home[i] {
				r.Errorf("client %s: got %s; want %s as before", addrs[i], got, home[i])
			}
		}
	}
	if len(used) != 3 {
		r.Errorf("members used by %d clients: got %d; want 3", clients, len(used))
	}
	lost := m[0].node
	s.backend(m[0]).State = lb.Dead
	r.set()
	for i, addr := range addrs {
		got := ask(i)
		if got == lost || home[i] != lost && got != home[i] {
			r.Errorf("client %s of %s after the loss of %s: got %s; want only the lost member's clients to move", addr, home[i], lost, got)
		}
	}
}

func sourceRanges(r *rig) {
	n := min(2, r.net.Addresses(r.family))
	s := r.service(r.members(1, greet)...)
	inside := r.net.Client(r.family)
	outside := r.net.Client(r.family)
	s.route.SourceRanges = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.PrefixFrom(inside, inside.BitLen())}
	r.set()
	c, err := r.tryConnect(s, inside)
	if err != nil {
		r.Fatalf("client %s of an allowed range: %v", inside, err)
	}
	if n < 2 { // one address only: forbid it
		outside = inside
		s.route.SourceRanges = s.route.SourceRanges[:1]
		r.set()
		c.mustAsk("ranges are for new connections")
	}
	if r.proto == lb.UDP {
		r.unanswered(s, outside)
	} else {
		r.refused(s, outside, "its address is outside of the ranges")
	}
	r.eventually("the refusal is counted", func() bool { return r.counters(s).Refused[lb.RefusedSource] > 0 })
	s.route.SourceRanges = nil
	r.set()
	if _, err := r.tryConnect(s, outside); err != nil {
		r.Errorf("client %s without ranges: %v", outside, err)
	}
}

func maxConnections(r *rig) {
	m := r.members(1, greet)
	a := r.service(m...)
	b := r.service(m...)
	a.route.MaxConnections, b.route.MaxConnections = 3, 3
	b.route.Owner = a.route.Owner
	r.set()
	first := r.connect(a)
	r.connect(a)
	r.connect(b)
	refuse := func(s *service) {
		if r.proto == lb.UDP {
			r.unanswered(s, netip.Addr{})
		} else {
			r.refused(s, netip.Addr{}, "three connections of its owner are open")
		}
	}
	refuse(a)
	refuse(b)
	if got := r.counters(b).Refused[lb.RefusedLimit]; got == 0 {
		r.Errorf("refusals counted: got %d; want some", got)
	}
	first.mustAsk("a limit is for new connections")
	if r.proto == lb.UDP {
		return
	}
	first.Close()
	r.eventually("a place is free", func() bool { return r.counters(a).Active == 1 })
	r.connect(b)
}

func countersCount(r *rig) {
	m := r.members(1, greet)
	s := r.service(m...)
	r.set()
	if got := r.counters(s); got.Name != s.route.Name || len(got.Members) != 0 {
		r.Errorf("counters before the first client: got %+v; want the name %q and no members", got, s.route.Name)
	}
	c := r.connect(s)
	c.mustAsk("0123456789")
	r.eventually("everything is counted", func() bool {
		got := r.counters(s)
		if got.Active != 1 || got.Accepted != 1 || len(got.Members) != 1 {
			return false
		}
		k := got.Members[0]
		return k.Node == m[0].node && k.Active == 1 && k.Connections == 1 && k.BytesIn >= 10 && k.BytesOut >= 13
	})
	if r.proto == lb.TCP {
		c.Close()
		r.eventually("the connection is counted out", func() bool { return r.counters(s).Active == 0 && r.counters(s).Members[0].Active == 0 })
	}
}
