package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/eclusa-lb/eclusa/lab"
)

// With the whole control plane gone the edge is killed and started again: it
// serves from its own state within a second.
func TestEdgeRestartsWithoutControlPlane(t *testing.T) {
	c := inLab(t)
	ns := c.namespace(t)
	c.deploy(t, ns, "web", 2)
	at := netip.AddrPortFrom(c.serve(t, lab.Service(ns, "web"))[0], 80)
	answers(t, c.client, at)
	if err := c.ControlPlane.Stop(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := c.ControlPlane.Start(ctx); err != nil {
			t.Error(err)
		}
		c.ensureCCM(t)
	})
	if err := c.edge.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.edge.Process.Start(); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	answers(t, c.client, at)
	took := time.Since(begun)
	t.Logf("serving again %s after the start of the edge", took.Round(time.Millisecond))
	if took > time.Second {
		t.Errorf("the edge served again after %s, want a second at most", took)
	}
}

// The state of an edge is lost. It is right again within five seconds, without
// anybody touching the Service, and an Event and a metric tell of it.
func TestLostStateIsRepaired(t *testing.T) {
	c := inLab(t)
	ns := c.namespace(t)
	c.deploy(t, ns, "web", 2)
	at := netip.AddrPortFrom(c.serve(t, lab.Service(ns, "web"))[0], 80)
	answers(t, c.client, at)
	before := c.driftRepaired(t)
	if err := c.edge.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(c.edge.StateDir(), "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("state of the edge: %v, %v; want files to delete", files, err)
	}
	for _, f := range files {
		if err := os.RemoveAll(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.edge.Process.Start(); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	answers(t, c.client, at)
	took := time.Since(begun)
	t.Logf("repaired %s after the start of the edge", took.Round(time.Millisecond))
	if took > 5*time.Second {
		t.Errorf("repaired after %s, want five seconds at most", took)
	}
	eventually(t, 10*time.Second, func() error {
		if after := c.driftRepaired(t); after <= before {
			return fmt.Errorf("drift repaired %d times before and %d after", before, after)
		}
		return c.event(t, "Edge", c.edge.Name, "DriftRepaired")
	})
}

// A Service is deleted while the edge is down. It goes at once; its address is
// given to nobody until the edge is back and has forgotten it.
func TestServiceIsDeletedWhileTheEdgeIsDown(t *testing.T) {
	c := inLab(t)
	ns := c.namespace(t)
	c.deploy(t, ns, "web", 2)
	fixed := func(name string) *corev1.Service {
		s := lab.Service(ns, name)
		s.Spec.Selector = map[string]string{"app": "web"}
		s.Annotations = map[string]string{"eclusa.io/addresses": "172.30.0.241"}
		return s
	}
	at := netip.AddrPortFrom(c.serve(t, fixed("old"))[0], 80)
	answers(t, c.client, at)
	if err := c.edge.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.edge.Process.Start() })

	begun := time.Now()
	c.delete(t, ns, "old")
	eventually(t, 5*time.Second, func() error {
		left, err := c.kube.CoreV1().Services(ns).List(t.Context(), metav1.ListOptions{})
		if err == nil && len(left.Items) > 0 {
			err = fmt.Errorf("the Service is still there, finalizers %v", left.Items[0].Finalizers)
		}
		return err
	})
	t.Logf("the Service went in %s", time.Since(begun).Round(time.Millisecond))
	c.create(t, fixed("new"))
	cond := c.condition(t, ns, "new", "AddressAssigned", metav1.ConditionFalse)
	if !strings.Contains(cond.Message, "172.30.0.241") {
		t.Errorf("the condition says %q, want it to name the address that is waited for", cond.Message)
	}
	// A restart forgets nothing: the quarantine is recorded.
	c.restartCCM(t)
	pause(t.Context(), 2*time.Second)
	if in := c.service(t, ns, "new").Status.LoadBalancer.Ingress; len(in) != 0 {
		t.Fatalf("new has ingress %v while the edge that may still hold it is down", in)
	}
	if err := c.edge.Process.Start(); err != nil {
		t.Fatal(err)
	}
	if got := c.addresses(t, ns, "new"); got[0] != at.Addr() {
		t.Errorf("new has %v, want %s", got, at.Addr())
	}
	answers(t, c.client, at)
}

// driftRepaired is what the status of the Edge object counts.
func (c *cluster) driftRepaired(t *testing.T) int64 {
	t.Helper()
	families, err := c.ccmMetrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return int64(sum(families["eclusa_ccm_edge_drift_repaired_total"], "", ""))
}

// event returns an error unless there is an Event of that reason.
func (c *cluster) event(t *testing.T, kind, name, reason string) error {
	t.Helper()
	events, err := c.kube.CoreV1().Events("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, e := range events.Items {
		if e.InvolvedObject.Kind == kind && e.InvolvedObject.Name == name && e.Reason == reason {
			return nil
		}
	}
	return fmt.Errorf("no Event %s about %s %q", reason, kind, name)
}
