package edge

import (
	"slices"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// The removal guard holds a write that removes more than half of the largest
// set of the last guardWindow, and at least guardLeast entries.
const (
	guardWindow = 10 * time.Minute
	guardLeast  = 4
)

// guard remembers how large a cluster's sets were. The two kinds are counted
// apart, so that many load balancers do not hide the loss of all nodes.
type guard struct {
	loadBalancers, nodes sizes
}

// sizes are the sizes of a set over time, oldest first, each larger than those
// after it: the first is the largest of the window.
type sizes []sizeAt

type sizeAt struct {
	size  int
	until time.Time // when the set was last known to have this size
}

// note records the size of the set at a time.
func (s *sizes) note(size int, now time.Time) {
	kept := (*s)[:0]
	for _, e := range *s {
		if e.size > size && now.Sub(e.until) < guardWindow {
			kept = append(kept, e)
		}
	}
	*s = append(kept, sizeAt{size: size, until: now})
}

// largest returns the largest size within the window. The set has had its last
// noted size until now.
func (s *sizes) largest(now time.Time) int {
	if len(*s) == 0 {
		return 0
	}
	s.note((*s)[len(*s)-1].size, now)
	return (*s)[0].size
}

// check returns a RemovalHeldError if the write may not pass without having
// confirmed exactly the keys that it removes.
func (g *guard) check(before, after lb.Config, confirmed []string, now time.Time) error {
	var keys []string
	largest := 0
	count := func(s *sizes, removed []string, left int) {
		most := s.largest(now)
		// Many small removals add up: what is gone counts, not only what goes now.
		gone := max(len(removed), most-left)
		if len(removed) > 0 && gone >= guardLeast && 2*gone > most {
			keys = append(keys, removed...)
			largest = max(largest, most)
		}
	}
	count(&g.loadBalancers, missing("loadBalancers/", before.LoadBalancers, after.LoadBalancers), len(after.LoadBalancers))
	count(&g.nodes, missing("nodes/", before.Nodes, after.Nodes), len(after.Nodes))
	if len(keys) == 0 {
		return nil
	}
	slices.Sort(keys)
	confirmed = slices.Clone(confirmed)
	slices.Sort(confirmed)
	if slices.Equal(keys, slices.Compact(confirmed)) {
		// What was confirmed is no longer missed.
		g.loadBalancers, g.nodes = nil, nil
		return nil
	}
	return &lb.RemovalHeldError{Keys: keys, Largest: largest}
}

// note records the sizes of what is held from now on.
func (g *guard) note(c lb.Config, now time.Time) {
	g.loadBalancers.note(len(c.LoadBalancers), now)
	g.nodes.note(len(c.Nodes), now)
}

// missing returns the keys of before that after does not have, with a prefix.
func missing[K ~string, V any](prefix string, before, after map[K]V) []string {
	var keys []string
	for k := range before {
		if _, ok := after[k]; !ok {
			keys = append(keys, prefix+string(k))
		}
	}
	return keys
}
