package provider

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lb"
)

// shareOne returns a simulation of edges and a pool with one address that everybody
// shares. The Services join it, the oldest first.
func shareOne(t *testing.T, edges []string, services ...*v1.Service) *simulation {
	t.Helper()
	return sharing(t, "Always", "192.0.2.7", edges, services...)
}

func sharing(t *testing.T, by, addresses string, edges []string, services ...*v1.Service) *simulation {
	t.Helper()
	s := newSimulation(t)
	p, n := testPool("public", addresses), testNode("n1", "10.0.0.1")
	p.Spec.Sharing = v1alpha1.Sharing(by)
	s.stamp(p, 0)
	s.stamp(n, 0)
	s.world.Pools, s.world.Nodes = append(s.world.Pools, p), append(s.world.Nodes, n)
	for i, name := range edges {
		e := testEdge(name)
		s.stamp(e, i)
		s.world.Edges = append(s.world.Edges, e)
	}
	for i, svc := range services {
		s.join(svc, 10+i)
	}
	s.settle()
	return s
}

// join adds a Service, which is older the smaller i is.
func (s *simulation) join(svc *v1.Service, i int) {
	svc.UID = types.UID("uid-" + svc.Name)
	s.stamp(svc, i)
	svc.CreationTimestamp = metav1.NewTime(epoch.Add(time.Duration(i-1000) * time.Second))
	s.world.Services = append(slices.Clone(s.world.Services), svc)
}

func (s *simulation) service(name string) *v1.Service {
	s.t.Helper()
	i := slices.IndexFunc(s.world.Services, func(svc *v1.Service) bool { return svc.Name == name })
	if i < 0 {
		s.t.Fatalf("there is no Service %q", name)
	}
	return s.world.Services[i]
}

// edit changes a Service, and remove deletes it.
func (s *simulation) edit(name string, change func(*v1.Service)) {
	s.t.Helper()
	svc := s.service(name).DeepCopy()
	change(svc)
	s.stamp(svc, 1000)
	s.world.Services = slices.Clone(s.world.Services)
	s.world.Services[slices.IndexFunc(s.world.Services, func(o *v1.Service) bool { return o.Name == name })] = svc
}

func (s *simulation) remove(name string) {
	s.world.Services = slices.DeleteFunc(slices.Clone(s.world.Services), func(o *v1.Service) bool { return o.Name == name })
}

// pass lets rounds pass in which nothing else happens.
func (s *simulation) pass(rounds int, each time.Duration) {
	for range rounds {
		s.world.Now = s.world.Now.Add(each)
		s.round()
	}
}

// onPorts makes a Service with TCP ports, and to gives it others.
func onPorts(name string, ports ...int32) *v1.Service {
	return testService(name, 30000, toPorts(ports...))
}

func toPorts(ports ...int32) func(*v1.Service) {
	return func(svc *v1.Service) {
		svc.Spec.Ports = nil
		for _, p := range ports {
			svc.Spec.Ports = append(svc.Spec.Ports, v1.ServicePort{Name: fmt.Sprint("p", p), Protocol: v1.ProtocolTCP, Port: p, NodePort: 30000 + p%1000})
		}
	}
}

func ofNamespace(namespace string, svc *v1.Service) *v1.Service {
	svc.Namespace = namespace
	return svc
}

func unservable(svc *v1.Service) { svc.Spec.LoadBalancerSourceRanges = []string{"nonsense"} }

// on returns the ports that an edge holds for a Service.
func (s *simulation) on(edge, service string) string {
	var ports []string
	for _, l := range s.held[edge].Holds.LoadBalancers[lb.UID("uid-"+service)].Listeners {
		ports = append(ports, fmt.Sprint(l.Port))
	}
	return strings.Join(ports, " ")
}

