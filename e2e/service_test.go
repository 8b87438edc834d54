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

func ptr[T any](v T) *T { return &v }
