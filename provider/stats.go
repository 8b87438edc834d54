package provider

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Stats are what one round of decisions counted.
type Stats struct {
	// Services is the number of Services that are ours, by state.
	Services map[ServiceState]int
	// Pools are the address pools by name.
	Pools []PoolStats
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
	StateWaiting ServiceState = "waiting" // it has no address
	StateRefused ServiceState = "refused" // it cannot be served, or every edge refuses it
	StateForeign ServiceState = "foreign" // somebody else serves it
)

// PoolStats are the numbers of one address pool.
type PoolStats struct {
	Name                     string
	Total, Used, Quarantined int64
}

// count counts for the metrics.
func (r *round) count() {
	r.stats.Quarantined = len(r.quarantine.addrs)
	r.stats.Services = map[ServiceState]int{StateServed: 0, StatePending: 0, StateWaiting: 0, StateRefused: 0, StateForeign: 0}
	for _, s := range r.subjects {
		r.stats.Services[r.stateOf(s)]++
	}
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
	c, known := programmed(s, r.standings(s))
	switch {
	case !known:
		return StatePending
	case c.status == metav1.ConditionTrue:
		return StateServed
	}
	return StateRefused
}
