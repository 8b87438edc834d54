package edge

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// condition is how the machine at an address does.
type condition int

const (
	well    condition = iota
	leaving           // its checks are answered: no new connections
	failing           // its checks are answered wrongly, its node ports serve
	dead              // nothing answers
	conditions
)

var conditionNames = [...]string{"well", "leaving", "failing", "dead"}

// A world is what there is around an edge: what clusters want, and how their
// nodes do. Everything random in it comes from one seed.
type world struct {
	*rand.Rand
	configs map[lb.Cluster]lb.Config
	kinds   kinds

	mu    sync.Mutex // guards what probes look at
	nodes map[netip.Addr]condition
}

// kinds bound what a world is made of.
type kinds struct {
	loadBalancers, nodes, ports int
	check                       []lb.HealthCheck
}

// everyKind is what a fake engine does not mind.
var everyKind = kinds{loadBalancers: 7, nodes: 5, ports: 4, check: []lb.HealthCheck{
	{Spec: healthcheck.Spec{Protocol: healthcheck.HTTP}, Port: 10256},
	{Spec: healthcheck.Spec{Protocol: healthcheck.HTTP}, Port: 10256},
	{Spec: healthcheck.Spec{Protocol: healthcheck.HTTP}, Port: 10256, Family: lb.IPv4}, // another check of the same targets
	{Spec: healthcheck.Spec{Protocol: healthcheck.HTTP, Path: "/local"}, Port: 30500},
	{Spec: healthcheck.Spec{Protocol: healthcheck.TCP}, Port: 30001},
	{Spec: healthcheck.Spec{Protocol: healthcheck.GRPC, Path: "shop"}, Port: 30002},
	{Spec: healthcheck.Spec{Protocol: healthcheck.None}},
	{Spec: healthcheck.Spec{Protocol: "smtp"}, Port: 25},
}}

var prefixes = map[lb.Cluster]struct{ address, node [2]byte }{
	"prod": {[2]byte{192, 0}, [2]byte{10, 0}}, "dev": {[2]byte{198, 51}, [2]byte{10, 1}},
}

func newWorld(seed uint64, k kinds) *world {
	w := &world{
		Rand: rand.New(rand.NewPCG(seed, 0)), kinds: k,
		configs: map[lb.Cluster]lb.Config{}, nodes: map[netip.Addr]condition{},
	}
	for cluster := range prefixes {
		w.configs[cluster] = lb.Config{}
	}
	return w
}

// populate gives the clusters something to begin with.
func (w *world) populate() {
	for _, cluster := range slices.Sorted(maps.Keys(w.configs)) {
		c := lb.Config{Nodes: map[lb.NodeName]lb.Node{}, Pools: map[lb.PoolName]lb.Pool{"all": {}}, LoadBalancers: map[lb.UID]lb.LoadBalancer{}}
		for n := range w.kinds.nodes {
			name := lb.NodeName(fmt.Sprintf("n%d", n+1))
			c.Nodes[name], c.Pools["all"][name] = w.aNode(cluster, name), lb.Member{}
		}
		for n := range w.kinds.loadBalancers / 2 {
			uid := lb.UID(fmt.Sprintf("u%d", n+1))
			c.LoadBalancers[uid] = w.loadBalancer(cluster, uid)
		}
		w.configs[cluster] = c
	}
}

// one returns any of the values.
func one[T any](w *world, values ...T) T { return values[w.IntN(len(values))] }

// anyKey returns any key of a map, the zero one if it is empty.
func anyKey[K cmp.Ordered, V any](w *world, m map[K]V) (k K) {
	if len(m) == 0 {
		return k
	}
	return one(w, slices.Sorted(maps.Keys(m))...)
}

func (w *world) cluster() lb.Cluster { return one(w, lb.Cluster("dev"), "prod", "prod", "prod") }

// node is the name of a node that may be there.
func (w *world) node() lb.NodeName { return lb.NodeName(fmt.Sprintf("n%d", 1+w.IntN(w.kinds.nodes))) }

// change returns another configuration for a cluster, and what is other about it.
// Configurations are never changed themselves.
func (w *world) change(cluster lb.Cluster) (next lb.Config, what string) {
	next = w.configs[cluster]
	next.Nodes, next.Pools, next.LoadBalancers = copied(next.Nodes), copied(next.Pools), copied(next.LoadBalancers)
	for name, pool := range next.Pools {
		next.Pools[name] = copied(pool)
	}
	uid := lb.UID(fmt.Sprintf("u%d", 1+w.IntN(w.kinds.loadBalancers)))
	pool, name := lb.PoolName(one(w, "all", "all", "some")), w.node()
	if next.Pools[pool] == nil {
		next.Pools[pool] = lb.Pool{}
	}
	switch w.IntN(12) {
	case 0, 1, 2, 3:
		next.LoadBalancers[uid] = w.loadBalancer(cluster, uid)
		return next, fmt.Sprintf("set load balancer %s", uid)
	case 4, 5:
		uid = anyKey(w, next.LoadBalancers)
		if l, ok := next.LoadBalancers[uid]; ok {
			next.LoadBalancers[uid] = w.altered(l)
		}
		return next, fmt.Sprintf("alter load balancer %s", uid)
	case 6:
		uid = anyKey(w, next.LoadBalancers)
		delete(next.LoadBalancers, uid)
		return next, fmt.Sprintf("remove load balancer %s", uid)
	case 7, 8:
		next.Nodes[name] = w.aNode(cluster, name)
		next.Pools[pool][name] = lb.Member{}
		return next, fmt.Sprintf("set node %s in pool %s", name, pool)
	case 9:
		next.Pools[pool][name] = lb.Member{}
		return next, fmt.Sprintf("add node %s to pool %s", name, pool)
	case 10:
		delete(next.Pools[pool], name)
		return next, fmt.Sprintf("take node %s from pool %s", name, pool)
	}
	delete(next.Nodes, name)
	return next, fmt.Sprintf("remove node %s", name)
}

