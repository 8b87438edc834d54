package lab

import (
	"fmt"
	"net/netip"
)

// The address plan. Two subnets, lan and wan, joined by the host "fabric",
// which is the router of both. IPv6 addresses end in the digits of the IPv4
// ones, so 172.30.0.21 and fd00:30::21 are the same host.
const (
	maxNodes   = 80
	maxEdges   = 50
	maxClients = 100

	controlPlaneNumber = 10
	firstNodeNumber    = 21
	firstEdgeNumber    = 101
	firstClientNumber  = 10

	// PoolRange4 and PoolRange6 are the addresses of the AddressPool
	// "default": lan addresses that no host has.
	PoolRange4 = "172.30.0.200-172.30.0.250"
	PoolRange6 = "fd00:30::200-fd00:30::250"
)

// subnet is one of the two networks of a lab.
type subnet struct {
	name             string
	prefix4, prefix6 string
}

var (
	lan = subnet{name: "lan", prefix4: "172.30.0.", prefix6: "fd00:30::"}
	wan = subnet{name: "wan", prefix4: "172.31.0.", prefix6: "fd00:31::"}
)

// addrs are the addresses of a host, given by its number in the subnet.
func (s subnet) addrs(number int) (v4, v6 netip.Addr) {
	return netip.MustParseAddr(fmt.Sprintf("%s%d", s.prefix4, number)),
		netip.MustParseAddr(fmt.Sprintf("%s%d", s.prefix6, number))
}

// router is the number of the fabric in each subnet.
const router = 1

// kind is what a host is for.
type kind int

const (
	controlPlaneKind kind = iota
	nodeKind
	edgeKind
	clientKind
)

// place is a host of the plan.
type place struct {
	kind   kind
	name   string
	subnet subnet
	number int
}

// plan lists the hosts of a lab in the order in which they are made. The
// fabric, which connects them, is not among them.
func plan(o Options) []place {
	ps := []place{{controlPlaneKind, "control-plane", lan, controlPlaneNumber}}
	for i := range o.Nodes {
		ps = append(ps, place{nodeKind, fmt.Sprintf("node-%d", i+1), lan, firstNodeNumber + i})
	}
	for i := range o.Edges {
		ps = append(ps, edgePlace(i+1))
	}
	for i := range o.Clients {
		ps = append(ps, place{clientKind, fmt.Sprintf("client-%d", i+1), wan, firstClientNumber + i})
	}
	return ps
}

// edgePlace is that of an edge by its number in its name.
func edgePlace(number int) place {
	return place{edgeKind, fmt.Sprintf("edge-%d", number), lan, firstEdgeNumber - 1 + number}
}

// podCIDRs are the ranges of the pods of node i, counted from 0.
func podCIDRs(o Options, i int) []netip.Prefix {
	cidrs := []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i+1))}
	if !o.SingleStack {
		cidrs = append(cidrs, netip.MustParsePrefix(fmt.Sprintf("fd00:244:0:%d::/64", i+1)))
	}
	return cidrs
}
