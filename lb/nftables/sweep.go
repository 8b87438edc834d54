package nftables

import (
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// verdict is what becomes of a flow.
type verdict uint8

const (
	keep    verdict = iota
	forget          // without a word: the next packet begins anew
	reset           // both ends are told
	unknown         // nobody knows the route
)

// view is what decides about flows.
type view struct {
	state *state
	byID  map[mark]*route
}

// judge decides about a flow of which the engine knows the route.
func (v view) judge(f *flow, now time.Time) verdict {
	r := v.byID[f.mark]
	if r == nil {
		return unknown
	}
	over := reset
	if f.protocol == unix.IPPROTO_UDP || !f.replied() {
		over = forget
	}
	if r.forbids(f.client.Addr()) {
		return over
	}
	if !r.deadline.IsZero() {
		if over == forget || !now.Before(r.deadline) {
			return over
		}
		return keep
	}
	pool := v.state.pools[r.spec.Group]
	a := f.member.Addr()
	b, there := pool.members[a]
	switch {
	case there && b.State == lb.Active:
		return judgeIdle(r, f)
	case there && b.State == lb.Draining:
		if f.protocol == unix.IPPROTO_TCP && !f.replied() {
			return forget // the client's next SYN goes elsewhere
		}
		return judgeIdle(r, f)
	case over == forget:
		return forget
	case there: // dead
		if r.spec.ResetDead {
			return reset
		}
		return keep
	}
	since := r.since
	if d, ok := pool.gone[a]; ok {
		since = d.at
	}
	if now.Before(since.Add(r.spec.DrainTimeout)) {
		return keep
	}
	return reset
}

// judgeIdle ends TCP connections on which nothing moves. The kernel would only
// forget them.
func judgeIdle(r *route, f *flow) verdict {
	if f.protocol == unix.IPPROTO_TCP && f.state >= tcpEstablished && f.state <= tcpCloseWait && f.replied() &&
		int(f.left) < slackOf(seconds(r.spec.IdleTimeout)) {
		return reset
	}
	return keep
}

// judgeOrphan lets connections of a route that is not known, of a process before
// this one, drain like others.
func (e *Engine) judgeOrphan(f *flow, now time.Time) verdict {
	if f.protocol == unix.IPPROTO_UDP || !f.replied() {
		return forget
	}
	end, ok := e.orphans[f.mark]
	if !ok {
		end = now.Add(lb.DefaultDrainTimeout)
		e.orphans[f.mark] = end
		e.sweepAt(end)
	}
	if now.Before(end) {
		return keep
	}
	return reset
}

// maxSelectors is beyond how many it is cheaper to look at everything.
const maxSelectors = 16

// few returns a selection of no more than maxSelectors, which may pick more.
func few(all []selector) []selector {
	seen := make(map[selector]bool)
	all = slices.DeleteFunc(all, func(s selector) bool {
		again := seen[s]
		seen[s] = true
		return again
	})
	if len(all) > maxSelectors || seen[selector{}] {
		return []selector{{}}
	}
	return all
}

// sweepDue looks at the flows that have to be looked at, if any, and ends those that
// must not go on; sweepDirect does so for those that connection tracking does not see.
// There may be very many, so it holds mu only while it ends some.
func (e *Engine) sweepDue() {
	e.mu.Lock()
	if e.idle() {
		e.mu.Unlock()
		return
	}
	now := time.Now()
	which, socket := e.due(now), e.watch
	before := view{e.state, nil}
	if len(which) > 0 {
		before.byID = maps.Clone(e.byID)
	}
	e.mu.Unlock()
	if len(which) == 0 {
		return
	}
	over, used, err := socket.overdue(which, before, now)
	cost := time.Since(now)
	for part := range slices.Chunk(over, maxFlowsAtOnce) {
		e.mu.Lock()
		if !e.idle() {
			e.finish(part, now)
		}
		e.mu.Unlock()
		e.provoke()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failed(err, now)
	if err == nil && which[0] == (selector{}) {
		e.forgetUnused(used, before, now)
	}
	if which[0] == (selector{}) {
		e.swept, e.cost = now, cost
	}
}

// overdue returns those of the picked flows that may have to end, and the marks of
// all open ones.
func (s *socket) overdue(which []selector, v view, now time.Time) (over []flow, used map[mark]bool, err error) {
	used = make(map[mark]bool)
	for _, w := range which {
		if err := s.selected(w, func(f *flow) {
			if f.open() {
				used[f.mark] = true
			}
			if v.judge(f, now) != keep {
				over = append(over, *f)
			}
		}); err != nil {
			return over, used, err
		}
	}
	return over, used, nil
}

// failed makes flows be looked at again soon. Callers hold mu.
func (e *Engine) failed(err error, now time.Time) {
	if err != nil {
		e.log.Error("connections of members or frontends that are gone cannot be ended; it is tried again", zap.Error(err))
		e.sweepAt(now.Add(time.Second))
	}
}

// finish ends flows, unless they may go on by now. Callers hold mu.
func (e *Engine) finish(over []flow, now time.Time) {
	v, at := view{e.state, e.byID}, time.Now()
	count := 0
	gone := slices.DeleteFunc(over, func(f flow) bool {
		d := v.judge(&f, now)
		if d == unknown {
			d = e.judgeOrphan(&f, now)
		}
		if d == reset && f.open() {
			count++
			e.cuts.add(cut[flow]{what: f, at: at})
		}
		return d == keep
	})
	e.failed(e.tracking.forget(gone), now)
	if count > 0 {
		e.log.Info("connections were reset", zap.Int("connections", count))
		e.kick()
	}
}

// forgetUnused forgets removed routes and orphans without connections. before is
// what was known when they were looked for.
func (e *Engine) forgetUnused(used map[mark]bool, before view, now time.Time) {
	for key, r := range e.retired {
		if !used[r.id] && before.byID[r.id] == r {
			e.drop(key, r)
		}
	}
	for m, end := range e.orphans {
		if !used[m] && now.After(end) {
			delete(e.orphans, m)
		}
	}
	for id, p := range e.state.pools {
		if p.forgets(now) {
			e.unclean = true
			e.state = e.state.with(id, p.without(now))
		}
	}
}

// rememberGone is how long the name of a member that is gone is known, which is
// longer than its connections may drain.
const rememberGone = 25 * time.Hour

func (e *Engine) drop(key retiredKey, r *route) {
	delete(e.retired, key)
	if e.byID[r.id] == r {
		delete(e.byID, r.id)
	}
	e.unclean = true
}

// deleteQuietly deletes elements that packets have made, some of which may have
// ended by themselves meanwhile. It returns false if some are left.
func (e *Engine) deleteQuietly(set string, all []element) bool {
	for len(all) > 0 {
		n := min(len(all), maxElements)
		w := newBatch()
		w.elements(unix.NFT_MSG_DELSETELEM, set, all[:n])
		err := e.rules.commit(w)
		switch {
		case err == nil:
			e.committed(false)
		case isNotFound(err) && n > 1:
			// One that is not there any more has all of them refused.
			if first := e.deleteQuietly(set, all[:n/2]); !e.deleteQuietly(set, all[n/2:n]) || !first {
				return false
			}
		case !isNotFound(err):
			e.log.Error("elements of the kernel's table cannot be deleted; it is tried again", zap.String("set", set), zap.Error(err))
			e.unclean = true
			return false
		}
		all = all[n:]
	}
	return true
}
