package lb_test

import (
	"math"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// small returns a configuration without fault: a load balancer "u" in front of
// pool "all" with node "n".
func small() lb.Config {
	return lb.Config{
		Revision: 1,
		Nodes:    map[lb.NodeName]lb.Node{"n": {Addresses: addrs("10.0.0.1")}, "m": {Addresses: addrs("10.0.0.2", "fd00::2")}},
		Pools:    map[lb.PoolName]lb.Pool{"all": {"n": {}}},
		LoadBalancers: map[lb.UID]lb.LoadBalancer{"u": {
			Name: "default/web", ClaimTime: claimed, Addresses: addrs("192.0.2.1"),
			Listeners:   []lb.Listener{{Protocol: lb.TCP, Port: 80, TargetPort: 31080}},
			Pool:        "all",
			HealthCheck: lb.HealthCheck{Spec: healthcheck.Spec{Protocol: healthcheck.HTTP}, Port: 10256},
		}},
	}
}

func addrs(texts ...string) []netip.Addr {
	var all []netip.Addr
	for _, text := range texts {
		all = append(all, netip.MustParseAddr(text))
	}
	return all
}

// changed returns small with its load balancer changed.
func changed(change func(*lb.LoadBalancer)) lb.Config {
	c := small()
	l := c.LoadBalancers["u"]
	change(&l)
	c.LoadBalancers["u"] = l
	return c
}

func node(n lb.Node) lb.Config {
	c := small()
	c.Nodes["n"] = n
	return c
}

var validateTests = []struct {
	name   string
	config lb.Config
	want   []string
}{
	{"nothing", small(), nil},
	{"zero", lb.Config{}, nil},
	{"no node addresses", node(lb.Node{}), []string{`nodes["n"].addresses: none: must be at least one address`}},
	{
		"bad node addresses",
		node(lb.Node{Addresses: append(addrs("127.0.0.1", "::1", "169.254.0.1", "fe80::1", "fe80::1%eth0", "224.0.0.1", "ff02::1", "0.0.0.0", "::", "::ffff:10.0.0.1", "255.255.255.255", "0.1.2.3"), netip.Addr{})}),
		[]string{
			`nodes["n"].addresses[0]: 127.0.0.1: must not be a loopback address`,
			`nodes["n"].addresses[1]: ::1: must not be a loopback address`,
			`nodes["n"].addresses[2]: 169.254.0.1: must not be a link-local address`,
			`nodes["n"].addresses[3]: fe80::1: must not be a link-local address`,
			`nodes["n"].addresses[4]: fe80::1%eth0: must not have a zone, which means nothing on another machine`,
			`nodes["n"].addresses[5]: 224.0.0.1: must not be a multicast or broadcast address`,
			`nodes["n"].addresses[6]: ff02::1: must not be a multicast or broadcast address`,
			`nodes["n"].addresses[7]: 0.0.0.0: must be the address of one machine, not the unspecified address`,
			`nodes["n"].addresses[8]: ::: must be the address of one machine, not the unspecified address`,
			`nodes["n"].addresses[9]: ::ffff:10.0.0.1: must be written as 10.0.0.1`,
			`nodes["n"].addresses[10]: 255.255.255.255: must not be a multicast or broadcast address`,
			`nodes["n"].addresses[11]: 0.1.2.3: must be the address of one machine, not the unspecified address`,
			`nodes["n"].addresses[12]: "": must be an IP address`,
		},
	},
	{
		"node zone and weight", node(lb.Node{Addresses: addrs("10.0.0.1"), Zone: "a\nb", Weight: -1}),
		[]string{`nodes["n"].zone: "a\nb": must not contain control characters`, `nodes["n"].weight: -1: must be from 1 to 1000, or 0 for 1`},
	},
	{"node weight too large", node(lb.Node{Addresses: addrs("10.0.0.1"), Weight: 1001}), []string{`nodes["n"].weight: 1001: must be from 1 to 1000, or 0 for 1`}},
	{
		"names",
		lb.Config{
			Nodes:         map[lb.NodeName]lb.Node{"": {Addresses: addrs("10.0.0.1"), Weight: -1}, "a b": {Addresses: addrs("10.0.0.1")}},
			Pools:         map[lb.PoolName]lb.Pool{"": {"ghost": {}}, "a\x00b": {}},
			LoadBalancers: map[lb.UID]lb.LoadBalancer{"": small().LoadBalancers["u"], lb.UID(strings.Repeat("u", 254)): {}},
		},
		[]string{
			`nodes[""]: node name "": must not be empty`,
			`nodes[""].weight: -1: must be from 1 to 1000, or 0 for 1`,
			`nodes["a b"]: node name "a b": must not contain white space`,
			`pools[""]: pool name "": must not be empty`,
			`pools[""]["ghost"]: "ghost": is none of the nodes of the configuration, and is left out`,
			`pools["a\x00b"]: pool name "a\x00b": must not contain control characters`,
			`loadBalancers[""]: UID "": must not be empty`,
			`loadBalancers[""].pool: "all": is none of the pools of the configuration`,
			`loadBalancers["` + strings.Repeat("u", 128) + `"...]: UID "` + strings.Repeat("u", 128) + `"...: must not be longer than 253 bytes`,
			`loadBalancers["` + strings.Repeat("u", 128) + `"...].name: "": must not be empty; it tells people what this is`,
			`loadBalancers["` + strings.Repeat("u", 128) + `"...].addresses: none: must be at least one address`,
			`loadBalancers["` + strings.Repeat("u", 128) + `"...].listeners: none: must be at least one listener`,
			`loadBalancers["` + strings.Repeat("u", 128) + `"...].healthCheck.port: 0: must be from 1 to 65535`,
		},
	},
	{
		"pool with unknown nodes",
		func() lb.Config {
			c := small()
			c.Pools["all"] = lb.Pool{"n": {}, "z": {}, "y": {}}
			return c
		}(),
		[]string{
			`pools["all"]["y"]: "y": is none of the nodes of the configuration, and is left out`,
			`pools["all"]["z"]: "z": is none of the nodes of the configuration, and is left out`,
		},
	},
	{"unknown pool", changed(func(l *lb.LoadBalancer) { l.Pool = "nowhere" }), []string{`loadBalancers["u"].pool: "nowhere": is none of the pools of the configuration`}},
	{
		"addresses", changed(func(l *lb.LoadBalancer) { l.Addresses = addrs("192.0.2.1", "127.0.0.1", "192.0.2.1") }),
		[]string{
			`loadBalancers["u"].addresses[1]: 127.0.0.1: must not be a loopback address`,
			`loadBalancers["u"].addresses[2]: 192.0.2.1: is the same as addresses[0]`,
		},
	},
	{
		"listeners", changed(func(l *lb.LoadBalancer) {
			l.Listeners = []lb.Listener{
				{Protocol: lb.TCP, Port: 80, TargetPort: 1},
				{Protocol: lb.UDP, Port: 80, TargetPort: 1},
				{Protocol: lb.TCP, Port: 80, TargetPort: 2},
				{Protocol: "TCP", Name: "a\tb", ProxyProtocol: "v3"},
			}
		}),
		[]string{
			`loadBalancers["u"].listeners[2]: tcp 80: is the same protocol and port as listeners[0]`,
			`loadBalancers["u"].listeners[3].name: "a\tb": must not contain control characters`,
			`loadBalancers["u"].listeners[3].protocol: "TCP": must be tcp, udp or sctp`,
			`loadBalancers["u"].listeners[3].port: 0: must be from 1 to 65535`,
			`loadBalancers["u"].listeners[3].targetPort: 0: must be from 1 to 65535`,
			`loadBalancers["u"].listeners[3].proxyProtocol: "v3": must be v1, v2 or empty for none`,
		},
	},
	{
		"families, connect timeout and PROXY over UDP", changed(func(l *lb.LoadBalancer) {
			l.MemberFamilies, l.ConnectTimeout = []lb.Family{lb.IPv4, "ipx", lb.IPv4}, healthcheck.Duration(time.Minute)
			l.Listeners = []lb.Listener{{Protocol: lb.UDP, Port: 53, TargetPort: 1, ProxyProtocol: lb.ProxyV2}}
		}),
		[]string{
			`loadBalancers["u"].listeners[0].proxyProtocol: v2: is spoken over tcp only; must be empty for udp`,
			`loadBalancers["u"].memberFamilies[1]: "ipx": must be one of ipv4, ipv6`,
			`loadBalancers["u"].memberFamilies[2]: "ipv4": is the same as memberFamilies[0]`,
			`loadBalancers["u"].connectTimeout: 1m0s: must be from 10ms to 30s, or 0 for the engine's own`,
		},
	},
	{
		"members outside the pool", changed(func(l *lb.LoadBalancer) { l.Members = map[lb.NodeName]lb.Member{"n": {}, "m": {}} }),
		[]string{`loadBalancers["u"].members["m"]: "m": is not in pool "all", and is left out`},
	},
	{"no members", changed(func(l *lb.LoadBalancer) { l.Members = map[lb.NodeName]lb.Member{} }), nil},
	{
		"health check", changed(func(l *lb.LoadBalancer) {
			l.HealthCheck = lb.HealthCheck{Spec: healthcheck.Spec{Protocol: "smtp", Interval: 1, UnhealthyThreshold: -1}, Family: "ipv5"}
		}),
		[]string{
			`loadBalancers["u"].healthCheck.protocol: "smtp": must be tcp, http, https, grpc or none`,
			`loadBalancers["u"].healthCheck.interval: 1ns: must be from 100ms to 10m0s`,
			`loadBalancers["u"].healthCheck.timeout: 1ns: must be from 10ms to 30s`,
			`loadBalancers["u"].healthCheck.unhealthyThreshold: -1: must be from 1 to 100`,
			`loadBalancers["u"].healthCheck.port: 0: must be from 1 to 65535`,
			`loadBalancers["u"].healthCheck.family: "ipv5": must be one of empty, ipv4, ipv6`,
		},
	},
	{"as many listeners as may be", changed(func(l *lb.LoadBalancer) { l.Listeners = manyListeners(lb.MaxListeners) }), nil},
	{
		"too many listeners and addresses", changed(func(l *lb.LoadBalancer) {
			l.Listeners = manyListeners(lb.MaxListeners + 1)
			for i := range lb.MaxAddresses {
				l.Addresses = append(l.Addresses, netip.AddrFrom4([4]byte{198, 18, 1, byte(i)}))
			}
		}),
		[]string{
			`loadBalancers["u"].addresses: 65 of them: must be at most 64`,
			`loadBalancers["u"].listeners: 10001 of them: must be at most 10000; share the ports among several load balancers, which may have the same address`,
		},
	},
	{"not checked", changed(func(l *lb.LoadBalancer) {
		l.HealthCheck = lb.HealthCheck{Spec: healthcheck.Spec{Protocol: healthcheck.None}}
	}), nil},
	{
		"not checked, somehow", changed(func(l *lb.LoadBalancer) {
			l.HealthCheck = lb.HealthCheck{Spec: healthcheck.Spec{Protocol: healthcheck.None, Path: "/x"}, Port: 80, Family: lb.IPv4}
		}),
		[]string{
			`loadBalancers["u"].healthCheck.protocol: "none": must come alone: path, interval, timeout and thresholds mean nothing where nobody is asked`,
			`loadBalancers["u"].healthCheck.port: 80: must be 0 for protocol none`,
			`loadBalancers["u"].healthCheck.family: "ipv4": must be empty for protocol none`,
		},
	},
	{
		"source ranges", changed(func(l *lb.LoadBalancer) {
			l.SourceRanges = []netip.Prefix{
				netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("192.0.2.1/24"), {},
				netip.PrefixFrom(netip.MustParseAddr("::ffff:192.0.2.0"), 120),
			}
		}),
		[]string{
			`loadBalancers["u"].sourceRanges[1]: 192.0.2.1/24: has bits set behind its length; 192.0.2.0/24 would be right`,
			`loadBalancers["u"].sourceRanges[2]: invalid Prefix: must be an address range such as "192.0.2.0/24"`,
			`loadBalancers["u"].sourceRanges[3]: ::ffff:192.0.2.0/120: must be written as an IPv4 range`,
		},
	},
	{
		"values", changed(func(l *lb.LoadBalancer) {
			l.Name, l.Algorithm, l.OnUnhealthy, l.MaxConnections = "", "random", "explode", -1
		}),
		[]string{
			`loadBalancers["u"].name: "": must not be empty; it tells people what this is`,
			`loadBalancers["u"].algorithm: "random": must be one of empty, round-robin, least-connections, random-two-choices, source-hash`,
			`loadBalancers["u"].maxConnections: -1: must not be negative; 0 is unlimited`,
			`loadBalancers["u"].onUnhealthy: "explode": must be one of empty, reset, drain`,
		},
	},
	{
		"direct", changed(func(l *lb.LoadBalancer) {
			l.Forwarding = lb.ForwardDirect
			l.Listeners[0].TargetPort, l.Listeners[0].ProxyProtocol = 31080, lb.ProxyV2
			l.MemberFamilies, l.MaxConnections, l.ConnectTimeout, l.Algorithm = []lb.Family{lb.IPv6}, 1, healthcheck.Duration(time.Second), lb.RandomTwoChoices
		}),
		[]string{
			`loadBalancers["u"].listeners[0].targetPort: 31080: must be 80, the port itself, with forwarding direct, which changes no packet`,
			`loadBalancers["u"].listeners[0].proxyProtocol: v2: must be empty with forwarding direct, which changes no packet; members see the client's address anyway`,
			`loadBalancers["u"].memberFamilies: ipv6: must be none with forwarding direct, which changes no packet`,
			`loadBalancers["u"].maxConnections: 1: must be 0 with forwarding direct, which does not see when connections end`,
			`loadBalancers["u"].connectTimeout: 1s: must be 0 with forwarding direct, where clients connect to members themselves`,
			`loadBalancers["u"].algorithm: random-two-choices: must be round-robin, source-hash or empty with forwarding direct, which does not see when connections end`,
		},
	},
	{
		"timeouts", changed(func(l *lb.LoadBalancer) {
			l.Affinity = &lb.Affinity{}
			l.IdleTimeout, l.UDPIdleTimeout, l.DrainTimeout = -1, 1, healthcheck.Duration(lb.MaxTimeout+time.Second)
		}),
		[]string{
			`loadBalancers["u"].affinity.timeout: 0s: must be from 10ms to 168h0m0s`,
			`loadBalancers["u"].idleTimeout: -1ns: must be from 10ms to 168h0m0s, or 0 for the default`,
			`loadBalancers["u"].udpIdleTimeout: 1ns: must be from 10ms to 168h0m0s, or 0 for the default`,
			`loadBalancers["u"].drainTimeout: 168h0m1s: must be from 10ms to 168h0m0s, or 0 for the default`,
		},
	},
	{
		"all kinds of objects at once, in order",
		lb.Config{
			Nodes:         map[lb.NodeName]lb.Node{"b": {}, "a": {}},
			Pools:         map[lb.PoolName]lb.Pool{"b": {"x": {}}, "a": {"y": {}}},
			LoadBalancers: map[lb.UID]lb.LoadBalancer{"b": changed(func(l *lb.LoadBalancer) { l.Pool = "c" }).LoadBalancers["u"], "a": changed(func(l *lb.LoadBalancer) { l.Pool = "c" }).LoadBalancers["u"]},
		},
		[]string{
			`nodes["a"].addresses: none: must be at least one address`,
			`nodes["b"].addresses: none: must be at least one address`,
			`pools["a"]["y"]: "y": is none of the nodes of the configuration, and is left out`,
			`pools["b"]["x"]: "x": is none of the nodes of the configuration, and is left out`,
			`loadBalancers["a"].pool: "c": is none of the pools of the configuration`,
			`loadBalancers["b"].pool: "c": is none of the pools of the configuration`,
		},
	},
}

func TestValidate(t *testing.T) {
	for _, test := range validateTests {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			for _, c := range test.config.Validate() {
				got = append(got, c.String())
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("complaints differ (-want +got):\n%s", diff)
			}
		})
	}
}

