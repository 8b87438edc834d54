package edge

import (
	"cmp"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/eclusa-lb/eclusa/lb"
)

// maxSeries is how many series per load balancer, listener and member one scrape
// may have. Beyond it the rest is left out and eclusa_edge_metrics_truncated is 1.
const maxSeries = 200_000

// register adds the metrics of the edge, the process and the Go runtime.
func (e *Edge) register(r prometheus.Registerer) {
	r.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collector{e},
		e.stats.apply,
	)
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("eclusa_edge_"+name, help, labels, nil)
}

// The metrics. Each has a line in Describe.
var (
	descBuild = desc("build_info", "Always 1; the labels tell what runs.", "version", "revision", "goversion", "engine")

	descConfigRevision  = desc("config_revision", "Revision of the configuration that the edge holds.", "cluster")
	descAppliedRevision = desc("applied_revision", "Newest revision that is applied to the data plane.", "cluster")
	descLoadBalancers   = desc("load_balancers", "Load balancers by whether they are served on all their addresses and ports.", "cluster", "applied")
	descNodes           = desc("nodes", "Nodes in the configuration.", "cluster")
	descWrites          = desc("writes_total", "Configurations taken from the cluster.", "cluster")
	descHeld            = desc("writes_held_total", "Writes that the removal guard has held.", "cluster")
	descClaims          = desc("claims_total", "Claims of new leaders that were granted.", "cluster")
	descClaimsRefused   = desc("claims_refused_total", "Claims that were refused.", "cluster")
	descSaved           = desc("state_saved", "Whether the configuration that is served is on the disk.", "cluster")
	descSaveErrors      = desc("state_save_errors_total", "Tries to save the state that failed.", "cluster")
	descSaveSeconds     = desc("state_save_seconds", "Time that the last save took, or that the one under way takes by now if that is longer.", "cluster")

	descReady          = desc("ready", "Whether the edge serves what it was told and has saved it; /readyz says why not.")
	descApplyErrors    = desc("apply_errors_total", "Tables that the engine did not take.")
	descRefused        = desc("frontends_refused", "Addresses with ports that the engine cannot serve.")
	descAnnounced      = desc("announced_addresses", "Addresses that are announced.")
	descAnnounceErrors = desc("announce_errors_total", "Tries to announce addresses that failed, wholly or in part.")

	descProbeTargets   = desc("probe_targets", "Targets that are probed.")
	descProbes         = desc("probes_total", "Probes completed.")
	descProbeRate      = desc("probe_rate", "Probes per second at present.")
	descProbeOwnErrors = desc("probe_own_errors_total", "Probes that did not count because the fault was this machine's.")
	descProbeStretch   = desc("probe_stretch_ratio", "Factor by which the budget of probes lengthens intervals; 1 is not at all.")
	descProbeLag       = desc("probe_lag_seconds", "How late probes start, 99th percentile.")
	descProbeWorkers   = desc("probe_workers", "Probes that can be under way at once.")

	descCheckUp      = desc("check_up", "Whether a node takes new connections as far as this check decides.", "cluster", "check", "node")
	descCheckState   = desc("check_state", "Always 1; the labels tell the state of a node in a check and the kind of its last failure.", "cluster", "check", "node", "state", "reason")
	descCheckLatency = desc("check_latency_seconds", "Time that the last successful probe took.", "cluster", "check", "node")

	descConnections       = desc("connections_total", "Connections and sessions taken.", "cluster", "load_balancer", "listener")
	descRefusals          = desc("connections_refused_total", "Connections turned away, by cause.", "cluster", "load_balancer", "listener", "cause")
	descActive            = desc("connections_active", "Connections and sessions open.", "cluster", "load_balancer", "listener")
	descMemberConnections = desc("member_connections_total", "Connections and sessions made to a member.", "cluster", "load_balancer", "listener", "node")
	descMemberActive      = desc("member_connections_active", "Connections and sessions open to a member.", "cluster", "load_balancer", "listener", "node")
	descMemberErrors      = desc("member_dial_errors_total", "Connections to a member that failed and were tried elsewhere.", "cluster", "load_balancer", "listener", "node")
	descMemberBytes       = desc("member_bytes_total", "Bytes passed on; in came from clients, out went to them.", "cluster", "load_balancer", "listener", "node", "direction")
	descTruncated         = desc("metrics_truncated", "Whether series of checks, load balancers, listeners and members were left out because there are more than 200,000.")
)

