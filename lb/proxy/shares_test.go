package proxy

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// crowd is an engine with frontends that remember clients.
type crowd struct {
	t   *testing.T
	e   *Engine
	now int64
}

func newCrowd(t *testing.T, clients int) *crowd {
	return &crowd{t, New(Options{AffinityClients: clients}), 1}
}

func (c *crowd) frontend(cluster lb.Cluster, uid lb.UID, affinity time.Duration) *frontend {
	fe, _ := picker(lb.Route{AffinityFor: affinity}, 1, 1)
	fe.id.Port += uint16(len(c.e.frontends))
	fe.owner = c.e.owners[lb.Owner{Cluster: cluster, UID: uid}]
	if fe.owner == nil {
		fe.owner = &owner{id: lb.Owner{Cluster: cluster, UID: uid}}
		c.e.owners[fe.owner.id] = fe.owner
	}
	fe.remember(&c.e.clients, true)
	c.e.frontends[fe.id] = fe
	return fe
}

// visit has clients come for a moment, and returns how many of them are remembered.
func (c *crowd) visit(fe *frontend, clients int) (remembered int) {
	all := someClients(clients)
	for _, client := range all {
		k, gen := fe.pick(c.now, client, nil), new(uint16)
		k.settle(c.now, client, gen)
		k.leave(c.now, client, gen)
		k.active.Add(-1)
	}
	for _, client := range all {
		if fe.homes.find(hashAddr(client)) != nil {
			remembered++
		}
	}
	return remembered
}

func (c *crowd) set() {
	c.t.Helper()
	(&change{e: c.e, now: c.now}).shareClients()
	total := int64(0)
	for _, fe := range c.e.frontends {
		total += fe.homes.size()
	}
	if used := c.e.clients.used.Load(); used != total || used > c.e.clients.limit {
		c.t.Errorf("memory counted: got %d; want %d, and at most %d", used, total, c.e.clients.limit)
	}
}

// TestIdleTablesGiveMemoryBack: those whose clients have gone do not keep it.
func TestIdleTablesGiveMemoryBack(t *testing.T) {
	c := newCrowd(t, 1<<14)
	for i := range 4 {
		c.visit(c.frontend("a", lb.UID(fmt.Sprint(i)), time.Second), 1<<14)
	}
	other := c.frontend("b", "u", time.Hour)
	c.now = 3600 * second
	if n := c.visit(other, 1000); n == 1000 {
		t.Fatal("there is room for all; the test does not test anything")
	}
	c.set()
	if n := c.visit(other, 1000); n != 1000 {
		t.Errorf("after all clients of others have gone: got %d of 1000 remembered; want all", n)
	}
}

// TestOwnersHaveTheirShare: however many clients others have, each cluster has its
// share of the memory after a while, and others do not take it back.
func TestOwnersHaveTheirShare(t *testing.T) {
	const limit = 1 << 14
	c := newCrowd(t, limit)
	var greedy []*frontend
	for i := range 4 {
		greedy = append(greedy, c.frontend("a", lb.UID(fmt.Sprint(i)), time.Hour))
	}
	for _, fe := range greedy {
		c.visit(fe, limit)
	}
	modest := c.frontend("b", "u", time.Hour)
	for range 10 {
		c.now += second
		c.visit(modest, 3000)
		for _, fe := range greedy {
			c.visit(fe, limit)
		}
		c.set()
	}
	if n := c.visit(modest, 3000); n < 3000*99/100 {
		t.Errorf("3000 clients of one who may have %d: got %d remembered; want nearly all", limit/2, n)
	}
	rest := int64(0)
	for _, fe := range greedy {
		rest += fe.homes.size()
	}
	if rest < limit/4 {
		t.Errorf("the others: got %d places left; want no more taken from them than is needed", rest)
	}
	before := modest.homes.size()
	for range 3 {
		c.set()
	}
	if modest.homes.size() != before {
		t.Errorf("who has less than the share: got %d places, after %d; want it left alone", modest.homes.size(), before)
	}
}

// TestNobodySettlesUnanswered: datagrams from invented sources take no memory, and
// clients whose member answers are at home there.
func TestNobodySettlesUnanswered(t *testing.T) {
	p := newPlace(t, Options{}, lb.UDP, 1)
	r := p.table.Routes[p.front]
	r.AffinityFor = time.Hour
	p.table.Routes = map[lb.Frontend]lb.Route{p.front: r}
	p.set()
	silent, err := net.ListenPacket("udp", netip.AddrPortFrom(p.backends()[0].Addr, 31080).String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.dial()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write([]byte("x"))
	from := make([]byte, 1)
	_ = silent.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, _, err := silent.ReadFrom(from); err != nil {
		t.Fatal(err)
	}
	open := func() int {
		fe := p.engine.frontends[p.front]
		fe.mu.Lock()
		defer fe.mu.Unlock()
		if e := fe.homes.find(hashAddr(c.LocalAddr().(*net.UDPAddr).AddrPort().Addr())); e != nil {
			return int(e.open)
		}
		return -1
	}
	p.set()
	if n := open(); n != -1 {
		t.Errorf("a client whose member has said nothing: got an entry with %d sessions; want none", n)
	}
	silent.Close()
	p.echo(0)
	eventually(t, "the client is answered", func() bool { return again(c, "hello") == nil })
	if n := open(); n != 1 {
		t.Errorf("a client whose member has answered: got %d sessions; want 1", n)
	}
}
