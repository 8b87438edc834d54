package provider

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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
		c.settle(10 * time.Second)
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
		svc.Spec.Ports = append(svc.Spec.Ports, v1.ServicePort{Name: "more", Protocol: v1.ProtocolTCP, Port: 81})
		c.change(svc)
		for range 2 {
			c.settle(10 * time.Second)
			same(t, "load balancer", edge.Held().LoadBalancers["uid-web"], before)
			same(t, "programmed", says(c.service("web"), ConditionProgrammed), "False NotServable")
			if m := conditionOf(c.service("web"), ConditionProgrammed).Message; !strings.Contains(m, "spec.ports[1].nodePort") || !strings.Contains(m, "go on with") {
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