// TestPortStaysThoughAnOldEdgeHasIt lets an edge go out of reach that holds a port for
// the Service that had it before, which then wants it again.
func TestPortStaysThoughAnOldEdgeHasIt(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		s := shareOne(t, []string{"e1", "e2"}, onPorts("older", 80, 443), ofNamespace("other", onPorts("younger", 8080)))
		s.edit("older", toPorts(80))
		s.pass(1, time.Second)
		s.lost["e1"] = true // in the round that gives the port to the other
		s.edit("younger", toPorts(8080, 443))
		s.pass(4, time.Minute)
		same(t, "younger on e2", s.on("e2", "younger"), "8080 443")
		s.edit("older", toPorts(80, 443))
		if restarted {
			s.restart()
		}
		s.pass(5, time.Minute)
		same(t, "younger on e2, when the older wants the port again", s.on("e2", "younger"), "8080 443")
		s.lost["e1"] = false
		s.settle()
		for _, edge := range []string{"e1", "e2"} {
			same(t, "younger on "+edge, s.on(edge, "younger"), "8080 443")
			same(t, "older on "+edge, s.on(edge, "older"), "80")
		}
		same(t, "status of the older", told(s.service("older")), "192.0.2.7 Proxy 80/TCP 443/TCP=eclusa.io/PortInUse")
		same(t, "status of the younger", told(s.service("younger")), "192.0.2.7 Proxy 8080/TCP 443/TCP")
	}
}

// TestPortWaitsForEdges gives a port to nobody else while an edge out of reach may
// serve it for the Service that had it: as with an address, whose it was has it back.
func TestPortWaitsForEdges(t *testing.T) {
	for _, deleted := range []bool{false, true} {
		s := shareOne(t, []string{"e1", "e2"}, onPorts("older", 80, 443), ofNamespace("other", onPorts("younger", 8080)))
		s.lost["e1"] = true
		s.pass(1, time.Second)
		if deleted {
			s.remove("older")
		} else {
			s.edit("older", toPorts(80))
		}
		s.edit("younger", toPorts(8080, 443))
		s.join(onPorts("newcomer", 443), 30)
		s.pass(5, time.Minute)
		same(t, "younger on e2", s.on("e2", "younger"), "8080")
		same(t, "older on e2", s.on("e2", "older"), map[bool]string{false: "80", true: ""}[deleted])
		const why = `edge "e1" has not let go of it for "default/older" yet: wait, or delete the Edge if its machine is gone`
		for _, c := range []*v1.Service{s.service("younger"), s.service("newcomer")} {
			if m := c.Status.Conditions; !slices.ContainsFunc(m, func(c metav1.Condition) bool { return strings.Contains(c.Message, why) }) {
				t.Errorf("%s says %+v, want which edge it waits for", c.Name, m)
			}
		}
		if !deleted {
			s.edit("older", toPorts(80, 443))
			s.settle()
			same(t, "older on e2, when it wants the port again", s.on("e2", "older"), "80 443")
			s.edit("older", toPorts(80))
		}
		s.lost["e1"] = false
		s.settle()
		for _, edge := range []string{"e1", "e2"} {
			same(t, "younger on "+edge+", when that is back", s.on(edge, "younger"), "8080 443")
		}
	}
}

// TestPortIsFreeWithTheEdge deletes the Edge of a machine that is gone.
func TestPortIsFreeWithTheEdge(t *testing.T) {
	s := shareOne(t, []string{"e1", "e2"}, onPorts("older", 80), onPorts("younger", 8080))
	s.lost["e1"] = true
	s.pass(1, time.Second)
	s.remove("older")
	s.edit("younger", toPorts(8080, 80))
	s.pass(5, time.Minute)
	same(t, "younger on e2", s.on("e2", "younger"), "8080")
	s.world.Edges = s.world.Edges[1:]
	s.settle()
	same(t, "younger on e2 without e1", s.on("e2", "younger"), "8080 80")
}

// TestOldEdgeAnswersFirst starts anew while the edge is out of reach that has what was
// last wanted, and another comes back that has missed it.
func TestOldEdgeAnswersFirst(t *testing.T) {
	for _, once := range []bool{false, true} {
		older := onPorts("older", 80)
		if once {
			older = onPorts("older", 80, 443) // which it gives up, and the old edge still has it
		}
		s := shareOne(t, []string{"e1", "e2"}, older, ofNamespace("other", onPorts("younger", 8080)))
		s.edit("older", toPorts(80))
		s.lost["e1"] = once
		s.pass(1, time.Second)
		if once {
			s.lost["e1"] = false
			old := s.held["e1"] // comes back with what it had
			s.pass(2, time.Second)
			s.held["e1"] = old
		}
		s.lost["e1"] = true
		s.edit("younger", toPorts(8080, 443))
		s.pass(5, time.Minute)
		s.edit("older", toPorts(80, 443))
		s.pass(5, time.Minute)
		same(t, "younger on e2", s.on("e2", "younger"), "8080 443")

		s.restart()
		s.lost["e1"], s.lost["e2"] = false, true
		s.pass(3, time.Second)
		same(t, "older on e1", s.on("e1", "older"), "80")
		s.lost["e2"] = false
		s.settle()
		for _, edge := range []string{"e1", "e2"} {
			same(t, "younger on "+edge, s.on(edge, "younger"), "8080 443")
			same(t, "older on "+edge, s.on(edge, "older"), "80")
		}
	}
}

