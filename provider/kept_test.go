package provider

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lb"
)

// changeEdge and changePool change an object.
func (s *simulation) changeEdge(name string, change func(*v1alpha1.Edge)) {
	s.t.Helper()
	changed(s, s.world.Edges, name, change)
}

func (s *simulation) changePool(name string, change func(*v1alpha1.AddressPool)) {
	s.t.Helper()
	changed(s, s.world.Pools, name, change)
}

func changed[T object](s *simulation, objects []T, name string, change func(T)) {
	s.t.Helper()
	i := slices.IndexFunc(objects, func(o T) bool { return accessor(o).GetName() == name })
	if i < 0 {
		s.t.Fatalf("there is no object %q", name)
	}
	o := objects[i].DeepCopyObject().(T)
	change(o)
	s.stamp(accessor(o), i)
	objects[i] = o
}

func draining(drain bool) func(*v1alpha1.Edge) {
	return func(e *v1alpha1.Edge) { e.Spec.Drain = drain }
}

func pausing(pause bool) func(*v1alpha1.Edge) {
	return func(e *v1alpha1.Edge) { e.Spec.Paused = pause }
}

func inZone(zone string) func(*v1alpha1.Edge) {
	return func(e *v1alpha1.Edge) { e.Labels = map[string]string{"zone": zone} }
}

func ofZone(zone string) func(*v1alpha1.AddressPool) {
	return func(p *v1alpha1.AddressPool) { p.Spec.EdgeSelector = selector("zone", zone) }
}

// forget refuses a Service and restarts: what it had asked for before, edges know.
func (s *simulation) forget(service string) {
	s.t.Helper()
	s.edit(service, unservable)
	s.restart()
	s.settle()
}

// onOneMachine lets time pass in which at most one machine may have the address.
func (s *simulation) onOneMachine(a netip.Addr) {
	s.t.Helper()
	for range 12 {
		s.after(time.Second)
		if edges := s.having("", a); len(edges) > 1 {
			s.t.Errorf("%s is on %v at once", a, edges)
		}
	}
}

// TestAddressIsOnOneMachine has the edges of a pool change, of which the new one waits
// until the old one has let go, whether it is known what the Service asked for or not.
func TestAddressIsOnOneMachine(t *testing.T) {
	for name, move := range map[string]func(*simulation){
		"the pool has another edge": func(s *simulation) { s.changePool("public", ofZone("b")) },
		"its edge is drained": func(s *simulation) {
			s.changeEdge("e1", draining(true))
			s.changeEdge("e2", inZone("a"))
		},
	} {
		for _, known := range []bool{true, false} {
			s := scene(t, []string{"e1", "e2"})
			s.changeEdge("e1", inZone("a"))
			s.changeEdge("e2", inZone("b"))
			s.changePool("public", ofZone("a"))
			s.create(testService("web", 30080))
			s.settle()
			if !known {
				s.forget("web")
			}
			s.lags = true
			s.settle()
			a := recordedAddresses(s.service("web"))[0]
			same(t, "at first", s.having("web", a), "[e1]")
			move(s)
			s.onOneMachine(a)
			same(t, "in the end", s.having("web", a), "[e2]")
			if t.Failed() {
				t.Fatalf("%s, known: %v", name, known)
			}
		}
	}
}

// missesAndDrains has a change not reach an edge, so that the others were written to
// last, and drains it for a while.
func (s *simulation) missesAndDrains(edge string, while func()) {
	s.lost[edge] = true
	s.world.Nodes = append(slices.Clone(s.world.Nodes), testNode("n2", "10.0.0.2"))
	s.pass(2, time.Second)
	clear(s.lost)
	s.changeEdge(edge, draining(true))
	s.settle()
	while()
	s.changeEdge(edge, draining(false))
	s.settle()
}

