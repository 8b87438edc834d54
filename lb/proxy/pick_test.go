package proxy

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// picker returns a frontend with members of these weights.
func picker(r lb.Route, weights ...int) (*frontend, *group) {
	g := newGroup()
	g.set(backendsOf(weights...))
	fe := newFrontend(lb.Frontend{Addr: netip.MustParseAddr("192.0.2.1"), Port: 80, Protocol: lb.TCP}, &owner{}, 1)
	fe.spec.Store(newSpec(lb.TCP, r, g, newRanges(r.SourceRanges)))
	return fe, g
}

func backendsOf(weights ...int) []lb.Backend {
	var all []lb.Backend
	for i, w := range weights {
		all = append(all, lb.Backend{Node: lb.NodeName(fmt.Sprint("n", i)), Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), Weight: w})
	}
	return all
}

func count(fe *frontend, n int) map[lb.NodeName]int {
	got := map[lb.NodeName]int{}
	for range n {
		k := fe.pick(0, netip.MustParseAddr("198.51.100.1"), nil)
		got[k.node]++
		k.active.Add(-1)
	}
	return got
}

func TestRoundRobinIsExact(t *testing.T) {
	fe, _ := picker(lb.Route{Algorithm: lb.RoundRobin}, 1, 1, 1)
	for node, n := range count(fe, 300) {
		if n != 100 {
			t.Errorf("%s: got %d of 300; want 100", node, n)
		}
	}
}

func TestWeightedRoundRobinIsExactAndSmooth(t *testing.T) {
	fe, _ := picker(lb.Route{Algorithm: lb.RoundRobin}, 5, 1, 1)
	var order []lb.NodeName
	for range 7 {
		order = append(order, fe.pick(0, netip.Addr{}, nil).node)
	}
	want := []lb.NodeName{"n0", "n0", "n1", "n0", "n2", "n0", "n0"}
	if fmt.Sprint(order) != fmt.Sprint(want) {
		t.Errorf("order: got %v; want %v", order, want)
	}
	got := count(fe, 700)
	if got["n0"] != 500 || got["n1"] != 100 || got["n2"] != 100 {
		t.Errorf("700 picks: got %v; want 500, 100, 100", got)
	}
}

func TestRendezvousFollowsWeightsAndMovesFew(t *testing.T) {
	const clients = 20000
	fe, g := picker(lb.Route{AffinityFor: time.Hour}, 1, 2, 1)
	home := func() []lb.NodeName {
		all := make([]lb.NodeName, clients)
		rnd := rand.New(rand.NewPCG(1, 2))
		for i := range all {
			u := rnd.Uint32()
			k := fe.pick(0, netip.AddrFrom4([4]byte{byte(u >> 24), byte(u >> 16), byte(u >> 8), byte(u)}), nil)
			k.active.Add(-1)
			all[i] = k.node
		}
		return all
	}
	before := home()
	got := map[lb.NodeName]int{}
	for _, n := range before {
		got[n]++
	}
	for node, share := range map[lb.NodeName]float64{"n0": .25, "n1": .5, "n2": .25} {
		if f := float64(got[node]) / clients; math.Abs(f-share) > .02 {
			t.Errorf("share of %s: got %.3f; want %.2f", node, f, share)
		}
	}
	less := backendsOf(1, 2, 1)
	less[2].State = lb.Draining
	g.set(less)
	for i, n := range home() {
		if before[i] != "n2" && n != before[i] {
			t.Fatalf("client %d moved from %s to %s when n2 went", i, before[i], n)
		}
	}
	g.set(backendsOf(1, 2, 1))
	for i, n := range home() {
		if n != before[i] {
			t.Fatalf("client %d is at %s after n2 came back; want %s as before", i, n, before[i])
		}
	}
}

func TestLeastConnectionsHeedsWeights(t *testing.T) {
	fe, _ := picker(lb.Route{Algorithm: lb.LeastConnections}, 1, 3)
	got := map[lb.NodeName]int{}
	for range 40 {
		got[fe.pick(0, netip.Addr{}, nil).node]++
	}
	if got["n0"] != 10 || got["n1"] != 30 {
		t.Errorf("40 open connections: got %v; want 10 and 30", got)
	}
}

// TestFailedMemberIsTriedOncePerSecond: of many connections only one at a time
// tries a member that failed.
func TestFailedMemberIsTriedOncePerSecond(t *testing.T) {
	fe, _ := picker(lb.Route{Algorithm: lb.RoundRobin}, 1, 1)
	e := New(Options{})
	tries := 0
	now := int64(time.Hour)
	for range 5000 { // five seconds of a thousand connections
		now += int64(time.Millisecond)
		k := fe.pick(now, netip.Addr{}, nil)
		if k.node == "n0" {
			tries++
			e.blame(now, fe.spec.Load(), k, errNoAnswer)
			k = fe.pick(now, netip.Addr{}, []*link{k})
		}
		if k == nil || k.node != "n1" {
			t.Fatalf("pick: got %v; want n1", k)
		}
	}
	if tries < 4 || tries > 6 {
		t.Errorf("tries of the member that does not answer: got %d in 5 s; want one per second", tries)
	}
}

