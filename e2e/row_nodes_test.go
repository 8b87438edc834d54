package e2e

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lab"
)

var nodeEntries = []entry{
	{section: "Nodes", name: "excluded by label", alone: true, run: func(t *testing.T, s *stage) {
		leaves(t, s, func(n *lab.Node) { s.label(t, n, corev1.LabelNodeExcludeBalancers, "true") },
			func(n *lab.Node) { s.label(t, n, corev1.LabelNodeExcludeBalancers, "") })
	}},
	tainted("to be deleted by an autoscaler", "ToBeDeletedByClusterAutoscaler"),
	tainted("disrupted by Karpenter", "karpenter.sh/disrupted"),
	tainted("out of service, as an administrator says", "node.kubernetes.io/out-of-service"),
	{section: "Nodes", name: "cordoned nodes stay unless the manager is told otherwise", alone: true, run: cordoned},
	{section: "Nodes", name: "cordoned nodes leave when the manager is told so", told: true, run: func(t *testing.T, s *stage) {
		leaves(t, s, func(n *lab.Node) {
			t.Cleanup(func() { s.patchNode(t, n, `{"spec":{"unschedulable":null}}`) })
			s.patchNode(t, n, `{"spec":{"unschedulable":true}}`)
		}, func(n *lab.Node) { s.patchNode(t, n, `{"spec":{"unschedulable":null}}`) })
	}},
	{section: "Nodes", name: "selected by the Service", run: selected},
	{section: "Nodes", name: "weights", alone: true, run: weights},
}

// tainted makes an entry for a taint that takes a node out. That it evicts no pods is
// the test's choice: they are others' too.
func tainted(name, taint string) entry {
	return entry{section: "Nodes", name: name, alone: true, run: func(t *testing.T, s *stage) {
		leaves(t, s, func(n *lab.Node) {
			t.Cleanup(func() { s.patchNode(t, n, `{"spec":{"taints":null}}`) })
			s.patchNode(t, n, fmt.Sprintf(`{"spec":{"taints":[{"key":%q,"effect":"NoSchedule"}]}}`, taint))
		}, func(n *lab.Node) { s.patchNode(t, n, `{"spec":{"taints":null}}`) })
	}}
}

// leaves takes a node out while a connection through it is open: new connections go
// elsewhere, the open one goes on.
func leaves(t *testing.T, s *stage, out, back func(*lab.Node)) {
	o := s.serve(t, "", local, ports("web 80/TCP http", "echo 7/TCP tcp-echo"), annotated("drain-timeout", "1m"))
	from := fromOutside.of(s)
	victim, other := s.Nodes[0], s.Nodes[1]
	o.untilAll(t)
	talks := []*talk{from.talk(t, o.at(7)), from.talk(t, o.at(7))}
	out(victim)
	eventually(t, 10*time.Second, func() error {
		node, err := from.sameNode(t.Context(), "tcp", o.at(80), 10)
		if err == nil && node != other.Name {
			err = fmt.Errorf("answered on %s, want %s only", node, other.Name)
		}
		return err
	})
	for _, talk := range talks {
		if err := talk.end(); err != nil {
			t.Errorf("an open connection broke when %s left: %v", victim.Name, err)
		}
	}
	back(victim)
	s.untilServing(t, o.at(80), victim.Name)
}

func cordoned(t *testing.T, s *stage) {
	o := s.serve(t, "", local)
	t.Cleanup(func() { s.patchNode(t, s.Nodes[0], `{"spec":{"unschedulable":null}}`) })
	s.patchNode(t, s.Nodes[0], `{"spec":{"unschedulable":true}}`)
	// The Service made after it is served: by then the cordon was seen.
	s.serve(t, "later")
	o.untilAll(t)
	if err := o.members(t, len(s.Nodes)); err != nil {
		t.Error(err)
	}
}

func selected(t *testing.T, s *stage) {
	o := s.serve(t, "", local, annotated("node-selector", corev1.LabelHostname+"="+s.Nodes[1].Name))
	at := o.at(80)
	fromOutside.of(s).answers(t, "tcp", at)
	if node, err := fromOutside.of(s).sameNode(t.Context(), "tcp", at, 10); err != nil || node != s.Nodes[1].Name {
		t.Errorf("answered on %q, %v; want %s only", node, err, s.Nodes[1].Name)
	}
	o.change(t, annotated("node-selector", corev1.LabelHostname+" in ("+s.Nodes[0].Name+")"))
	eventually(t, 10*time.Second, func() error {
		node, err := fromOutside.of(s).sameNode(t.Context(), "tcp", at, 10)
		if err == nil && node != s.Nodes[0].Name {
			err = fmt.Errorf("answered on %s, want %s only", node, s.Nodes[0].Name)
		}
		return err
	})
	bad := s.make(t, "bad", annotated("node-selector", "a in"))
	bad.warns(t, "node-selector", "label selector")
	nobody := s.serve(t, "nobody", annotated("node-selector", "no-such-label"))
	nobody.is(t, "BackendsHealthy", metav1.ConditionFalse, "node")
	fromOutside.of(s).refused(t, "tcp", nobody.at(80))
}