// TestAddressIsLeftBeforeItIsGivenAway deletes a Service, whose address another one
// waits for.
func TestAddressIsLeftBeforeItIsGivenAway(t *testing.T) {
	for _, known := range []bool{true, false} {
		s := sharing(t, "", "192.0.2.7", []string{"e1", "e2"}, onPorts("web", 80))
		if !known {
			s.forget("web")
		}
		s.join(onPorts("next", 80), 20)
		s.lags = true
		s.settle()
		a := netip.MustParseAddr("192.0.2.7")
		same(t, "at first", s.having("web", a), "[e1 e2]")
		s.remove("web")
		for range 12 {
			s.after(time.Second)
			if next, left := s.having("next", a), s.having("web", a); len(next) > 0 && len(left) > 0 {
				t.Errorf("known: %v: the next one is on %v, and the one before on %v", known, next, left)
			}
		}
		same(t, "in the end", s.having("next", a), "[e1 e2]")
	}
}

// TestKeptVersionIsTheNewest has edges hold different versions of a Service: who holds
// none gets the newest, whatever was written to which edge since.
func TestKeptVersionIsTheNewest(t *testing.T) {
	s := shareOne(t, []string{"e1", "e2"}, onPorts("web", 80, 443))
	ranges := func(edge string) int { return len(s.held[edge].Holds.LoadBalancers["uid-web"].SourceRanges) }
	s.lost["e1"] = true
	s.edit("web", func(svc *v1.Service) { svc.Spec.LoadBalancerSourceRanges = []string{"198.51.100.0/24"} })
	s.settle()
	s.edit("web", unservable)
	s.restart()
	clear(s.lost)
	s.settle()
	same(t, "ranges at first", []int{ranges("e1"), ranges("e2")}, "[0 1]")

	s.missesAndDrains("e2", func() {
		same(t, "ports while it is drained", s.on("e2", "web"), "")
	})
	same(t, "ports on the edge that was drained", s.on("e2", "web"), "80 443")
	same(t, "ranges on the edge that was drained", ranges("e2"), 1)
}

// TestKeptVersionIsWhole puts together what edges hold of one Service.
func TestKeptVersionIsWhole(t *testing.T) {
	whole := config(1, 1, 1).LoadBalancers[uid(0)]
	whole.Listeners = []lb.Listener{{Protocol: lb.TCP, Port: 80, TargetPort: 30080}, {Protocol: lb.UDP, Port: 53, TargetPort: 30053}}
	trimmed, other, six := whole, whole, whole
	trimmed.Listeners = whole.Listeners[:1]
	other.Listeners, other.SourceRanges = whole.Listeners[:1], []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	six.Addresses, six.MemberFamilies = []netip.Addr{netip.MustParseAddr("2001:db8::1")}, []lb.Family{lb.IPv4}
	type seen struct {
		l        lb.LoadBalancer
		revision uint64
		ours     bool
	}
	for _, tt := range []struct {
		name  string
		seen  []seen
		want  lb.LoadBalancer
		addrs int
	}{
		{"an edge cannot do all of it", []seen{{whole, 1, false}, {trimmed, 2, false}}, whole, 1},
		{"an edge can do more", []seen{{trimmed, 2, false}, {whole, 1, false}}, whole, 1},
		{"a newer one", []seen{{whole, 1, false}, {other, 2, false}}, other, 1},
		{"an older one", []seen{{other, 2, false}, {whole, 1, false}}, other, 1},
		{"newer than the newest trimmed", []seen{{whole, 1, false}, {trimmed, 3, false}, {other, 2, false}}, whole, 1},
		{"written since", []seen{{other, 2, false}, {whole, 3, true}}, other, 1},
		{"only one written since", []seen{{other, 3, true}}, other, 1},
		{"addresses of two edges", []seen{{six, 1, false}, {whole, 2, false}}, whole, 2},
		{"addresses of two edges, the other way around", []seen{{whole, 2, false}, {six, 1, false}}, whole, 2},
	} {
		var k keptVersion
		for _, x := range tt.seen {
			k = k.seen(x.l, x.revision, x.ours)
		}
		same(t, tt.name+": listeners", k.Listeners, tt.want.Listeners)
		same(t, tt.name+": source ranges", k.SourceRanges, tt.want.SourceRanges)
		same(t, tt.name+": addresses", len(k.Addresses), tt.addrs)
		if tt.addrs == 2 {
			same(t, tt.name+": families of members", k.MemberFamilies, six.MemberFamilies)
		}
	}
}

