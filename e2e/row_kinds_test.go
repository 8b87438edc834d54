package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/eclusa-lb/eclusa/lab"
)

var kindEntries = []entry{
	{section: "No node ports", name: "are refused aloud, and served once there are some", run: noNodePorts},
	{section: "Other kinds of Services", name: "headless and ExternalName are left alone", run: otherKinds},
	{section: "Other kinds of Services", name: "externalIPs beside the load balancer", run: externalIPs},
}

func intOrString(n int) intstr.IntOrString { return intstr.FromInt32(int32(n)) }

func noNodePorts(t *testing.T, s *stage) {
	o := s.make(t, "", func(svc *corev1.Service) { svc.Spec.AllocateLoadBalancerNodePorts = ptr(false) })
	o.is(t, "Programmed", "False", "node port", "allocateLoadBalancerNodePorts")
	o.warns(t, "node port", "allocateLoadBalancerNodePorts")
	if in := o.get(t).Status.LoadBalancer.Ingress; len(in) > 0 {
		t.Errorf("the Service has ingress %v, though nobody is served there", in)
	}
	part := s.serve(t, "part", ports("web 80/TCP http", "more 81/TCP http"), func(svc *corev1.Service) {
		svc.Spec.AllocateLoadBalancerNodePorts = ptr(false)
		svc.Spec.Ports[0].NodePort = 30000 + manyNodePorts - 3
	})
	fromOutside.of(s).answers(t, "tcp", part.at(80))
	fromOutside.of(s).refused(t, "tcp", part.at(81))
	part.is(t, "Programmed", "True", "81", "node port")
	eventually(t, 10*time.Second, func() error { return part.portError(t, 81, "eclusa.io/NoNodePort") })
	o.change(t, func(svc *corev1.Service) { svc.Spec.AllocateLoadBalancerNodePorts = ptr(true) })
	o.wait(t)
	fromOutside.of(s).answers(t, "tcp", o.at(80))
	o.is(t, "Programmed", "True")
}

// atHome asks for an address that nobody gets after it, so that silence tells that
// it is gone.
func atHome(address string) func(*corev1.Service) {
	return func(svc *corev1.Service) { svc.Spec.LoadBalancerIP = address }
}

func otherKinds(t *testing.T, s *stage) {
	headless := lab.Service(s.ns, s.title+"-both")
	headless.Spec.ClusterIP = corev1.ClusterIPNone
	if _, err := s.kube.CoreV1().Services(s.ns).Create(t.Context(), headless, metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "clusterIP") {
		t.Errorf("a headless Service of type LoadBalancer: %v, want the API server to refuse it", err)
	}
	plain := s.make(t, "headless", func(svc *corev1.Service) {
		svc.Spec.Type, svc.Spec.ClusterIP = corev1.ServiceTypeClusterIP, corev1.ClusterIPNone
	})
	o := s.serve(t, "", atHome("172.30.0.238"))
	from := fromOutside.of(s)
	from.answers(t, "tcp", o.at(80))
	o.change(t, func(svc *corev1.Service) {
		svc.Spec.Type, svc.Spec.ExternalName = corev1.ServiceTypeExternalName, "example.com"
		svc.Spec.LoadBalancerIP = ""
		svc.Spec.ClusterIP, svc.Spec.ClusterIPs = "", nil
		svc.Spec.Ports[0].NodePort = 0
	})
	from.unanswered(t, "tcp", o.at(80))
	for _, o := range []*served{plain, o} {
		eventually(t, 10*time.Second, func() error {
			svc := o.get(t)
			if len(svc.Finalizers)+len(svc.Status.Conditions)+len(svc.Status.LoadBalancer.Ingress)+len(svc.Annotations) > 0 {
				return fmt.Errorf("a Service of type %s has finalizers %v, status %+v, annotations %v", svc.Spec.Type, svc.Finalizers, svc.Status, svc.Annotations)
			}
			return nil
		})
	}
}

// Whoever brings packets for an external address to a node is served by kube-proxy;
// the load balancer has its own.
func externalIPs(t *testing.T, s *stage) {
	const foreign = "198.51.100.7"
	o := s.serve(t, "", func(svc *corev1.Service) { svc.Spec.ExternalIPs = []string{foreign} })
	for _, a := range o.addrs {
		if a.String() == foreign {
			t.Errorf("addresses %v: %s is not the load balancer's", o.addrs, foreign)
		}
	}
	fromOutside.of(s).answers(t, "tcp", o.at(80))
	fromPod.of(s).answers(t, "tcp", o.at(80))
}

var classEntries = []entry{
	{section: "Class", name: "is changed with the type, before anybody has looked", run: classChanges},
	{section: "Class", name: "of somebody else is left alone", run: foreignClass},
	{section: "Class", name: "none, with the address of somebody else in the status", told: true, away: carryForeign, run: foreignAddress},
}

