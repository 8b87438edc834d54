package proxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/eclusa-lb/eclusa/lb"
)

// acceptor is the socket of a frontend. Its methods are called in the loop that
// is its home, unless it is said otherwise.
type acceptor interface {
	// home is the index of the loop that has the socket. Anybody may call it.
	home() int
	// ended tells whether the socket is closed. Anybody may call it.
	ended() bool
	// attach watches the new socket, which serves from then on.
	attach(l *loop) error
	// assign gives the socket to another frontend with the same address.
	assign(l *loop, fe *frontend)
	// serve begins or ends to take clients. Without it the kernel turns them away.
	// A socket for which it returns an error is of no use any more.
	serve(l *loop, on bool) error
	// close closes the socket at once; UDP sessions end with it.
	close(l *loop)
	// retire takes no one new, and closes the socket with its last session.
	retire(l *loop)
	// pause stops reading the socket and those of its sessions, which another
	// process is to have, and resume begins again.
	pause(l *loop)
	resume(l *loop) error
}

// retiredKey names a frontend that was removed from the table.
type retiredKey struct {
	id lb.Frontend
	by lb.Owner
}

// change is the work of one Set.
type change struct {
	e       *Engine
	now     int64
	holders *holders
	refused map[lb.Frontend]error
	work    [][]func(*loop)
	touched []*frontend // whose links must be judged
	changed map[*group]bool

	ranges map[rangesKey]ranges // that were made in this Set
}

// Set replaces the table. Listeners are opened, closed and changed by
// difference; a frontend that cannot be served is returned with the reason, which
// wraps [lb.ErrAddressHeld] if somebody else has the address and port.
func (e *Engine) Set(ctx context.Context, t lb.Table) (map[lb.Frontend]error, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, errShutdown
	}
	if e.handed {
		return nil, errHanded
	}
	if err := e.run(); err != nil {
		return nil, fmt.Errorf("set a table: %w", err)
	}
	c := &change{
		e:       e,
		now:     e.clock(),
		holders: &holders{},
		refused: make(map[lb.Frontend]error),
		changed: make(map[*group]bool),
		ranges:  make(map[rangesKey]ranges),
	}
	c.reset()
	needs := needsOf(t.Routes)
	c.setGroups(t.Groups, needs)
	// All views are in force by now, so that nobody waits who has lost a member.
	ctx, cancel := context.WithTimeout(ctx, tableWait)
	defer cancel()
	missing, outdated := e.tables.want(c.hashedGroups(needs))
	await(ctx, missing) // or clients would go elsewhere for a moment when an edge starts
	c.setRoutes(t.Routes)
	c.dropTables(needs)
	// What is closed must be closed before its address is opened again.
	c.do()
	c.inherit()
	c.open()
	for _, fe := range c.touched {
		fe.judge(c.now, c.act)
	}
	c.do()
	await(ctx, outdated)
	c.shareClients()
	e.forgetRetired()
	if len(c.refused) == 0 {
		return nil, nil
	}
	return c.refused, nil
}

func (c *change) reset() { c.work = make([][]func(*loop), len(c.e.loops)) }

func (c *change) do() {
	c.e.do(c.work)
	c.reset()
}

// in makes f be called in a loop by the next do.
func (c *change) in(index int, f func(*loop)) { c.work[index] = append(c.work[index], f) }

// inAll makes f be called in all loops by the next do.
func (c *change) inAll(f func(*loop)) {
	for i := range c.work {
		c.in(i, f)
	}
}

// setGroups brings groups in line.
func (c *change) setGroups(groups map[lb.GroupID]lb.Group, needs map[lb.GroupID]need) {
	for id, g := range groups {
		cur := c.e.groups[id]
		if cur == nil {
			cur = newGroup()
			c.e.groups[id] = cur
		}
		cur.indexed = cur.indexed || needs[id].index // the routes that were set before are still in force
		if cur.set(g.Backends) {
			c.changed[cur] = true
		}
		if cur.indexed = needs[id].index; cur.indexed {
			cur.view.Load().position(0) // it had none before
		}
	}
	for id, cur := range c.e.groups {
		if _, ok := groups[id]; !ok && cur.set(nil) {
			c.changed[cur] = true
		}
	}
}

// need is what routes need of the views of their group, which takes longer to make
// than a loop may stand still.
type need struct {
	table bool
	index bool // see view.position
}

// needsOf returns what the routes need of groups.
func needsOf(routes map[lb.Frontend]lb.Route) map[lb.GroupID]need {
	all := make(map[lb.GroupID]need)
	for _, r := range routes {
		n := all[r.Group]
		switch {
		case r.AffinityFor > 0:
			n.index = true
		case r.Algorithm == lb.SourceHash:
			n.table = true
		default:
			continue
		}
		all[r.Group] = n
	}
	return all
}

