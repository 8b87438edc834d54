package provider

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/eclusa-lb/eclusa/lb"
)

func TestServiceIsServed(t *testing.T) {
	for name, path := range map[string]struct {
		controller, finalizer string
		change                func(*v1.Service)
	}{
		"stock": {StockController, stockFinalizer, func(*v1.Service) {}},
		"class": {ClassController, Finalizer, ofClass},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, testPool("default", "192.0.2.0/24"), testNode("n1", "10.0.0.1"), testNode("n2", "10.0.0.2"))
				edge := c.addEdge("e1", nil)
				c.start(StockController, ClassController)
				defer c.stop()
				c.add(testService("web", 30080, path.change))
				c.settle(time.Second)
				svc := c.service("web")
				same(t, "annotation", svc.Annotations[string(AnnotationAssignedAddresses)], "192.0.2.1")
				same(t, "ingress", told(svc), "192.0.2.1 Proxy")
				same(t, "assigned", says(svc, ConditionAddressAssigned), "True Assigned")
				same(t, "programmed", says(svc, ConditionProgrammed), "True Programmed")
				same(t, "reachable", says(svc, ConditionReachable), "Unknown NotMeasured")
				same(t, "finalizers", svc.Finalizers, []string{path.finalizer})
				l := edge.Held().LoadBalancers["uid-web"]
				same(t, "addresses", l.Addresses, addrs("192.0.2.1"))
				same(t, "listeners", l.Listeners, []lb.Listener{{Name: "http", Protocol: lb.TCP, Port: 80, TargetPort: 30080}})
				same(t, "check", l.HealthCheck.ID(), "http:10256/healthz")
				same(t, "nodes", sortedNames(edge.Held().Nodes), []string{"n1", "n2"})
				written := c.written()
				n := len(slices.DeleteFunc(written, func(s string) bool { return s != "services default/web" }))
				if n > 3 { // one may be the stock controller's finalizer
					t.Errorf("Service was written %d times, want at most 3", n)
				}

				c.remove(svc)
				c.settle(time.Second)
				same(t, "Service", told(c.service("web")), "gone")
				same(t, "load balancers", len(edge.Held().LoadBalancers), 0)
			})
		})
	}
}
