package nftables

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

const (
	// maxGateways is to how many members of a family packets are routed as they are,
	// since each has an ip rule and a routing table. As many more may have left a
	// while ago.
	maxGateways = 256
	// gatewayNumbers are the bits in which marks of members differ. Those from 0x200
	// to 0x8000 are not among them, since others on the machine look at these.
	gatewayNumbers mark = 0x0001ffff
	// linkLost is how long an address may be on no link before it counts: a link may
	// go down for a moment, and health checks tell of members that are gone.
	linkLost = 3 * time.Second
)

// direct is what the engine keeps in mind about routes whose packets are routed to
// members as they are.
type direct struct {
	steering steering
	watch    steering // the keeper's own, to look with while mu is free
	trouble  trouble
	told     string                   // what the log was last told of it
	left     string                   // and of what could not be taken away
	routes   map[lb.Frontend]lb.Route // the table's that groups was made of
	groups   map[lb.GroupID]bool      // those that such routes use
	// counts are the owners of frontends that the table counts something for, past what
	// it has counted of connections to members whose numbers were taken back.
	counts  map[lb.Frontend]lb.Owner
	past    map[mark]uint64
	longest time.Duration // that flows to members that are gone go on
	links   map[netip.Addr]link
	lost    map[netip.Addr]time.Time // on a link once, and since when not
	numbers map[netip.Addr]mark      // of members
	// leaving are members that no group has any more, with when the last flows to
	// them end; swept is when the last look at all flows began.
	leaving map[netip.Addr]time.Time
	freed   map[mark]bool // numbers that nobody has, and counters perhaps still
	swept   time.Time
	due     bool          // all flows have to be looked at
	cost    time.Duration // of the last such look
	without map[lb.GroupID]*lb.MembersError
	nobody  map[lb.GroupID]bool // none of its members can be used
	cuts    cuts[ends]
	active  bool          // the kernel may have rules
	kept    map[mark]bool // those that it has at most
	checked time.Time     // the kernel's rules and routes
	// inherited are removed routes that another process has told of.
	inherited map[lb.Frontend]*route
	// purgeAt is when to look for clients that are remembered for members that take no
	// new connections of their route; zero if there is no reason. After a change that
	// is done twice.
	purgeAt time.Time
	changed bool
}

// directGroup names the part of a group to which packets can be routed.
func directGroup(id lb.GroupID) lb.GroupID {
	id.Name += " direct"
	return id
}

// ours returns a route as this engine sees it.
func ours(r lb.Route) lb.Route {
	if r.Direct {
		r.Group = directGroup(r.Group)
	}
	return r
}

// withDirect returns the table with the groups of members to which packets can be
// routed, brings the kernel's routing in line before any packet gets the mark of a new
// one, and finds out whom that leaves out.
func (e *Engine) withDirect(t lb.Table, now time.Time) lb.Table {
	d := &e.direct
	if d.routes == nil || !sameMap(d.routes, t.Routes) {
		d.routes, d.groups, d.longest = t.Routes, make(map[lb.GroupID]bool), 0
		for _, r := range t.Routes {
			if r.Direct {
				d.groups[r.Group] = true
				d.longest = max(d.longest, r.DrainTimeout)
			}
		}
	}
	d.without, d.nobody = make(map[lb.GroupID]*lb.MembersError), make(map[lb.GroupID]bool)
	if len(d.groups) == 0 && len(d.numbers) == 0 {
		return t
	}
	if until := d.number(t, e.state, now); !until.IsZero() {
		e.sweepAt(until)
	}
	e.unclean = e.unclean || len(d.freed) > 0
	e.steer()
	groups := maps.Clone(t.Groups)
	for id := range d.groups {
		within := make([]lb.Backend, 0, len(t.Groups[id].Backends))
		without := make(map[lb.NodeName]string)
		for _, b := range t.Groups[id].Backends {
			if why := d.refuses(b.Addr); why != "" {
				without[b.Node] = why
			} else {
				within = append(within, b)
			}
		}
		if len(without) > 0 {
			d.without[id], d.nobody[id] = &lb.MembersError{Without: without}, len(within) == 0
		}
		groups[directGroup(id)] = lb.Group{Backends: within}
	}
	return lb.Table{Routes: t.Routes, Groups: groups}
}

