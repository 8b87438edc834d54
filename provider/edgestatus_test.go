package provider

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

var noon = time.Date(2025, 11, 23, 12, 0, 0, 0, time.UTC)

// serving is an edge that serves one load balancer, refuses one, lacks what one
// needs, and sees one of three nodes down.
func serving() (Wanted, EdgeState) {
	c := config(8, 3, 2)
	return Wanted{Config: c}, EdgeState{
		Name: "a", Connected: true, Known: true, Desired: 8, Holds: c, DriftRepaired: 2,
		Info: lb.Info{Name: "edge-1", Version: "v1.0", Engine: "proxy", Schema: "v1", Capabilities: []lb.Capability{lb.CapTCP, lb.CapUDP}},
		Status: lb.Status{
			Cursor: "1.5", Revision: 7, Durable: true,
			LoadBalancers: map[lb.UID]lb.LoadBalancerStatus{
				uid(0):  {Applied: true},
				uid(1):  {Problems: []lb.Problem{{Type: "address-held", Field: "addresses[0]", Detail: "192.0.0.1 is taken"}}},
				"stray": {Applied: true},
			},
			Checks: map[lb.CheckID]map[lb.NodeName]lb.MemberStatus{
				"http:10256/healthz": {
					"node-000": {State: healthcheck.Up, Since: noon},
					"node-001": {State: healthcheck.Down, Dead: true, Since: noon.Add(time.Millisecond), Reason: healthcheck.Timeout, Error: "no answer within 500ms"},
				},
				"http:30001/healthz": {"node-001": {State: healthcheck.Draining, Since: noon, Reason: healthcheck.HTTPStatus}},
			},
		},
		Withheld: map[lb.UID]lb.Problem{uid(2): {Type: "unsupported", Detail: "no sctp"}},
	}
}

