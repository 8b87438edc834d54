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

func tableFor(v *view) []int32 { return maglev(v.candidates, maglevSize(v.size)) }

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
		table := tableFor(before)
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
			then := tableFor(after)
			moved, kept := 0, 0
			for p, i := range table {
				if int(i) == lost {
					continue
				}
				kept++
				if before.candidates[i].node != after.candidates[then[p]].node {
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
	for _, i := range tableFor(viewOf(backendsOf(1, 1, 3))) {
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
	fe, g := picker(lb.Route{Algorithm: lb.SourceHash}, 1, 1, 1)
	e := New(Options{})
	missing, _ := e.tables.want([]hashedGroup{{view: g.view.Load()}})
	await(t.Context(), missing)
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

// maglevInRounds takes the turns one round after the other.
func maglevInRounds(candidates []candidate, size int) []int32 {
	heaviest := 0
	for _, c := range candidates {
		heaviest = max(heaviest, c.weight)
	}
	var turns []int32
	credit := make([]int, len(candidates))
	for len(turns) < size {
		for i, c := range candidates {
			if credit[i] += c.weight; credit[i] >= heaviest {
				credit[i] -= heaviest
				turns = append(turns, int32(i))
			}
		}
	}
	return turns[:size]
}

func TestMaglevTurns(t *testing.T) {
	heavy := append([]int{lb.MaxWeight}, weightsOf(200, 1)...)
	for _, weights := range [][]int{
		{1}, {7}, {1, 1, 1}, {1, 2}, {3, 7, 5, 7}, heavy, {1, lb.MaxWeight, lb.MaxWeight - 1, 333, 333, 2},
	} {
		candidates := viewOf(backendsOf(weights...)).candidates
		for _, size := range []int{1, 2, 97, 4_093} {
			if got, want := maglevTurns(candidates, size), maglevInRounds(candidates, size); !slices.Equal(got, want) {
				t.Errorf("weights %v, %d places: got turns %v; want %v", weights, size, got, want)
			}
		}
	}
}

func BenchmarkMaglevOneHeavy(b *testing.B) {
	for _, n := range []int{500, 1001, 10_000} {
		b.Run(fmt.Sprint("members-", n), func(b *testing.B) {
			v := viewOf(manyBackends(n, "node"))
			v.candidates[0].weight = lb.MaxWeight
			for b.Loop() {
				maglev(v.candidates, maglevSize(n))
			}
		})
	}
}
