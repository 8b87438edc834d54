package proxy

import (
	"fmt"
	"hash/fnv"
	"math"
	"math/big"
	"slices"
	"testing"

	"github.com/eclusa-lb/eclusa/lb"
)

func TestMaglevSizesArePrime(t *testing.T) {
	for _, s := range maglevSizes {
		if !big.NewInt(int64(s.size)).ProbablyPrime(20) || s.size < 100*s.members {
			t.Errorf("size %d for %d members: want a prime with a hundred places for each", s.size, s.members)
		}
	}
}

func viewOf(backends []lb.Backend) *view {
	g := newGroup()
	g.set(backends)
	return g.view.Load()
}

func weightsOf(n, w int) []int { return slices.Repeat([]int{w}, n) }

// TestMaglevSpreadsAndMovesFew: members get places by weight, and when one is lost
// nearly all places of the others stay.
func TestMaglevSpreadsAndMovesFew(t *testing.T) {
	uneven := []int{1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 10}
	for _, c := range []struct {
		weights []int
		moved   float64 // the largest share of places of the others
	}{
		{weightsOf(2, 1), 0}, {weightsOf(3, 1), .02}, {weightsOf(5, 1), .02}, {weightsOf(10, 7), .02},
		{weightsOf(50, 1), .03}, {weightsOf(128, 1), .03}, {weightsOf(300, 1), .03}, {uneven, .04},
	} {
		all := backendsOf(c.weights...)
		for i := range all { // more than 256 members
			all[i].Node = lb.NodeName(fmt.Sprintf("node-%03d", i))
		}
		before := viewOf(all)
		table := before.table()
		total, got := 0, map[int32]int{}
		for _, w := range c.weights {
			total += w
		}
		for _, i := range table {
			got[i]++
		}
		for i, w := range c.weights {
			want := float64(len(table)*w) / float64(total)
			if math.Abs(float64(got[int32(i)])-want) > .02*want+2 {
				t.Errorf("%d members: places of number %d of weight %d: got %d; want about %.0f", len(all), i, w, got[int32(i)], want)
			}
		}
		worst := 0.0
		for _, lost := range []int{0, len(all) / 2, len(all) - 1} {
			less := slices.Clone(all)
			less[lost].State = lb.Dead
			after := viewOf(less)
			moved, kept := 0, 0
			for p, i := range table {
				if int(i) == lost {
					continue
				}
				kept++
				if before.candidates[i].node != after.candidates[after.table()[p]].node {
					moved++
				}
			}
			worst = max(worst, float64(moved)/float64(max(kept, 1)))
		}
		t.Logf("%d members in %d places: %.2f %% of the others' places move", len(all), len(table), 100*worst)
		if worst > c.moved {
			t.Errorf("%d members: %.2f %% of the places of others moved when one was lost; want at most %.0f %%", len(all), 100*worst, 100*c.moved)
		}
	}
}

// TestMaglevIsTheSameEverywhere: another version of this program, on another
// edge, must not decide otherwise.
func TestMaglevIsTheSameEverywhere(t *testing.T) {
	h := fnv.New64a()
	for _, i := range viewOf(backendsOf(1, 1, 3)).table() {
		fmt.Fprint(h, i, " ")
	}
	const want = uint64(0xf01ae038fd2c2afd)
	if got := h.Sum64(); got != want {
		t.Errorf("the table of three members: got sum %#x; want %#x: edges of two versions would send clients to different members", got, want)
	}
}

// TestHashedAvoids: clients of a member that does not answer go elsewhere, each to
// the same one, and those of others stay.
func TestHashedAvoids(t *testing.T) {
	fe, _ := picker(lb.Route{Algorithm: lb.SourceHash}, 1, 1, 1)
	e := New(Options{})
	clients := someClients(300)
	home := map[int]lb.NodeName{}
	for i, c := range clients {
		k := fe.pick(1, c, nil)
		k.active.Add(-1)
		home[i] = k.node
		if k.node == "n0" {
			other := fe.pick(1, c, []*link{k})
			if other == nil || other == k {
				t.Fatalf("client %s after %s was tried: got %v; want another", c, k.node, other)
			}
			other.active.Add(-1)
		}
	}
	e.blame(1, fe.spec.Load(), fe.links[memberKey{"n0", backendsOf(1)[0].Addr}], errNoAnswer)
	for i, c := range clients {
		first, second := fe.pick(2, c, nil).node, fe.pick(2, c, nil).node
		if first != second || first == "n0" || home[i] != "n0" && first != home[i] {
			t.Errorf("client %s of %s while n0 does not answer: got %s and %s", c, home[i], first, second)
		}
	}
}

func BenchmarkMaglev(b *testing.B) {
	for _, n := range []int{3, 16, 100, 1000} {
		b.Run(fmt.Sprint("members-", n), func(b *testing.B) {
			v := viewOf(backendsOf(weightsOf(min(n, 256), 1)...))
			for i := len(v.candidates); i < n; i++ {
				key := memberKey{lb.NodeName(fmt.Sprint("x", i)), v.candidates[0].addr}
				v.candidates = append(v.candidates, candidate{member: &member{memberKey: key, hash: key.hash()}, weight: 1})
			}
			b.ReportAllocs()
			for b.Loop() {
				maglev(v.candidates, maglevSize(n))
			}
		})
	}
}
