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

// An edge that leaves clients their own addresses, which pods see.
//
// A Service without node ports, to whose nodes it routes packets as they are, is
// served whether answers pass the edge by or go through it, and a node that dies
// takes no more connections. A Service with node ports is served if the edge is the
// nodes' route to the clients. With policy Cluster both are served as well, though
// kube-proxy then puts a node's address in.
func TestClientsAreSeen(t *testing.T) {
	c := inLab(t)
	c.carryInKernel(t, "sourceNAT: false, direct: true")
	ns := c.namespace(t)
	c.deploy(t, ns, "web", 4)
	c.makePool(t, "direct", "172.30.0.195/32", nil)
	c.reshape(t, "direct", map[string]any{"forwarding": "Direct"})
	s := lab.Service(ns, "web")
	s.Annotations = map[string]string{"eclusa.io/address-pool": "direct"}
	s.Spec.AllocateLoadBalancerNodePorts = ptr(false)
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{
		Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53, TargetPort: intstr.FromString("udp-echo"),
	})
	addr := c.serve(t, s)[0]
	t.Cleanup(func() { // before the pool goes
		if err := poll(context.Background(), 20*time.Second, func() error { return c.withoutServices(context.Background(), ns) }); err != nil {
			t.Error(err)
		}
	})
	c.condition(t, ns, "web", "Programmed", metav1.ConditionTrue)
	got := c.service(t, ns, "web")
	for _, p := range got.Spec.Ports {
		if p.NodePort != 0 {
			t.Errorf("port %q has the node port %d; want none", p.Name, p.NodePort)
		}
	}
	if mode := got.Status.LoadBalancer.Ingress[0].IPMode; mode == nil || *mode != corev1.LoadBalancerIPModeVIP {
		t.Errorf("ipMode: got %v; want VIP", mode)
	}
	t.Run("AnswersPastTheEdge", func(t *testing.T) { c.seesClient(t, addr) })
	t.Run("AnswersThroughTheEdge", func(t *testing.T) {
		c.answerThroughEdge(t)
		c.seesClient(t, addr)
		t.Run("NodePorts", func(t *testing.T) { c.leavesSources(t, ns) })
	})
	t.Run("DeadNode", func(t *testing.T) { c.routesAround(t, addr) })
	t.Run("PolicyCluster", func(t *testing.T) {
		c.update(t, ns, "web", func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster })
		c.hidesClient(t, addr)
	})
}

// answerThroughEdge makes the edge the nodes' route to the client.
func (c *cluster) answerThroughEdge(t *testing.T) {
	t.Helper()
	for _, n := range c.Nodes {
		for _, route := range [][]string{{c.client.Addr4.String() + "/32", "via", c.edge.Addr4.String()}, {c.client.Addr6.String() + "/128", "via", c.edge.Addr6.String()}} {
			command(t, n.Host, append([]string{"ip", "route", "add"}, route...)...)
			t.Cleanup(func() {
				if out, err := n.Command(context.Background(), append([]string{"ip", "route", "del"}, route...)...).CombinedOutput(); err != nil {
					t.Errorf("%v: %s", err, out)
				}
			})
		}
	}
}

// leavesSources serves a Service with node ports of either policy.
func (c *cluster) leavesSources(t *testing.T, ns string) {
	s := lab.Service(ns, "ports")
	s.Spec.Selector = map[string]string{"app": "web"}
	dualStack(s)
	local(s)
	ports("web 80/TCP http", "dns 53/UDP udp-echo")(s)
	addrs := c.serve(t, s)
	for _, a := range addrs {
		c.seesClient(t, a)
	}
	c.update(t, ns, s.Name, func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster })
	for _, a := range addrs {
		c.hidesClient(t, a)
	}
}

// hidesClient asks until pods see a node's address, which they do once policy Cluster
// is in force.
func (c *cluster) hidesClient(t *testing.T, addr netip.Addr) {
	t.Helper()
	for _, protocol := range protocols {
		eventually(t, 10*time.Second, func() error {
			got, err := caller{host: c.client}.ask(t.Context(), protocol, directPort(addr, protocol))
			if client, _ := netip.ParseAddrPort(got.client); err == nil && client.Addr() == c.clientOf(addr) {
				err = fmt.Errorf("%s %s: the pod on %q sees %s; want a node's address under policy Cluster", protocol, addr, got.node, got.client)
			}
			return err
		})
	}
}

func directPort(addr netip.Addr, protocol string) netip.AddrPort {
	if protocol == "udp" {
		return netip.AddrPortFrom(addr, 53)
	}
	return netip.AddrPortFrom(addr, 80)
}

// clientOf is the client's address of the same family.
func (c *cluster) clientOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return c.client.Addr4
	}
	return c.client.Addr6
}

// seesClient asks until pods on all nodes have answered, all of whom have to see the
// client's own address.
func (c *cluster) seesClient(t *testing.T, addr netip.Addr) {
	t.Helper()
	for _, protocol := range protocols {
		from, at, nodes := caller{host: c.client}, directPort(addr, protocol), map[string]bool{}
		from.answers(t, protocol, at)
		eventually(t, 10*time.Second, func() error {
			got, err := from.ask(t.Context(), protocol, at)
			if err != nil {
				return err
			}
			if client, err := netip.ParseAddrPort(got.client); err != nil || client.Addr() != c.clientOf(addr) {
				t.Errorf("%s: the pod on %q sees %s; want the client's %s", protocol, got.node, got.client, c.clientOf(addr))
			}
			nodes[got.node] = true
			if len(nodes) < len(c.Nodes) {
				return fmt.Errorf("%s: answers came from %v only", protocol, nodes)
			}
			return nil
		})
	}
}

// routesAround cuts a node off.
func (c *cluster) routesAround(t *testing.T, addr netip.Addr) {
	victim, other := c.Nodes[0], c.Nodes[1]
	if c.leader(t).Host == victim.Host {
		victim, other = other, victim
	}
	died := c.cut(t, victim)
	if out := c.untilDown(t, victim.Name, died); out > deadNodeLimit {
		t.Errorf("node %q took %s to be out, want %s at most", victim.Name, out, deadNodeLimit)
	}
	eventually(t, 5*time.Second, func() error {
		for _, protocol := range protocols {
			got, err := caller{host: c.client}.sameNode(t.Context(), protocol, directPort(addr, protocol), 10)
			if err != nil || got != other.Name {
				return fmt.Errorf("%s: answered on %q, %w; want %q", protocol, got, err, other.Name)
			}
		}
		return nil
	})
	c.heal(t, victim)
	c.seesClient(t, addr)
}
