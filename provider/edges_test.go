package provider

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubetesting "k8s.io/client-go/testing"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// TestPoolInUseIsNotDeleted deletes a pool: it stays as long as somebody has an
// address of it, gives nothing out, and another pool may take its place.
func TestPoolInUseIsNotDeleted(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
		c.start(StockController)
		defer c.stop()
		c.settle(10 * time.Second)
		same(t, "finalizers of a pool that nobody uses", len(c.pool("default").Finalizers), 0)
		c.add(testService("web", 30080))
		c.settle(10 * time.Second)
		same(t, "finalizers", c.pool("default").Finalizers, []string{v1alpha1.PoolFinalizer})
		c.remove(c.pool("default"))
		c.settle(time.Second) // pools and Services are watched apart
		c.add(testService("late", 30081))
		c.settle(10 * time.Second)
		same(t, "ingress", told(c.service("web")), "192.0.2.10 Proxy")
		same(t, "late", says(c.service("late"), ConditionAddressAssigned), "False NoEligiblePool")
		ready := c.pool("default").Status.Conditions[0]
		if ready.Reason != ReasonTerminating || !strings.Contains(ready.Message, "1 are in use") {
			t.Errorf("condition is %+v, want %s and how many are in use", ready, ReasonTerminating)
		}
		if len(edge.Held().LoadBalancers) != 1 {
			t.Errorf("edge serves %v, want the one load balancer", heldBy(edge))
		}

		c.add(testPool("next", "192.0.2.0/24"))
		c.settle(10 * time.Second)
		same(t, "ingress", told(c.service("web")), "192.0.2.10 Proxy")
		if got := told(c.service("late")); got == "" {
			t.Error("nothing was assigned from the pool that took over")
		}
		if _, err := c.own.Resource(v1alpha1.AddressPoolResource).Get(t.Context(), "default", metav1.GetOptions{}); err == nil {
			t.Error("the pool is still there after another has taken its addresses over")
		}
	})
}

// TestDrainedEdge drains the only edge and ends the drain: the Service keeps its
// address and says why nobody serves it, also with many Services, which the guard
// against mass removals would hold.
func TestDrainedEdge(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
		edge.GuardRemovals()
		c.start(StockController)
		defer c.stop()
		names := []string{"a", "b", "c", "d", "e"}
		for i, name := range names {
			c.add(testService(name, int32(30080+i)))
		}
		c.settle(10 * time.Second)
		e := c.edge("e1")
		e.Spec.Drain = true
		c.change(e)
		c.settle(10 * time.Second)
		same(t, "load balancers of the drained edge", len(edge.Held().LoadBalancers), 0)
		same(t, "edge", c.edge("e1").Status.Conditions[0].Reason, ReasonDrained)
		for _, name := range names {
			same(t, name, says(c.service(name), ConditionProgrammed), "False EdgeDraining")
		}
		before := told(c.service("a"))
		e = c.edge("e1")
		e.Spec.Drain = false
		c.change(e)
		c.settle(10 * time.Second)
		same(t, "ingress", told(c.service("a")), before)
		same(t, "a", says(c.service("a"), ConditionProgrammed), "True Programmed")
	})
}

// TestUnreachableEdge loses the only edge: after a minute nothing is claimed of
// the Service any more, and once the edge is back it is as before.
func TestUnreachableEdge(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
		c.start(StockController)
		defer c.stop()
		c.add(testService("web", 30080))
		c.settle(10 * time.Second)
		c.written()
		edge.Down(errors.New("no route to host"))
		c.settle(40 * time.Second)
		same(t, "after 40 s", says(c.service("web"), ConditionProgrammed), "True Programmed")
		c.settle(40 * time.Second)
		same(t, "after 80 s", says(c.service("web"), ConditionProgrammed), "Unknown EdgeUnreachable")
		same(t, "ingress", told(c.service("web")), "192.0.2.10 Proxy")
		c.settle(time.Hour)
		n := 0
		for _, w := range c.written() {
			if w == "services default/web" {
				n++
			}
		}
		if n != 1 {
			t.Errorf("the Service was written %d times, want once", n)
		}
		edge.Down(nil)
		c.settle(reachedAfter + 10*time.Second)
		same(t, "back again", says(c.service("web"), ConditionProgrammed), "True Programmed")
	})
}

