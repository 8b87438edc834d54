package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/eclusa-lb/eclusa/lab"
)

// A node dies without a word, as when its power fails. With 200 new connections
// a second nobody outside notices, at no time; and after two and a half seconds
// no dial even tries it. It is the node on which the manager leads: nobody tells
// the edge anything, and nobody need, until the other manager has waited for the
// end of the Lease and leads.
func TestNodeDiesSilently(t *testing.T) {
	c := inLab(t)
	c.apart(t)
	ns := c.namespace(t)
	c.deploy(t, ns, "web", 4)
	at := netip.AddrPortFrom(c.serve(t, lab.Service(ns, "web"))[0], 80)
	answers(t, c.client, at)
	victim, other := c.Nodes[0], c.Nodes[1]
	if c.leader(t).Host == other.Host {
		victim, other = other, victim
	}
	c.onlyOn(t, ns, "web", other.Name, func() {
		load := startLoad(t.Context(), c.client, at, 200)
		pause(t.Context(), 2*time.Second)
		died := c.cut(t, victim)
		out := c.untilDown(t, victim.Name, died)
		if out > deadNodeLimit {
			t.Errorf("node %q took %s to be out, want %s at most", victim.Name, out, deadNodeLimit)
		}
		// Dials that began in time may still fail in time.
		pause(t.Context(), time.Until(died.Add(deadNodeLimit+600*time.Millisecond)))
		before := c.metric(t, "eclusa_edge_member_dial_errors_total", "node", victim.Name)
		pause(t.Context(), 4*time.Second)
		if after := c.metric(t, "eclusa_edge_member_dial_errors_total", "node", victim.Name); after != before {
			t.Errorf("%g dials still tried the dead node after 2.5 s", after-before)
		}
		late := lab.Service(ns, "late")
		late.Spec.Selector = map[string]string{"app": "web"}
		answers(t, c.client, netip.AddrPortFrom(c.serve(t, late)[0], 80))
		taken := time.Since(died)
		if leader := c.leader(t); leader.Host != other.Host {
			t.Errorf("%s leads on the dead %s", leader.Name, leader.Host.Name)
		}
		load.end()
		load.excuse(t, died)
		load.stop(t)
		t.Logf("node out of the pool %s after it died, and what was new served after %s", out.Round(time.Millisecond), taken.Round(time.Millisecond))
		// The end of the Lease, the time between two looks at it (up to a quarter
		// of that), and a slow machine.
		if limit := 3 * lease; taken > limit {
			t.Errorf("a new Service was served %s after the leader's node died, want %s at most", taken, limit)
		}
	})
	c.heal(t, victim)
	c.balanced(t, at)
}

// kube-proxy is restarted on each node in turn, which closes the health ports
// while its rules go on forwarding: no established connection breaks and no new
// one fails.
func TestKubeProxyRestarts(t *testing.T) {
	c := inLab(t)
	ns := c.namespace(t)
	c.deploy(t, ns, "web", 4)
	s := lab.Service(ns, "web")
	s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "echo", Port: 7, TargetPort: intstr.FromString("tcp-echo")})
	addr := c.serve(t, s)[0]
	answers(t, c.client, netip.AddrPortFrom(addr, 80))
	var talks []*talk
	for range 10 {
		talks = append(talks, startTalk(t, c.client, netip.AddrPortFrom(addr, 7)))
	}
	load := startLoad(t.Context(), c.client, netip.AddrPortFrom(addr, 80), 100)
	for _, n := range c.Nodes {
		if err := n.KubeProxy.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		// Long enough that the edge has a verdict and has asked the node port.
		pause(t.Context(), 5*time.Second)
		if err := n.KubeProxy.Start(); err != nil {
			t.Fatal(err)
		}
		c.untilUp(t, n.Name)
	}
	load.stop(t)
	for i, k := range talks {
		if err := k.end(); err != nil {
			t.Errorf("established connection %d broke: %v", i, err)
		}
	}
}

