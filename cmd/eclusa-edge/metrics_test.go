package main

import (
	"context"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/eclusa-lb/eclusa/monitoring"
)

// TestExposition writes down the metrics that the program adds to the edge's.
func TestExposition(t *testing.T) {
	w := &world{t: t, dir: t.TempDir()}
	w.pki()
	id, err := newIdentity("api", w.dir+"/edge-1.crt", w.dir+"/edge-1.key", w.dir+"/ca.crt", zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	text, faults := monitoring.Inspect(expiry{id})
	for _, err := range faults {
		t.Error(err)
	}
	if err := monitoring.Golden("testdata/metrics.txt", text, *update); err != nil {
		t.Error(err)
	}
}

// A real Prometheus scrapes the real program, and alerts fire when what they are
// about happens.
func TestPrometheus(t *testing.T) {
	if err := monitoring.Installed(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	w, p, _, _ := started(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	prometheus, err := monitoring.Start(ctx, monitoring.Options{
		Dir: t.TempDir(), Rules: []string{"../../charts/eclusa/files/alerts.yaml"}, Hasten: time.Second,
		Targets: map[string][]string{"eclusa-edge": {mgmtAddr}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer prometheus.Stop()
	w.must(prometheus.Up(ctx, 1))
	up, err := prometheus.Query(ctx, `eclusa_edge_load_balancer_members_up{cluster="prod",load_balancer="default/web"}`)
	if err != nil || len(up) != 1 || up[0].Value != 3 {
		t.Errorf("members that are up: %v, %v; want 3", up, err)
	}
	w.documented(ctx, prometheus)
	if alerts, err := prometheus.Alerts(ctx); err != nil || len(alerts) > 0 {
		t.Errorf("while all is well: alerts %v, %v; want none", alerts, err)
	}

	// The first address last: the kernel takes the others away with it.
	for _, a := range []string{"10.0.0.13/24", "10.0.0.12/24", "10.0.0.11/24"} {
		w.inNodes(func() { w.unaddress("eth1", a) })
	}
	for _, alert := range []struct {
		name   string
		labels map[string]string
	}{
		{"EclusaServiceDown", map[string]string{"cluster": "prod", "load_balancer": "default/web"}},
		{"EclusaNodeDown", map[string]string{"cluster": "prod", "node": "n2"}},
	} {
		if _, err := prometheus.WaitAlert(ctx, 15*time.Second, alert.name, alert.labels); err != nil {
			t.Error(err)
		}
	}
	states, err := prometheus.Query(ctx, `eclusa_edge_check_state{cluster="prod",state="down"} * on (job, instance, cluster, check) group_left (load_balancer) eclusa_edge_load_balancer_info{load_balancer="default/web"}`)
	if err != nil || len(states) != 3 || states[0].Labels["reason"] == "" {
		t.Errorf("health of each backend: %v, %v; want three that are down, with the reason", states, err)
	}

	w.must(p.Process.Signal(syscall.SIGKILL))
	if _, err := prometheus.WaitAlert(ctx, 15*time.Second, "EclusaEdgeDown", map[string]string{"instance": mgmtAddr}); err != nil {
		t.Error(err)
	}
	w.must(prometheus.RuleErrors(ctx))
}

// documented checks that the reference has every metric that was scraped.
func (w *world) documented(ctx context.Context, p *monitoring.Prometheus) {
	w.t.Helper()
	names, err := p.Names(ctx)
	w.must(err)
	reference, err := os.ReadFile("../../docs/reference/metrics.md")
	w.must(err)
	n := 0
	for name := range names {
		if !strings.HasPrefix(name, "eclusa_") {
			continue
		}
		n++
		family := name
		for _, suffix := range []string{"_bucket", "_count", "_sum"} {
			family = strings.TrimSuffix(family, suffix)
		}
		if !strings.Contains(string(reference), "| `"+family+"` |") {
			w.t.Errorf("metric %s is not in the reference: run `make generate`", name)
		}
	}
	if n < 40 {
		w.t.Errorf("%d metrics were scraped, want all of the edge", n)
	}
}
