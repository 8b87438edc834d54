package nftables

import (
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// write writes what is different between two states.
func (p *plan) write(w *batch) {
	grown := p.growChains(w)
	for _, set := range slices.Sorted(maps.Keys(p.deleted)) {
		w.elements(unix.NFT_MSG_DELSETELEM, set, p.deleted[set])
	}
	for _, set := range slices.Sorted(maps.Keys(p.added)) {
		w.elements(unix.NFT_MSG_NEWSETELEM, set, p.added[set])
	}
	if grown {
		p.shrinkChains(w)
	}
}

// growChains adds what elements of the next state refer to. It returns false if
// the chains stay as they are.
func (p *plan) growChains(w *batch) bool {
	was, next := p.was.shape, p.next.shape
	if was == next {
		return false
	}
	for l := range next.mostLimits() {
		if !was.mostLimits()[l] {
			w.addSet(limitSet(l), firstLimitID+uint32(l))
		}
	}
	if next.steers() && !was.steers() {
		for i, s := range directSets() {
			w.addSet(s, firstDirectID+uint32(i))
		}
	}
	for _, t := range sorted(next.timeouts, timeouts.name) {
		if !was.timeouts[t] {
			w.addTimeouts(t)
		}
	}
	before := byName(p.was.chains)
	for _, c := range p.next.chains {
		if before[c.name] == nil {
			w.addChain(c)
		}
	}
	for _, c := range p.next.chains {
		old := before[c.name]
		if old != nil && old.equal(c) {
			continue
		}
		if old != nil {
			w.flushChain(c.name)
		}
		w.addRules(c)
	}
	return true
}

// shrinkChains deletes what nothing of the next state refers to.
func (p *plan) shrinkChains(w *batch) {
	was, next := p.was.shape, p.next.shape
	after := byName(p.next.chains)
	gone := slices.DeleteFunc(slices.Clone(p.was.chains), func(c *chain) bool { return after[c.name] != nil })
	for _, c := range gone {
		w.flushChain(c.name) // of all before the first goes, since they go to each other
	}
	for _, c := range gone {
		w.deleteChain(c.name)
	}
	for l := range was.mostLimits() {
		if !next.mostLimits()[l] {
			w.deleteSet(limitSet(l).name)
		}
	}
	if was.steers() && !next.steers() {
		for _, s := range directSets() {
			w.deleteSet(s.name)
		}
	}
	for _, t := range sorted(was.timeouts, timeouts.name) {
		if !next.timeouts[t] {
			w.deleteTimeouts(t.name())
		}
	}
}

// firstLimitID begins the numbers of limit sets within a transaction.
const firstLimitID = 1000

// mostLimits returns the limits of both families.
func (s *shape) mostLimits() map[int]bool {
	all := make(map[int]bool)
	for l := range s.limits {
		all[l.most] = true
	}
	return all
}

func byName(chains []*chain) map[string]*chain {
	m := make(map[string]*chain, len(chains))
	for _, c := range chains {
		m[c.name] = c
	}
	return m
}
