package provider

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kubetesting "k8s.io/client-go/testing"
	"k8s.io/utils/ptr"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// bubble runs a test with a cluster of two nodes, a pool and an edge in virtual
// time.
func bubble(t *testing.T, test func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, testPool("default", "192.0.2.10-192.0.2.19"), testNode("n1", "10.0.0.1"), testNode("n2", "10.0.0.2"))
		test(t, c, c.addEdge("e1", nil))
	})
}

func TestServiceIsServed(t *testing.T) {
	for name, path := range map[string]struct {
		finalizer string
		change    func(*v1.Service)
	}{
		"stock": {stockFinalizer, func(*v1.Service) {}},
		"class": {Finalizer, ofClass},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
				c.start(StockController, ClassController)
				defer c.stop()
				c.add(testService("web", 30080, path.change))
				c.settle(time.Second)
				svc := c.service("web")
				same(t, "annotation", svc.Annotations[string(AnnotationAssignedAddresses)], "192.0.2.10")
				same(t, "ingress", told(svc), "192.0.2.10 Proxy")
				same(t, "assigned", says(svc, ConditionAddressAssigned), "True Assigned")
				same(t, "programmed", says(svc, ConditionProgrammed), "True Programmed")
				same(t, "reachable", says(svc, ConditionReachable), "Unknown NotMeasured")
				same(t, "finalizers", svc.Finalizers, []string{path.finalizer})
				l := edge.Held().LoadBalancers["uid-web"]
				same(t, "addresses", l.Addresses, addrs("192.0.2.10"))
				same(t, "listeners", l.Listeners, []lb.Listener{{Name: "http", Protocol: lb.TCP, Port: 80, TargetPort: 30080}})
				same(t, "check", l.HealthCheck.ID(), "http:10256/healthz")
				same(t, "nodes", sortedNames(edge.Held().Nodes), []string{"n1", "n2"})
				n := len(slices.DeleteFunc(c.written(), func(s string) bool { return s != "services default/web" }))
				if n > 3 { // one may be the stock controller's finalizer
					t.Errorf("Service was written %d times, want at most 3", n)
				}
				c.settle(time.Minute)
				if more := c.written(); slices.Contains(more, "services default/web") {
					t.Errorf("a minute later there was more to write: %q", more)
				}

				c.remove(svc)
				c.settle(time.Second)
				same(t, "Service", told(c.service("web")), "gone")
				same(t, "load balancers", len(edge.Held().LoadBalancers), 0)
				c.settle(10 * time.Second)
				same(t, "used addresses", c.pool("default").Status.Used, 0)
				same(t, "quarantine", c.pool("default").Status.QuarantinedTotal, 0)
			})
		})
	}
}

// TestRestartKeepsAddresses starts the program anew, with fewer memories than
// before: nothing moves, whatever was created first.
func TestRestartKeepsAddresses(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
		c.start(StockController, ClassController)
		for i := range 5 {
			c.add(testService(fmt.Sprintf("s%d", i), int32(30080+i)))
			c.settle(time.Second)
		}
		c.remove(c.service("s1"))
		c.settle(10 * time.Second)
		before, writes := fmt.Sprint(heldBy(edge)), len(edge.Writes())
		c.stop()
		c.written()

		// An older Service that never had an address must not get one of the others'.
		older := testService("old", 30100)
		older.CreationTimestamp.Time = older.CreationTimestamp.Add(-time.Hour)
		c.add(older)
		edge.Restart()
		c.start(StockController, ClassController)
		c.settle(time.Second)
		held := heldBy(edge)
		same(t, "address of the new Service", held["default/old"], addrs("192.0.2.11"))
		delete(held, "default/old")
		same(t, "addresses after the restart", held, before)
		if n := len(edge.Writes()) - writes; n > 3 {
			t.Errorf("the restart wrote %d configurations, want few", n)
		}
		for _, w := range c.written() {
			if strings.HasPrefix(w, "services default/s") {
				t.Errorf("the restart wrote %s, where nothing has changed", w)
			}
		}
		c.stop()
	})
}