// collector asks the edge at each scrape; nothing is counted twice.
type collector struct{ e *Edge }

// Describe sends every metric's description.
func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descBuild,
		descConfigRevision, descAppliedRevision, descLoadBalancers, descNodes, descWrites, descHeld, descClaims, descClaimsRefused,
		descSaved, descSaveErrors, descSaveSeconds,
		descReady, descApplyErrors, descRefused, descAnnounced, descAnnounceErrors,
		descProbeTargets, descProbes, descProbeRate, descProbeOwnErrors, descProbeStretch, descProbeLag, descProbeWorkers,
		descCheckUp, descCheckState, descCheckLatency,
		descServiceInfo, descServiceMembers, descServiceUp, descServiceProblems,
		descConnections, descRefusals, descActive, descMemberConnections, descMemberActive, descMemberErrors, descMemberBytes, descTruncated,
	} {
		ch <- d
	}
}

// Collect sends the metrics.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	s := sink{ch: ch, most: c.e.maxSeries}
	s.gauge(descBuild, 1, c.e.info.Version, c.e.revision, runtime.Version(), c.e.info.Engine)
	c.collectLoop(&s)
	c.collectProbes(&s)
	for _, name := range slices.Sorted(maps.Keys(c.e.clusters)) {
		cluster := c.e.clusters[name]
		cluster.collect(&s, string(name))
		checks := cluster.status.members()
		c.collectChecks(&s, name, checks)
		cluster.collectServices(&s, checks)
	}
	c.collectTraffic(&s)
}

// sink makes metrics.
type sink struct {
	ch        chan<- prometheus.Metric
	series    int // those that are limited
	most      int
	truncated bool // some were left out
}

