package provider

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// guarded has an edge that guards removals and holds ten load balancers and ten
// nodes.
func guarded(t *testing.T) *rig {
	r := newRig(t, "a")
	r.edges["a"].GuardRemovals()
	r.set("a", config(1, 10, 10))
	r.settle(0)
	return r
}

// stillThere makes the API server hold everything.
func (r *rig) stillThere() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range 10 {
		r.list[loadBalancerKey+string(uid(i))] = true
		r.list[fmt.Sprintf("%snode-%03d", nodeKey, i)] = true
	}
}

func TestGuardConfirms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := guarded(t)
		r.set("a", config(2, 1, 10))
		st := r.settle(0)
		r.holds("a", config(2, 1, 10))
		if len(st.RemovalHeld) != 0 || st.Problem != "" {
			t.Errorf("state is %+v, want nothing held", st)
		}
		writes := r.edges["a"].Writes()
		last := writes[len(writes)-1]
		if len(last.ConfirmedRemovals) != 9 || !slices.IsSorted(last.ConfirmedRemovals) || last.ConfirmedRemovals[0] != "loadBalancers/uid-001" {
			t.Errorf("confirmed %q, want the nine that are gone, sorted", last.ConfirmedRemovals)
		}
		if r.lists != 1 || len(r.happened("RemovalHeld")) != 1 || len(r.happened("RemovalReleased")) != 1 {
			t.Errorf("asked the API server %d times, events %q; want once, held and released", r.lists, r.events)
		}
	})
}

// TestGuardGlitch is an informer that suddenly shows nothing.
func TestGuardGlitch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := guarded(t)
		r.stillThere()
		r.set("a", lb.Config{Revision: 2})
		st := r.settle(time.Minute)
		want := config(2, 10, 10)
		r.holds("a", want)
		if len(st.RemovalHeld) != 20 || !slices.IsSorted(st.RemovalHeld) {
			t.Errorf("%d removals are held: %q; want all 20, sorted", len(st.RemovalHeld), st.RemovalHeld)
		}
		if r.lists < 6 || r.lists > 8 {
			t.Errorf("held removals were looked up %d times in a minute, want every ten seconds", r.lists)
		}
		// Additions do not wait.
		more := lb.Config{Revision: 3, LoadBalancers: map[lb.UID]lb.LoadBalancer{"new": {Name: "default/new", Pool: "all",
			Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.1")}, Listeners: []lb.Listener{{Protocol: lb.TCP, Port: 1, TargetPort: 2}}}}}
		r.set("a", more)
		r.settle(0)
		want = config(3, 10, 10)
		want.LoadBalancers["new"] = more.LoadBalancers["new"]
		r.holds("a", want)
		// The informer recovers.
		r.set("a", config(4, 10, 10))
		st = r.settle(0)
		r.holds("a", config(4, 10, 10))
		if len(st.RemovalHeld) != 0 {
			t.Errorf("still held: %q, want nothing", st.RemovalHeld)
		}
	})
}

func TestGuardConfirmsSome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := guarded(t)
		r.stillThere()
		for i := range 6 {
			r.with(func() { delete(r.list, loadBalancerKey+string(uid(i+4))) })
		}
		r.set("a", config(2, 0, 10))
		st := r.settle(time.Minute)
		r.holds("a", config(2, 4, 10))
		want := []string{"loadBalancers/uid-000", "loadBalancers/uid-001", "loadBalancers/uid-002", "loadBalancers/uid-003"}
		if !slices.Equal(st.RemovalHeld, want) {
			t.Errorf("held are %q, want %q", st.RemovalHeld, want)
		}
	})
}

func TestGuardListFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := guarded(t)
		r.with(func() { r.listErr = errors.New("API server is down") })
		r.set("a", config(2, 1, 10))
		if st := r.settle(time.Minute); len(st.RemovalHeld) != 9 {
			t.Errorf("%d removals are held, want 9", len(st.RemovalHeld))
		}
		r.holds("a", config(2, 10, 10))
		r.with(func() { r.listErr = nil })
		if st := r.settle(confirmEvery); len(st.RemovalHeld) != 0 {
			t.Errorf("%d removals are held, want none", len(st.RemovalHeld))
		}
		r.holds("a", config(2, 1, 10))
	})
}

func TestGuardReleasedByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := guarded(t)
		r.stillThere()
		r.set("a", config(2, 1, 1))
		if st := r.settle(0); len(st.RemovalHeld) != 18 {
			t.Errorf("%d removals are held, want 18", len(st.RemovalHeld))
		}
		lists := r.lists
		r.set("a", config(2, 1, 1), released("true"))
		if st := r.settle(0); len(st.RemovalHeld) != 18 {
			t.Errorf("%d removals are held, want 18: the annotation does not hold their token", len(st.RemovalHeld))
		}
		token := r.settle(0).RemovalToken
		r.set("a", config(2, 1, 1), released(token))
		if st := r.settle(0); len(st.RemovalHeld) != 0 || st.RemovalToken != "" {
			t.Errorf("still held after the release: %q, token %q", st.RemovalHeld, st.RemovalToken)
		}
		r.holds("a", config(2, 1, 1))
		if r.lists != lists {
			t.Error("the API server was asked about removals that were released by hand")
		}
		// An annotation that was left in place is of no use for what comes later, even
		// if it is the very same.
		r.edges["a"].GuardRemovals()
		r.set("a", config(3, 10, 10), released(token))
		r.settle(time.Second)
		r.set("a", config(4, 1, 1), released(token))
		if st := r.settle(0); len(st.RemovalHeld) != 18 || st.RemovalToken == token {
			t.Errorf("%d removals are held with token %q, want 18 with another than %q", len(st.RemovalHeld), st.RemovalToken, token)
		}
	})
}

func TestGuardLetsDrainedEdgesGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := guarded(t)
		r.stillThere()
		r.set("a", config(2, 0, 10), drained)
		if st := r.settle(0); len(st.RemovalHeld) != 0 {
			t.Errorf("held are %q, want none on an edge that is drained", st.RemovalHeld)
		}
		r.holds("a", config(2, 0, 10))
	})
}

// TestLastGoodStays takes load balancers away that are to be kept, and one that
// the edge cannot serve any more as it is wanted.
func TestLastGoodStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := guarded(t)
		r.set("a", config(2, 9, 10), keeping(uid(9), "unknown"))
		r.settle(0)
		r.holds("a", config(2, 10, 10))
		next := config(3, 10, 10)
		l := next.LoadBalancers[uid(3)]
		l.MaxConnections = 9
		next.LoadBalancers[uid(3)] = l
		r.edges["a"].SetInfo(lb.Info{Name: "a", Schema: lb.Schema, Capabilities: []lb.Capability{lb.CapIPv4, lb.CapRoundRobin, lb.CapTCP}})
		r.edges["a"].Down(errors.New("restarting"))
		r.settle(time.Second)
		r.edges["a"].Down(nil)
		r.set("a", next)
		st := r.settle(soon)
		r.holds("a", config(3, 10, 10))
		if _, ok := st.Withheld[uid(3)]; !ok || len(st.Withheld) != 1 {
			t.Errorf("withheld are %v, want %s", st.Withheld, uid(3))
		}
	})
}

func TestGuardLaterRemovalsToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := guarded(t)
		r.stillThere()
		r.set("a", config(2, 4, 10)) // six are held
		r.settle(0)
		for i := range 10 {
			r.with(func() { delete(r.list, loadBalancerKey+string(uid(i))) })
		}
		r.set("a", config(3, 1, 10)) // three more, alone few enough
		st := r.settle(2 * confirmEvery)
		r.holds("a", config(3, 1, 10))
		if len(st.RemovalHeld) != 0 {
			t.Errorf("still held: %q", st.RemovalHeld)
		}
	})
}

func TestGuardSparesWithheld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := guarded(t)
		r.stillThere()
		r.edges["a"].Down(errors.New("restarting"))
		r.settle(time.Second)
		r.edges["a"].SetInfo(lb.Info{Name: "a", Schema: lb.Schema, Capabilities: []lb.Capability{lb.CapIPv4, lb.CapRoundRobin}})
		r.edges["a"].Down(nil)
		st := r.settle(soon)
		want := config(1, 0, 10)
		r.holds("a", want)
		if len(st.Withheld) != 10 || len(st.RemovalHeld) != 0 {
			t.Errorf("%d withheld and %d held, want 10 and none", len(st.Withheld), len(st.RemovalHeld))
		}
	})
}

func TestGuardNeverSatisfied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := guarded(t)
		errs := make([]error, 100)
		for i := range errs {
			errs[i] = &lb.RemovalHeldError{Keys: []string{"nodes/node-000"}, Largest: 10}
		}
		r.edges["a"].FailNext(lbtest.CallSet, errs[:99]...)
		r.set("a", config(2, 10, 10))
		st := r.settle(0)
		if !st.Connected || !strings.Contains(st.Problem, "removal held") {
			t.Errorf("state is %+v; want the refusal as a problem", st)
		}
		if n := r.edges["a"].Calls(lbtest.CallSet); n > 6 {
			t.Errorf("tried %d times at once", n)
		}
	})
}

func TestKeep(t *testing.T) {
	member := lb.Member{}
	holds := lb.Config{
		Nodes: map[lb.NodeName]lb.Node{"n1": {Zone: "old"}, "n2": {}, "gone": {}},
		Pools: map[lb.PoolName]lb.Pool{"p": {"n1": member, "n2": member}, "q": {"n1": member, "gone": member}, "r": {"n2": member}},
		LoadBalancers: map[lb.UID]lb.LoadBalancer{
			"l1": {Name: "a/l1", Pool: "q", Members: map[lb.NodeName]lb.Member{"n1": member, "gone": member}},
			"l2": {Name: "a/l2", Pool: "p"},
		},
	}
	want := lb.Config{
		Revision: 9,
		Nodes:    map[lb.NodeName]lb.Node{"n2": {Zone: "new"}},
		Pools:    map[lb.PoolName]lb.Pool{"p": {"n2": member}},
	}
	got := keep(want, holds, []string{"loadBalancers/l1", "nodes/n1", "nodes/unknown", "loadBalancers/unknown", "rubbish"})
	expect := lb.Config{
		Revision:      9,
		Nodes:         map[lb.NodeName]lb.Node{"n1": {Zone: "old"}, "n2": {Zone: "new"}},
		Pools:         map[lb.PoolName]lb.Pool{"p": {"n1": member, "n2": member}, "q": {"n1": member}},
		LoadBalancers: map[lb.UID]lb.LoadBalancer{"l1": {Name: "a/l1", Pool: "q", Members: map[lb.NodeName]lb.Member{"n1": member}}},
	}
	if !equal(got, expect) {
		t.Errorf("kept %+v, want %+v", got, expect)
	}
	if len(want.Nodes) != 1 || len(want.Pools["p"]) != 1 || want.LoadBalancers != nil {
		t.Errorf("what is wanted was changed to %+v", want)
	}
	if len(holds.Pools["q"]) != 2 || len(holds.LoadBalancers["l1"].Members) != 2 {
		t.Errorf("what the edge holds was changed to %+v", holds)
	}
}
