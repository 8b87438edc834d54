package lb_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// pick returns one of the values.
func pick[T any](r *rand.Rand, values ...T) T { return values[r.IntN(len(values))] }

// often is true but for one time in n.
func often(r *rand.Rand, n int) bool { return r.IntN(n) > 0 }

func randomAddr(r *rand.Rand, right byte) netip.Addr {
	if often(r, 12) {
		if often(r, 4) {
			return netip.AddrFrom4([4]byte{right, 0, 0, byte(1 + r.IntN(8))})
		}
		return netip.AddrFrom16([16]byte{0: 0xfd, 1: right, 15: byte(1 + r.IntN(8))})
	}
	return pick(r, addrs("127.0.0.1", "::1", "fe80::1", "203.0.113.9", "10.0.0.254", "::ffff:10.0.0.1", "192.0.0.3", "0.0.0.0")...)
}

func randomConfig(r *rand.Rand) lb.Config {
	c := lb.Config{Revision: r.Uint64(), Nodes: map[lb.NodeName]lb.Node{}, Pools: map[lb.PoolName]lb.Pool{}, LoadBalancers: map[lb.UID]lb.LoadBalancer{}}
	for i := range r.IntN(7) {
		n := lb.Node{Weight: r.IntN(4), Draining: !often(r, 5)}
		for range r.IntN(3) {
			n.Addresses = append(n.Addresses, randomAddr(r, 10))
		}
		c.Nodes[lb.NodeName(fmt.Sprintf("n%d", i))] = n
	}
	for i := range 1 + r.IntN(3) {
		p := lb.Pool{}
		for range r.IntN(7) {
			p[lb.NodeName(fmt.Sprintf("n%d", r.IntN(8)))] = lb.Member{}
		}
		c.Pools[lb.PoolName(fmt.Sprintf("p%d", i))] = p
	}
	for i := range r.IntN(10) {
		c.LoadBalancers[lb.UID(fmt.Sprintf("u%d", i))] = randomLoadBalancer(r)
	}
	return c
}

func randomLoadBalancer(r *rand.Rand) lb.LoadBalancer {
	l := lb.LoadBalancer{
		Name: "default/web", ClaimTime: claimed.Add(time.Duration(r.IntN(4)) * time.Second),
		Pool:           lb.PoolName(fmt.Sprintf("p%d", r.IntN(3))),
		HealthCheck:    lb.HealthCheck{Port: uint16(pick(r, 10256, 10256, 10256, 80, 0)), Family: pick(r, "", "", lb.IPv4, lb.IPv6)},
		FailOpen:       often(r, 2),
		MemberFamilies: pick(r, nil, nil, nil, []lb.Family{lb.IPv4}, []lb.Family{lb.IPv6}, []lb.Family{lb.IPv6, lb.IPv4}),
		Algorithm:      pick(r, "", "", "", lb.RoundRobin, "bogus"),
		OnUnhealthy:    pick(r, "", lb.OnUnhealthyDrain),
		Forwarding:     pick(r, "", "", lb.ForwardNAT, lb.ForwardDirect, "bogus"),
	}
	for range 1 + r.IntN(2) {
		l.Addresses = append(l.Addresses, randomAddr(r, 192))
	}
	for range 1 + r.IntN(3) {
		l.Listeners = append(l.Listeners, lb.Listener{
			Protocol: pick(r, lb.TCP, lb.TCP, lb.TCP, lb.UDP, lb.UDP, lb.SCTP), Port: uint16(80 + r.IntN(4)), TargetPort: uint16(30000 + r.IntN(10)),
		})
	}
	if l.Direct() && often(r, 4) {
		for i := range l.Listeners {
			l.Listeners[i].TargetPort = l.Listeners[i].Port
		}
	}
	if !often(r, 3) {
		l.Members = map[lb.NodeName]lb.Member{}
		for range r.IntN(3) {
			l.Members[lb.NodeName(fmt.Sprintf("n%d", r.IntN(8)))] = lb.Member{}
		}
	}
	return l
}

func memberFamily(l lb.LoadBalancer, a netip.Addr) lb.Family {
	if len(l.MemberFamilies) == 1 {
		return l.MemberFamilies[0]
	}
	return lb.FamilyOf(a)
}