// Kubelets stop while their nodes work. One: nothing is disturbed. All: the
// nodes turn NotReady, and the edge's pool does not change, because its own
// checks decide. (Kubernetes itself withdraws the endpoints of NotReady nodes,
// so the second Service publishes endpoints that are not ready.)
func TestKubeletsStop(t *testing.T) {
	c := inLab(t)
	ns := c.namespace(t)
	c.deploy(t, ns, "web", 4)
	plain := netip.AddrPortFrom(c.serve(t, lab.Service(ns, "web"))[0], 80)
	published := lab.Service(ns, "published")
	published.Spec.Selector = map[string]string{"app": "web"}
	published.Spec.PublishNotReadyAddresses = true
	always := netip.AddrPortFrom(c.serve(t, published)[0], 80)
	answers(t, c.client, plain)
	answers(t, c.client, always)

	plainLoad := startLoad(t.Context(), c.client, plain, 50)
	alwaysLoad := startLoad(t.Context(), c.client, always, 50)
	t.Cleanup(func() {
		for _, n := range c.Nodes {
			if err := n.Kubelet.Start(); err != nil {
				t.Error(err)
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		for _, n := range c.Nodes {
			if err := n.Ready(ctx); err != nil {
				t.Error(err)
			}
		}
		c.ensureCCM(t)
	})
	if err := c.Nodes[0].Kubelet.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The second node turns NotReady so much later than the first.
	pause(t.Context(), nodeGrace*5/8)
	if err := c.Nodes[1].Kubelet.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.notReady(t, c.Nodes[0].Name)
	pause(t.Context(), 2*time.Second)
	plainLoad.stop(t)

	c.notReady(t, c.Nodes[1].Name)
	pause(t.Context(), 2*time.Second)
	for _, n := range c.Nodes {
		if !c.up(t, n.Name) {
			t.Errorf("node %q is NotReady and left the edge's pool, though it works", n.Name)
		}
	}
	alwaysLoad.stop(t)
	if len(alwaysLoad.nodes) != 2 {
		t.Errorf("answered by %v, want both nodes", alwaysLoad.nodes)
	}
}

// onlyOn runs f while the endpoints of the Service's pods are on the node, so
// that kube-proxy of the other nodes forwards to it, and what f sees is the
// edge's doing and not kube-proxy's.
func (c *cluster) onlyOn(t *testing.T, ns, name, node string, f func()) {
	t.Helper()
	d, err := c.kube.AppsV1().Deployments(ns).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d.Spec.Template.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node}
	if _, err := c.kube.AppsV1().Deployments(ns).Update(t.Context(), d, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitDeployment(t.Context(), ns, name); err != nil {
		t.Fatal(err)
	}
	f()
}

// cut takes the node's link down and brings it up when the test ends.
func (c *cluster) cut(t *testing.T, n *lab.Node) time.Time {
	t.Helper()
	t.Cleanup(func() { _ = n.LinkUp() })
	if err := n.LinkDown(); err != nil {
		t.Fatal(err)
	}
	return time.Now()
}

func (c *cluster) heal(t *testing.T, n *lab.Node) {
	t.Helper()
	if err := n.LinkUp(); err != nil {
		t.Fatal(err)
	}
	c.untilUp(t, n.Name)
	if err := n.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	c.ensureCCM(t)
	t.Logf("a manager leads and has its edges %s after the node was Ready", time.Since(begun).Round(time.Millisecond))
}

// untilDown waits until the edge sends nothing new to the node, and returns how
// long after since that was.
func (c *cluster) untilDown(t *testing.T, node string, since time.Time) time.Duration {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		if c.up(t, node) {
			return fmt.Errorf("node %q is still up in the eyes of the edge", node)
		}
		return nil
	})
	return time.Since(since)
}

func (c *cluster) untilUp(t *testing.T, node string) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		if !c.up(t, node) {
			return fmt.Errorf("node %q is not up in the eyes of the edge", node)
		}
		return nil
	})
}

// balanced waits until both nodes take connections again.
func (c *cluster) balanced(t *testing.T, at netip.AddrPort) {
	t.Helper()
	for _, n := range c.Nodes {
		before := c.metric(t, "eclusa_edge_member_connections_total", "node", n.Name)
		eventually(t, 10*time.Second, func() error {
			if _, err := get(t.Context(), c.client, at); err != nil {
				return err
			}
			if c.metric(t, "eclusa_edge_member_connections_total", "node", n.Name) == before {
				return fmt.Errorf("node %q gets no connection", n.Name)
			}
			return nil
		})
	}
}

func (c *cluster) notReady(t *testing.T, node string) {
	t.Helper()
	eventually(t, 2*time.Minute, func() error {
		n, err := c.kube.CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, cond := range n.Status.Conditions {
			if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue {
				return fmt.Errorf("node %q is still Ready", node)
			}
		}
		return nil
	})
}
