package proxy

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

func manyBackends(n int, name string) []lb.Backend {
	all := make([]lb.Backend, n)
	for i := range all {
		all[i] = lb.Backend{Node: lb.NodeName(fmt.Sprintf("%s-%05d", name, i)), Addr: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), Weight: 1}
	}
	return all
}

// hashedTable returns a table of load balancers by SourceHash, each with a group
// of its own.
func hashedTable(groups ...[]lb.Backend) lb.Table {
	t := lb.Table{Routes: map[lb.Frontend]lb.Route{}, Groups: map[lb.GroupID]lb.Group{}}
	for i, backends := range groups {
		id := lb.GroupID{Cluster: "c", Name: fmt.Sprint("uid", i), Family: lb.IPv4}
		t.Groups[id] = lb.Group{Backends: backends}
		t.Routes[lb.Frontend{Addr: netip.MustParseAddr("127.99.0.1"), Port: uint16(20_000 + i), Protocol: lb.TCP}] = lb.Route{
			Owner: lb.Owner{Cluster: "c", UID: lb.UID(id.Name)}, Group: id, TargetPort: 1, Algorithm: lb.SourceHash,
		}
	}
	return t
}

func shutDownAtOnce(t testing.TB, e *Engine) {
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := e.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	})
}

func mustSet(t testing.TB, e *Engine, table lb.Table) {
	t.Helper()
	if refused, err := e.Set(context.Background(), table); err != nil || len(refused) > 0 {
		t.Fatalf("Set: got %v, %v", refused, err)
	}
}

func (e *Engine) viewNumber(i int) *view {
	return e.groups[lb.GroupID{Cluster: "c", Name: fmt.Sprint("uid", i), Family: lb.IPv4}].view.Load()
}

// TestTablesComeAfterViews: a member that is lost gets no one any more while the
// table without it is not made, and the clients of the others stay.
func TestTablesComeAfterViews(t *testing.T) {
	e := New(Options{Loops: 1})
	shutDownAtOnce(t, e)
	all := backendsOf(1, 1, 1)
	mustSet(t, e, hashedTable(all))
	if p := e.viewNumber(0).placed.Load(); p == nil || p.at != nil {
		t.Fatalf("the first table: got %v; want Set to wait for it", p)
	}
	var fe *frontend
	for _, fe = range e.frontends {
	}
	home := map[netip.Addr]lb.NodeName{}
	pick := func(c netip.Addr) lb.NodeName {
		k := fe.pick(1, c, nil)
		k.active.Add(-1)
		return k.node
	}
	clients := someClients(1000)
	for _, c := range clients {
		home[c] = pick(c)
	}

	e.tables.mu.Lock()
	e.tables.working = true // as if it were at another table
	e.tables.mu.Unlock()
	less := backendsOf(1, 1, 1)
	less[1].State = lb.Dead
	mustSet(t, e, hashedTable(less))
	for _, c := range clients {
		if got := pick(c); got == "n1" || home[c] != "n1" && got != home[c] {
			t.Fatalf("client %s of %s, n1 is dead: got %s", c, home[c], got)
		}
	}
	e.tables.work()
	v := e.viewNumber(0)
	if p := v.placed.Load(); p == nil || p.at != nil || p.key != v.tableOf() {
		t.Errorf("after the table was made: got %v; want the view's own", p)
	}

	round := hashedTable(less)
	for id, r := range round.Routes {
		r.Algorithm = lb.RoundRobin
		round.Routes[id] = r
	}
	mustSet(t, e, round)
	if p := e.viewNumber(0).placed.Load(); p != nil || len(e.tables.wanted) != 0 {
		t.Errorf("without a route that goes by it: got %v and %d tables; want none", p, len(e.tables.wanted))
	}
}

