package provider

import (
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
