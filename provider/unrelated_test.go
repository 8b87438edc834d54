package provider

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/eclusa-lb/eclusa/lb"
)

// toldOf is what every edge is told of every load balancer, as it is sent.
type toldOf map[string]map[lb.UID]string

// sent returns what edges are told of load balancers. What a node event may change
// is left out if nodes says so.
func (s *simulation) sent(nodes bool) toldOf {
	s.t.Helper()
	out := toldOf{}
	for name, w := range s.wanted {
		out[name] = map[lb.UID]string{}
		for uid, l := range w.Config.LoadBalancers {
			if nodes {
				l.Members, l.MemberFamilies = nil, nil
			}
			data, err := json.Marshal(l)
			if err != nil {
				s.t.Fatal(err)
			}
			out[name][uid] = string(data)
		}
	}
	return out
}

// checkUnrelated lets something happen to one Service or node, and compares what
// edges are told of all others.
func (s *simulation) checkUnrelated(r *rand.Rand) {
	s.t.Helper()
	pick := func(choices ...string) string { return choices[r.IntN(len(choices))] }
	ofNode := r.IntN(3) == 0
	before := s.sent(ofNode)
	related := map[lb.UID]bool{}
	what := "a node event"
	if ofNode {
		s.happenToNode(r, pick)
	} else if len(s.world.Services) > 0 {
		i := r.IntN(len(s.world.Services))
		related = s.sharing(uidOf(s.world.Services[i]))
		what = "a change of " + s.world.Services[i].Name
		s.happenToService(i, r, pick)
	}
	s.settle()
	after := s.sent(ofNode)
	for edge, all := range before {
		for uid, was := range all {
			if is := after[edge][uid]; !related[uid] && is != was {
				s.t.Errorf("%s changed what edge %s is told of %s:\nbefore %s\nafter  %s", what, edge, uid, was, is)
			}
		}
	}
}

// sharing returns the Service and those that share an address with it.
func (s *simulation) sharing(uid lb.UID) map[lb.UID]bool {
	related := map[lb.UID]bool{uid: true}
	for _, w := range s.wanted {
		for other, l := range w.Config.LoadBalancers {
			for _, a := range w.Config.LoadBalancers[uid].Addresses {
				related[other] = related[other] || slices.Contains(l.Addresses, a)
			}
		}
	}
	return related
}

func (s *simulation) happenToService(i int, r *rand.Rand, pick func(...string) string) {
	if r.IntN(4) == 0 {
		s.world.Services = slices.Delete(slices.Clone(s.world.Services), i, i+1)
		return
	}
	svc := s.world.Services[i].DeepCopy()
	switch r.IntN(4) {
	case 0:
		svc.Spec.Ports = append(svc.Spec.Ports, v1.ServicePort{Protocol: v1.Protocol(pick("TCP", "UDP")), Port: int32(1 + r.IntN(80)), NodePort: int32(r.IntN(2) * 30500)})
	case 1:
		svc.Spec.Type = v1.ServiceType(pick("ClusterIP", "NodePort", "LoadBalancer"))
	default:
		randomAnnotation(svc, pick)
	}
	s.stamp(svc, i)
	s.world.Services = slices.Clone(s.world.Services)
	s.world.Services[i] = svc
}

func (s *simulation) happenToNode(r *rand.Rand, pick func(...string) string) {
	s.world.Nodes = slices.Clone(s.world.Nodes)
	n := randomNode(r.IntN(6), r, pick)
	s.stamp(n, 50)
	i := slices.IndexFunc(s.world.Nodes, func(o *v1.Node) bool { return o.Name == n.Name })
	switch {
	case i < 0:
		s.world.Nodes = append(s.world.Nodes, n)
	case r.IntN(2) == 0:
		s.world.Nodes = slices.Delete(s.world.Nodes, i, i+1)
	default:
		s.world.Nodes[i] = n
	}
}

