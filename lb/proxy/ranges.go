package proxy

import (
	"cmp"
	"net/netip"
	"slices"
)

// ranges are source ranges made for looking up: sorted by address, and without
// those that lie in others. It is immutable, and routes share it.
type ranges []netip.Prefix

func newRanges(prefixes []netip.Prefix) ranges {
	if len(prefixes) == 0 {
		return nil
	}
	sorted := slices.Clone(prefixes)
	// The wider one comes first, so that it is kept and those in it are not.
	slices.SortFunc(sorted, func(a, b netip.Prefix) int {
		return cmp.Or(a.Masked().Addr().Compare(b.Masked().Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	kept := sorted[:0]
	for _, p := range sorted {
		if n := len(kept); n == 0 || !kept[n-1].Overlaps(p) {
			kept = append(kept, p.Masked())
		}
	}
	return slices.Clip(kept)
}

// contain tells whether one of the ranges has the address.
func (r ranges) contain(a netip.Addr) bool {
	// Only the last range that begins at the address or before it can have it.
	low, high := 0, len(r)
	for low < high {
		if mid := (low + high) / 2; r[mid].Addr().Compare(a) <= 0 {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low > 0 && r[low-1].Contains(a)
}

// rangesKey is a slice of ranges.
type rangesKey struct {
	first *netip.Prefix
	n     int
}

// rangesOf returns the ranges of a route. Routes of one load balancer share their
// source ranges, and so what is made of them.
func (c *change) rangesOf(prefixes []netip.Prefix) ranges {
	if len(prefixes) == 0 {
		return nil
	}
	key := rangesKey{&prefixes[0], len(prefixes)}
	r, ok := c.ranges[key]
	if !ok {
		r = newRanges(prefixes)
		c.ranges[key] = r
	}
	return r
}

// sameRanges tells whether two routes allow the same clients.
func sameRanges(a, b []netip.Prefix) bool {
	if len(a) != len(b) {
		return false
	}
	return len(a) == 0 || &a[0] == &b[0] || slices.Equal(a, b)
}

// expel ends what clients have in the loop that the route does not allow any more.
func (fe *frontend) expel(l *loop) {
	s := fe.spec.Load()
	for _, item := range fe.tracked(l) {
		if !s.allows(item.clientAddr()) {
			l.guard(item, func() { item.end(l) })
		}
	}
}

// tracked returns the frontend's connections and sessions of a loop.
func (fe *frontend) tracked(l *loop) []cutter {
	fe.mu.Lock()
	links := make([]*link, 0, len(fe.links))
	for _, k := range fe.links {
		links = append(links, k)
	}
	fe.mu.Unlock()
	var items []cutter
	for _, k := range links {
		head := k.tracked[l.index]
		if head == nil {
			continue
		}
		for t := head.front(); t != nil && t != head; t = t.next {
			items = append(items, t.item)
		}
	}
	return items
}
