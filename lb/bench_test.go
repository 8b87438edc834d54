package lb_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

var (
	allCapabilities = []lb.Capability{
		lb.CapAffinity, lb.CapDirect, lb.CapIPv4, lb.CapIPv6, lb.CapLeastConnections, lb.CapMaxConnections,
		lb.CapConnectTimeout, lb.CapFamilyTranslation, lb.CapProxyV1, lb.CapProxyV2, lb.CapRandomTwoChoices, lb.CapRoundRobin,
		lb.CapSourceHash, lb.CapSourceRanges, lb.CapTCP, lb.CapUDP,
		lb.CapCheckGRPC, lb.CapCheckNone,
	}
	claimed = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
)

// large returns a configuration of so many nodes in one pool and load balancers
// in front of it, each with two listeners.
func large(balancers, nodes int) lb.Config {
	c := lb.Config{
		Revision:      7,
		Nodes:         map[lb.NodeName]lb.Node{},
		Pools:         map[lb.PoolName]lb.Pool{"all": {}},
		LoadBalancers: map[lb.UID]lb.LoadBalancer{},
	}
	for i := range nodes {
		name := lb.NodeName(fmt.Sprintf("node-%04d.example.org", i))
		c.Nodes[name] = lb.Node{Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})}, Zone: "a"}
		c.Pools["all"][name] = lb.Member{}
	}
	for i := range balancers {
		c.LoadBalancers[lb.UID(fmt.Sprintf("4f5a1f3e-0000-4000-8000-%012d", i))] = lb.LoadBalancer{
			Name:      fmt.Sprintf("namespace-%d/service-with-a-name-%d", i/50, i),
			ClaimTime: claimed.Add(time.Duration(i%100) * time.Second),
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})},
			Listeners: []lb.Listener{
				{Name: "http", Protocol: lb.TCP, Port: 80, TargetPort: 30000 + uint16(i)},
				{Name: "https", Protocol: lb.TCP, Port: 443, TargetPort: 40000 + uint16(i)},
			},
			Pool:        "all",
			HealthCheck: lb.HealthCheck{Spec: healthcheck.Spec{Protocol: healthcheck.HTTP, Path: "/healthz"}, Port: 10256},
			FailOpen:    true,
		}
	}
	return c
}

// manyListeners returns a range of ports.
func manyListeners(n int) []lb.Listener {
	all := make([]lb.Listener, n)
	for i := range all {
		port := uint16(1024 + i)
		all[i] = lb.Listener{Name: fmt.Sprintf("port-%d", port), Protocol: lb.TCP, Port: port, TargetPort: port}
	}
	return all
}

func largeInput(c lb.Config) lb.Input {
	return lb.Input{
		Host: lb.Host{Capabilities: allCapabilities, OwnAddresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}},
		Policies: map[lb.Cluster]lb.Policy{"lab": {
			AddressRanges: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15")},
			NodeRanges:    []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		}},
		Configs: map[lb.Cluster]lb.Config{"lab": c},
		Health: func(lb.Cluster, lb.HealthCheck, lb.NodeName) lb.MemberHealth {
			return lb.MemberHealth{State: healthcheck.Up}
		},
	}
}

func BenchmarkCompile(b *testing.B) {
	b.Run("5000x500", func(b *testing.B) { benchmarkCompile(b, large(5000, 500), 1) })
	b.Run("one of 10000 listeners", func(b *testing.B) {
		c := large(1, 500)
		for uid, l := range c.LoadBalancers {
			l.Listeners = manyListeners(10000)
			c.LoadBalancers[uid] = l
		}
		benchmarkCompile(b, c, 1)
	})
	b.Run("5000x500 narrowed to 3", func(b *testing.B) {
		c := large(5000, 500)
		i := 0
		for uid, l := range c.LoadBalancers {
			l.Members = map[lb.NodeName]lb.Member{}
			for n := range 3 {
				l.Members[lb.NodeName(fmt.Sprintf("node-%04d.example.org", (i+n*7)%500))] = lb.Member{}
			}
			l.HealthCheck.Port = 20000 + uint16(i)
			c.LoadBalancers[uid] = l
			i++
		}
		benchmarkCompile(b, c, 5000)
	})
}

func benchmarkCompile(b *testing.B, c lb.Config, groups int) {
	in := largeInput(c)
	b.ReportAllocs()
	for b.Loop() {
		out := lb.Compile(in)
		if len(out.Table.Routes) != 10000 || len(out.Table.Groups) != groups {
			b.Fatalf("got %d routes and %d groups; want 10000 and %d", len(out.Table.Routes), len(out.Table.Groups), groups)
		}
	}
}

// A change of health while everything else stays.
func BenchmarkPreparedOutcome(b *testing.B) {
	in := largeInput(large(5000, 500))
	p := lb.Prepare(in)
	b.ReportAllocs()
	for b.Loop() {
		p.Outcome(in.Health)
	}
}

func BenchmarkValidate(b *testing.B) {
	c := large(5000, 500)
	b.ReportAllocs()
	for b.Loop() {
		if got := c.Validate(); got != nil {
			b.Fatal(got)
		}
	}
}

func BenchmarkDecodeConfig(b *testing.B) {
	data, err := json.Marshal(large(5000, 500))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := lb.DecodeConfig(data); err != nil {
			b.Fatal(err)
		}
	}
}
