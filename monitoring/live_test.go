package monitoring_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/eclusa-lb/eclusa/monitoring"
)

// The files in which the programs' tests write down what they expose.
var (
	edgeExposition = []string{"../edge/testdata/metrics.txt", "../cmd/eclusa-edge/testdata/metrics.txt"}
	ccmExposition  = []string{"../provider/testdata/metrics.txt", "../cmd/eclusa-cloud-controller-manager/testdata/metrics.txt"}
)

func readFamilies(t *testing.T, files []string) map[string]*dto.MetricFamily {
	t.Helper()
	all := map[string]*dto.MetricFamily{}
	for _, f := range files {
		r, err := os.Open(f)
		if err != nil {
			t.Fatal(err)
		}
		parser := expfmt.NewTextParser(model.UTF8Validation)
		families, err := parser.TextToMetricFamilies(r)
		r.Close()
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		maps.Copy(all, families)
	}
	return all
}

// exposer serves what a program exposes, with the values that value returns.
type exposer struct {
	families map[string]*dto.MetricFamily
	value    func(name string, labels map[string]string, scrape int) (float64, bool)
	scrapes  atomic.Int64
	own      *prometheus.Registry
}

func newExposer(t *testing.T, files []string, value func(string, map[string]string, int) (float64, bool)) (*exposer, string) {
	t.Helper()
	e := &exposer{families: readFamilies(t, files), value: value, own: prometheus.NewRegistry()}
	// Both programs tell of their process.
	e.own.MustRegister(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	server := httptest.NewServer(e)
	t.Cleanup(server.Close)
	return e, strings.TrimPrefix(server.URL, "http://")
}

func (e *exposer) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	scrape := int(e.scrapes.Add(1))
	encoder := expfmt.NewEncoder(w, expfmt.NewFormat(expfmt.TypeTextPlain))
	own, err := e.own.Gather()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	for _, f := range own {
		_ = encoder.Encode(f) // who scrapes sees what is missing
	}
	for _, name := range slices.Sorted(maps.Keys(e.families)) {
		f := e.families[name]
		out := &dto.MetricFamily{Name: f.Name, Help: f.Help, Type: f.Type}
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			out.Metric = append(out.Metric, withValue(m, func() (float64, bool) { return e.value(name, labels, scrape) }))
		}
		_ = encoder.Encode(out)
	}
}

func withValue(m *dto.Metric, value func() (float64, bool)) *dto.Metric {
	v, ok := value()
	switch {
	case !ok:
		return m
	case m.Gauge != nil:
		return &dto.Metric{Label: m.Label, Gauge: &dto.Gauge{Value: &v}}
	case m.Counter != nil:
		return &dto.Metric{Label: m.Label, Counter: &dto.Counter{Value: &v}}
	}
	return m
}

// badDay returns values under which every alert is right.
func badDay(name string, labels map[string]string, scrape int) (float64, bool) {
	now := float64(time.Now().Unix())
	const day = 86400
	v, ok := map[string]float64{
		"eclusa_edge_ready": 0, "eclusa_edge_state_saved": 0, "eclusa_edge_probe_stretch_ratio": 2, "eclusa_edge_load_balancer_members_up": 0,
		"eclusa_ccm_edge_ready": 0, "eclusa_ccm_edge_lag_seconds": 100, "eclusa_ccm_edge_paused": 0, "eclusa_ccm_edge_durable": 0,
		"eclusa_ccm_leading": 0, "eclusa_ccm_node_ports": 100, "eclusa_ccm_node_ports_used": 95,
		"eclusa_ccm_pool_addresses": 10, "eclusa_ccm_pool_ready": 0, "eclusa_ccm_pool_addresses_quarantined": 1, "eclusa_ccm_pool_addresses_used": 9,
		"eclusa_edge_certificate_expiry_timestamp_seconds": now + 10*day, "eclusa_ccm_certificate_expiry_timestamp_seconds": now + 2*day,
		"eclusa_ccm_edge_drift_repaired_total": float64(scrape), "eclusa_ccm_writes_total": float64(scrape),
	}[name]
	switch {
	case name == "eclusa_ccm_edge_connected" && labels["edge"] == "e1":
		return 0, true
	case name == "eclusa_ccm_edge_ready" && labels["edge"] == "e3":
		return 1, true
	case name == "eclusa_ccm_pool_addresses_used" && labels["pool"] == "near":
		return 8, true
	case name == "eclusa_edge_load_balancer_members":
		return 3, true
	}
	return v, ok
}

