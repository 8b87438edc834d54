package proxy

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/eclusa-lb/eclusa/lb"
)

// spec is an immutable state of a route.
type spec struct {
	lb.Route
	group   *group
	idle    int64  // the idle timeout as loops count time
	allowed ranges // made of SourceRanges
}

func newSpec(p lb.Protocol, r lb.Route, g *group, allowed ranges) *spec {
	s := &spec{Route: r, group: g, idle: int64(r.IdleTimeout), allowed: allowed}
	if s.idle <= 0 {
		s.idle = int64(lb.DefaultIdleTimeout)
		if p == lb.UDP {
			s.idle = int64(lb.DefaultUDPIdleTimeout)
		}
	}
	return s
}

// is tells whether the spec is that of the route.
func (s *spec) is(b *lb.Route, g *group) bool {
	a := &s.Route
	if s.group != g || !sameRanges(a.SourceRanges, b.SourceRanges) {
		return false
	}
	return a.Owner == b.Owner && a.Name == b.Name && a.Group == b.Group && a.TargetPort == b.TargetPort &&
		a.Algorithm == b.Algorithm && a.ProxyProtocol == b.ProxyProtocol && a.AffinityFor == b.AffinityFor &&
		a.ConnectTimeout == b.ConnectTimeout && a.IdleTimeout == b.IdleTimeout && a.DrainTimeout == b.DrainTimeout &&
		a.MaxConnections == b.MaxConnections && a.ResetDead == b.ResetDead
}

// allows tells whether a client's address may use the route.
func (s *spec) allows(client netip.Addr) bool {
	return len(s.SourceRanges) == 0 || s.allowed.contain(client)
}

// owner counts the connections of a load balancer over its frontends.
type owner struct {
	id     lb.Owner
	active atomic.Int64
}

// take counts one more connection unless there are as many as allowed.
func (o *owner) take(limit int) bool {
	if n := o.active.Add(1); limit > 0 && n > int64(limit) {
		o.active.Add(-1)
		return false
	}
	return true
}

// frontend is one frontend of one owner over time. It outlives its route while
// connections drain.
type frontend struct {
	id    lb.Frontend
	owner *owner
	spec  atomic.Pointer[spec]
	loops int

	// Owned by Set:
	ln      acceptor // nil while nothing is bound
	serving bool     // the socket takes clients
	trouble error    // what a loop says of the socket

	active   atomic.Int64
	accepted atomic.Uint64
	refused  [refusedCauses]atomic.Uint64

	mu      sync.Mutex
	view    *view               // what byPos and current belong to
	byPos   []*link             // by position in view.candidates, nil before the first dial
	current []int               // state of the weighted round robin
	turn    int                 // state of the round robin
	links   map[memberKey]*link // all members ever dialled
	homes   *homes              // of clients; nil: they are not remembered
	homeGen uint16              // of the last entry of the homes before
	retired bool
}

// The causes of refusals, as indices.
const (
	refusedNoMember = iota
	refusedSource
	refusedLimit
	refusedCauses
)

func newFrontend(id lb.Frontend, o *owner, loops int) *frontend {
	fe := &frontend{id: id, owner: o, loops: loops, links: make(map[memberKey]*link)}
	// Else all frontends with little traffic would begin with the same member.
	fe.turn = int(mix(hashAddr(id.Addr)+uint64(id.Port)) >> 34)
	return fe
}

// link is one member of one frontend, with what goes on between the two.
type link struct {
	memberKey
	fe     *frontend
	member atomic.Pointer[member] // another one when it left the group and came back
	check  atomic.Pointer[lb.CheckID]
	mark   mark

	active      atomic.Int64
	connections atomic.Uint64
	dialErrors  atomic.Uint64
	bytesIn     atomic.Uint64
	bytesOut    atomic.Uint64

	// drainAt is when connections are cut, zero if they may go on. It is written
	// under fe.mu.
	drainAt atomic.Int64
	// gone says that the member is not in the group any more; under fe.mu.
	gone bool
	// tracked are the heads of the rings of connections and sessions by loop. Each
	// loop has its own, nil before its first.
	tracked []*tracked
}

// track puts a connection or session into the ring of its loop.
func (k *link) track(l *loop, t *tracked, item cutter) {
	if k.tracked[l.index] == nil {
		k.tracked[l.index] = &tracked{}
	}
	k.tracked[l.index].push(t, item)
}

