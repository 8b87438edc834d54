package proxy

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

func someClients(n int) []netip.Addr {
	rnd := rand.New(rand.NewPCG(7, uint64(n)))
	all := make([]netip.Addr, n)
	for i := range all {
		u := rnd.Uint32()
		all[i] = netip.AddrFrom4([4]byte{byte(u >> 24), byte(u >> 16), byte(u >> 8), byte(u)})
	}
	return all
}

// sticky returns a frontend that remembers clients for a minute, and a function
// by which a client opens a connection, and one that ends it.
func sticky(weights ...int) (fe *frontend, g *group, open func(now int64, c netip.Addr) (*link, *uint16)) {
	fe, g = picker(lb.Route{AffinityFor: time.Minute}, weights...)
	fe.remember(&budget{limit: 1 << 20}, true)
	return fe, g, func(now int64, c netip.Addr) (*link, *uint16) {
		k := fe.pick(now, c, nil)
		gen := new(uint16)
		k.settle(now, c, gen)
		return k, gen
	}
}

const second = int64(time.Second)

func TestHomesOutlastNewMembers(t *testing.T) {
	_, g, open := sticky(1, 1)
	clients := someClients(1000)
	home := map[netip.Addr]lb.NodeName{}
	for _, c := range clients {
		k, gen := open(1, c)
		home[c] = k.node
		k.leave(1, c, gen)
	}
	g.set(backendsOf(1, 1, 1))
	moved := 0
	for i, c := range clients {
		now := 30 * second
		if i >= 500 {
			now = 62 * second // away for longer than the timeout
		}
		k, gen := open(now, c)
		if k.node != home[c] {
			if i < 500 {
				t.Fatalf("client %s within its timeout: moved from %s to %s", c, home[c], k.node)
			}
			moved++
		}
		k.leave(now, c, gen)
	}
	if moved < 100 || moved > 250 {
		t.Errorf("clients whose time was over: %d of 500 moved; want about a third, as the hash says", moved)
	}
}

func TestOpenConnectionKeepsTheHome(t *testing.T) {
	_, g, open := sticky(1)
	var last *uint16
	var at *link
	c := someClients(1)[0]
	at, last = open(1, c)
	g.set(backendsOf(1, 1000))
	for now := second; now < 600*second; now += 100 * second { // each longer than the timeout
		k, gen := open(now, c)
		if k.node != "n0" {
			t.Fatalf("after %d s with a connection to n0: got %s", now/second, k.node)
		}
		k.leave(now, c, gen)
	}
	at.leave(600*second, c, last)
	if k, _ := open(659*second, c); k.node != "n0" {
		t.Errorf("59 s after the last connection: got %s; want n0", k.node)
	}
}

// TestClocksOfLoopsDiffer: a loop that lags behind the one that saw the client last
// does not take it for one that was away for years.
func TestClocksOfLoopsDiffer(t *testing.T) {
	fe, g, open := sticky(1)
	c := someClients(1)[0]
	k, gen := open(second, c)
	k.leave(second, c, gen)
	g.set(backendsOf(1, 1000))
	lag := second - 2<<tickShift
	if e := fe.homes.find(hashAddr(c)); e.idle(tick(lag), 1) || e.age(tick(lag)) != 0 {
		t.Errorf("two ticks before it was seen: got age %d, idle %v; want 0, false", e.age(tick(lag)), e.idle(tick(lag), 1))
	}
	if b := fe.bequests(lag); len(b) != 1 || b[0].age != 0 {
		t.Errorf("handed over two ticks before it was seen: got %v; want one of age 0", b)
	}
	if k, _ := open(lag, c); k.node != "n0" {
		t.Errorf("two ticks before it was seen: got %s; want n0", k.node)
	}
}

// TestDetourIsNoMove: a member that does not answer for a moment keeps its
// clients, one that is taken out loses them.
func TestDetourIsNoMove(t *testing.T) {
	fe, g, open := sticky(1, 1, 1)
	e := New(Options{})
	c := someClients(1)[0]
	home, _ := open(1, c)
	e.blame(1, fe.spec.Load(), home, errNoAnswer)
	if k, gen := open(2, c); k == home || *gen != 0 {
		t.Errorf("while %s does not answer: got %s, counted %d; want another that does not count", home.node, k.node, *gen)
	}
	home.praise()
	if k, _ := open(3, c); k != home {
		t.Errorf("after %s answers again: got %s", home.node, k.node)
	}
	out := backendsOf(1, 1, 1)
	for i := range out {
		if out[i].Node == home.node {
			out[i].State = lb.Draining
		}
	}
	g.set(out)
	next, _ := open(4, c)
	g.set(backendsOf(1, 1, 1))
	if k, _ := open(5, c); k != next || k == home {
		t.Errorf("after %s is back: got %s; want %s still", home.node, k.node, next.node)
	}
}

