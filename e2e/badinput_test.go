package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/eclusa-lb/eclusa/lab"
)

// What cannot be done is refused with the object, the field and the value, in a
// Condition and an Event, and the Service beside it goes on working.
func TestBadServicesAreRefusedAloud(t *testing.T) {
	c := inLab(t)
	ns := c.namespace(t)
	c.deploy(t, ns, "web", 2)
	good := netip.AddrPortFrom(c.serve(t, lab.Service(ns, "good"))[0], 80)
	c.update(t, ns, "good", func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": "web"} })
	answers(t, c.client, good)

	for _, bad := range []struct {
		name      string
		change    func(*corev1.Service)
		condition string
		says      []string
	}{
		{"outside", annotate("eclusa.io/addresses", "192.0.2.1"), "AddressAssigned", []string{"192.0.2.1", "pool"}},
		{"no-address", annotate("eclusa.io/addresses", "300.0.0.1"), "AddressAssigned", []string{"eclusa.io/addresses", "300.0.0.1"}},
		{"no-pool", annotate("eclusa.io/address-pool", "nowhere"), "AddressAssigned", []string{"nowhere"}},
		{"interval", annotate("eclusa.io/health-check-interval", "soon"), "", []string{"eclusa.io/health-check-interval", "soon"}},
		{"typo", annotate("eclusa.io/idle-timout", "5m"), "", []string{"eclusa.io/idle-timout", "eclusa.io/idle-timeout"}},
		{"proxy", annotate("eclusa.io/proxy-protocol", "v2"), "Programmed", []string{"proxy-protocol"}},
		{"no-node-ports", func(s *corev1.Service) { s.Spec.AllocateLoadBalancerNodePorts = ptr(false) }, "Programmed", []string{"node port"}},
		{"sctp", func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolSCTP }, "Programmed", []string{"sctp"}},
	} {
		t.Run(bad.name, func(t *testing.T) {
			s := lab.Service(ns, bad.name)
			s.Spec.Selector = map[string]string{"app": "web"}
			bad.change(s)
			c.create(t, s)
			if bad.condition != "" {
				cond := c.condition(t, ns, bad.name, bad.condition, metav1.ConditionFalse)
				wantWords(t, "the condition", cond.Message, bad.says)
			}
			eventually(t, 10*time.Second, func() error { return c.warned(t, ns, bad.name, bad.says) })
			if _, err := get(t.Context(), c.client, good); err != nil {
				t.Errorf("the good Service is disturbed: %v", err)
			}
		})
	}
}

// A pool that overlaps another is not used, and says which one.
func TestOverlappingPool(t *testing.T) {
	c := inLab(t)
	pools := c.dynamic.Resource(schema.GroupVersionResource{Group: "eclusa.io", Version: "v1alpha1", Resource: "addresspools"})
	pool := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "eclusa.io/v1alpha1", "kind": "AddressPool",
		"metadata": map[string]any{"name": "overlapping"},
		"spec":     map[string]any{"addresses": []any{"172.30.0.245-172.30.0.252"}},
	}}
	if _, err := pools.Create(t.Context(), pool, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pools.Delete(t.Context(), "overlapping", metav1.DeleteOptions{}); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
	})
	eventually(t, 15*time.Second, func() error {
		got, err := pools.Get(t.Context(), "overlapping", metav1.GetOptions{})
		if err != nil {
			return err
		}
		conditions, _, err := unstructured.NestedSlice(got.Object, "status", "conditions")
		if err != nil {
			return err
		}
		for _, cond := range conditions {
			m, _ := cond.(map[string]any)
			message, _ := m["message"].(string)
			if m["type"] == "Ready" && m["status"] == "False" && strings.Contains(message, "default") {
				return nil
			}
		}
		return fmt.Errorf("pool overlapping has conditions %v, want Ready False that names pool default", conditions)
	})
	ns := c.namespace(t)
	c.serve(t, lab.Service(ns, "undisturbed"))
	if err := pools.Delete(t.Context(), "overlapping", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

func annotate(key, value string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Annotations = map[string]string{key: value} }
}

// warned returns an error unless a warning Event about the Service has all words.
func (c *cluster) warned(t *testing.T, ns, name string, words []string) error {
	t.Helper()
	events, err := c.kube.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		return err
	}
	var seen []string
	for _, e := range events.Items {
		if e.InvolvedObject.Name != name || e.Type != corev1.EventTypeWarning {
			continue
		}
		seen = append(seen, e.Reason+": "+e.Message)
		if len(missing(e.Message, words)) == 0 {
			return nil
		}
	}
	s := c.service(t, ns, name)
	return fmt.Errorf("service %q: no warning with %q among %q; conditions %+v", name, words, seen, meta.FindStatusCondition(s.Status.Conditions, "eclusa.io/Programmed"))
}

func wantWords(t *testing.T, what, text string, words []string) {
	t.Helper()
	if lacking := missing(text, words); len(lacking) > 0 {
		t.Errorf("%s says %q, want it to name %q", what, text, lacking)
	}
}

func missing(text string, words []string) []string {
	var lacking []string
	for _, w := range words {
		if !strings.Contains(strings.ToLower(text), strings.ToLower(w)) {
			lacking = append(lacking, w)
		}
	}
	return lacking
}
