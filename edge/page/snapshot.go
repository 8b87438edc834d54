package page

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/eclusa-lb/eclusa/edge"
	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

const (
	// lag is how long a revision may wait until that is a problem.
	lag = 5 * time.Second
	// heldFor is how long a held removal is told that nobody tried again.
	heldFor = 10 * time.Minute
	// maxKeys is how many held removals are named.
	maxKeys = 20
	// maxPerKind is how many problems of load balancers, and of nodes, are told
	// one by one.
	maxPerKind = 20
	// maxStretch is by how much health checks may be slower than asked for until
	// that is a problem.
	maxStretch = 1.05
	// shownEvents is how many events are told.
	shownEvents = 200
)

// snapshot is what there is to show at one moment, and an index of it. It is
// immutable.
type snapshot struct {
	Status
	view    edge.View
	members map[scope]Members
	total   line
}

// scope is what decides about the members of load balancers: thousands of them
// have few between them. Members of a load balancer that narrows its pool are
// counted for it alone.
type scope struct {
	cluster lb.Cluster
	pool    lb.PoolName
	check   lb.HealthCheck
}

func newSnapshot(now time.Time, v edge.View, h *history, events *Events) *snapshot {
	s := &snapshot{view: v, members: make(map[scope]Members), total: h.totals(now)}
	s.Status = Status{
		Schema: Schema, At: now.UTC(), Ready: len(v.Unready) == 0, NotReady: v.Unready,
		Edge: EdgeInfo{Name: v.Info.Name, Version: v.Info.Version, Engine: v.Info.Engine, Started: v.Started.UTC()},
		Probes: Probes{
			Targets: v.Probes.Targets, PerSecond: v.Probes.Rate, Stretched: max(1, v.Probes.Stretched), LagSeconds: v.Probes.LagP99.Seconds(),
		},
		Events:   events.Last(shownEvents),
		Problems: []Problem{}, LoadBalancers: []LoadBalancer{}, Nodes: []Node{}, Clusters: []Cluster{},
	}
	rates := h.rates()
	for _, c := range v.Clusters {
		s.addCluster(c)
		s.addLoadBalancers(c, rates)
		s.addNodes(c)
	}
	s.Matched = len(s.LoadBalancers)
	s.sort()
	s.sum()
	s.findProblems()
	return s
}

func (s *snapshot) addCluster(c edge.ClusterView) {
	out := Cluster{
		Name: c.Name, State: OK, Revision: c.Config.Revision, AppliedRevision: c.Status.Revision,
		WrittenAt: c.Written.UTC(), AppliedAt: c.Applied.UTC(), Durable: c.Status.Durable, StateLost: c.Lost,
		LoadBalancers: len(c.Config.LoadBalancers), Nodes: len(c.Config.Nodes), HeldRemovals: heldRemovals(c, s.At),
	}
	switch {
	case c.Lost, s.late(out):
		out.State = Failing
	case !out.Durable, out.HeldRemovals != nil:
		out.State = Degraded
	case c.Config.Revision == 0 && len(c.Config.LoadBalancers) == 0, out.Revision != out.AppliedRevision:
		out.State = Pending
	}
	s.Clusters = append(s.Clusters, out)
}

// late tells whether a revision should be in force and is not.
func (s *snapshot) late(c Cluster) bool {
	return c.Revision != c.AppliedRevision && s.At.Sub(c.WrittenAt) > lag
}

// heldRemovals returns what the removal guard holds back. Nobody tells the edge
// that a cluster wants its load balancers back, so it ends after a time, too.
func heldRemovals(c edge.ClusterView, now time.Time) *HeldRemovals {
	if c.Held == nil || now.Sub(c.Held.At) > heldFor {
		return nil
	}
	h := &HeldRemovals{At: c.Held.At.UTC(), Count: len(c.Held.Keys)}
	for _, key := range c.Held.Keys {
		kind, name, _ := strings.Cut(key, "/")
		_, isNode := c.Config.Nodes[lb.NodeName(name)]
		_, isLB := c.Config.LoadBalancers[lb.UID(name)]
		if kind == "nodes" && !isNode || kind == "loadBalancers" && !isLB {
			continue
		}
		h.Waiting++
		if len(h.Keys) < maxKeys {
			h.Keys = append(h.Keys, key)
		}
	}
	if h.Waiting == 0 {
		return nil
	}
	return h
}

