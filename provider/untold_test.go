package provider

import (
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lb"
)

// reading returns what an edge holds for a Service: how, and on which addresses.
func (s *simulation) reading(edge, service string) string {
	l, there := s.held[edge].Holds.LoadBalancers[lb.UID("uid-"+service)]
	switch {
	case !there:
		return "nothing"
	case l.Direct():
		return "direct " + formatAddresses(l.Addresses)
	}
	return "NAT " + formatAddresses(l.Addresses)
}

// Of two addresses that are to be served directly no edge can do it for one: the
// other is served all the same, and follows the Service.
func TestAddressThatNobodySteersHoldsNothingUp(t *testing.T) {
	s := directWorld(t, lb.CapDirect)
	s.plain = map[string]bool{"e6": true}
	s.forward(v1alpha1.ForwardDirect)
	p6, e6, both := testPool("p6", "2001:db8::/124"), testEdge("e6"), testNode("both", "10.0.0.2")
	e6.Labels = map[string]string{"family": "6"}
	p6.Spec.Forwarding, p6.Spec.EdgeSelector = v1alpha1.ForwardDirect, selector("family", "6")
	both.Status.Addresses = append(both.Status.Addresses, v1.NodeAddress{Type: v1.NodeInternalIP, Address: "fd00::2"})
	p4 := s.world.Pools[0].DeepCopy()
	p4.Spec.EdgeSelector = selector("family", "4")
	e := s.world.Edges[0].DeepCopy()
	e.Labels = map[string]string{"family": "4"}
	s.stamp(p4, 0)
	s.stamp(e, 1)
	s.stamp(p6, 4)
	s.stamp(e6, 5)
	s.stamp(both, 6)
	s.world.Pools = []*v1alpha1.AddressPool{p4, p6}
	s.world.Edges = []*v1alpha1.Edge{e, e6}
	s.world.Nodes = append(s.world.Nodes, both)
	dual := testService("dual", 30081, func(svc *v1.Service) {
		svc.Spec.IPFamilies = []v1.IPFamily{v1.IPv4Protocol, v1.IPv6Protocol}
		svc.Spec.IPFamilyPolicy = ptr.To(v1.IPFamilyPolicyRequireDualStack)
	})
	s.stamp(dual, 7)
	s.world.Services = append(s.world.Services, dual)
	s.settle()
	same(t, "status", told(s.service("dual")), "192.0.2.2 VIP")
	same(t, "on the edge that can", s.reading("e", "dual"), "direct 192.0.2.2")
	same(t, "on the edge that cannot", s.reading("e6", "dual"), "nothing")
	same(t, "programmed", says(s.service("dual"), ConditionProgrammed), "True Degraded")

	s.edit("dual", func(svc *v1.Service) { svc.Spec.LoadBalancerSourceRanges = []string{"198.51.100.0/24"} })
	s.settle()
	same(t, "source ranges on the edge that can", len(s.held["e"].Holds.LoadBalancers["uid-dual"].SourceRanges), 1)

	s.plain = nil // the other edge has learned it
	for range 5 {
		s.after(nodesFollow)
		same(t, "meanwhile on the first edge", s.reading("e", "dual"), "direct 192.0.2.2")
	}
	s.settle()
	same(t, "status in the end", told(s.service("dual")), "192.0.2.2 VIP,2001:db8::1 VIP")
	same(t, "on the second edge in the end", s.reading("e6", "dual"), "direct 2001:db8::1")
}

// another adds an edge to the world.
func (s *simulation) another(name string) {
	e := testEdge(name)
	s.stamp(e, 4)
	s.world.Edges = append(s.world.Edges, e)
}

