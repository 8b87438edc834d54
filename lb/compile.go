package lb

import "github.com/eclusa-lb/eclusa/healthcheck"

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

// Outcome is what Compile found: the table, and what became of each load
// balancer and of nodes that cannot be used.
type Outcome struct {
	Table         Table
	LoadBalancers map[Owner]LoadBalancerStatus
	// Nodes holds the nodes that are refused as members, with the reason.
	Nodes map[Cluster]map[NodeName]Problem
}

// Compile decides where packets go.
func Compile(in Input) Outcome { return Outcome{} }
