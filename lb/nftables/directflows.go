package nftables

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// tombstone stands for a member in a flow that was cut: none has the number, so that
// what the client sends is answered with a reset.
const tombstone = ofGateway | maxID

// tombstoneFor is how long one stands.
const tombstoneFor = time.Minute

// unsweptFor is how long the end of a removed route waits at most for a look at its
// flows that has missed none.
const unsweptFor = time.Minute

// served returns the route of a frontend whose packets are routed as they are, or
// were until a moment ago.
func (s *state) served(f lb.Frontend) *route {
	if r := s.routes[f]; r != nil && r.spec.Direct {
		return r
	}
	return s.leaving[f]
}

// judgeDirect decides about a flow as about one that connection tracking knows.
func (s *state) judgeDirect(e ends, member netip.Addr, now time.Time) verdict {
	r := s.served(e.frontend)
	if r == nil {
		return forget
	}
	f := flow{
		version: r.version(), protocol: protocolNumber(e.frontend.Protocol), mark: r.id, status: statusSeenReply,
		state: tcpEstablished, left: math.MaxUint32 >> 1, client: e.client, member: netip.AddrPortFrom(member, 0),
	}
	return view{s, map[mark]*route{r.id: r}}.judge(&f, now)
}

// directFlow is an element of the table's memory.
type directFlow struct {
	ends
	set, key string
	member   mark
	cut      bool // its client is to be told that it has ended
}

// open tells whether the client has not ended it.
func (f *directFlow) open() bool { return f.set == "flows"+versionOf(f.frontend.Addr).suffix }

// readFlows calls f for every flow that has a member, as they come: there may be very
// many. Without whole some may be missing or come twice, since others have changed
// tables meanwhile.
func (s *socket) readFlows(f func(directFlow)) (whole bool, err error) {
	whole = true
	for _, v := range versions {
		for _, name := range []string{"flows", "closing"} {
			set := name + v.suffix
			each := func(el found) {
				e, ok := readEnds(v, []byte(el.key))
				if member := hostMark([]byte(el.data)); ok && member != tombstone {
					f(directFlow{ends: e, set: set, key: el.key, member: member})
				}
			}
			switch err := s.stream(s.elementsOf(set), func(_ uint8, body []byte) { eachFound(body, each) }); {
			case errors.Is(err, errInterrupted):
				whole = false
			case err != nil && !isNotFound(err):
				return false, fmt.Errorf("read set %q: %w", set, err)
			}
		}
	}
	return whole, nil
}

// concerned tells of what is picked whether it may be of such routes.
func (d *direct) concerned(s *state) func(selector) bool {
	return func(w selector) bool {
		switch {
		case w.member.IsValid():
			return d.numbers[w.member] != 0
		case w.frontend.IsValid():
			for _, routes := range []map[lb.Frontend]*route{s.routes, s.leaving} {
				for f, r := range routes {
					if f.Addr == w.frontend && r.spec.Direct {
						return true
					}
				}
			}
			return false
		}
		return true
	}
}

// over tells whether nothing of a removed route is left. Its flows must have been
// looked at since its time was over, as they would end without a word afterwards.
// If others keep the kernel's tables from being read whole that has been tried often.
func (d *direct) over(r *route, now time.Time) bool {
	return !now.Before(r.deadline) && (!d.swept.Before(r.deadline) || now.Sub(r.deadline) > unsweptFor)
}

// readLongAgo is after what time a flow may be another one by now.
const readLongAgo = time.Second