// counted makes n new connections and counts who answered.
func (c caller) counted(t *testing.T, o *served, n int) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for range n {
		a, err := c.ask(t.Context(), "tcp", o.at(80))
		if err != nil {
			t.Fatal(err)
		}
		counts[a.node]++
	}
	return counts
}

func weights(t *testing.T, s *stage) {
	o := s.serve(t, "", local)
	heavy, light := s.Nodes[0], s.Nodes[1]
	t.Cleanup(func() { s.patchNode(t, heavy, `{"metadata":{"annotations":{"eclusa.io/weight":null}}}`) })
	o.untilAll(t)
	s.patchNode(t, heavy, `{"metadata":{"annotations":{"eclusa.io/weight":"3"}}}`)
	quarter := func(what string, counts map[string]int, of int) error {
		if n := counts[light.Name]; n < of/10 || n > of*4/10 {
			return fmt.Errorf("%s: %v of %d connections, want a quarter on %s", what, counts, of, light.Name)
		}
		t.Logf("%s with weights 3 and 1: %v", what, counts)
		return nil
	}
	eventually(t, 20*time.Second, func() error { return quarter("round-robin", fromOutside.of(s).counted(t, o, 100), 100) })
	nodes := s.nodesOfPods(t, s.ns)
	for _, algorithm := range []string{"least-connections", "random-two-choices"} {
		// These look at what is open.
		o := s.serve(t, algorithm, local, ports("echo 7/TCP tcp-echo"), annotated("algorithm", algorithm))
		o.untilAll(t)
		counts := map[string]int{}
		for range 40 {
			counts[nodes[o.startTalk(t).pod]]++
		}
		if err := quarter(algorithm, counts, 40); err != nil {
			t.Error(err)
		}
	}
}

// nodesOfPods says where each pod of the namespace is.
func (c *cluster) nodesOfPods(t *testing.T, ns string) map[string]string {
	t.Helper()
	pods, err := c.kube.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	nodes := map[string]string{}
	for _, p := range pods.Items {
		nodes[p.Name] = p.Spec.NodeName
	}
	return nodes
}

var nodeAddressEntries = []entry{
	{section: "Nodes", name: "are reached at their InternalIP before their ExternalIP", alone: true, run: func(t *testing.T, s *stage) {
		addressTypes(t, s, corev1.NodeInternalIP, corev1.NodeExternalIP)
	}},
	{section: "Nodes", name: "are reached at the types of addresses and in the order that the manager is told", told: true, run: func(t *testing.T, s *stage) {
		addressTypes(t, s, corev1.NodeExternalIP, corev1.NodeInternalIP)
	}},
}

// addressTypes has a second Node for the machine of the first, whose addresses may be
// what the test likes. Nobody answers at the other address.
func addressTypes(t *testing.T, s *stage, first, second corev1.NodeAddressType) {
	live, dead := s.Nodes[0].Addr4.String(), "172.30.0.97"
	name := "twin-" + s.title
	s.twin(t, name)
	o := s.serve(t, "", annotated("node-selector", corev1.LabelHostname+"="+name, "health-check-interval", "500ms",
		"health-check-timeout", "250ms", "health-check-healthy-threshold", "1", "health-check-unhealthy-threshold", "1"))
	from := fromOutside.of(s)
	address := func(of corev1.NodeAddressType, a string) corev1.NodeAddress {
		return corev1.NodeAddress{Type: of, Address: a}
	}
	checked := func(want healthcheck.State) {
		t.Helper()
		eventually(t, 10*time.Second, func() error {
			if _, on := o.probed(t); len(on) != 1 || on[name] != want {
				return fmt.Errorf("the edge finds %v, want %s alone and %s", on, name, want)
			}
			return nil
		})
	}
	s.addressed(t, name, address(second, dead), address(first, live))
	checked(healthcheck.Up)
	o.explained(t, name+" "+live+":")
	from.answers(t, "tcp", o.at(80))
	s.addressed(t, name, address(second, live), address(first, dead))
	checked(healthcheck.Down)
	o.explained(t, name+" "+dead+":")
	s.addressed(t, name, address(second, live))
	checked(healthcheck.Up)
	from.answers(t, "tcp", o.at(80))
	s.addressed(t, name, address(corev1.NodeHostName, live))
	o.is(t, "BackendsHealthy", metav1.ConditionFalse, "node")
	from.refused(t, "tcp", o.at(80))
}

// twin makes a Node without a machine, where no pod is put.
func (s *stage) twin(t *testing.T, name string) {
	t.Helper()
	nodes := s.kube.CoreV1().Nodes()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
	n.Spec.Taints = []corev1.Taint{{Key: "e2e/no-machine", Effect: corev1.TaintEffectNoSchedule}}
	if _, err := nodes.Create(t.Context(), n, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := nodes.Delete(cleanup(t), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// addressed gives a Node other addresses.
func (s *stage) addressed(t *testing.T, name string, addresses ...corev1.NodeAddress) {
	t.Helper()
	eventually(t, 10*time.Second, func() error { // somebody else may write to it too
		n, err := s.kube.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		n.Status.Addresses = addresses
		_, err = s.kube.CoreV1().Nodes().UpdateStatus(t.Context(), n, metav1.UpdateOptions{})
		return err
	})
}
