package lb

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/eclusa-lb/eclusa/healthcheck"
)

// A clusterView is a cluster's configuration with what is wrong in it sorted by
// object, and its nodes as members.
type clusterView struct {
	config        Config
	loadBalancers map[UID][]Complaint
	pools         map[PoolName]Problem // those that are refused
	faults        map[NodeName][]Problem
	members       map[NodeName]*member // the nodes that can be used
	sorted        map[PoolName][]*member
}

// A member is a node that can be used, at the addresses that can be.
type member struct {
	name     NodeName
	first    netip.Addr // the most wanted, of whichever family
	v4, v6   netip.Addr
	weight   int
	draining bool
}

// at returns the member's address of a family, the most wanted one if the
// family is empty; the zero Addr if it has none.
func (m *member) at(f Family) netip.Addr {
	switch f {
	case IPv4:
		return m.v4
	case IPv6:
		return m.v6
	}
	return m.first
}

func newClusterView(config Config) *clusterView {
	v := &clusterView{
		config:        config,
		loadBalancers: map[UID][]Complaint{},
		pools:         map[PoolName]Problem{},
		faults:        map[NodeName][]Problem{},
		members:       make(map[NodeName]*member, len(config.Nodes)),
		sorted:        map[PoolName][]*member{},
	}
	for _, c := range config.Validate() {
		switch field := c.Problem.Field; {
		case c.Node != "" || strings.HasPrefix(field, namelessNode):
			v.faults[c.Node] = append(v.faults[c.Node], c.Problem)
		case c.Pool != "" && c.Partial:
			v.missing(c.Pool, config)
		case c.Pool != "" || strings.HasPrefix(field, namelessPool):
			v.pools[c.Pool] = c.Problem
		default:
			v.loadBalancers[c.LoadBalancer] = append(v.loadBalancers[c.LoadBalancer], c)
		}
	}
	return v
}

// missing notes the nodes that a pool lists and the configuration has not.
func (v *clusterView) missing(pool PoolName, config Config) {
	for node := range config.Pools[pool] {
		if _, ok := config.Nodes[node]; !ok && len(v.faults[node]) == 0 {
			v.faults[node] = []Problem{{
				Type:   problemNotFound,
				Detail: fmt.Sprintf("%s: pool %s lists it, but it is none of the nodes of the configuration", quoted(string(node)), quoted(string(pool))),
			}}
		}
	}
}

// judgeNodes decides for each node whether and where it can be used. It needs to
// know the addresses of all load balancers.
func (c *compilation) judgeNodes() {
	for cluster, view := range c.clusters {
		policy := c.in.Policies[cluster]
		for name, n := range view.config.Nodes {
			if len(view.faults[name]) > 0 {
				continue
			}
			m := &member{name: name, weight: max(n.Weight, 1), draining: n.Draining}
			for i, a := range n.Addresses {
				if reason := c.nodeFault(policy, a); reason != "" {
					view.faults[name] = append(view.faults[name], Problem{Type: problemInvalid, Field: fmt.Sprintf("addresses[%d]", i), Detail: fmt.Sprintf("%s: %s", a, reason)})
					continue
				}
				m.use(a)
			}
			if m.first.IsValid() {
				view.members[name] = m
			}
		}
		for name, problems := range view.faults {
			into := c.out.Nodes
			if view.members[name] != nil {
				into = c.out.NodeWarnings
			}
			if into[cluster] == nil {
				into[cluster] = map[NodeName]Problem{}
			}
			into[cluster][name] = joined(problems)
		}
	}
}

func (m *member) use(a netip.Addr) {
	if !m.first.IsValid() {
		m.first = a
	}
	of := &m.v6
	if a.Is4() {
		of = &m.v4
	}
	if !of.IsValid() {
		*of = a
	}
}

// nodeFault says why this edge will not connect to an address of a node.
func (c *compilation) nodeFault(p Policy, a netip.Addr) string {
	switch {
	case !p.AllowsNode(a):
		return "is outside the node ranges that this edge allows the cluster, " + listed(p.NodeRanges)
	case c.own[a]:
		return "is an address of the edge itself"
	case c.taken[a]:
		return "is the address of a load balancer"
	}
	return ""
}

// A namedCheck is a check with its defaults filled in, and its name.
type namedCheck struct {
	HealthCheck
	id CheckID
}

func (c *compilation) check(h HealthCheck) namedCheck {
	n, known := c.checks[h]
	if !known {
		n = namedCheck{HealthCheck: h, id: h.ID()}
		n.Spec = h.WithDefaults()
		c.checks[h] = n
	}
	return n
}

