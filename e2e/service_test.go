// Package e2e proves, on a real cluster, what eclusa promises: a Service gets an
// address and its standard port, and keeps them through whatever happens.
package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/eclusa-lb/eclusa/lab"
)

// The main job: an address and the standard port in front of a node port, for
// both protocols and both families, each Service with an address of its own.
func TestServicesAreReachable(t *testing.T) {
	c := inLab(t)
	ns := c.namespace(t)
	c.deploy(t, ns, "web", 2)
	seen := map[netip.Addr]string{}

	for _, name := range []string{"web-1", "web-2"} {
		s := lab.Service(ns, name)
		s.Spec.Selector = map[string]string{"app": "web"}
		s.Spec.IPFamilyPolicy = ptr(corev1.IPFamilyPolicyPreferDualStack)
		addrs := c.serve(t, s)
		if len(addrs) != 2 || addrs[0].Is4() == addrs[1].Is4() {
			t.Errorf("service %q has addresses %v, want one of each family", name, addrs)
		}
		for _, a := range addrs {
			if other, taken := seen[a]; taken {
				t.Errorf("services %q and %q both have %s", name, other, a)
			}
			seen[a] = name
			got := answers(t, c.client, netip.AddrPortFrom(a, 80))
			if !strings.HasPrefix(got.pod, "web-") {
				t.Errorf("%s: answered by pod %q, want one of web", a, got.pod)
			}
		}
		live := c.service(t, ns, name)
		if port := lab.NodePort(live, 80); port < 30000 {
			t.Errorf("service %q has node port %d, want one above 30000", name, port)
		}
		for _, in := range live.Status.LoadBalancer.Ingress {
			if in.IPMode == nil || *in.IPMode != corev1.LoadBalancerIPModeProxy {
				t.Errorf("service %q: ipMode of %s is %v, want Proxy: connections end at the edge", name, in.IP, in.IPMode)
			}
		}
		for _, kind := range []string{"AddressAssigned", "Programmed", "BackendsHealthy"} {
			c.condition(t, ns, name, kind, metav1.ConditionTrue)
		}
	}
	t.Run("UDP", func(t *testing.T) { testUDP(t, c, ns, seen) })
	t.Run("SamePortBothProtocols", func(t *testing.T) { testMixed(t, c, ns) })
}

func testUDP(t *testing.T, c *cluster, ns string, seen map[netip.Addr]string) {
	s := lab.Service(ns, "dns")
	s.Spec.Selector = map[string]string{"app": "web"}
	s.Spec.Ports = []corev1.ServicePort{{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53, TargetPort: intstr.FromString("udp-echo")}}
	addr := c.serve(t, s)[0]
	if other, taken := seen[addr]; taken {
		t.Errorf("services dns and %q both have %s", other, addr)
	}
	eventually(t, 10*time.Second, func() error {
		got, err := askUDP(t.Context(), c.client, netip.AddrPortFrom(addr, 53), "question")
		if err == nil && (!strings.HasPrefix(got, "web-") || !strings.HasSuffix(got, " question")) {
			err = fmt.Errorf("answer %q is not the pod's echo", got)
		}
		return err
	})
}

func testMixed(t *testing.T, c *cluster, ns string) {
	s := lab.Service(ns, "mixed")
	s.Spec.Selector = map[string]string{"app": "web"}
	s.Spec.Ports = []corev1.ServicePort{
		{Name: "udp", Protocol: corev1.ProtocolUDP, Port: 443, TargetPort: intstr.FromString("udp-echo")},
		{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: 443, TargetPort: intstr.FromString("http")},
	}
	at := netip.AddrPortFrom(c.serve(t, s)[0], 443)
	answers(t, c.client, at)
	eventually(t, 10*time.Second, func() error {
		_, err := askUDP(t.Context(), c.client, at, "question")
		return err
	})
}

// Two Services ask for the same address and port: the older claim has it, the
// later stays pending and says who is in the way, until that one goes.
func TestTwoServicesAskForTheSameAddress(t *testing.T) {
	c := inLab(t)
	ns := c.namespace(t)
	c.deploy(t, ns, "web", 2)
	ask := func(name string) *corev1.Service {
		s := lab.Service(ns, name)
		s.Spec.Selector = map[string]string{"app": "web"}
		s.Annotations = map[string]string{"eclusa.io/addresses": "172.30.0.240"}
		return s
	}
	want := netip.MustParseAddr("172.30.0.240")
	if got := c.serve(t, ask("first")); len(got) != 1 || got[0] != want {
		t.Fatalf("first has %v, want %s", got, want)
	}
	c.create(t, ask("second"))
	cond := c.condition(t, ns, "second", "AddressAssigned", metav1.ConditionFalse)
	if !strings.Contains(cond.Message, ns+"/first") || !strings.Contains(cond.Message, want.String()) {
		t.Errorf("the condition says %q, want it to name %s/first and %s", cond.Message, ns, want)
	}
	if in := c.service(t, ns, "second").Status.LoadBalancer.Ingress; len(in) != 0 {
		t.Errorf("second has ingress %v, want none", in)
	}
	answers(t, c.client, netip.AddrPortFrom(want, 80))

	c.delete(t, ns, "first")
	eventually(t, 10*time.Second, func() error {
		in := c.service(t, ns, "second").Status.LoadBalancer.Ingress
		if len(in) != 1 || in[0].IP != want.String() {
			return fmt.Errorf("second has ingress %v, want %s now that first is gone", in, want)
		}
		return nil
	})
	answers(t, c.client, netip.AddrPortFrom(want, 80))
}

