package provider

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lb"
)

// scene is a pool of eight IPv4 and some IPv6 addresses, a node and edges that
// translate families, with these Services, which are served.
func scene(t *testing.T, edges []string, services ...*v1.Service) *simulation {
	t.Helper()
	s := newSimulation(t)
	s.able = []lb.Capability{lb.CapFamilyTranslation}
	s.world.Pools = []*v1alpha1.AddressPool{testPool("public", "192.0.2.0/29", "2001:db8::/124")}
	s.world.Nodes = []*v1.Node{testNode("n1", "10.0.0.1")}
	all := []runtime.Object{s.world.Pools[0], s.world.Nodes[0]}
	for _, name := range edges {
		e := testEdge(name)
		s.world.Edges = append(s.world.Edges, e)
		all = append(all, e)
	}
	for i, o := range all {
		s.stamp(accessor(o), i)
	}
	for _, svc := range services {
		s.create(svc)
	}
	s.settle()
	return s
}

// create adds a Service, a minute younger than the one before.
func (s *simulation) create(svc *v1.Service) {
	s.stamp(svc, 0)
	svc.CreationTimestamp.Time = epoch.Add(time.Duration(len(s.world.Services)-60) * time.Minute)
	s.world.Services = append(slices.Clone(s.world.Services), svc)
}

// editAt changes the Service in its place.
func (s *simulation) editAt(i int, change func(*v1.Service)) {
	svc := s.world.Services[i].DeepCopy()
	change(svc)
	s.stamp(svc, 0)
	s.world.Services = slices.Clone(s.world.Services)
	s.world.Services[i] = svc
}

// servedOn returns what an edge is to serve for a Service.
func (s *simulation) servedOn(edge, service string) string {
	l, ok := s.wanted[edge].Config.LoadBalancers[lb.UID("uid-"+service)]
	if !ok {
		return "nothing"
	}
	return fmt.Sprintf("%s since %s", formatAddresses(l.Addresses), l.ClaimTime.UTC().Format(time.RFC3339))
}

func dualStack(svc *v1.Service) {
	svc.Spec.IPFamilies = []v1.IPFamily{v1.IPv4Protocol, v1.IPv6Protocol}
	svc.Spec.IPFamilyPolicy = ptr.To(v1.IPFamilyPolicyPreferDualStack)
}

func singleStack(svc *v1.Service) {
	svc.Spec.IPFamilies = []v1.IPFamily{v1.IPv4Protocol}
	svc.Spec.IPFamilyPolicy = ptr.To(v1.IPFamilyPolicySingleStack)
}

func badRange(svc *v1.Service) { svc.Spec.LoadBalancerSourceRanges = []string{"nonsense"} }

// TestRecordIsRestored lets the annotations that only eclusa writes be removed, as
// kubectl replace does, or be overwritten: edges go on with the same addresses and
// the same claim, whether or not the annotations can be written again.
func TestRecordIsRestored(t *testing.T) {
	for _, test := range []struct {
		name      string
		addrs, at string
	}{
		{"removed", "", ""},
		{"time removed", "same", ""},
		{"addresses removed", "", "same"},
		{"oldest", "same", "1970-01-01T00:00:00Z"},
		{"in the future", "same", "2099-01-01T00:00:00Z"},
		{"no time", "same", "garbage"},
		{"no addresses", "garbage", "same"},
		{"a free address", "192.0.2.5", "same"},
		{"an address besides", "192.0.2.5,192.0.2.1,2001:db8::1", "same"},
		{"one of two", "192.0.2.1", "same"},
	} {
		for _, restarted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restarted %v", test.name, restarted), func(t *testing.T) {
				s := scene(t, []string{"e1", "e2"}, testService("a", 30080, dualStack))
				before, status := s.servedOn("e1", "a"), told(s.world.Services[0])
				if !strings.HasPrefix(before, "192.0.2.1,2001:db8::1 since 2026-") {
					t.Fatalf("on the edge is %s, want two addresses", before)
				}
				recorded := s.world.Services[0].Annotations
				s.editAt(0, func(svc *v1.Service) {
					svc.Annotations = map[string]string{}
					for name, value := range map[Annotation]string{AnnotationAssignedAddresses: test.addrs, AnnotationAssignedAt: test.at} {
						if value == "same" {
							value = recorded[string(name)]
						}
						if value != "" {
							svc.Annotations[string(name)] = value
						}
					}
				})
				if restarted {
					s.restart()
				}
				s.events = nil
				s.world.Now = s.world.Now.Add(time.Hour)
				for range 3 { // nothing can be written
					s.wanted = s.decider.decide(s.world).Wanted
					s.reach(s.wanted)
				}
				for _, edge := range []string{"e1", "e2"} {
					same(t, edge, s.servedOn(edge, "a"), before)
				}
				s.settle()
				same(t, "e1 in the end", s.servedOn("e1", "a"), before)
				same(t, "annotations", s.world.Services[0].Annotations, recorded)
				same(t, "status", told(s.world.Services[0]), status)
				if n := strings.Count(strings.Join(s.events, "\n"), ReasonAnnotationRestored); n != 1 {
					t.Errorf("events are %q, want one that tells of the annotation", s.events)
				}
			})
		}
	}
}

