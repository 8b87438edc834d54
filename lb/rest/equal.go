package rest

import (
	"maps"
	"slices"

	"github.com/eclusa-lb/eclusa/lb"
)

// The functions below tell whether two entries mean the same without encoding
// them, since almost all entries of two successive configurations do. A test
// changes every field in turn, so that a new one cannot be forgotten here.

func equalNode(a, b lb.Node) bool {
	return slices.Equal(a.Addresses, b.Addresses) && a.Zone == b.Zone && a.Draining == b.Draining && a.Weight == b.Weight
}

func equalPool(a, b lb.Pool) bool { return maps.Equal(a, b) }

func equalLoadBalancer(a, b lb.LoadBalancer) bool {
	return a.Name == b.Name &&
		a.ClaimTime.Equal(b.ClaimTime) &&
		slices.Equal(a.Addresses, b.Addresses) &&
		slices.Equal(a.Listeners, b.Listeners) &&
		a.Forwarding == b.Forwarding &&
		a.Pool == b.Pool &&
		equalMembers(a.Members, b.Members) &&
		slices.Equal(a.MemberFamilies, b.MemberFamilies) &&
		a.HealthCheck == b.HealthCheck &&
		a.FailOpen == b.FailOpen &&
		slices.Equal(a.SourceRanges, b.SourceRanges) &&
		a.Algorithm == b.Algorithm &&
		equalAffinity(a.Affinity, b.Affinity) &&
		a.ConnectTimeout == b.ConnectTimeout &&
		a.IdleTimeout == b.IdleTimeout &&
		a.UDPIdleTimeout == b.UDPIdleTimeout &&
		a.DrainTimeout == b.DrainTimeout &&
		a.MaxConnections == b.MaxConnections &&
		a.OnUnhealthy == b.OnUnhealthy
}

// equalMembers tells nil, the whole pool, from empty, nobody.
func equalMembers(a, b map[lb.NodeName]lb.Member) bool {
	return (a == nil) == (b == nil) && maps.Equal(a, b)
}

func equalAffinity(a, b *lb.Affinity) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}