// TestNothingNewBeforeEdgesTell starts anew while an edge stays away: nobody gets a
// port that is new to him for a minute, and who is served stays so.
func TestNothingNewBeforeEdgesTell(t *testing.T) {
	s := shareOne(t, []string{"e1", "e2"}, onPorts("older", 80), onPorts("younger", 8080))
	s.restart()
	s.lost["e2"] = true
	s.edit("older", toPorts(80, 443))
	s.join(onPorts("newcomer", 22), 5)
	for range 5 {
		s.pass(1, 10*time.Second)
		same(t, "older on e1", s.on("e1", "older"), "80")
		same(t, "newcomer", says(s.service("newcomer"), ConditionAddressAssigned), "False PoolExhausted")
		if wake := s.decider.decide(s.world).WakeIn; wake <= 0 || wake > unreachableAfter {
			t.Errorf("the next round is in %s, want one when the wait is over", wake)
		}
	}
	s.pass(4, 10*time.Second)
	same(t, "older on e1 after the wait", s.on("e1", "older"), "80 443")
	same(t, "younger on e1 after the wait", s.on("e1", "younger"), "8080")
	same(t, "newcomer on e1 after the wait", s.on("e1", "newcomer"), "22")
}

// TestEditWhileNoManagerRuns adds a neighbour's port to an older Service while no
// manager runs: nothing of that shows at the neighbour, whatever edges know.
func TestEditWhileNoManagerRuns(t *testing.T) {
	for _, stateless := range []bool{false, true} {
		s := shareOne(t, []string{"e1"}, onPorts("older", 80), ofNamespace("other", onPorts("younger", 443)))
		s.edit("older", toPorts(80, 443))
		s.restart()
		s.lost["e1"] = true
		if stateless {
			s.held["e1"] = EdgeState{Name: "e1", Connected: true, Known: true, Info: s.held["e1"].Info, Status: lb.Status{Cursor: "1"}}
		}
		s.events = nil
		for range 5 {
			s.pass(1, time.Second)
			same(t, "status of the younger", told(s.service("younger")), "192.0.2.7 Proxy 443/TCP")
		}
		s.lost["e1"] = false
		s.settle()
		same(t, "status of the younger", told(s.service("younger")), "192.0.2.7 Proxy 443/TCP")
		same(t, "younger", s.on("e1", "younger"), "443")
		same(t, "status of the older", told(s.service("older")), "192.0.2.7 Proxy 80/TCP 443/TCP=eclusa.io/PortInUse")
		for _, e := range s.events {
			if strings.HasPrefix(e, "younger ") {
				t.Errorf("an Event tells of the neighbour: %s", e)
			}
		}
	}
}

// TestStatusOfOlderVersions starts anew with statuses that list no ports, since none
// was not served.
func TestStatusOfOlderVersions(t *testing.T) {
	s := shareOne(t, []string{"e1"}, onPorts("older", 80), onPorts("younger", 443))
	for _, name := range []string{"older", "younger"} {
		s.edit(name, func(svc *v1.Service) { svc.Status.LoadBalancer.Ingress[0].Ports = nil })
	}
	s.restart()
	s.lost["e1"] = true
	s.pass(2, time.Second)
	s.lost["e1"] = false
	s.settle()
	same(t, "older", s.on("e1", "older"), "80")
	same(t, "younger", s.on("e1", "younger"), "443")
	same(t, "status of the younger", told(s.service("younger")), "192.0.2.7 Proxy 443/TCP")
}

