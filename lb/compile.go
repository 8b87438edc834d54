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

// Health tells what is known about a member. It must be a pure function while
// Compile runs. The check that it is asked for has its defaults filled in.
type Health func(c Cluster, check HealthCheck, node NodeName) MemberHealth

// MemberHealth is what an edge knows about one node in one check.
type MemberHealth struct {
	State healthcheck.State
	// Dead says that a TCP connection to a node port in use failed too, often
	// enough. It matters only while State is Down.
	Dead bool
	// Ending says that the member serves what comes to it, as far as is known, though
	// it asks for no more: it has done so for a short while only, and has not failed
	// since. It matters only while State is Draining.
	Ending bool
}

// Input is everything that decides where packets go.
type Input struct {
	Host     Host
	Policies map[Cluster]Policy
	Configs  map[Cluster]Config
	// Health may be nil, which stands for nothing known about anybody.
	Health Health
}

// Outcome is what Compile found: the table, what became of each load balancer,
// the nodes that cannot be used, and what has to be probed.
type Outcome struct {
	Table         Table
	LoadBalancers map[Owner]LoadBalancerStatus
	// Nodes holds the nodes that are refused as members, with the reason. They
	// are neither backends nor probed.
	Nodes map[Cluster]map[NodeName]Problem
	// NodeWarnings holds the nodes that are used, though without those of their
	// addresses that the edge refuses.
	NodeWarnings map[Cluster]map[NodeName]Problem
	// Checks holds every check of a load balancer that is served. It does not
	// depend on Input.Health. The members of the check of protocol none are not to
	// be probed; that one says who is not checked.
	Checks map[Cluster]map[CheckID]Check
}

// Check is one health check in use, with the nodes that it concerns.
type Check struct {
	// HealthCheck is the check with its defaults filled in.
	HealthCheck HealthCheck
	// Members are the nodes to probe, each with the address to probe it at.
	Members map[NodeName]netip.Addr
	// Substitute tells for a node a target port that a TCP listener with this
	// check uses on it. A connection to it stands in for a check that has never
	// answered, and tells whether a node that is down is dead. Nodes that no TCP
	// listener uses are not in it; those of direct load balancers use no port of a
	// node.
	Substitute map[NodeName]uint16
	// Direct are the nodes that direct load balancers with this check use.
	Direct map[NodeName]bool
}

// Compile decides where packets go. It is pure: equal inputs have equal
// outcomes, and the input is not changed.
//
// What is refused, with the reason in the outcome, harms nothing else:
//   - a load balancer that Validate complains about, that needs as a whole what the
//     engine lacks, or that has an address outside the cluster's ranges or of the
//     edge itself;
//   - a single listener that needs what the engine lacks;
//   - a single frontend that is reserved or that an older claim holds; the other
//     frontends of the load balancer are served;
//   - a node's address outside the cluster's node ranges, of the edge itself or
//     of any load balancer; a node without another address is refused.
func Compile(in Input) Outcome { return Prepare(in).Outcome(in.Health) }

// Prepared is all of Compile's work that does not depend on health. Whoever
// keeps it while the rest of the input stays the same pays for a change of
// health with little more than the groups. It may be used concurrently.
type Prepared struct {
	out     Outcome // without groups
	recipes []recipe
}

// Outcome returns what Compile returns for this health; nil stands for nothing
// known about anybody. Outcomes of one Prepared share what is equal in them.
func (p *Prepared) Outcome(health Health) Outcome {
	if health == nil {
		health = func(Cluster, HealthCheck, NodeName) MemberHealth { return MemberHealth{} }
	}
	out := p.out
	out.Table.Groups = make(map[GroupID]Group, len(p.recipes))
	for _, r := range p.recipes {
		out.Table.Groups[r.id] = r.make(health)
	}
	return out
}

// Prepare does all of Compile's work that does not depend on health. It ignores
// Input.Health.
func Prepare(in Input) *Prepared {
	c := newCompilation(in)
	for _, cluster := range slices.Sorted(maps.Keys(in.Configs)) {
		c.admit(cluster)
	}
	c.judgeNodes()
	slices.SortFunc(c.candidates, byClaim)
	for _, l := range c.candidates {
		if !l.refused {
			c.serve(l)
		}
		c.out.LoadBalancers[l.owner] = l.status()
	}
	c.gatherChecks()
	return &Prepared{out: c.out, recipes: c.recipes}
}

