package provider

import (
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lb/lbtest"
	"github.com/eclusa-lb/eclusa/monitoring"
)

// TestExposition writes down every metric of a provider that serves a Service,
// for the reference, the alerts and the dashboards.
func TestExposition(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
		c.start(StockController, ClassController)
		defer c.stop()
		c.add(testService("web", 30080))
		c.settle(10 * time.Second)
		text, faults := monitoring.Inspect(c.provider.Collector())
		for _, err := range faults {
			t.Error(err)
		}
		if err := monitoring.Golden("testdata/metrics.txt", text, *update); err != nil {
			t.Error(err)
		}
	})
}
