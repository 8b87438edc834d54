package lb

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/eclusa-lb/eclusa/healthcheck"
)

// Bounds of what a configuration may hold, enforced by Validate.
const (
	// MaxWeight is the largest weight of a node.
	MaxWeight = 1000
	// MinTimeout and MaxTimeout bound every timeout of a load balancer that is
	// not zero.
	MinTimeout = 10 * time.Millisecond
	MaxTimeout = 7 * 24 * time.Hour
	// MaxConnectTimeout is the largest connect timeout of a load balancer.
	MaxConnectTimeout = 30 * time.Second
	// MaxListeners and MaxAddresses bound one load balancer. What a cluster may have
	// in all is the edge's affair, see [Policy].
	MaxListeners = 10_000
	MaxAddresses = 64
	// MaxName is the largest length in bytes of a load balancer's name and of a
	// pool's, MaxID that of every other name and of a UID.
	MaxName = 1024
	MaxID   = 253
)

// The types of Problems that Validate and Compile find.
const (
	problemInvalid     = "invalid"
	problemUnsupported = "unsupported"
	problemAddressHeld = "address-held"
	problemNotFound    = "not-found"
)

// Complaint is one thing that is wrong with a configuration by itself. It
// concerns one load balancer, one node or one pool, and only that one is
// refused; everything else of the configuration is served.
type Complaint struct {
	// Exactly one of the three says what is refused; none of them when it is an
	// object without a name, and Problem.Field has the whole path then.
	LoadBalancer UID
	Node         NodeName
	Pool         PoolName
	// Problem has the field's path below the refused object and the reason.
	Problem Problem
	// Partial says that only the member that Field names is left out: a pool
	// that lists a node that does not exist, or a load balancer a member that is
	// not in its pool, goes on serving with the others.
	Partial bool
}

// Path returns the complaint's whole path in the Config, such as
// `loadBalancers["4f…"].listeners[1].protocol`.
func (c Complaint) Path() string {
	object := ""
	switch {
	case c.LoadBalancer != "":
		object = fmt.Sprintf("loadBalancers[%s]", quoted(string(c.LoadBalancer)))
	case c.Node != "":
		object = fmt.Sprintf("nodes[%s]", quoted(string(c.Node)))
	case c.Pool != "":
		object = fmt.Sprintf("pools[%s]", quoted(string(c.Pool)))
	}
	return below(object, c.Problem.Field)
}

// below returns the path of a field of an object.
func below(object, field string) string {
	if object == "" || field == "" || strings.HasPrefix(field, "[") {
		return object + field
	}
	return object + "." + field
}

// String returns the path and what is wrong there.
func (c Complaint) String() string { return c.Path() + ": " + c.Problem.Detail }

// Validate returns everything that is wrong with the configuration by itself,
// in a stable order: nodes, pools, load balancers, each by name or UID. What an
// edge allows is checked by Compile.
func (c Config) Validate() []Complaint {
	v := validation{config: c, specs: map[healthcheck.Spec][]string{}}
	for _, name := range slices.Sorted(maps.Keys(c.Nodes)) {
		v.about, v.nameless = Complaint{Node: name}, namelessNode
		v.node(name, c.Nodes[name])
	}
	for _, name := range slices.Sorted(maps.Keys(c.Pools)) {
		v.about, v.nameless = Complaint{Pool: name}, namelessPool
		v.pool(name, c.Pools[name])
	}
	for _, uid := range slices.Sorted(maps.Keys(c.LoadBalancers)) {
		v.about, v.nameless = Complaint{LoadBalancer: uid}, namelessLoadBalancer
		v.loadBalancer(uid, c.LoadBalancers[uid])
	}
	return v.complaints
}

// The paths of objects without a name.
const (
	namelessNode         = `nodes[""]`
	namelessPool         = `pools[""]`
	namelessLoadBalancer = `loadBalancers[""]`
)

// A validation gathers complaints about one object after the other.
type validation struct {
	config     Config
	about      Complaint // names the object that is looked at
	nameless   string    // its path, if it has no name
	complaints []Complaint
	specs      map[healthcheck.Spec][]string // complaints about each, as most load balancers have the same
}

func (v *validation) complain(field, format string, args ...any) {
	v.add(Problem{Type: problemInvalid, Field: field, Detail: fmt.Sprintf(format, args...)}, false)
}