func TestHomesAreLimited(t *testing.T) {
	const limit = 1024
	b := &budget{limit: limit}
	fe, g := picker(lb.Route{AffinityFor: time.Hour}, 1, 1)
	fe.remember(b, true)
	clients := someClients(20 * limit)
	keeper := clients[0]
	kept := fe.pick(1, keeper, nil)
	kept.settle(1, keeper, new(uint16)) // it stays connected
	for i, c := range clients[1:] {
		now, gen := int64(i+2)*second, new(uint16)
		k := fe.pick(now, c, nil)
		k.settle(now, c, gen)
		k.leave(now, c, gen)
	}
	if n := b.used.Load(); n != limit-firstHomes || len(fe.homes.places) != limit {
		t.Errorf("entries: got %d counted and %d in the table; want the limit, %d, of which the first %d do not count", n, len(fe.homes.places), limit, firstHomes)
	}
	g.set(backendsOf(1, 1, 1, 1, 1))
	now := int64(len(clients)+2) * second
	if k := fe.pick(now, keeper, nil); k != kept {
		t.Errorf("a client with a connection while the table is full: got %s; want %s, since others make room", k.node, kept.node)
	}
	stayed := 0
	for _, c := range clients[len(clients)-limit/4:] {
		if e := fe.homes.find(hashAddr(c)); e != nil {
			stayed++
		}
	}
	if stayed < limit/4*9/10 {
		t.Errorf("the youngest %d clients: got %d remembered; want nearly all", limit/4, stayed)
	}
	fe.remember(b, false)
	if n := b.used.Load(); n != 0 {
		t.Errorf("entries after it was switched off: got %d; want none", n)
	}
}

// TestHomesGrowWithoutLoss compares with a map, as long as there is room.
func TestHomesGrowWithoutLoss(t *testing.T) {
	h := &homes{budget: &budget{limit: 1 << 20}}
	want := map[uint64]uint64{}
	rnd := rand.New(rand.NewPCG(1, 3))
	for range 50_000 {
		client, member := mix(uint64(rnd.IntN(30_000))+1), 1+rnd.Uint64N(5)
		gen := h.settle(client, member, 5, 10, func(uint64) bool { return false })
		h.leave(client, 5, gen)
		want[client] = member
	}
	lost := 0
	for client, member := range want {
		if e := h.find(client); e == nil {
			lost++
		} else if e.member != member || e.open > 1 {
			t.Fatalf("client %x: got member %d with %d open; want %d", client, e.member, e.open, member)
		}
	}
	if lost > 0 || len(h.places) > maxHomes {
		t.Errorf("%d clients in %d places: %d lost; want none", len(want), len(h.places), lost)
	}
}

// TestCraftedClientsGrowNothing: clients whose hashes end alike are as good as others,
// and those that share their sets do not make a table grow that is hardly used.
func TestCraftedClientsGrowNothing(t *testing.T) {
	never := func(uint64) bool { return false }
	b := &budget{limit: 1 << 20}
	h := &homes{budget: b}
	for i := range uint64(20) {
		h.settle((i+1)<<40, 1, 5, 10, never)
	}
	if len(h.places) > 4*firstHomes {
		t.Errorf("20 clients with the same low bits: got %d places", len(h.places))
	}
	h = &homes{budget: b}
	for len(h.places) < 1<<10 {
		if !h.grow(5, 10) {
			t.Fatal("no room to grow")
		}
	}
	want := h.sets(1)
	shared := 0
	for c := uint64(1); shared < 40; c++ {
		if got := h.sets(c); &got[0][0] == &want[0][0] && &got[1][0] == &want[1][0] {
			h.settle(c, 1, 5, 10, never)
			shared++
		}
	}
	if len(h.places) != 1<<10 || h.used != 2*waysOfHomes {
		t.Errorf("40 clients that share two sets: got %d of %d places used; want %d of 1024", h.used, len(h.places), 2*waysOfHomes)
	}
	if h = (&homes{budget: &budget{}}); h.settle(1, 1, 5, 10, never) == 0 || len(h.places) != firstHomes {
		t.Errorf("a frontend when others have all the memory: got %d places; want %d", len(h.places), firstHomes)
	}
}

