package proxy

import (
	"cmp"
	"slices"

	"github.com/eclusa-lb/eclusa/lb"
)

// holding is what an owner has of the memory for clients.
type holding struct {
	*owner
	size, share int64
	vain        bool // one of its tables could not grow
	tables      []*frontend
}

// shareClients keeps the memory for clients from being one owner's for good. As long
// as there is enough, everybody has what they need. When it is short, tables of
// clients that have gone are made smaller; and if somebody who has less than their
// share could not have more, those who have more than theirs give some back, which
// moves few of their clients: the hash leads most to where they were. All clusters
// have the same share, and all owners of a cluster.
func (c *change) shareClients() {
	b := &c.e.clients
	all := c.holdings(2*b.used.Load() > b.limit)
	clusters := make(map[lb.Cluster]int64) // the number of owners
	for _, h := range all {
		clusters[h.id.Cluster]++
	}
	needed := int64(0)
	for _, h := range all {
		h.share = b.limit / int64(len(clusters)) / clusters[h.id.Cluster]
		if h.vain && h.size < h.share {
			needed += h.share - h.size
		}
	}
	if needed > 0 {
		c.takeBack(all, min(needed, b.limit/8)) // the rest after the next Set, if it is still needed
	}
}

// holdings tells what the owners have, after giving back what is not in use if
// memory is short.
func (c *change) holdings(short bool) []*holding {
	by := make(map[*owner]*holding)
	var all []*holding
	for _, fe := range c.e.frontends {
		if fe.homes == nil { // only Set changes that
			continue
		}
		h := by[fe.owner]
		if h == nil {
			h = &holding{owner: fe.owner}
			by[fe.owner] = h
			all = append(all, h)
		}
		size, vain := fe.tidy(c.now, short)
		h.size += size
		h.vain = h.vain || vain
		h.tables = append(h.tables, fe)
	}
	return all
}

// tidy tells what the table of clients takes and whether it lacked more. If memory
// is short, a table of which less than a quarter is in use is made smaller.
func (fe *frontend) tidy(now int64, short bool) (size int64, vain bool) {
	fe.mu.Lock()
	defer fe.mu.Unlock()
	h := fe.homes
	vain = h.vain
	h.vain, h.capped = false, false
	if short {
		t, timeout := tick(now), ticks(fe.spec.Load().AffinityFor)
		small, live := len(h.places), h.live(t, timeout)
		for small > firstHomes && live < small/4 {
			small /= 2
		}
		if small < len(h.places) {
			h.shrink(small, t, timeout)
		}
	}
	return h.size(), vain
}

// takeBack halves the tables of those who have more than their share, the largest
// first, until so much is free.
func (c *change) takeBack(all []*holding, needed int64) {
	type table struct {
		*frontend
		of     *holding
		places int
	}
	var over []table
	for _, h := range all {
		for _, fe := range h.tables {
			if h.size > h.share {
				over = append(over, table{fe, h, fe.cap()})
			}
		}
	}
	b := &c.e.clients
	for len(over) > 0 && b.limit-b.used.Load() < needed {
		slices.SortFunc(over, func(x, y table) int { return cmp.Compare(y.places, x.places) })
		for i := range over {
			t := &over[i]
			if b.limit-b.used.Load() >= needed || t.of.size <= t.of.share {
				continue
			}
			t.of.size -= int64(t.places)
			t.places = t.halve(c.now)
			t.of.size += int64(t.places)
		}
		over = slices.DeleteFunc(over, func(t table) bool { return t.of.size <= t.of.share || t.places <= firstHomes })
	}
}

// cap keeps the table of clients from growing, and returns its size.
func (fe *frontend) cap() int {
	fe.mu.Lock()
	defer fe.mu.Unlock()
	fe.homes.capped = true
	return len(fe.homes.places)
}

// halve makes the table of clients half as large, if it may be, and returns its size.
func (fe *frontend) halve(now int64) int {
	fe.mu.Lock()
	defer fe.mu.Unlock()
	h := fe.homes
	if half := len(h.places) / 2; half >= firstHomes {
		h.shrink(half, tick(now), ticks(fe.spec.Load().AffinityFor))
	}
	return len(h.places)
}
