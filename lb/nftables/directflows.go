package nftables

import (
	"fmt"
	"math"
	"net/netip"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// directCut is a flow that was cut a moment ago.
type directCut struct {
	ends
	at    time.Time
	tries int
}

// tombstone stands for a member in a flow that was cut: none has the number, so that
// what the client sends is answered with a reset.
const tombstone = ofGateway | maxID

// tombstoneFor is how long one stands.
const tombstoneFor = time.Minute

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
}

// readFlows calls f for every flow that has a member.
func (s *socket) readFlows(f func(directFlow)) error {
	for _, v := range versions {
		for _, name := range []string{"flows", "closing"} {
			set := name + v.suffix
			if err := s.read(set, func(el found) {
				e, ok := readEnds(v, []byte(el.key))
				if member := hostMark([]byte(el.data)); ok && member != tombstone {
					f(directFlow{e, set, el.key, member})
				}
			}); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweepDirect ends the flows that must not go on, and what has left for good.
// Like sweepDue it holds mu only for what it changes.
func (e *Engine) sweepDirect(now time.Time) {
	e.mu.Lock()
	s, socket, members := e.state, e.watch, e.direct.byNumber()
	off := e.idle() || !s.shape.steers()
	e.mu.Unlock()
	if off {
		return
	}
	var over []directFlow
	err := socket.readFlows(func(f directFlow) {
		if s.judgeDirect(f.ends, members[f.member], now) != keep {
			over = append(over, f)
		}
	})
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.idle() {
		return
	}
	e.failed(err, now)
	ended := e.endDirect(over, now)
	e.failed(ended, now)
	if err == nil && ended == nil {
		e.direct.swept = now
	}
	for _, r := range e.state.leaving {
		if !now.Before(r.deadline) {
			e.failed(e.expire(now), now)
			break
		}
	}
}

// endDirect ends flows, unless they may go on by now. Callers hold mu.
func (e *Engine) endDirect(over []directFlow, now time.Time) error {
	gone, cut := make(map[string][]element), make(map[string][]element)
	n, members := 0, e.direct.byNumber()
	for _, f := range over {
		switch e.state.judgeDirect(f.ends, members[f.member], now) {
		case keep:
			continue
		case reset:
			n++
			cut[f.set] = append(cut[f.set], element{f.set, f.key, value{data: string(tombstone.host()), timeout: tombstoneFor}})
			e.direct.cuts = append(e.direct.cuts, directCut{ends: f.ends, at: now})
		case forget, unknown:
		}
		gone[f.set] = append(gone[f.set], element{set: f.set, key: f.key})
	}
	for set, all := range gone {
		e.deleteQuietly(set, all)
	}
	if n == 0 {
		return nil
	}
	w := newBatch()
	for set, all := range cut {
		w.elements(unix.NFT_MSG_NEWSETELEM, set, all)
	}
	err := e.rules.commit(w)
	e.committed(false)
	e.provokeDirect(now)
	e.log.Info("connections were reset", zap.Int("connections", n))
	e.kick()
	return err
}

// provokeDirect has clients of flows that were cut send a segment, to be told.
// Callers hold mu.
func (e *Engine) provokeDirect(now time.Time) {
	left := e.direct.cuts[:0]
	for _, c := range e.direct.cuts {
		if c.tries == 0 || now.Sub(c.at) >= provokeAgain[min(c.tries, len(provokeAgain))-1] {
			c.tries++
			e.raw.send(versionOf(c.frontend.Addr), netip.AddrPortFrom(c.frontend.Addr, c.frontend.Port), c.client)
		}
		if c.tries <= len(provokeAgain) {
			left = append(left, c)
		}
	}
	e.direct.cuts = left
}

// expire forgets removed routes whose time is over. Callers hold mu.
func (e *Engine) expire(now time.Time) error {
	p := e.plan(e.state.table, e.own, now)
	if err := e.carryOut(p); err != nil {
		return fmt.Errorf("forget removed routes: %w", err)
	}
	e.adopt(p, false)
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
// connections any more. Callers hold mu.
func (e *Engine) purgeHomes(gone map[netip.Addr]bool) {
	members := e.direct.byNumber()
	for _, v := range versions {
		if !e.state.homes(v) {
			continue
		}
		set := "homes" + v.suffix
		var wrong []element
		if err := e.rules.read(set, func(f found) {
			a, r := members[hostMark([]byte(f.data))], e.state.routeOf([]byte(f.key))
			if gone[a] && (r == nil || !e.state.active(r, a)) {
				wrong = append(wrong, element{set: set, key: f.key})
			}
		}); err != nil {
			e.log.Error("clients of members that are gone cannot be read", zap.Error(err))
			continue
		}
		e.deleteQuietly(set, wrong)
	}
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

// active tells whether a member takes new connections of a route.
func (s *state) active(r *route, a netip.Addr) bool {
	b, ok := s.pools[r.spec.Group].members[a]
	return ok && b.State == lb.Active
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
				if t.connections[p.route] == nil {
					t.connections[p.route] = make(map[netip.Addr]uint64)
				}
				t.connections[p.route][p.member] += f.packets
			},
			"steered": func(p place, f found) { t.in[p] += f.bytes },
		} {
			if err := c.rules.read(name+v.suffix, func(f found) {
				n := int(v.length) + 8
				if len(f.key) != n+4 {
					return
				}
				frontend, ok := tuple([]byte(f.key[:n]))
				a := members[hostMark([]byte(f.key[n:]))]
				if r := s.served(frontend); ok && r != nil && a.IsValid() {
					count(place{r.id, a}, f)
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
	return s.readFlows(func(f directFlow) {
		if f.set != "flows"+versionOf(f.frontend.Addr).suffix {
			return // its client has ended it
		}
		if r := st.served(f.frontend); r != nil {
			open[place{r.id, members[f.member]}]++
		}
	})
}
