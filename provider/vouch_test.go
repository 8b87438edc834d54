package provider

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
)

// TestForgedRecordIsIgnored lets the user of an older Service write the address
// of a younger one into the annotation that only eclusa writes, while eclusa
// runs and after it was started anew.
func TestForgedRecordIsIgnored(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		s := crowd(t, 2, 2)
		s.settle()
		thief, victim := s.world.Services[0], s.world.Services[1]
		address := victim.Annotations[string(AnnotationAssignedAddresses)]
		own := thief.Annotations[string(AnnotationAssignedAddresses)]
		if address == "" || own == "" || address == own {
			t.Fatalf("addresses %q and %q, want two", own, address)
		}
		thief = thief.DeepCopy()
		thief.Annotations[string(AnnotationAssignedAddresses)] = address
		thief.CreationTimestamp = metav1.NewTime(epoch.Add(-time.Hour))
		s.stamp(thief, 1000)
		s.world.Services[0] = thief
		if restarted {
			s.decider = newDecider()
		}
		s.settle()
		for i, want := range []string{own, address} {
			svc := s.world.Services[i]
			if got := svc.Annotations[string(AnnotationAssignedAddresses)]; got != want {
				t.Errorf("restarted %v: %s records %q, want %q as before", restarted, svc.Name, got, want)
			}
			told, _ := ingressAddresses(svc)
			if len(told) != 1 || told[0].String() != want {
				t.Errorf("restarted %v: %s tells %v, want %s as before", restarted, svc.Name, told, want)
			}
		}
	}
}

// TestForgedRecordTakesNoSharedPort lets the user of an older Service write the
// address of a younger one there that has the same port, where both may share.
func TestForgedRecordTakesNoSharedPort(t *testing.T) {
	for _, by := range []string{"Always", "ByKey"} {
		for _, restarted := range []bool{false, true} {
			s := newSimulation(t)
			p, e := testPool("public", "192.0.2.7-192.0.2.8"), testEdge("e1")
			p.Spec.Sharing = v1alpha1.Sharing(by)
			s.world.Pools, s.world.Edges = append(s.world.Pools, p), append(s.world.Edges, e)
			s.world.Nodes = append(s.world.Nodes, testNode("n1", "10.0.0.1"))
			https := func(svc *v1.Service) {
				svc.Spec.Ports[0].Port = 443
				if by == "ByKey" {
					annotated(AnnotationSharingKey, "k")(svc)
				}
			}
			thief, victim := testService("thief", 30080, https), testService("victim", 30443, https)
			if by == "Always" {
				victim.Namespace = "prod"
			}
			s.world.Services = append(s.world.Services, thief, victim)
			for i, o := range []runtime.Object{p, e, s.world.Nodes[0], thief, victim} {
				s.stamp(accessor(o), i)
			}
			victim.CreationTimestamp.Time = thief.CreationTimestamp.Add(time.Second)
			s.settle()
			own, address := s.world.Services[0].Annotations[string(AnnotationAssignedAddresses)], s.world.Services[1].Annotations[string(AnnotationAssignedAddresses)]
			if own == "" || address == "" || own == address {
				t.Fatalf("%s: addresses %q and %q, want two", by, own, address)
			}
			before := s.sent(false)["e1"]
			forged := s.world.Services[0].DeepCopy()
			forged.Annotations[string(AnnotationAssignedAddresses)] = address
			s.stamp(forged, 1000)
			s.world.Services[0] = forged
			if restarted {
				s.restart()
			}
			for range 8 {
				s.round()
				same(t, fmt.Sprintf("%s, restarted %v: victim on the edge", by, restarted), s.sent(false)["e1"]["uid-victim"], before["uid-victim"])
				if l := s.wanted["e1"].Config.LoadBalancers["uid-thief"]; slices.Contains(l.Addresses, netip.MustParseAddr(address)) {
					t.Errorf("%s, restarted %v: the edge is to serve %s for the thief as well", by, restarted, address)
				}
			}
			s.settle()
			for i, want := range []string{own, address} {
				svc := s.world.Services[i]
				same(t, fmt.Sprintf("%s, restarted %v: record of %s", by, restarted, svc.Name), svc.Annotations[string(AnnotationAssignedAddresses)], want)
				same(t, fmt.Sprintf("%s, restarted %v: status of %s", by, restarted, svc.Name), told(svc), want+" Proxy 443/TCP")
			}
		}
	}
}

// TestRecordSurvivesRestartBeforeItIsTold keeps an address that was recorded and
// not yet told when eclusa was started anew.
func TestRecordSurvivesRestartBeforeItIsTold(t *testing.T) {
	s := crowd(t, 3, 2)
	s.settle()
	svc := s.world.Services[2].DeepCopy()
	want := recordedAddresses(svc)
	svc.Status.LoadBalancer.Ingress = nil
	s.stamp(svc, 1000)
	s.world.Services[2] = svc
	s.decider = newDecider()
	s.settle()
	if got := recordedAddresses(s.world.Services[2]); !slices.Equal(got, want) {
		t.Errorf("the Service records %v after the restart, want %v as before", got, want)
	}
}
