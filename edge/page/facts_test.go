package page

import (
	"slices"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// The settings of a load balancer that are not the usual ones are told.
func TestFacts(t *testing.T) {
	got := facts(lb.LoadBalancer{
		Pool: "all", HealthCheck: lb.HealthCheck{Spec: healthcheck.Spec{Protocol: healthcheck.None}}, FailOpen: true,
		Algorithm: lb.SourceHash, MemberFamilies: []lb.Family{lb.IPv4, lb.IPv6}, OnUnhealthy: lb.OnUnhealthyDrain,
		ConnectTimeout: healthcheck.Duration(250 * time.Millisecond), UDPIdleTimeout: healthcheck.Duration(time.Minute),
	})
	want := []Field{
		{"Pool", "all"}, {"Check", "none: every member counts as up"}, {"Algorithm", "source-hash"}, {"Members are reached by", "ipv4, ipv6"},
		{"Connect timeout", "250ms"}, {"UDP idle timeout", "1m0s"}, {"When a member is dead", "its connections may go on"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v; want %v", got, want)
	}
}

// A line of the list names a few of thousands of listeners.
func TestManyListenersAreCounted(t *testing.T) {
	l := LoadBalancer{Listeners: make([]Listener, 2000)}
	if first, more := len(l.FirstListeners()), l.MoreListeners(); first != shownListeners || first+more != 2000 {
		t.Errorf("got %d and %d more; want %d of 2000", first, more, shownListeners)
	}
	l.Listeners = l.Listeners[:2]
	if first, more := len(l.FirstListeners()), l.MoreListeners(); first != 2 || more != 0 {
		t.Errorf("got %d and %d more; want both", first, more)
	}
}