// alsoFor adds series like those with a label's value for another value of it.
func (e *exposer) alsoFor(label, value, other string) {
	for _, f := range e.families {
		for _, m := range f.GetMetric() {
			for i, l := range m.GetLabel() {
				if l.GetName() != label || l.GetValue() != value {
					continue
				}
				labels := slices.Clone(m.Label)
				labels[i] = &dto.LabelPair{Name: l.Name, Value: &other}
				f.Metric = append(f.Metric, &dto.Metric{Label: labels, Gauge: m.Gauge, Counter: m.Counter, Histogram: m.Histogram})
				break
			}
		}
	}
}

// TestEveryAlertFires lets a real Prometheus scrape a fleet on which everything
// is wrong: each alert fires, and what it says to people has no holes.
func TestEveryAlertFires(t *testing.T) {
	installed(t)
	_, edge := newExposer(t, edgeExposition, badDay)
	ccm, manager := newExposer(t, ccmExposition, badDay)
	ccm.alsoFor("edge", "e1", "e2") // it refuses
	ccm.alsoFor("edge", "e1", "e3") // it is late
	ccm.alsoFor("pool", "default", "near")
	dying := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, `eclusa_edge_build_info{version="v"} 1`)
	}))
	defer dying.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	p, err := monitoring.Start(ctx, monitoring.Options{
		Dir: t.TempDir(), Rules: []string{alertsFile}, Hasten: time.Millisecond,
		Targets: map[string][]string{"eclusa-edge": {edge, strings.TrimPrefix(dying.URL, "http://")}, "eclusa-ccm": {manager}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	if err := p.Up(ctx, 3); err != nil {
		t.Fatal(err)
	}
	dying.CloseClientConnections()
	dying.Close()
	for _, r := range readRules(t) {
		a, err := p.WaitAlert(ctx, 20*time.Second, r.Alert, nil)
		if err != nil {
			t.Error(err)
			continue
		}
		for name, text := range a.Annotations {
			if strings.Contains(text, "<no value>") || strings.Contains(text, "<error") || strings.Contains(text, "  ") {
				t.Errorf("alert %s: %s: %q", r.Alert, name, text)
			}
		}
		t.Logf("%s (%s): %s", r.Alert, a.Labels["severity"], a.Annotations["summary"])
	}
	if err := p.RuleErrors(ctx); err != nil {
		t.Error(err)
	}
}

// TestEveryExpression lets a real Prometheus evaluate every expression of alerts
// and dashboards: none is wrong, none asks for a metric that there is not, and
// every panel shows something.
func TestEveryExpression(t *testing.T) {
	installed(t)
	fine := func(name string, _ map[string]string, scrape int) (float64, bool) {
		return float64(scrape), strings.HasSuffix(name, "_total")
	}
	_, edge := newExposer(t, edgeExposition, fine)
	_, ccm := newExposer(t, ccmExposition, fine)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	p, err := monitoring.Start(ctx, monitoring.Options{Dir: t.TempDir(), Targets: map[string][]string{"eclusa-edge": {edge}, "eclusa-ccm": {ccm}}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	if err := p.Up(ctx, 2); err != nil {
		t.Fatal(err)
	}
	names, err := p.Names(ctx)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(where, expr string, some bool) {
		t.Helper()
		metrics := monitoring.MetricsIn(expr)
		if len(metrics) == 0 {
			t.Errorf("%s: %s: asks for no metric", where, expr)
		}
		for _, m := range metrics {
			if !names[m] {
				t.Errorf("%s: asks for %s, which nobody exposes", where, m)
			}
		}
		result, err := p.Query(ctx, expr)
		if err != nil {
			t.Errorf("%s: %v", where, err)
		} else if some && len(result) == 0 {
			t.Errorf("%s: %s: nothing to show", where, expr)
		}
	}
	for _, r := range readRules(t) {
		ask("alert "+r.Alert, r.Expr, false)
	}
	variables := map[string]string{"job": "eclusa-ccm", "instance": edge, "cluster": "prod", "service": "default/s1"}
	queries := 0
	for _, d := range readDashboards(t) {
		for _, panel := range d.Panels {
			for _, q := range panel.Targets {
				queries++
				ask(d.file+": "+panel.Title, filled(q.Expr, variables), showsSomething(q.Expr))
			}
		}
		for _, v := range d.Templating.List[1:] {
			inner := strings.TrimSuffix(strings.TrimPrefix(v.Definition, "label_values("), ")")
			metric, label := inner[:strings.LastIndex(inner, ",")], strings.TrimSpace(inner[strings.LastIndex(inner, ",")+1:])
			ask(d.file+": variable "+v.Name, fmt.Sprintf("count by (%s) (%s)", label, filled(metric, variables)), true)
		}
	}
	if queries < 40 {
		t.Errorf("%d queries of dashboards; they are read wrongly", queries)
	}
}

// showsSomething says whether a panel is never empty: what is about failing
// backends alone is when none fails.
func showsSomething(expr string) bool { return !strings.Contains(expr, `state!~"up|unchecked"`) }
