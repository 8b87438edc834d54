package provider

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lb"
)

// directWorld has a Service in a pool with forwarding NAT, and an edge that can do
// either way.
func directWorld(t *testing.T, able ...lb.Capability) *simulation {
	s := newSimulation(t)
	s.able = able
	s.world.Pools = []*v1alpha1.AddressPool{testPool("p", "192.0.2.0/28")}
	s.world.Edges = []*v1alpha1.Edge{testEdge("e")}
	s.world.Nodes = []*v1.Node{testNode("n", "10.0.0.1")}
	s.world.Services = []*v1.Service{testService("web", 30080)}
	s.stamp(s.world.Pools[0], 0)
	s.stamp(s.world.Edges[0], 1)
	s.stamp(s.world.Nodes[0], 2)
	s.stamp(s.world.Services[0], 3)
	s.settle()
	return s
}

// forward changes how the pool forwards.
func (s *simulation) forward(way v1alpha1.Forwarding) {
	p := s.world.Pools[0].DeepCopy()
	p.Spec.Forwarding = way
	s.stamp(p, 0)
	s.world.Pools[0] = p
}

// after lets some time pass and decides once.
func (s *simulation) after(d time.Duration) {
	s.t.Helper()
	s.world.Now = s.world.Now.Add(d)
	s.round()
}

// wants says what the edge is told and what the status says.
func (s *simulation) wants(when string, direct bool, status string) {
	s.t.Helper()
	l, there := s.held["e"].Holds.LoadBalancers["uid-web"]
	if !there || l.Direct() != direct {
		s.t.Errorf("%s: the edge is told %+v; want it to be served, direct: %v", when, l, direct)
	}
	if got := told(s.world.Services[0]); got != status {
		s.t.Errorf("%s: the status says %q; want %q", when, got, status)
	}
}

// Nodes take the address for their own before the edge routes packets to them, and
// until it does not any more.
func TestChangeOfForwardingKeepsItsOrder(t *testing.T) {
	s := directWorld(t, lb.CapDirect)
	s.wants("at first", false, "192.0.2.1 Proxy")
	s.forward(v1alpha1.ForwardDirect)
	s.after(0)
	s.wants("when the pool changes", false, "192.0.2.1 VIP")
	s.after(0)
	s.wants("when the status has changed", false, "192.0.2.1 VIP")
	s.after(nodesFollow)
	s.wants("when nodes have followed", true, "192.0.2.1 VIP")

	s.settle()
	s.decider = newDecider() // another leader
	s.after(0)
	s.after(0)
	s.wants("after a restart", true, "192.0.2.1 VIP")

	s.forward(v1alpha1.ForwardNAT)
	s.after(0)
	s.wants("when the pool changes back", false, "192.0.2.1 VIP")
	s.after(0)
	s.wants("when the edge has confirmed", false, "192.0.2.1 Proxy")
}

// An edge that cannot do it goes on as before, and the status stays true.
func TestForwardingThatNoEdgeCanDo(t *testing.T) {
	s := directWorld(t)
	s.forward(v1alpha1.ForwardDirect)
	s.settle()
	if got := told(s.world.Services[0]); got != "192.0.2.1 Proxy" {
		t.Errorf("the status says %q; want what it said", got)
	}
	if c := conditionOf(s.world.Services[0], ConditionProgrammed); c == nil || c.Reason != ReasonUnsupported {
		t.Errorf("Programmed: got %+v; want %s", c, ReasonUnsupported)
	}
}