// Without a ready endpoint nobody is kept waiting: the connection is refused at
// once, the Condition says why, and traffic flows soon after the first endpoint
// is ready. (kube-proxy alone may take a second: it syncs at most once in one.)
func TestServiceWithoutReadyEndpoints(t *testing.T) {
	c := inLab(t)
	ns := c.namespace(t)
	at := netip.AddrPortFrom(c.serve(t, lab.Service(ns, "web"))[0], 80)
	cond := c.condition(t, ns, "web", "BackendsHealthy", metav1.ConditionFalse)
	if !strings.Contains(strings.ToLower(cond.Message), "endpoint") {
		t.Errorf("the condition says %q, want it to speak of endpoints", cond.Message)
	}
	if err := refused(t.Context(), c.client, at); err != nil {
		t.Error(err)
	}
	c.deploy(t, ns, "web", 1)
	begun := time.Now()
	answers(t, c.client, at)
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("answered %s after the first pod was ready, want three seconds at most", took)
	}
	c.condition(t, ns, "web", "BackendsHealthy", metav1.ConditionTrue)
}

// A Service may change its type and class before anybody has looked: it has
// exactly one owner in the end.
func TestServiceChangesTypeAndClass(t *testing.T) {
	c := inLab(t)
	ns := c.namespace(t)
	c.deploy(t, ns, "web", 2)
	at := netip.AddrPortFrom(c.serve(t, lab.Service(ns, "web"))[0], 80)
	answers(t, c.client, at)

	c.update(t, ns, "web", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort })
	c.update(t, ns, "web", func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Spec.LoadBalancerClass = ptr("eclusa.io/edge")
	})
	owners := func(want ...string) func() error {
		return func() error {
			s := c.service(t, ns, "web")
			if got := strings.Join(s.Finalizers, ","); got != strings.Join(want, ",") {
				return fmt.Errorf("finalizers %q, want %v", got, want)
			}
			return nil
		}
	}
	eventually(t, 20*time.Second, owners("eclusa.io/load-balancer"))
	at = netip.AddrPortFrom(c.addresses(t, ns, "web")[0], 80)
	answers(t, c.client, at)

	c.update(t, ns, "web", func(s *corev1.Service) {
		s.Spec.Type, s.Spec.LoadBalancerClass = corev1.ServiceTypeClusterIP, nil
		for i := range s.Spec.Ports {
			s.Spec.Ports[i].NodePort = 0
		}
	})
	eventually(t, 20*time.Second, owners())
	eventually(t, 10*time.Second, func() error { return refusedOrGone(t, c, at) })
	if s := c.service(t, ns, "web"); len(s.Status.Conditions) != 0 || s.Annotations["eclusa.io/assigned-addresses"] != "" {
		t.Errorf("conditions %v and annotations %v are left on a Service that is ours no more", s.Status.Conditions, s.Annotations)
	}

	c.update(t, ns, "web", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeLoadBalancer })
	eventually(t, 20*time.Second, owners("service.kubernetes.io/load-balancer-cleanup"))
	answers(t, c.client, netip.AddrPortFrom(c.addresses(t, ns, "web")[0], 80))
}

// A Service of somebody else's class is not looked at.
func TestForeignClassIsLeftAlone(t *testing.T) {
	c := inLab(t)
	ns := c.namespace(t)
	s := lab.Service(ns, "foreign")
	s.Spec.LoadBalancerClass = ptr("example.com/other")
	c.create(t, s)
	// The Service made after it is served: by then the foreign one was seen.
	c.serve(t, lab.Service(ns, "ours"))
	got := c.service(t, ns, "foreign")
	if len(got.Finalizers)+len(got.Status.Conditions)+len(got.Status.LoadBalancer.Ingress)+len(got.Annotations) != 0 {
		t.Errorf("finalizers %v, status %+v, annotations %v on a Service of another class", got.Finalizers, got.Status, got.Annotations)
	}
}

func refusedOrGone(t *testing.T, c *cluster, at netip.AddrPort) error {
	if a, err := get(t.Context(), c.client, at); err == nil {
		return fmt.Errorf("%s is still answered by %s", at, a.pod)
	}
	return nil
}

func ptr[T any](v T) *T { return &v }