func (s *sink) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s.ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (s *sink) counter(d *prometheus.Desc, v uint64, labels ...string) {
	s.ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

// room tells whether n more limited series may be sent, and counts them.
func (s *sink) room(n int) bool {
	if s.series+n > s.most {
		s.truncated = true
		return false
	}
	s.series += n
	return true
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (c collector) collectLoop(s *sink) {
	f := c.e.stats.snapshot()
	s.gauge(descReady, truth(len(c.e.unreadiness()) == 0))
	s.counter(descApplyErrors, f.applyErrors)
	s.gauge(descRefused, float64(f.refused))
	s.gauge(descAnnounced, float64(f.announceCount))
	s.counter(descAnnounceErrors, f.announceFails)
}

func (c collector) collectProbes(s *sink) {
	p := c.e.checker.Stats()
	s.gauge(descProbeTargets, float64(p.Targets))
	s.counter(descProbes, p.Probes)
	s.gauge(descProbeRate, p.Rate)
	s.counter(descProbeOwnErrors, p.OwnErrors)
	s.gauge(descProbeStretch, max(p.Stretched, 1))
	s.gauge(descProbeLag, p.LagP99.Seconds())
	s.gauge(descProbeWorkers, float64(p.Workers))
}

func (c *cluster) collect(s *sink, name string) {
	h := c.held.Load()
	s.gauge(descConfigRevision, float64(h.config.Revision), name)
	s.gauge(descNodes, float64(len(h.config.Nodes)), name)
	s.counter(descWrites, c.stats.sets.Load(), name)
	s.counter(descHeld, c.stats.held.Load(), name)
	s.counter(descClaims, c.stats.claims.Load(), name)
	s.counter(descClaimsRefused, c.stats.refusedClaims.Load(), name)
	s.gauge(descSaved, truth(!c.unsaved.Load()), name)
	s.counter(descSaveErrors, c.stats.saveErrors.Load(), name)
	s.gauge(descSaveSeconds, c.stats.lastSave(c.now()).Seconds(), name)
	revision, applied, refused := c.status.summary()
	s.gauge(descAppliedRevision, float64(revision), name)
	s.gauge(descLoadBalancers, float64(applied), name, "true")
	s.gauge(descLoadBalancers, float64(refused), name, "false")
}

func (c collector) collectChecks(s *sink, name lb.Cluster, checks map[lb.CheckID]map[lb.NodeName]lb.MemberStatus) {
	targets := *c.e.hints.Load()
	for _, id := range slices.Sorted(maps.Keys(checks)) {
		for _, node := range slices.Sorted(maps.Keys(checks[id])) {
			if !s.room(3) {
				return
			}
			m := checks[id][node]
			labels := []string{string(name), string(id), string(node)}
			s.gauge(descCheckUp, truth(m.State.Serves()), labels...)
			s.gauge(descCheckState, 1, append(labels, m.State.String(), string(m.Reason))...)
			if r, ok := c.e.checker.Result(targets[hint{name, id, node}]); ok && r.Latency > 0 {
				s.gauge(descCheckLatency, r.Latency.Seconds(), labels...)
			}
		}
	}
}

// collectTraffic sends what the engine has counted. Frontends of a load balancer
// that differ only in the address are one listener.
func (c collector) collectTraffic(s *sink) {
	listeners := make(map[listenerKey]*listenerSum)
	for _, r := range c.e.engine.Counters() {
		key := listenerKey{r.Owner.Cluster, r.Name, fmt.Sprintf("%s/%d", r.Frontend.Protocol, r.Frontend.Port)}
		sum := listeners[key]
		if sum == nil {
			sum = &listenerSum{refused: make(map[lb.RefusedCause]uint64), members: make(map[lb.NodeName]lb.MemberCounters)}
			listeners[key] = sum
		}
		sum.add(r)
	}
	for _, key := range slices.SortedFunc(maps.Keys(listeners), listenerKey.compare) {
		sum := listeners[key]
		if s.room(2 + len(sum.refused) + 5*len(sum.members)) {
			sum.send(s, []string{string(key.cluster), key.name, key.listener})
		}
	}
	s.gauge(descTruncated, truth(s.truncated))
}

type listenerKey struct {
	cluster  lb.Cluster
	name     string
	listener string
}

func (k listenerKey) compare(o listenerKey) int {
	return cmp.Or(strings.Compare(string(k.cluster), string(o.cluster)), strings.Compare(k.name, o.name), strings.Compare(k.listener, o.listener))
}

// listenerSum is the sum over the addresses of a load balancer.
type listenerSum struct {
	active   int64
	accepted uint64
	refused  map[lb.RefusedCause]uint64
	members  map[lb.NodeName]lb.MemberCounters
}

func (l *listenerSum) add(r lb.RouteCounters) {
	l.active += r.Active
	l.accepted += r.Accepted
	for cause, n := range r.Refused {
		l.refused[cause] += n
	}
	for _, m := range r.Members {
		sum := l.members[m.Node]
		sum.Active += m.Active
		sum.Connections += m.Connections
		sum.DialErrors += m.DialErrors
		sum.BytesIn += m.BytesIn
		sum.BytesOut += m.BytesOut
		l.members[m.Node] = sum
	}
}

func (l *listenerSum) send(s *sink, labels []string) {
	// A full slice expression makes every append copy.
	labels = labels[:len(labels):len(labels)]
	s.counter(descConnections, l.accepted, labels...)
	s.gauge(descActive, float64(l.active), labels...)
	for cause, n := range l.refused {
		s.counter(descRefusals, n, append(labels, string(cause))...)
	}
	for node, m := range l.members {
		of := append(labels, string(node))
		s.counter(descMemberConnections, m.Connections, of...)
		s.gauge(descMemberActive, float64(m.Active), of...)
		s.counter(descMemberErrors, m.DialErrors, of...)
		s.counter(descMemberBytes, m.BytesIn, append(of[:len(of):len(of)], "in")...)
		s.counter(descMemberBytes, m.BytesOut, append(of[:len(of):len(of)], "out")...)
	}
}
