package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/eclusa-lb/eclusa/lab"
)

// A pool that overlaps another is not used, and says which one.
func TestOverlappingPool(t *testing.T) {
	c := inLab(t)
	pools := c.dynamic.Resource(addressPools)
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
