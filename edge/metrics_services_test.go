package edge

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// Each load balancer tells how many of its own members are up, though they share
// a check: those of its pool, less the ones that it is narrowed to, less the ones
// that are being drained.
func TestMetricsOfLoadBalancers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, epoch := up(t, 4)
		b.probes.say("10.0.0.2:10256", errRefused)
		config := testConfig(2, 4, 4)
		config.Pools["some"] = lb.Pool{"n1": {}, "n2": {}}
		n3 := config.Nodes["n3"]
		n3.Draining = true
		config.Nodes["n3"] = n3
		change := func(uid lb.UID, f func(*lb.LoadBalancer)) {
			l := config.LoadBalancers[uid]
			f(&l)
			config.LoadBalancers[uid] = l
		}
		change("u2", func(l *lb.LoadBalancer) { l.Pool = "some" })
		change("u3", func(l *lb.LoadBalancer) { l.Members = map[lb.NodeName]lb.Member{"n2": {}, "stranger": {}} })
		change("u4", func(l *lb.LoadBalancer) { l.Members = map[lb.NodeName]lb.Member{} })
		// A second one of the same name must not spoil the whole scrape.
		twin := config.LoadBalancers["u4"]
		twin.Name, twin.ClaimTime, twin.Listeners = "default/s1", time.Unix(100, 0), []lb.Listener{{Protocol: lb.TCP, Port: 81, TargetPort: 30000}}
		config.LoadBalancers["u5"] = twin
		b.set("prod", epoch, config)
		b.status("prod", "n2 down", func(s lb.Status) bool {
			return s.Revision == 2 && s.Checks[theCheck]["n2"].State == healthcheck.Down
		})
		const want = `
# HELP eclusa_edge_load_balancer_info Always 1; the labels tell which health check and pool of nodes a load balancer has. Joined on cluster and check with eclusa_edge_check_state it tells the health of each backend.
# TYPE eclusa_edge_load_balancer_info gauge
eclusa_edge_load_balancer_info{check="http:10256/healthz",cluster="prod",load_balancer="default/s1",pool="all"} 1
eclusa_edge_load_balancer_info{check="http:10256/healthz",cluster="prod",load_balancer="default/s2",pool="some"} 1
eclusa_edge_load_balancer_info{check="http:10256/healthz",cluster="prod",load_balancer="default/s3",pool="all"} 1
eclusa_edge_load_balancer_info{check="http:10256/healthz",cluster="prod",load_balancer="default/s4",pool="all"} 1
# HELP eclusa_edge_load_balancer_members Nodes that may serve the load balancer, well or not.
# TYPE eclusa_edge_load_balancer_members gauge
eclusa_edge_load_balancer_members{cluster="prod",load_balancer="default/s1"} 4
eclusa_edge_load_balancer_members{cluster="prod",load_balancer="default/s2"} 2
eclusa_edge_load_balancer_members{cluster="prod",load_balancer="default/s3"} 1
eclusa_edge_load_balancer_members{cluster="prod",load_balancer="default/s4"} 0
# HELP eclusa_edge_load_balancer_members_up Nodes that pass the load balancer's health check, or are not checked, and are not being drained. When it is 0 an edge sends connections to all members; if the Service is of Local policy, to those that have asked for none for less than 30 seconds, or else refuses them.
# TYPE eclusa_edge_load_balancer_members_up gauge
eclusa_edge_load_balancer_members_up{cluster="prod",load_balancer="default/s1"} 2
eclusa_edge_load_balancer_members_up{cluster="prod",load_balancer="default/s2"} 1
eclusa_edge_load_balancer_members_up{cluster="prod",load_balancer="default/s3"} 0
eclusa_edge_load_balancer_members_up{cluster="prod",load_balancer="default/s4"} 0
`
		registry := prometheus.NewPedanticRegistry()
		registry.MustRegister(collector{b.edge})
		err := testutil.GatherAndCompare(registry, strings.NewReader(want),
			"eclusa_edge_load_balancer_info", "eclusa_edge_load_balancer_members", "eclusa_edge_load_balancer_members_up")
		if err != nil {
			t.Error(err)
		}
		b.stop()
	})
}

// When there is no room for all series, the same ones are told each time.
func TestTruncationIsStable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, epoch := up(t, 2)
		b.edge.maxSeries = 2*3 + 10*3
		b.set("prod", epoch, testConfig(2, 50, 2))
		b.status("prod", "applied", func(s lb.Status) bool { return s.Revision == 2 })
		registry := prometheus.NewRegistry()
		registry.MustRegister(collector{b.edge})
		told := func() string {
			families, err := registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, f := range families {
				if f.GetName() != "eclusa_edge_load_balancer_info" {
					continue
				}
				for _, m := range f.GetMetric() {
					names = append(names, m.GetLabel()[2].GetValue())
				}
			}
			return strings.Join(names, " ")
		}
		first := told()
		if n := len(strings.Fields(first)); n < 10 || n > 12 {
			t.Errorf("%d load balancers are told of, want as many as there is room for: %s", n, first)
		}
		for range 5 {
			if again := told(); again != first {
				t.Errorf("told of %s, and then of %s", first, again)
			}
		}
		b.stop()
	})
}
