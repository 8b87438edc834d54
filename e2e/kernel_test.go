package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/eclusa-lb/eclusa/lab"
)

// An edge whose kernel carries the traffic: both protocols and families, from
// outside and from a pod; the program ends and begins again unnoticed; a node that
// dies takes its connections with it, and none of them hangs.
func TestKernelEngine(t *testing.T) {
	c := inLab(t)
	c.carryInKernel(t)
	ns := c.namespace(t)
	c.deploy(t, ns, "web", 4)
	s := lab.Service(ns, "web")
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
	t.Run("Restart", func(t *testing.T) { c.restartUnnoticed(t, addrs[0]) })
	t.Run("DeadNode", func(t *testing.T) { c.dieWithoutHanging(t, ns, addrs[0]) })
}

// restartUnnoticed stops the edge's program for a while, under load.
func (c *cluster) restartUnnoticed(t *testing.T, addr netip.Addr) {
	load := startLoad(t.Context(), c.client, netip.AddrPortFrom(addr, 80), 50)
	ask := startAsking(t, c.client, netip.AddrPortFrom(addr, 53), 21000)
	var talks []*talk
	for range 5 {
		talks = append(talks, startTalk(t, c.client, netip.AddrPortFrom(addr, 7000)))
	}
	pause(t.Context(), time.Second)
	before := c.metric(t, "eclusa_edge_connections_total", "", "")
	if err := c.edge.Process.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	pause(t.Context(), 2*time.Second) // of load on the kernel alone
	if err := c.edge.Process.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.edge.Ready(t.Context()); err != nil {
		t.Fatal(err)
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
	if after := c.metric(t, "eclusa_edge_connections_total", "", ""); after < before+100 {
		t.Errorf("connections counted: %g before the restart and %g after; want the kernel's count to go on", before, after)
	}
}

// dieWithoutHanging cuts a node off, with connections through it.
func (c *cluster) dieWithoutHanging(t *testing.T, ns string, addr netip.Addr) {
	victim, other := c.Nodes[0], c.Nodes[1]
	if c.leader(t).Host == victim.Host {
		victim, other = other, victim
	}
	c.onlyOn(t, ns, "web", other.Name, func() {
		var talks []*talk
		for range 10 {
			talks = append(talks, startTalk(t, c.client, netip.AddrPortFrom(addr, 7000)))
		}
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
	})
	c.heal(t, victim)
	c.balanced(t, netip.AddrPortFrom(addr, 80))
}

// carryInKernel gives the edge the engine nftables, until the test ends.
func (c *cluster) carryInKernel(t *testing.T) {
	t.Helper()
	// In the nodes' network, where neither nodes nor load balancers have addresses.
	sources := []string{"172.30.0.160", "172.30.0.161", "172.30.0.162", "172.30.0.163"}
	before, err := os.ReadFile(c.edge.ConfigPath())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.carryInProxy(t, before, sources) })
	for _, a := range sources {
		command(t, c.edge.Host, "ip", "address", "add", a+"/32", "dev", "eth0")
	}
	text := strings.Replace(string(before), "engine: proxy\n", "engine: nftables\nnftables: {sourceAddresses: [172.30.0.160/30], direct: true}\n", 1)
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
func (c *cluster) carryInProxy(t *testing.T, config []byte, sources []string) {
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
	for _, a := range sources {
		steps = append(steps, func() error {
			return c.edge.Command(ctx, "ip", "address", "del", a+"/32", "dev", "eth0").Run()
		})
	}
	for _, step := range steps {
		if err := step(); err != nil {
			t.Error(err)
			return
		}
	}
}
