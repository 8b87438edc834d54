package proxy

import (
	"math/rand/v2"
	"net"
	"net/netip"
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
func sticky(weights ...int) (fe *frontend, g *group, open func(now int64, c netip.Addr) (*link, *uint8)) {
	fe, g = picker(lb.Route{AffinityFor: time.Minute}, weights...)
	fe.remember(&budget{limit: 1 << 20}, true)
	return fe, g, func(now int64, c netip.Addr) (*link, *uint8) {
		k := fe.pick(now, c, nil)
		gen := new(uint8)
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
	var last *uint8
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
	kept.settle(1, keeper, new(uint8)) // it stays connected
	for i, c := range clients[1:] {
		now, gen := int64(i+2)*second, new(uint8)
		k := fe.pick(now, c, nil)
		k.settle(now, c, gen)
		k.leave(now, c, gen)
	}
	if n := b.used.Load(); n != limit || int64(len(fe.homes.places)) != n {
		t.Errorf("entries: got %d counted and %d in the table; want the limit, %d", n, len(fe.homes.places), limit)
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
	h := &homes{gen: 1, budget: &budget{limit: 1 << 20}}
	want := map[uint64]uint64{}
	rnd := rand.New(rand.NewPCG(1, 3))
	for range 50_000 {
		client, member := mix(uint64(rnd.IntN(30_000))+1), 1+rnd.Uint64N(5)
		h.settle(client, member, 5, 10, func(uint64) bool { return false })
		h.leave(client, member, 5)
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
	w.clients(e.remembered()[fe], 0)
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
	if n := p.engine.clients.used.Load(); n != int64(len(fe.homes.places)) {
		t.Errorf("entries counted: got %d; want the %d of the table that is left", n, len(fe.homes.places))
	}
}