// A Service without node ports gets its address from a pool that can serve it, and
// goes on with the last good version if its node ports are taken away elsewhere.
func TestServiceWithoutNodePortsFindsItsPool(t *testing.T) {
	s := directWorld(t, lb.CapDirect)
	bare := testService("bare", 0, func(svc *v1.Service) { svc.Spec.AllocateLoadBalancerNodePorts = ptr.To(false) })
	first := testPool("a", "192.0.2.64/28")
	first.Spec.EdgeSelector = selector("zone", "nowhere")
	s.stamp(bare, 4)
	s.stamp(first, 5)
	s.world.Services = append(s.world.Services, bare)
	s.world.Pools = append(s.world.Pools, first)
	s.settle()
	if got := told(s.world.Services[1]); got != "192.0.2.2 VIP" {
		t.Errorf("the status says %q; want an address of the pool with an edge", got)
	}

	s.able = nil
	s.settle()
	if l, there := s.held["e"].Holds.LoadBalancers["uid-bare"]; there && !l.Direct() {
		t.Errorf("the edge holds %+v; want nothing through node ports that are not there", l)
	}
	if c := conditionOf(s.world.Services[1], ConditionProgrammed); c == nil || c.Status != "False" {
		t.Errorf("Programmed: got %+v; want it to say that nobody can", c)
	}
}

// A Service without node ports keeps an address that can be served, whatever it asks
// for, and gets none that cannot.
func TestServiceWithoutNodePortsStaysWhereItCanBeServed(t *testing.T) {
	s := directWorld(t, lb.CapDirect)
	other := testPool("other", "192.0.2.64/28", "2001:db8::/124")
	other.Spec.EdgeSelector = selector("zone", "nowhere")
	both := testNode("both", "10.0.0.2")
	both.Status.Addresses = append(both.Status.Addresses, v1.NodeAddress{Type: v1.NodeInternalIP, Address: "fd00::2"})
	s.stamp(both, 6)
	s.world.Nodes = append(s.world.Nodes, both)
	bare := testService("bare", 0, func(svc *v1.Service) {
		svc.Spec.AllocateLoadBalancerNodePorts = ptr.To(false)
		svc.Spec.IPFamilies = []v1.IPFamily{v1.IPv4Protocol, v1.IPv6Protocol}
		svc.Spec.IPFamilyPolicy = ptr.To(v1.IPFamilyPolicyPreferDualStack)
	})
	s.stamp(other, 4)
	s.stamp(bare, 5)
	s.world.Pools = append(s.world.Pools, other)
	s.world.Services = append(s.world.Services, bare)
	s.settle()
	const want = "192.0.2.2 VIP"
	if got := told(s.world.Services[1]); got != want {
		t.Errorf("dual stack: the status says %q; want %q, since no other pool can serve it", got, want)
	}
	s.edit("bare", annotated(AnnotationAddressPool, "other"))
	s.settle()
	if got := told(s.service("bare")); got != want {
		t.Errorf("asking for a pool that cannot: the status says %q; want %q still", got, want)
	}
	if l := s.held["e"].Holds.LoadBalancers["uid-bare"]; !slices.Equal(l.Addresses, []netip.Addr{netip.MustParseAddr("192.0.2.2")}) {
		t.Errorf("asking for a pool that cannot: the edge holds %+v; want the address that it had", l)
	}
	if recorded := recordedAddresses(s.service("bare")); len(recorded) != 1 {
		t.Errorf("recorded: got %v; want one address", recorded)
	}
}

// In a pool that everybody shares nobody is served directly: nodes would give each
// Service all of its ports, whoever has them.
func TestNothingSharedByAllIsDirect(t *testing.T) {
	s := directWorld(t, lb.CapDirect)
	s.world.Pools[0].Spec.Sharing = v1alpha1.ShareAlways
	s.forward(v1alpha1.ForwardDirect)
	bare := testService("bare", 0, func(svc *v1.Service) { svc.Spec.AllocateLoadBalancerNodePorts = ptr.To(false) })
	s.stamp(bare, 4)
	s.world.Services = append(s.world.Services, bare)
	s.settle()
	s.wants("with a node port", false, "192.0.2.1 Proxy 80/TCP")
	if got := told(s.service("bare")); got != "" {
		t.Errorf("without node ports: the status says %q; want nothing", got)
	}
}
