package provider

import (
	"maps"
	"slices"
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
}

var (
	servicesDesc    = prometheus.NewDesc("eclusa_ccm_services", "Services of type LoadBalancer that are eclusa's, by state.", []string{"state"}, nil)
	poolUsedDesc    = prometheus.NewDesc("eclusa_ccm_pool_addresses_used", "Addresses of the pool that Services have.", []string{"pool"}, nil)
	poolTotalDesc   = prometheus.NewDesc("eclusa_ccm_pool_addresses", "Addresses of the pool.", []string{"pool"}, nil)
	poolQuarDesc    = prometheus.NewDesc("eclusa_ccm_pool_addresses_quarantined", "Freed addresses of the pool that an edge may still serve.", []string{"pool"}, nil)
	desiredDesc     = prometheus.NewDesc("eclusa_ccm_edge_desired_revision", "Revision of the configuration that the edge is to have.", []string{"edge"}, nil)
	appliedDesc     = prometheus.NewDesc("eclusa_ccm_edge_applied_revision", "Newest revision that the edge says to have applied.", []string{"edge"}, nil)
	connectedDesc   = prometheus.NewDesc("eclusa_ccm_edge_connected", "1 if the edge answers.", []string{"edge"}, nil)
	driftDesc       = prometheus.NewDesc("eclusa_ccm_edge_drift_repaired_total", "How often the edge was found with another configuration than it was given, and was put right.", []string{"edge"}, nil)
	removalHeldDesc = prometheus.NewDesc("eclusa_ccm_edge_removals_held", "Removals that wait for their confirmation.", []string{"edge"}, nil)
	waitingDesc     = prometheus.NewDesc("eclusa_ccm_writes_waiting", "Writes to the API server that were not begun.", nil, nil)
)

func newMetrics() *metrics {
	return &metrics{
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "eclusa_ccm_writes_total", Help: "Writes of statuses to the API server, by kind of object and outcome (written, conflict, gone, error).",
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
}

// Collector returns what tells the provider's metrics, eclusa_ccm_*.
func (p *Provider) Collector() prometheus.Collector { return p.metrics }

// Describe sends the descriptions of all metrics.
func (m *metrics) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{servicesDesc, poolUsedDesc, poolTotalDesc, poolQuarDesc, desiredDesc, appliedDesc, connectedDesc, driftDesc, removalHeldDesc, waitingDesc} {
		c <- d
	}
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
	for _, p := range stats.Pools {
		gauge(poolTotalDesc, float64(p.Total), p.Name)
		gauge(poolUsedDesc, float64(p.Used), p.Name)
		gauge(poolQuarDesc, float64(p.Quarantined), p.Name)
	}
	gauge(waitingDesc, float64(waiting))
	m.writes.Collect(c)
	m.rounds.Collect(c)
	m.apply.Collect(c)
	if f == nil {
		return
	}
	states := f.State()
	for _, name := range slices.Sorted(maps.Keys(states)) {
		st := states[name]
		connected := 0.0
		if st.Connected {
			connected = 1
		}
		gauge(connectedDesc, connected, name)
		gauge(desiredDesc, float64(st.Desired), name)
		gauge(appliedDesc, float64(st.Status.Revision), name)
		gauge(removalHeldDesc, float64(len(st.RemovalHeld)), name)
		c <- prometheus.MustNewConstMetric(driftDesc, prometheus.CounterValue, float64(st.DriftRepaired), name)
	}
}

func (m *metrics) set(s Stats, waiting int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stats, m.waiting = s, waiting
	for _, d := range s.Applied {
		m.apply.Observe(d.Seconds())
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
