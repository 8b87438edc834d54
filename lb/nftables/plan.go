package nftables

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// maxDistinct bounds the different limits, affinities and timeouts, since each of
// them has a chain.
const maxDistinct = 64

// state is what the kernel has, or is to have. It is not changed once it is in
// force.
type state struct {
	table  lb.Table // what it was made of
	routes map[lb.Frontend]*route
	pools  map[lb.GroupID]*pool
	owners map[lb.Owner]mark
	vips   map[netip.Addr]bool
	shape  *shape
	chains []*chain
	// datagrams are the groups that UDP routes use, drains the drain timeouts of
	// all routes.
	datagrams map[lb.GroupID]bool
	drains    map[time.Duration]bool
	// What follows is of routes whose packets are routed as they are: those that are
	// gone and of which flows are left, their pools, those of which the dead go on to
	// serve, and the members with their numbers: those that may get packets, and those
	// that take new connections.
	leaving          map[lb.Frontend]*route
	directs, sparing map[lb.GroupID]bool
	gateways, takers map[netip.Addr]mark
	settings         map[string]element // of links, as they were
}

func newState() *state {
	return &state{
		routes: make(map[lb.Frontend]*route), pools: make(map[lb.GroupID]*pool),
		leaving: make(map[lb.Frontend]*route),
		owners:  make(map[lb.Owner]mark), vips: make(map[netip.Addr]bool), shape: newShape(),
		datagrams: make(map[lb.GroupID]bool), drains: make(map[time.Duration]bool),
		directs: make(map[lb.GroupID]bool), sparing: make(map[lb.GroupID]bool),
	}
}

// with returns the state with another pool in place of one.
func (s *state) with(id lb.GroupID, p *pool) *state {
	t := *s
	t.pools = maps.Clone(s.pools)
	t.pools[id] = p
	return &t
}

// plan is the way from one state to the next.
type plan struct {
	e        *Engine
	was      *state
	next     *state
	now      time.Time
	refused  map[lb.Frontend]error
	removed  []*route
	revived  []*route
	deleted  map[string][]element
	added    map[string][]element
	affinity []netip.Addr // members that remembered clients must not go to any more
	rehomed  bool         // remembered clients of a route have another pool
	// homes are the routes whose clients are remembered from now on.
	homes map[mark]*route
	// strangers are frontends that had another owner, with counters of their members.
	strangers map[lb.Frontend]bool
	// soon are the flows among which some have to end at once; later tells that some
	// end by and by.
	soon  []selector
	later bool
}

// datagramsSoon notes that sessions may have to end.
func (p *plan) datagramsSoon(which selector) {
	which.protocol = unix.IPPROTO_UDP
	p.soon = append(p.soon, which)
}

// plan works out the next state. It changes nothing but which numbers are given
// out.
func (e *Engine) plan(t lb.Table, own map[netip.Addr]bool, now time.Time) *plan {
	p := &plan{
		e: e, was: e.state, now: now, refused: make(map[lb.Frontend]error),
		deleted: make(map[string][]element), added: make(map[string][]element), homes: make(map[mark]*route),
		strangers: make(map[lb.Frontend]bool),
	}
	next := newState()
	next.table = t
	p.next = next
	if p.was.chains != nil && sameMap(t.Routes, p.was.table.Routes) && maps.Equal(own, e.own) && p.keepRoutes() {
		// Only members have changed, which is the usual case.
		p.changePools()
		p.setGateways()
		p.setSettings()
		return p
	}
	p.setRoutes(t.Routes)
	p.leave()
	p.changePools()
	for f := range next.routes {
		if !own[f.Addr] {
			next.vips[f.Addr] = true
		}
	}
	p.changeVIPs()
	next.shape = e.shapeOf(next)
	next.chains = next.shape.chains()
	p.setGateways()
	p.setSettings()
	return p
}

// keepRoutes takes over all routes as they are, and changes only the pools. It
// returns false if that is not enough.
func (p *plan) keepRoutes() bool {
	p.next.leaving, p.next.directs, p.next.sparing = p.was.leaving, p.was.directs, p.was.sparing
	for _, r := range p.was.leaving {
		if p.e.direct.over(r, p.now) {
			return false
		}
	}
	for id, was := range p.was.pools {
		if p.setPool(id, was.version).size != was.size {
			return false
		}
	}
	p.next.vips, p.next.shape, p.next.chains = p.was.vips, p.was.shape, p.was.chains
	p.next.datagrams, p.next.drains = p.was.datagrams, p.was.drains
	p.next.routes, p.next.owners = p.was.routes, p.was.owners
	maps.Copy(p.refused, p.e.refused)
	return true
}