func (s *snapshot) addLoadBalancers(c edge.ClusterView, rates map[lb.Owner]point) {
	ids := make(map[lb.HealthCheck]lb.CheckID)
	for uid, l := range c.Config.LoadBalancers {
		id, ok := ids[l.HealthCheck]
		if !ok {
			id = l.HealthCheck.ID()
			ids[l.HealthCheck] = id
		}
		status, told := c.Status.LoadBalancers[uid]
		out := LoadBalancer{
			Cluster: c.Name, UID: uid, Name: l.Name, Applied: status.Applied, Partial: status.Partial, Problems: status.Problems,
			Addresses: l.Addresses, Listeners: make([]Listener, len(l.Listeners)), Check: id,
			Members: s.membersOf(c, l, id), Traffic: traffic(rates[lb.Owner{Cluster: c.Name, UID: uid}]),
		}
		if out.Name == "" {
			out.Name = string(uid)
		}
		for i, li := range l.Listeners {
			out.Listeners[i] = Listener{Name: li.Name, Protocol: li.Protocol, Port: li.Port, TargetPort: li.TargetPort}
		}
		out.State, out.Reason = judge(out, l, told)
		s.LoadBalancers = append(s.LoadBalancers, out)
	}
}

// membersOf counts the members of a load balancer.
func (s *snapshot) membersOf(c edge.ClusterView, l lb.LoadBalancer, id lb.CheckID) Members {
	key := scope{c.Name, l.Pool, l.HealthCheck}
	m, ok := s.members[key]
	ending := 0 // of those that have endpoints: the others are no last resort
	if !ok || l.Members != nil {
		m = Members{}
		for node := range membersIn(c.Config, l) {
			health := c.Status.Checks[id][node]
			m.Total++
			if l.Members != nil && !c.Config.Nodes[node].Draining && health.State == healthcheck.Draining && s.At.Sub(health.Since) < edge.LastResortFor {
				ending++
			}
			switch {
			case c.Config.Nodes[node].Draining, health.State == healthcheck.Draining:
				m.Draining++
			case health.State == healthcheck.Up:
				m.Up++
			case health.State == healthcheck.Unchecked:
				m.Unchecked++
			case health.State == healthcheck.Down:
				m.Down++
			}
		}
		if l.Members == nil {
			s.members[key] = m
		}
	}
	if m.Serving() > 0 {
		return m
	}
	if l.FailOpen {
		m.FailingOpen = m.Down+m.Draining > 0
	} else {
		m.LastResort = ending
	}
	return m
}

// Summary says how many take new connections, such as "2 of 3 up".
func (m Members) Summary() string { return fmt.Sprintf("%d of %d %s", m.Serving(), m.Total, m.Word()) }

// Serving counts those that take new connections.
func (m Members) Serving() int { return m.Up + m.Unchecked }

// Word says what is known about those that serve.
func (m Members) Word() string {
	if m.Unchecked > 0 {
		return notChecked
	}
	return "up"
}

// membersIn returns the nodes that may serve a load balancer.
func membersIn(c lb.Config, l lb.LoadBalancer) map[lb.NodeName]lb.Member {
	pool := c.Pools[l.Pool]
	if l.Members == nil {
		return pool
	}
	narrowed := make(map[lb.NodeName]lb.Member, len(l.Members))
	for node := range l.Members {
		if _, ok := pool[node]; ok {
			narrowed[node] = lb.Member{}
		}
	}
	return narrowed
}

// judge says how well a load balancer does.
func judge(out LoadBalancer, l lb.LoadBalancer, told bool) (State, string) {
	m := out.Members
	switch {
	case !told:
		return Pending, "is not in force yet"
	case out.Partial && len(out.Problems) > 0:
		return Degraded, "is served in part: " + problemText(out.Problems[0])
	case !out.Applied && len(out.Problems) == 0:
		return Failing, "is not served"
	case !out.Applied:
		return Failing, "is not served wholly: " + problemText(out.Problems[0])
	case m.Total == 0 && l.Members != nil:
		return Failing, "no node has a ready endpoint; connections are refused"
	case m.Total == 0:
		return Failing, "has no member; connections are refused"
	case m.FailingOpen:
		return Failing, "no member is up; traffic goes to all of them"
	case m.LastResort > 0:
		return Failing, fmt.Sprintf("no member is up; traffic goes to the %d that answer but say they should not get any", m.LastResort)
	case m.Serving() == 0 && m.Down == 0 && m.Draining == 0 && l.FailOpen:
		return Pending, "no member has been checked yet; traffic goes to all of them"
	case m.Serving() == 0 && m.Down == 0 && m.Draining == 0:
		return Pending, "no member has been checked yet"
	case m.Serving() == 0:
		return Failing, "no member is up; connections are refused"
	case len(out.Problems) > 0:
		return Degraded, problemText(out.Problems[0])
	case m.Down > 0:
		return Degraded, fmt.Sprintf("%d of %d members down", m.Down, m.Total)
	}
	return OK, ""
}

func problemText(p lb.Problem) string { return strings.TrimPrefix(p.Field+": "+p.Detail, ": ") }