// TestDeletionWithEdgeDown deletes a Service while its edge is down: the Service
// goes at once, its address stays until the edge is back and has let go, also
// over a restart, and then wakes the Service that waits for it.
func TestDeletionWithEdgeDown(t *testing.T) {
	for name, change := range map[string]func(*v1.Service){"stock": func(*v1.Service) {}, "class": ofClass} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
				c.start(StockController, ClassController)
				c.add(testService("web", 30080, change, annotated(AnnotationAddresses, "192.0.2.15")))
				c.settle(time.Second)
				same(t, "ingress", told(c.service("web")), "192.0.2.15 Proxy")
				edge.Down(errors.New("power cut"))
				c.settle(5 * time.Second)
				c.remove(c.service("web"))
				c.settle(2 * time.Second)
				same(t, "Service", told(c.service("web")), "gone")
				q := c.pool("default").Status.Quarantined
				if len(q) != 1 || q[0].Address != "192.0.2.15" || q[0].Service != "default/web" || q[0].UID != "uid-web" {
					t.Fatalf("quarantine is %+v, want 192.0.2.15 of default/web", q)
				}
				for range 2 {
					c.stop()
					c.start(StockController, ClassController)
					if c.service("next") == nil {
						c.add(testService("next", 30081, change, annotated(AnnotationAddresses, "192.0.2.15")))
					}
					c.settle(time.Minute)
					same(t, "assigned", says(c.service("next"), ConditionAddressAssigned), "False AddressQuarantined")
				}
				edge.Down(nil)
				c.settle(20 * time.Second)
				same(t, "ingress", told(c.service("next")), "192.0.2.15 Proxy")
				same(t, "held", heldBy(edge), map[string]any{"default/next": addrs("192.0.2.15")})
				same(t, "quarantine", len(c.pool("default").Status.Quarantined), 0)
				c.stop()
			})
		})
	}
}

// TestEdgeGone sets free what only an edge held whose object is gone.
func TestEdgeGone(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
		c.addEdge("e2", nil)
		c.start(StockController)
		c.add(testService("web", 30080))
		c.settle(time.Second)
		edge.Down(errors.New("power cut"))
		c.settle(5 * time.Second)
		c.remove(c.service("web"))
		c.settle(10 * time.Second)
		same(t, "quarantine", c.pool("default").Status.QuarantinedTotal, 1)
		c.remove(c.edge("e1"))
		c.settle(15 * time.Second)
		same(t, "quarantine", c.pool("default").Status.QuarantinedTotal, 0)
		c.stop()
	})
}

// TestClassAndTypeFlips changes type and class of Services faster than anybody
// can follow: each keeps exactly one owner and its traces are complete.
func TestClassAndTypeFlips(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
		c.start(StockController, ClassController)
		defer c.stop()
		c.add(testService("web", 30080))
		c.settle(time.Second)
		same(t, "finalizers", c.service("web").Finalizers, []string{stockFinalizer})

		flip := func(changes ...func(*v1.Service)) {
			for _, f := range changes {
				svc := c.service("web")
				f(svc)
				c.change(svc)
			}
		}
		clusterIP := func(svc *v1.Service) {
			svc.Spec.Type, svc.Spec.LoadBalancerClass = v1.ServiceTypeClusterIP, nil
			svc.Status.LoadBalancer = v1.LoadBalancerStatus{} // as the API server does
		}
		balanced := func(class *string) func(*v1.Service) {
			return func(svc *v1.Service) {
				svc.Spec.Type, svc.Spec.LoadBalancerClass = v1.ServiceTypeLoadBalancer, class
			}
		}
		flip(clusterIP, balanced(ptr.To(Class)))
		c.settle(5 * time.Second)
		svc := c.service("web")
		same(t, "finalizers", svc.Finalizers, []string{Finalizer})
		same(t, "programmed", says(svc, ConditionProgrammed), "True Programmed")
		same(t, "ingress", told(svc), "192.0.2.10 Proxy")
		same(t, "held", heldBy(edge), map[string]any{"default/web": addrs("192.0.2.10")})

		flip(clusterIP, balanced(nil))
		c.settle(5 * time.Second)
		svc = c.service("web")
		same(t, "finalizers", svc.Finalizers, []string{stockFinalizer})
		same(t, "ingress", told(svc), "192.0.2.10 Proxy")

		flip(clusterIP, balanced(ptr.To("example.com/other")))
		c.settle(5 * time.Second)
		svc = c.service("web")
		same(t, "finalizers", svc.Finalizers, []string{})
		same(t, "annotations", svc.Annotations, map[string]string{})
		same(t, "conditions", len(svc.Status.Conditions), 0)
		same(t, "held", len(edge.Held().LoadBalancers), 0)

		flip(clusterIP)
		c.settle(5 * time.Second)
		same(t, "held", len(edge.Held().LoadBalancers), 0)
	})
}

// TestClassOnly runs without the stock controller: Services without a class are
// let go of, their stock finalizers with them, and others' are left alone.
func TestClassOnly(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
		c.start(StockController, ClassController)
		c.add(testService("web", 30080))
		c.settle(time.Second)
		c.stop()
		others := testService("others", 30081)
		others.Finalizers = []string{stockFinalizer}
		c.add(others)
		c.start(ClassController)
		c.settle(5 * time.Second)
		svc := c.service("web")
		same(t, "finalizers", svc.Finalizers, []string{})
		same(t, "ingress", told(svc), "")
		same(t, "conditions", len(svc.Status.Conditions), 0)
		same(t, "others' finalizers", c.service("others").Finalizers, []string{stockFinalizer})
		same(t, "held", len(edge.Held().LoadBalancers), 0)
		c.stop()
	})
}

