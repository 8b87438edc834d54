package lb

import (
	"net/netip"

	"github.com/eclusa-lb/eclusa/healthcheck"
)

// Health tells what is known about a member. It must be a pure function while
// Compile runs.
type Health func(c Cluster, check HealthCheck, node NodeName) MemberHealth

// MemberHealth is what an edge knows about one node in one check.
type MemberHealth struct {
	State healthcheck.State
	// Dead says that a TCP connection to a node port in use failed too, often
	// enough. It matters only while State is Down.
	Dead bool
}

// Input is everything that decides where packets go.
type Input struct {
	Host     Host
	Policies map[Cluster]Policy
	Configs  map[Cluster]Config
	Health   Health
}

// Outcome is what Compile found: the table, what became of each load balancer,
// the nodes that cannot be used, and what has to be probed.
type Outcome struct {
	Table         Table
	LoadBalancers map[Owner]LoadBalancerStatus
	// Nodes holds the nodes that are refused as members, with the reason. They
	// are neither backends nor probed.
	Nodes map[Cluster]map[NodeName]Problem
	// NodeWarnings holds the nodes that are used, though without those of their
	// addresses that the edge refuses.
	NodeWarnings map[Cluster]map[NodeName]Problem
	// Checks holds every check of a load balancer that is served. It does not
	// depend on Input.Health.
	Checks map[Cluster]map[CheckID]Check
}

// Check is one health check in use, with the nodes that it concerns.
type Check struct {
	// HealthCheck is the check with its defaults filled in.
	HealthCheck HealthCheck
	// Members are the nodes to probe, each with the address to probe it at.
	Members map[NodeName]netip.Addr
	// Substitute tells for a node a target port that a TCP listener with this
	// check uses on it. A connection to it stands in for a check that has never
	// answered, and tells whether a node that is down is dead. Nodes that no TCP
	// listener uses are not in it.
	Substitute map[NodeName]uint16
}

// Compile decides where packets go.
func Compile(in Input) Outcome { return Outcome{} }
