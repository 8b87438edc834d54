package edge

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/eclusa-lb/eclusa/lb"
)

// A load balancer with thousands of listeners is served, saved, and served again by
// the next start; a listener more than the cluster may have is refused by name.
func TestThousandsOfListeners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many = 2000
		b := newRig(t)
		b.run()
		config := testConfig(1, 1, 2)
		l := config.LoadBalancers["u1"]
		l.Listeners = nil
		for i := range many {
			l.Listeners = append(l.Listeners, lb.Listener{Protocol: lb.TCP, Port: uint16(1024 + i), TargetPort: uint16(30000 + i)}) //nolint:gosec // small
		}
		config.LoadBalancers["u1"] = l
		epoch := b.claim("prod")
		b.set("prod", epoch, config)
		all := func(t lb.Table) bool { return len(t.Routes) == many }
		b.table("all are served", all)
		b.status("prod", "all are applied", func(s lb.Status) bool { return s.LoadBalancers["u1"].Applied })
		b.stop()
		b.open()
		b.run()
		b.table("all are served after a restart", all)

		config = testConfig(2, 1, 2)
		l.Listeners = make([]lb.Listener, b.options.Clusters["prod"].MaxListeners+1)
		config.LoadBalancers["u1"] = l
		_, err := b.edge.Cluster("prod").Set(t.Context(), lb.Write{Epoch: epoch, Config: config})
		if !errors.Is(err, lb.ErrExhausted) || !strings.Contains(err.Error(), `40001 listeners where the edge allows 40000 (each counts for every address; "default/s1" has most, 40001)`) {
			t.Errorf("a listener too many: got %v; want the limit and who has most", err)
		}
		b.stop()
	})
}
