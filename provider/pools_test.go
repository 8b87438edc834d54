package provider

import (
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
)

// TestOverlapTakesNothingAway edits an older pool so that it overlaps a younger
// one: the younger one is reported and gives out nothing more, and what it has
// given out goes on being served.
func TestOverlapTakesNothingAway(t *testing.T) {
	s := crowd(t, 3, 2)
	s.settle()
	served := len(s.wanted["e1"].Config.LoadBalancers)
	if served != 3 {
		t.Fatalf("%d load balancers are served, want 3", served)
	}
	older := testPool("typo", "10.32.0.0/30")
	older.CreationTimestamp = metav1.NewTime(s.world.Pools[0].CreationTimestamp.Add(-1e9))
	s.stamp(older, 500)
	s.world.Pools = append(s.world.Pools, older)
	late := testService("late", 80)
	s.stamp(late, 501)
	late.Spec.Ports[0].NodePort = 32000
	s.world.Services = append(s.world.Services, late)
	s.settle()
	balancers := s.wanted["e1"].Config.LoadBalancers
	for _, svc := range s.world.Services[:3] {
		if _, ok := balancers[uidOf(svc)]; !ok {
			t.Errorf("%s is not served any more, want it served as before", svc.Name)
		}
	}
	for _, p := range s.world.Pools {
		want := p.Name == "typo"
		if got := meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.PoolReady); got != want {
			t.Errorf("pool %s: Ready is %v, want %v: %+v", p.Name, got, want, p.Status.Conditions)
		}
	}
	for _, a := range recordedAddresses(s.world.Services[3]) {
		if poolOf([]pool{mustReadPool(t, older)}, a) == nil {
			t.Errorf("the new Service got %s of the pool that overlaps, want one of the other or none", a)
		}
	}
}

func mustReadPool(t *testing.T, o *v1alpha1.AddressPool) pool {
	t.Helper()
	p, err := readPool(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestClosedPoolSharesNothing has a pool that gives nothing out, since an older one
// has its addresses or since it is about to be deleted, let everybody share them: how
// they are shared is up to the other pool.
func TestClosedPoolSharesNothing(t *testing.T) {
	for _, deleted := range []bool{false, true} {
		s := scene(t, []string{"e1"})
		wrong := testPool("wrong", "192.0.2.0/28")
		wrong.Spec.Sharing = v1alpha1.ShareAlways
		s.stamp(wrong, 0)
		wrong.CreationTimestamp = metav1.NewTime(epoch)
		if deleted {
			wrong.CreationTimestamp = metav1.NewTime(epoch.Add(-24 * time.Hour))
			wrong.DeletionTimestamp = &metav1.Time{Time: epoch}
			wrong.Finalizers = []string{v1alpha1.PoolFinalizer}
		}
		s.world.Pools = append(s.world.Pools, wrong)
		s.create(testService("victim", 30080, annotated(AnnotationAddresses, "192.0.2.1")))
		s.create(testService("thief", 30081, annotated(AnnotationAddresses, "192.0.2.1"), func(svc *v1.Service) {
			svc.Namespace, svc.Spec.Ports[0].Port = "other", 443
		}))
		s.settle()
		same(t, "victim", says(s.world.Services[0], ConditionAddressAssigned), "True Assigned")
		same(t, "thief", says(s.world.Services[1], ConditionAddressAssigned), "False AddressInUse")
		same(t, "thief on the edge", s.servedOn("e1", "thief"), "nothing")
	}
}