// propertyInput is what the properties are shown for: two clusters with
// overlapping addresses, and health that follows from the names and a seed.
func propertyInput(a, b lb.Config, seed uint64) lb.Input {
	policy := lb.Policy{
		AddressRanges: []netip.Prefix{netip.MustParsePrefix("192.0.0.0/24"), netip.MustParsePrefix("fdc0::/16"), netip.MustParsePrefix("10.0.0.0/29")},
		NodeRanges:    []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd0a::/16"), netip.MustParsePrefix("192.0.0.0/24")},
	}
	return lb.Input{
		Host: lb.Host{
			Capabilities: allCapabilities, OwnAddresses: addrs("10.0.0.254", "192.0.0.8"),
			Reserved: map[lb.Frontend]string{
				{Addr: netip.MustParseAddr("192.0.0.1"), Port: 80, Protocol: lb.TCP}: "API",
				{Addr: netip.IPv4Unspecified(), Port: 83, Protocol: lb.UDP}:          "gossip",
			},
		},
		Policies: map[lb.Cluster]lb.Policy{"a": policy, "b": policy},
		Configs:  map[lb.Cluster]lb.Config{"a": a, "b": b},
		Health: func(c lb.Cluster, check lb.HealthCheck, node lb.NodeName) lb.MemberHealth {
			h := seed
			for _, x := range string(c) + string(check.ID()) + string(node) {
				h = h*1099511628211 + uint64(x)
			}
			return lb.MemberHealth{State: healthcheck.State(h >> 20 % 4), Dead: h>>40%2 == 0, Ending: h>>41%2 == 0}
		},
	}
}

// checkOutcome says what must be true of every outcome.
func checkOutcome(t *testing.T, in lb.Input, out lb.Outcome) {
	t.Helper()
	for cluster, config := range in.Configs {
		for uid := range config.LoadBalancers {
			if _, ok := out.LoadBalancers[lb.Owner{Cluster: cluster, UID: uid}]; !ok {
				t.Errorf("load balancer %s %s has no status", cluster, uid)
			}
		}
	}
	served := map[lb.Owner]int{}
	groups := map[lb.GroupID]bool{}
	for f, r := range out.Table.Routes {
		l, ok := in.Configs[r.Owner.Cluster].LoadBalancers[r.Owner.UID]
		if !ok || !slices.Contains(l.Addresses, f.Addr) || !slices.ContainsFunc(l.Listeners, func(li lb.Listener) bool {
			return li.Port == f.Port && li.Protocol == f.Protocol && li.TargetPort == r.TargetPort
		}) {
			t.Errorf("%s belongs to %v, which did not ask for it", f, r.Owner)
		}
		if !in.Policies[r.Owner.Cluster].AllowsAddress(f.Addr) || slices.Contains(in.Host.OwnAddresses, f.Addr) {
			t.Errorf("%s is served, which the policy of %v does not allow", f, r.Owner)
		}
		if _, ok := out.Table.Groups[r.Group]; !ok || r.Group.Cluster != r.Owner.Cluster || r.Group.Family != memberFamily(l, f.Addr) {
			t.Errorf("%s of %v has group %v, which is not its own", f, r.Owner, r.Group)
		}
		if r.IdleTimeout <= 0 || r.DrainTimeout <= 0 || r.Algorithm == "" {
			t.Errorf("%s has a route without effective values: %+v", f, r)
		}
		if r.Direct != l.Direct() || r.Direct && r.TargetPort != f.Port {
			t.Errorf("%s has target port %d, direct %v; want what %v asks for", f, r.TargetPort, r.Direct, r.Owner)
		}
		served[r.Owner]++
		groups[r.Group] = true
	}
	for owner, status := range out.LoadBalancers {
		l := in.Configs[owner.Cluster].LoadBalancers[owner.UID]
		if status.Applied && served[owner] != len(l.Addresses)*len(l.Listeners) {
			t.Errorf("%v is applied with %d frontends; want %d", owner, served[owner], len(l.Addresses)*len(l.Listeners))
		}
		if status.Partial != (!status.Applied && served[owner] > 0) {
			t.Errorf("%v is applied: %v, partly: %v, with %d frontends", owner, status.Applied, status.Partial, served[owner])
		}
		if !status.Applied && len(status.Problems) == 0 {
			t.Errorf("%v is not applied without a reason", owner)
		}
	}
	for id, g := range out.Table.Groups {
		if !groups[id] {
			t.Errorf("group %v is used by nobody", id)
		}
		checkGroup(t, in, out, id, g)
	}
}

func checkGroup(t *testing.T, in lb.Input, out lb.Outcome, id lb.GroupID, g lb.Group) {
	t.Helper()
	active := 0
	for i, b := range g.Backends {
		if b.State == lb.Active {
			active++
		}
		if i > 0 && g.Backends[i-1].Node >= b.Node {
			t.Errorf("group %v is not sorted, or has %s twice", id, b.Node)
		}
		if _, refused := out.Nodes[id.Cluster][b.Node]; refused || !in.Policies[id.Cluster].AllowsNode(b.Addr) || slices.Contains(in.Host.OwnAddresses, b.Addr) || b.Addr.IsLoopback() {
			t.Errorf("group %v has the refused node %s at %s", id, b.Node, b.Addr)
		}
		for f := range out.Table.Routes {
			if f.Addr == b.Addr {
				t.Errorf("group %v has %s at %s, a load balancer's address", id, b.Node, b.Addr)
			}
		}
		if lb.FamilyOf(b.Addr) != id.Family || b.Weight < 1 {
			t.Errorf("group %v has %+v", id, b)
		}
		check, ok := out.Checks[id.Cluster][b.Check]
		if !ok || check.HealthCheck.ID() != b.Check {
			t.Errorf("group %v has %s decided by %s, which is not probed", id, b.Node, b.Check)
		}
		if _, probed := check.Members[b.Node]; !probed && check.HealthCheck.Family == "" {
			t.Errorf("group %v has %s, which is not probed", id, b.Node)
		}
	}
	if g.LastResort && (active == 0 || g.FailingOpen) {
		t.Errorf("group %v is at its last resort with %d of %d active, failing open %v", id, active, len(g.Backends), g.FailingOpen)
	}
	if g.FailingOpen && active != len(g.Backends) {
		t.Errorf("group %v is failing open with %d of %d active", id, active, len(g.Backends))
	}
}