// TestRefusedKeepsItsPorts edits a Service into one that cannot be served, and starts
// anew: nobody gets the port that edges go on with, however old he is.
func TestRefusedKeepsItsPorts(t *testing.T) {
	for name, refuse := range map[string]func(*v1.Service){
		"the same port": unservable,
		"another port": func(svc *v1.Service) {
			before := svc.Spec.Ports[0].NodePort
			toPorts(8443)(svc)
			svc.Spec.Ports[0].NodePort = before
			unservable(svc)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := shareOne(t, []string{"e1", "e2"}, onPorts("older", 80), ofNamespace("other", onPorts("refused", 443)))
			s.edit("refused", refuse)
			s.settle()
			same(t, "programmed", says(s.service("refused"), ConditionProgrammed), "False NotServable")
			s.join(onPorts("newcomer", 443), 5)
			for _, lost := range []bool{false, true, false} {
				s.restart()
				s.lost["e1"] = lost
				s.edit("older", toPorts(80, 443))
				s.pass(12, 10*time.Second)
				s.settle()
				same(t, "status of the older", told(s.service("older")), "192.0.2.7 Proxy 80/TCP 443/TCP=eclusa.io/PortInUse")
				same(t, "status of the refused", told(s.service("refused")), "192.0.2.7 Proxy 443/TCP")
				same(t, "newcomer", says(s.service("newcomer"), ConditionAddressAssigned), "False PoolExhausted")
				for _, edge := range []string{"e1", "e2"} {
					same(t, "refused on "+edge, s.on(edge, "refused"), "443")
					same(t, "older on "+edge, s.on(edge, "older"), "80")
				}
			}
			s.join(onPorts("other", 8443), 40) // what it asks for and is not given is anybody's
			s.settle()
			same(t, "other", says(s.service("other"), ConditionAddressAssigned), "True Assigned")
		})
	}
}

// TestRefusedRemembersWhatItLacks edits a Service that goes without a port into one
// that cannot be served, and starts anew.
func TestRefusedRemembersWhatItLacks(t *testing.T) {
	s := shareOne(t, []string{"e1"}, onPorts("older", 80), onPorts("younger", 443))
	s.edit("older", toPorts(80, 443))
	s.settle()
	s.edit("older", unservable)
	for range 3 {
		s.settle()
		same(t, "status", told(s.service("older")), "192.0.2.7 Proxy 80/TCP 443/TCP=eclusa.io/PortInUse")
		same(t, "older", s.on("e1", "older"), "80")
		same(t, "younger", s.on("e1", "younger"), "443")
		s.restart()
	}
}

// TestNewbornIsNotStarved proposes an address to a Service that joins another, which
// comes to want its port before that is recorded.
func TestNewbornIsNotStarved(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		byKey := func(svc *v1.Service) *v1.Service { annotated(AnnotationSharingKey, "k")(svc); return svc }
		s := sharing(t, "ByKey", "192.0.2.0/29", []string{"e1"}, byKey(onPorts("a", 80)))
		s.join(byKey(onPorts("b", 443)), 20)
		d := s.decider.decide(s.world)
		if restarted { // and it was recorded
			for target, w := range d.Writes {
				s.write(target, w)
			}
			s.restart()
		}
		s.edit("a", toPorts(80, 443))
		s.settle()
		same(t, "b is served", s.on("e1", "b"), "443")
		same(t, "b", says(s.service("b"), ConditionProgrammed), "True Programmed")
	}
}

// TestClashOnOneFamily lets a Service lack a port on one of its two addresses: it goes
// without it on both, and keeps it from nobody on the other.
func TestClashOnOneFamily(t *testing.T) {
	s := newSimulation(t)
	dual := onPorts("dual", 80)
	dual.Spec.IPFamilies = []v1.IPFamily{v1.IPv4Protocol, v1.IPv6Protocol}
	dual.Spec.IPFamilyPolicy = ptr.To(v1.IPFamilyPolicyRequireDualStack)
	six := onPorts("six", 443)
	six.Spec.IPFamilies = []v1.IPFamily{v1.IPv6Protocol}
	p, e, n := testPool("public", "192.0.2.7", "2001:db8::7"), testEdge("e1"), testNode("n1", "10.0.0.1")
	p.Spec.Sharing = "Always"
	s.stamp(p, 0)
	s.stamp(e, 0)
	s.stamp(n, 0)
	s.world.Pools, s.world.Edges, s.world.Nodes = append(s.world.Pools, p), append(s.world.Edges, e), append(s.world.Nodes, n)
	s.able = []lb.Capability{lb.CapFamilyTranslation}
	s.join(onPorts("four", 443), 10)
	s.join(dual, 5)
	s.settle()
	s.edit("dual", toPorts(80, 443))
	s.settle()
	s.join(six, 30)
	s.settle()
	same(t, "dual", s.on("e1", "dual"), "80")
	same(t, "four", s.on("e1", "four"), "443")
	same(t, "six", s.on("e1", "six"), "443")
}