// A scopeKey names a whole pool under one check.
type scopeKey struct {
	cluster Cluster
	check   CheckID
	pool    PoolName
}

// A scope is what is to be probed together: a whole pool, or what one load
// balancer leaves of it.
type scope struct {
	cluster            Cluster
	check              namedCheck
	members            []*member
	without4, without6 int      // members that have no address of the family
	tcp                userPort // the smallest user
	served             bool     // by any listener
	direct             bool     // any of them
	groups             []groupOfScope
}

// A groupOfScope is one of the groups that are made of a scope's members.
type groupOfScope struct {
	id       GroupID
	failOpen bool
}

// A userPort is a TCP target port in use, and by whom. The zero value is none.
type userPort struct {
	uid  UID
	port uint16
}

// compare orders ports in use; none comes last.
func (u userPort) compare(o userPort) int {
	if (u.port == 0) != (o.port == 0) {
		return cmp.Compare(o.port, u.port)
	}
	return cmp.Or(cmp.Compare(u.uid, o.uid), cmp.Compare(u.port, o.port))
}

// scope returns the nodes that a load balancer reaches, with its check.
func (c *compilation) scope(l *candidate) *scope {
	check, view := c.check(l.HealthCheck), c.clusters[l.owner.Cluster]
	if l.Members != nil {
		return c.newScope(l.owner.Cluster, check, view.narrowed(l.Pool, l.Members))
	}
	key := scopeKey{l.owner.Cluster, check.id, l.Pool}
	s := c.whole[key]
	if s == nil {
		s = c.newScope(l.owner.Cluster, check, view.pool(l.Pool))
		c.whole[key] = s
	}
	return s
}

func (c *compilation) newScope(cluster Cluster, check namedCheck, members []*member) *scope {
	s := &scope{cluster: cluster, check: check, members: members}
	for _, m := range members {
		if !m.v4.IsValid() {
			s.without4++
		}
		if !m.v6.IsValid() {
			s.without6++
		}
	}
	c.scopes = append(c.scopes, s)
	return s
}

// without counts the members that have no address of a family. A member always
// has one of the empty family, which is any.
func (s *scope) without(f Family) int {
	switch f {
	case IPv4:
		return s.without4
	case IPv6:
		return s.without6
	}
	return 0
}

// pool returns the members of a pool that can be used, sorted.
func (v *clusterView) pool(name PoolName) []*member {
	members, known := v.sorted[name]
	if !known {
		members = v.pick(maps.Keys(v.config.Pools[name]))
		v.sorted[name] = members
	}
	return members
}

// narrowed returns those members of a pool that can be used and are in a set.
func (v *clusterView) narrowed(name PoolName, set map[NodeName]Member) []*member {
	pool := v.config.Pools[name]
	return v.pick(func(yield func(NodeName) bool) {
		for node := range set {
			if _, in := pool[node]; in && !yield(node) {
				return
			}
		}
	})
}

func (v *clusterView) pick(names func(func(NodeName) bool)) []*member {
	var members []*member
	for name := range names {
		if m := v.members[name]; m != nil {
			members = append(members, m)
		}
	}
	slices.SortFunc(members, func(a, b *member) int { return cmp.Compare(a.name, b.name) })
	return members
}

// note remembers that a listener of a load balancer is served.
func (s *scope) note(l *candidate, li Listener) {
	s.served, s.direct = true, s.direct || l.Direct()
	user := userPort{l.owner.UID, li.TargetPort}
	if li.Protocol == TCP && !l.Direct() && user.compare(s.tcp) < 0 {
		s.tcp = user
	}
}

// warn notes nodes of a load balancer that do not speak the families in which its
// addresses are served: it is served without them, which nobody would see otherwise.
func (s *scope) warn(l *candidate) {
	if len(s.members) == 0 {
		return
	}
	for i, a := range l.Addresses {
		family := l.memberFamily(a)
		if s.without(family) == len(s.members) {
			l.problems = append(l.problems, Problem{
				Type: problemNotFound, Field: fmt.Sprintf("addresses[%d]", i),
				Detail: fmt.Sprintf("%s: none of the nodes has an %s address, so connections are refused", a, family),
			})
		}
	}
	if n := s.without(s.check.Family); n > 0 {
		l.problems = append(l.problems, Problem{
			Type: problemNotFound, Field: "healthCheck.family",
			Detail: fmt.Sprintf("%s: %d of %d nodes have no such address to be probed at, and never count as up", s.check.Family, n, len(s.members)),
		})
	}
}

