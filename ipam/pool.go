package ipam

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sort"

	"github.com/eclusa-lb/eclusa/lb"
)

// Pool is a named supply of addresses. Pools should not overlap; see Overlaps.
type Pool struct {
	// Name is unique among the pools.
	Name   string
	Ranges []Range
	// AutoAssign gives addresses to claims that name neither the pool nor an
	// address of it.
	AutoAssign bool
	// Shared lets all claims share the addresses, whatever their keys, as long as
	// their ports differ. A claim joins others when no address is free any more.
	Shared bool
}

// Overlaps returns an error, an lb.ErrInvalid, for every part that two pools
// have in common, in a stable order.
func Overlaps(pools []Pool) []error {
	type part struct {
		Range
		pool string
	}
	var parts []part
	for _, p := range pools {
		for _, r := range merged(p.Ranges) {
			parts = append(parts, part{r, p.Name})
		}
	}
	slices.SortFunc(parts, func(a, b part) int {
		return cmp.Or(a.first.Compare(b.first), a.last.Compare(b.last), cmp.Compare(a.pool, b.pool))
	})
	var faults []error
	for i, a := range parts {
		for _, b := range parts[i+1:] {
			common, ok := a.intersect(b.Range)
			if !ok {
				break // the ones behind it begin later still
			}
			if a.pool != b.pool {
				faults = append(faults, fmt.Errorf("pools %q and %q overlap in %s: take it out of one of them: %w", min(a.pool, b.pool), max(a.pool, b.pool), common, lb.ErrInvalid))
			}
		}
	}
	return faults
}

// Usage counts the addresses of one pool.
type Usage struct {
	IPv4, IPv6 Count
}

// Count counts addresses of one family. The numbers stop at the largest uint64.
type Count struct {
	// Used counts each address once, however many claims share it.
	Used uint64
	// Quarantined are those that nobody has and nobody gets yet.
	Quarantined uint64
	// Total counts all of them.
	Total uint64
}

// Sum returns the counts of both families together.
func (u Usage) Sum() Count {
	return Count{
		Used:        plus(u.IPv4.Used, u.IPv6.Used),
		Quarantined: plus(u.IPv4.Quarantined, u.IPv6.Quarantined),
		Total:       plus(u.IPv4.Total, u.IPv6.Total),
	}
}

func (u *Usage) of(f lb.Family) *Count {
	if f == lb.IPv4 {
		return &u.IPv4
	}
	return &u.IPv6
}

// Usages returns for each pool by name how many of its addresses the results of
// Assign use.
func Usages(pools []Pool, results map[string]Result, quarantined map[netip.Addr]Quarantine) map[string]Usage {
	used := map[netip.Addr]bool{}
	for _, r := range results {
		for _, a := range r.Addresses {
			used[a] = true
		}
	}
	all := make(map[string]Usage, len(pools))
	for _, p := range newSupplies(pools) {
		all[p.name] = p.usage(used, quarantined)
	}
	return all
}

// A supply is a pool while addresses are taken from it.
type supply struct {
	name   string
	auto   bool
	shared bool
	ranges map[lb.Family][]Range // merged
	next   map[lb.Family]cursor
}

// A cursor is where to look for a free address: all before it are taken.
type cursor struct {
	at   int        // index of the range
	addr netip.Addr // invalid: the first of the range
}

// newSupplies returns the pools sorted by name.
func newSupplies(pools []Pool) []*supply {
	var all []*supply
	for _, p := range pools {
		s := &supply{name: p.Name, auto: p.AutoAssign, shared: p.Shared, ranges: map[lb.Family][]Range{}, next: map[lb.Family]cursor{}}
		for _, r := range merged(p.Ranges) {
			s.ranges[r.Family()] = append(s.ranges[r.Family()], r)
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *supply) int { return cmp.Compare(a.name, b.name) })
	return all
}

func (s *supply) contains(a netip.Addr) bool {
	ranges := s.ranges[lb.FamilyOf(a)]
	i := sort.Search(len(ranges), func(i int) bool { return ranges[i].last.Compare(a) >= 0 })
	return i < len(ranges) && ranges[i].Contains(a)
}

// free returns the smallest address that is not taken. What was taken once must
// stay so.
func (s *supply) free(f lb.Family, taken func(netip.Addr) bool) (netip.Addr, bool) {
	ranges, c := s.ranges[f], s.next[f]
	defer func() { s.next[f] = c }()
	for ; c.at < len(ranges); c = (cursor{at: c.at + 1}) {
		if !c.addr.IsValid() {
			c.addr = ranges[c.at].first
		}
		for ; ranges[c.at].Contains(c.addr); c.addr = c.addr.Next() {
			if !taken(c.addr) {
				return c.addr, true
			}
		}
	}
	return netip.Addr{}, false
}

func (s *supply) usage(used map[netip.Addr]bool, quarantined map[netip.Addr]Quarantine) Usage {
	var u Usage
	for f, ranges := range s.ranges {
		for _, r := range ranges {
			u.of(f).Total = plus(u.of(f).Total, r.Size())
		}
	}
	for a := range used {
		if s.contains(a) {
			u.of(lb.FamilyOf(a)).Used++
		}
	}
	for a := range quarantined {
		if !used[a] && s.contains(a) {
			u.of(lb.FamilyOf(a)).Quarantined++
		}
	}
	return u
}

// plus adds without passing the largest uint64.
func plus(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}
