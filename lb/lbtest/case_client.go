package lbtest

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// Cases about who a client is: source ranges, affinity, and hashing.

func sourceRanges(r *rig) {
	n := min(2, r.net.Addresses(r.family))
	s := r.service(r.members(1, greet)...)
	inside := r.net.Client(r.family)
	outside := r.net.Client(r.family)
	s.route.SourceRanges = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.PrefixFrom(inside, inside.BitLen())}
	r.set()
	if _, err := r.tryConnect(s, inside); err != nil {
		r.Fatalf("client %s of an allowed range: %v", inside, err)
	}
	if n < 2 { // one address only: forbid it
		outside = inside
		s.route.SourceRanges = s.route.SourceRanges[:1]
		r.set()
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

// sourceRangesEnd: a change of ranges ends what it forbids and nothing else.
func sourceRangesEnd(r *rig) {
	const each = 8 // for every loop, thread or queue that an engine may have
	s := r.service(r.members(1, greet)...)
	r.set()
	good, bad := r.net.Client(r.family), r.net.Client(r.family)
	var kept, ended []*client
	for range each {
		kept, ended = append(kept, r.connectFrom(s, good)), append(ended, r.connectFrom(s, bad))
	}
	if r.net.Addresses(r.family) < 2 { // both are the same
		kept, ended = nil, append(kept, ended...)
		s.route.SourceRanges = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8::/32")}
	} else {
		s.route.SourceRanges = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8::/32"), netip.PrefixFrom(good, good.BitLen())}
	}
	r.set()
	r.eventually("what is forbidden has ended", func() bool { return r.counters(s).Active == int64(len(kept)) })
	if r.proto == lb.UDP {
		r.unanswered(s, bad)
	} else {
		for _, c := range ended {
			if err := c.ended(); !errors.Is(err, syscall.ECONNRESET) {
				r.Errorf("a connection that is not allowed any more: got %v; want a reset", err)
			}
		}
	}
	for _, c := range kept {
		c.mustAsk("its client is allowed")
	}
	if got := r.counters(s).Accepted; got != 2*each {
		r.Errorf("connections or sessions: got %d; want the first %d, since those of the allowed client go on", got, 2*each)
	}
	r.set()
	for _, c := range kept {
		c.mustAsk("nothing has changed")
	}
}

// sourceRangesHandOver: sessions that the first table of a successor does not
// allow do not go on.
func sourceRangesHandOver(r *rig) {
	s := r.service(r.members(1, greet)...)
	r.set()
	r.connect(s)
	first, second := r.engine, r.spare()
	r.Cleanup(func() { shutdownNow(r, first) })
	r.pass(first, second, func() {})
	s.route.SourceRanges = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
	r.engine = second
	r.set()
	r.eventually("sessions that the new table forbids have ended", func() bool { return r.counters(s).Active == 0 })
}

// connectFrom is connect from an address.
func (r *rig) connectFrom(s *service, from netip.Addr) *client {
	r.Helper()
	c, err := r.tryConnect(s, from)
	if err != nil {
		r.Fatalf("client %s of %s: %v", from, s.Frontend, err)
	}
	return c
}

// crowd is a number of clients with addresses of their own.
type crowd struct {
	r     *rig
	s     *service
	addrs []netip.Addr
	home  []lb.NodeName // where they were last
}

func (r *rig) crowd(s *service, n int) *crowd {
	r.Helper()
	if r.net.Addresses(r.family) < n {
		r.Skipf("%d client addresses are needed", n)
	}
	c := &crowd{r: r, s: s, home: make([]lb.NodeName, n)}
	for range n {
		c.addrs = append(c.addrs, r.net.Client(r.family))
	}
	return c
}

// come lets every client come once, and returns who moved from where it was.
func (c *crowd) come() (moved []int) {
	c.r.Helper()
	for i, addr := range c.addrs {
		k := c.r.connectFrom(c.s, addr)
		k.Close()
		if c.home[i] != "" && c.home[i] != k.node {
			moved = append(moved, i)
		}
		c.home[i] = k.node
	}
	return moved
}

// stay lets every client come and checks that it finds the member it had.
func (c *crowd) stay(why string) {
	c.r.Helper()
	before := append([]lb.NodeName(nil), c.home...)
	for _, i := range c.come() {
		c.r.Errorf("client %s: got %s; want %s as before: %s", c.addrs[i], c.home[i], before[i], why)
	}
}

func (c *crowd) at(node lb.NodeName) (n int) {
	for _, h := range c.home {
		if h == node {
			n++
		}
	}
	return n
}

func affinityHolds(r *rig) {
	m := r.members(3, greet)
	s := r.service(m...)
	s.route.AffinityFor = time.Hour
	r.set()
	c := r.crowd(s, 24)
	c.come()
	for range 2 {
		c.stay("nothing has changed")
	}
	for _, m := range m {
		if c.at(m.node) == 0 {
			r.Errorf("members of %d clients: got %v; want all three", len(c.addrs), c.home)
		}
	}
	lost, before := m[0].node, append([]lb.NodeName(nil), c.home...)
	s.backend(m[0]).State = lb.Dead
	r.set()
	for _, i := range c.come() {
		if before[i] != lost {
			r.Errorf("client %s of %s: moved when %s was lost; want only the lost member's clients to move", c.addrs[i], before[i], lost)
		}
	}
	if c.at(lost) > 0 {
		r.Errorf("clients of the lost member: got %d; want none", c.at(lost))
	}
	s.backend(m[0]).State = lb.Active
	r.set()
	c.stay("its member is healthy, whoever comes back")
}

// affinityJoin: a member that joins gets new clients and no others.
func affinityJoin(r *rig) {
	m := r.members(3, greet)
	s := r.service(m[:2]...)
	s.route.AffinityFor = time.Hour
	r.set()
	c := r.crowd(s, 24)
	c.come()
	s.backends = append(s.backends, lb.Backend{Node: m[2].node, Addr: m[2].addr, Weight: 1, Check: "check"})
	r.set()
	c.stay("another member has joined")
	fresh := r.crowd(s, 24)
	fresh.come()
	if fresh.at(m[2].node) == 0 {
		r.Errorf("new clients of the member that joined: got none of %d; want about a third", len(fresh.addrs))
	}
	fresh.stay("it is known by now")
}

// affinityLive: affinity can be switched on and off, and a client with an open
// connection is at home where that is.
func affinityLive(r *rig) {
	m := r.members(2, greet)
	s := r.service(m...)
	r.set()
	var open []*client
	for range 8 {
		open = append(open, r.connectFrom(s, r.net.Client(r.family)))
	}
	apart := r.net.Addresses(r.family) >= len(open)
	s.route.AffinityFor = time.Hour
	r.set()
	for _, c := range open {
		if k := r.connectFrom(s, c.clientAddr()); apart && k.node != c.node {
			r.Errorf("client %s with a connection to %s, after affinity was switched on: got %s", c.clientAddr(), c.node, k.node)
		}
		c.mustAsk("a change of affinity is for new connections")
	}
	s.route.AffinityFor = 0
	r.set()
	got := map[lb.NodeName]int{}
	for range 8 {
		got[r.connectFrom(s, open[0].clientAddr()).node]++
	}
	least := 2
	if r.has(ExactTurns) {
		least = 4
	}
	if got[m[0].node] < least || got[m[1].node] < least {
		r.Errorf("connections of one client after affinity was switched off: got %v; want them spread", got)
	}
}

func (c *client) clientAddr() netip.Addr {
	return netip.MustParseAddrPort(c.LocalAddr().String()).Addr()
}

// affinityHandOver: a successor knows who is at home where.
func affinityHandOver(r *rig) {
	m := r.members(3, greet)
	s := r.service(m[:2]...)
	s.route.AffinityFor = time.Hour
	r.set()
	c := r.crowd(s, 24)
	c.come()
	s.backends = append(s.backends, lb.Backend{Node: m[2].node, Addr: m[2].addr, Weight: 1, Check: "check"})
	r.set()
	first, second := r.engine, r.spare()
	r.Cleanup(func() { shutdownNow(r, first) })
	r.pass(first, second, func() {})
	r.engine = second
	r.set()
	c.stay("the engine before knew it, and the third member joined later")
}

// sourceHash: clients go by their addresses alone, in every engine alike; a lost
// member costs others next to nothing, and gets its clients back.
func sourceHash(r *rig) {
	m := r.members(3, greet)
	s := r.service(m...)
	s.route.Algorithm = lb.SourceHash
	r.set()
	c := r.crowd(s, 48)
	c.come()
	c.stay("nothing has changed")
	for _, m := range m {
		if c.at(m.node) == 0 {
			r.Errorf("members of %d clients: got %v; want all three", len(c.addrs), c.home)
		}
	}
	home, lost := append([]lb.NodeName(nil), c.home...), m[0].node
	s.backend(m[0]).State = lb.Dead
	r.set()
	others := 0
	for _, i := range c.come() {
		if home[i] != lost {
			others++
		}
	}
	if c.at(lost) > 0 || others > 5 {
		r.Errorf("after the loss of %s: it has %d clients and %d of others moved; want none and next to none of 32", lost, c.at(lost), others)
	}
	s.backend(m[0]).State = lb.Active
	r.set()
	c.come()
	if fmt.Sprint(c.home) != fmt.Sprint(home) {
		r.Errorf("after %s is back: got %v; want %v as before", lost, c.home, home)
	}
	shutdownNow(r, r.engine)
	r.engine = r.spare()
	r.set()
	c.stay("another engine decides alike")
}
