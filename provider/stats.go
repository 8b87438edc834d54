package provider

import (
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Stats are what one round of decisions counted.
type Stats struct {
	// Services is the number of Services that are ours, by state.
	Services map[ServiceState]int
	// Backends is the number of Services that edges are told of, by how their
	// nodes are: the reason of the condition BackendsHealthy, or
	// ReasonBackendsUnknown.
	Backends map[string]int
	// NodePorts is the number of node ports that Services of any type have.
	NodePorts int
	// Pools are the address pools by name.
	Pools []PoolStats
	// Paused says of each Edge that counts whether its spec asks for a pause.
	Paused map[string]bool
	// Quarantined is the number of addresses in quarantine, of pools or not.
	Quarantined int
	// Applied are the times from a Service's change until every edge that serves
	// it had applied that, of those for which this became true.
	Applied []time.Duration
}

// ServiceState sums a Service up in one word.
type ServiceState string

// The states of Services.
const (
	StateServed  ServiceState = "served"  // edges serve it
	StatePending ServiceState = "pending" // it has an address, and edges have not confirmed it
	StateUnknown ServiceState = "unknown" // none of its edges has been reached for long
	StateWaiting ServiceState = "waiting" // it has no address
	StateRefused ServiceState = "refused" // it cannot be served, or every edge refuses it
	StateForeign ServiceState = "foreign" // somebody else serves it
)

// PoolStats are the numbers of one address pool.
type PoolStats struct {
	Name                     string
	Total, Used, Quarantined int64
	// Ready is what its condition of that name says.
	Ready bool
}

// count counts for the metrics.
func (r *round) count() {
	r.stats.Quarantined = len(r.quarantine.addrs)
	r.stats.Services = map[ServiceState]int{StateServed: 0, StatePending: 0, StateUnknown: 0, StateWaiting: 0, StateRefused: 0, StateForeign: 0}
	r.stats.Backends = make(map[string]int, len(backendReasons))
	for _, reason := range backendReasons {
		r.stats.Backends[reason] = 0
	}
	for _, s := range r.subjects {
		r.stats.Services[r.stateOf(s)]++
		if s.built == nil {
			continue
		}
		reason := ReasonBackendsUnknown
		if c, known := r.healthOf(s); known {
			reason = c.reason
		}
		r.stats.Backends[reason]++
	}
	r.stats.NodePorts = countNodePorts(r.Services)
	r.stats.Paused = make(map[string]bool, len(r.live))
	for name, e := range r.live {
		r.stats.Paused[name] = e.Spec.Paused
	}
}

// ReasonBackendsUnknown is not the reason of any condition: it stands for
// Services of whose nodes no edge has told yet.
const ReasonBackendsUnknown = "Unknown"

var backendReasons = []string{
	ReasonHealthy, ReasonHealthySubstitute, ReasonNotChecked, ReasonFewHealthy, ReasonNoneHealthy, ReasonNoEndpoints, ReasonNoNodes,
	ReasonEdgeUnreachable, ReasonPending, ReasonBackendsUnknown,
}

// countNodePorts counts the ports that Services have on the nodes, those of
// health checks included. A port of several protocols is one.
func countNodePorts(services []*v1.Service) int {
	var used [1 << 16]bool
	n := 0
	note := func(port int32) {
		if port > 0 && int(port) < len(used) && !used[port] {
			used[port] = true
			n++
		}
	}
	for _, svc := range services {
		for i := range svc.Spec.Ports {
			note(svc.Spec.Ports[i].NodePort)
		}
		note(svc.Spec.HealthCheckNodePort)
	}
	return n
}

func (r *round) stateOf(s *subject) ServiceState {
	switch {
	case s.path == foreigns:
		return StateForeign
	case len(s.translation.Refusals) > 0:
		return StateRefused
	case len(s.served) == 0:
		return StateWaiting
	}
	if r.lost(s, r.standings(s)) {
		return StateUnknown
	}
	c, known := programmed(s, r.standings(s))
	switch {
	case !known, c.status == metav1.ConditionUnknown:
		return StatePending
	case c.status == metav1.ConditionTrue:
		return StateServed
	}
	return StateRefused
}