func TestAllMembersFailing(t *testing.T) {
	fe, g := picker(lb.Route{Algorithm: lb.RoundRobin}, 1, 1)
	e := New(Options{})
	var tried []*link
	for range 2 {
		k := fe.pick(1, netip.Addr{}, tried)
		if k == nil {
			t.Fatal("pick: got nil; want one of the two")
		}
		tried = append(tried, k)
		e.blame(1, fe.spec.Load(), k, errNoAnswer)
	}
	if k := fe.pick(1, netip.Addr{}, tried); k != nil {
		t.Errorf("pick after both were tried: got %s; want nil", k.node)
	}
	if k := fe.pick(2, netip.Addr{}, nil); k == nil {
		t.Error("pick for the next client: got nil; want one, since there is no better")
	}
	for _, k := range tried {
		k.praise()
	}
	g.set(nil)
	if k := fe.pick(3, netip.Addr{}, nil); k != nil {
		t.Errorf("pick of an empty group: got %s; want nil", k.node)
	}
}

// TestPortsFailApart: a member that refuses one port serves others; one that does
// not answer at all serves none.
func TestPortsFailApart(t *testing.T) {
	a, g := picker(lb.Route{Algorithm: lb.RoundRobin}, 1, 1)
	b := newFrontend(lb.Frontend{Addr: netip.MustParseAddr("192.0.2.2"), Port: 80, Protocol: lb.TCP}, &owner{}, 1)
	b.spec.Store(newSpec(lb.TCP, lb.Route{Algorithm: lb.RoundRobin}, g, nil))
	e := New(Options{})
	k := a.pick(1, netip.Addr{}, nil)
	e.blame(1, a.spec.Load(), k, syscall.ECONNREFUSED)
	if got := count(b, 10); got[k.node] != 5 {
		t.Errorf("the other frontend after a refusal: got %v; want both members used", got)
	}
	e.blame(1, a.spec.Load(), k, errNoAnswer)
	if got := count(b, 10); got[k.node] != 0 {
		t.Errorf("the other frontend after silence: got %v; want %s avoided", got, k.node)
	}
}

// TestTwoChoicesSpread: open connections go by weight, much closer than chance
// would spread them.
func TestTwoChoicesSpread(t *testing.T) {
	fe, _ := picker(lb.Route{Algorithm: lb.RandomTwoChoices}, 1, 1, 2, 4, 1, 1)
	got := map[lb.NodeName]int{}
	const open = 10_000
	for range open {
		got[fe.pick(0, netip.Addr{}, nil).node]++
	}
	for i, w := range []int{1, 1, 2, 4, 1, 1} {
		if n, want := got[lb.NodeName(fmt.Sprint("n", i))], open*w/10; n < want-20*w || n > want+20*w {
			t.Errorf("open connections of n%d of weight %d: got %d; want about %d", i, w, n, want)
		}
	}
}

// TestTwoChoicesLast: with one member left, or one of nearly all the weight, it
// does not matter what is drawn.
func TestTwoChoicesLast(t *testing.T) {
	fe, _ := picker(lb.Route{Algorithm: lb.RandomTwoChoices}, 1000, 1, 1)
	e := New(Options{})
	first := fe.pick(1, netip.Addr{}, nil)
	second := fe.pick(1, netip.Addr{}, []*link{first})
	third := fe.pick(1, netip.Addr{}, []*link{first, second})
	if first.node != "n0" || second == nil || third == nil || second == third {
		t.Fatalf("three tries: got %v, %v and %v; want all members, the heaviest first", first, second, third)
	}
	if k := fe.pick(1, netip.Addr{}, []*link{first, second, third}); k != nil {
		t.Errorf("after all were tried: got %s; want nil", k.node)
	}
	for _, k := range []*link{first, second} {
		e.blame(1, fe.spec.Load(), k, errNoAnswer)
	}
	for range 50 {
		if k := fe.pick(2, netip.Addr{}, nil); k != third {
			t.Fatalf("while two do not answer: got %s; want %s", k.node, third.node)
		}
	}
}

func TestDialTimesOfARoute(t *testing.T) {
	o := Options{}.withDefaults()
	for _, c := range []struct{ route, attempt, all time.Duration }{
		{0, 500 * time.Millisecond, 2 * time.Second},
		{100 * time.Millisecond, 100 * time.Millisecond, 2 * time.Second},
		{3 * time.Second, 3 * time.Second, 12 * time.Second},
	} {
		k := &conn{spec: &spec{Route: lb.Route{ConnectTimeout: c.route}}, started: 5}
		if got, all := k.dialTimeout(&o), k.dialUntil(&o)-5; got != int64(c.attempt) || all != int64(c.all) {
			t.Errorf("connect timeout %s: got %s for one attempt and %s for all; want %s and %s", c.route, time.Duration(got), time.Duration(all), c.attempt, c.all)
		}
	}
}
