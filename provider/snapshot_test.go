package provider

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/report"
)

// small makes a settled simulation of a few Services on two edges.
func small(t *testing.T, change ...func(*simulation)) *simulation {
	s := crowd(t, 3, 3)
	s.world.Pools[0].Spec.Addresses = []v1alpha1.AddressRange{"192.0.2.1-192.0.2.4"}
	e2 := testEdge("e2")
	s.stamp(e2, 1)
	s.world.Edges = append(s.world.Edges, e2)
	for _, f := range change {
		f(s)
	}
	s.settle()
	return s
}

// raw makes a request's object.
func raw(t *testing.T, kind, version string, o any) json.RawMessage {
	t.Helper()
	data, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	m["kind"], m["apiVersion"] = kind, version
	if data, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	return data
}

func rawService(t *testing.T, svc *v1.Service) json.RawMessage { return raw(t, "Service", "v1", svc) }

// TestSnapshotChangesNothing looks at a snapshot in every way and finds that the
// decider goes on as if nobody had looked.
func TestSnapshotChangesNothing(t *testing.T) {
	s := small(t)
	d := s.decider.decide(s.world)
	snapshot := s.decider.snapshot(s.world)
	before := snapshot.Wanted()
	for name, w := range d.Wanted {
		if !reflect.DeepEqual(before[name], w) {
			t.Errorf("edge %s: the snapshot wants revision %d, the decider %d", name, before[name].Config.Revision, w.Config.Revision)
		}
	}
	snapshot.Status("", true)
	if _, err := snapshot.Explain("default", "s-00001"); err != nil {
		t.Error(err)
	}
	svc := testService("new", 30999)
	if _, err := snapshot.Plan(t.Context(), report.PlanRequest{Objects: []json.RawMessage{rawService(t, svc)}, Drain: &report.Drain{Node: "n001"}}); err != nil {
		t.Error(err)
	}
	again := s.decider.decide(s.world)
	if len(again.Writes) > 0 || len(again.Notes) > 0 {
		t.Errorf("after looking there are writes %v and notes %v", again.Writes, again.Notes)
	}
	if diff := cmp.Diff(d.Wanted, again.Wanted, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("after looking edges are to do something else:\n%s", diff)
	}
}

func TestStatusSaysWhatIsWrong(t *testing.T) {
	s := small(t, func(s *simulation) {
		s.sick["n001"] = healthcheck.Down
		for i := range 2 { // one more than there are addresses
			svc := testService(fmt.Sprintf("t-%d", i), int32(20000+i))
			svc.CreationTimestamp = metav1.NewTime(epoch.Add(time.Hour * time.Duration(i+1)))
			s.stamp(svc, i)
			s.world.Services = append(s.world.Services, svc)
		}
	})
	st := s.world.Fleet["e2"]
	st.Connected, st.Problem, st.Since = false, "connection refused", s.world.Now.Add(-time.Minute)
	s.world.Fleet["e2"] = st
	s.decider.decide(s.world)
	status := s.decider.snapshot(s.world).Status("", false)
	same(t, "level", status.Level(), report.Problem)
	same(t, "counts", status.ServiceCounts, map[report.Level]int{report.OK: 4, report.Problem: 1})
	if len(status.Services) != 1 || status.Services[0].Name != "t-1" {
		t.Fatalf("Services with findings are %+v, want t-1", status.Services)
	}
	f := status.Services[0].Findings[0]
	if f.Reason != "PoolExhausted" || f.Do == "" || f.Since == nil {
		t.Errorf("finding is %+v, want that the pool is exhausted, since when, and what to do", f)
	}
	same(t, "nodes", fmt.Sprint(len(status.Nodes), status.Nodes[0].Name, status.Nodes[0].Findings[0].What), "1n001down in check http:10256/healthz for edges e1, e2")
	if e := status.Edges[1]; e.Name != "e2" || e.Reached || e.Findings[0].Reason != ReasonUnreachable || e.Findings[0].Since == nil {
		t.Errorf("edge e2 is %+v, want unreachable and since when", e)
	}
	if p := status.Pools[0]; p.Used != 4 || p.Total != 4 || p.Findings[0].Reason != "PoolExhausted" {
		t.Errorf("pool is %+v, want 4 of 4 and a finding", p)
	}
	if all := s.decider.snapshot(s.world).Status("", true); len(all.Services) != 5 || all.Services[0].Name != "t-1" {
		t.Errorf("all Services are %d, want 5 with the problem first", len(all.Services))
	}
	same(t, "other namespace", len(s.decider.snapshot(s.world).Status("kube-system", true).Services), 0)
}