func TestEqualGroupsShareATable(t *testing.T) {
	e := New(Options{Loops: 1})
	shutDownAtOnce(t, e)
	e.tables.limit = 2 * maglevSize(3)
	uneven := backendsOf(1, 2, 1)
	large := manyBackends(17, "node")
	mustSet(t, e, hashedTable(large, backendsOf(1, 1, 1), backendsOf(1, 1, 1), uneven))
	placed := make([]*placement, 4)
	for i := range placed {
		placed[i] = e.viewNumber(i).placed.Load()
	}
	if placed[1] == nil || placed[2] == nil || placed[1].table != placed[2].table {
		t.Error("two groups of the same members have no table in common")
	}
	if placed[3] == nil || placed[3].table == placed[1].table {
		t.Error("a group with other weights has no table of its own")
	}
	if placed[0] != nil {
		t.Error("the group with the largest table has one beyond the limit")
	}
	first := placed[1].table
	mustSet(t, e, hashedTable(large, backendsOf(1, 1, 1), backendsOf(1, 1, 1)))
	if p := e.viewNumber(1).placed.Load(); p.table != first || len(e.tables.wanted) != 1 {
		t.Errorf("after a Set that changes nothing for it: got another table, or %d in all; want the same one alone", len(e.tables.wanted))
	}
	none := backendsOf(1, 1, 1)
	for i := range none {
		none[i].State = lb.Dead
	}
	mustSet(t, e, hashedTable(large, none, backendsOf(1, 1, 1)))
	if p := e.viewNumber(1).placed.Load(); p != nil {
		t.Error("a group that nobody serves keeps a table, beyond those that count")
	}
}

// inForce returns how long it takes until all groups have other views.
func (e *Engine) inForce() func() time.Duration {
	start := time.Now()
	before := make(map[*group]*view)
	for _, g := range e.groups {
		before[g] = g.view.Load()
	}
	took := make(chan time.Duration, 1)
	go func() {
		for g, v := range before {
			for g.view.Load() == v {
				time.Sleep(100 * time.Microsecond) // poll
			}
		}
		took <- time.Since(start)
	}()
	return func() time.Duration { return <-took }
}

// BenchmarkSetHashed: one node dies that many load balancers have. The Set may wait
// for tables; what counts is when nobody is sent to that node any more.
func BenchmarkSetHashed(b *testing.B) {
	for _, c := range []struct {
		balancers, nodes, heavy int
		shared                  bool
	}{{100, 500, 1, true}, {100, 500, 1, false}, {100, 500, lb.MaxWeight, false}, {100, 1001, 1, false}, {100, 1001, lb.MaxWeight, false}} {
		b.Run(fmt.Sprintf("%d-of-%d-heavy-%d-shared-%v", c.balancers, c.nodes, c.heavy, c.shared), func(b *testing.B) {
			e := New(Options{Loops: 1})
			shutDownAtOnce(b, e)
			table := func(state lb.BackendState) lb.Table {
				groups := make([][]lb.Backend, c.balancers)
				for i := range groups {
					name := "node"
					if !c.shared {
						name = fmt.Sprint("node", i)
					}
					groups[i] = manyBackends(c.nodes, name)
					groups[i][0].Weight, groups[i][1].State = c.heavy, state
				}
				return hashedTable(groups...)
			}
			mustSet(b, e, table(lb.Active))
			tables := []lb.Table{table(lb.Dead), table(lb.Active)}
			total, n := time.Duration(0), 0
			for b.Loop() {
				inForce := e.inForce()
				mustSet(b, e, tables[n%2])
				total += inForce()
				n++
			}
			b.ReportMetric(float64(total.Milliseconds())/float64(n), "ms-until-in-force/op")
		})
	}
}

// TestViewsComeWithTheirIndex: with affinity no pick makes the index of members, while
// others wait for it.
func TestViewsComeWithTheirIndex(t *testing.T) {
	id := lb.GroupID{Name: "pool"}
	c := &change{e: New(Options{}), changed: map[*group]bool{}}
	for i, step := range []struct {
		affinity time.Duration
		want     bool
	}{
		{0, false},
		{time.Hour, true},
		{time.Hour, true},
		{0, true}, // its route goes by it until the new one is in force
		{0, false},
	} {
		needs := needsOf(map[lb.Frontend]lb.Route{{Port: 80}: {Group: id, AffinityFor: step.affinity}})
		c.setGroups(map[lb.GroupID]lb.Group{id: {Backends: backendsOf(weightsOf(i+1, 1)...)}}, needs)
		if got := c.e.groups[id].view.Load().index != nil; got != step.want {
			t.Errorf("step %d, affinity %s: got an index %v; want %v", i, step.affinity, got, step.want)
		}
	}
}
