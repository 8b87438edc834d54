package provider

import (
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/eclusa-lb/eclusa/healthcheck"
)

// The metrics of edges as this cluster sees them. They are enough to watch edges
// whose own metrics are out of reach.
var (
	connectedDesc   = newDesc("edge_connected", "1 if the edge answers and lets this cluster write, else 0.", "edge")
	readyDesc       = newDesc("edge_ready", "1 if the edge answers and takes what is wanted of it, as the Edge's condition Ready says, else 0.", "edge")
	pausedDesc      = newDesc("edge_paused", "1 if the Edge's spec asks that nothing is written to it, else 0.", "edge")
	durableDesc     = newDesc("edge_durable", "1 if the edge has saved what it serves for this cluster, else 0; no series before it has told.", "edge")
	contactDesc     = newDesc("edge_last_contact_timestamp_seconds", "When the edge last answered, in seconds since 1970; no series before it has.", "edge")
	desiredDesc     = newDesc("edge_desired_revision", "Revision of the configuration that the edge is to have.", "edge")
	appliedDesc     = newDesc("edge_applied_revision", "Newest revision that the edge says to have applied.", "edge")
	lagDesc         = newDesc("edge_lag_seconds", "For how long the edge has been owing the oldest revision that it was to have and has not applied; 0 if it owes none. It does not grow just because changes are frequent.", "edge")
	edgeLBsDesc     = newDesc("edge_load_balancers", "Load balancers of this cluster on the edge, by whether they are served on all their addresses and ports.", "edge", "applied")
	edgeBackendDesc = newDesc("edge_backends", "Nodes that the edge checks, each counted once for every different health check, by state (up, draining, down, unknown) and the kind of the last failure.", "edge", "state", "reason")
	driftDesc       = newDesc("edge_drift_repaired_total", "How often the edge was found with another configuration than it was given, and was put right.", "edge")
	removalHeldDesc = newDesc("edge_removals_held", "Removals that are so many at once that they wait for their confirmation.", "edge")
)

func describeEdges(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		connectedDesc, readyDesc, pausedDesc, durableDesc, contactDesc, desiredDesc, appliedDesc, lagDesc,
		edgeLBsDesc, edgeBackendDesc, driftDesc, removalHeldDesc,
	} {
		c <- d
	}
}

// collectEdges sends how each edge is.
func (m *metrics) collectEdges(c chan<- prometheus.Metric, states map[string]EdgeState, paused map[string]bool, now time.Time) {
	m.mu.Lock()
	m.arrears.note(states, now)
	lags := m.arrears.lags(now)
	m.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(states)) {
		st := states[name]
		gauge := func(d *prometheus.Desc, v float64, labels ...string) {
			c <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append([]string{name}, labels...)...)
		}
		gauge(connectedDesc, truth(st.Connected))
		gauge(readyDesc, truth(st.Connected && st.Problem == ""))
		gauge(pausedDesc, truth(paused[name]))
		gauge(desiredDesc, float64(st.Desired))
		gauge(appliedDesc, float64(st.Status.Revision))
		gauge(lagDesc, lags[name].Seconds())
		gauge(removalHeldDesc, float64(len(st.RemovalHeld)))
		c <- prometheus.MustNewConstMetric(driftDesc, prometheus.CounterValue, float64(st.DriftRepaired), name)
		if !st.LastContact.IsZero() {
			gauge(contactDesc, float64(st.LastContact.UnixMilli())/1000)
		}
		if st.Status.Cursor == "" {
			continue
		}
		gauge(durableDesc, truth(st.Status.Durable))
		applied := 0
		for _, l := range st.Status.LoadBalancers {
			if l.Applied {
				applied++
			}
		}
		gauge(edgeLBsDesc, float64(applied), "true")
		gauge(edgeLBsDesc, float64(len(st.Status.LoadBalancers)-applied), "false")
		for kind, n := range countBackends(st) {
			gauge(edgeBackendDesc, float64(n), kind.state.String(), string(kind.reason))
		}
	}
}

// backendKind is a state of a node with the reason for it.
type backendKind struct {
	state  healthcheck.State
	reason healthcheck.Reason
}

// countBackends counts the members of all checks. Those that are up are counted
// even if there are none.
func countBackends(st EdgeState) map[backendKind]int {
	kinds := map[backendKind]int{{state: healthcheck.Up}: 0}
	for _, members := range st.Status.Checks {
		for _, m := range members {
			kinds[backendKind{m.State, m.Reason}]++
		}
	}
	return kinds
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// maxOwed is how many revisions are remembered per edge. Later ones count as one.
const maxOwed = 64

// arrears remembers since when each edge owes which revisions. The difference of
// two revisions is no time, and an edge that keeps up with frequent changes is
// never quite at the newest one.
type arrears map[string][]owed

type owed struct {
	revision uint64
	since    time.Time
}

// note takes in what edges are to have and what they have.
func (a *arrears) note(states map[string]EdgeState, now time.Time) {
	if *a == nil {
		*a = arrears{}
	}
	maps.DeleteFunc(*a, func(name string, _ []owed) bool { _, ok := states[name]; return !ok })
	for name, st := range states {
		list := slices.DeleteFunc((*a)[name], func(o owed) bool { return o.revision <= st.Status.Revision })
		switch n := len(list); {
		case st.Desired <= st.Status.Revision:
		case n > 0 && list[n-1].revision >= st.Desired:
		case n == maxOwed:
			list[n-1].revision = st.Desired
		default:
			list = append(list, owed{st.Desired, now})
		}
		(*a)[name] = list
	}
}

// lags returns for how long each edge has owed the oldest of its revisions.
func (a *arrears) lags(now time.Time) map[string]time.Duration {
	out := make(map[string]time.Duration, len(*a))
	for name, list := range *a {
		if len(list) > 0 {
			out[name] = now.Sub(list[0].since)
		}
	}
	return out
}