// number gives all members of such groups that are on a link their numbers. It
// returns when flows have to be looked at, so that a number can be given again.
func (d *direct) number(t lb.Table, s *state, now time.Time) (until time.Time) {
	wanted := make(map[netip.Addr]bool)
	for id := range d.groups {
		for _, b := range t.Groups[id].Backends {
			wanted[b.Addr] = true
		}
	}
	d.look(wanted, now)
	until = d.release(wanted, s, now)
	taken, many := maps.Clone(d.freed), make(map[*version]int)
	for a, m := range d.numbers {
		taken[m] = true
		if wanted[a] {
			many[versionOf(a)]++
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(wanted), netip.Addr.Compare) {
		v := versionOf(a)
		if d.numbers[a] != 0 || d.links[a].why != "" || many[v] >= maxGateways {
			continue
		}
		for n := range mark(2 * maxGateways) {
			if m := gatewayMark(v, n); !taken[m] {
				d.numbers[a], taken[m] = m, true
				many[v]++
				break
			}
		}
	}
	return until
}

// release takes numbers back of members that no group has any more, when no flow goes
// to them for certain. It returns when that is, for those that have just left.
func (d *direct) release(wanted map[netip.Addr]bool, s *state, now time.Time) (until time.Time) {
	longest := now.Add(max(lb.DefaultDrainTimeout, d.longest))
	for drain := range s.drains {
		longest = later(longest, now.Add(drain))
	}
	for _, r := range s.leaving {
		longest = later(longest, r.deadline)
	}
	for a := range d.numbers {
		switch over, leaves := d.leaving[a]; {
		case wanted[a]:
			delete(d.leaving, a)
		case !leaves:
			d.leaving[a], until = longest, longest
		case now.After(over) && (d.swept.After(over) || !s.shape.steers()):
			if s.shape.steers() {
				d.freed[d.numbers[a]] = true
			}
			delete(d.numbers, a)
			delete(d.leaving, a)
			delete(d.links, a)
		}
	}
	return until
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// gatewayMark is on packets to a member, which the two families number apart.
func gatewayMark(v *version, n mark) mark {
	m := ofGateway | n/maxGateways<<16 | n%maxGateways
	if v == v6 {
		m |= maxGateways
	}
	return m
}

// version returns the family of a member's mark.
func (m mark) version() *version {
	if m&maxGateways != 0 {
		return v6
	}
	return v4
}

// look finds out on which links addresses are of which that is not known. The keeper
// looks again at those of which it is.
func (d *direct) look(wanted map[netip.Addr]bool, now time.Time) {
	unknown := make(map[netip.Addr]bool)
	note := func(a netip.Addr) {
		if d.links[a].index == 0 {
			unknown[a] = true
		}
	}
	for a := range wanted {
		note(a)
	}
	for a := range d.numbers {
		note(a)
	}
	if len(unknown) > 0 {
		d.found(d.steering.links(unknown), now)
	}
	for a := range d.links {
		if !wanted[a] && d.numbers[a] == 0 {
			delete(d.links, a)
			delete(d.lost, a)
		}
	}
}

// found notes on which links addresses are, and tells whether anything has changed.
func (d *direct) found(links map[netip.Addr]link, now time.Time) (changed bool) {
	for a, l := range links {
		was := d.links[a]
		if l.why == "" || was.index == 0 && !d.served(a) {
			changed = changed || was != l
			d.links[a] = l
			delete(d.lost, a)
			continue
		}
		since, lost := d.lost[a]
		switch {
		case !lost:
			d.lost[a] = now
		case now.Sub(since) >= linkLost:
			d.links[a], changed = l, true
			delete(d.lost, a)
		}
	}
	return changed
}

// served tells whether there was a way to a member.
func (d *direct) served(a netip.Addr) bool {
	m := d.numbers[a]
	return m != 0 && d.steering.done[m].addr == a
}

// refuses says why no packets can be routed to a member.
func (d *direct) refuses(a netip.Addr) string {
	if why := d.links[a].why; why != "" {
		return why
	}
	if d.numbers[a] == 0 {
		return fmt.Sprintf("forwarding direct has at most %d nodes of a family, and as many that were removed a while ago", maxGateways)
	}
	return d.trouble.faults[a]
}

// complain adds what is wrong with frontends of such routes: nobody can serve them,
// or not all that should.
func (d *direct) complain(refused map[lb.Frontend]error, routes map[lb.Frontend]lb.Route) {
	if len(d.without) == 0 {
		return
	}
	for f, r := range routes {
		if !r.Direct || refused[f] != nil {
			continue
		}
		if why := d.trouble.obstacles[versionOfFamily(r.Group.Family)]; why != "" && d.nobody[r.Group] {
			refused[f] = fmt.Errorf("serve %s: forwarding direct cannot work here: %s: %w", f, why, lb.ErrUnsupported)
			continue
		}
		without := d.without[r.Group]
		if without == nil {
			continue
		}
		refused[f] = without
		if d.nobody[r.Group] {
			refused[f] = fmt.Errorf("serve %s: none of its nodes can be used with forwarding direct: %s: %w", f, without.Why(), lb.ErrUnsupported)
		}
	}
}

// of returns the numbers of the members of a pool.
func (d *direct) of(p *pool) map[netip.Addr]mark {
	numbers := make(map[netip.Addr]mark, len(p.members))
	for a := range p.members {
		numbers[a] = d.numbers[a]
	}
	return numbers
}

// gateways are the members that the engine routes packets to.
func (d *direct) gateways() []gateway {
	all := make([]gateway, 0, len(d.numbers))
	for a, m := range d.numbers {
		if l := d.links[a]; l.why == "" && l.index != 0 {
			all = append(all, gateway{addr: a, mark: m, link: l})
		}
	}
	slices.SortFunc(all, func(a, b gateway) int { return int(a.mark) - int(b.mark) })
	return all
}

// makeDirect works out the elements of a route whose packets are routed as they are.
func (r *route) makeDirect() {
	v, id := r.version(), string(r.id.host())
	key := string(tupleKey(r.Frontend))
	goTo := func(set, key, chain string) element {
		return element{set, key, value{verdict: unix.NFT_GOTO, chain: chain}}
	}
	all := append(r.heldElements(),
		element{"pools", id, value{data: string(r.pool.host())}},
		goTo("choosers"+v.suffix, key, r.chooser().chain()),
	)
	if len(r.spec.SourceRanges) > 0 {
		all = append(all, element{set: "restricted", key: id})
		r.allowed = disjoint(r.spec.SourceRanges, v.family)
		for _, p := range r.allowed {
			all = append(all, rangeElement(r.id, p))
		}
	}
	r.elements = all
}

// heldElements are what flows need that have a member. The first two keep other
// connections from this machine's own programs: those that no member gets, and those
// of this machine itself, whose address members would answer.
func (r *route) heldElements() []element {
	v, id := r.version(), string(r.id.host())
	key := string(tupleKey(r.Frontend))
	return []element{
		{"routes" + v.suffix, key, value{data: id, comment: ownerComment(r.spec.Owner, r.spec.Name)}},
		{"pickers", id, value{verdict: unix.NFT_GOTO, chain: "memberless" + v.suffix}},
		{"holders" + v.suffix, key, value{verdict: unix.NFT_GOTO, chain: r.holder().chain()}},
		{set: "fronts" + v.suffix, key: key},
	}
}

func (r *route) holder() holder {
	return holder{r.version(), protocolNumber(r.Protocol), seconds(r.spec.IdleTimeout)}
}

func (r *route) chooser() chooser {
	c := chooser{version: r.version(), protocol: protocolNumber(r.Protocol), seconds: seconds(r.spec.IdleTimeout), size: r.size}
	if r.Protocol == lb.TCP {
		c.seconds = min(c.seconds, halfOpen)
	}
	c.bySource = r.spec.AffinityFor > 0 || r.spec.Algorithm == lb.SourceHash
	if r.spec.AffinityFor > 0 {
		c.affinity = seconds(r.spec.AffinityFor)
	}
	return c
}

// leave has the flows of removed routes go on until their time is over, and of those
// that are served in another way now.
func (p *plan) leave() {
	next := make(map[lb.Frontend]*route)
	stays := func(f lb.Frontend) bool { r := p.next.routes[f]; return r != nil && r.spec.Direct }
	for f, r := range p.was.leaving {
		if !stays(f) && !p.e.direct.over(r, p.now) {
			next[f] = r
		}
	}
	for f, r := range p.was.routes {
		if !r.spec.Direct || stays(f) {
			continue
		}
		old := *r
		old.deadline = p.now.Add(r.spec.DrainTimeout)
		next[f] = &old
	}
	for f, r := range next {
		held := r.heldElements()
		if p.next.routes[f] != nil {
			held = held[2:] // the others are the new route's
		}
		if slices.Equal(held, r.elements) {
			continue
		}
		changed := *r
		changed.elements = held
		next[f] = &changed
	}
	for f, r := range p.was.leaving {
		if next[f] == nil {
			p.changeElements(r.elements, nil)
		}
	}
	for f, r := range next {
		var before []element
		if was := p.was.leaving[f]; was != nil {
			before = was.elements
		}
		p.changeElements(before, r.elements)
		p.next.directs[r.spec.Group] = true
		p.setPool(r.spec.Group, r.version())
	}
	p.next.leaving = next
}

// setGateways says to whom packets may be sent: not to the dead, so that their flows
// end with the next packet, unless a route lets these go on. Members that no pool has,
// which those of a process before may be, drain as long as they have numbers.
func (p *plan) setGateways() {
	if !p.next.shape.steers() {
		return // there are no such sets
	}
	next := maps.Clone(p.e.direct.numbers)
	if next == nil {
		next = make(map[netip.Addr]mark)
	}
	takers := make(map[netip.Addr]mark)
	if len(next) > 0 {
		dead, goesOn := make(map[netip.Addr]bool), make(map[netip.Addr]bool)
		for id, q := range p.next.pools {
			if !p.next.directs[id] {
				continue
			}
			for a, b := range q.members {
				if b.State == lb.Dead && !p.next.sparing[id] {
					dead[a] = true
				} else {
					goesOn[a] = true
				}
				if m := p.e.direct.numbers[a]; m != 0 && b.State == lb.Active {
					takers[a] = m
				}
			}
			for a := range q.gone {
				goesOn[a] = true
			}
		}
		maps.DeleteFunc(next, func(a netip.Addr, _ mark) bool { return dead[a] && !goesOn[a] })
	}
	p.next.gateways, p.next.takers = next, takers
	for a, m := range p.was.takers {
		if takers[a] != m {
			p.deleted["takers"] = append(p.deleted["takers"], takerElement(m))
		}
	}
	for a, m := range takers {
		if p.was.takers[a] != m {
			p.added["takers"] = append(p.added["takers"], takerElement(m))
		}
	}
	for a, m := range p.was.gateways {
		if next[a] != m {
			for _, e := range gatewayElements(a, m) {
				p.deleted[e.set] = append(p.deleted[e.set], e)
			}
		}
	}
	for a, m := range next {
		if p.was.gateways[a] != m {
			for _, e := range gatewayElements(a, m) {
				p.added[e.set] = append(p.added[e.set], e)
			}
		}
	}
}

func takerElement(m mark) element { return element{set: "takers", key: string(m.host())} }

func gatewayElements(a netip.Addr, m mark) []element {
	return []element{
		{"gateways" + versionOf(a).suffix, string(a.AsSlice()), value{data: string(m.host())}},
		{set: "members", key: string(m.host())},
	}
}