func (v *validation) add(p Problem, partial bool) {
	c := v.about
	if c == (Complaint{}) {
		p.Field = below(v.nameless, p.Field)
	}
	c.Problem, c.Partial = p, partial
	v.complaints = append(v.complaints, c)
}

func (v *validation) node(name NodeName, n Node) {
	if fault := idFault(string(name)); fault != "" {
		v.complain("", "node name %s: %s", quoted(string(name)), fault)
	}
	if len(n.Addresses) == 0 {
		v.complain("addresses", "none: must be at least one address")
	}
	for i, a := range n.Addresses {
		if fault := addressFault(a); fault != "" {
			v.complain(fmt.Sprintf("addresses[%d]", i), "%s: %s", addressText(a), fault)
		}
	}
	if fault := textFault(n.Zone, MaxID); fault != "" {
		v.complain("zone", "%s: %s", quoted(n.Zone), fault)
	}
	if n.Weight < 0 || n.Weight > MaxWeight {
		v.complain("weight", "%d: must be from 1 to %d, or 0 for 1", n.Weight, MaxWeight)
	}
}

func (v *validation) pool(name PoolName, p Pool) {
	if fault := textFault(string(name), MaxName); fault != "" || name == "" {
		v.complain("", "pool name %s: %s", quoted(string(name)), cmp.Or(fault, "must not be empty"))
	}
	var missing []NodeName
	for node := range p {
		if _, ok := v.config.Nodes[node]; !ok {
			missing = append(missing, node)
		}
	}
	slices.Sort(missing)
	for _, node := range missing {
		v.add(Problem{
			Type: problemNotFound, Field: fmt.Sprintf("[%s]", quoted(string(node))),
			Detail: fmt.Sprintf("%s: is none of the nodes of the configuration, and is left out", quoted(string(node))),
		}, true)
	}
}

func (v *validation) loadBalancer(uid UID, l LoadBalancer) {
	if fault := idFault(string(uid)); fault != "" {
		v.complain("", "UID %s: %s", quoted(string(uid)), fault)
	}
	if fault := textFault(l.Name, MaxName); fault != "" || l.Name == "" {
		v.complain("name", "%s: %s", quoted(l.Name), cmp.Or(fault, "must not be empty; it tells people what this is"))
	}
	v.addresses(l.Addresses)
	v.listeners(l.Listeners)
	v.oneOf("forwarding", string(l.Forwarding), "", string(ForwardNAT), string(ForwardDirect))
	if l.Direct() {
		v.direct(l)
	}
	v.members(l)
	v.memberFamilies(l.MemberFamilies)
	v.healthCheck(l.HealthCheck)
	v.sourceRanges(l.SourceRanges)
	v.oneOf("algorithm", string(l.Algorithm), "", string(RoundRobin), string(LeastConnections), string(RandomTwoChoices), string(SourceHash))
	if l.Affinity != nil {
		v.timeout("affinity.timeout", l.Affinity.Timeout.D(), false)
	}
	if d := l.ConnectTimeout.D(); d != 0 && (d < MinTimeout || d > MaxConnectTimeout) {
		v.complain("connectTimeout", "%s: must be from %s to %s, or 0 for the engine's own", d, MinTimeout, MaxConnectTimeout)
	}
	v.timeout("idleTimeout", l.IdleTimeout.D(), true)
	v.timeout("udpIdleTimeout", l.UDPIdleTimeout.D(), true)
	v.timeout("drainTimeout", l.DrainTimeout.D(), true)
	if l.MaxConnections < 0 {
		v.complain("maxConnections", "%d: must not be negative; 0 is unlimited", l.MaxConnections)
	}
	v.oneOf("onUnhealthy", string(l.OnUnhealthy), "", string(OnUnhealthyReset), string(OnUnhealthyDrain))
}

func (v *validation) addresses(addrs []netip.Addr) {
	if len(addrs) == 0 {
		v.complain("addresses", "none: must be at least one address")
	}
	if len(addrs) > MaxAddresses {
		v.complain("addresses", "%d of them: must be at most %d", len(addrs), MaxAddresses)
		return
	}
	for i, a := range addrs {
		if fault := addressFault(a); fault != "" {
			v.complain(fmt.Sprintf("addresses[%d]", i), "%s: %s", addressText(a), fault)
		}
		if first := slices.Index(addrs, a); first < i {
			v.complain(fmt.Sprintf("addresses[%d]", i), "%s: is the same as addresses[%d]", addressText(a), first)
		}
	}
}