// Only what Complaint promises is refused, whichever complaint it is.
func TestValidateAgreesWithCompile(t *testing.T) {
	for _, test := range validateTests {
		t.Run(test.name, func(t *testing.T) {
			in := largeInput(test.config)
			in.Policies["lab"] = lb.Policy{
				AddressRanges: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
				NodeRanges:    []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
			}
			out := lb.Compile(in)
			for _, c := range test.config.Validate() {
				switch {
				case c.LoadBalancer != "":
					if got := out.LoadBalancers[lb.Owner{Cluster: "lab", UID: c.LoadBalancer}].Applied; got != c.Partial {
						t.Errorf("%s: load balancer applied: got %t; want %t", c, got, c.Partial)
					}
				case c.Node != "":
					if _, refused := out.Nodes["lab"][c.Node]; !refused {
						t.Errorf("%s: the node is not refused", c)
					}
				}
			}
		})
	}
}

func TestCheckIDIsTheSameForEqualChecksOnly(t *testing.T) {
	var checks []lb.HealthCheck
	for _, protocol := range []healthcheck.Protocol{"", healthcheck.TCP, healthcheck.HTTP, healthcheck.HTTPS} {
		for _, path := range []string{"", "/healthz", "/", "/a:1"} {
			for _, timing := range []healthcheck.Spec{
				{}, {Interval: healthcheck.DefaultInterval}, {Interval: healthcheck.Duration(2 * time.Second)},
				{Timeout: healthcheck.DefaultTimeout}, {Timeout: healthcheck.Duration(2 * time.Second)},
				{UnhealthyThreshold: 3}, {UnhealthyThreshold: 2}, {HealthyThreshold: 2}, {HealthyThreshold: 3},
			} {
				for _, port := range []uint16{1, 10256} {
					for _, family := range []lb.Family{"", lb.IPv4, lb.IPv6} {
						spec := timing
						spec.Protocol, spec.Path = protocol, path
						if spec.Validate() == nil {
							checks = append(checks, lb.HealthCheck{Spec: spec, Port: port, Family: family})
						}
					}
				}
			}
		}
	}
	byID := map[lb.CheckID]lb.HealthCheck{}
	byCheck := map[lb.HealthCheck]lb.CheckID{}
	for _, h := range checks {
		id := h.ID()
		h.Spec = h.WithDefaults()
		if other, known := byID[id]; known && other != h {
			t.Errorf("%+v and %+v are not equal, and both have the ID %q", h, other, id)
		}
		if other, known := byCheck[h]; known && other != id {
			t.Errorf("%+v has the IDs %q and %q", h, id, other)
		}
		byID[id], byCheck[h] = h, id
	}
	if got, want := (lb.HealthCheck{Spec: healthcheck.Spec{Protocol: healthcheck.HTTP}, Port: 10256}).ID(), lb.CheckID("http:10256/healthz"); got != want {
		t.Errorf("ID: got %q; want %q", got, want)
	}
}

// filled returns a T in which every field, however deep, is not zero.
func filled[T any]() T {
	var v T
	fill(reflect.ValueOf(&v).Elem())
	return v
}

func fill(v reflect.Value) {
	switch value := v.Addr().Interface().(type) {
	case *netip.Addr:
		*value = netip.MustParseAddr("192.0.2.7")
		return
	case *netip.Prefix:
		*value = netip.MustParsePrefix("192.0.2.0/24")
		return
	case *time.Time:
		*value = claimed
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case reflect.Map:
		key, elem := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key)
		fill(elem)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, elem)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0))
		fill(v.Index(1))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.String:
		v.SetString("some <text> \u2028")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(math.MaxInt32)
	case reflect.Uint16:
		v.SetUint(math.MaxUint16)
	case reflect.Uint64:
		v.SetUint(math.MaxUint64)
	default:
		panic("no value for " + v.Type().String())
	}
}