// TestInvalidEditKeepsLastGood edits a Service that is served into one that
// cannot be, over a restart: edges go on with what they have.
func TestInvalidEditKeepsLastGood(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
		c.start(StockController)
		c.add(testService("web", 30080))
		c.settle(10 * time.Second)
		before := edge.Held().LoadBalancers["uid-web"]
		svc := c.service("web")
		svc.Spec.LoadBalancerSourceRanges = []string{"10.0.0.0/33"}
		c.change(svc)
		for range 2 {
			c.settle(10 * time.Second)
			same(t, "load balancer", edge.Held().LoadBalancers["uid-web"], before)
			same(t, "programmed", says(c.service("web"), ConditionProgrammed), "False NotServable")
			if m := conditionOf(c.service("web"), ConditionProgrammed).Message; !strings.Contains(m, "spec.loadBalancerSourceRanges") || !strings.Contains(m, "go on with") {
				t.Errorf("message is %q, want the field and that edges go on", m)
			}
			same(t, "ingress", told(c.service("web")), "192.0.2.10 Proxy")
			c.stop()
			c.start(StockController)
		}
		defer c.stop()
		c.remove(c.service("web"))
		c.settle(10 * time.Second)
		same(t, "load balancers in the end", len(edge.Held().LoadBalancers), 0)
	})
}

// TestAddressMovesBetweenEdges gives a pool to another edge while the first lets
// connections end: the second gets the address when the first has let go of it.
func TestAddressMovesBetweenEdges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool("default", "192.0.2.10-192.0.2.19")
		pool.Spec.EdgeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"site": "a"}}
		c := newCluster(t, pool, testNode("n1", "10.0.0.1"))
		first, second := c.addEdge("e1", map[string]string{"site": "a"}), c.addEdge("e2", map[string]string{"site": "b"})
		c.start(StockController)
		defer c.stop()
		c.add(testService("web", 30080))
		c.settle(10 * time.Second)
		same(t, "on the first", heldBy(first)["default/web"], addrs("192.0.2.10"))
		same(t, "on the second", len(heldBy(second)), 0)

		first.SetLoadBalancer("uid-web", &lb.LoadBalancerStatus{Leaving: []netip.Addr{netip.MustParseAddr("192.0.2.10")}})
		p := c.pool("default")
		p.Spec.EdgeSelector.MatchLabels["site"] = "b"
		c.change(p)
		c.settle(10 * time.Second)
		same(t, "on the first, letting go", len(heldBy(first)), 0)
		same(t, "on the second, meanwhile", len(heldBy(second)), 0)
		first.SetLoadBalancer("uid-web", nil)
		c.settle(time.Second)
		same(t, "on the second", heldBy(second)["default/web"], addrs("192.0.2.10"))
		same(t, "ingress", told(c.service("web")), "192.0.2.10 Proxy")
	})
}

// TestQuarantineOfDrainedEdge loses an edge, drains it, deletes a Service and
// restarts: the address is not given away while the edge may still serve it.
func TestQuarantineOfDrainedEdge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, testPool("default", "192.0.2.10-192.0.2.11"), testNode("n1", "10.0.0.1"))
		first, second := c.addEdge("e1", nil), c.addEdge("e2", nil)
		c.start(ClassController)
		c.add(testService("web", 30080, ofClass))
		c.settle(10 * time.Second)
		first.Down(errors.New("no route"))
		c.settle(time.Second)
		e := c.edge("e1")
		e.Spec.Drain = true
		c.change(e)
		c.settle(time.Second)
		c.remove(c.service("web"))
		c.settle(10 * time.Second)
		same(t, "quarantine", c.pool("default").Status.QuarantinedTotal, 1)
		c.stop()
		c.start(ClassController)
		defer func() { c.stop() }()
		c.settle(10 * time.Minute)
		c.add(testService("other", 30081, ofClass, annotated(AnnotationAddresses, "192.0.2.10")))
		c.settle(10 * time.Second)
		same(t, "other", says(c.service("other"), ConditionAddressAssigned), "False AddressQuarantined")
		same(t, "on the second", len(heldBy(second)), 0)
		first.Down(nil)
		c.settle(10 * time.Second)
		same(t, "on the second, once the first has let go", heldBy(second)["default/other"], addrs("192.0.2.10"))
	})
}