// checkProperties shows what must be true of a pair of configurations.
func checkProperties(t *testing.T, a, b lb.Config, seed uint64) {
	t.Helper()
	in := propertyInput(a, b, seed)
	out := lb.Compile(in)
	checkOutcome(t, in, out)
	if again := lb.Compile(in); !reflect.DeepEqual(out, again) {
		t.Error("compiling the same again has another outcome")
	}
	in.Health = nil
	if sick := lb.Compile(in); !reflect.DeepEqual(sick.Checks, out.Checks) || !reflect.DeepEqual(sick.Table.Routes, out.Table.Routes) || !reflect.DeepEqual(sick.LoadBalancers, out.LoadBalancers) {
		t.Error("checks, routes or statuses depend on health")
	}
	checkBystanders(t, a, b, seed, out)
}

// checkBystanders adds a load balancer that is wrong in itself and shows that
// nobody else notices.
func checkBystanders(t *testing.T, a, b lb.Config, seed uint64, before lb.Outcome) {
	t.Helper()
	bad := randomLoadBalancer(rand.New(rand.NewPCG(seed, 1)))
	bad.Name, bad.ClaimTime = "", time.Time{}
	a.LoadBalancers = maps.Clone(a.LoadBalancers)
	if a.LoadBalancers == nil {
		a.LoadBalancers = map[lb.UID]lb.LoadBalancer{}
	}
	if _, exists := a.LoadBalancers["bad"]; exists {
		return
	}
	a.LoadBalancers["bad"] = bad
	after := lb.Compile(propertyInput(a, b, seed))
	owner := lb.Owner{Cluster: "a", UID: "bad"}
	if after.LoadBalancers[owner].Applied {
		t.Error("the bad load balancer is applied")
	}
	delete(after.LoadBalancers, owner)
	if !reflect.DeepEqual(before, after) {
		t.Error("a bad load balancer changes the outcome for others")
	}
}

func TestCompileProperties(t *testing.T) {
	for seed := range uint64(600) {
		r := rand.New(rand.NewPCG(seed, 0))
		checkProperties(t, randomConfig(r), randomConfig(r), seed)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func FuzzCompile(f *testing.F) {
	f.Add(encode(f, small()), encode(f, filled[lb.Config]()), uint64(0))
	for seed := range uint64(5) {
		r := rand.New(rand.NewPCG(seed, 0))
		a, _ := json.Marshal(randomConfig(r))
		b, _ := json.Marshal(randomConfig(r))
		f.Add(a, b, seed)
	}
	f.Fuzz(func(t *testing.T, first, second []byte, seed uint64) {
		a, err := lb.DecodeConfig(first)
		if err != nil {
			return
		}
		b, err := lb.DecodeConfig(second)
		if err != nil {
			return
		}
		checkProperties(t, a, b, seed)
	})
}

// The outcomes of one Prepared do not disturb one another.
func TestPreparedIsConcurrent(t *testing.T) {
	in := propertyInput(small(), large(20, 10), 1)
	in.Policies["b"] = largeInput(lb.Config{}).Policies["lab"]
	want := lb.Compile(in)
	p := lb.Prepare(in)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			p.Outcome(nil)
			if got := p.Outcome(in.Health); !reflect.DeepEqual(got, want) {
				t.Error("the outcome differs from that of Compile")
			}
		})
	}
	all.Wait()
}

// What is set up for a load balancer is not disturbed by what happens to others.
func TestGroupsKeepTheirIDs(t *testing.T) {
	c := small()
	before := lb.Compile(largeInput(c))
	delete(c.Pools["all"], "n")
	c.Pools["all"]["m"] = lb.Member{}
	after := lb.Compile(largeInput(c))
	got, want := slices.Collect(maps.Keys(after.Table.Groups)), slices.Collect(maps.Keys(before.Table.Groups))
	if !slices.Equal(got, want) {
		t.Errorf("groups after the members changed: got %v; want %v", got, want)
	}
}
