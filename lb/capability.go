package lb

import "slices"

// Capability is something that an edge can or cannot do. A client sends only
// load balancers whose needs the edge's Info lists.
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
)

// Needs returns what an edge must be capable of to serve the load balancer,
// sorted, without doubles.
func (l LoadBalancer) Needs() []Capability {
	algorithm := l.Algorithm
	if algorithm == "" {
		algorithm = RoundRobin
	}
	needs := []Capability{Capability(algorithm)}
	for _, a := range l.Addresses {
		needs = append(needs, Capability(FamilyOf(a)))
	}
	for _, li := range l.Listeners {
		needs = append(needs, Capability(li.Protocol))
		if li.ProxyProtocol != ProxyOff {
			needs = append(needs, "proxy-protocol-"+Capability(li.ProxyProtocol))
		}
	}
	if len(l.SourceRanges) > 0 {
		needs = append(needs, CapSourceRanges)
	}
	if l.Affinity != nil {
		needs = append(needs, CapAffinity)
	}
	if l.MaxConnections > 0 {
		needs = append(needs, CapMaxConnections)
	}
	if len(l.MemberFamilies) > 0 {
		needs = append(needs, CapFamilyTranslation)
	}
	if l.ConnectTimeout > 0 {
		needs = append(needs, CapConnectTimeout)
	}
	slices.Sort(needs)
	return slices.Compact(needs)
}

// Lacking returns what the load balancer needs and have does not list.
func (l LoadBalancer) Lacking(have []Capability) []Capability {
	var lacking []Capability
	for _, c := range l.Needs() {
		if !slices.Contains(have, c) {
			lacking = append(lacking, c)
		}
	}
	return lacking
}
