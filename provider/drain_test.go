package provider

import (
	"fmt"
	"slices"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/report"
)

// costs returns what draining takes from Services: "BEFORE>AFTER" each.
func costs(t *testing.T, s *Snapshot, d report.Drain) []string {
	t.Helper()
	p, err := s.Plan(t.Context(), report.PlanRequest{Drain: &d})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range p.Drain.Losses {
		out = append(out, fmt.Sprintf("%d>%d", l.Before, l.After))
	}
	return out
}

// edgeIs replaces what is known of an edge.
func (s *simulation) edgeIs(name string, change func(*EdgeState)) {
	st := s.world.Fleet[name]
	change(&st)
	s.world.Fleet[name] = st
}

// TestDrainCountsLiveEdges does not let an edge that is not reached stand in for
// the last one that serves, and takes for serving what may be.
func TestDrainCountsLiveEdges(t *testing.T) {
	lost := func(st *EdgeState) { st.Connected, st.Problem = false, "connection refused" }
	silent := func(st *EdgeState) { *st = EdgeState{Name: st.Name, Connected: true} }
	rejects := func(st *EdgeState) { silent(st); st.Problem = "too many load balancers" }
	behind := func(st *EdgeState) { st.Status.Revision = 0 }
	refuses := func(st *EdgeState) { st.Status.LoadBalancers = map[lb.UID]lb.LoadBalancerStatus{"uid-00000": {}} }
	for _, test := range []struct {
		name           string
		e1, e2         func(*EdgeState)
		drain1, drain2 string // of each Service
	}{
		{"both live", nil, nil, "2>1", "2>1"},
		{"the other is lost", nil, lost, "1>0", "2>1"},
		{"both are lost", lost, lost, "1>0", "1>0"},
		{"the other is behind", nil, behind, "1>0", "2>1"},
		{"the other refuses it", nil, refuses, "1>0", ""},
		{"nothing is known of status", silent, silent, "2>1", "2>1"},
		{"nothing is known, and the other rejects", silent, rejects, "1>0", "2>1"},
		{"nothing is known, and the other is lost", silent, func(st *EdgeState) { silent(st); lost(st) }, "1>0", "2>1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := small(t, func(s *simulation) { s.world.Services = s.world.Services[:1] })
			for name, change := range map[string]func(*EdgeState){"e1": test.e1, "e2": test.e2} {
				if change != nil {
					s.edgeIs(name, change)
				}
			}
			s.decider.decide(s.world)
			snapshot := s.decider.snapshot(s.world)
			for name, want := range map[string]string{"e1": test.drain1, "e2": test.drain2} {
				got := costs(t, snapshot, report.Drain{Edge: name})
				if wanted := slices.DeleteFunc([]string{want}, func(s string) bool { return s == "" }); !slices.Equal(got, wanted) {
					t.Errorf("draining %s costs %v, want %v", name, got, wanted)
				}
			}
		})
	}
}

// TestDrainCountsByAddress has one address of two on one edge alone.
func TestDrainCountsByAddress(t *testing.T) {
	s := small(t, func(s *simulation) {
		s.able = []lb.Capability{lb.CapFamilyTranslation}
		svc := s.world.Services[0]
		svc.Spec.IPFamilies = []v1.IPFamily{v1.IPv4Protocol, v1.IPv6Protocol}
		svc.Spec.IPFamilyPolicy = ptr.To(v1.IPFamilyPolicyRequireDualStack)
		s.world.Services = s.world.Services[:1]
		six := testPool("six", "2001:db8::1-2001:db8::9")
		six.Spec.EdgeSelector = selector("only", "e2")
		s.stamp(six, 9)
		s.world.Pools = append(s.world.Pools, six)
		s.world.Edges[1].Labels = map[string]string{"only": "e2"}
	})
	snapshot := s.decider.snapshot(s.world)
	same(t, "addresses", len(snapshot.Status("", true).Services[0].Addresses), 2)
	same(t, "draining e1", costs(t, snapshot, report.Drain{Edge: "e1"}), []string{"2>1"})
	same(t, "draining e2", costs(t, snapshot, report.Drain{Edge: "e2"}), []string{"1>0"})

	// The IPv6 address is lost already: that is no reason to lose the other.
	s.edgeIs("e2", func(st *EdgeState) { st.Connected, st.Problem = false, "connection refused" })
	s.decider.decide(s.world)
	same(t, "draining e1 without e2", costs(t, s.decider.snapshot(s.world), report.Drain{Edge: "e1"}), []string{"1>0"})
}

// TestDrainOfNodeAsksLiveEdges does not believe what a lost edge once saw.
func TestDrainOfNodeAsksLiveEdges(t *testing.T) {
	s := small(t, func(s *simulation) {
		s.world.Services = s.world.Services[:1]
		s.sick["n001"], s.sick["n002"] = healthcheck.Down, healthcheck.Down
	})
	s.edgeIs("e2", func(st *EdgeState) {
		st.Connected, st.Problem = false, "connection refused"
		for check, members := range st.Status.Checks {
			all := map[lb.NodeName]lb.MemberStatus{}
			for node := range members {
				all[node] = lb.MemberStatus{State: healthcheck.Up}
			}
			st.Status.Checks = map[lb.CheckID]map[lb.NodeName]lb.MemberStatus{check: all}
		}
	})
	s.decider.decide(s.world)
	same(t, "draining the last node that is up", costs(t, s.decider.snapshot(s.world), report.Drain{Node: "n000"}), []string{"1>0"})

	s.edgeIs("e1", func(st *EdgeState) { st.Connected, st.Problem = false, "connection refused" })
	s.decider.decide(s.world)
	p, err := s.decider.snapshot(s.world).Plan(t.Context(), report.PlanRequest{Drain: &report.Drain{Node: "n000"}})
	if err != nil || p.Drain.HealthKnown {
		t.Errorf("with every edge lost health is known: %v (%v)", p.Drain, err)
	}
}
