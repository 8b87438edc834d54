package nftables

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/lb"
)

// census is the last look at all connections. Looking again costs the more the
// more there are.
type census struct {
	rules, tracking *socket
	at              time.Time
	cost            time.Duration
	open            map[place]int64
}

// place is where connections go: a route and a member.
type place struct {
	route  mark
	member netip.Addr
}

// censusShare is the share of its time that a census may take when Counters is
// called again and again.
const censusShare = 20

// Counters returns what passed through every route, also through removed ones as
// long as they have connections. The kernel counts; bytes include the headers of
// packets. Counts go on when the program is started anew.
func (e *Engine) Counters() []lb.RouteCounters {
	e.counting.Lock()
	defer e.counting.Unlock()
	e.mu.Lock()
	s, running, members := e.state, e.rules != nil && !e.handed, e.direct.byNumber()
	retired, past := maps.Clone(e.retired), maps.Clone(e.direct.past)
	e.mu.Unlock()
	if !running {
		return nil
	}
	c := &e.census
	t, err := c.take(s, members)
	if err != nil {
		e.log.Error("counters cannot be read", zap.Error(err))
		return nil
	}
	for m, n := range past {
		t.routes["accepted"][m] += n
	}
	all := make([]lb.RouteCounters, 0, len(s.routes)+len(retired))
	for _, r := range s.routes {
		all = append(all, t.of(r, s.pools[r.spec.Group]))
	}
	for f, r := range s.leaving {
		delete(retired, retiredKey{f, r.spec.Owner})
		if counted := t.of(r, s.pools[r.spec.Group]); counted.Active > 0 && s.routes[f] == nil {
			all = append(all, counted)
		}
	}
	for _, r := range retired {
		if counted := t.of(r, s.pools[r.spec.Group]); counted.Active > 0 {
			all = append(all, counted)
		}
	}
	return all
}

// tally is everything that is counted.
type tally struct {
	routes      map[string]map[mark]uint64
	open        map[mark]int64
	openAt      map[place]int64
	connections map[mark]map[netip.Addr]uint64
	in, out     map[place]uint64
}

func (c *census) take(s *state, members map[mark]netip.Addr) (*tally, error) {
	for _, s := range []**socket{&c.rules, &c.tracking} {
		if *s != nil {
			continue
		}
		var err error
		if *s, err = dial(); err != nil {
			return nil, err
		}
	}
	if time.Since(c.at) >= censusShare*c.cost {
		start := time.Now()
		open := make(map[place]int64)
		if err := c.tracking.flows(func(f *flow) {
			if f.open() {
				open[place{f.mark, f.member.Addr()}]++
			}
		}); err != nil {
			return nil, err
		}
		if err := openDirect(c.rules, s, members, open); err != nil {
			return nil, err
		}
		c.open, c.at, c.cost = open, time.Now(), time.Since(start)
	}
	t := &tally{
		routes: make(map[string]map[mark]uint64), open: make(map[mark]int64), openAt: c.open,
		connections: make(map[mark]map[netip.Addr]uint64), in: make(map[place]uint64), out: make(map[place]uint64),
	}
	for p, n := range c.open {
		t.open[p.route] += n
	}
	if err := c.read(t); err != nil {
		return nil, err
	}
	return t, c.countDirect(t, s, members)
}

func (c *census) read(t *tally) error {
	for _, set := range countedSets {
		counts := make(map[mark]uint64)
		t.routes[set] = counts
		if err := c.rules.read(set, func(f found) { counts[hostMark([]byte(f.key))] = f.packets }); err != nil {
			return err
		}
	}
	for _, v := range versions {
		if err := c.rules.read("connections"+v.suffix, func(f found) {
			m, a, ok := fromMarkAddr([]byte(f.key))
			if !ok {
				return
			}
			if t.connections[m] == nil {
				t.connections[m] = make(map[netip.Addr]uint64)
			}
			t.connections[m][a] = f.packets
		}); err != nil {
			return err
		}
		for set, bytes := range map[string]map[place]uint64{"in": t.in, "out": t.out} {
			if err := c.rules.read(set+v.suffix, func(f found) {
				if m, a, ok := fromMarkAddr([]byte(f.key)); ok {
					bytes[place{m, a}] = f.bytes
				}
			}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *census) close() {
	for _, s := range []**socket{&c.rules, &c.tracking} {
		if *s != nil {
			(*s).close()
			*s = nil
		}
	}
}

// of returns the counters of one route.
func (t *tally) of(r *route, p *pool) lb.RouteCounters {
	counted := lb.RouteCounters{
		Frontend: r.Frontend, Owner: r.spec.Owner, Name: r.spec.Name,
		Active: t.open[r.id], Accepted: t.routes["accepted"][r.id],
		Refused: make(map[lb.RefusedCause]uint64),
	}
	for cause, set := range map[lb.RefusedCause]string{
		lb.RefusedNoMember: "refused_memberless", lb.RefusedSource: "refused_source", lb.RefusedLimit: "refused_limit",
	} {
		if n := t.routes[set][r.id]; n > 0 {
			counted.Refused[cause] = n
		}
	}
	for a, n := range t.connections[r.id] {
		at := place{r.id, a}
		counted.Members = append(counted.Members, lb.MemberCounters{
			Node: p.nameOf(a), Active: t.openAt[at], Connections: n, BytesIn: t.in[at], BytesOut: t.out[at],
		})
	}
	slices.SortFunc(counted.Members, func(a, b lb.MemberCounters) int { return cmp.Compare(a.Node, b.Node) })
	return counted
}

// nameOf returns the node of an address: the address itself if the node is one
// of before this process.
func (p *pool) nameOf(a netip.Addr) lb.NodeName {
	if p != nil {
		if b, ok := p.members[a]; ok {
			return b.Node
		}
		if d, ok := p.gone[a]; ok {
			return d.node
		}
	}
	return lb.NodeName(a.String())
}