// TestAddressMovesOverRestart moves a pool between edges and restarts meanwhile.
func TestAddressMovesOverRestart(t *testing.T) {
	for _, down := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool("default", "192.0.2.10-192.0.2.19")
			pool.Spec.EdgeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"site": "a"}}
			c := newCluster(t, pool, testNode("n1", "10.0.0.1"))
			first, second := c.addEdge("e1", map[string]string{"site": "a"}), c.addEdge("e2", map[string]string{"site": "b"})
			c.start(StockController)
			c.add(testService("web", 30080))
			c.settle(10 * time.Second)
			leaving := &lb.LoadBalancerStatus{Leaving: []netip.Addr{netip.MustParseAddr("192.0.2.10")}}
			if down {
				first.Down(errors.New("no route"))
			} else {
				first.SetLoadBalancer("uid-web", leaving)
			}
			p := c.pool("default")
			p.Spec.EdgeSelector.MatchLabels["site"] = "b"
			c.change(p)
			c.settle(10 * time.Second)
			same(t, "programmed", says(c.service("web"), ConditionProgrammed), "Unknown AddressMoving")
			c.stop()
			c.start(StockController)
			defer func() { c.stop() }()
			c.settle(30 * time.Second)
			same(t, "on the second, after the restart", len(heldBy(second)), 0)
			if down {
				first.Down(nil)
			} else {
				first.SetLoadBalancer("uid-web", nil)
			}
			c.settle(10 * time.Second)
			same(t, "on the second, in the end", heldBy(second)["default/web"], addrs("192.0.2.10"))
			same(t, "on the first, in the end", len(heldBy(first)), 0)
		})
	}
}

// TestFinalizerOfPoolIsRefused keeps the finalizer of a pool from being written:
// everything else goes on.
func TestFinalizerOfPoolIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
		c.refuse = func(a kubetesting.PatchAction) error {
			if a.GetResource().Resource == "addresspools" && a.GetSubresource() == "" {
				return apierrors.NewForbidden(a.GetResource().GroupResource(), a.GetName(), errors.New("no"))
			}
			return nil
		}
		c.start(ClassController)
		defer c.stop()
		c.add(testService("web", 30080, ofClass))
		c.add(testService("stay", 30081, ofClass))
		c.settle(10 * time.Second)
		edge.Down(errors.New("power cut"))
		c.remove(c.service("web"))
		c.settle(10 * time.Second)
		same(t, "Service", told(c.service("web")), "gone")
		same(t, "quarantine", c.pool("default").Status.QuarantinedTotal, 1)
		same(t, "used", c.pool("default").Status.Used, 1)
	})
}

// TestBlindForTerminatingPool hides a pool that is to be deleted and still in use.
func TestBlindForTerminatingPool(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
		c.start(ClassController)
		defer c.stop()
		c.add(testService("web", 30080, ofClass))
		c.settle(10 * time.Second)
		c.remove(c.pool("default"))
		c.settle(10 * time.Second)
		store := c.provider.eyes.pools.GetStore()
		for _, o := range store.List() {
			if err := store.Delete(o); err != nil {
				t.Fatal(err)
			}
		}
		signal(c.provider.kick)
		c.settle(10 * time.Second)
		same(t, "edge", heldBy(edge)["default/web"], addrs("192.0.2.10"))
	})
}

// TestKeptServiceIsLookedAfter edits a Service with the Local policy into one that
// cannot be served: its pods are followed all the same, and it is repaired after
// the edge has lost its state.
func TestKeptServiceIsLookedAfter(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
		c.start(ClassController)
		defer c.stop()
		c.add(testSlice("web", "n1"))
		c.add(testService("web", 30080, ofClass, func(s *v1.Service) {
			s.Spec.ExternalTrafficPolicy = v1.ServiceExternalTrafficPolicyLocal
			s.Spec.HealthCheckNodePort = 32000
		}))
		c.settle(10 * time.Second)
		svc := c.service("web")
		svc.Spec.LoadBalancerSourceRanges = []string{"10.0.0.0/33"}
		c.change(svc)
		c.settle(10 * time.Second)
		c.change(testSlice("web", "n2"))
		c.settle(10 * time.Second)
		same(t, "members after the pods moved", sortedNames(edge.Held().LoadBalancers["uid-web"].Members), []string{"n2"})
		edge.LoseState()
		c.settle(10 * time.Second)
		same(t, "after the loss of the state", heldBy(edge)["default/web"], addrs("192.0.2.10"))
	})
}