func TestExplain(t *testing.T) {
	s := small(t, func(s *simulation) {
		s.sick["n001"] = healthcheck.Down
		s.world.Services[0].Annotations = map[string]string{string(AnnotationIdleTimeout): "5m", string(AnnotationAlgorithm): "random"}
	})
	e, err := s.decider.snapshot(s.world).Explain("default", "s-00000")
	if err != nil {
		t.Fatal(err)
	}
	if len(e.Addresses) != 1 || !e.Addresses[0].Published || !slices.Equal(e.Addresses[0].Edges, []string{"e1", "e2"}) {
		t.Errorf("addresses are %+v", e.Addresses)
	}
	same(t, "members", len(e.Members), 3)
	same(t, "health", e.Members[1].Health["e1"].State+" "+e.Members[0].Health["e2"].State, "down up")
	limits := map[string]report.Limit{}
	for _, l := range e.Limits {
		limits[l.Name] = l
	}
	same(t, "idle timeout", limits["idle timeout of TCP connections"], report.Limit{Name: "idle timeout of TCP connections", Value: "5m", From: string(AnnotationIdleTimeout)})
	same(t, "algorithm", limits["algorithm"].Value+" "+limits["algorithm"].From, "round-robin default")
	var reasons []string
	for _, f := range e.Findings {
		reasons = append(reasons, f.Reason)
	}
	same(t, "findings", reasons, []string{ReasonAnnotationsIgnored, "NotUp"})

	s.world.Services[1].Spec.Type = v1.ServiceTypeClusterIP
	s.decider.decide(s.world)
	for name, want := range map[string]string{"none": "there is no Service", "s-00001": "is of type ClusterIP"} {
		if _, err := s.decider.snapshot(s.world).Explain("default", name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Explain(%s) returned %v, want %q", name, err, want)
		}
	}
}

// TestPlanComesTrue plans changes at random, then makes them, and compares what
// became of each Service with what the plan had said.
func TestPlanComesTrue(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 17))
		s := small(t)
		svc := testService(fmt.Sprintf("s-%05d", rnd.IntN(5)), int32(10000+rnd.IntN(6)))
		svc.CreationTimestamp = metav1.Time{}
		switch rnd.IntN(6) {
		case 0:
			annotated(AnnotationAddresses, fmt.Sprintf("192.0.2.%d", 1+rnd.IntN(5)))(svc)
		case 1:
			annotated(AnnotationAddressPool, "nowhere")(svc)
		case 2:
			annotated(AnnotationSharingKey, "k")(svc)
		case 3:
			annotated(AnnotationNodeSelector, "role=none")(svc)
		case 4:
			svc.Spec.Type = v1.ServiceTypeClusterIP
		}
		objects := []json.RawMessage{rawService(t, svc)}
		pool := testPool("default", fmt.Sprintf("192.0.2.1-192.0.2.%d", 2+rnd.IntN(4)))
		withPool := rnd.IntN(3) == 0
		if withPool {
			objects = append(objects, raw(t, v1alpha1.AddressPoolKind, v1alpha1.GroupVersion.String(), pool))
		}
		s.decider.decide(s.world)
		plan, err := s.decider.snapshot(s.world).Plan(t.Context(), report.PlanRequest{Objects: objects})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}

		makeTrue(s, svc, withPool, pool)
		s.settle()
		after := s.decider.snapshot(s.world).view()
		compare := func(p report.PlannedService) {
			var want []string
			for _, a := range p.Addresses {
				want = append(want, a.Address)
			}
			var got []string
			if live := after.byName[p.Namespace+"/"+p.Name]; live != nil {
				got = after.aspectOf(live).report().Addresses
			}
			if !slices.Equal(got, want) {
				t.Errorf("seed %d: %s has %v, planned was %v", seed, p.Name, got, want)
			}
		}
		compare(plan.Services[0])
		for _, o := range plan.Others {
			compare(o)
		}
	}
}