func (v *validation) listeners(listeners []Listener) {
	if len(listeners) == 0 {
		v.complain("listeners", "none: must be at least one listener")
	}
	if len(listeners) > MaxListeners {
		v.complain("listeners", "%d of them: must be at most %d; share the ports among several load balancers, which may have the same address", len(listeners), MaxListeners)
		return
	}
	type key struct {
		protocol Protocol
		port     uint16
	}
	first := make(map[key]int, len(listeners))
	for i, l := range listeners {
		// Built only where there is something to complain about: there are many.
		field := func(name string) string { return fmt.Sprintf("listeners[%d].%s", i, name) }
		if fault := textFault(l.Name, MaxID); fault != "" {
			v.complain(field("name"), "%s: %s", quoted(l.Name), fault)
		}
		switch l.Protocol {
		case TCP, UDP, SCTP:
		default:
			v.complain(field("protocol"), "%s: must be tcp, udp or sctp", quoted(string(l.Protocol)))
		}
		if l.Port == 0 {
			v.complain(field("port"), "0: must be from 1 to 65535")
		}
		if l.TargetPort == 0 {
			v.complain(field("targetPort"), "0: must be from 1 to 65535")
		}
		switch l.ProxyProtocol {
		case ProxyOff:
		case ProxyV1, ProxyV2:
			if l.Protocol != TCP {
				v.complain(field("proxyProtocol"), "%s: is spoken over tcp only; must be empty for %s", l.ProxyProtocol, l.Protocol)
			}
		default:
			v.complain(field("proxyProtocol"), "%s: must be v1, v2 or empty for none", quoted(string(l.ProxyProtocol)))
		}
		k := key{l.Protocol, l.Port}
		if at, doubled := first[k]; doubled {
			v.complain(fmt.Sprintf("listeners[%d]", i), "%s %d: is the same protocol and port as listeners[%d]", l.Protocol, l.Port, at)
			continue
		}
		first[k] = i
	}
}

// direct complains about what needs connections that are the edge's own: packets
// are routed as they are, and answers may pass the edge by.
func (v *validation) direct(l LoadBalancer) {
	for i, li := range l.Listeners {
		if li.TargetPort != li.Port {
			v.complain(fmt.Sprintf("listeners[%d].targetPort", i), "%d: must be %d, the port itself, with forwarding direct, which changes no packet", li.TargetPort, li.Port)
		}
		if li.ProxyProtocol != ProxyOff {
			v.complain(fmt.Sprintf("listeners[%d].proxyProtocol", i), "%s: must be empty with forwarding direct, which changes no packet; members see the client's address anyway", li.ProxyProtocol)
		}
	}
	if len(l.MemberFamilies) > 0 {
		v.complain("memberFamilies", "%s: must be none with forwarding direct, which changes no packet", listed(l.MemberFamilies))
	}
	if l.MaxConnections > 0 {
		v.complain("maxConnections", "%d: must be 0 with forwarding direct, which does not see when connections end", l.MaxConnections)
	}
	if l.ConnectTimeout != 0 {
		v.complain("connectTimeout", "%s: must be 0 with forwarding direct, where clients connect to members themselves", l.ConnectTimeout.D())
	}
	if l.Algorithm == LeastConnections || l.Algorithm == RandomTwoChoices {
		v.complain("algorithm", "%s: must be %s, %s or empty with forwarding direct, which does not see when connections end", l.Algorithm, RoundRobin, SourceHash)
	}
}

func (v *validation) members(l LoadBalancer) {
	pool, ok := v.config.Pools[l.Pool]
	if !ok {
		v.add(Problem{Type: problemNotFound, Field: "pool", Detail: fmt.Sprintf("%s: is none of the pools of the configuration", quoted(string(l.Pool)))}, false)
		return
	}
	var strangers []NodeName
	for node := range l.Members {
		if _, ok := pool[node]; !ok {
			strangers = append(strangers, node)
		}
	}
	slices.Sort(strangers)
	for _, node := range strangers {
		v.add(Problem{
			Type: problemNotFound, Field: fmt.Sprintf("members[%s]", quoted(string(node))),
			Detail: fmt.Sprintf("%s: is not in pool %s, and is left out", quoted(string(node)), quoted(string(l.Pool))),
		}, true)
	}
}