// TestLineThatComesAndGoes cuts the line to the only edge again and again: the
// Service is written once, and once more when the line stays.
func TestLineThatComesAndGoes(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
		c.start(StockController)
		defer c.stop()
		c.add(testService("web", 30080))
		c.settle(10 * time.Second)
		c.written()
		for range 10 {
			edge.Down(errors.New("no route"))
			c.settle(65 * time.Second)
			edge.Down(nil)
			c.settle(5 * time.Second)
		}
		same(t, "meanwhile", says(c.service("web"), ConditionProgrammed), "Unknown EdgeUnreachable")
		c.settle(time.Minute)
		same(t, "in the end", says(c.service("web"), ConditionProgrammed), "True Programmed")
		n := 0
		for _, w := range c.written() {
			if w == "services default/web" {
				n++
			}
		}
		if n != 2 {
			t.Errorf("the Service was written %d times, want twice", n)
		}
	})
}

// TestDrainedIsNotSaidTooEarly restarts while a drained edge has not told yet what
// it is still letting go of.
func TestDrainedIsNotSaidTooEarly(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
		c.start(StockController)
		c.add(testService("web", 30080))
		c.settle(10 * time.Second)
		edge.SetLoadBalancer("uid-web", &lb.LoadBalancerStatus{Leaving: []netip.Addr{netip.MustParseAddr("192.0.2.10")}})
		e := c.edge("e1")
		e.Spec.Drain = true
		c.change(e)
		c.settle(10 * time.Second)
		same(t, "letting go", c.edge("e1").Status.Conditions[0].Reason, ReasonDraining)
		c.stop()
		release := edge.Hold(lbtest.CallStatus)
		c.start(StockController)
		defer func() { c.stop() }()
		c.settle(10 * time.Second)
		same(t, "after the restart", c.edge("e1").Status.Conditions[0].Reason, ReasonDraining)
		release()
		edge.SetLoadBalancer("uid-web", nil)
		c.settle(10 * time.Second)
		same(t, "in the end", c.edge("e1").Status.Conditions[0].Reason, ReasonDrained)
	})
}

// TestFreedAndWantedAtOnce frees an address in the very round in which another
// Service wants one.
func TestFreedAndWantedAtOnce(t *testing.T) {
	s := crowd(t, 3, 2)
	s.settle()
	freed := recordedAddresses(s.world.Services[0])
	svc := s.world.Services[0].DeepCopy()
	svc.Spec.Type = v1.ServiceTypeClusterIP
	s.stamp(svc, 100)
	s.world.Services[0] = svc
	late := testService("late", 31000, annotated(AnnotationAddresses, freed[0].String()))
	late.UID = "uid-late"
	late.CreationTimestamp = metav1.NewTime(epoch.Add(time.Hour))
	s.stamp(late, 101)
	s.world.Services = append(s.world.Services, late)
	d := s.decider.decide(s.world)
	if p, ok := s.decider.proposals["uid-late"]; ok {
		t.Errorf("%v was given to another Service at once", p.addrs)
	}
	if s.decider.quarantine.addrs[freed[0]] == nil {
		t.Errorf("%v is not in quarantine", freed)
	}
	if len(d.Writes) == 0 {
		t.Error("nothing is written, want at least the quarantine")
	}
}

// TestQuarantineOutlivesItsPool replaces a pool while an address of it is in
// quarantine: the old pool stays until the new one's status tells of the address.
func TestQuarantineOutlivesItsPool(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
		refused := true
		c.refuse = func(a kubetesting.PatchAction) error {
			if refused && a.GetName() == "next" && a.GetSubresource() == "status" {
				return apierrors.NewForbidden(a.GetResource().GroupResource(), a.GetName(), errors.New("no"))
			}
			return nil
		}
		c.start(ClassController)
		defer c.stop()
		c.add(testService("web", 30080, ofClass))
		c.settle(10 * time.Second)
		edge.Down(errors.New("power cut"))
		c.remove(c.service("web"))
		c.settle(10 * time.Second)
		c.remove(c.pool("default"))
		c.add(testPool("next", "192.0.2.0/24"))
		c.settle(time.Minute)
		same(t, "quarantine of the old pool", len(c.pool("default").Status.Quarantined), 1)
		c.mu.Lock()
		refused = false
		c.mu.Unlock()
		c.settle(2 * time.Minute)
		same(t, "quarantine of the new pool", len(c.pool("next").Status.Quarantined), 1)
		if _, err := c.own.Resource(v1alpha1.AddressPoolResource).Get(t.Context(), "default", metav1.GetOptions{}); err == nil {
			t.Error("the old pool is still there")
		}
	})
}
