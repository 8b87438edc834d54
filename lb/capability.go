package lb

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/eclusa-lb/eclusa/healthcheck"
)

// Capability is something that an edge can or cannot do. A client sends only
// load balancers of which the edge can serve some listener at least, as far as its
// Info tells; see [LoadBalancer.Shortfall].
type Capability string

// The capabilities. Protocols, families, algorithms and PROXY protocol versions
// are capabilities under their own names.
const (
	CapTCP              Capability = "tcp"
	CapUDP              Capability = "udp"
	CapSCTP             Capability = "sctp"
	CapIPv4             Capability = "ipv4"
	CapIPv6             Capability = "ipv6"
	CapRoundRobin       Capability = "round-robin"
	CapLeastConnections Capability = "least-connections"
	CapRandomTwoChoices Capability = "random-two-choices"
	CapSourceHash       Capability = "source-hash"
	CapSourceRanges     Capability = "source-ranges"
	CapAffinity         Capability = "affinity"
	CapMaxConnections   Capability = "max-connections"
	CapConnectTimeout   Capability = "connect-timeout"
	// CapFamilyTranslation serves clients of one family by members of the other.
	CapFamilyTranslation Capability = "family-translation"
	CapProxyV1           Capability = "proxy-protocol-v1"
	CapProxyV2           Capability = "proxy-protocol-v2"
	// CapDirect is ForwardDirect.
	CapDirect Capability = "direct"
	// CapCheckGRPC and CapCheckNone are kinds of health check, which edges that do
	// not name them refuse. They are up to the edge, whatever its engine is.
	CapCheckGRPC Capability = "health-check-grpc"
	CapCheckNone Capability = "health-check-none"
)

// Needs returns what an edge must be capable of to serve the load balancer
// wholly, sorted, without doubles.
func (l LoadBalancer) Needs() []Capability {
	var needs []Capability
	for _, n := range l.needsOfWhole() {
		needs = append(needs, n.capability)
	}
	for _, li := range l.Listeners {
		for _, n := range li.needs() {
			needs = append(needs, n.capability)
		}
	}
	slices.Sort(needs)
	return slices.Compact(needs)
}

// Direct says whether packets are routed to members as they are.
func (l LoadBalancer) Direct() bool { return l.Forwarding == ForwardDirect }

// A need is a capability that a field asks for.
type need struct {
	capability Capability
	field      string // below the load balancer or the listener
}

// needsOfWhole returns what all listeners need, by the field that needs it first.
func (l LoadBalancer) needsOfWhole() []need {
	needs := []need{{Capability(cmp.Or(l.Algorithm, RoundRobin)), "algorithm"}}
	for i, a := range l.Addresses {
		family := Capability(FamilyOf(a))
		if !slices.ContainsFunc(needs, func(n need) bool { return n.capability == family }) {
			needs = append(needs, need{family, fmt.Sprintf("addresses[%d]", i)})
		}
	}
	for _, n := range []struct {
		need
		asked bool
	}{
		{need{CapDirect, "forwarding"}, l.Direct()},
		{need{CapSourceRanges, "sourceRanges"}, len(l.SourceRanges) > 0},
		{need{CapAffinity, "affinity"}, l.Affinity != nil},
		{need{CapMaxConnections, "maxConnections"}, l.MaxConnections > 0},
		{need{CapFamilyTranslation, "memberFamilies"}, len(l.MemberFamilies) > 0},
		{need{CapConnectTimeout, "connectTimeout"}, l.ConnectTimeout > 0},
		{need{CapCheckGRPC, "healthCheck.protocol"}, l.HealthCheck.Protocol == healthcheck.GRPC},
		{need{CapCheckNone, "healthCheck.protocol"}, l.HealthCheck.Protocol == healthcheck.None},
	} {
		if n.asked {
			needs = append(needs, n.need)
		}
	}
	return needs
}

func (li Listener) needs() []need {
	needs := []need{{Capability(li.Protocol), "protocol"}}
	if li.ProxyProtocol != ProxyOff {
		needs = append(needs, need{"proxy-protocol-" + Capability(li.ProxyProtocol), "proxyProtocol"})
	}
	return needs
}

// A Shortfall is what an edge lacks for a load balancer, and what follows. The
// zero value says that it serves all of it.
type Shortfall struct {
	// Lacking is what is needed and not there, sorted, without doubles.
	Lacking []Capability
	// Refused says that nothing can be served: the whole needs what is lacking, or
	// every listener does.
	Refused bool
	// Omitted are the indices of the listeners that cannot be served, ascending;
	// unless all is refused, the others are.
	Omitted []int
	// Problems tell it to people: first what the whole lacks, then one for each of
	// Omitted, with the field that needs it.
	Problems []Problem
}

// Shortfall returns what an edge that is capable of have cannot serve. Clients send
// what an edge can serve; an edge that gets more leaves out the rest.
func (l LoadBalancer) Shortfall(have []Capability) Shortfall {
	var s Shortfall
	for _, n := range l.needsOfWhole() {
		if !slices.Contains(have, n.capability) {
			s.Refused = true
			s.lack(n, n.field, "", have)
		}
	}
	for i, li := range l.Listeners {
		for _, n := range li.needs() {
			if !slices.Contains(have, n.capability) {
				s.Omitted = append(s.Omitted, i)
				s.lack(n, fmt.Sprintf("listeners[%d].%s", i, n.field), fmt.Sprintf(", so that %s %d is not served", li.Protocol, li.Port), have)
				break
			}
		}
	}
	s.Refused = s.Refused || len(s.Omitted) == len(l.Listeners) && len(s.Omitted) > 0
	slices.Sort(s.Lacking)
	s.Lacking = slices.Compact(s.Lacking)
	return s
}

func (s *Shortfall) lack(n need, field, so string, have []Capability) {
	s.Lacking = append(s.Lacking, n.capability)
	s.Problems = append(s.Problems, Problem{
		Type: problemUnsupported, Field: field,
		Detail: fmt.Sprintf("%s: is not among what this edge can do, %s%s; ask for something else, or use an edge that can", n.capability, listed(have), so),
	})
}