// TestRecordOfOneNotToldYet loses the record of a Service that no edge has confirmed.
func TestRecordOfOneNotToldYet(t *testing.T) {
	s := scene(t, []string{"e1"})
	s.lost["e1"] = true
	s.create(testService("a", 30080))
	s.settle()
	before := s.servedOn("e1", "a")
	same(t, "status", told(s.world.Services[0]), "")
	s.editAt(0, func(svc *v1.Service) { svc.Annotations = nil })
	s.world.Now = s.world.Now.Add(time.Hour)
	s.wanted = s.decider.decide(s.world).Wanted
	same(t, "on the edge", s.servedOn("e1", "a"), before)
	s.settle()
	same(t, "record", s.world.Services[0].Annotations[string(AnnotationAssignedAddresses)], "192.0.2.1")
}

// TestClaimTimeOfNewAddress gives an old Service a second address, which another
// cluster may have had for long, and takes it away again.
func TestClaimTimeOfNewAddress(t *testing.T) {
	s := scene(t, []string{"e1"}, testService("a", 30080))
	s.world.Now = epoch.Add(10000 * time.Hour)
	s.editAt(0, dualStack)
	s.settle()
	both := s.servedOn("e1", "a")
	same(t, "with the second address", both, "192.0.2.1,2001:db8::1 since "+epoch.Add(10000*time.Hour+10*time.Second).Format(time.RFC3339))
	s.world.Now = epoch.Add(20000 * time.Hour)
	s.editAt(0, singleStack)
	s.settle()
	same(t, "without it", s.servedOn("e1", "a"), strings.Replace(both, ",2001:db8::1", "", 1))
}

// TestUnclearKeepsAddresses edits Services into what is not clear or cannot be
// served, together with other families: they keep what they have and get nothing.
func TestUnclearKeepsAddresses(t *testing.T) {
	for _, test := range []struct {
		name   string
		of     func(*v1.Service)
		change []func(*v1.Service)
	}{
		{"typo beside an address of another family", annotated(AnnotationAddresses, "2001:db8::7"), []func(*v1.Service){annotated(AnnotationAddresses, "2001:db8::7,oops")}},
		{"typo instead of it", annotated(AnnotationAddresses, "2001:db8::7"), []func(*v1.Service){annotated(AnnotationAddresses, "oops")}},
		{"one family less", dualStack, []func(*v1.Service){singleStack, badRange}},
		{"one family more", singleStack, []func(*v1.Service){dualStack, badRange}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := scene(t, []string{"e1"}, testService("a", 30080, test.of))
			before, status := s.servedOn("e1", "a"), told(s.world.Services[0])
			for _, f := range test.change {
				s.editAt(0, f)
			}
			s.settle()
			same(t, "on the edge", s.servedOn("e1", "a"), before)
			same(t, "status", told(s.world.Services[0]), status)
			addrs, _, _ := strings.Cut(before, " ")
			if m := conditionOf(s.world.Services[0], ConditionAddressAssigned).Message; !strings.Contains(m, "the Service keeps "+addrs) {
				t.Errorf("message is %q, want that the Service keeps %s", m, addrs)
			}
			same(t, "granted", formatAddresses(s.decider.granted.grants["uid-a"].addrs), addrs)
			s.restart()
			s.settle()
			same(t, "status after a restart", told(s.world.Services[0]), status)
			same(t, "granted after a restart", formatAddresses(s.decider.granted.grants["uid-a"].addrs), addrs)
		})
	}
}

// TestForgedRecordsLockNothing writes all addresses of a pool into the annotation
// that only eclusa writes, while an edge was not reached since the start: others
// get addresses all the same.
func TestForgedRecordsLockNothing(t *testing.T) {
	var all []string
	for i := range 8 {
		all = append(all, fmt.Sprintf("192.0.2.%d", i), fmt.Sprintf("203.0.113.%d", i))
	}
	for _, test := range []struct {
		name string
		of   func(*v1.Service)
	}{
		{"of another type", func(svc *v1.Service) { svc.Spec.Type = v1.ServiceTypeClusterIP }},
		{"of another class", func(svc *v1.Service) { svc.Spec.LoadBalancerClass = ptr.To("example.com/other") }},
		{"of another load balancer", func(svc *v1.Service) {
			svc.Status.LoadBalancer.Ingress = []v1.LoadBalancerIngress{{IP: "203.0.113.1"}}
		}},
		{"of ours", func(*v1.Service) {}},
		{"of ours, asking for another", annotated(AnnotationAddresses, "192.0.2.7")},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := scene(t, []string{"e1", "e2"}, testService("x", 30080))
			s.restart()
			s.lost["e2"] = true
			for i := range 3 {
				s.create(testService(fmt.Sprintf("thief-%d", i), int32(30081+i), annotated(AnnotationAssignedAddresses, strings.Join(all[2*i:], ",")), test.of))
			}
			for range 3 {
				s.round()
			}
			s.create(testService("victim", 30090))
			for range 10 {
				s.world.Now = s.world.Now.Add(20 * time.Second)
				s.round()
			}
			victim := s.world.Services[4]
			same(t, "victim", says(victim, ConditionAddressAssigned), "True Assigned")
			for a := range s.decider.quarantine.addrs {
				if poolOf([]pool{mustReadPool(t, s.world.Pools[0])}, a) == nil {
					t.Errorf("%s is in quarantine and of no pool", a)
				}
			}
			s.lost["e2"] = false
			s.settle()
			same(t, "in quarantine in the end", len(s.decider.quarantine.addrs), 0)
		})
	}
}
