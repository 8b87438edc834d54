package lb

import (
	"encoding"
	"fmt"
	"net/netip"
	"time"

	"github.com/eclusa-lb/eclusa/healthcheck"
)

// DecodeConfig reads a Config strictly: unknown fields, wrong types, doubled
// keys and trailing data are ErrInvalid; the error names the path and the value,
// and says what would be right. A text that would unfold to an unreasonable
// number of objects is ErrExhausted. What is wrong with single load balancers,
// nodes and pools is not looked at; see [Config.Validate]. The Config shares no
// memory with data.
func DecodeConfig(data []byte) (Config, error) {
	r := &jsonReader{data: data}
	var c Config
	readStruct(r, &c, configFields)
	r.end()
	if r.err != nil {
		return Config{}, fmt.Errorf("configuration: %w", r.err)
	}
	return c, nil
}

// The fields of each object. A test compares them with the tags of the structs.
var (
	configFields = []field[Config]{
		{"revision", func(r *jsonReader, c *Config) { _, c.Revision = r.integer(0, 1<<64-1) }},
		{"nodes", func(r *jsonReader, c *Config) { c.Nodes = some(readMap[NodeName](r, readNode)) }},
		{"pools", func(r *jsonReader, c *Config) { c.Pools = some(readMap[PoolName](r, readPool)) }},
		{"loadBalancers", func(r *jsonReader, c *Config) {
			c.LoadBalancers = some(readMap[UID](r, readLoadBalancer))
		}},
	}
	nodeFields = []field[Node]{
		{"addresses", func(r *jsonReader, n *Node) { n.Addresses = readList(r, readAddr) }},
		{"zone", func(r *jsonReader, n *Node) { n.Zone = r.word() }},
		{"draining", func(r *jsonReader, n *Node) { n.Draining = r.boolean() }},
		{"weight", func(r *jsonReader, n *Node) { n.Weight = readInt(r) }},
	}
	loadBalancerFields = []field[LoadBalancer]{
		{"name", func(r *jsonReader, l *LoadBalancer) { l.Name = readString(r) }},
		{"claimTime", func(r *jsonReader, l *LoadBalancer) { l.ClaimTime = readTime(r) }},
		{"addresses", func(r *jsonReader, l *LoadBalancer) { l.Addresses = readList(r, readAddr) }},
		{"listeners", func(r *jsonReader, l *LoadBalancer) { l.Listeners = readList(r, readListener) }},
		{"forwarding", func(r *jsonReader, l *LoadBalancer) { l.Forwarding = Forwarding(r.word()) }},
		{"pool", func(r *jsonReader, l *LoadBalancer) { l.Pool = PoolName(r.word()) }},
		{"members", func(r *jsonReader, l *LoadBalancer) { l.Members = readMembers(r) }},
		{"memberFamilies", func(r *jsonReader, l *LoadBalancer) { l.MemberFamilies = someOf(readList(r, readFamily)) }},
		{"healthCheck", func(r *jsonReader, l *LoadBalancer) { readStruct(r, &l.HealthCheck, healthCheckFields) }},
		{"failOpen", func(r *jsonReader, l *LoadBalancer) { l.FailOpen = r.boolean() }},
		{"sourceRanges", func(r *jsonReader, l *LoadBalancer) { l.SourceRanges = someOf(readList(r, readPrefix)) }},
		{"algorithm", func(r *jsonReader, l *LoadBalancer) { l.Algorithm = Algorithm(r.word()) }},
		{"affinity", func(r *jsonReader, l *LoadBalancer) { l.Affinity = readAffinity(r) }},
		{"connectTimeout", func(r *jsonReader, l *LoadBalancer) { l.ConnectTimeout = readDuration(r) }},
		{"idleTimeout", func(r *jsonReader, l *LoadBalancer) { l.IdleTimeout = readDuration(r) }},
		{"udpIdleTimeout", func(r *jsonReader, l *LoadBalancer) { l.UDPIdleTimeout = readDuration(r) }},
		{"drainTimeout", func(r *jsonReader, l *LoadBalancer) { l.DrainTimeout = readDuration(r) }},
		{"maxConnections", func(r *jsonReader, l *LoadBalancer) { l.MaxConnections = readInt(r) }},
		{"onUnhealthy", func(r *jsonReader, l *LoadBalancer) { l.OnUnhealthy = OnUnhealthy(r.word()) }},
	}
	listenerFields = []field[Listener]{
		{"name", func(r *jsonReader, l *Listener) { l.Name = r.word() }},
		{"protocol", func(r *jsonReader, l *Listener) { l.Protocol = Protocol(r.word()) }},
		{"port", func(r *jsonReader, l *Listener) { l.Port = readPort(r) }},
		{"targetPort", func(r *jsonReader, l *Listener) { l.TargetPort = readPort(r) }},
		{"proxyProtocol", func(r *jsonReader, l *Listener) { l.ProxyProtocol = ProxyProtocol(r.word()) }},
	}
	healthCheckFields = []field[HealthCheck]{
		{"protocol", func(r *jsonReader, h *HealthCheck) { h.Protocol = healthcheck.Protocol(r.word()) }},
		{"path", func(r *jsonReader, h *HealthCheck) { h.Path = r.word() }},
		{"interval", func(r *jsonReader, h *HealthCheck) { h.Interval = readDuration(r) }},
		{"timeout", func(r *jsonReader, h *HealthCheck) { h.Timeout = readDuration(r) }},
		{"unhealthyThreshold", func(r *jsonReader, h *HealthCheck) { h.UnhealthyThreshold = readInt(r) }},
		{"healthyThreshold", func(r *jsonReader, h *HealthCheck) { h.HealthyThreshold = readInt(r) }},
		{"port", func(r *jsonReader, h *HealthCheck) { h.Port = readPort(r) }},
		{"family", func(r *jsonReader, h *HealthCheck) { h.Family = Family(r.word()) }},
	}
	affinityFields = []field[Affinity]{
		{"timeout", func(r *jsonReader, a *Affinity) { a.Timeout = readDuration(r) }},
	}
)