// makeTrue does to the simulated cluster what a plan was asked about.
func makeTrue(s *simulation, svc *v1.Service, withPool bool, pool *v1alpha1.AddressPool) {
	if withPool {
		next := s.world.Pools[0].DeepCopy()
		next.Spec.Addresses = pool.Spec.Addresses
		s.version++
		next.ResourceVersion = fmt.Sprint(s.version)
		s.world.Pools = []*v1alpha1.AddressPool{next}
	}
	s.world.Services = slices.Clone(s.world.Services)
	s.version++
	for i, live := range s.world.Services {
		if live.Name != svc.Name {
			continue
		}
		next := live.DeepCopy()
		next.Spec = svc.Spec
		for _, a := range written {
			delete(next.Annotations, string(a))
		}
		for k, v := range svc.Annotations {
			annotated(Annotation(k), v)(next)
		}
		next.ResourceVersion = fmt.Sprint(s.version)
		s.world.Services[i] = next
		return
	}
	svc.CreationTimestamp = metav1.NewTime(s.world.Now)
	svc.UID = types.UID("uid-" + svc.Name)
	s.stamp(svc, 0)
	s.world.Services = append(s.world.Services, svc)
}

func TestPlanRefuses(t *testing.T) {
	s := small(t)
	snapshot := s.decider.snapshot(s.world)
	for _, test := range []struct{ name, object, want string }{
		{"other kind", `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"x"}}`, `objects[0]: Secret x: kind "Secret" of "v1": must be a Service (v1), AddressPool or Edge (eclusa.io/v1alpha1)`},
		{"unknown field", `{"apiVersion":"v1","kind":"Service","metadata":{"name":"x"},"spec":{"portz":[]}}`, `unknown field "portz"`},
		{"no name", `{"apiVersion":"v1","kind":"Service"}`, `objects[0]: metadata.name is missing`},
		{"no object", `17`, `objects[0]: is no Kubernetes object`},
	} {
		_, err := snapshot.Plan(t.Context(), report.PlanRequest{Objects: []json.RawMessage{json.RawMessage(test.object)}})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q in it", test.name, err, test.want)
		}
	}
	if _, err := snapshot.Plan(t.Context(), report.PlanRequest{}); err == nil {
		t.Error("a plan of nothing was made")
	}
	many := report.PlanRequest{Objects: slices.Repeat(report.Objects{rawService(t, testService("x", 1))}, report.MaxObjects+1)}
	if _, err := snapshot.Plan(t.Context(), many); err == nil || !strings.Contains(err.Error(), "objects: there are more than the 500") {
		t.Errorf("too many objects: got %.200v", err)
	}
	twice := rawService(t, testService("x", 1))
	if _, err := snapshot.Plan(t.Context(), report.PlanRequest{Objects: []json.RawMessage{twice, twice}}); err == nil || !strings.Contains(err.Error(), "Service default/x is given twice") {
		t.Errorf("an object given twice: got %v", err)
	}
}

// TestPlanEndsWithItsReader stops in the midst of a request whose reader has
// gone.
func TestPlanEndsWithItsReader(t *testing.T) {
	s := small(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// Read to its end, the objects would be complained about.
	objects := slices.Repeat(report.Objects{json.RawMessage(`{"kind":"Secret","metadata":{"name":"x"}}`)}, 400)
	if _, err := s.decider.snapshot(s.world).Plan(ctx, report.PlanRequest{Objects: objects}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %.200v, want %v", err, context.Canceled)
	}
}

func TestDrainTellsLosses(t *testing.T) {
	s := small(t, func(s *simulation) {
		s.sick["n000"], s.sick["n001"] = healthcheck.Down, healthcheck.Down
		s.world.Pools[0].Spec.EdgeSelector = selector("only", "e1")
		s.world.Edges[0].Labels = map[string]string{"only": "e1"}
	})
	snapshot := s.decider.snapshot(s.world)
	for _, test := range []struct {
		drain           report.Drain
		losses, without int
	}{
		{report.Drain{Edge: "e1"}, 3, 3},
		{report.Drain{Edge: "e2"}, 0, 0},
		{report.Drain{Node: "n000"}, 0, 0}, // is down already
		{report.Drain{Node: "n002"}, 3, 3},
	} {
		p, err := snapshot.Plan(t.Context(), report.PlanRequest{Drain: &test.drain})
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Drain.Losses) != test.losses || len(p.Drain.Without()) != test.without || !p.Drain.HealthKnown {
			t.Errorf("draining %+v costs %+v, want %d losses, %d left without", test.drain, p.Drain, test.losses, test.without)
		}
	}
	for _, d := range []report.Drain{{}, {Edge: "e1", Node: "n000"}, {Edge: "nowhere"}, {Node: "nowhere"}} {
		if _, err := snapshot.Plan(t.Context(), report.PlanRequest{Drain: &d}); err == nil {
			t.Errorf("draining %+v was planned", d)
		}
	}
}

