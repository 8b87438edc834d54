package provider

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// testPool makes a pool of these addresses.
func testPool(name string, addresses ...string) *v1alpha1.AddressPool {
	p := &v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, a := range addresses {
		p.Spec.Addresses = append(p.Spec.Addresses, v1alpha1.AddressRange(a))
	}
	return p
}

// testNode makes a Node with an internal address.
func testNode(name, address string) *v1.Node {
	return &v1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Status:     v1.NodeStatus{Addresses: []v1.NodeAddress{{Type: v1.NodeInternalIP, Address: address}}},
	}
}

// testService makes a Service with one TCP port.
func testService(name string, nodePort int32, change ...func(*v1.Service)) *v1.Service {
	svc := &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, CreationTimestamp: metav1.Now()},
		Spec: v1.ServiceSpec{
			Type:       v1.ServiceTypeLoadBalancer,
			IPFamilies: []v1.IPFamily{v1.IPv4Protocol},
			Ports:      []v1.ServicePort{{Name: "http", Protocol: v1.ProtocolTCP, Port: 80, NodePort: nodePort}},
		},
	}
	for _, f := range change {
		f(svc)
	}
	return svc
}

func ofClass(svc *v1.Service) { svc.Spec.LoadBalancerClass = ptr.To(Class) }

func annotated(name Annotation, value string) func(*v1.Service) {
	return func(svc *v1.Service) {
		if svc.Annotations == nil {
			svc.Annotations = map[string]string{}
		}
		svc.Annotations[string(name)] = value
	}
}

// testSlice makes an EndpointSlice with a ready endpoint on each node.
func testSlice(service string, nodes ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
		Namespace: "default", Name: service + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: service},
	}}
	for _, n := range nodes {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{"10.9.0.1"}, NodeName: ptr.To(n), Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)},
		})
	}
	return s
}

// told returns the addresses in a Service's status.
func told(svc *v1.Service) string {
	if svc == nil {
		return "gone"
	}
	var all []string
	for _, in := range svc.Status.LoadBalancer.Ingress {
		text := in.IP + in.Hostname
		if in.IPMode != nil {
			text += " " + string(*in.IPMode)
		}
		for _, p := range in.Ports {
			text += fmt.Sprintf(" %d/%s", p.Port, p.Protocol)
			if p.Error != nil {
				text += "=" + *p.Error
			}
		}
		all = append(all, text)
	}
	return strings.Join(all, ",")
}

// says returns a condition as "True Reason".
func says(svc *v1.Service, conditionType string) string {
	if svc == nil {
		return "gone"
	}
	c := conditionOf(svc, conditionType)
	if c == nil {
		return "nothing"
	}
	return string(c.Status) + " " + c.Reason
}

// heldBy returns which Service has which addresses on an edge.
func heldBy(b *lbtest.FakeBalancer) map[string][]netip.Addr {
	out := map[string][]netip.Addr{}
	for _, l := range b.Held().LoadBalancers {
		out[l.Name] = append(out[l.Name], l.Addresses...)
	}
	return out
}

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		t.Errorf("%s is %s, want %s", what, g, w)
	}
}

func selector(key, value string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
}
