package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lab"
)

var localEntries = append(
	both(entry{section: "externalTrafficPolicy: Local", name: "only nodes with endpoints take traffic and are probed"}, localNodes),
	entry{section: "externalTrafficPolicy: Local", name: "moves with the pods within two seconds", alone: true, run: localMoves},
)

// localNodes has its only pod on one node, and then none.
func localNodes(t *testing.T, s *stage, from caller) {
	ns := s.ownNamespace(t)
	o := s.makeIn(t, ns, "", local, dualStack, ports("web 80/TCP http", "dns 80/UDP udp-echo"))
	o.wait(t)
	node := s.Nodes[0]
	if err := s.Deploy(t.Context(), on(lab.Deployment(ns, "web", 1), node.Name)); err != nil {
		t.Fatal(err)
	}
	for _, a := range o.addrs {
		at := netip.AddrPortFrom(a, 80)
		for _, protocol := range protocols {
			got := from.answers(t, protocol, at)
			if client, err := netip.ParseAddrPort(got.client); err != nil || client.Addr() != s.edge.Addr4 && client.Addr() != s.edge.Addr6 {
				t.Errorf("%s %s: the pod sees %s, want the edge's own address and not a node's", protocol, a, got.client)
			}
		}
		if got, err := from.sameNode(t.Context(), "tcp", at, 20); err != nil || got != node.Name {
			t.Errorf("%s: answered on %q, %v; want %s only", a, got, err, node.Name)
		}
	}
	want := fmt.Sprintf("http:%d/healthz", o.get(t).Spec.HealthCheckNodePort)
	eventually(t, 10*time.Second, func() error {
		check, on := o.probed(t)
		if string(check) != want || len(on) != 1 || on[node.Name] != healthcheck.Up {
			return fmt.Errorf("check %q finds %v, want %q to find %s alone, and up", check, on, want, node.Name)
		}
		return nil
	})

	if err := s.scale(t, ns, "web", 0); err != nil {
		t.Fatal(err)
	}
	for _, a := range o.addrs {
		for _, protocol := range protocols {
			from.refused(t, protocol, netip.AddrPortFrom(a, 80))
		}
	}
	eventually(t, 10*time.Second, func() error {
		if _, on := o.probed(t); len(on) != 0 {
			return fmt.Errorf("nodes probed without any endpoint: %v", on)
		}
		return nil
	})
}

func (s *stage) scale(t *testing.T, ns, name string, n int) error {
	patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, n)
	_, err := s.kube.AppsV1().Deployments(ns).Patch(t.Context(), name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// lasting makes pods go on serving while the news of their end spreads, as every
// application behind a load balancer should.
func lasting(d *appsv1.Deployment) *appsv1.Deployment {
	spec := &d.Spec.Template.Spec
	spec.TerminationGracePeriodSeconds = ptr(int64(10))
	spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 4}}}
	d.Spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxSurge: ptr(intOrString(1)), MaxUnavailable: ptr(intOrString(0))}
	return d
}

// localMoves moves the only pod from one node to the other, under load.
func localMoves(t *testing.T, s *stage) {
	ns := s.ownNamespace(t)
	if err := s.Deploy(t.Context(), on(lasting(lab.Deployment(ns, "web", 1)), s.Nodes[0].Name)); err != nil {
		t.Fatal(err)
	}
	o := s.makeIn(t, ns, "", local)
	o.wait(t)
	from := fromOutside.of(s)
	from.answers(t, "tcp", o.at(80))
	for i := range 2 * rolls(t) {
		to := s.Nodes[1-i%2].Name
		load := startLoad(t.Context(), s.client, o.at(80), 100)
		patch := fmt.Appendf(nil, `{"spec":{"template":{"spec":{"nodeSelector":{%q:%q}}}}}`, corev1.LabelHostname, to)
		if _, err := s.kube.AppsV1().Deployments(ns).Patch(t.Context(), "web", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		ready := o.untilReady(t, to)
		eventually(t, 10*time.Second, func() error {
			a, err := from.ask(t.Context(), "tcp", o.at(80))
			if err == nil && a.node != to {
				err = fmt.Errorf("answered on %s, want %s", a.node, to)
			}
			return err
		})
		first := time.Since(ready)
		eventually(t, 10*time.Second, func() error {
			got, err := from.sameNode(t.Context(), "tcp", o.at(80), 10)
			if err == nil && got != to {
				err = fmt.Errorf("answered on %s, want %s only", got, to)
			}
			return err
		})
		all := time.Since(ready)
		t.Logf("%s had its first connection %s after its pod was ready, and all of them after %s", to, first.Round(time.Millisecond), all.Round(time.Millisecond))
		if all > 2*time.Second {
			t.Errorf("moved to %s %s after the pod was ready there, want two seconds at most", to, all)
		}
		if err := s.WaitDeployment(t.Context(), ns, "web"); err != nil {
			t.Fatal(err)
		}
		load.stop(t)
	}
}

// From the start of the first of several rolling updates to the end of the last,
// with new connections all the time: E2E_ROUNDS updates, one if it is not set.
func TestFigureLocalRollingUpdates(t *testing.T) {
	take := inLab
	if rolls(t) > 1 {
		take = inLabAlone
	}
	c := take(t)
	d := lasting(lab.Deployment(c.namespace(t), "web", 2))
	if err := c.Deploy(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	load := c.roll(t, d, rolls(t), 100)
	all, failed := len(load.latency)+len(load.failures), len(load.failures)
	t.Logf("%d connections during %d rolling updates in %.1f s: %d failed, median %s, worst %s", all, rolls(t),
		time.Since(load.started).Seconds(), failed, median(load.latency).Round(100*time.Microsecond), worst(load.latency).Round(time.Millisecond))
	load.fewFailed(t)
}

// roll updates the Deployment so many times, behind a Service of policy Local, with
// so many new connections a second from before the first update to after the last.
func (c *cluster) roll(t *testing.T, d *appsv1.Deployment, times, perSecond int) *load {
	t.Helper()
	if err := c.WaitDeployment(t.Context(), d.Namespace, d.Name); err != nil {
		t.Fatal(err)
	}
	svc := lab.Service(d.Namespace, d.Name)
	local(svc)
	at := netip.AddrPortFrom(c.serve(t, svc)[0], 80)
	answers(t, c.client, at)
	load := startLoad(t.Context(), c.client, at, perSecond)
	for i := range times {
		patch := fmt.Appendf(nil, `{"spec":{"template":{"metadata":{"annotations":{"e2e/round":"%d"}}}}}`, i)
		if _, err := c.kube.AppsV1().Deployments(d.Namespace).Patch(t.Context(), d.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := c.WaitDeployment(t.Context(), d.Namespace, d.Name); err != nil {
			t.Fatal(err)
		}
	}
	load.end()
	return load
}