// gatherChecks tells what has to be probed.
func (c *compilation) gatherChecks() {
	slices.SortFunc(c.scopes, func(a, b *scope) int { return a.tcp.compare(b.tcp) })
	for _, s := range c.scopes {
		if !s.served {
			continue
		}
		checks := c.out.Checks[s.cluster]
		if checks == nil {
			checks = map[CheckID]Check{}
			c.out.Checks[s.cluster] = checks
		}
		check, known := checks[s.check.id]
		if !known {
			check = Check{
				HealthCheck: s.check.HealthCheck,
				Members:     make(map[NodeName]netip.Addr, len(s.members)),
				Substitute:  make(map[NodeName]uint16, len(s.members)),
				Direct:      make(map[NodeName]bool),
			}
			checks[s.check.id] = check
		}
		for _, m := range s.members {
			a := m.at(s.check.Family)
			if !a.IsValid() {
				continue
			}
			check.Members[m.name] = a
			if s.direct {
				check.Direct[m.name] = true
			}
			// The scopes come in the order of their users, none last.
			if _, known := check.Substitute[m.name]; !known && s.tcp.port != 0 && s.check.Protocol != healthcheck.None {
				check.Substitute[m.name] = s.tcp.port
			}
		}
	}
}

// A recipe makes a group as soon as health is known.
type recipe struct {
	id       GroupID
	check    namedCheck
	failOpen bool
	narrowed bool      // by the load balancer that it is of
	members  []*member // those with an address of the family
}

// group returns the group of backends of a load balancer for one family, and
// plans it if that was not done yet.
func (c *compilation) group(l *candidate, s *scope, family Family) GroupID {
	for _, g := range s.groups {
		if g.failOpen == l.FailOpen && g.id.Family == family {
			return g.id
		}
	}
	id := GroupID{Cluster: l.owner.Cluster, Name: groupName(l, s.check.id), Family: family}
	s.groups = append(s.groups, groupOfScope{id, l.FailOpen})
	members := s.members
	if s.without(family) > 0 {
		members = slices.DeleteFunc(slices.Clone(members), func(m *member) bool { return !m.at(family).IsValid() })
	}
	c.recipes = append(c.recipes, recipe{id, s.check, l.FailOpen, l.Members != nil, members})
	return id
}

// groupName names a group for what it is there for: a load balancer's own by its
// UID, which has no white space, a shared one by its pool and check.
func groupName(l *candidate, check CheckID) string {
	if l.Members != nil {
		return string(l.owner.UID)
	}
	if l.FailOpen {
		return fmt.Sprintf("%s (%s, fail open)", l.Pool, check)
	}
	return fmt.Sprintf("%s (%s)", l.Pool, check)
}

// make is where health meets traffic.
func (r recipe) make(health Health) Group {
	g := Group{Backends: make([]Backend, len(r.members))}
	active := 0
	for i, m := range r.members {
		b := Backend{Node: m.name, Addr: m.at(r.id.Family), Weight: m.weight, Check: r.check.id}
		b.State = m.state(r.healthOf(m, health))
		if b.State == Active {
			active++
		}
		g.Backends[i] = b
	}
	switch {
	case active > 0 || len(g.Backends) == 0:
	case r.failOpen:
		g.FailingOpen = true
		for i := range g.Backends {
			g.Backends[i].State = Active
		}
	case r.narrowed:
		g.LastResort = r.lastResort(g.Backends, health)
	}
	return g
}

func (r recipe) healthOf(m *member, health Health) MemberHealth {
	if r.check.Protocol == healthcheck.None {
		return MemberHealth{State: healthcheck.Unchecked}
	}
	return health(r.id.Cluster, r.check.HealthCheck, m.name)
}

func (m *member) state(h MemberHealth) BackendState {
	switch {
	case h.State == healthcheck.Down && h.Dead:
		return Dead
	case h.State.Serves() && !m.draining:
		return Active
	}
	return Draining
}

// lastResort gives new connections to those who answer and would rather have none,
// and tells whether there are any.
// With policy Local their last endpoints are ending and serve until then, while
// the next node is not up yet: refusing would break what could be served. It is for
// a short while, since a node says the same when its last endpoint has gone, and then
// lets connections wait; and only for nodes that are there because of an endpoint.
func (r recipe) lastResort(backends []Backend, health Health) (found bool) {
	for i, m := range r.members {
		if h := r.healthOf(m, health); !m.draining && h.State == healthcheck.Draining && h.Ending {
			backends[i].State, found = Active, true
		}
	}
	return found
}
