package lb

import "net/netip"

// Policy is what an edge allows one cluster, from the edge's own configuration.
type Policy struct {
	// AddressRanges are where the cluster's load balancer addresses must lie.
	AddressRanges []netip.Prefix
	// Shared are the AddressRanges that other clusters may use as well.
	Shared []netip.Prefix
	// NodeRanges are where the addresses of its nodes must lie.
	NodeRanges []netip.Prefix
	// MaxLoadBalancers, MaxListeners and MaxNodes limit the size of its
	// configuration. Beyond them a Set is refused with ErrExhausted.
	MaxLoadBalancers, MaxListeners, MaxNodes int
}

// Host is what an edge is, apart from any cluster: what it can do, and which
// addresses and ports are taken. It may change while the edge runs.
type Host struct {
	// Capabilities are the engine's.
	Capabilities []Capability
	// OwnAddresses are the addresses of the machine itself, without those that
	// it holds for load balancers.
	OwnAddresses []netip.Addr
	// ShareOwnAddresses allows load balancers on OwnAddresses.
	ShareOwnAddresses bool
	// Reserved are frontends that nobody may have, with the holder's name for
	// the message: "API of the edge". An unspecified address stands for every
	// address of its family.
	Reserved map[Frontend]string
}