// elsewhere is an address that no pool of ours has.
const elsewhere = "198.51.100.9"

// carryForeign makes a Service without class that somebody else serves, before any
// manager looks at it.
func carryForeign(t *testing.T, s *stage) {
	o := s.make(t, "foreign")
	svc := o.get(t)
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: elsewhere}}
	if _, err := s.kube.CoreV1().Services(o.ns).UpdateStatus(t.Context(), svc, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// foreignAddress leaves that Service alone, until the other has let go of it.
func foreignAddress(t *testing.T, s *stage) {
	o := &served{stage: s, ns: s.ns, name: s.title + "-foreign"}
	if c := o.is(t, "AddressAssigned", metav1.ConditionFalse, "loadBalancerClass"); c.Reason != "ForeignAddress" {
		t.Errorf("reason %q, want ForeignAddress", c.Reason)
	}
	s.serve(t, "later") // by then the edge would have the other one too
	svc := o.get(t)
	if in := svc.Status.LoadBalancer.Ingress; len(in) != 1 || in[0].IP != elsewhere {
		t.Errorf("the status has %+v, want %s as it was", in, elsewhere)
	}
	if len(svc.Annotations) > 0 || len(svc.Status.Conditions) != 1 {
		t.Errorf("annotations %v and conditions %+v, want nothing but why it is left alone", svc.Annotations, svc.Status.Conditions)
	}
	if status, err := s.edgeStatus(t.Context(), o.ns+"/"+o.name); err != nil || len(status.LoadBalancers) > 0 {
		t.Errorf("the edge has %+v, %v; want nothing of the Service", status.LoadBalancers, err)
	}
	svc.Status.LoadBalancer.Ingress = nil
	if _, err := s.kube.CoreV1().Services(o.ns).UpdateStatus(t.Context(), svc, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	o.wait(t)
	fromOutside.of(s).answers(t, "tcp", o.at(80))
}

// A Service has exactly one owner in the end.
func classChanges(t *testing.T, s *stage) {
	o := s.serve(t, "", atHome("172.30.0.239"))
	from := fromOutside.of(s)
	from.answers(t, "tcp", o.at(80))
	o.change(t, func(svc *corev1.Service) { svc.Spec.Type = corev1.ServiceTypeNodePort })
	o.change(t, func(svc *corev1.Service) {
		svc.Spec.Type = corev1.ServiceTypeLoadBalancer
		svc.Spec.LoadBalancerClass = ptr("eclusa.io/edge")
	})
	owners := func(want ...string) func() error {
		return func() error {
			if got := strings.Join(o.get(t).Finalizers, ","); got != strings.Join(want, ",") {
				return fmt.Errorf("finalizers %q, want %v", got, want)
			}
			return nil
		}
	}
	eventually(t, 20*time.Second, owners("eclusa.io/load-balancer"))
	o.wait(t)
	from.answers(t, "tcp", o.at(80))
	o.change(t, func(svc *corev1.Service) {
		svc.Spec.Type, svc.Spec.LoadBalancerClass = corev1.ServiceTypeClusterIP, nil
		svc.Spec.Ports[0].NodePort = 0
	})
	eventually(t, 20*time.Second, owners())
	from.unanswered(t, "tcp", o.at(80))
	if svc := o.get(t); len(svc.Status.Conditions) != 0 || svc.Annotations["eclusa.io/assigned-addresses"] != "" {
		t.Errorf("conditions %v and annotations %v are left on a Service that is ours no more", svc.Status.Conditions, svc.Annotations)
	}
	o.change(t, func(svc *corev1.Service) { svc.Spec.Type = corev1.ServiceTypeLoadBalancer })
	eventually(t, 20*time.Second, owners("service.kubernetes.io/load-balancer-cleanup"))
	o.wait(t)
	from.answers(t, "tcp", o.at(80))
}

// The Service made after it is served: by then the foreign one was seen.
func foreignClass(t *testing.T, s *stage) {
	foreign := s.make(t, "foreign", func(svc *corev1.Service) { svc.Spec.LoadBalancerClass = ptr("example.com/other") })
	s.serve(t, "ours")
	svc := foreign.get(t)
	if len(svc.Finalizers)+len(svc.Status.Conditions)+len(svc.Status.LoadBalancer.Ingress)+len(svc.Annotations) != 0 {
		t.Errorf("finalizers %v, status %+v, annotations %v on a Service of another class", svc.Finalizers, svc.Status, svc.Annotations)
	}
	// Recreated with the class taken away, it is ours.
	foreign.remove(t)
	again := s.serve(t, "foreign")
	fromOutside.of(s).answers(t, "tcp", again.at(80))
}
