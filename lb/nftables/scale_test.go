package nftables

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
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
		tb.Skipf("a network namespace is needed: %v", err)
	}
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
				for id, g := range t.Groups {
					changed := append([]lb.Backend(nil), g.Backends...)
					changed[7].State = lb.BackendState(i % 2 * int(lb.Dead))
					t.Groups = map[lb.GroupID]lb.Group{id: {Backends: changed}}
				}
				if _, err := e.Set(context.Background(), t); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
