package edge

import (
	"errors"
	"flag"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/monitoring"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// own is what the edge itself exposes, without the process and the Go runtime.
type own struct{ e *Edge }

func (o own) Describe(ch chan<- *prometheus.Desc) {
	collector(o).Describe(ch)
	o.e.stats.apply.Describe(ch)
}

func (o own) Collect(ch chan<- prometheus.Metric) {
	collector(o).Collect(ch)
	o.e.stats.apply.Collect(ch)
}

// TestExposition writes down every metric of an edge on which something is
// wrong, for the reference, the alerts and the dashboards.
func TestExposition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := up(t, 2)
		b.probes.slow(time.Millisecond)
		b.probes.say("10.0.0.2:10256", errRefused)
		b.status("prod", "n2 down", func(s lb.Status) bool { return s.Checks[theCheck]["n2"].State == healthcheck.Down })
		frontend := counted("192.0.0.1", "n1").Frontend
		b.engine.Refuse(frontend, errors.New("address already in use"))
		b.edge.kick()
		b.status("prod", "a problem", func(s lb.Status) bool { return len(s.LoadBalancers["u1"].Problems) > 0 })
		synctest.Wait()
		b.engine.SetCounters([]lb.RouteCounters{counted("192.0.0.1", "n1")})
		text, faults := monitoring.Inspect(own{b.edge})
		for _, err := range faults {
			t.Error(err)
		}
		if err := monitoring.Golden("testdata/metrics.txt", text, *update); err != nil {
			t.Error(err)
		}
		b.stop()
	})
}
