package nftables

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/lb"
)

// inUse is what there are counters and remembered clients of.
type inUse struct {
	view
	members map[mark]netip.Addr // that packets are routed to as they are
	owners  map[mark]bool
}

// inUse returns what is in use now. Callers hold mu.
func (e *Engine) inUse() inUse {
	u := inUse{view{e.state, maps.Clone(e.byID)}, e.direct.byNumber(), make(map[mark]bool, len(e.state.owners))}
	for _, m := range e.state.owners {
		u.owners[m] = true
	}
	return u
}

// sets are those whose elements packets make, each with what tells from a key whether
// it is of something in use.
func (u inUse) sets() map[string]func(key []byte) bool {
	all := make(map[string]func(key []byte) bool)
	byRoute := func(k []byte) bool { return u.byID[hostMark(k)] != nil }
	for _, set := range countedSets {
		all[set] = byRoute
	}
	for l := range u.state.shape.mostLimits() {
		all[limitSet(l).name] = func(k []byte) bool { return u.owners[hostMark(k)] }
	}
	for _, v := range versions {
		for _, set := range []string{"connections", "in", "out"} {
			all[set+v.suffix] = u.counts
		}
		// Their keys have a client where those of the others have a member.
		all["clients"+v.suffix] = byRoute
		if !u.state.shape.steers() {
			continue
		}
		for _, set := range directCounters {
			all[set+v.suffix] = func(k []byte) bool {
				_, member := tupleAndNumber(v, k)
				return u.state.routeOf(k) != nil && u.members[member].IsValid()
			}
		}
		all["homes"+v.suffix] = func(k []byte) bool { return u.state.routeOf(k) != nil }
	}
	return all
}

// counts tells whether a key names a route and, where it is a member's, one that the
// route has or had a while ago.
func (u inUse) counts(k []byte) bool {
	m, a, ok := fromMarkAddr(k)
	r := u.byID[m]
	if !ok || r == nil {
		return false
	}
	pool := u.state.pools[r.spec.Group]
	if pool == nil || !r.deadline.IsZero() {
		return true
	}
	_, there := pool.members[a]
	_, gone := pool.gone[a]
	return there || gone
}

// directCounters are the sets that count by frontend and a member's number.
var directCounters = []string{"begun", "steered"}

// tupleAndNumber decodes their keys; the number is zero if a key is none of theirs.
func tupleAndNumber(v *version, k []byte) (lb.Frontend, mark) {
	n := int(v.length) + 8
	if len(k) != n+4 {
		return lb.Frontend{}, 0
	}
	f, ok := tuple(k[:n])
	if !ok {
		return lb.Frontend{}, 0
	}
	return f, hostMark(k[n:])
}

// learnCounted finds the numbers that no member has and the table counts for.
func (d *direct) learnCounted(s *socket) error {
	d.freed, d.counts, d.past = make(map[mark]bool), make(map[lb.Frontend]lb.Owner), make(map[mark]uint64)
	members := d.byNumber()
	for _, v := range versions {
		if err := s.read("begun"+v.suffix, func(f found) {
			if _, m := tupleAndNumber(v, []byte(f.key)); m != 0 && !members[m].IsValid() {
				d.freed[m] = true
			}
		}); err != nil {
			return err
		}
	}
	return nil
}

// clean deletes counters of routes and members that are gone for good, if it is due.
// It is the keeper's, with whose socket it reads, as there may be very many elements,
// and holds mu only while it deletes some.
func (e *Engine) clean() {
	e.mu.Lock()
	now := time.Now()
	if e.idle() || !e.unclean || now.Sub(e.cleaned) < cleanInterval {
		e.mu.Unlock()
		return
	}
	e.unclean = false
	before, socket, freed := e.inUse(), e.watch, slices.Collect(maps.Keys(e.direct.freed))
	e.mu.Unlock()
	var errs []error
	left, numbered := false, false // and whether some of those may be of numbers to be freed
	for set, used := range before.sets() {
		var wrong []found
		err := socket.readSome(set, func(f found) {
			if !used([]byte(f.key)) {
				wrong = append(wrong, f)
			}
		})
		errs = append(errs, err)
		some := err != nil
		for part := range slices.Chunk(wrong, maxElements) {
			e.mu.Lock()
			some = !e.idle() && !e.discount(set, part) || some
			e.mu.Unlock()
			e.mend()
		}
		left, numbered = left || some, numbered || some && slices.Contains(directCounters, strings.TrimRight(set, "46"))
	}
	err := errors.Join(errs...)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.cleaned = now
	if err != nil && !errors.Is(err, errInterrupted) {
		e.log.Error("counters of what is gone cannot be read; it is tried again", zap.Error(err))
	}
	if !numbered {
		for _, m := range freed {
			delete(e.direct.freed, m)
		}
	}
	if left {
		e.unclean = true
		return
	}
	maps.DeleteFunc(e.direct.past, func(m mark, _ uint64) bool { return e.byID[m] == nil })
	maps.DeleteFunc(e.direct.counts, func(f lb.Frontend, _ lb.Owner) bool { return e.state.served(f) == nil })
}

// discount deletes counters, unless they are of something in use by now. It returns
// false if some are left. Callers hold mu.
func (e *Engine) discount(set string, all []found) bool {
	used := e.inUse().sets()[set]
	if used == nil {
		return true // there is no such set any more
	}
	var wrong []element
	accepted := make(map[mark]uint64)
	for _, f := range all {
		if used([]byte(f.key)) {
			continue
		}
		wrong = append(wrong, element{set: set, key: f.key})
		for _, v := range versions {
			if set != "begun"+v.suffix {
				continue
			}
			// What the member has taken its route has accepted.
			if r := e.state.routeOf([]byte(f.key)); r != nil {
				accepted[r.id] += f.packets
			}
		}
	}
	if !e.deleteQuietly(set, wrong) {
		return false // they are counted where they are
	}
	for m, n := range accepted {
		e.direct.past[m] += n
	}
	return true
}

// discountOthers deletes the counters that other owners have left at frontends.
// Callers hold mu.
func (e *Engine) discountOthers(at map[lb.Frontend]bool) {
	if len(at) == 0 {
		return
	}
	for _, v := range versions {
		for _, set := range directCounters {
			var wrong []element
			if err := e.rules.read(set+v.suffix, func(f found) {
				if front, _ := tupleAndNumber(v, []byte(f.key)); at[front] {
					wrong = append(wrong, element{set: set + v.suffix, key: f.key})
				}
			}); err != nil {
				// Traffic does not wait for counters.
				e.log.Warn("counters of former load balancers cannot be read; those of new ones may begin with them", zap.Error(err))
				e.unclean = true
				return
			}
			e.deleteQuietly(set+v.suffix, wrong)
		}
	}
}
