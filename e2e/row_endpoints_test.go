package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/eclusa-lb/eclusa/lab"
)

var endpointEntries = append(
	both(entry{section: "No ready endpoints", name: "is refused at once and served within a second", alone: true}, noEndpoints),
	entry{section: "Endpoints that are not ready", name: "take traffic where publishNotReadyAddresses says so", run: notReadyEndpoints},
)

var (
	updateOptions metav1.UpdateOptions
	protocols     = []string{"tcp", "udp"}
)

func noEndpoints(t *testing.T, s *stage, from caller) {
	ns := s.ownNamespace(t)
	o := s.makeIn(t, ns, "", dualStack, ports("web 80/TCP http", "dns 80/UDP udp-echo"))
	o.wait(t)
	o.is(t, "BackendsHealthy", "False", "endpoint")
	for _, a := range o.addrs {
		for _, protocol := range protocols {
			from.refused(t, protocol, netip.AddrPortFrom(a, 80))
		}
	}
	d := lab.Deployment(ns, "web", 1)
	if _, err := s.kube.AppsV1().Deployments(ns).Create(t.Context(), d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ready := o.untilReady(t, "")
	for _, a := range o.addrs {
		for _, protocol := range protocols {
			from.answers(t, protocol, netip.AddrPortFrom(a, 80))
			took := time.Since(ready)
			t.Logf("%s %s answers %s after the first endpoint was ready", protocol, a, took.Round(time.Millisecond))
			if took > time.Second {
				t.Errorf("%s %s answers %s after the first endpoint was ready, want a second at most", protocol, a, took)
			}
		}
	}
	o.is(t, "BackendsHealthy", "True")
}

// untilReady waits until there is a ready endpoint, on the node if one is named,
// and returns when that was.
func (o *served) untilReady(t *testing.T, node string) time.Time {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		list, err := o.kube.DiscoveryV1().EndpointSlices(o.ns).List(t.Context(), metav1.ListOptions{
			LabelSelector: discoveryv1.LabelServiceName + "=" + o.name,
		})
		if err != nil {
			return err
		}
		for _, slice := range list.Items {
			for _, e := range slice.Endpoints {
				if e.Conditions.Ready != nil && *e.Conditions.Ready && (node == "" || e.NodeName != nil && *e.NodeName == node) {
					return nil
				}
			}
		}
		return errors.New("no endpoint is ready")
	})
	return time.Now()
}

func notReadyEndpoints(t *testing.T, s *stage) {
	ns := s.ownNamespace(t)
	d := lab.Deployment(ns, "web", 1)
	d.Spec.Template.Spec.Containers[0].ReadinessProbe.HTTPGet.Path = "/status?code=503"
	if _, err := s.kube.AppsV1().Deployments(ns).Create(t.Context(), d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	o := s.makeIn(t, ns, "", func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true })
	o.wait(t)
	fromOutside.of(s).answers(t, "tcp", o.at(80))
	fromPod.of(s).answers(t, "tcp", o.at(80))
	o.is(t, "BackendsHealthy", "True")

	o.change(t, func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = false })
	fromOutside.of(s).refused(t, "tcp", o.at(80))
	o.is(t, "BackendsHealthy", "False", "endpoint")
}

// ownNamespace makes a namespace for an entry that has pods of its own.
func (s *stage) ownNamespace(t *testing.T) string {
	t.Helper()
	name := "say-" + s.title
	if err := s.Namespace(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.kube.CoreV1().Namespaces().Delete(cleanup(t), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	return name
}

// on pins the pods of a Deployment to a node.
func on(d *appsv1.Deployment, node string) *appsv1.Deployment {
	d.Spec.Template.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node}
	return d
}

// standIn makes a Service without a selector whose endpoint is the port of the
// node itself, in both families, where something listens that no image has.
func (s *stage) standIn(t *testing.T, name string, node *lab.Node, target uint16, changes ...func(*corev1.Service)) *served {
	t.Helper()
	o := s.make(t, name, append([]func(*corev1.Service){func(svc *corev1.Service) {
		svc.Spec.Selector = nil
		dualStack(svc)
	}}, changes...)...)
	for _, addr := range []netip.Addr{node.Addr4, node.Addr6} {
		o.endpoint(t, addr, node, target)
	}
	o.wait(t)
	return o
}

// endpoint gives a Service without a selector an endpoint: for the ports whose
// target is their own number on the port target, for others on theirs.
func (o *served) endpoint(t *testing.T, addr netip.Addr, node *lab.Node, target uint16) {
	t.Helper()
	family := discoveryv1.AddressTypeIPv4
	if addr.Is6() {
		family = discoveryv1.AddressTypeIPv6
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{GenerateName: o.name + "-", Labels: map[string]string{discoveryv1.LabelServiceName: o.name}},
		AddressType: family,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{addr.String()}, NodeName: &node.Name}},
	}
	for _, p := range o.get(t).Spec.Ports {
		to := int32(target)
		if p.TargetPort.Type == intstr.Int && p.TargetPort.IntVal != p.Port {
			to = p.TargetPort.IntVal
		}
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: &p.Protocol, Port: &to})
	}
	if _, err := o.kube.DiscoveryV1().EndpointSlices(o.ns).Create(t.Context(), slice, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// sameNode asks n times and wants answers of one node only, which it returns.
func (c caller) sameNode(ctx context.Context, network string, at netip.AddrPort, n int) (string, error) {
	node := ""
	for range n {
		a, err := c.ask(ctx, network, at)
		if err != nil {
			return "", err
		}
		if node != "" && a.node != node {
			return "", fmt.Errorf("%s is answered on %s, and before on %s", c, a.node, node)
		}
		node = a.node
	}
	return node, nil
}
