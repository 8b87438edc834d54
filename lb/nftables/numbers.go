package nftables

import (
	"maps"

	"github.com/eclusa-lb/eclusa/lb"
)

// numbers gives routes, pools and owners their marks. What a process before has
// given is given to the same again, so that connections, counters and remembered
// clients go on.
type numbers struct {
	route, pool, owner mark // given out last, without their kinds

	routes map[retiredKey]mark // of the process before
	names  map[mark]string     // likewise, what people call them
	// ofRoute tells the pool and owner that routes had.
	poolOf, ownerOf map[mark]mark

	pools  map[lb.GroupID]mark // in use, or to be used again
	owners map[lb.Owner]mark   // likewise
	taken  map[mark]bool
}

// learn notes what the kernel's table has.
func (n *numbers) learn(s *socket) error {
	n.routes, n.names = make(map[retiredKey]mark), make(map[mark]string)
	n.poolOf, n.ownerOf = make(map[mark]mark), make(map[mark]mark)
	for _, v := range versions {
		if err := s.read("routes"+v.suffix, func(e found) {
			f, ok := tuple([]byte(e.key))
			m := hostMark([]byte(e.data))
			if !ok || m.kind() != ofRoute {
				return
			}
			owner, name := ownerOf(e.comment)
			n.routes[retiredKey{f, owner}] = m
			n.names[m] = name
			n.note(m)
		}); err != nil {
			return err
		}
	}
	for set, known := range map[string]map[mark]mark{"pools": n.poolOf, "owners": n.ownerOf} {
		if err := s.read(set, func(e found) {
			known[hostMark([]byte(e.key))] = hostMark([]byte(e.data))
			n.note(hostMark([]byte(e.data)))
		}); err != nil {
			return err
		}
	}
	for _, set := range countedSets {
		if err := s.read(set, func(e found) { n.note(hostMark([]byte(e.key))) }); err != nil {
			return err
		}
	}
	return nil
}

// note keeps a mark from being given to another one.
func (n *numbers) note(m mark) {
	id := m & maxID
	switch m.kind() {
	case ofRoute:
		n.route = max(n.route, id)
	case ofPool:
		n.pool = max(n.pool, id)
	case ofOwner:
		n.owner = max(n.owner, id)
	case ofGateway, tombstone: // have numbers of their own
	case kindMask, maxID, gatewayNumbers, routeOrPool: // are no kinds
	}
}

// recall finds the pools and owners of the process before by the routes that the
// first table has as well.
func (n *numbers) recall(routes map[lb.Frontend]lb.Route) {
	n.pools, n.owners, n.taken = make(map[lb.GroupID]mark), make(map[lb.Owner]mark), make(map[mark]bool)
	for f, spec := range routes {
		spec = ours(spec)
		m, ok := n.routes[retiredKey{f, spec.Owner}]
		if !ok {
			continue
		}
		if p, ok := n.poolOf[m]; ok && !n.taken[p] {
			if _, done := n.pools[spec.Group]; !done {
				n.pools[spec.Group], n.taken[p] = p, true
			}
		}
		if o, ok := n.ownerOf[m]; ok && !n.taken[o] {
			if _, done := n.owners[spec.Owner]; !done {
				n.owners[spec.Owner], n.taken[o] = o, true
			}
		}
	}
}

// keep forgets the numbers of what is not in use any more.
func (n *numbers) keep(s *state) {
	if len(n.pools) == len(s.pools) && len(n.owners) == len(s.owners) {
		return
	}
	maps.DeleteFunc(n.pools, func(id lb.GroupID, m mark) bool {
		if s.pools[id] == nil {
			delete(n.taken, m)
		}
		return s.pools[id] == nil
	})
	maps.DeleteFunc(n.owners, func(o lb.Owner, m mark) bool {
		_, ok := s.owners[o]
		if !ok {
			delete(n.taken, m)
		}
		return !ok
	})
}

// routeID returns the mark of a route that is new to this process.
func (e *Engine) routeID(f lb.Frontend, o lb.Owner) mark {
	n := &e.numbers
	if m, ok := n.routes[retiredKey{f, o}]; ok && e.byID[m] == nil {
		return m
	}
	for {
		n.route = n.route%(maxID-1) + 1
		m := ofRoute | n.route
		if _, orphan := e.orphans[m]; !orphan && e.byID[m] == nil {
			return m
		}
	}
}

func (n *numbers) poolID(id lb.GroupID) mark {
	m, ok := n.pools[id]
	if !ok {
		for m = 0; m == 0 || n.taken[m]; {
			n.pool = n.pool%(maxID-1) + 1
			m = ofPool | n.pool
		}
		n.pools[id], n.taken[m] = m, true
	}
	return m
}

func (n *numbers) ownerID(o lb.Owner) mark {
	m, ok := n.owners[o]
	if !ok {
		for m = 0; m == 0 || n.taken[m]; {
			n.owner = n.owner%(maxID-1) + 1
			m = ofOwner | n.owner
		}
		n.owners[o], n.taken[m] = m, true
	}
	return m
}