// tracked is a connection or session in the ring of its link in one loop.
type tracked = element[cutter]

// cutter is a connection or session that can be ended.
type cutter interface {
	handler
	// cut ends it in the loop, with a reset where there is such a thing. One that is
	// not established yet goes to another member.
	cut(l *loop)
	// end ends it in the loop, established or not.
	end(l *loop)
	// clientAddr is the address of the client.
	clientAddr() netip.Addr
	// settle notes where the client has its home, see homes.
	settle(l *loop)
}

// cut ends everything that the link has in the loop.
func (k *link) cut(l *loop) {
	head := k.tracked[l.index]
	if head == nil {
		return
	}
	for t := head.front(); t != nil; t = head.front() {
		item := t.item
		l.guard(item, func() { item.cut(l) })
		if head.front() == t { // it panicked
			t.remove()
		}
	}
}

// drain is the timer that cuts a link in a loop.
type drain struct {
	timer
	link *link
}

// drain cuts the link's connections of the loop at the time drainAt.
func (k *link) drain(l *loop) {
	at := k.drainAt.Load()
	if head := k.tracked[l.index]; at == 0 || head == nil || head.front() == nil {
		return
	}
	d := &drain{link: k}
	l.timers.set(&d.timer, at, d)
}

func (d *drain) expire(l *loop) {
	// The link may have been taken back, or be draining for another reason.
	if at := d.link.drainAt.Load(); at != 0 && at <= l.now {
		d.link.cut(l)
	}
}

func (d *drain) ready(*loop, uint32) {}
func (d *drain) abandon(*loop)       {}

// verdict says what becomes of a link's connections after a Set.
type verdict int

const (
	verdictKeep  verdict = iota
	verdictDrain         // at link.drainAt
	verdictCut           // now
)

// judge decides about every link of the frontend after its route or group has
// changed, and calls act for those whose connections do not just go on.
func (fe *frontend) judge(now int64, act func(*link, verdict)) {
	fe.mu.Lock()
	defer fe.mu.Unlock()
	s := fe.spec.Load()
	v := s.group.view.Load()
	for key, k := range fe.links {
		state, ok := v.states[key]
		k.gone = !ok || fe.retired
		if k.gone && k.active.Load() == 0 {
			fe.forget(k)
			continue
		}
		what := verdictKeep
		switch {
		case fe.id.Protocol == lb.UDP:
			if k.gone || state == lb.Dead {
				what = verdictCut
			}
		case k.gone:
			what = verdictDrain
		case state == lb.Dead && s.ResetDead:
			what = verdictCut
		}
		if what != verdictDrain {
			k.drainAt.Store(0)
		} else if k.drainAt.Load() != 0 {
			continue // drains already
		} else {
			k.drainAt.Store(max(now+int64(max(s.DrainTimeout, 0)), 1))
		}
		if what != verdictKeep && k.active.Load() > 0 {
			act(k, what)
		}
	}
}

// forget drops a link without connections. Callers hold mu.
func (fe *frontend) forget(k *link) {
	delete(fe.links, k.memberKey)
	for i, other := range fe.byPos {
		if other == k {
			fe.byPos[i] = nil
		}
	}
}

// counters returns what passed through the frontend.
func (fe *frontend) counters() lb.RouteCounters {
	fe.mu.Lock()
	defer fe.mu.Unlock()
	c := lb.RouteCounters{
		Frontend: fe.id,
		Owner:    fe.owner.id,
		Name:     fe.spec.Load().Name,
		Active:   fe.active.Load(),
		Accepted: fe.accepted.Load(),
		Refused: map[lb.RefusedCause]uint64{
			lb.RefusedNoMember: fe.refused[refusedNoMember].Load(),
			lb.RefusedSource:   fe.refused[refusedSource].Load(),
			lb.RefusedLimit:    fe.refused[refusedLimit].Load(),
		},
	}
	for _, k := range fe.links {
		c.Members = append(c.Members, lb.MemberCounters{
			Node:        k.node,
			Active:      k.active.Load(),
			Connections: k.connections.Load(),
			DialErrors:  k.dialErrors.Load(),
			BytesIn:     k.bytesIn.Load(),
			BytesOut:    k.bytesOut.Load(),
		})
		if k.gone && k.active.Load() == 0 {
			fe.forget(k)
		}
	}
	return c
}
