package contender

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/eclusa-lb/eclusa/bench/traffic"
	"github.com/eclusa-lb/eclusa/lb"
)

// Frontend is a port of the load balancer.
type Frontend struct {
	Port       uint16
	Protocol   lb.Protocol
	TargetPort uint16
}

// The ports of the load balancer that is measured.
const (
	RequestFrontend = 80
	CloseFrontend   = 81
	BulkFrontend    = 82
	EchoFrontend    = 53
	SinkFrontend    = 54
)

// Frontends are all of them.
var Frontends = []Frontend{
	{RequestFrontend, lb.TCP, traffic.RequestPort},
	{CloseFrontend, lb.TCP, traffic.ClosePort},
	{BulkFrontend, lb.TCP, traffic.BulkPort},
	{EchoFrontend, lb.UDP, traffic.EchoPort},
	{SinkFrontend, lb.UDP, traffic.SinkPort},
}

// Setup is what a load balancer is to do.
type Setup struct {
	// Members are the nodes that get traffic.
	Members []netip.Addr
	// Others are how many load balancers there are beside the one that is measured,
	// each with an address of its own and one port.
	Others int
	// Checked says that the load balancer is to find out by itself which members
	// are well, where that is not a matter of course.
	Checked bool
}

// AllMembers is the setup in which every node gets traffic.
func AllMembers() Setup {
	s := Setup{}
	for i := range Nodes {
		s.Members = append(s.Members, NodeAddr(i))
	}
	return s
}

// Without is the setup without a node, i from 0.
func (s Setup) Without(i int) Setup {
	kept := Setup{Others: s.Others}
	for _, a := range s.Members {
		if a != NodeAddr(i) {
			kept.Members = append(kept.Members, a)
		}
	}
	return kept
}

// Contender is a kind of load balancer.
type Contender interface {
	// Name is what users type.
	Name() string
	// Title is what the report calls it.
	Title() string
	// Version tells what is measured, or why it cannot be here.
	Version() (string, error)
	// Carries tells whether it can carry a protocol.
	Carries(p lb.Protocol) bool
	// Configuration is what it is told, with files of its own in dir.
	Configuration(s Setup, dir string) (string, error)
	// Start starts it on the network's edge, with files of its own in dir.
	Start(ctx context.Context, n *Network, s Setup, dir string) (Running, error)
}

// Running is a load balancer at work.
type Running interface {
	// Targets are where clients go for a port.
	Targets(port uint16) []netip.AddrPort
	// PIDs are the processes through which traffic goes.
	PIDs() []int
	// Set changes the members. It returns when the change is in force, or, where
	// that cannot be known, asked for.
	Set(ctx context.Context, s Setup) error
	// Stop ends it. Connections are not waited for.
	Stop()
}

// All are the contenders, in the order of the report.
var All = []Contender{
	direct{},
	haproxy{},
	haproxy{buffer: 131072},
	nginx{},
	kubeproxy{},
	kubeproxy{pool: true},
	engine{name: "proxy"},
	engine{name: "nftables"},
}

// Find returns the contender of a name.
func Find(name string) (Contender, error) {
	var names []string
	for _, c := range All {
		if c.Name() == name {
			return c, nil
		}
		names = append(names, c.Name())
	}
	return nil, fmt.Errorf("engine %q: there is none of that name; there are %q", name, names)
}

// vipTargets are those of a load balancer with an address.
func vipTargets(port uint16) []netip.AddrPort {
	return []netip.AddrPort{netip.AddrPortFrom(VIP(0), port)}
}

// startPatience is how long a load balancer may take until it serves.
const startPatience = 60 * time.Second
