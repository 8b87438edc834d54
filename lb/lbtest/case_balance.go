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
