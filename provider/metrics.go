package provider

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the numbers that the provider tells. Gauges are made when they
// are asked for, from the newest decisions, so that none of an object that is
// gone is left over.
type metrics struct {
	writes *prometheus.CounterVec
	rounds prometheus.Histogram
	apply  prometheus.Histogram

	mu      sync.Mutex
	stats   Stats
	waiting int
	fleet   fleet
	arrears arrears
}

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("eclusa_ccm_"+name, help, labels, nil)
}

// The metrics of Services and pools. Each has a line in Describe; none has a
// label of which there are as many as Services.
var (
	servicesDesc  = newDesc("services", "Services of type LoadBalancer that are eclusa's, by state: served, pending (edges have not confirmed it yet), unknown (none of its edges has been reached for a minute), waiting (for an address), refused (it cannot be served, or every edge refuses it), foreign (somebody else serves it). Only the leader tells.", "state")
	backendsDesc  = newDesc("services_by_backends", "Services that edges are told of, by how their nodes are: the reason of the condition BackendsHealthy (Healthy, HealthySubstitute, NotChecked, FewHealthy, NoneHealthy, NoEndpoints, NoNodes, EdgeUnreachable, Pending), or Unknown. Only the leader tells.", "reason")
	nodePortsDesc = newDesc("node_ports_used", "Different node ports that Services of any type have in this cluster, those of health checks included. Only the leader tells.")
	poolUsedDesc  = newDesc("pool_addresses_used", "Addresses of the pool that Services have.", "pool")
	poolTotalDesc = newDesc("pool_addresses", "Addresses of the pool, at most 2^53-1; 0 if the pool cannot be used.", "pool")
	poolReadyDesc = newDesc("pool_ready", "1 if the pool can be used and an edge serves it, as its condition Ready says, else 0.", "pool")
	poolQuarDesc  = newDesc("pool_addresses_quarantined", "Freed addresses of the pool that an edge may still serve; they are not given out.", "pool")
	waitingDesc   = newDesc("writes_waiting", "Writes to the API server that were not begun.")
)

// The outcomes of writes.
var writeOutcomes = []string{"written", "confirmed", "conflict", "gone", "error"}

func newMetrics() *metrics {
	m := &metrics{
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "eclusa_ccm_writes_total", Help: "Calls to the API server that write a status, by kind of object and outcome: written, confirmed (nothing was to be changed), conflict (decided again on the newer version), gone, error (tried again).",
		}, []string{"kind", "outcome"}),
		rounds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "eclusa_ccm_round_duration_seconds", Help: "Time that one round of decisions about all Services takes.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		apply: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "eclusa_ccm_service_apply_duration_seconds", Help: "Time from the moment in which a change of a Service is seen until every edge that serves it has applied that, the recording of a new address included.",
			Buckets: prometheus.ExponentialBuckets(0.01, 2, 14),
		}),
	}
	// From zero on, so that the first error is an increase.
	for _, kind := range []Kind{ServiceKind, PoolKind, EdgeKind} {
		for _, outcome := range writeOutcomes {
			m.writes.WithLabelValues(kind.String(), outcome)
		}
	}
	return m
}

// Collector returns what tells the provider's metrics, eclusa_ccm_*.
func (p *Provider) Collector() prometheus.Collector { return p.metrics }

// Describe sends the descriptions of all metrics.
func (m *metrics) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{servicesDesc, backendsDesc, nodePortsDesc, poolUsedDesc, poolTotalDesc, poolReadyDesc, poolQuarDesc, waitingDesc} {
		c <- d
	}
	describeEdges(c)
	m.writes.Describe(c)
	m.rounds.Describe(c)
	m.apply.Describe(c)
}

// Collect sends all metrics.
func (m *metrics) Collect(c chan<- prometheus.Metric) {
	m.mu.Lock()
	stats, waiting, f := m.stats, m.waiting, m.fleet
	m.mu.Unlock()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for state, n := range stats.Services {
		gauge(servicesDesc, float64(n), string(state))
	}
	for reason, n := range stats.Backends {
		gauge(backendsDesc, float64(n), reason)
	}
	if stats.Services != nil {
		gauge(nodePortsDesc, float64(stats.NodePorts))
	}
	for _, p := range stats.Pools {
		gauge(poolTotalDesc, float64(p.Total), p.Name)
		gauge(poolReadyDesc, truth(p.Ready), p.Name)
		gauge(poolUsedDesc, float64(p.Used), p.Name)
		gauge(poolQuarDesc, float64(p.Quarantined), p.Name)
	}
	gauge(waitingDesc, float64(waiting))
	m.writes.Collect(c)
	m.rounds.Collect(c)
	m.apply.Collect(c)
	if f != nil {
		m.collectEdges(c, f.State(), stats.Paused, time.Now())
	}
}

// set notes what a round has counted.
func (m *metrics) set(s Stats, waiting int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stats, m.waiting = s, waiting
	for _, d := range s.Applied {
		m.apply.Observe(d.Seconds())
	}
	if m.fleet != nil {
		m.arrears.note(m.fleet.State(), time.Now())
	}
}

// watch says whose edges the metrics tell of.
func (m *metrics) watch(f fleet) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fleet = f
}

func (m *metrics) observeWrite(kind Kind, outcome string) {
	m.writes.WithLabelValues(kind.String(), outcome).Inc()
}

func (m *metrics) observeRound(d time.Duration) { m.rounds.Observe(d.Seconds()) }
