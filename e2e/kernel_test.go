package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/eclusa-lb/eclusa/lab"
)

// An edge whose kernel carries the traffic: both protocols and families, from
// outside and from a pod. The program stops, is killed and begins again unnoticed,
// while one manager leads no more and another does not yet; pods are replaced again
// and again, with the disk full; and with the whole control plane gone a node that
// dies takes its connections with it, none of which hangs.
func TestKernelEngine(t *testing.T) {
	c := inLab(t)
	// In the nodes' network, where neither nodes nor load balancers have addresses.
	c.addAddresses(t, "172.30.0.160", "172.30.0.161", "172.30.0.162", "172.30.0.163")
	c.carryInKernel(t, "sourceAddresses: [172.30.0.160/30]")
	c.onSmallDisk(t)
	ns := c.namespace(t)
	rolled := c.startRolled(t, ns) // it is waited for when it is needed
	c.deploy(t, ns, "web", 2)
	s := lab.Service(ns, "web")
	local(s) // so that what is seen of a node that dies is not kube-proxy's doing on the other
	s.Spec.IPFamilyPolicy = ptr(corev1.IPFamilyPolicyPreferDualStack)
	s.Spec.Ports = append(s.Spec.Ports,
		corev1.ServicePort{Name: "echo", Port: 7000, TargetPort: intstr.FromString("tcp-echo")},
		corev1.ServicePort{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53, TargetPort: intstr.FromString("udp-echo")})
	addrs := c.serve(t, s)
	for _, from := range []*lab.Host{c.client, c.podOn(t, ns, "web", c.Nodes[0])} {
		for _, a := range addrs {
			answers(t, from, netip.AddrPortFrom(a, 80))
			eventually(t, 10*time.Second, func() error {
				got, err := askUDP(t.Context(), from, netip.AddrPortFrom(a, 53), "question")
				if err == nil && !strings.HasSuffix(got, " question") {
					err = fmt.Errorf("answer %q is not the pod's echo", got)
				}
				return err
			})
		}
	}
	t.Run("TwoLeaders", func(t *testing.T) {
		c.twoLeaders(t, ns, map[string]netip.Addr{"web": addrs[0]}, func() {
			t.Run("Restart", func(t *testing.T) { c.restartUnnoticed(t, addrs[0]) })
		})
	})
	t.Run("FullDisk", func(t *testing.T) { c.fillDisk(t, rolled, addrs[0]) })
	t.Run("DeadNode", func(t *testing.T) { c.dieWithoutHanging(t, addrs[0]) })
}

// restartUnnoticed ends the edge's program for a while, under load, in both ways.
func (c *cluster) restartUnnoticed(t *testing.T, addr netip.Addr) {
	load := startLoad(t.Context(), c.client, netip.AddrPortFrom(addr, 80), 50)
	ask := startAsking(t, c.client, netip.AddrPortFrom(addr, 53), 21000)
	var talks []*talk
	for range 5 {
		talks = append(talks, startTalk(t, c.client, netip.AddrPortFrom(addr, 7000)))
	}
	for _, end := range []func() error{func() error { return c.edge.Process.Stop(t.Context()) }, c.edge.Process.Kill} {
		pause(t.Context(), 500*time.Millisecond)
		before, made := c.metric(t, "eclusa_edge_connections_total", "", ""), load.made()
		if err := end(); err != nil {
			t.Fatal(err)
		}
		pause(t.Context(), 1500*time.Millisecond) // of load on the kernel alone
		made = load.made() - made
		c.startEdge(t)
		after := c.metric(t, "eclusa_edge_connections_total", "", "")
		// Those that were under way at the first look were counted then.
		if made < 20 || after-before < float64(made-10) {
			t.Errorf("connections counted: %g before the program ended and %g after, with %d in between; want the kernel's count to go on", before, after, made)
		}
	}
	pause(t.Context(), time.Second)
	for i, k := range talks {
		if err := k.end(); err != nil {
			t.Errorf("established connection %d: %v", i, err)
		}
	}
	if err := ask.end(); err != nil {
		t.Errorf("UDP: %v", err)
	}
	load.stop(t)
}

// startRolled begins to run pods that are replaced five times within some seconds.
func (c *cluster) startRolled(t *testing.T, ns string) *appsv1.Deployment {
	t.Helper()
	d := lasting(lab.Deployment(ns, "rolled", 2))
	d.Spec.Strategy.RollingUpdate.MaxSurge = ptr(intOrString(2)) // all at once, which is quicker
	// A node whose new pods are elsewhere gets connections until the edge has seen so,
	// and kube-proxy gives them to any of its old pods, those of the update before
	// among them. These have to outlast it.
	spec := &d.Spec.Template.Spec
	spec.TerminationGracePeriodSeconds = ptr(int64(20))
	spec.Containers[0].Lifecycle.PreStop.Sleep.Seconds = 15
	d, err := c.kube.AppsV1().Deployments(ns).Create(t.Context(), d, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// fillDisk has things change while the edge cannot save them: a Service is new, and
// the Deployment is updated, behind one of policy Local. Nor can it when it is killed
// and begins again with what it has saved before, among which is addr.
func (c *cluster) fillDisk(t *testing.T, rolled *appsv1.Deployment, addr netip.Addr) {
	makeRoom := c.fill(t, c.edge.StateDir())
	var rolling sync.WaitGroup
	rolling.Go(func() {
		t.Run("RollingUpdates", func(t *testing.T) { c.roll(t, rolled, 5, 200).fewFailed(t) })
	})
	defer rolling.Wait()
	s := lab.Service(rolled.Namespace, "unsaved")
	s.Spec.Selector = map[string]string{"app": "web"}
	unsaved := netip.AddrPortFrom(c.serve(t, s)[0], 80)
	answers(t, c.client, unsaved)
	ready := func() string { return c.readyz(c.edge.Management()) }
	shows(t, ready, "is served but cannot be saved")
	shows(t, func() string { return c.kubectl(t.Context(), "describe", "edge", c.edge.Name) }, "NotDurable")
	rolling.Wait()
	shows(t, ready, "is served but cannot be saved")
	load := startLoad(t.Context(), c.client, netip.AddrPortFrom(addr, 80), 50)
	if err := c.edge.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.edge.Process.Start(); err != nil {
		t.Fatal(err)
	}
	shows(t, ready, "is served but cannot be saved")
	pause(t.Context(), time.Second) // of load on an edge that has begun with less
	answers(t, c.client, unsaved)   // the manager has written it again
	load.stop(t)
	makeRoom()
	if err := c.edge.Ready(t.Context()); err != nil {
		t.Error(err)
	}
}

// onSmallDisk gives the edge a state directory that is easily filled, and empty, until
// the test ends.
func (c *cluster) onSmallDisk(t *testing.T) {
	t.Helper()
	if err := c.edge.Process.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.startEdge(t) })
	c.mountSmall(t, c.edge.StateDir())
	t.Cleanup(func() {
		if err := c.edge.Process.Kill(); err != nil {
			t.Error(err)
		}
	})
	c.startEdge(t)
}