func TestEdgeStatus(t *testing.T) {
	w, s := serving()
	got := edgeStatus(w, s, v1alpha1.EdgeStatus{}, 3, noon)
	want := v1alpha1.EdgeStatus{
		Conditions: []metav1.Condition{
			{Type: "Ready", Status: "True", ObservedGeneration: 3, LastTransitionTime: metav1.NewTime(noon), Reason: "Serving", Message: "the edge is reached and takes what is wanted"},
			{Type: "RemovalHeld", Status: "False", ObservedGeneration: 3, LastTransitionTime: metav1.NewTime(noon), Reason: "NothingHeld", Message: "no removal waits"},
		},
		Name: "edge-1", Engine: "proxy", Version: "v1.0", Capabilities: []string{"tcp", "udp"},
		DesiredRevision: 8, AppliedRevision: 7, LoadBalancers: 3, LoadBalancersApplied: 1,
		Refused: []v1alpha1.RefusedService{
			{Service: "default/s-1", Reason: "address-held", Message: "addresses[0]: 192.0.0.1 is taken"},
			{Service: "default/s-2", Reason: "unsupported", Message: "no sctp"},
		},
		Backends: 3, BackendsUp: 1,
		SickNodes: []v1alpha1.SickNode{
			{Node: "node-001", Check: "http:10256/healthz", State: "down", Message: "no answer within 500ms; its node port does not answer either", Since: metav1.NewTime(noon)},
			{Node: "node-001", Check: "http:30001/healthz", State: "draining", Message: "http-status", Since: metav1.NewTime(noon)},
		},
		DriftRepaired: 2,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

func TestEdgeStatusConditions(t *testing.T) {
	for _, test := range []struct {
		name    string
		change  func(*Wanted, *EdgeState)
		kind    string
		status  metav1.ConditionStatus
		reason  string
		message string
	}{
		{"gone", func(_ *Wanted, s *EdgeState) { s.Connected, s.Problem = false, "connection refused" }, "Ready", "False", "Unreachable", "connection refused"},
		{"refuses", func(_ *Wanted, s *EdgeState) { s.Problem = "too many" }, "Ready", "False", "Rejected", "too many"},
		{"paused", func(w *Wanted, _ *EdgeState) { w.Paused = true }, "Ready", "True", "Paused", "spec.paused is set"},
		{"paused and gone", func(w *Wanted, s *EdgeState) { w.Paused, s.Connected, s.Problem = true, false, "no route" }, "Ready", "False", "Unreachable", "no route"},
		{"disk full", func(_ *Wanted, s *EdgeState) { s.Status.Durable = false }, "Ready", "True", "NotDurable", "cannot save it"},
		{"held", func(_ *Wanted, s *EdgeState) { s.RemovalHeld = []string{"nodes/a", "nodes/b"} }, "RemovalHeld", "True", "Unconfirmed", "2 removals"},
		{"held, how to release", func(_ *Wanted, s *EdgeState) { s.RemovalHeld = []string{"nodes/a"} }, "RemovalHeld", "True", "Unconfirmed", v1alpha1.ReleaseRemovalsAnnotation},
		{"endless problem", func(_ *Wanted, s *EdgeState) { s.Problem = strings.Repeat("ä", 40000) }, "Ready", "False", "Rejected", "..."},
	} {
		t.Run(test.name, func(t *testing.T) {
			w, s := serving()
			test.change(&w, &s)
			c := meta.FindStatusCondition(edgeStatus(w, s, v1alpha1.EdgeStatus{}, 1, noon).Conditions, test.kind)
			if c == nil || c.Status != test.status || c.Reason != test.reason || !strings.Contains(c.Message, test.message) || len(c.Message) > maxMessage {
				t.Errorf("got %+v; want %s, %s, with %q", c, test.status, test.reason, test.message)
			}
		})
	}
}

func TestEdgeStatusKeepsTransitions(t *testing.T) {
	w, s := serving()
	before := edgeStatus(w, s, v1alpha1.EdgeStatus{}, 1, noon)
	kept := slices.Clone(before.Conditions)
	after := edgeStatus(w, s, before, 1, noon.Add(time.Hour))
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("the same state an hour later has another status (-before +after):\n%s", diff)
	}
	s.Connected, s.Problem = false, "gone"
	after = edgeStatus(w, s, before, 1, noon.Add(time.Hour))
	if c := meta.FindStatusCondition(after.Conditions, "Ready"); !c.LastTransitionTime.Time.Equal(noon.Add(time.Hour)) {
		t.Errorf("turned at %s, want an hour after noon", c.LastTransitionTime)
	}
	if diff := cmp.Diff(kept, before.Conditions); diff != "" {
		t.Errorf("the status before was changed:\n%s", diff)
	}
}

func TestEdgeStatusBeginsWithWhatWasKnown(t *testing.T) {
	w, s := serving()
	was := edgeStatus(w, s, v1alpha1.EdgeStatus{}, 1, noon)
	later := noon.Add(time.Hour)
	if diff := cmp.Diff(was, edgeStatus(w, EdgeState{Name: "a"}, was, 1, later)); diff != "" {
		t.Errorf("a leader that has not reached the edge changes its status:\n%s", diff)
	}
	reached := EdgeState{Name: "a", Connected: true, Info: s.Info, DriftRepaired: s.DriftRepaired}
	if diff := cmp.Diff(was, edgeStatus(w, reached, was, 1, later)); diff != "" {
		t.Errorf("a leader that has no status yet changes it:\n%s", diff)
	}
	failed := edgeStatus(w, EdgeState{Name: "a", Problem: "no route"}, was, 1, later)
	if c := meta.FindStatusCondition(failed.Conditions, "Ready"); c.Status != "False" || failed.Engine != "proxy" || failed.Backends != 3 {
		t.Errorf("status is %+v; want not ready, and the rest as it was", failed)
	}
}

func TestEdgeStatusIsBounded(t *testing.T) {
	w, s := Wanted{Config: config(1, 2000, 1)}, EdgeState{Connected: true, Info: lb.Info{Schema: "v1"}, Status: lb.Status{Cursor: "1.1"}, Withheld: map[lb.UID]lb.Problem{}}
	members := make(map[lb.NodeName]lb.MemberStatus)
	for i := range 2000 {
		s.Withheld[uid(i)] = lb.Problem{Type: "unsupported", Detail: strings.Repeat("x", 5000)}
		s.RemovalHeld = append(s.RemovalHeld, fmt.Sprintf("nodes/%04d", i))
		members[lb.NodeName(fmt.Sprint(i))] = lb.MemberStatus{State: healthcheck.Down, Error: strings.Repeat("y", 5000)}
		s.Info.Capabilities = append(s.Info.Capabilities, lb.Capability(fmt.Sprint(i)))
	}
	s.Status.Checks = map[lb.CheckID]map[lb.NodeName]lb.MemberStatus{"tcp:1": members}
	got := edgeStatus(w, s, v1alpha1.EdgeStatus{}, 1, noon)
	for _, n := range []struct {
		of        string
		got, want int
	}{
		{"refused", len(got.Refused), v1alpha1.MaxRefused}, {"held", len(got.HeldRemovals), v1alpha1.MaxHeldRemovals},
		{"sick nodes", len(got.SickNodes), v1alpha1.MaxSickNodes}, {"capabilities", len(got.Capabilities), 64},
		{"backends", int(got.Backends), 2000}, {"a message", len(got.Refused[0].Message), maxMessage},
	} {
		if n.got != n.want {
			t.Errorf("%d %s, want %d", n.got, n.of, n.want)
		}
	}
}
