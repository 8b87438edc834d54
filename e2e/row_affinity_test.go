package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/eclusa-lb/eclusa/lab"
)

func affinity(seconds int32) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
}

func noAffinity(s *corev1.Service) {
	s.Spec.SessionAffinity, s.Spec.SessionAffinityConfig = corev1.ServiceAffinityNone, nil
}

var affinityEntries = []entry{
	{section: "Session affinity", name: "IPv4, members come and go", run: func(t *testing.T, s *stage) { membersComeAndGo(t, s, guest, false) }},
	{section: "Session affinity", name: "IPv6, members come and go", run: func(t *testing.T, s *stage) { membersComeAndGo(t, s, guest6, true) }},
	{section: "Session affinity", name: "over UDP", run: affinityOverUDP},
	{section: "Session affinity", name: "is switched on and off", run: affinitySwitches},
	{section: "Session affinity", name: "from a pod", run: affinityFromPod},
}

// With externalTrafficPolicy Local a node answers by itself, so that who answers is
// who the edge has chosen.
func membersComeAndGo(t *testing.T, s *stage, guest func(int) netip.Addr, six bool) {
	label := "e2e/" + s.title
	if len(label) > 60 {
		label = label[:60]
	}
	for _, n := range s.Nodes {
		s.label(t, n, label, "yes")
	}
	const timeout = 6 * time.Second
	o := s.serve(t, "", dualStack, local, affinity(int32(timeout/time.Second)), annotated("node-selector", label+"=yes"))
	at := o.of(t, six, 80)
	o.untilAll(t)
	first := s.everyGuest(t, guest, "tcp", at, 4)
	for _, n := range s.Nodes {
		if !slices.Contains(first, n.Name) {
			t.Errorf("%d clients are all served by other nodes than %s: %v", len(first), n.Name, first)
		}
	}
	lost, kept := s.Nodes[0].Name, s.Nodes[1].Name
	s.label(t, s.Nodes[0], label, "")
	eventually(t, 10*time.Second, func() error {
		for i := range guestCount {
			a, err := caller{s.client, guest(i)}.ask(t.Context(), "tcp", at)
			if err != nil {
				return err
			}
			if a.node == lost {
				return fmt.Errorf("%s, which is no member any more, serves %s", lost, guest(i))
			}
		}
		return nil
	})
	s.label(t, s.Nodes[0], label, "yes")
	eventually(t, 10*time.Second, func() error { return o.members(t, len(s.Nodes)) })
	after := s.everyGuest(t, guest, "tcp", at, 2)
	for i := range guestCount {
		switch {
		case first[i] == kept && after[i] != kept:
			t.Errorf("client %s was moved from %s to %s, though %s was there all the time", guest(i), first[i], after[i], kept)
		case after[i] != kept:
			t.Errorf("client %s was moved away from %s, which took it over, when %s came back", guest(i), kept, lost)
		}
	}
	// Who stays away for longer is new, and goes where new clients of its address go.
	pause(t.Context(), timeout+500*time.Millisecond)
	if again := s.everyGuest(t, guest, "tcp", at, 1); !slices.Equal(again, first) {
		t.Errorf("after the timeout the clients are served by %v, want %v as in the beginning", again, first)
	}
}

// everyGuest asks with every guest, n times each, wants each to be served by one
// node, and returns them.
func (s *stage) everyGuest(t *testing.T, guest func(int) netip.Addr, network string, at netip.AddrPort, n int) []string {
	t.Helper()
	nodes := make([]string, guestCount)
	for i := range guestCount {
		var err error
		if nodes[i], err = (caller{s.client, guest(i)}).sameNode(t.Context(), network, at, n); err != nil {
			t.Error(err)
		}
	}
	return nodes
}

func affinityOverUDP(t *testing.T, s *stage) {
	o := s.serve(t, "", local, affinity(600), ports("dns 53/UDP udp-echo"))
	o.untilAll(t)
	s.everyGuest(t, guest, "udp", o.at(53), 3)
}

// Without affinity round robin sends the second connection elsewhere.
func affinitySwitches(t *testing.T, s *stage) {
	o := s.serve(t, "", local)
	from := fromOutside.of(s)
	o.untilAll(t)
	sticks := func() error {
		_, err := from.sameNode(t.Context(), "tcp", o.at(80), 8)
		return err
	}
	if sticks() == nil {
		t.Error("without affinity eight connections went to one node")
	}
	o.change(t, affinity(600))
	eventually(t, 10*time.Second, sticks)
	o.change(t, noAffinity)
	eventually(t, 10*time.Second, func() error {
		if sticks() == nil {
			return fmt.Errorf("%s sticks to a node though affinity is off", from)
		}
		return nil
	})
	o.change(t, affinity(600))
	eventually(t, 10*time.Second, sticks)
}

func affinityFromPod(t *testing.T, s *stage) {
	o := s.serve(t, "", local, affinity(600))
	o.untilAll(t)
	if _, err := fromPod.of(s).sameNode(t.Context(), "tcp", o.at(80), 10); err != nil {
		t.Error(err)
	}
}

// untilServing waits until the node answers: asked by many clients, for one may
// stick to another.
func (s *stage) untilServing(t *testing.T, at netip.AddrPort, node string) {
	t.Helper()
	i := 0
	network := "tcp"
	if at.Port() == 53 {
		network = "udp"
	}
	eventually(t, 15*time.Second, func() error {
		i++
		from := caller{s.client, netip.AddrFrom4([4]byte{172, 31, 0, byte(100 + i%guestCount)})}
		if at.Addr().Is6() {
			from.from = guest6(i % guestCount)
		}
		a, err := from.ask(t.Context(), network, at)
		if err == nil && a.node != node {
			err = fmt.Errorf("%s is answered on %s, want %s too", at, a.node, node)
		}
		return err
	})
}

// label sets a label of the node; an empty value takes it away. It is taken away at
// the end in any case.
func (s *stage) label(t *testing.T, n *lab.Node, name, value string) {
	t.Helper()
	text := "null"
	if value != "" {
		text = fmt.Sprintf("%q", value)
		t.Cleanup(func() { s.patchNode(t, n, fmt.Sprintf(`{"metadata":{"labels":{%q:null}}}`, name)) })
	}
	s.patchNode(t, n, fmt.Sprintf(`{"metadata":{"labels":{%q:%s}}}`, name, text))
}

func (s *stage) patchNode(t *testing.T, n *lab.Node, patch string) {
	t.Helper()
	ctx := t.Context()
	if ctx.Err() != nil {
		ctx = cleanup(t)
	}
	if _, err := s.kube.CoreV1().Nodes().Patch(ctx, n.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Errorf("node %q: %v", n.Name, err)
	}
}