// sweepDirect ends the flows that must not go on, if there may be any, and what has
// left for good. Like sweepDue it holds mu only for what it changes.
func (e *Engine) sweepDirect() {
	e.mu.Lock()
	now := time.Now()
	s, socket, members := e.state, e.watch, e.direct.byNumber()
	off := e.idle() || !e.direct.due || !s.shape.steers()
	e.direct.due = false
	e.mu.Unlock()
	if off {
		return
	}
	type place struct{ set, key string }
	over := make(map[place]directFlow)
	whole, err := socket.readFlows(func(f directFlow) {
		if s.judgeDirect(f.ends, members[f.member], now) != keep {
			over[place{f.set, f.key}] = f
		}
	})
	count, failed := 0, false
	for part := range slices.Chunk(slices.Collect(maps.Values(over)), maxFlowsAtOnce) {
		if time.Since(now) > readLongAgo {
			part = slices.DeleteFunc(part, func(f directFlow) bool { return socket.changed(f) })
		}
		e.mu.Lock()
		if !e.idle() {
			n, err := e.endDirect(part, time.Now())
			count += n
			failed = failed || err != nil
			e.failed(err, now)
		}
		e.mu.Unlock()
		e.provoke()
		e.sweepDue() // others do not wait for all of these
	}
	if count > 0 {
		e.log.Info("connections were reset", zap.Int("connections", count))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.idle() {
		return
	}
	e.failed(err, now)
	e.direct.cost = time.Since(now)
	if !whole {
		e.sweepAt(now.Add(max(time.Second, sweepShare*e.direct.cost)))
	}
	if err == nil && whole && !failed {
		e.direct.swept = now
	}
	for _, r := range e.state.leaving {
		if e.direct.over(r, now) {
			e.failed(e.expire(now), now)
			break
		}
	}
}

// endDirect ends flows, unless they may go on by now, and returns how many of them
// were cut. Callers hold mu.
func (e *Engine) endDirect(over []directFlow, now time.Time) (count int, err error) {
	members := e.direct.byNumber()
	var ending []directFlow
	for _, f := range over {
		if d := e.state.judgeDirect(f.ends, members[f.member], now); d != keep {
			f.cut = d == reset
			ending = append(ending, f)
		}
	}
	ended, err := bury(ending, func(w *batch) error {
		err := e.rules.commit(w)
		if err == nil {
			e.committed(false)
		}
		return err
	})
	for _, f := range ended {
		if f.cut {
			count++
			e.direct.cuts.add(cut[ends]{what: f.ends, at: now})
		}
	}
	return count, err
}

// bury deletes flows, with tombstones in place of those that are cut: both in one
// transaction, since a segment between them would begin the flow anew, and be in the
// way of its tombstone. It returns those that had not ended by themselves.
func bury(flows []directFlow, commit func(*batch) error) (buried []directFlow, err error) {
	if len(flows) == 0 {
		return nil, nil
	}
	deleted, added := make(map[string][]element), make(map[string][]element)
	for _, f := range flows {
		deleted[f.set] = append(deleted[f.set], element{set: f.set, key: f.key})
		if f.cut {
			added[f.set] = append(added[f.set], element{f.set, f.key, value{data: string(tombstone.host()), timeout: tombstoneFor}})
		}
	}
	w := newBatch()
	for set, all := range deleted {
		w.elements(unix.NFT_MSG_DELSETELEM, set, all)
		w.elements(unix.NFT_MSG_NEWSETELEM, set, added[set])
	}
	err = commit(w)
	switch half := len(flows) / 2; {
	case err == nil:
		return flows, nil
	case !isNotFound(err):
		return nil, fmt.Errorf("end flows: %w", err)
	case half > 0:
		// One that is not there any more has all of them refused.
		for _, part := range [][]directFlow{flows[:half], flows[half:]} {
			some, err := bury(part, commit)
			buried = append(buried, some...)
			if err != nil {
				return buried, err
			}
		}
		return buried, nil
	}
	return nil, nil
}

// buryAll cuts all flows that the kernel's table has, and tells their clients. It
// returns how many of them.
func buryAll(rules *socket, raw *raw) (count int, err error) {
	var all []directFlow
	if _, err := rules.readFlows(func(f directFlow) {
		f.cut = f.frontend.Protocol == lb.TCP
		all = append(all, f)
	}); err != nil {
		return 0, err
	}
	for part := range slices.Chunk(all, maxFlowsAtOnce) {
		buried, err := bury(part, rules.commit)
		for _, f := range buried {
			if f.cut {
				raw.provokeClient(f.ends)
				count++
			}
		}
		if err != nil {
			return count, err
		}
	}
	return count, nil
}

// expire forgets removed routes whose time is over. Callers hold mu.
func (e *Engine) expire(now time.Time) error {
	p := e.plan(e.state.table, e.own, now)
	if err := e.carryOut(p); err != nil {
		return fmt.Errorf("forget removed routes: %w", err)
	}
	e.adopt(p, false)
	e.unclean = true
	return nil
}

// recallLeaving finds what a process before has left of routes whose packets were
// routed as they are: connections of those that are not served any more drain. Without
// that process's word nobody knows since when. Callers hold mu.
func (e *Engine) recallLeaving(now time.Time) error {
	held, known := make(map[lb.Frontend]int), newState() // the seconds that flows may be idle
	for _, v := range versions {
		if err := e.rules.read("holders"+v.suffix, func(el found) {
			f, ok := tuple([]byte(el.key))
			if idle, is := heldFor(el.chain); ok && is {
				held[f] = idle
			}
		}); err != nil {
			return err
		}
	}
	for key, id := range e.numbers.routes {
		idle, is := held[key.Frontend]
		if !is {
			continue
		}
		known.leaving[key.Frontend] = &route{
			Frontend: key.Frontend, id: id, since: now, deadline: now.Add(lb.DefaultDrainTimeout),
			spec: lb.Route{
				Owner: key.owner, Name: e.numbers.names[id], Direct: true,
				// A group that nobody has.
				Group:       directGroup(lb.GroupID{Cluster: key.owner.Cluster, Name: fmt.Sprintf("left by %#x", uint32(id))}),
				IdleTimeout: time.Duration(idle) * time.Second, DrainTimeout: lb.DefaultDrainTimeout,
			},
		}
	}
	maps.Copy(known.leaving, e.direct.inherited)
	e.state, e.direct.purgeAt, e.direct.changed = known, now, true
	for _, r := range known.leaving {
		e.sweepAt(r.deadline)
	}
	return nil
}

// byNumber returns the members that have numbers.
func (d *direct) byNumber() map[mark]netip.Addr {
	all := make(map[mark]netip.Addr, len(d.numbers))
	for a, m := range d.numbers {
		all[m] = a
	}
	return all
}

// purgeHomes lets the table forget which clients went to members that take no new
// connections of their route any more. The keeper does so with its own socket, and mu
// is free but for what is deleted.
func (e *Engine) purgeHomes() {
	e.mu.Lock()
	s, socket, members := e.state, e.watch, e.direct.byNumber()
	now := time.Now()
	due := !e.idle() && !e.direct.purgeAt.IsZero() && !now.Before(e.direct.purgeAt)
	first := e.direct.changed
	if due {
		e.direct.purgeAt, e.direct.changed = time.Time{}, false
	}
	e.mu.Unlock()
	if !due {
		return
	}
	again := first
	for _, v := range versions {
		if !s.homes(v) {
			continue
		}
		set := "homes" + v.suffix
		var wrong []element
		err := socket.readSome(set, func(f found) {
			if s.misleadsHome(f.key, members[hostMark([]byte(f.data))]) {
				wrong = append(wrong, element{set, f.key, value{data: f.data}})
			}
		})
		for part := range slices.Chunk(wrong, maxElements) {
			e.mu.Lock()
			if !e.idle() {
				members := e.direct.byNumber()
				again = !e.deleteQuietly(set, slices.DeleteFunc(part, func(h element) bool {
					return !e.state.misleadsHome(h.key, members[hostMark([]byte(h.data))])
				})) || again
			}
			e.mu.Unlock()
			e.mend()
		}
		again = again || err != nil // others have changed tables meanwhile, and some may be left
	}
	if !again {
		return
	}
	wait := purgeAgain
	if !first {
		wait = max(wait, sweepShare*time.Since(now))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if at := time.Now().Add(wait); e.direct.purgeAt.IsZero() || at.Before(e.direct.purgeAt) {
		e.direct.purgeAt = at
	}
}

// misleadsHome tells whether a client is sent to a member that takes no new connections
// of its route.
func (s *state) misleadsHome(key string, a netip.Addr) bool {
	r := s.routeOf([]byte(key))
	return r == nil || !s.active(r, a)
}

// homes tells whether such routes remember clients.
func (s *state) homes(v *version) bool {
	for c := range s.shape.choosers {
		if c.version == v && c.affinity > 0 {
			return true
		}
	}
	return false
}

// active tells whether a member takes new connections of a route.
func (s *state) active(r *route, a netip.Addr) bool {
	pool := s.pools[r.spec.Group]
	if pool == nil {
		return false
	}
	b, ok := pool.members[a]
	return ok && b.State == lb.Active
}

// routeOf returns the route of a key that begins with its frontend.
func (s *state) routeOf(key []byte) *route {
	for _, v := range versions {
		n := int(v.length) + 8
		if rest := len(key) - n; rest == int(v.length) || rest == 4 {
			if f, ok := tuple(key[:n]); ok && f.Addr.IsValid() {
				return s.served(f)
			}
		}
	}
	return nil
}

// countDirect adds what is counted of such routes.
func (c *census) countDirect(t *tally, s *state, members map[mark]netip.Addr) error {
	if !s.shape.steers() {
		return nil
	}
	for _, v := range versions {
		for name, count := range map[string]func(place, found){
			"begun": func(p place, f found) {
				t.routes["accepted"][p.route] += f.packets
				if !p.member.IsValid() {
					return // its number was taken back
				}
				if t.connections[p.route] == nil {
					t.connections[p.route] = make(map[netip.Addr]uint64)
				}
				t.connections[p.route][p.member] += f.packets
			},
			"steered": func(p place, f found) { t.in[p] += f.bytes },
		} {
			if err := c.rules.read(name+v.suffix, func(f found) {
				frontend, member := tupleAndNumber(v, []byte(f.key))
				if r := s.served(frontend); member != 0 && r != nil {
					count(place{r.id, members[member]}, f)
				}
			}); err != nil {
				return err
			}
		}
	}
	return nil
}

// openDirect counts flows by route and member.
func openDirect(s *socket, st *state, members map[mark]netip.Addr, open map[place]int64) error {
	if !st.shape.steers() {
		return nil
	}
	_, err := s.readFlows(func(f directFlow) {
		if r := st.served(f.frontend); r != nil && f.open() {
			open[place{r.id, members[f.member]}]++
		}
	})
	return err
}
