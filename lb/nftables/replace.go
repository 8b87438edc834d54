package nftables

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// replace makes the kernel's table what the state says, whatever it is now. What
// is right is left alone, so that counters and remembered clients stay.
func (e *Engine) replace(s *state) error {
	start := time.Now()
	before, err := e.rules.currentGeneration()
	if err != nil {
		return err
	}
	present, err := e.rules.present()
	if err != nil {
		return err
	}
	sent, err := e.replaceWith(s, present, !present.fits(s))
	if err != nil && present.table && !errors.Is(err, unix.EPERM) {
		// Something that nobody foresaw is in the way; connections do not depend on
		// the table.
		e.log.Warn("the kernel's table cannot be corrected and is made anew; counters begin at zero", zap.Error(err))
		sent, err = e.replaceWith(s, present, true)
	}
	if err != nil {
		return fmt.Errorf("table %q: %w", "inet "+TableName, err)
	}
	e.generation = before
	if sent {
		if e.digest, err = e.rules.rulesDigest(); err != nil {
			return err
		}
		e.generation++
	}
	after, err := e.rules.currentGeneration()
	e.dirty = err != nil || after != e.generation
	e.generation = after
	e.verified, e.verifyCost = time.Now(), time.Since(start)
	return nil
}

// replaceWith sends what is needed, and tells whether that was anything.
func (e *Engine) replaceWith(s *state, present *present, anew bool) (sent bool, err error) {
	w, err := e.difference(s, present, anew)
	if err != nil {
		return false, err
	}
	return !w.empty(), e.rules.commit(w)
}

// difference writes what is missing or wrong, or everything anew.
func (e *Engine) difference(s *state, present *present, anew bool) (*batch, error) {
	w := newBatch()
	if anew && present.table {
		w.deleteTable()
	}
	if anew {
		present = newPresent()
	}
	if !present.table {
		w.addTable()
	}
	for i, set := range e.sets(s) {
		if _, ok := present.sets[set.name]; !ok {
			w.addSet(set, uint32(i+1))
		}
	}
	renewed := w.correctTimeouts(s, present)
	if renewed || e.digest == "" || present.digest != e.digest || !sameChains(e.state.chains, s.chains) {
		for _, c := range s.chains {
			w.addChain(c)
		}
		for _, c := range s.chains {
			w.flushChain(c.name)
			w.addRules(c)
		}
	}
	if err := e.correctElements(w, s, present); err != nil {
		return nil, err
	}
	present.deleteOthers(w, s, e.sets(s))
	return w, nil
}

// correctTimeouts adds the objects that are missing, and makes those anew that are
// wrong, for which the rules that refer to them have to be written again.
func (w *batch) correctTimeouts(s *state, present *present) (renewed bool) {
	for _, t := range sorted(s.shape.timeouts, timeouts.name) {
		have, there := present.timeouts[t.name()]
		if there && t.are(have) {
			continue
		}
		if there {
			if _, referred := present.chains[t.chain()]; referred {
				w.flushChain(t.chain())
			}
			w.deleteTimeouts(t.name())
			renewed = true
		}
		w.addTimeouts(t)
	}
	return renewed
}

func sameChains(a, b []*chain) bool { return slices.EqualFunc(a, b, (*chain).equal) }

// sets returns all sets that a state has.
func (e *Engine) sets(s *state) []*set {
	all := baseSets()
	for _, l := range slices.Sorted(maps.Keys(s.shape.mostLimits())) {
		all = append(all, limitSet(l))
	}
	if s.shape.steers() {
		all = append(all, directSets()...)
	}
	return all
}

// correctElements deletes wrong elements and adds missing ones.
func (e *Engine) correctElements(w *batch, s *state, present *present) error {
	wanted := make(map[string]map[string]value)
	e.eachElement(s, func(el element) {
		if wanted[el.set] == nil {
			wanted[el.set] = make(map[string]value)
		}
		wanted[el.set][el.key] = el.value
	})
	added := make(map[string][]element)
	for _, set := range e.sets(s) {
		if set.filledByPackets() {
			continue
		}
		want := wanted[set.name]
		var wrong []element
		if _, ok := present.sets[set.name]; ok {
			if err := e.rules.read(set.name, func(f found) {
				if v, ok := want[f.key]; ok && v == f.value {
					delete(want, f.key)
					return
				}
				wrong = append(wrong, element{set.name, f.key, f.value})
			}); err != nil {
				return err
			}
		}
		w.elements(unix.NFT_MSG_DELSETELEM, set.name, wrong)
		for _, key := range slices.Sorted(maps.Keys(want)) {
			added[set.name] = append(added[set.name], element{set.name, key, want[key]})
		}
	}
	for _, set := range slices.Sorted(maps.Keys(added)) {
		w.elements(unix.NFT_MSG_NEWSETELEM, set, added[set])
	}
	return nil
}

// eachElement calls f for every element that a state has.
func (e *Engine) eachElement(s *state, f func(element)) {
	for _, r := range s.routes {
		for _, el := range r.elements {
			f(el)
		}
	}
	for _, p := range s.pools {
		for i, a := range p.buckets {
			if a.IsValid() {
				f(p.bucket(i))
			}
		}
	}
	for a := range s.vips {
		f(vipElement(a))
	}
	for _, r := range s.leaving {
		for _, el := range r.elements {
			f(el)
		}
	}
	for a, m := range s.gateways {
		for _, el := range gatewayElements(a, m) {
			f(el)
		}
	}
	for _, el := range s.settings {
		f(el)
	}
	for _, m := range s.takers {
		f(takerElement(m))
	}
	for _, el := range e.sourceElements() {
		f(el)
	}
}
