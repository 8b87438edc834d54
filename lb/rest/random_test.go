package rest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// randomConfig returns a configuration in the form that decoding gives: what is
// empty is nil, unless empty means something else.
func randomConfig(r *rand.Rand) lb.Config {
	c := lb.Config{Revision: r.Uint64N(4)}
	for range r.IntN(5) {
		put(&c.Nodes, lb.NodeName(fmt.Sprintf("node-%d", r.IntN(6))), randomNode(r))
	}
	for range r.IntN(3) {
		put(&c.Pools, lb.PoolName(fmt.Sprintf("pool %d \"<ü>\"", r.IntN(3))), lb.Pool(randomMembers(r)))
	}
	for range r.IntN(5) {
		put(&c.LoadBalancers, lb.UID(fmt.Sprintf("uid-%d", r.IntN(6))), randomLoadBalancer(r))
	}
	return c
}

// mutate returns another configuration that shares most of its entries with c.
func mutate(r *rand.Rand, c lb.Config) lb.Config {
	other := randomConfig(r)
	mix(r, &other.Nodes, c.Nodes)
	mix(r, &other.Pools, c.Pools)
	mix(r, &other.LoadBalancers, c.LoadBalancers)
	return other
}

func mix[K comparable, V any](r *rand.Rand, to *map[K]V, from map[K]V) {
	for k, v := range from {
		if r.IntN(3) > 0 {
			put(to, k, v)
		}
	}
}

func put[K comparable, V any](m *map[K]V, k K, v V) {
	if *m == nil {
		*m = map[K]V{}
	}
	(*m)[k] = v
}

func randomNode(r *rand.Rand) lb.Node {
	return lb.Node{Addresses: randomAddrs(r), Zone: oneOf(r, "", "a", "b"), Draining: r.IntN(2) == 0, Weight: r.IntN(3)}
}

func randomMembers(r *rand.Rand) map[lb.NodeName]lb.Member {
	m := map[lb.NodeName]lb.Member{}
	for range r.IntN(4) {
		m[lb.NodeName(fmt.Sprintf("node-%d", r.IntN(6)))] = lb.Member{}
	}
	return m
}

func randomLoadBalancer(r *rand.Rand) lb.LoadBalancer {
	l := lb.LoadBalancer{
		Name: oneOf(r, "default/web", "<b>&\u2028", ""), ClaimTime: time.Unix(int64(r.IntN(3)), int64(r.IntN(2))).UTC(),
		Addresses: randomAddrs(r), Pool: lb.PoolName(oneOf(r, "all", "")),
		HealthCheck: lb.HealthCheck{
			Spec: healthcheck.Spec{Protocol: healthcheck.Protocol(oneOf(r, "tcp", "http")), Path: oneOf(r, "", "/x"),
				Interval: healthcheck.Duration(r.IntN(2)) * healthcheck.Duration(time.Second), UnhealthyThreshold: r.IntN(3)},
			Port: uint16(r.IntN(3)), Family: lb.Family(oneOf(r, "", "ipv4")),
		},
		FailOpen: r.IntN(2) == 0, Algorithm: lb.Algorithm(oneOf(r, "", "least-connections")),
		IdleTimeout: healthcheck.Duration(r.IntN(3)) * 1_500_000_000, MaxConnections: r.IntN(2),
		OnUnhealthy: lb.OnUnhealthy(oneOf(r, "", "drain")),
	}
	for i := range r.IntN(3) {
		l.Listeners = append(l.Listeners, lb.Listener{Name: oneOf(r, "", "http"), Protocol: lb.TCP, Port: uint16(80 + i), TargetPort: uint16(30000 + r.IntN(3))})
	}
	if r.IntN(2) == 0 {
		l.Members = randomMembers(r)
	}
	if r.IntN(3) == 0 {
		l.Affinity = &lb.Affinity{Timeout: healthcheck.Duration(r.IntN(2))}
	}
	for range r.IntN(2) {
		l.SourceRanges = append(l.SourceRanges, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(r.IntN(3))}), 16))
	}
	return l
}

func randomAddrs(r *rand.Rand) []netip.Addr {
	var addrs []netip.Addr
	for range r.IntN(3) {
		addrs = append(addrs, netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(4))}))
	}
	return addrs
}

func oneOf(r *rand.Rand, s ...string) string { return s[r.IntN(len(s))] }

// bigConfig is a cluster of the given size, every load balancer of the pool of
// all nodes.
func bigConfig(loadBalancers, nodes int) lb.Config {
	c := lb.Config{Revision: 1, Nodes: map[lb.NodeName]lb.Node{}, LoadBalancers: map[lb.UID]lb.LoadBalancer{}}
	pool := lb.Pool{}
	for i := range nodes {
		name := lb.NodeName(fmt.Sprintf("node-%03d.example.com", i))
		c.Nodes[name] = lb.Node{Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}, Zone: "a"}
		pool[name] = lb.Member{}
	}
	c.Pools = map[lb.PoolName]lb.Pool{"all": pool}
	for i := range loadBalancers {
		c.LoadBalancers[lb.UID(fmt.Sprintf("4f1c2d3e-0000-4000-8000-%012d", i))] = lb.LoadBalancer{
			Name: fmt.Sprintf("namespace/service-%d", i), ClaimTime: time.Unix(1_700_000_000+int64(i), 0).UTC(),
			Addresses:   []netip.Addr{netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)})},
			Listeners:   []lb.Listener{{Name: "http", Protocol: lb.TCP, Port: 80, TargetPort: uint16(30000 + i)}},
			Pool:        "all",
			HealthCheck: lb.HealthCheck{Spec: healthcheck.Spec{Protocol: healthcheck.HTTP, Path: "/healthz"}, Port: 10256},
			FailOpen:    true,
		}
	}
	return c
}