// startEdge starts the edge's program and waits until it is ready.
func (c *cluster) startEdge(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	if err := c.edge.Process.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.edge.Ready(ctx); err != nil {
		t.Fatal(err)
	}
}

// dieWithoutHanging cuts a node off, with connections through it and nobody but the
// edge to see it.
func (c *cluster) dieWithoutHanging(t *testing.T, addr netip.Addr) {
	victim := c.Nodes[0]
	var talks []*talk
	for range 20 {
		talks = append(talks, startTalk(t, c.client, netip.AddrPortFrom(addr, 7000)))
	}
	if err := c.Manager.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.ensureCCM(t) })
	thaw := c.freezeControlPlane(t)
	load := startLoad(t.Context(), c.client, netip.AddrPortFrom(addr, 80), 50)
	died := c.cut(t, victim)
	out := c.untilDown(t, victim.Name, died)
	if out > deadNodeLimit {
		t.Errorf("node %q took %s to be out, want %s at most", victim.Name, out, deadNodeLimit)
	}
	// Those that were reset know it by now; the others go on. Whether the node's port
	// is dead too is tried three times more before anything is cut.
	pause(t.Context(), time.Until(died.Add(deadNodeLimit+3*time.Second)))
	reset := 0
	for i, k := range talks {
		err := k.end()
		if errors.Is(err, syscall.ECONNRESET) {
			reset++
		} else if err != nil {
			t.Errorf("established connection %d: got %v; want it to go on or to be reset", i, err)
		}
	}
	if reset == 0 || reset == len(talks) {
		t.Errorf("connections reset: got %d of %d; want those of one of two nodes", reset, len(talks))
	}
	load.end()
	load.excuse(t, died.Add(out))
	load.stop(t)
	t.Logf("node out %s after it died, %d of %d connections reset", out.Round(time.Millisecond), reset, len(talks))
	if err := victim.LinkUp(); err != nil {
		t.Fatal(err)
	}
	c.untilUp(t, victim.Name)
	c.balanced(t, netip.AddrPortFrom(addr, 80))
	thaw()
	c.heal(t, victim)
}

// freezeControlPlane has the whole control plane do nothing and answer nobody, until
// thaw is called.
func (c *cluster) freezeControlPlane(t *testing.T) (thaw func()) {
	t.Helper()
	thaw = func() {
		for _, p := range c.ControlPlane.Processes() {
			if err := p.Thaw(); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(thaw)
	for _, p := range c.ControlPlane.Processes() {
		if err := p.Freeze(); err != nil {
			t.Fatal(err)
		}
	}
	return thaw
}

// addAddresses gives the edge more addresses, until the test ends.
func (c *cluster) addAddresses(t *testing.T, addrs ...string) {
	t.Helper()
	for _, a := range addrs {
		command(t, c.edge.Host, "ip", "address", "add", a+"/32", "dev", "eth0")
		t.Cleanup(func() {
			if out, err := c.edge.Command(context.Background(), "ip", "address", "del", a+"/32", "dev", "eth0").CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

// carryInKernel gives the edge the engine nftables with these settings, until the
// test ends.
func (c *cluster) carryInKernel(t *testing.T, settings string) {
	t.Helper()
	before, err := os.ReadFile(c.edge.ConfigPath())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.carryInProxy(t, before) })
	text := strings.Replace(string(before), "engine: proxy\n", "engine: nftables\nnftables: {"+settings+"}\n", 1)
	if err := os.WriteFile(c.edge.ConfigPath(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, c.edge.Host, c.edge.Process.Args[0], "--check-engine", "--config", c.edge.ConfigPath())
	if err := c.edge.Process.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.edge.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// carryInProxy takes the engine's traces away and goes back to the edge as it was.
func (c *cluster) carryInProxy(t *testing.T, config []byte) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	steps := []func() error{
		func() error { return c.edge.Process.Stop(ctx) },
		func() error {
			out, err := c.edge.Command(ctx, c.edge.Process.Args[0], "--cleanup", "--config", c.edge.ConfigPath()).CombinedOutput()
			if err != nil {
				return fmt.Errorf("--cleanup: %w: %s", err, out)
			}
			return nil
		},
		func() error { return os.WriteFile(c.edge.ConfigPath(), config, 0o600) },
		c.edge.Process.Start,
		func() error { return c.edge.Ready(ctx) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			t.Error(err)
			return
		}
	}
}