// hashedGroups returns the groups that need a table.
func (c *change) hashedGroups(needs map[lb.GroupID]need) (hashed []hashedGroup) {
	for id, n := range needs {
		if g := c.e.groups[id]; g != nil && n.table {
			hashed = append(hashed, hashedGroup{id, g.view.Load()})
		}
	}
	return hashed
}

// dropTables forgets the tables of groups whose routes do not go by them any more.
func (c *change) dropTables(needs map[lb.GroupID]need) {
	for id, g := range c.e.groups {
		if !needs[id].table {
			g.view.Load().placed.Store(nil)
		}
	}
}

// setRoutes brings frontends in line with the routes, without opening anything.
func (c *change) setRoutes(routes map[lb.Frontend]lb.Route) {
	e := c.e
	used := make(map[*group]bool, len(e.groups))
	owners := make(map[lb.Owner]*owner, len(e.owners))
	for id, r := range routes {
		if err := unsupported(id, r); err != nil {
			c.refused[id] = err
			continue
		}
		g := e.groups[r.Group]
		if g == nil {
			g = newGroup()
			e.groups[r.Group] = g
		}
		used[g] = true
		fe := c.frontend(id, r.Owner)
		owners[r.Owner] = fe.owner
		if was := fe.spec.Load(); was == nil || !was.is(&r, g) {
			c.respec(fe, was, newSpec(id.Protocol, r, g, c.rangesOf(r.SourceRanges)))
			c.touched = append(c.touched, fe)
		} else if c.changed[g] {
			c.touched = append(c.touched, fe)
		}
	}
	for id, fe := range e.frontends {
		if _, ok := routes[id]; !ok || c.refused[id] != nil {
			c.remove(fe)
		}
	}
	c.restrictRetired(routes)
	for id, g := range e.groups {
		if !used[g] {
			delete(e.groups, id)
		}
	}
	for id, o := range e.owners {
		if o.active.Load() > 0 {
			owners[id] = o
		}
	}
	e.owners = owners
}

// respec gives a frontend another spec, and makes what it has follow.
func (c *change) respec(fe *frontend, was, s *spec) {
	fe.remember(&c.e.clients, s.AffinityFor > 0)
	fe.spec.Store(s)
	if was == nil {
		return
	}
	if len(s.SourceRanges) > 0 && !sameRanges(was.SourceRanges, s.SourceRanges) {
		c.inAll(fe.expel)
	}
	if was.AffinityFor <= 0 && s.AffinityFor > 0 {
		c.inAll(fe.settleAll)
	}
}

// restrictRetired makes the source ranges of an owner reach the connections that
// drain on frontends that it has no more.
func (c *change) restrictRetired(routes map[lb.Frontend]lb.Route) {
	if len(c.e.retired) == 0 {
		return
	}
	ranges := make(map[lb.Owner][]netip.Prefix) // the frontends of an owner have the same
	for _, r := range routes {
		if len(r.SourceRanges) > 0 {
			ranges[r.Owner] = r.SourceRanges
		}
	}
	for _, fe := range c.e.retired {
		c.restrict(fe, ranges[fe.owner.id])
	}
}

// restrict ends the connections of clients that are not allowed; an empty list allows
// all.
func (c *change) restrict(fe *frontend, allowed []netip.Prefix) {
	was := fe.spec.Load()
	if len(allowed) == 0 || sameRanges(was.SourceRanges, allowed) {
		return
	}
	s := *was
	s.SourceRanges, s.allowed = allowed, c.rangesOf(allowed)
	fe.spec.Store(&s)
	c.inAll(fe.expel)
}

// unsupported says why a route cannot be served, whatever the machine is like.
func unsupported(id lb.Frontend, r lb.Route) error {
	switch {
	case id.Protocol != lb.TCP && id.Protocol != lb.UDP:
		return fmt.Errorf("serve %s: protocol %q: %w by the proxy", id, id.Protocol, lb.ErrUnsupported)
	case r.ProxyProtocol != lb.ProxyOff && id.Protocol != lb.TCP:
		return fmt.Errorf("serve %s: PROXY protocol %q: over %s: %w by the proxy, which speaks it over tcp", id, r.ProxyProtocol, id.Protocol, lb.ErrUnsupported)
	case !slices.Contains([]lb.ProxyProtocol{lb.ProxyOff, lb.ProxyV1, lb.ProxyV2}, r.ProxyProtocol):
		return fmt.Errorf("serve %s: PROXY protocol %q: %w by the proxy", id, r.ProxyProtocol, lb.ErrUnsupported)
	case !slices.Contains([]lb.Algorithm{"", lb.RoundRobin, lb.LeastConnections, lb.RandomTwoChoices, lb.SourceHash}, r.Algorithm):
		return fmt.Errorf("serve %s: algorithm %q: %w by the proxy", id, r.Algorithm, lb.ErrUnsupported)
	case !id.Addr.IsValid() || id.Addr.Zone() != "" || id.Port == 0:
		return fmt.Errorf("serve %s: address and port must be set, without a zone: %w", id, lb.ErrInvalid)
	}
	return nil
}