func copied[M ~map[K]V, K comparable, V any](m M) M {
	if m == nil {
		return M{}
	}
	return maps.Clone(m)
}

func (w *world) aNode(cluster lb.Cluster, name lb.NodeName) lb.Node {
	p := prefixes[cluster].node
	n := lb.Node{Weight: w.IntN(3), Draining: w.IntN(6) == 0}
	number := name[len(name)-1] - '0'
	n.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{p[0], p[1], 0, number})}
	if w.IntN(12) == 0 {
		n.Addresses = []netip.Addr{netip.MustParseAddr("203.0.113.1")} // not allowed
	}
	return n
}

func (w *world) loadBalancer(cluster lb.Cluster, uid lb.UID) lb.LoadBalancer {
	l := lb.LoadBalancer{
		Name: "default/" + string(uid), ClaimTime: time.Unix(int64(w.IntN(3)), 0).UTC(), Pool: lb.PoolName(one(w, "all", "all", "all", "some", "none")),
		HealthCheck: one(w, w.kinds.check...),
	}
	p := prefixes[cluster].address
	for range 1 + w.IntN(2) {
		// Fewer addresses than load balancers, so that some contend for them.
		l.Addresses = append(l.Addresses, netip.AddrFrom4([4]byte{p[0], p[1], 0, byte(1 + w.IntN(5))}))
	}
	l.Addresses = slices.CompactFunc(l.Addresses, func(a, b netip.Addr) bool { return a == b })
	l.Listeners = w.listeners()
	for range w.IntN(3) {
		l = w.altered(l)
	}
	return l
}

func (w *world) listeners() []lb.Listener {
	var all []lb.Listener
	for range 1 + w.IntN(3) {
		port := uint16(1 + w.IntN(w.kinds.ports)) //nolint:gosec // small
		all = append(all, lb.Listener{Protocol: one(w, lb.TCP, lb.TCP, lb.TCP, lb.UDP, lb.SCTP), Port: 20000 + port, TargetPort: 30000 + port})
	}
	return all
}

// altered changes one setting.
func (w *world) altered(l lb.LoadBalancer) lb.LoadBalancer {
	switch w.IntN(9) {
	case 0:
		l.FailOpen = !l.FailOpen
	case 1:
		l.Algorithm = one(w, "", lb.RoundRobin, lb.LeastConnections, "bogus")
	case 2:
		l.Members = one(w, nil, map[lb.NodeName]lb.Member{}, map[lb.NodeName]lb.Member{w.node(): {}, w.node(): {}})
	case 3:
		l.Listeners = w.listeners()
	case 4:
		l.HealthCheck = one(w, w.kinds.check...)
	case 5:
		l.OnUnhealthy = one(w, "", lb.OnUnhealthyDrain)
	case 6:
		l.SourceRanges = one(w, nil, []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")})
	case 7:
		l.Affinity = one(w, nil, &lb.Affinity{Timeout: healthcheck.Duration(time.Minute)})
	case 8:
		l.IdleTimeout = one(w, 0, healthcheck.Duration(10*time.Minute))
	}
	return l
}

// ail changes how a node does, and says which one.
func (w *world) ail() (addr netip.Addr, c condition) {
	p := prefixes[w.cluster()].node
	addr = netip.AddrFrom4([4]byte{p[0], p[1], 0, byte(1 + w.IntN(w.kinds.nodes))})
	c = condition(w.IntN(int(conditions)))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes[addr] = c
	return addr, c
}

func (w *world) condition(a netip.Addr) condition {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nodes[a]
}

// probe answers as the node at the address would.
func (w *world) probe(at netip.AddrPort, spec healthcheck.Spec) error {
	c := w.condition(at.Addr())
	switch {
	case c == dead:
		return errRefused
	case c == leaving && spec.Protocol != healthcheck.TCP:
		return &healthcheck.Failure{Reason: healthcheck.HTTPStatus, Text: "HTTP 503", Draining: true}
	case c == failing && spec.Protocol != healthcheck.TCP:
		return errUnavailable
	}
	return nil
}

// table is what an edge has to come to: what Compile says when everything about
// the nodes is known.
func (w *world) table(policies map[lb.Cluster]lb.Policy, host lb.Host) lb.Outcome {
	in := lb.Input{Host: host, Policies: policies, Configs: w.configs}
	p := lb.Prepare(in)
	checks := p.Outcome(nil).Checks
	return p.Outcome(func(cluster lb.Cluster, check lb.HealthCheck, node lb.NodeName) lb.MemberHealth {
		known := checks[cluster][check.ID()]
		addr, ok := known.Members[node]
		if !ok {
			return lb.MemberHealth{}
		}
		c := w.condition(addr)
		tcp := check.Protocol == healthcheck.TCP
		_, witnessed := known.Substitute[node]
		switch {
		case c == dead:
			return lb.MemberHealth{State: healthcheck.Down, Dead: true}
		case c == leaving && !tcp:
			return lb.MemberHealth{State: healthcheck.Draining}
		case c == failing && !tcp:
			return lb.MemberHealth{State: healthcheck.Down, Dead: !witnessed}
		}
		return lb.MemberHealth{State: healthcheck.Up}
	})
}
