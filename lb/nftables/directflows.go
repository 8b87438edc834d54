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

// tombstone stands for a member in a flow that was cut: nobody has the address, so
// that what the client sends is answered with a reset.
func (v *version) tombstone() string { return string(make([]byte, v.length)) }

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
	set, key, member string
}

// readFlows calls f for every flow that has a member.
func (s *socket) readFlows(f func(directFlow, netip.Addr)) error {
	for _, v := range versions {
		for _, name := range []string{"flows", "closing"} {
			set := name + v.suffix
			if err := s.read(set, func(el found) {
				e, ok := readEnds(v, []byte(el.key))
				member, valid := netip.AddrFromSlice([]byte(el.data))
				if ok && valid && !member.IsUnspecified() {
					f(directFlow{e, set, el.key, el.data}, member)
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
	s, socket := e.state, e.watch
	off := e.idle() || !s.shape.steers()
	e.mu.Unlock()
	if off {
		return
	}
	var over []directFlow
	err := socket.readFlows(func(f directFlow, member netip.Addr) {
		if s.judgeDirect(f.ends, member, now) != keep {
			over = append(over, f)
		}
	})
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.idle() {
		return
	}
	e.failed(err, now)
	e.failed(e.endDirect(over, now), now)
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
	n := 0
	for _, f := range over {
		member, _ := netip.AddrFromSlice([]byte(f.member))
		switch v := versionOf(f.frontend.Addr); e.state.judgeDirect(f.ends, member, now) {
		case keep:
			continue
		case reset:
			n++
			cut[f.set] = append(cut[f.set], element{f.set, f.key, value{data: v.tombstone(), timeout: tombstoneFor}})
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

// steer brings the kernel's routing in line before packets get the marks of new
// members. Callers hold mu.
func (e *Engine) steer() error {
	d := &e.direct
	if len(d.groups) == 0 && len(d.numbers) == 0 {
		return nil
	}
	if err := d.steering.add(d.gateways(), e.opts.KeepSysctls, e.log); err != nil {
		return fmt.Errorf("forwarding direct: %w", err)
	}
	return nil
}

// unsteer takes away what no packet has the mark of any more.
func (e *Engine) unsteer() {
	d := &e.direct
	if !d.active && len(d.numbers) == 0 {
		return
	}
	d.active = len(d.numbers) > 0
	if _, err := d.steering.prune(d.gateways()); err != nil {
		e.log.Error("routing rules of members that are gone cannot be deleted; it is tried again", zap.Error(err))
	}
}

// learn takes over the numbers that a process before has given.
func (d *direct) learn(s *socket) error {
	d.numbers, d.leaving = make(map[netip.Addr]mark), make(map[netip.Addr]time.Time)
	d.active = true // there may be rules
	for _, v := range versions {
		if err := s.read("gateways"+v.suffix, func(f found) {
			if a, ok := netip.AddrFromSlice([]byte(f.key)); ok && hostMark([]byte(f.data)).kind() == ofGateway {
				d.numbers[a] = hostMark([]byte(f.data))
			}
		}); err != nil {
			return err
		}
	}
	return nil
}

// openDirect counts flows by route and member.
func openDirect(s *socket, st *state, open map[place]int64) error {
	if !st.shape.steers() {
		return nil
	}
	return s.readFlows(func(f directFlow, member netip.Addr) {
		if f.set != "flows"+versionOf(f.frontend.Addr).suffix {
			return // its client has ended it
		}
		if r := st.served(f.frontend); r != nil {
			open[place{r.id, member}]++
		}
	})
}