// setPool brings a pool in line with its group, which has no backends if the
// table does not have it.
func (p *plan) setPool(id lb.GroupID, v *version) *pool {
	if done := p.next.pools[id]; done != nil {
		return done
	}
	backends := p.next.table.Groups[id].Backends
	was := p.was.pools[id]
	if was != nil && slices.Equal(was.backends, backends) {
		p.next.pools[id] = was
		return was
	}
	var number mark
	if was != nil {
		number = was.id
	} else {
		number = p.e.numbers.poolID(id)
	}
	now := succeed(was, number, v, backends, p.now)
	if p.next.directs[id] {
		now.numbers = p.e.direct.of(now)
	}
	for a, d := range p.e.former[id] {
		if _, there := now.members[a]; !there && was == nil {
			now.gone[a] = d
		}
	}
	p.next.pools[id] = now
	return now
}

// changePools notes what has changed in pools.
func (p *plan) changePools() {
	for id, now := range p.next.pools {
		was := p.was.pools[id]
		if was == now {
			continue
		}
		p.changeBuckets(was, now)
		if was != nil {
			p.changeMembers(was, now, p.was.datagrams[id])
		}
	}
	for id, was := range p.was.pools {
		if p.next.pools[id] == nil {
			p.changeBuckets(was, nil)
		}
	}
}

// changeMembers notes what the change of a pool means for its flows.
func (p *plan) changeMembers(was, now *pool, datagrams bool) {
	for a, b := range was.members {
		after, stays := now.members[a]
		switch {
		case stays && after.State == b.State:
		case !stays:
			if datagrams {
				p.datagramsSoon(selector{member: a})
			}
			p.later = true
			p.affinity = append(p.affinity, a)
		case after.State == lb.Dead:
			p.soon = append(p.soon, selector{member: a})
			p.affinity = append(p.affinity, a)
		case after.State == lb.Draining:
			p.later = true
			p.affinity = append(p.affinity, a)
		}
	}
}

// changeBuckets notes the elements of a pool that change.
func (p *plan) changeBuckets(was, now *pool) {
	size := 0
	for _, q := range []*pool{was, now} {
		if q != nil {
			size = max(size, q.size)
		}
	}
	at := func(q *pool, i int) netip.Addr {
		if q == nil || i >= q.size {
			return netip.Addr{}
		}
		return q.buckets[i]
	}
	for i := range size {
		before, after := at(was, i), at(now, i)
		if before == after {
			continue
		}
		if before.IsValid() {
			e := was.bucket(i)
			p.deleted[e.set] = append(p.deleted[e.set], e)
		}
		if after.IsValid() {
			e := now.bucket(i)
			p.added[e.set] = append(p.added[e.set], e)
		}
	}
}

// changeElements notes the elements of a route that change.
func (p *plan) changeElements(was, now []element) {
	type place struct{ set, key string }
	before := make(map[place]value, len(was))
	for _, e := range was {
		before[place{e.set, e.key}] = e.value
	}
	for _, e := range now {
		at := place{e.set, e.key}
		v, ok := before[at]
		delete(before, at)
		if ok && v == e.value {
			continue
		}
		if ok {
			p.deleted[e.set] = append(p.deleted[e.set], element{e.set, e.key, v})
		}
		p.added[e.set] = append(p.added[e.set], e)
	}
	for at, v := range before {
		p.deleted[at.set] = append(p.deleted[at.set], element{at.set, at.key, v})
	}
}

func (p *plan) changeVIPs() {
	for a := range p.was.vips {
		if !p.next.vips[a] {
			set := "vips" + versionOf(a).suffix
			p.deleted[set] = append(p.deleted[set], element{set: set, key: string(a.AsSlice())})
		}
	}
	for a := range p.next.vips {
		if !p.was.vips[a] {
			p.added["vips"+versionOf(a).suffix] = append(p.added["vips"+versionOf(a).suffix], vipElement(a))
		}
	}
}

func vipElement(a netip.Addr) element {
	return element{set: "vips" + versionOf(a).suffix, key: string(a.AsSlice())}
}

// setRoutes brings the routes in line with the table.
func (p *plan) setRoutes(routes map[lb.Frontend]lb.Route) {
	crowded := crowdedOut(routes)
	p.next.directs, p.next.sparing = make(map[lb.GroupID]bool), make(map[lb.GroupID]bool)
	var fresh []lb.Frontend
	for f, spec := range routes {
		spec = ours(spec)
		err := unsupported(f, spec)
		if why := p.e.closedTo[versionOf(f.Addr)]; err == nil && why != nil {
			err = fmt.Errorf("serve %s: %w", f, why)
		}
		if err == nil {
			err = crowded.refuse(f, spec)
		}
		if err != nil {
			p.refused[f] = err
			continue
		}
		p.next.drains[spec.DrainTimeout] = true
		if f.Protocol == lb.UDP {
			p.next.datagrams[spec.Group] = true
		}
		if spec.Direct {
			p.next.directs[spec.Group] = true
			p.next.sparing[spec.Group] = p.next.sparing[spec.Group] || !spec.ResetDead
		}
		if was := p.was.routes[f]; was == nil || was.spec.Owner != spec.Owner {
			fresh = append(fresh, f)
			continue
		}
		p.setRoute(f, spec)
	}
	// In order, so that equal tables get equal numbers.
	slices.SortFunc(fresh, compareFrontends)
	for _, f := range fresh {
		p.setRoute(f, ours(routes[f]))
	}
	for f, was := range p.was.routes {
		if now := p.next.routes[f]; now == nil || now.id != was.id {
			p.removed = append(p.removed, was)
			p.changeElements(was.elements, nil)
			p.later = true
			if f.Protocol == lb.UDP {
				p.datagramsSoon(selector{frontend: f.Addr})
			}
		}
	}
}