// frontend returns the frontend of an owner: the present one, one that was
// removed a moment ago, or a new one, which takes over the socket if another
// owner had it.
func (c *change) frontend(id lb.Frontend, by lb.Owner) *frontend {
	e := c.e
	was := e.frontends[id]
	if was != nil && was.owner.id == by {
		return was
	}
	fe := c.revive(id, by)
	if fe == nil {
		o := e.owners[by]
		if o == nil {
			o = &owner{id: by}
			e.owners[by] = o
		}
		fe = newFrontend(id, o, len(e.loops))
	}
	if was != nil {
		if ln := was.ln; ln != nil {
			was.ln, fe.ln, fe.serving = nil, ln, was.serving
			c.in(ln.home(), func(l *loop) { ln.assign(l, fe) })
		}
		c.remove(was)
	}
	e.frontends[id] = fe
	return fe
}

// revive takes back a frontend whose connections drain, so that those of a load
// balancer that was gone for a moment are not cut.
func (c *change) revive(id lb.Frontend, by lb.Owner) *frontend {
	fe := c.e.retired[retiredKey{id, by}]
	if fe == nil || c.e.owners[by] != fe.owner {
		return nil
	}
	delete(c.e.retired, retiredKey{id, by})
	fe.mu.Lock()
	fe.retired = false
	fe.mu.Unlock()
	if fe.spec.Load().AffinityFor > 0 {
		fe.remember(&c.e.clients, true)
		c.inAll(fe.settleAll) // for those that are still connected
	}
	c.touched = append(c.touched, fe)
	return fe
}

// remove takes a frontend out of the table, and closes its socket.
func (c *change) remove(fe *frontend) {
	if c.e.frontends[fe.id] == fe {
		delete(c.e.frontends, fe.id)
	}
	fe.mu.Lock()
	fe.retired = true
	fe.mu.Unlock()
	fe.remember(&c.e.clients, false)
	if ln := fe.ln; ln != nil {
		fe.ln = nil
		c.in(ln.home(), ln.close)
	}
	c.e.retired[retiredKey{fe.id, fe.owner.id}] = fe
	c.touched = append(c.touched, fe)
}

// open opens sockets that are wanted and missing, and makes the others serve or
// refuse as their groups can.
func (c *change) open() {
	for _, fe := range c.e.frontends {
		serves := fe.spec.Load().group.view.Load().serves()
		ln := fe.ln
		if ln != nil && ln.ended() {
			fe.ln, fe.serving = nil, false
			continue
		}
		if ln == nil || serves == fe.serving {
			continue
		}
		fe.serving = serves
		c.in(ln.home(), func(l *loop) { fe.trouble = ln.serve(l, serves) })
	}
	c.do()
	var opened []*frontend
	for _, fe := range c.e.frontends {
		if fe.trouble != nil {
			c.fail(fe, fe.trouble)
		}
		serves := fe.spec.Load().group.view.Load().serves()
		if fe.ln != nil || c.refused[fe.id] != nil || !serves && fe.id.Protocol == lb.UDP {
			continue
		}
		ln, err := c.e.listen(fe, serves)
		if err != nil {
			c.fail(fe, err)
			continue
		}
		fe.ln, fe.serving = ln, serves
		opened = append(opened, fe)
		c.in(ln.home(), func(l *loop) { fe.trouble = ln.attach(l) })
	}
	c.do()
	for _, fe := range opened {
		if fe.trouble != nil {
			c.fail(fe, fe.trouble)
		}
	}
}

// fail gives up the frontend's socket until the next Set.
func (c *change) fail(fe *frontend, err error) {
	fe.ln, fe.serving, fe.trouble = nil, false, nil
	if errors.Is(err, errEnded) { // closed by itself, nothing is wrong
		return
	}
	c.refused[fe.id] = c.holders.explain(fe.id, err)
}

// act carries out a verdict in all loops.
func (c *change) act(k *link, v verdict) {
	if v == verdictCut {
		c.inAll(k.cut)
	} else {
		c.inAll(k.drain)
	}
}

// forgetRetired drops removed frontends without connections. Callers hold mu.
func (e *Engine) forgetRetired() {
	maps.DeleteFunc(e.retired, func(_ retiredKey, fe *frontend) bool { return fe.active.Load() == 0 })
}
