package nftables

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// large is a table of many load balancers before one pool of nodes.
func large(loadBalancers, nodes int) lb.Table {
	t := lb.Table{Routes: make(map[lb.Frontend]lb.Route, loadBalancers), Groups: make(map[lb.GroupID]lb.Group)}
	group := lb.GroupID{Cluster: "c", Name: "nodes", Family: lb.IPv4}
	t.Groups[group] = lb.Group{Backends: backends(nodes, one)}
	for i := range loadBalancers {
		f := lb.Frontend{Addr: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), Port: 80, Protocol: lb.TCP}
		t.Routes[f] = lb.Route{
			Owner: lb.Owner{Cluster: "c", UID: lb.UID(fmt.Sprint(i))}, Name: fmt.Sprintf("default/s%d", i), Group: group,
			TargetPort: uint16(30000 + i%2768), Algorithm: lb.RoundRobin, IdleTimeout: time.Hour, DrainTimeout: time.Minute, ResetDead: true,
		}
	}
	return t
}

// inNamespace moves the calling goroutine's thread into a network namespace of its
// own, for good: the thread ends with the goroutine.
func inNamespace(tb testing.TB) {
	tb.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		lbtest.Lacking(tb, "a network namespace is needed: %v", err)
	}
}

// TestTenThousand holds the engine to its targets with 10,000 load balancers and 500
// nodes: a full load in 2 s, a member's change in 5 ms, one transaction.
func TestTenThousand(t *testing.T) {
	inNamespaces(t, func(lbtest.Network) {
		const loadLimit, changeLimit = 10 * time.Second * raceFactor, 50 * time.Millisecond * raceFactor // the order of magnitude: machines differ
		table := large(10_000, 500)
		e := New(Options{})
		t.Cleanup(func() {
			_ = e.Shutdown(context.Background())
			if _, err := Cleanup(e.log); err != nil {
				t.Error(err)
			}
		})
		start := time.Now()
		if refused, err := e.Set(t.Context(), table); err != nil || len(refused) > 0 {
			t.Fatalf("Set: got %d refused, error %v; want neither", len(refused), err)
		}
		load := time.Since(start)
		var changes []time.Duration
		for i := range 50 {
			was, before := e.generation, table
			table = withMember(before, 7, lb.BackendState(i%2)*lb.Dead)
			start := time.Now()
			if _, err := e.Set(t.Context(), table); err != nil {
				t.Fatal(err)
			}
			changes = append(changes, time.Since(start))
			if i > 0 && e.generation != was+1 {
				t.Errorf("generation after a member's change: got %d; want one more than %d", e.generation, was)
			}
		}
		slices.Sort(changes)
		median := changes[len(changes)/2]
		t.Logf("10,000 load balancers, 500 nodes: loaded in %s, a member's change in %s (median; worst %s)", load, median, changes[len(changes)-1])
		if load > loadLimit {
			t.Errorf("full load: took %s; want %s at most", load, loadLimit)
		}
		if median > changeLimit {
			t.Errorf("a member's change: took %s; want %s at most", median, changeLimit)
		}
	})
}

// withMember returns the table with another state of one member of each group.
func withMember(t lb.Table, member int, s lb.BackendState) lb.Table {
	groups := make(map[lb.GroupID]lb.Group, len(t.Groups))
	for id, g := range t.Groups {
		g.Backends = slices.Clone(g.Backends)
		g.Backends[member].State = s
		groups[id] = g
	}
	return lb.Table{Routes: t.Routes, Groups: groups}
}

// BenchmarkSet measures with how many load balancers a full load and a member's
// change take how long.
func BenchmarkSet(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		b.Run(fmt.Sprintf("load-%d", n), func(b *testing.B) {
			inNamespace(b)
			t := large(n, 500)
			for b.Loop() {
				e := New(Options{})
				if _, err := e.Set(context.Background(), t); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				_ = e.Shutdown(context.Background())
				if _, err := Cleanup(e.log); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
		b.Run(fmt.Sprintf("member-%d", n), func(b *testing.B) {
			inNamespace(b)
			t := large(n, 500)
			e := New(Options{})
			defer func() {
				_ = e.Shutdown(context.Background())
				_, _ = Cleanup(e.log)
			}()
			if _, err := e.Set(context.Background(), t); err != nil {
				b.Fatal(err)
			}
			i := 0
			for b.Loop() {
				i++
				t = withMember(t, 7, lb.BackendState(i%2)*lb.Dead)
				if _, err := e.Set(context.Background(), t); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
