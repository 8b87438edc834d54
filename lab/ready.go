package lab

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var edgeResource = schema.GroupVersionResource{Group: "eclusa.io", Version: "v1alpha1", Resource: "edges"}

// edgesReady waits until all managers run, and the one that leads has taken every
// edge into use.
func (l *Lab) edgesReady(ctx context.Context) error {
	client, err := l.Dynamic()
	if err != nil {
		return err
	}
	for _, e := range l.Edges {
		err := until(ctx, 2*time.Minute, func(ctx context.Context) error {
			if p := l.Manager.process; p != nil && !p.Running() {
				return fmt.Errorf("%q has ended:\n%s", p.Name, p.tail())
			}
			o, err := client.Resource(edgeResource).Get(ctx, e.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			return condition(o, "Ready")
		})
		if err != nil {
			return fmt.Errorf("object Edge %q: %w%s", e.Name, err, l.Manager.complaint())
		}
	}
	if l.Manager.inPods() {
		if err := l.Manager.settled(ctx, ManagerReplicas); err != nil {
			return err
		}
	}
	leader, err := l.Manager.Leader(ctx)
	if err != nil {
		return err
	}
	l.say("eclusa-cloud-controller-manager leads on %s and has taken over the edges", leader.Host.Name)
	return nil
}

// complaint is what keeps the pods of the manager, for an error's end.
func (m *Manager) complaint() string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	pods, err := m.pods(ctx)
	if err != nil || !m.inPods() {
		return ""
	}
	return "\n" + describePods(pods)
}

// condition is nil when the object has the condition and it is True.
func condition(o *unstructured.Unstructured, kind string) error {
	conditions, _, err := unstructured.NestedSlice(o.Object, "status", "conditions")
	if err != nil {
		return err
	}
	for _, c := range conditions {
		c, ok := c.(map[string]any)
		if !ok || c["type"] != kind {
			continue
		}
		if c["status"] == "True" {
			return nil
		}
		return fmt.Errorf("condition %s is %v: %v", kind, c["status"], c["message"])
	}
	return fmt.Errorf("no condition %s yet", kind)
}