func compareFrontends(a, b lb.Frontend) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}

func (p *plan) setRoute(f lb.Frontend, spec lb.Route) {
	pool := p.setPool(spec.Group, versionOf(f.Addr))
	was := p.was.routes[f]
	if was != nil && was.spec.Owner != spec.Owner {
		was = nil
	}
	limited := mark(0)
	if spec.MaxConnections > 0 {
		limited = p.owner(spec.Owner)
	}
	if was != nil && was.pool == pool.id && was.size == pool.size && was.owner == limited && sameSpec(&was.spec, &spec) {
		p.next.routes[f] = was
		return
	}
	r := &route{Frontend: f, spec: spec, pool: pool.id, size: pool.size, owner: limited, since: p.now}
	var before []element
	switch {
	case was != nil:
		r.id, before = was.id, was.elements
		if was.pool == pool.id {
			r.since = was.since
		} else {
			p.later = true
		}
		narrowed := len(spec.SourceRanges) > 0 && !slices.Equal(was.spec.SourceRanges, spec.SourceRanges)
		switch {
		case narrowed && f.Protocol == lb.UDP && !spec.Direct:
			p.datagramsSoon(selector{frontend: f.Addr})
		case narrowed, spec.ResetDead && !was.spec.ResetDead:
			p.soon = append(p.soon, selector{frontend: f.Addr})
		}
	default:
		if old := p.e.retired[retiredKey{f, spec.Owner}]; old != nil {
			r.id, r.since = old.id, old.since
			p.revived = append(p.revived, old)
		} else {
			r.id = p.e.routeID(f, spec.Owner)
		}
	}
	if o, counted := p.e.direct.counts[f]; spec.Direct && counted && o != spec.Owner {
		p.strangers[f] = true
	}
	r.make()
	p.rehomed = p.rehomed || spec.AffinityFor > 0 && (was == nil || was.pool != pool.id)
	if was != nil && was.spec.AffinityFor == 0 && spec.AffinityFor > 0 {
		p.homes[r.id] = r
	}
	p.changeElements(before, r.elements)
	p.next.routes[f] = r
}

// owner returns the mark that an owner's connections are counted as.
func (p *plan) owner(o lb.Owner) mark {
	if m, ok := p.next.owners[o]; ok {
		return m
	}
	m, ok := p.was.owners[o]
	if !ok {
		m = p.e.numbers.ownerID(o)
	}
	p.next.owners[o] = m
	return m
}

// crowd is which values are allowed of those that need a chain each.
type crowd struct{ idle, affinity, limit map[int]bool }

// crowdedOut allows as many different values as there may be, small ones first.
func crowdedOut(routes map[lb.Frontend]lb.Route) crowd {
	c := crowd{make(map[int]bool), make(map[int]bool), make(map[int]bool)}
	for _, r := range routes {
		c.idle[seconds(r.IdleTimeout)] = true
		c.affinity[seconds(r.AffinityFor)] = true
		c.limit[r.MaxConnections] = true
	}
	for _, m := range []map[int]bool{c.idle, c.affinity, c.limit} {
		if len(m) > maxDistinct {
			for _, v := range slices.Sorted(maps.Keys(m))[maxDistinct:] {
				delete(m, v)
			}
		}
	}
	return c
}

func (c crowd) refuse(f lb.Frontend, r lb.Route) error {
	for _, k := range []struct {
		what    string
		value   any
		allowed bool
	}{
		{"idle timeouts", r.IdleTimeout, c.idle[seconds(r.IdleTimeout)]},
		{"affinity timeouts", r.AffinityFor, c.affinity[seconds(r.AffinityFor)]},
		{"connection limits", r.MaxConnections, c.limit[r.MaxConnections]},
	} {
		if !k.allowed {
			return fmt.Errorf("serve %s: the engine %q has at most %d different %s, and those of the table that are smaller than %v come first: %w", f, Name, maxDistinct, k.what, k.value, lb.ErrExhausted)
		}
	}
	return nil
}

// shapeOf returns what chains the routes need.
func (e *Engine) shapeOf(next *state) *shape {
	s := newShape()
	s.untouched = e.opts.KeepSources
	for v, addrs := range e.sources {
		s.sources[v] = len(addrs)
	}
	for _, r := range next.leaving {
		s.holders[r.holder()] = true
	}
	for _, r := range next.routes {
		if r.spec.Direct {
			s.holders[r.holder()], s.choosers[r.chooser()] = true, true
			continue
		}
		s.pickers[r.picker()] = true
		s.timeouts[r.timeouts()] = true
		if r.owner != 0 {
			s.limits[r.limit()] = true
		}
		if r.spec.AffinityFor > 0 {
			s.affinities[r.affinity()] = true
		}
	}
	return s
}