// TestKeptServiceStaysDualStack takes one of two addresses, or both, from an edge and
// gives them back, and moves one to an edge that has the other already.
func TestKeptServiceStaysDualStack(t *testing.T) {
	s := scene(t, []string{"e1", "e2"})
	p4, p6 := testPool("p4", "192.0.2.0/29"), testPool("p6", "2001:db8::/124")
	s.stamp(p4, 1)
	s.stamp(p6, 2)
	s.world.Pools = []*v1alpha1.AddressPool{p4, p6}
	s.changePool("p6", ofZone("a"))
	s.changeEdge("e1", inZone("a"))
	s.changeEdge("e2", inZone("b"))
	s.create(testService("dual", 30080, dualStack))
	s.settle()
	s.forget("dual")
	both := s.reading("e1", "dual")
	if !strings.Contains(both, "2001:db8::") || !strings.Contains(both, "192.0.2.") {
		t.Fatalf("on e1: got %s; want both families", both)
	}
	four, _, _ := strings.Cut(both, ",")
	s.missesAndDrains("e1", func() {
		same(t, "on e1 while it is drained", s.reading("e1", "dual"), "nothing")
	})
	same(t, "on e1 after that", s.reading("e1", "dual"), both)

	s.changePool("p6", ofZone("nowhere"))
	s.settle()
	same(t, "on e1 without one pool", s.reading("e1", "dual"), four)
	s.changePool("p6", ofZone("a"))
	s.settle()
	same(t, "on e1 with it again", s.reading("e1", "dual"), both)

	s.lags = true
	s.settle()
	s.changePool("p6", ofZone("b"))
	for _, a := range recordedAddresses(s.service("dual")) {
		if a.Is6() {
			s.onOneMachine(a)
		}
	}
	same(t, "on e2, which the pool has moved to", s.reading("e2", "dual"), both)
	same(t, "on e1, which it has left", s.reading("e1", "dual"), four)
}

// TestPortIsGivenUpWhereItsOwnerIsNotServed gives a port to a Service that one edge
// cannot serve, where the one before goes on with it: nobody's clients get there.
func TestPortIsGivenUpWhereItsOwnerIsNotServed(t *testing.T) {
	s := shareOne(t, []string{"e1", "e2"}, onPorts("x", 80, 443), ofNamespace("other", onPorts("y", 8080)))
	s.able, s.plain = []lb.Capability{lb.CapSourceHash}, map[string]bool{"e2": true}
	s.settle()
	hashed := annotated(AnnotationAlgorithm, string(lb.SourceHash))
	s.edit("x", func(svc *v1.Service) {
		svc.Spec.Ports[1].Port = 444 // and the node port stays
		hashed(svc)
	})
	s.edit("y", hashed)
	s.settle()
	same(t, "ports of x where it is served", s.on("e1", "x"), "80 444")
	same(t, "ports of x where it is not", s.on("e2", "x"), "80 443")
	s.edit("y", toPorts(8080, 443))
	s.settle()
	same(t, "ports of y where it is served", s.on("e1", "y"), "8080 443")
	same(t, "ports of y where it is not", s.on("e2", "y"), "8080")
	same(t, "ports of x then", s.on("e2", "x"), "80")
}

// TestHeldRemovalGivesNothingUp asks whether an edge gives ports up whose guard holds
// the removal of a load balancer.
func TestHeldRemovalGivesNothingUp(t *testing.T) {
	for held, want := range map[string]bool{"": true, "loadBalancers/uid-x": false, "loadBalancers/uid-y": true} {
		r := &round{live: map[string]*v1alpha1.Edge{"e": testEdge("e")}}
		r.Fleet = map[string]EdgeState{"e": {Connected: true, Known: true, Withheld: map[lb.UID]lb.Problem{"uid-x": {}}, RemovalHeld: []string{held}}}
		same(t, "gives up with "+held, r.givesUp("e", "uid-x"), want)
	}
}
