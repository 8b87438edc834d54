package provider

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	v1 "k8s.io/api/core/v1"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// An edge that keeps up with frequent changes lags by the age of what it owes,
// not by the time in which it was never quite at the newest.
func TestArrears(t *testing.T) {
	var a arrears
	start := time.Unix(1000, 0)
	at := func(second int) time.Time { return start.Add(time.Duration(second) * time.Second) }
	for i := range 100 { // one change a second, each applied two seconds later
		a.note(map[string]EdgeState{
			"quick": {Desired: uint64(10 + i), Status: lb.Status{Revision: uint64(10 + i - 2)}},
			"stuck": {Desired: uint64(10 + i), Status: lb.Status{Revision: 10}},
		}, at(i))
	}
	lags := a.lags(at(100))
	same(t, "an edge that keeps up", lags["quick"], 2*time.Second)
	same(t, "an edge that does not", lags["stuck"], 99*time.Second)
	same(t, "what is remembered is bounded", len(a["stuck"]), maxOwed)

	a.note(map[string]EdgeState{"stuck": {Desired: 109, Status: lb.Status{Revision: 109}}}, at(101))
	same(t, "after it has caught up", a.lags(at(200))["stuck"], time.Duration(0))
	same(t, "edges that are gone", len(a), 1)
}

func TestCountBackends(t *testing.T) {
	got := countBackends(EdgeState{Status: lb.Status{Checks: map[lb.CheckID]map[lb.NodeName]lb.MemberStatus{
		"a": {"n1": {State: healthcheck.Up}, "n2": {State: healthcheck.Down, Reason: healthcheck.Timeout}},
		"b": {"n1": {State: healthcheck.Down, Reason: healthcheck.Timeout}, "n2": {State: healthcheck.Draining, Reason: healthcheck.HTTPStatus}},
	}}})
	same(t, "kinds", got, map[backendKind]int{
		{healthcheck.Up, ""}: 1, {healthcheck.Down, healthcheck.Timeout}: 2, {healthcheck.Draining, healthcheck.HTTPStatus}: 1,
	})
	same(t, "no members", countBackends(EdgeState{}), map[backendKind]int{{healthcheck.Up, ""}: 0})
}

func TestCountNodePorts(t *testing.T) {
	local := testService("local", 30001)
	local.Spec.HealthCheckNodePort = 30002
	both := testService("both", 30003)
	both.Spec.Ports = append(both.Spec.Ports, v1.ServicePort{Protocol: v1.ProtocolUDP, Port: 80, NodePort: 30003})
	same(t, "ports", countNodePorts([]*v1.Service{testService("a", 30000), local, both, testService("none", 0)}), 4)
}

// The metrics tell what became of Services, and of no object that is gone.
func TestMetricsFollowTheCluster(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
		c.start(StockController, ClassController)
		defer c.stop()
		c.add(testService("web", 30080))
		c.add(testService("wrong", 30081, annotated(AnnotationAddresses, "203.0.113.1")))
		c.settle(10 * time.Second)
		expect := func(moment string, want ...string) {
			t.Helper()
			got := gauges(t, c)
			for _, line := range want {
				series, value, _ := strings.Cut(line, " ")
				if got[series] != value {
					t.Errorf("%s: %s is %q, want %s", moment, series, got[series], value)
				}
			}
		}
		expect("served",
			`eclusa_ccm_services{state="foreign"} 0`, `eclusa_ccm_services{state="pending"} 0`, `eclusa_ccm_services{state="refused"} 0`,
			`eclusa_ccm_services{state="served"} 1`, `eclusa_ccm_services{state="waiting"} 1`,
			`eclusa_ccm_node_ports_used 2`,
			`eclusa_ccm_pool_addresses{pool="default"} 10`, `eclusa_ccm_pool_ready{pool="default"} 1`, `eclusa_ccm_pool_addresses_used{pool="default"} 1`,
			`eclusa_ccm_edge_connected{edge="e1"} 1`, `eclusa_ccm_edge_ready{edge="e1"} 1`, `eclusa_ccm_edge_lag_seconds{edge="e1"} 0`,
			`eclusa_ccm_edge_durable{edge="e1"} 1`,
		)
		paused := c.edge("e1")
		paused.Spec.Paused = true
		c.change(paused)
		c.settle(time.Second)
		c.add(testService("more", 30082))
		c.settle(30 * time.Second)
		expect("paused", `eclusa_ccm_edge_paused{edge="e1"} 1`, `eclusa_ccm_edge_connected{edge="e1"} 1`)
		var lag float64
		fmt.Sscan(gauges(t, c)[`eclusa_ccm_edge_lag_seconds{edge="e1"}`], &lag)
		if lag < 25 || lag > 31 {
			t.Errorf("lag of a paused edge: %v s, want that of the Service made 30 s ago", lag)
		}
		c.remove(c.edge("e1"))
		c.settle(time.Minute)
		expect("without an edge", `eclusa_ccm_pool_ready{pool="default"} 0`)
		if n := testutil.CollectAndCount(c.provider.Collector(), "eclusa_ccm_edge_connected", "eclusa_ccm_edge_lag_seconds", "eclusa_ccm_edge_paused"); n != 0 {
			t.Errorf("%d series of an edge that is gone", n)
		}
	})
}

// gauges returns the value of every gauge by its series.
func gauges(t *testing.T, c *cluster) map[string]string {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(c.provider.Collector())
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			series := f.GetName()
			if len(labels) > 0 {
				series += "{" + strings.Join(labels, ",") + "}"
			}
			if m.Gauge != nil {
				out[series] = fmt.Sprint(m.Gauge.GetValue())
			}
		}
	}
	return out
}