// TestConflict lets somebody else write a Service in the moment in which its
// address is recorded.
func TestConflict(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
		refused := 0
		c.refuse = func(p kubetesting.PatchAction) error {
			if p.GetName() != "web" || refused == 3 {
				return nil
			}
			refused++
			return apierrors.NewConflict(schema.GroupResource{Resource: "services"}, "web", errors.New("somebody was faster"))
		}
		c.start(ClassController)
		defer c.stop()
		c.add(testService("web", 30080, ofClass))
		c.settle(500 * time.Millisecond)
		same(t, "load balancers before the address is recorded", len(edge.Held().LoadBalancers), 0)
		c.settle(10 * time.Second)
		same(t, "ingress", told(c.service("web")), "192.0.2.10 Proxy")
	})
}

// TestBlindness lets the informers show nothing, while the API server still has
// everything: nothing is taken away. Then everything is really gone.
func TestBlindness(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
		c.start(StockController, ClassController)
		for i := range 3 {
			c.add(testService(fmt.Sprintf("s%d", i), int32(30080+i)))
		}
		c.settle(10 * time.Second)
		before := edge.Held()
		eyes := c.provider.eyes
		var hidden []runtime.Object
		for _, i := range []interface {
			List() []any
			Delete(any) error
		}{eyes.services.GetStore(), eyes.nodes.GetStore(), eyes.pools.GetStore(), eyes.edges.GetStore(), eyes.slices.GetStore()} {
			for _, o := range i.List() {
				hidden = append(hidden, o.(runtime.Object))
				if err := i.Delete(o); err != nil {
					t.Fatal(err)
				}
			}
		}
		signal(c.provider.kick)
		c.settle(time.Minute)
		if d := compare(before, edge.Held()); !d.empty() {
			t.Errorf("blindness changed %v on the edge", d)
		}
		same(t, "quarantine", c.pool("default").Status.QuarantinedTotal, 0)
		for _, o := range hidden {
			if svc, ok := o.(*v1.Service); ok {
				tracker, gvr := c.place(svc)
				if err := tracker.Delete(gvr, svc.Namespace, svc.Name); err != nil {
					t.Fatal(err)
				}
			}
		}
		c.settle(time.Minute)
		same(t, "load balancers after the Services are really gone", len(edge.Held().LoadBalancers), 0)
		c.stop()
	})
}

// TestPoolsChooseEdges gives each edge only what its pools have.
func TestPoolsChooseEdges(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
		dmz := c.addEdge("dmz", map[string]string{"zone": "dmz"})
		p := testPool("dmz", "198.51.100.0/28")
		p.Spec.AutoAssign = ptr.To(false)
		p.Spec.EdgeSelector = selector("zone", "dmz")
		p.Spec.ServiceSelector = selector("exposed", "yes")
		c.add(p)
		c.start(ClassController)
		defer c.stop()
		c.add(testService("in", 30080, ofClass))
		c.add(testService("out", 30081, ofClass, annotated(AnnotationAddressPool, "dmz"), func(svc *v1.Service) { svc.Labels = map[string]string{"exposed": "yes"} }))
		c.add(testService("not", 30082, ofClass, annotated(AnnotationAddressPool, "dmz")))
		c.settle(5 * time.Second)
		same(t, "edge", heldBy(edge), map[string]any{"default/in": addrs("192.0.2.10")})
		same(t, "dmz", heldBy(dmz), map[string]any{"default/in": addrs("192.0.2.10"), "default/out": addrs("198.51.100.1")})
		same(t, "assigned", says(c.service("not"), ConditionAddressAssigned), "False PoolNotEligible")
	})
}

// TestPoolVanishes lets a pool go by force whose addresses are in use: Services
// keep them and say what is missing, and go on when the pool is back.
func TestPoolVanishes(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
		c.start(ClassController)
		defer c.stop()
		c.add(testPool("other", "198.51.100.0/28"))
		c.add(testService("web", 30080, ofClass))
		c.settle(5 * time.Second)
		p := c.pool("default")
		p.Finalizers = nil
		c.remove(p)
		c.settle(10 * time.Second)
		svc := c.service("web")
		same(t, "assigned", says(svc, ConditionAddressAssigned), "False PoolGone")
		same(t, "annotation", svc.Annotations[string(AnnotationAssignedAddresses)], "192.0.2.10")
		c.add(testPool("default", "192.0.2.10-192.0.2.19"))
		c.settle(10 * time.Second)
		same(t, "assigned", says(c.service("web"), ConditionAddressAssigned), "True Assigned")
		same(t, "held", heldBy(edge), map[string]any{"default/web": addrs("192.0.2.10")})
	})
}