func traffic(p point) Traffic {
	return Traffic{
		ActiveConnections: int64(p.active), ConnectionsPerSecond: float64(p.accepted), RefusedPerSecond: float64(p.refused),
		BytesInPerSecond: float64(p.in), BytesOutPerSecond: float64(p.out),
	}
}

func (s *snapshot) addNodes(c edge.ClusterView) {
	nodes := make(map[lb.NodeName]*Node, len(c.Config.Nodes))
	for name, n := range c.Config.Nodes {
		nodes[name] = &Node{Cluster: c.Name, Name: name, State: OK, Addresses: n.Addresses, Zone: n.Zone, Draining: n.Draining}
	}
	for id, members := range c.Status.Checks {
		for name, m := range members {
			if n := nodes[name]; n != nil {
				n.Checks = append(n.Checks, NodeCheck{
					ID: id, Health: m.State, Dead: m.Dead, Since: m.Since.UTC(), Reason: m.Reason, Error: m.Error, Substitute: m.Substitute,
				})
			}
		}
	}
	for _, n := range nodes {
		n.judge()
		s.Nodes = append(s.Nodes, *n)
	}
}

// judge says how well a node does: as well as in its worst check.
func (n *Node) judge() {
	slices.SortFunc(n.Checks, func(a, b NodeCheck) int {
		return cmp.Or(checkRank(a.Health)-checkRank(b.Health), cmp.Compare(a.ID, b.ID))
	})
	if n.Draining {
		n.State = Pending
	}
	if len(n.Checks) == 0 {
		return
	}
	switch n.Checks[0].Health {
	case healthcheck.Down:
		n.State = Failing
		if n.Checks[len(n.Checks)-1].Health.Serves() {
			n.State = Degraded
		}
	case healthcheck.Draining, healthcheck.Unknown:
		n.State = Pending
	case healthcheck.Up, healthcheck.Unchecked:
	}
}

func checkRank(s healthcheck.State) int {
	return slices.Index([]healthcheck.State{healthcheck.Down, healthcheck.Draining, healthcheck.Unknown, healthcheck.Up, healthcheck.Unchecked}, s)
}

func (s *snapshot) sort() {
	slices.SortFunc(s.LoadBalancers, func(a, b LoadBalancer) int {
		return cmp.Or(a.State.rank()-b.State.rank(), cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
	})
	slices.SortFunc(s.Nodes, func(a, b Node) int {
		return cmp.Or(a.State.rank()-b.State.rank(), cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Name, b.Name))
	})
}

func (s *snapshot) sum() {
	t := &s.Totals
	for _, l := range s.LoadBalancers {
		t.LoadBalancers.count(l.State)
		t.Listeners += len(l.Listeners)
		t.Addresses += len(l.Addresses)
	}
	for _, n := range s.Nodes {
		t.Nodes.count(n.State)
	}
	t.Traffic = traffic(s.total.now(3))
}

// find returns a load balancer, nil if there is no such.
func (s *snapshot) find(owner lb.Owner) *LoadBalancer {
	i := slices.IndexFunc(s.LoadBalancers, func(l LoadBalancer) bool { return l.Cluster == owner.Cluster && l.UID == owner.UID })
	if i < 0 {
		return nil
	}
	return &s.LoadBalancers[i]
}

// cluster returns what the edge knows about a cluster.
func (s *snapshot) cluster(name lb.Cluster) edge.ClusterView {
	i := slices.IndexFunc(s.view.Clusters, func(c edge.ClusterView) bool { return c.Name == name })
	return s.view.Clusters[i]
}

// nodesOf returns the members of a load balancer with their health, problems
// first.
func (s *snapshot) nodesOf(owner lb.Owner) []Node {
	c := s.cluster(owner.Cluster)
	l := c.Config.LoadBalancers[owner.UID]
	id := l.HealthCheck.ID()
	var out []Node
	for _, name := range slices.Sorted(maps.Keys(membersIn(c.Config, l))) {
		n := c.Config.Nodes[name]
		m, known := c.Status.Checks[id][name]
		node := Node{Cluster: owner.Cluster, Name: name, State: OK, Addresses: n.Addresses, Zone: n.Zone, Draining: n.Draining}
		if known {
			node.Checks = []NodeCheck{{ID: id, Health: m.State, Dead: m.Dead, Since: m.Since.UTC(), Reason: m.Reason, Error: m.Error, Substitute: m.Substitute}}
		} else {
			node.Checks = []NodeCheck{{ID: id}}
		}
		node.judge()
		out = append(out, node)
	}
	slices.SortStableFunc(out, func(a, b Node) int { return a.State.rank() - b.State.rank() })
	return out
}