// A compilation is one run of Prepare.
type compilation struct {
	in         Input
	out        Outcome
	own        map[netip.Addr]bool
	taken      map[netip.Addr]bool // by load balancers
	candidates []*candidate
	clusters   map[Cluster]*clusterView
	checks     map[HealthCheck]namedCheck
	scopes     []*scope
	whole      map[scopeKey]*scope // those of whole pools
	recipes    []recipe
}

// A candidate is a load balancer on its way into the table.
type candidate struct {
	LoadBalancer
	owner    Owner
	problems []Problem
	refused  bool  // wholly, or one of its frontends
	omitted  []int // listeners that the engine cannot serve, ascending
	served   bool  // at one of its frontends
}

func (l *candidate) status() LoadBalancerStatus {
	applied := !l.refused && len(l.omitted) == 0
	return LoadBalancerStatus{Applied: applied, Partial: !applied && l.served, Problems: l.problems}
}

func (l *candidate) refuse(p Problem) {
	l.refused = true
	l.problems = append(l.problems, p)
}

// byClaim orders load balancers by their right to a contested frontend.
func byClaim(a, b *candidate) int {
	if c := a.ClaimTime.Compare(b.ClaimTime); c != 0 {
		return c
	}
	if c := cmp.Compare(a.owner.Cluster, b.owner.Cluster); c != 0 {
		return c
	}
	return cmp.Compare(a.owner.UID, b.owner.UID)
}

func newCompilation(in Input) *compilation {
	c := &compilation{
		in: in,
		out: Outcome{
			LoadBalancers: map[Owner]LoadBalancerStatus{},
			Nodes:         map[Cluster]map[NodeName]Problem{},
			NodeWarnings:  map[Cluster]map[NodeName]Problem{},
			Checks:        map[Cluster]map[CheckID]Check{},
		},
		own:      map[netip.Addr]bool{},
		taken:    map[netip.Addr]bool{},
		clusters: map[Cluster]*clusterView{},
		checks:   map[HealthCheck]namedCheck{},
		whole:    map[scopeKey]*scope{},
	}
	for _, a := range in.Host.OwnAddresses {
		c.own[a.Unmap().WithZone("")] = true
	}
	frontends := 0
	for _, config := range in.Configs {
		for _, l := range config.LoadBalancers {
			frontends += len(l.Addresses) * len(l.Listeners)
		}
	}
	c.out.Table = Table{Routes: make(map[Frontend]Route, frontends)}
	return c
}

// admit looks at each load balancer of a cluster by itself, and notes the
// addresses of those that are not refused.
func (c *compilation) admit(cluster Cluster) {
	config := c.in.Configs[cluster]
	view := newClusterView(config)
	c.clusters[cluster] = view
	all := make([]candidate, len(config.LoadBalancers)) // one allocation for thousands
	for uid, l := range config.LoadBalancers {
		candidate := &all[0]
		all = all[1:]
		candidate.LoadBalancer, candidate.owner = l, Owner{Cluster: cluster, UID: uid}
		c.candidates = append(c.candidates, candidate)
		faults := view.loadBalancers[uid]
		for _, fault := range faults {
			candidate.problems = append(candidate.problems, fault.Problem)
			candidate.refused = candidate.refused || !fault.Partial
		}
		if candidate.refused {
			continue
		}
		if p, refused := view.pools[l.Pool]; refused {
			candidate.refuse(Problem{Type: p.Type, Field: "pool", Detail: p.Detail})
		}
		c.admitCapabilities(candidate)
		c.admitAddresses(candidate)
		if candidate.refused {
			continue
		}
		for _, a := range l.Addresses {
			c.taken[a] = true
		}
	}
}

func (c *compilation) admitCapabilities(l *candidate) {
	s := l.Shortfall(c.in.Host.Capabilities)
	l.problems = append(l.problems, s.Problems...)
	l.omitted = s.Omitted
	l.refused = l.refused || s.Refused
}

