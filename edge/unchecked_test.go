package edge

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// The edge checks nodes itself, whatever its engine can do, and says which checks
// it knows of besides those that every edge does.
func TestCapabilitiesOfChecks(t *testing.T) {
	b := newRig(t)
	info, err := b.edge.Cluster("prod").Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := append(b.engine.Capabilities(), lb.CapCheckGRPC, lb.CapCheckNone); len(info.Capabilities) != len(want) || !slices.IsSorted(info.Capabilities) {
		t.Errorf("the edge says %q, want %q sorted", info.Capabilities, want)
	}
	for _, c := range []lb.Capability{lb.CapCheckGRPC, lb.CapCheckNone} {
		if !slices.Contains(info.Capabilities, c) {
			t.Errorf("the edge does not say %s", c)
		}
	}
}

// Nodes that nobody asks serve, and everything says that they are not checked.
func TestUncheckedMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t)
		b.run()
		config := testConfig(1, 2, 2)
		l := config.LoadBalancers["u2"]
		l.HealthCheck = lb.HealthCheck{Spec: healthcheck.Spec{Protocol: healthcheck.None}}
		l.MaxConnections = 1 // the members' states stand apart
		l.Members = map[lb.NodeName]lb.Member{"n1": {}, "n2": {}}
		config.LoadBalancers["u2"] = l
		b.probes.say("10.0.0.1:10256", errUnavailable)
		b.set("prod", b.claim("prod"), config)
		b.status("prod", "n1 down in one check and unchecked in the other", func(s lb.Status) bool {
			return s.Checks[theCheck]["n1"].State == healthcheck.Down && s.Checks["none"]["n1"].State == healthcheck.Unchecked &&
				s.Checks["none"]["n2"].State == healthcheck.Unchecked
		})
		group := b.table("applied", func(t lb.Table) bool { return len(t.Groups) == 2 }).Groups[lb.GroupID{Cluster: "prod", Name: "u2", Family: lb.IPv4}]
		for _, backend := range group.Backends {
			if backend.State != lb.Active || backend.Check != "none" {
				t.Errorf("got %+v; want it active by no check", backend)
			}
		}
		if got := len(b.checker.Results()); got > 3 { // both nodes, and the witness of n1
			t.Errorf("got %d targets; want none for the load balancer that is not checked", got)
		}
		b.edge.DialFailed("prod", "none", "n1", unix.ECONNREFUSED) // of no consequence
		const want = `
# HELP eclusa_edge_check_state Always 1; the labels tell the state of a node in a check and the kind of its last failure.
# TYPE eclusa_edge_check_state gauge
eclusa_edge_check_state{check="http:10256/healthz",cluster="prod",node="n1",reason="http-status",state="down"} 1
eclusa_edge_check_state{check="http:10256/healthz",cluster="prod",node="n2",reason="",state="up"} 1
eclusa_edge_check_state{check="none",cluster="prod",node="n1",reason="",state="unchecked"} 1
eclusa_edge_check_state{check="none",cluster="prod",node="n2",reason="",state="unchecked"} 1
# HELP eclusa_edge_load_balancer_members_up Nodes that pass the load balancer's health check, or are not checked, and are not being drained. When it is 0 an edge sends connections to all members; if the Service is of Local policy, to those that have asked for none for less than 30 seconds, or else refuses them.
# TYPE eclusa_edge_load_balancer_members_up gauge
eclusa_edge_load_balancer_members_up{cluster="prod",load_balancer="default/s1"} 1
eclusa_edge_load_balancer_members_up{cluster="prod",load_balancer="default/s2"} 2
`
		registry := prometheus.NewPedanticRegistry()
		registry.MustRegister(collector{b.edge})
		if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "eclusa_edge_check_state", "eclusa_edge_load_balancer_members_up"); err != nil {
			t.Error(err)
		}
		b.stop()
	})
}
