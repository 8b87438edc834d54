package proxy

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestTimersExpireInOrder compares the heap with a sorted list.
func TestTimersExpireInOrder(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	var h timers
	all := make([]*conn, 300)
	due := map[*conn]int64{}
	for i := range all {
		all[i] = &conn{}
	}
	now := int64(0)
	for range 20000 {
		c := all[rnd.IntN(len(all))]
		switch rnd.IntN(4) {
		case 0, 1:
			due[c] = now + rnd.Int64N(1000)
			h.set(&c.timer, due[c], c)
		case 2:
			delete(due, c)
			h.stop(&c.timer)
		case 3:
			now += rnd.Int64N(20)
			var want []int64
			for c, at := range due {
				if at <= now {
					want = append(want, at)
					delete(due, c)
				}
			}
			slices.Sort(want)
			var got []int64
			for x := h.pop(now); x != nil; x = h.pop(now) {
				got = append(got, x.(*conn).timer.at)
			}
			if !slices.Equal(got, want) {
				t.Fatalf("expired at %d: got %v; want %v", now, got, want)
			}
		}
		next := never
		for _, at := range due {
			next = min(next, at)
		}
		if h.next() != next {
			t.Fatalf("next: got %d; want %d", h.next(), next)
		}
	}
}