// TestMoves asks for another address than the Service has: it keeps the old one
// until the new one is recorded, and the old one goes into quarantine.
func TestMoves(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
		c.start(ClassController)
		defer c.stop()
		c.add(testService("web", 30080, ofClass))
		c.settle(5 * time.Second)
		svc := c.service("web")
		annotated(AnnotationAddresses, "192.0.2.18")(svc)
		c.change(svc)
		c.settle(10 * time.Second)
		same(t, "ingress", told(c.service("web")), "192.0.2.18 Proxy")
		same(t, "held", heldBy(edge), map[string]any{"default/web": addrs("192.0.2.18")})
		same(t, "quarantine", c.pool("default").Status.QuarantinedTotal, 0)
	})
}

// TestRefusedByEdge tells on the Service what the edge says, and takes it back.
func TestRefusedByEdge(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
		edge.SetLoadBalancer("uid-web", &lb.LoadBalancerStatus{Problems: []lb.Problem{{Type: "address-held", Field: "addresses[0]", Detail: "192.0.2.10 belongs to cluster \"b\""}}})
		c.start(ClassController)
		defer c.stop()
		c.add(testService("web", 30080, ofClass))
		c.settle(time.Second)
		svc := c.service("web")
		same(t, "programmed", says(svc, ConditionProgrammed), "False Refused")
		same(t, "ingress", told(svc), "")
		edge.SetLoadBalancer("uid-web", nil)
		c.settle(time.Second)
		svc = c.service("web")
		same(t, "programmed", says(svc, ConditionProgrammed), "True Programmed")
		same(t, "ingress", told(svc), "192.0.2.10 Proxy")
	})
}

// TestMissingDefinition names the custom resource that the API server does not
// know.
func TestMissingDefinition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.own.PrependReactor("list", "edges", func(kubetesting.Action) (bool, runtime.Object, error) {
			return true, nil, apierrors.NewNotFound(schema.GroupResource{Group: "eclusa.io", Resource: "edges"}, "")
		})
		c.start(StockController)
		err := <-c.ended
		if err == nil || !strings.Contains(err.Error(), "edges.eclusa.io") || !strings.Contains(err.Error(), "charts/eclusa/crds") {
			t.Errorf("Run returned %v, want an error that names edges.eclusa.io and what to do", err)
		}
	})
}

// TestDeletionDoesNotWaitForever lets the quarantine be impossible to save.
func TestDeletionDoesNotWaitForever(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
		c.start(StockController)
		defer c.stop()
		c.add(testService("web", 30080))
		c.settle(10 * time.Second)
		c.mu.Lock()
		c.refuse = func(p kubetesting.PatchAction) error {
			if p.GetResource().Resource == "addresspools" {
				return apierrors.NewForbidden(schema.GroupResource{Resource: "addresspools"}, "default", errors.New("no such right"))
			}
			return nil
		}
		c.mu.Unlock()
		edge.Down(errors.New("power cut"))
		svc := c.service("web")
		c.remove(svc)
		c.settle(deleteWait / 2)
		if c.service("web") == nil {
			t.Error("the Service went before its address was safe")
		}
		c.settle(deleteWait)
		same(t, "Service", told(c.service("web")), "gone")
	})
}

func TestStockContract(t *testing.T) {
	p := New(Options{})
	ctx := context.Background()
	if _, ok := p.InstancesV2(); ok {
		t.Error("InstancesV2 is supported: the node lifecycle controller would delete Nodes")
	}
	served := testService("web", 30080, annotated(AnnotationAssignedAddresses, "192.0.2.1"))
	if _, exists, err := p.GetLoadBalancer(ctx, "c", served); !exists || err != nil {
		t.Errorf("a served Service: got %v, %v; want that it exists", exists, err)
	}
	ofClass(served)
	if _, exists, err := p.GetLoadBalancer(ctx, "c", served); exists || err != nil {
		t.Errorf("a Service with a class: got %v, %v; want that it does not exist", exists, err)
	}
	if err := p.EnsureLoadBalancerDeleted(ctx, "c", served); err != nil {
		t.Errorf("deletion of a Service with a class: got %v, want nil at once", err)
	}
	if _, exists, _ := p.GetLoadBalancer(ctx, "c", testService("new", 1)); exists {
		t.Error("a new Service exists")
	}
	if err := p.Enable("route-controller"); err == nil {
		t.Error("an unknown controller was enabled")
	}
}