// some and someOf make nothing of what is empty where both mean the same, so
// that a Config that went through JSON is equal to the one before.
func some[K comparable, V any](m map[K]V) map[K]V {
	if len(m) == 0 {
		return nil
	}
	return m
}

func someOf[V any](list []V) []V {
	if len(list) == 0 {
		return nil
	}
	return list
}

func readNode(r *jsonReader) (n Node) {
	readStruct(r, &n, nodeFields)
	return n
}

func readLoadBalancer(r *jsonReader) (l LoadBalancer) {
	readStruct(r, &l, loadBalancerFields)
	return l
}

func readListener(r *jsonReader) (l Listener) {
	readStruct(r, &l, listenerFields)
	return l
}

func readFamily(r *jsonReader) Family { return Family(r.word()) }

func readPool(r *jsonReader) Pool { return readMembers(r) }

// readMembers tells no set from an empty one, as LoadBalancer.Members does.
func readMembers(r *jsonReader) map[NodeName]Member {
	if r.null() {
		return nil
	}
	return readMap[NodeName](r, readMember)
}

func readMember(r *jsonReader) Member {
	if r.open('{', "an empty object") && r.more('}', 0) {
		if key, ok := r.key(); ok {
			r.unknown(string(key), nil)
		}
	}
	return Member{}
}

func readAffinity(r *jsonReader) *Affinity {
	if r.null() {
		return nil
	}
	a := &Affinity{}
	readStruct(r, a, affinityFields)
	return a
}

func readString(r *jsonReader) string {
	b, _ := r.text()
	return string(b)
}

func readPort(r *jsonReader) uint16 {
	_, v := r.integer(0, 1<<16-1)
	return uint16(v) //nolint:gosec // integer has checked the bounds
}

func readInt(r *jsonReader) int {
	v, _ := r.integer(-1<<31, 1<<31-1)
	return int(v)
}

func readAddr(r *jsonReader) (a netip.Addr) {
	readText(r, &a, `an IP address such as "192.0.2.1" or "2001:db8::1"`)
	return a
}

func readPrefix(r *jsonReader) (p netip.Prefix) {
	readText(r, &p, `an address range such as "192.0.2.0/24" or "2001:db8::/32"`)
	return p
}

func readTime(r *jsonReader) (t time.Time) {
	readText(r, &t, `a time such as "2006-01-02T15:04:05Z"`)
	return t
}

func readDuration(r *jsonReader) (d healthcheck.Duration) {
	readText(r, &d, `a number with unit such as "500ms" or "10s"`)
	return d
}

// readText reads a text that stands for something else.
func readText(r *jsonReader, into encoding.TextUnmarshaler, right string) {
	r.space()
	start := r.pos
	b, ok := r.text()
	if !ok {
		return
	}
	if err := into.UnmarshalText(b); err != nil {
		r.pos = start
		r.want(right)
	}
}