func (v *validation) memberFamilies(families []Family) {
	for i, f := range families {
		field := fmt.Sprintf("memberFamilies[%d]", i)
		v.oneOf(field, string(f), string(IPv4), string(IPv6))
		if first := slices.Index(families, f); first < i {
			v.complain(field, "%s: is the same as memberFamilies[%d]", quoted(string(f)), first)
		}
	}
}

func (v *validation) healthCheck(h HealthCheck) {
	faults, known := v.specs[h.Spec]
	if !known {
		faults = h.Validate()
		v.specs[h.Spec] = faults
	}
	for _, fault := range faults {
		field, detail, _ := strings.Cut(fault, ": ")
		v.complain("healthCheck."+field, "%s", detail)
	}
	if h.Protocol == healthcheck.None {
		v.noHealthCheck(h)
		return
	}
	if h.Port == 0 {
		v.complain("healthCheck.port", "0: must be from 1 to 65535")
	}
	v.oneOf("healthCheck.family", string(h.Family), "", string(IPv4), string(IPv6))
}

func (v *validation) noHealthCheck(h HealthCheck) {
	if h.Port != 0 {
		v.complain("healthCheck.port", "%d: must be 0 for protocol none", h.Port)
	}
	if h.Family != "" {
		v.complain("healthCheck.family", "%s: must be empty for protocol none", quoted(string(h.Family)))
	}
}

func (v *validation) sourceRanges(ranges []netip.Prefix) {
	for i, p := range ranges {
		field := fmt.Sprintf("sourceRanges[%d]", i)
		switch {
		case !p.IsValid():
			v.complain(field, `%s: must be an address range such as "192.0.2.0/24"`, p)
		case p.Addr().Is4In6():
			v.complain(field, "%s: must be written as an IPv4 range", p)
		case p != p.Masked():
			v.complain(field, "%s: has bits set behind its length; %s would be right", p, p.Masked())
		}
	}
}

// oneOf complains about a value that is none of the known ones. The empty one,
// where it is among them, stands for the default.
func (v *validation) oneOf(field, value string, known ...string) {
	if slices.Contains(known, value) {
		return
	}
	var names []string
	for _, k := range known {
		names = append(names, cmp.Or(k, "empty"))
	}
	v.complain(field, "%s: must be one of %s", quoted(value), strings.Join(names, ", "))
}

func (v *validation) timeout(field string, d time.Duration, zero bool) {
	switch {
	case d == 0 && zero, d >= MinTimeout && d <= MaxTimeout:
	case zero:
		v.complain(field, "%s: must be from %s to %s, or 0 for the default", d, MinTimeout, MaxTimeout)
	default:
		v.complain(field, "%s: must be from %s to %s", d, MinTimeout, MaxTimeout)
	}
}

var (
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8")
	broadcast   = netip.MustParseAddr("255.255.255.255")
)

// addressFault says why an address can be neither a load balancer's nor a
// node's, whatever an edge allows; empty if it can.
func addressFault(a netip.Addr) string {
	switch {
	case !a.IsValid():
		return "must be an IP address"
	case a.Zone() != "":
		return "must not have a zone, which means nothing on another machine"
	case a.Is4In6():
		return "must be written as " + a.Unmap().String()
	case a.IsUnspecified(), thisNetwork.Contains(a):
		return "must be the address of one machine, not the unspecified address"
	case a.IsLoopback():
		return "must not be a loopback address"
	case a.IsLinkLocalUnicast():
		return "must not be a link-local address"
	case a.IsMulticast(), a == broadcast:
		return "must not be a multicast or broadcast address"
	}
	return ""
}

func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return `""`
	}
	return a.String()
}

// idFault says why s cannot be a node's name or a UID; empty if it can. Such
// names become parts of other names, of metrics and of paths.
func idFault(s string) string {
	if s == "" {
		return "must not be empty"
	}
	if strings.ContainsFunc(s, unicode.IsSpace) {
		return "must not contain white space"
	}
	return textFault(s, MaxID)
}

// textFault says why s cannot be shown to people; empty if it can.
func textFault(s string, longest int) string {
	switch {
	case len(s) > longest:
		return fmt.Sprintf("must not be longer than %d bytes", longest)
	case !utf8.ValidString(s):
		return "must be valid UTF-8"
	case strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) }):
		return "must not contain control characters"
	}
	return ""
}