// TestUnrelatedSharing changes ports of an older Service on an address that
// everybody shares to those of a younger one, which keeps them.
func TestUnrelatedSharing(t *testing.T) {
	s := newSimulation(t)
	p, e := testPool("public", "192.0.2.7"), testEdge("e1")
	p.Spec.Sharing = "Always"
	s.world.Pools, s.world.Edges = append(s.world.Pools, p), append(s.world.Edges, e)
	s.world.Nodes = append(s.world.Nodes, testNode("n1", "10.0.0.1"))
	older := testService("older", 30080)
	younger := testService("younger", 30443, func(svc *v1.Service) { svc.Namespace, svc.Spec.Ports[0].Port = "other", 443 })
	s.world.Services = append(s.world.Services, older, younger)
	for i, o := range []runtime.Object{p, e, s.world.Nodes[0], older, younger} {
		s.stamp(accessor(o), i)
	}
	younger.CreationTimestamp.Time = older.CreationTimestamp.Add(1e9)
	s.settle()
	before := s.sent(false)["e1"]["uid-younger"]
	if before == "" {
		t.Fatalf("both share the address: %v", s.sent(false))
	}
	grab := s.world.Services[0].DeepCopy()
	grab.Spec.Ports = append(grab.Spec.Ports, v1.ServicePort{Name: "tls", Protocol: v1.ProtocolTCP, Port: 443, NodePort: 30081})
	s.stamp(grab, 0)
	s.world.Services[0] = grab
	for range 2 {
		s.settle()
		same(t, "the younger one", s.sent(false)["e1"]["uid-younger"], before)
		same(t, "listeners of the older one", len(s.wanted["e1"].Config.LoadBalancers["uid-older"].Listeners), 1)
		same(t, "programmed", says(s.world.Services[0], ConditionProgrammed), "True PortsNotServed")
		same(t, "status", told(s.world.Services[0]), "192.0.2.7 Proxy 80/TCP 443/TCP=eclusa.io/PortInUse")
		same(t, "message", conditionOf(s.world.Services[0], ConditionProgrammed).Message,
			`port 443/tcp is not served: "other/younger" has it on 192.0.2.7, which both share: use another port, or ask for another address`)
		s.restart()
	}
	s.world.Services = s.world.Services[:1]
	s.settle()
	same(t, "when the other is gone", told(s.world.Services[0]), "192.0.2.7 Proxy 80/TCP 443/TCP")
	same(t, "listeners then", len(s.wanted["e1"].Config.LoadBalancers["uid-older"].Listeners), 2)
}

// TestUnrelatedSharingSurvivesRestart lets the younger of two Services have no port
// that is not the older one's, and eclusa start anew before it has heard of any edge.
// No Service gets another address, and none a port that another has.
func TestUnrelatedSharingSurvivesRestart(t *testing.T) {
	s := newSimulation(t)
	p, e := testPool("public", "192.0.2.7"), testEdge("e1")
	p.Spec.Sharing = "Always"
	s.world.Pools, s.world.Edges = append(s.world.Pools, p), append(s.world.Edges, e)
	s.world.Nodes = append(s.world.Nodes, testNode("n1", "10.0.0.1"))
	older := testService("older", 30443, func(svc *v1.Service) { svc.Spec.Ports[0].Port = 443 })
	younger := testService("younger", 30080)
	s.world.Services = append(s.world.Services, older, younger)
	for i, o := range []runtime.Object{p, e, s.world.Nodes[0], older, younger} {
		s.stamp(accessor(o), i)
	}
	younger.CreationTimestamp.Time = older.CreationTimestamp.Add(1e9)
	s.settle()
	before := s.sent(false)["e1"]["uid-older"]
	edited := s.world.Services[1].DeepCopy()
	edited.Spec.Ports[0].Port = 443
	s.stamp(edited, 1000)
	s.world.Services[1] = edited
	for range 3 {
		s.settle()
		same(t, "record", s.world.Services[1].Annotations[string(AnnotationAssignedAddresses)], "192.0.2.7")
		same(t, "status", told(s.world.Services[1]), "192.0.2.7 Proxy 443/TCP=eclusa.io/PortInUse")
		same(t, "status of the older one", told(s.world.Services[0]), "192.0.2.7 Proxy 443/TCP")
		same(t, "the older one", s.sent(false)["e1"]["uid-older"], before)
		s.restart()
	}
}