// TestOwnerInQuarantine frees an address that several shared: of all managers the same
// one may have it back at once.
func TestOwnerInQuarantine(t *testing.T) {
	for range 20 {
		s := shareOne(t, []string{"e1"}, onPorts("b", 80), onPorts("a", 81), onPorts("c", 82))
		s.lost["e1"] = true
		s.world.Services = nil
		s.pass(1, time.Second)
		same(t, "owner", s.decider.quarantine.addrs[netip.MustParseAddr("192.0.2.7")].uid, "uid-a")
		s.restart() // now the edge tells
		s.world.Pools[0].Status.Quarantined = nil
		s.lost["e1"] = false
		s.world.Fleet = map[string]EdgeState{"e1": s.held["e1"]}
		s.decider.decide(s.world)
		same(t, "owner by the edge", s.decider.quarantine.addrs[netip.MustParseAddr("192.0.2.7")].uid, "uid-a")
	}
}

// A Service that moves away takes no port with it, for as long as it takes to write
// where it goes, that it did not have where it was.
func TestNoNewPortOnTheWayOut(t *testing.T) {
	younger := onPorts("younger", 443)
	annotated(AnnotationAddresses, "192.0.2.7")(younger)
	s := sharing(t, "Always", "192.0.2.7-192.0.2.8", []string{"e"}, onPorts("older", 80), younger)
	s.pass(3, time.Minute)
	if l := s.wanted["e"].Config.LoadBalancers["uid-younger"]; len(l.Addresses) != 1 || l.Addresses[0].String() != "192.0.2.7" {
		t.Fatalf("the edge is told %+v of the younger; want it beside the older", l)
	}
	s.edit("older", func(svc *v1.Service) {
		toPorts(80, 443)(svc)
		annotated(AnnotationAddresses, "192.0.2.8")(svc)
	})
	s.round()
	l := s.wanted["e"].Config.LoadBalancers["uid-older"]
	if slices.Contains(l.Addresses, netip.MustParseAddr("192.0.2.7")) && len(l.Listeners) != 1 {
		t.Errorf("on the address that it leaves, the edge is told %+v; want port 80 only", l.Listeners)
	}
	s.settle()
	if got := told(s.service("older")); !strings.HasPrefix(got, "192.0.2.8") {
		t.Errorf("the status says %q; want the address it asked for", got)
	}
}

// TestPortWithoutNodePortIsNoProof lets an older Service get a node port for a port
// that a younger one is served on, while no edge tells whose it is.
func TestPortWithoutNodePortIsNoProof(t *testing.T) {
	older := onPorts("older", 80, 53)
	older.Spec.Ports[1].NodePort = 0
	s := shareOne(t, []string{"e"}, older, ofNamespace("other", onPorts("younger", 53)))
	same(t, "ports of the older one", s.on("e", "older"), "80")
	same(t, "ports of the younger one", s.on("e", "younger"), "53")
	s.lost["e"] = true
	s.restart()
	s.edit("older", toPorts(80, 53))
	s.pass(3, 40*time.Second)
	same(t, "status of the older one", told(s.service("older")), "192.0.2.7 Proxy 80/TCP 53/TCP=eclusa.io/PortInUse")
	same(t, "status of the younger one", told(s.service("younger")), "192.0.2.7 Proxy 53/TCP")
	clear(s.lost)
	s.settle()
	same(t, "ports of the older one in the end", s.on("e", "older"), "80")
	same(t, "ports of the younger one in the end", s.on("e", "younger"), "53")
}