// TestSnapshotWhileRunning asks all the time while a Provider serves changes;
// the race detector listens.
func TestSnapshotWhileRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, testPool("p", "192.0.2.0/24"), testNode("n1", "10.0.0.1"), testNode("n2", "10.0.0.2"))
		c.addEdge("e1", nil)
		c.start(ClassController)
		defer func() { c.stop() }()
		c.settle(time.Second)
		if c.provider.Snapshot() == nil {
			t.Fatal("there is no snapshot")
		}
		stop := make(chan struct{})
		var readers sync.WaitGroup
		for range 2 {
			readers.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(7 * time.Millisecond):
					}
					s := c.provider.Snapshot()
					status := s.Status("", true)
					for _, svc := range status.Services {
						if _, err := s.Explain(svc.Namespace, svc.Name); err != nil {
							t.Error(err)
						}
					}
					if _, err := s.Plan(t.Context(), report.PlanRequest{Drain: &report.Drain{Node: "n1"}, Objects: []json.RawMessage{rawService(t, testService("planned", 31999, ofClass))}}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		for i := range 12 {
			svc := testService(fmt.Sprintf("s%d", i), int32(30000+i), ofClass)
			c.add(svc)
			c.settle(20 * time.Millisecond)
			if i%3 == 0 {
				c.remove(c.service(svc.Name))
			}
			c.settle(30 * time.Millisecond)
		}
		c.settle(2 * time.Second)
		close(stop)
		readers.Wait()
		status := c.provider.Snapshot().Status("", true)
		same(t, "counts", status.ServiceCounts, map[report.Level]int{report.OK: 8})
	})
}

// BenchmarkSnapshot measures what readers cost the reconciler, and what they pay
// themselves.
func BenchmarkSnapshot(b *testing.B) {
	t := &testing.T{}
	s := crowd(t, 5000, 500)
	s.world.Fleet["e1"] = EdgeState{}
	for range 3 {
		d := s.decider.decide(s.world)
		for target, w := range d.Writes {
			s.write(target, w)
		}
		for name, w := range d.Wanted {
			st := EdgeState{Name: name, Connected: true, Known: true, Holds: w.Config, Status: lb.Status{Cursor: "1", Revision: w.Config.Revision, Durable: true, LoadBalancers: map[lb.UID]lb.LoadBalancerStatus{}}}
			for uid := range w.Config.LoadBalancers {
				st.Status.LoadBalancers[uid] = lb.LoadBalancerStatus{Applied: true}
			}
			s.world.Fleet[name] = st
		}
		s.world.Now = s.world.Now.Add(10 * time.Second)
	}
	b.Run("take", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.decider.snapshot(s.world)
		}
	})
	b.Run("status", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.decider.snapshot(s.world).Status("", true)
		}
	})
	many := make(report.Objects, report.MaxObjects)
	for i := range many {
		many[i] = rawService(t, testService(fmt.Sprintf("planned-%d", i), int32(20000+i)))
	}
	b.Run("plan of many", func(b *testing.B) {
		b.ReportAllocs()
		snapshot := s.decider.snapshot(s.world)
		for b.Loop() {
			if _, err := snapshot.Plan(b.Context(), report.PlanRequest{Objects: many}); err != nil {
				b.Fatal(err)
			}
		}
	})
	object := rawService(t, testService("planned", 31999))
	b.Run("plan", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.decider.snapshot(s.world).Plan(b.Context(), report.PlanRequest{Objects: []json.RawMessage{object}}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