// TestUnrelatedRestartBeforeEdgesTell starts eclusa anew while no edge is reached: a
// port that the older Service came to want stays the younger one's.
func TestUnrelatedRestartBeforeEdgesTell(t *testing.T) {
	s := newSimulation(t)
	p, e := testPool("public", "192.0.2.7-192.0.2.8"), testEdge("e1")
	p.Spec.Sharing = "Always"
	s.world.Pools, s.world.Edges = append(s.world.Pools, p), append(s.world.Edges, e)
	s.world.Nodes = append(s.world.Nodes, testNode("n1", "10.0.0.1"))
	older := testService("older", 30080, annotated(AnnotationAddresses, "192.0.2.7"))
	younger := testService("younger", 30443, annotated(AnnotationAddresses, "192.0.2.7"), func(svc *v1.Service) { svc.Spec.Ports[0].Port = 443 })
	s.world.Services = append(s.world.Services, older, younger)
	for i, o := range []runtime.Object{p, e, s.world.Nodes[0], older, younger} {
		s.stamp(accessor(o), i)
	}
	younger.CreationTimestamp.Time = older.CreationTimestamp.Add(1e9)
	s.settle()
	grab := s.world.Services[0].DeepCopy()
	grab.Spec.Ports = append(grab.Spec.Ports, v1.ServicePort{Name: "tls", Protocol: v1.ProtocolTCP, Port: 443, NodePort: 30081})
	s.stamp(grab, 1000)
	s.world.Services[0] = grab
	s.settle()
	s.restart()
	for range 3 {
		d := s.decider.decide(s.world)
		for target, w := range d.Writes {
			s.write(target, w)
		}
		same(t, "listeners of the older one", len(d.Wanted["e1"].Config.LoadBalancers["uid-older"].Listeners), 1)
		same(t, "listeners of the younger one", len(d.Wanted["e1"].Config.LoadBalancers["uid-younger"].Listeners), 1)
		same(t, "status of the older one", told(s.world.Services[0]), "192.0.2.7 Proxy 80/TCP 443/TCP=eclusa.io/PortInUse")
		same(t, "status of the younger one", told(s.world.Services[1]), "192.0.2.7 Proxy 443/TCP")
	}
}

// TestUnrelatedSharingKeyRemoved takes the sharing key from the older of two Services:
// nothing happens to the younger one, also when eclusa starts anew.
func TestUnrelatedSharingKeyRemoved(t *testing.T) {
	s := newSimulation(t)
	p, e := testPool("public", "192.0.2.7-192.0.2.8"), testEdge("e1")
	s.world.Pools, s.world.Edges = append(s.world.Pools, p), append(s.world.Edges, e)
	s.world.Nodes = append(s.world.Nodes, testNode("n1", "10.0.0.1"))
	older := testService("older", 30080, annotated(AnnotationSharingKey, "k"))
	younger := testService("younger", 30443, annotated(AnnotationSharingKey, "k"), func(svc *v1.Service) { svc.Spec.Ports[0].Port = 443 })
	s.world.Services = append(s.world.Services, older, younger)
	for i, o := range []runtime.Object{p, e, s.world.Nodes[0], older, younger} {
		s.stamp(accessor(o), i)
	}
	younger.CreationTimestamp.Time = older.CreationTimestamp.Add(1e9)
	s.settle()
	before := s.sent(false)["e1"]["uid-younger"]
	same(t, "status of the younger one", told(s.world.Services[1]), "192.0.2.7 Proxy 443/TCP")
	edited := s.world.Services[0].DeepCopy()
	delete(edited.Annotations, string(AnnotationSharingKey))
	s.stamp(edited, 1000)
	s.world.Services[0] = edited
	for range 3 {
		s.settle()
		same(t, "status of the older one", told(s.world.Services[0]), "192.0.2.7 Proxy 80/TCP")
		same(t, "status of the younger one", told(s.world.Services[1]), "192.0.2.7 Proxy 443/TCP")
		same(t, "the younger one", s.sent(false)["e1"]["uid-younger"], before)
		s.restart()
	}
}
