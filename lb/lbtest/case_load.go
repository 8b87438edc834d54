package lbtest

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// Cases about algorithms that heed what members have, and about many listeners.

func leastConnections(r *rig) { fewest(r, lb.LeastConnections) }

// randomTwoChoices: of two members both are drawn, so that the lesser gets each
// connection; of more the load stays close.
func randomTwoChoices(r *rig) {
	fewest(r, lb.RandomTwoChoices)
	m := r.members(4, greet)
	s := r.service(m...)
	s.route.Algorithm = lb.RandomTwoChoices
	r.set()
	const connections = 60
	got := map[lb.NodeName]int{}
	for range connections {
		got[r.connect(s).node]++
	}
	for _, m := range m {
		if n := got[m.node]; n < connections/4-6 || n > connections/4+6 {
			r.Errorf("open connections of %s: got %d of %d; want about %d", m.node, n, connections, connections/4)
		}
	}
}

// fewest checks that of two members the one with fewer connections for its weight
// gets the next.
func fewest(r *rig, algorithm lb.Algorithm) {
	m := r.members(2, greet)
	s := r.service(m...)
	s.route.Algorithm = algorithm
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

// changesUnderLoad: a route may change what it says about clients at any time.
func changesUnderLoad(r *rig) {
	const changes = 300
	m := r.members(2, greet)
	s := r.service(m...)
	r.set()
	long := r.connect(s)
	everybody := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	stop := r.load(s, 4)
	start, i := time.Now(), 0
	for ; i < changes || r.counters(s).Accepted < changes && time.Since(start) < patience; i++ {
		switch i % 6 {
		case 0:
			s.route.AffinityFor = time.Hour
		case 1:
			s.route.SourceRanges = everybody
		case 2:
			s.route.AffinityFor, s.route.Algorithm = 0, lb.SourceHash
		case 3:
			s.route.ConnectTimeout = patience
		case 4:
			s.route.SourceRanges, s.route.Algorithm = everybody[:1], lb.RandomTwoChoices
			if r.family == lb.IPv6 {
				s.route.SourceRanges = everybody[1:]
			}
		case 5:
			s.route.SourceRanges, s.route.ConnectTimeout, s.route.Algorithm = nil, 0, lb.RoundRobin
		}
		r.set()
	}
	n := stop()
	long.mustAsk("its client is allowed all the time")
	r.Logf("%d changes in %s during %d connections", i, time.Since(start), n)
}

// portRange serves 2,000 ports of one load balancer, and adds and removes one
// without disturbing the others.
func portRange(r *rig) {
	const ports, first = 2000, 10000
	if r.net.Addresses(r.family) <= ports {
		r.Skip("an address whose ports nobody else uses is needed")
	}
	template := r.service(r.members(1, greet)...)
	group := template.route.Group
	t := lb.Table{Routes: map[lb.Frontend]lb.Route{}, Groups: map[lb.GroupID]lb.Group{group: {Backends: template.backends}}}
	at := func(port int) lb.Frontend {
		return lb.Frontend{Addr: template.Addr, Port: uint16(port), Protocol: r.proto}
	}
	for i := range ports {
		t.Routes[at(first+i)] = template.route
	}
	set := func() {
		r.Helper()
		start := time.Now()
		whole := lb.Table{Routes: maps.Clone(t.Routes), Groups: t.Groups} // tables do not change
		if refused, err := r.engine.Set(r.context(), whole); err != nil || len(refused) > 0 {
			r.Fatalf("Set of %d ports: got %v, %v; want all served", len(t.Routes), refused, err)
		}
		if took := time.Since(start); took > 3*time.Second*raceFactor {
			r.Errorf("Set of %d ports: took %s; want seconds at most", len(t.Routes), took)
		}
	}
	set()
	var open []*client
	for _, port := range []int{first, first + 1234, first + ports - 1} {
		open = append(open, r.connect(&service{Frontend: at(port)}))
	}
	added := at(first + ports)
	t.Routes[added] = template.route
	set()
	r.connect(&service{Frontend: added})
	delete(t.Routes, added)
	set()
	r.unreachable(&service{Frontend: added}, "the port was removed")
	for _, c := range open {
		c.mustAsk("another port came and went")
	}
	if _, err := r.engine.Set(context.Background(), lb.Table{}); err != nil {
		r.Fatal(fmt.Errorf("Set of nothing: %w", err))
	}
}