// An edge of which nothing is known keeps nobody from saying that the others cannot do
// what they are asked for, and is told nothing before the status when it turns up.
func TestForwardingThatNoEdgeIsKnownToDo(t *testing.T) {
	s := directWorld(t, lb.CapDirect)
	s.plain = map[string]bool{"e": true}
	s.another("late")
	s.lost["late"] = true
	s.settle()
	s.forward(v1alpha1.ForwardDirect)
	s.settle()
	s.wants("when no edge is known to", false, "192.0.2.1 Proxy")
	same(t, "programmed", says(s.service("web"), ConditionProgrammed), "False Unsupported")

	clear(s.lost)
	s.after(time.Second)
	same(t, "on the edge that turns up", s.reading("late", "web"), "nothing")
	for i := 0; told(s.service("web")) != "192.0.2.1 VIP"; i++ {
		if i == 10 {
			t.Fatalf("the status says %s after ten rounds; want VIP", told(s.service("web")))
		}
		s.after(time.Millisecond)
		same(t, "on that edge before the status has said so", s.reading("late", "web"), "nothing")
		if t.Failed() {
			return
		}
	}
	s.settle()
	same(t, "on that edge in the end", s.reading("late", "web"), "direct 192.0.2.1")
}

// While the status waits to be written, edges follow the nodes of the Service.
func TestUntoldServiceFollowsItsPods(t *testing.T) {
	s := directWorld(t, lb.CapDirect)
	s.edit("web", func(svc *v1.Service) {
		svc.Spec.ExternalTrafficPolicy, svc.Spec.HealthCheckNodePort = v1.ServiceExternalTrafficPolicyLocal, 31000
	})
	more := testNode("m", "10.0.0.2")
	s.stamp(more, 5)
	s.world.Nodes = append(s.world.Nodes, more)
	place := func(node string) {
		s.slices["default/web"] = append(s.slices["default/web"][:0:0], testSlice("web", node))
	}
	place("n")
	s.settle()
	s.forward(v1alpha1.ForwardDirect)
	s.after(0)
	place("m")
	s.after(0)
	s.wants("before nodes have followed", false, "192.0.2.1 VIP")
	same(t, "members meanwhile", sortedNames(s.held["e"].Holds.LoadBalancers["uid-web"].Members), "[m]")
	same(t, "programmed meanwhile", says(s.service("web"), ConditionProgrammed), "True Programmed")
	s.settle()
	s.wants("in the end", true, "192.0.2.1 VIP")
}

// An edge that is to route packets as they are does not count as doing so before it
// was told.
func TestForwardingIsNotProgrammedUnsent(t *testing.T) {
	s := directWorld(t, lb.CapDirect)
	s.forward(v1alpha1.ForwardDirect)
	s.after(0)
	s.after(0)
	s.wants("before nodes have followed", false, "192.0.2.1 VIP")
	s.changeEdge("e", pausing(true))
	s.after(nodesFollow)
	for range 3 {
		s.after(unconfirmedAfter)
	}
	s.wants("when the edge is paused", false, "192.0.2.1 VIP")
	same(t, "programmed meanwhile", says(s.service("web"), ConditionProgrammed), "Unknown Pending")
	s.changeEdge("e", pausing(false))
	s.settle()
	s.wants("when it is told", true, "192.0.2.1 VIP")
	same(t, "programmed then", says(s.service("web"), ConditionProgrammed), "True Programmed")
}

// That one edge of several cannot do it is no trouble while the others are about to be
// told.
func TestForwardingOfSomeEdges(t *testing.T) {
	s := directWorld(t, lb.CapDirect)
	s.plain = map[string]bool{"plain": true}
	s.another("plain")
	s.settle()
	s.forward(v1alpha1.ForwardDirect)
	for range 4 {
		s.after(nodesFollow / 3)
		same(t, "programmed meanwhile", says(s.service("web"), ConditionProgrammed), "True Programmed")
	}
	s.settle()
	s.wants("in the end", true, "192.0.2.1 VIP")
	same(t, "programmed in the end", says(s.service("web"), ConditionProgrammed), "True Degraded")
}
