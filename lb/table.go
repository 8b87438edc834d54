package lb

import (
	"fmt"
	"net/netip"
	"time"
)

// Table is what packets follow: every frontend of every cluster with its route,
// and the groups of backends that routes share. It is immutable.
type Table struct {
	Routes map[Frontend]Route
	Groups map[GroupID]Group
}

// Frontend is where traffic arrives.
type Frontend struct {
	Addr     netip.Addr
	Port     uint16
	Protocol Protocol
}

// String returns the frontend as "tcp 192.0.2.1:80".
func (f Frontend) String() string {
	return fmt.Sprintf("%s %s", f.Protocol, netip.AddrPortFrom(f.Addr, f.Port))
}

// Owner is the load balancer that a route belongs to.
type Owner struct {
	Cluster Cluster
	UID     UID
}

// Route is what becomes of the traffic of one frontend. All its values are
// effective: defaults are filled in.
type Route struct {
	Owner Owner
	// Name is the load balancer's name for people.
	Name string
	// Group are the backends; a group without an Active one refuses connections.
	Group GroupID
	// Direct has packets routed to the backends as they are. TargetPort is then the
	// frontend's port.
	Direct bool
	// TargetPort is the port on the backends.
	TargetPort     uint16
	Algorithm      Algorithm
	ProxyProtocol  ProxyProtocol
	SourceRanges   []netip.Prefix
	AffinityFor    time.Duration // zero is off
	ConnectTimeout time.Duration // of one attempt; zero is the engine's own
	IdleTimeout    time.Duration // of the route's protocol
	DrainTimeout   time.Duration
	MaxConnections int // over all routes of the Owner; zero is unlimited
	// ResetDead resets established connections of Dead backends.
	ResetDead bool
}

// GroupID identifies a group of backends as long as its purpose stays the same,
// whatever happens to its members.
type GroupID struct {
	Cluster Cluster
	// Name is the pool with its check, or the load balancer that narrows it.
	Name   string
	Family Family
}

// Group is a set of backends of one family, sorted by Node, without doubles.
type Group struct {
	Backends []Backend
	// FailingOpen says that no member is up and all are Active nevertheless.
	FailingOpen bool
	// LastResort says that no member is up, and that those are Active that answer and
	// have said for a short while that they should not get traffic.
	LastResort bool
}

// Backend is a member of a group.
type Backend struct {
	Node   NodeName
	Addr   netip.Addr
	Weight int // at least 1
	State  BackendState
	// Check is the check that decides about the backend.
	Check CheckID
}

// BackendState says what a backend may get.
type BackendState uint8

// The states of a backend.
const (
	// Active takes new connections.
	Active BackendState = iota
	// Draining keeps its connections and takes no new ones.
	Draining
	// Dead takes nothing, and its connections are reset where the route says so.
	Dead
)

// String returns "active", "draining" or "dead".
func (s BackendState) String() string {
	switch s {
	case Active:
		return "active"
	case Draining:
		return "draining"
	case Dead:
		return "dead"
	}
	return fmt.Sprintf("BackendState(%d)", uint8(s))
}