func (c *compilation) admitAddresses(l *candidate) {
	policy := c.in.Policies[l.owner.Cluster]
	for i, a := range l.Addresses {
		field := ""
		if !policy.AllowsAddress(a) || c.own[a] {
			field = fmt.Sprintf("addresses[%d]", i)
		}
		if !policy.AllowsAddress(a) {
			l.refuse(Problem{
				Type: problemInvalid, Field: field,
				Detail: fmt.Sprintf("%s: is outside the address ranges that this edge allows the cluster, %s", a, listed(policy.AddressRanges)),
			})
		}
		if c.own[a] && !c.in.Host.ShareOwnAddresses {
			l.refuse(Problem{
				Type: problemAddressHeld, Field: field,
				Detail: fmt.Sprintf("%s: is an address of the edge itself, which load balancers get only with shareHostAddress: true in the edge's configuration", a),
			})
		}
	}
}

// serve gives a load balancer those of its frontends that are free, and each a
// route. Load balancers must come in the order of their claims.
func (c *compilation) serve(l *candidate) {
	s := c.scope(l)
	omitted := l.omitted
	for i, li := range l.Listeners {
		if len(omitted) > 0 && omitted[0] == i {
			omitted = omitted[1:]
			continue
		}
		before := len(c.out.Table.Routes)
		for _, a := range l.Addresses {
			f := Frontend{Addr: a, Port: li.Port, Protocol: li.Protocol}
			if holder := c.holder(l, f); holder != "" {
				l.refuse(Problem{Type: problemAddressHeld, Field: fmt.Sprintf("listeners[%d]", i), Detail: fmt.Sprintf("%s: is held by %s", f, holder)})
				continue
			}
			c.out.Table.Routes[f] = l.route(li, c.group(l, s, l.memberFamily(a)))
		}
		if len(c.out.Table.Routes) > before {
			s.note(l, li)
			l.served = true
		}
	}
	if l.served {
		s.warn(l)
	}
}

// holder says who has a frontend that l wants; empty if it is free.
func (c *compilation) holder(l *candidate, f Frontend) string {
	if held, ok := c.out.Table.Routes[f]; ok {
		if held.Owner.Cluster != l.owner.Cluster {
			return "another cluster, whose claim comes first"
		}
		return quoted(fmt.Sprintf("%s/%s", held.Owner.Cluster, held.Name)) + ", whose claim comes first"
	}
	if len(c.in.Host.Reserved) == 0 {
		return ""
	}
	everywhere := netip.IPv4Unspecified()
	if f.Addr.Is6() {
		everywhere = netip.IPv6Unspecified()
	}
	name, ok := c.in.Host.Reserved[f]
	if !ok {
		name, ok = c.in.Host.Reserved[Frontend{Addr: everywhere, Port: f.Port, Protocol: f.Protocol}]
	}
	if !ok {
		return ""
	}
	return cmp.Or(name, "the edge itself")
}

// memberFamily returns the family in which members serve clients of an address.
func (l LoadBalancer) memberFamily(a netip.Addr) Family {
	f := FamilyOf(a)
	if len(l.MemberFamilies) == 0 || slices.Contains(l.MemberFamilies, f) {
		return f
	}
	return l.MemberFamilies[0]
}

// route returns what becomes of the traffic of one listener.
func (l *candidate) route(li Listener, group GroupID) Route {
	r := Route{
		Owner: l.owner, Name: l.Name, Group: group,
		Direct: l.Direct(), TargetPort: li.TargetPort, ProxyProtocol: li.ProxyProtocol,
		Algorithm:      cmp.Or(l.Algorithm, RoundRobin),
		SourceRanges:   l.SourceRanges,
		ConnectTimeout: l.ConnectTimeout.D(),
		IdleTimeout:    cmp.Or(l.IdleTimeout.D(), DefaultIdleTimeout),
		DrainTimeout:   cmp.Or(l.DrainTimeout.D(), DefaultDrainTimeout),
		MaxConnections: l.MaxConnections,
		ResetDead:      l.OnUnhealthy != OnUnhealthyDrain,
	}
	if li.Protocol == UDP {
		r.IdleTimeout = cmp.Or(l.UDPIdleTimeout.D(), DefaultUDPIdleTimeout)
	}
	if l.Affinity != nil {
		r.AffinityFor = l.Affinity.Timeout.D()
	}
	return r
}

// joined makes one problem of several.
func joined(problems []Problem) Problem {
	p := problems[0]
	details := make([]string, len(problems))
	for i := range problems {
		details[i] = problems[i].Detail
	}
	p.Detail = strings.Join(details, "; ")
	return p
}
