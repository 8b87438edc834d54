package lb

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/eclusa-lb/eclusa/healthcheck"
)

// A Cluster is the name of a Kubernetes cluster as edges know it: the common
// name of its client certificate.
type Cluster string

// A UID identifies a load balancer within its cluster for all time. For a load
// balancer made from a Service it is the Service's UID.
type UID string

// A NodeName identifies a node within its cluster.
type NodeName string

// A PoolName identifies a pool of nodes within its cluster.
type PoolName string

// Config is everything that one cluster wants from one edge. It is always
// handled as a whole; what changes between two of them is worked out by whoever
// needs to know.
//
// Its collections are JSON objects keyed by name or UID, so that an RFC 7396
// merge patch of one entry stays small. Lists of scalars, and the listeners of
// a load balancer, are values and replaced whole.
type Config struct {
	// Revision grows with each change that the cluster makes and never falls
	// within an epoch.
	Revision uint64 `json:"revision"`
	// Nodes is the only place where a node is described, so that whatever
	// happens to a node is one small change however many load balancers use it.
	Nodes map[NodeName]Node `json:"nodes,omitempty"`
	// Pools are named sets of nodes.
	Pools map[PoolName]Pool `json:"pools,omitempty"`
	// LoadBalancers are the load balancers by UID.
	LoadBalancers map[UID]LoadBalancer `json:"loadBalancers,omitempty"`
}

// Node is a machine that can be a member of pools.
type Node struct {
	// Addresses are where the node is reached, most wanted first, at least one.
	// A connection goes to the first address of the listener's family.
	Addresses []netip.Addr `json:"addresses"`
	// Zone is the failure domain of the node, or empty.
	Zone string `json:"zone,omitempty"`
	// Draining keeps established connections and takes no new ones.
	Draining bool `json:"draining,omitempty"`
	// Weight is the node's share of new connections relative to the other
	// nodes', 1 to 1000; zero means 1.
	Weight int `json:"weight,omitempty"`
}

// Pool is a set of nodes.
type Pool map[NodeName]Member

// Member is what a pool says about one of its nodes: for now only that it is
// there.
type Member struct{}

// LoadBalancer is one set of addresses with listeners in front of a pool.
type LoadBalancer struct {
	// Name says to people what this is: "namespace/name" of the Service.
	Name string `json:"name"`
	// ClaimTime is when the claim on the addresses was made. Of two load
	// balancers that want the same address, protocol and port the older claim
	// wins; then the smaller cluster name, then the smaller UID.
	ClaimTime time.Time `json:"claimTime"`
	// Addresses are the external addresses, at most one of each family or as
	// many as the cluster assigned.
	Addresses []netip.Addr `json:"addresses"`
	// Listeners are served on every one of the addresses.
	Listeners []Listener `json:"listeners"`
	// Forwarding is how packets get to members; empty is ForwardNAT.
	Forwarding Forwarding `json:"forwarding,omitempty"`
	// Pool names the pool whose nodes are the members.
	Pool PoolName `json:"pool"`
	// Members, unless nil, narrows the pool to these nodes. An empty set that is
	// not nil means that nobody can serve: connections are refused at once.
	Members map[NodeName]Member `json:"members,omitzero"`
	// MemberFamilies, unless empty, are the only families in which members are
	// reached, the most wanted first: clients of another family are served in that
	// one. Empty stands for the family of each address.
	MemberFamilies []Family `json:"memberFamilies,omitempty"`
	// HealthCheck is how the members are checked, if at all.
	HealthCheck HealthCheck `json:"healthCheck"`
	// FailOpen sends traffic to all members when not one of them is up, because
	// a broken health check must not empty a pool. Without it connections are
	// refused then.
	FailOpen bool `json:"failOpen,omitempty"`
	// SourceRanges, unless empty, are the only sources that may connect.
	SourceRanges []netip.Prefix `json:"sourceRanges,omitempty"`
	// Algorithm chooses the member of a new connection; empty is RoundRobin.
	Algorithm Algorithm `json:"algorithm,omitempty"`
	// Affinity, unless nil, sends a client to the member it had before.
	Affinity *Affinity `json:"affinity,omitempty"`
	// ConnectTimeout is how long one attempt to connect to a member may take; zero
	// means the engine's own.
	ConnectTimeout healthcheck.Duration `json:"connectTimeout,omitempty"`
	// IdleTimeout ends a TCP connection on which nothing moved for so long;
	// zero means DefaultIdleTimeout.
	IdleTimeout healthcheck.Duration `json:"idleTimeout,omitempty"`
	// UDPIdleTimeout ends a UDP session on which nothing moved for so long; zero
	// means DefaultUDPIdleTimeout.
	UDPIdleTimeout healthcheck.Duration `json:"udpIdleTimeout,omitempty"`
	// DrainTimeout is how long established connections may go on after their
	// member or listener was removed; zero means DefaultDrainTimeout.
	DrainTimeout healthcheck.Duration `json:"drainTimeout,omitempty"`
	// MaxConnections limits the connections open at once over all listeners of
	// the load balancer; zero means the engine's own limit only.
	MaxConnections int `json:"maxConnections,omitempty"`
	// OnUnhealthy says what happens to established connections of a member that
	// is dead; empty is OnUnhealthyReset.
	OnUnhealthy OnUnhealthy `json:"onUnhealthy,omitempty"`
}

