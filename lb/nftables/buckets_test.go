package nftables

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/eclusa-lb/eclusa/lb"
)

func backends(n int, weight func(i int) int) []lb.Backend {
	all := make([]lb.Backend, n)
	for i := range all {
		all[i] = lb.Backend{Node: lb.NodeName(fmt.Sprintf("n%d", i)), Addr: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), Weight: weight(i)}
	}
	return all
}

func one(int) int { return 1 }

// TestFillShares checks that shares are as the weights say, within what a whole
// bucket makes.
func TestFillShares(t *testing.T) {
	for _, n := range []int{1, 2, 3, 7, 50, 500} {
		for name, weight := range map[string]func(int) int{"equal": one, "uneven": func(i int) int { return 1 + i%5 }} {
			all := backends(n, weight)
			size, total := bucketCount(all), 0
			for _, b := range all {
				total += b.Weight
			}
			got := make(map[netip.Addr]int)
			for _, a := range fill(all, size) {
				got[a]++
			}
			for _, b := range all {
				want := float64(size) * float64(b.Weight) / float64(total)
				if diff := float64(got[b.Addr]) - want; diff > 5 || diff < -5 || got[b.Addr] == 0 {
					t.Errorf("%d members of %s weights: %s has %d of %d buckets; want about %.1f", n, name, b.Node, got[b.Addr], size, want)
				}
			}
		}
	}
}

// TestFillKeeps checks that a change of health concerns only the buckets of the
// member that it is about, in whatever order members fail and come back.
func TestFillKeeps(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	all := backends(20, func(i int) int { return 1 + i%3 })
	size := bucketCount(all)
	before := fill(all, size)
	for step := range 200 {
		i := rnd.IntN(len(all))
		states := []lb.BackendState{lb.Active, lb.Draining, lb.Dead}
		was := all[i].State
		all[i].State = states[rnd.IntN(len(states))]
		after := fill(all, size)
		for b := range size {
			if before[b] == after[b] {
				continue
			}
			if before[b] != all[i].Addr && after[b] != all[i].Addr {
				t.Fatalf("step %d, %s went from %s to %s: bucket %d went from %s to %s; want only its own buckets changed", step, all[i].Node, was, all[i].State, b, before[b], after[b])
			}
		}
		before = after
	}
}

func TestFillNobody(t *testing.T) {
	all := backends(3, one)
	for i := range all {
		all[i].State = lb.Dead
	}
	for b, a := range fill(all, bucketCount(all)) {
		if a.IsValid() {
			t.Errorf("bucket %d with all members dead: got %s; want nobody", b, a)
		}
	}
	for b, a := range fill(nil, bucketCount(nil)) {
		if a.IsValid() {
			t.Errorf("bucket %d without members: got %s; want nobody", b, a)
		}
	}
}

func BenchmarkFill(b *testing.B) {
	all := backends(500, one)
	size := bucketCount(all)
	all[7].State = lb.Dead
	for b.Loop() {
		fill(all, size)
	}
}