// TestBequestsComeBack hands the homes of many clients over and back.
func TestBequestsComeBack(t *testing.T) {
	fe, g, open := sticky(1, 1)
	clients := someClients(40_000)
	for _, c := range clients {
		k, gen := open(1, c)
		k.leave(1, c, gen)
	}
	g.set(backendsOf(1, 1, 1))
	e := New(Options{})
	e.frontends[fe.id] = fe
	var w will
	all, err := e.remembered(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.clients(all[fe], 0)
	next, _ := picker(lb.Route{AffinityFor: time.Minute}, 1, 1, 1)
	next.remember(&budget{limit: 1 << 20}, true)
	for _, r := range w.later {
		if len(r.Data) > bequestsPerRecord*bequestSize {
			t.Errorf("a record has %d bytes; want at most %d", len(r.Data), bequestsPerRecord*bequestSize)
		}
		next.inheritHomes(second, r.bequests())
	}
	for _, c := range clients {
		a, b := fe.pick(second, c, nil), next.pick(second, c, nil)
		if a.node != b.node {
			t.Fatalf("client %s: got %s in the next process; want %s", c, b.node, a.node)
		}
	}
}

// TestOldestClientsAreLeftBehind: beyond what is handed over, the youngest clients of
// each frontend are, and nobody waits for it longer than the context says.
func TestOldestClientsAreLeftBehind(t *testing.T) {
	e := New(Options{})
	const each = maxHomes * 3 / 4
	for i := range 2 {
		fe, _ := picker(lb.Route{AffinityFor: time.Hour}, 1, 2)
		fe.id.Port += uint16(i)
		fe.remember(&e.clients, true)
		e.frontends[fe.id] = fe
		for c := range uint64(each) {
			h, seen := fe.homes, -uint32(c)
			h.leave(mix(c+1), seen, h.settle(mix(c+1), 7, seen, 1<<30, nil))
		}
	}
	all, err := e.remembered(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for fe, b := range all {
		if len(b) < maxBequests/2-100 || len(b) > maxBequests/2 {
			t.Errorf("frontend %s: got %d clients; want about half of %d", fe.id, len(b), maxBequests)
		}
		oldest := slices.MaxFunc(b, func(x, y bequest) int { return cmp.Compare(x.age, y.age) }).age
		if oldest < maxBequests/2-100 || oldest > maxBequests/2+1000 {
			t.Errorf("frontend %s: the oldest of %d clients was away for %d ticks; want the youngest, of which one comes with each tick", fe.id, len(b), oldest)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if all, err := e.remembered(ended); err == nil {
		t.Errorf("after the context has ended: got %d clients and no error", len(all))
	}
	if _, err := e.bequeath(ended); err == nil || e.handed {
		t.Errorf("handed over after the context has ended: got %v, handed %v", err, e.handed)
	}
}

func BenchmarkRemembered(b *testing.B) {
	for _, members := range []int{10, 1000} {
		b.Run(fmt.Sprint("members-", members), func(b *testing.B) {
			e := New(Options{})
			for i := range 9 {
				g := newGroup()
				g.set(manyBackends(members, "node"))
				fe := newFrontend(lb.Frontend{Port: uint16(80 + i), Protocol: lb.TCP}, &owner{}, 1)
				fe.spec.Store(newSpec(lb.TCP, lb.Route{AffinityFor: 3 * time.Hour}, g, nil))
				fe.remember(&e.clients, true)
				for j, c := range someClients(maxHomes) {
					seen := -uint32(j)
					h := fe.homes
					h.leave(hashAddr(c), seen, h.settle(hashAddr(c), 1, seen, 1<<30, func(uint64) bool { return true }))
				}
				e.frontends[fe.id] = fe
			}
			for b.Loop() {
				if all, err := e.remembered(b.Context()); err != nil || len(all) != 9 {
					b.Fatal(len(all), err)
				}
			}
		})
	}
}

func BenchmarkSettle(b *testing.B) {
	_, _, open := sticky(weightsOf(100, 1)...)
	clients := someClients(100_000)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		c := clients[i%len(clients)]
		k, gen := open(1, c)
		k.leave(1, c, gen)
		k.active.Add(-1)
	}
}

// TestHomesOfAFrontendThatComesBack: clients that stayed connected meanwhile are
// still at home.
func TestHomesOfAFrontendThatComesBack(t *testing.T) {
	p := newPlace(t, Options{}, lb.TCP, 1)
	r := p.table.Routes[p.front]
	r.AffinityFor, r.DrainTimeout = time.Hour, time.Hour
	routes := map[lb.Frontend]lb.Route{p.front: r}
	p.table.Routes = routes
	p.set()
	p.echo(0)
	c, err := p.ask("hello")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		p.table.Routes = nil
		p.set()
		p.table.Routes = routes
		p.set()
	}
	if err := again(c, "again"); err != nil {
		t.Fatal(err)
	}
	fe := p.engine.frontends[p.front]
	fe.mu.Lock()
	defer fe.mu.Unlock()
	e := fe.homes.find(hashAddr(c.LocalAddr().(*net.TCPAddr).AddrPort().Addr()))
	if e == nil || e.open != 1 {
		t.Errorf("a client that stayed connected: got %+v; want it at home with 1 connection", e)
	}
}

// TestHomesCountConnections: whatever is switched while connections come and go,
// in the end nobody counts as being there.
func TestHomesCountConnections(t *testing.T) {
	p := newPlace(t, Options{}, lb.TCP, 2)
	p.set()
	p.echo(0)
	p.echo(1)
	var wg sync.WaitGroup
	var done atomic.Bool
	for range 4 {
		wg.Go(func() {
			var last net.Conn
			for !done.Load() {
				c, err := net.Dial("tcp", netip.AddrPortFrom(p.front.Addr, p.front.Port).String())
				if err == nil {
					err = again(c, "hello")
				}
				if err != nil {
					t.Error(err)
					return
				}
				if last != nil {
					last.Close()
				}
				last = c
			}
			last.Close()
		})
	}
	for i := range 201 { // it ends switched on
		r := p.table.Routes[p.front]
		r.AffinityFor = time.Duration(1-i%2) * time.Hour
		p.table = lb.Table{Routes: map[lb.Frontend]lb.Route{p.front: r}, Groups: p.table.Groups}
		p.set()
	}
	done.Store(true)
	wg.Wait()
	eventually(t, "all connections have ended", func() bool { return p.counters().Active == 0 })
	fe := p.engine.frontends[p.front]
	fe.mu.Lock()
	defer fe.mu.Unlock()
	for _, h := range fe.homes.places {
		if h.open != 0 {
			t.Errorf("client %x of member %x: got %d connections open; want none", h.client, h.member, h.open)
		}
	}
	if n := p.engine.clients.used.Load(); n != int64(max(len(fe.homes.places)-firstHomes, 0)) {
		t.Errorf("entries counted: got %d; want those of the table that is left, %d, without the first", n, len(fe.homes.places))
	}
}

// TestHomeKnowsItsConnections: an entry that was another one in between counts only
// the connections that have come since.
func TestHomeKnowsItsConnections(t *testing.T) {
	fe, g, open := sticky(1, 1)
	c := someClients(1)[0]
	first, firstGen := open(1, c)
	set := func(at, elsewhere lb.BackendState) {
		all := backendsOf(1, 1)
		for i := range all {
			all[i].State = elsewhere
			if all[i].Node == first.node {
				all[i].State = at
			}
		}
		g.set(all)
	}
	set(lb.Draining, lb.Active)
	second, secondGen := open(2, c)
	second.leave(3, c, secondGen)
	set(lb.Active, lb.Draining)
	third, thirdGen := open(4, c)
	if third.node != first.node {
		t.Fatalf("got %s; want %s", third.node, first.node)
	}
	first.leave(5, c, firstGen)
	if e := fe.homes.find(hashAddr(c)); e.open != 1 {
		t.Errorf("one connection of before has ended and one of now is open: got %d counted; want 1", e.open)
	}
	third.leave(6, c, thirdGen)
	if e := fe.homes.find(hashAddr(c)); e.open != 0 {
		t.Errorf("all have ended: got %d counted; want 0", e.open)
	}
}

func TestManyConnectionsOfAClient(t *testing.T) {
	h := &homes{budget: &budget{}}
	gens := make([]uint16, math.MaxUint16+10)
	for i := range gens {
		gens[i] = h.settle(1, 1, 5, 10, nil)
	}
	for _, gen := range gens {
		if gen != 0 {
			h.leave(1, 6, gen)
		}
	}
	if e := h.find(1); e.open != 0 || e.seen != 6 {
		t.Errorf("after %d connections: got %+v; want none open", len(gens), e)
	}
}