// Listener is one port of a load balancer.
type Listener struct {
	// Name is the name of the Service's port, or empty.
	Name string `json:"name,omitempty"`
	// Protocol is TCP, UDP or SCTP.
	Protocol Protocol `json:"protocol"`
	// Port is the standard port that clients use.
	Port uint16 `json:"port"`
	// TargetPort is the port on the members: the node port. With ForwardDirect it is
	// Port itself, since packets are not changed.
	TargetPort uint16 `json:"targetPort"`
	// ProxyProtocol announces the client's address to the member; empty is off.
	ProxyProtocol ProxyProtocol `json:"proxyProtocol,omitempty"`
}

// HealthCheck is how the nodes of a load balancer are checked. Load balancers
// with equal health checks share the probes: each node is probed once. With
// protocol none, which has neither port nor anything else, nobody is probed and
// every member counts as up; an engine still goes on to another one when a member
// does not take a connection.
type HealthCheck struct {
	healthcheck.Spec
	// Port is where the nodes are probed.
	Port uint16 `json:"port"`
	// Family picks the node's address to probe; empty is the node's first.
	Family Family `json:"family,omitempty"`
}

// A CheckID names a HealthCheck in statuses: readable, and the same for equal
// checks only.
type CheckID string

// ID returns the check's name, such as "http:10256/healthz", or "none".
func (h HealthCheck) ID() CheckID {
	if h.Protocol == healthcheck.None {
		return CheckID(healthcheck.None)
	}
	s := h.WithDefaults()
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d%s", s.Protocol, h.Port, s.Suffix())
	d := healthcheck.Spec{Protocol: s.Protocol, Path: s.Path}.WithDefaults()
	if s != d {
		fmt.Fprintf(&b, " every %s timeout %s down %d up %d", s.Interval.D(), s.Timeout.D(), s.UnhealthyThreshold, s.HealthyThreshold)
	}
	if h.Family != "" {
		fmt.Fprintf(&b, " %s", h.Family)
	}
	return CheckID(b.String())
}

// Protocol is a transport protocol.
type Protocol string

// The protocols of listeners. Which of them an edge serves is among its
// capabilities.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	SCTP Protocol = "sctp"
)

// Family is an address family.
type Family string

// The two families.
const (
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
)

// FamilyOf returns the family of a valid address; a 4-in-6 address is IPv4.
func FamilyOf(a netip.Addr) Family {
	if a.Unmap().Is4() {
		return IPv4
	}
	return IPv6
}

// Forwarding is how packets get to members.
type Forwarding string

// The ways of forwarding.
const (
	// ForwardNAT has members see a connection of the edge to a node port. It is the
	// default.
	ForwardNAT Forwarding = "nat"
	// ForwardDirect routes packets to members as they are, with the addresses of
	// client and load balancer. Members must take the load balancer's addresses for
	// their own, and answer clients themselves. The edge must have them on a link.
	ForwardDirect Forwarding = "direct"
)

// Algorithm chooses the member of a new connection or session.
type Algorithm string

// The algorithms. Which of them an edge offers is among its capabilities.
const (
	RoundRobin       Algorithm = "round-robin"
	LeastConnections Algorithm = "least-connections"
	// RandomTwoChoices takes the one with fewer connections, for its weight, of two
	// members chosen at random (Mitzenmacher, "The Power of Two Choices in Randomized
	// Load Balancing", 2001).
	RandomTwoChoices Algorithm = "random-two-choices"
	// SourceHash chooses by the client's address, with a Maglev table (Eisenbud et
	// al., "Maglev", NSDI 2016): a lost member's clients are spread, and nearly all
	// others keep theirs.
	SourceHash Algorithm = "source-hash"
)

// Affinity sends new connections of a client's address to the member that
// served it before, while that member is up.
type Affinity struct {
	// Timeout is how long a client may stay away and still be known.
	Timeout healthcheck.Duration `json:"timeout"`
}

// ProxyProtocol is the version of HAProxy's PROXY protocol that is spoken to
// members.
type ProxyProtocol string

// The versions. Which of them an edge speaks is among its capabilities.
const (
	ProxyOff ProxyProtocol = ""
	ProxyV1  ProxyProtocol = "v1"
	ProxyV2  ProxyProtocol = "v2"
)

// OnUnhealthy says what happens to established connections of a dead member.
type OnUnhealthy string

// The reactions to a dead member.
const (
	// OnUnhealthyReset resets the connections of a member once connections to
	// its node port failed as well. It is the default.
	OnUnhealthyReset OnUnhealthy = "reset"
	// OnUnhealthyDrain lets them end by themselves.
	OnUnhealthyDrain OnUnhealthy = "drain"
)

// Defaults of what a LoadBalancer leaves at zero.
const (
	DefaultIdleTimeout    = time.Hour
	DefaultUDPIdleTimeout = 30 * time.Second
	DefaultDrainTimeout   = 30 * time.Second
)
