package lbtest

import (
	"errors"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// noMemberRefuses: without an active member clients are told at once, and are
// served as soon as there is one.
func noMemberRefuses(r *rig) {
	m := r.members(1, greet)
	s := r.service()
	r.set()
	r.unreachable(s, "the group is empty")

	s.backends = []lb.Backend{{Node: m[0].node, Addr: m[0].addr, Weight: 1}}
	for range 3 {
		s.backends[0].State = lb.Active
		start := time.Now()
		r.set()
		r.connect(s).mustAsk("the member is active")
		if took := time.Since(start); took > prompt/5*raceFactor {
			r.Errorf("from the Set with the first active member to an answer: got %s; want milliseconds", took)
		}
		s.backends[0].State = lb.Dead
		r.set()
		r.unreachable(s, "the only member is dead")
	}
	s.backends[0].State = lb.Active
	r.set()
	c := r.connect(s)
	s.backends[0].State = lb.Draining
	r.set()
	if r.proto == lb.TCP {
		r.unreachable(s, "the only member drains")
	}
	c.mustAsk("the member drains")
	s.backends = nil
	r.set()
	r.unreachable(s, "the only member, which has a connection or session, is gone")
}

// unreachable checks that a new client gets "connection refused" promptly.
func (r *rig) unreachable(s *service, why string) {
	r.Helper()
	start := time.Now()
	c, err := r.net.Dial(r.context(), netip.Addr{}, s.Frontend)
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		_, _ = c.Write([]byte("hello"))
		_, err = c.Read(make([]byte, 100))
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ECONNRESET) {
		r.Errorf("client of %s: got %v; want connection refused: %s", s.Frontend, err, why)
	}
	if took := time.Since(start); took > prompt {
		r.Errorf("client of %s: refused after %s; want at most %s: %s", s.Frontend, took, prompt, why)
	}
}

// allRefuse: when no member answers the client gets an error, not a hang.
func allRefuse(r *rig) {
	s := r.service(r.idleMember("a"), r.idleMember("b"))
	if r.net.Addresses(r.family) < 2 {
		s.backends = s.backends[:1]
	}
	r.set()
	for range 3 {
		r.refused(s, netip.Addr{}, "no member listens")
	}
}

// retryRefusing: members that refuse cost clients nothing.
func retryRefusing(r *rig) {
	m := append(r.members(1, greet), r.idleMember("x"), r.idleMember("y"))
	if r.net.Addresses(r.family) < len(m) {
		r.Skip("three addresses are needed")
	}
	s := r.service(m...)
	r.set()
	for range 60 {
		start := time.Now()
		r.connect(s).Close()
		if took := time.Since(start); took > prompt {
			r.Errorf("a connection took %s; want at most %s with members that refuse", took, prompt)
		}
	}
	failed := uint64(0)
	for _, k := range r.counters(s).Members {
		failed += k.DialErrors
	}
	if failed == 0 {
		r.Errorf("dial errors counted: got %d; want some", failed)
	}
}

// retryRefusingUDP: a datagram that brings an ICMP error is lost, and those after
// it reach another member.
func retryRefusingUDP(r *rig) {
	m := append(r.members(1, nil), r.idleMember("x"))
	if r.net.Addresses(r.family) < len(m) {
		r.Skip("two addresses are needed")
	}
	s := r.service(m...)
	r.set()
	for range 10 {
		c, err := r.net.Dial(r.context(), netip.Addr{}, s.Frontend)
		if err != nil {
			r.Fatal(err)
		}
		answered := false
		for try := 0; try < 3 && !answered; try++ {
			_, _ = c.Write([]byte("hello"))
			_ = c.SetReadDeadline(time.Now().Add(soon))
			_, err = c.Read(make([]byte, 100))
			answered = err == nil
		}
		if !answered {
			r.Errorf("three datagrams of one client: got %v; want an answer to the second", err)
		}
		c.Close()
	}
}

// retrySilent: with a member that swallows everything no connection fails, and
// only few wait.
func retrySilent(r *rig) {
	m := r.members(2, greet)
	silent := r.idleMember("silent")
	r.net.Silence(r, netip.AddrPortFrom(silent.addr, targetPort))
	s := r.service(append(m, silent)...)
	r.set()
	const (
		workers = 10
		each    = 20
	)
	var mu sync.Mutex
	slow := 0
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			tick := time.NewTicker(100 * time.Millisecond) // 100 connections a second
			defer tick.Stop()
			for range each {
				start := time.Now()
				c, err := r.tryConnect(s, netip.Addr{})
				if err != nil {
					r.Errorf("with one member silent of three: %v", err)
					return
				}
				c.Close()
				if time.Since(start) > 400*time.Millisecond {
					mu.Lock()
					slow++
					mu.Unlock()
				}
				<-tick.C
			}
		})
	}
	wg.Wait()
	// All that begin before the first dial has timed out may wait, then about one
	// per second.
	if limit := workers * each / 4; slow > limit {
		r.Errorf("connections that waited for the silent member: got %d of %d; want at most %d", slow, workers*each, limit)
	}
}

func deadResets(r *rig) {
	m := r.members(2, greet)
	s := r.service(m...)
	r.set()
	open := map[lb.NodeName]*client{}
	for len(open) < 2 {
		c := r.connect(s)
		open[c.node] = c
	}
	s.backend(m[0]).State = lb.Dead
	start := time.Now()
	r.set()
	if err := open[m[0].node].ended(); !errors.Is(err, syscall.ECONNRESET) {
		r.Errorf("connection of the dead member: got %v; want a reset", err)
	}
	if took := time.Since(start); took > prompt {
		r.Errorf("connection of the dead member: reset after %s; want at most %s", took, prompt)
	}
	open[m[1].node].mustAsk("its member is not dead")
	if got := r.spread(s, 10)[m[0].node]; got != 0 {
		r.Errorf("new connections to the dead member: got %d; want none", got)
	}
}

func deadKeepsUnlessReset(r *rig) {
	m := r.members(1, greet)
	s := r.service(m...)
	s.route.ResetDead = false
	r.set()
	c := r.connect(s)
	s.backend(m[0]).State = lb.Dead
	r.set()
	c.mustAsk("the route does not want it reset")
	s.route.ResetDead = true
	r.set()
	if err := c.ended(); !errors.Is(err, syscall.ECONNRESET) {
		r.Errorf("after the route wants resets: got %v; want a reset", err)
	}
}
