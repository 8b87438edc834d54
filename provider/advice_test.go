package provider

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/report"
)

// reasons returns the constants of this package that are called Reason*, by name.
func reasons(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			for i, id := range spec.Names {
				if !strings.HasPrefix(id.Name, "Reason") {
					continue
				}
				lit, ok := spec.Values[i].(*ast.BasicLit)
				if !ok {
					t.Fatalf("%s: %s is no literal", name, id.Name)
				}
				if out[id.Name], err = strconv.Unquote(lit.Value); err != nil {
					t.Fatal(err)
				}
			}
			return true
		})
	}
	return out
}

// TestAdviceIsComplete has something to say about every reason that tells of
// trouble.
func TestAdviceIsComplete(t *testing.T) {
	fine := map[string]bool{
		ReasonAssigned: true, ReasonProgrammed: true, ReasonHealthy: true, ReasonNotChecked: true, ReasonNotMeasured: true,
		ReasonServing: true, ReasonNothingHeld: true, ReasonBackendsUnknown: true,
	}
	all := reasons(t)
	if len(all) < 30 {
		t.Errorf("found %d reasons, want more: %v", len(all), all)
	}
	for name, reason := range all {
		if (report.Advice(reason) == "") != fine[reason] {
			t.Errorf("%s: advice is %q, and it counts as fine: %v", name, report.Advice(reason), fine[reason])
		}
	}
	for _, reason := range []string{
		"InvalidAddressRequest", "AddressFamilyMismatch", "AddressOutsidePools", "PoolNotEligible", "PoolNotFound", "NoEligiblePool",
		"AddressInUse", "AddressQuarantined", "PoolExhausted", "Unusable", "address-held", "invalid", "unsupported", "exhausted", "not-found",
	} {
		if report.Advice(reason) == "" {
			t.Errorf("there is no advice for %s", reason)
		}
	}
}

// TestLostEdgesAreAProblem loses all edges of a Service: nobody calls it served.
func TestLostEdgesAreAProblem(t *testing.T) {
	s := small(t)
	for _, name := range []string{"e1", "e2"} {
		s.edgeIs(name, func(st *EdgeState) {
			st.Connected, st.Problem, st.Since = false, "connection refused", s.world.Now.Add(-2*time.Minute)
		})
	}
	stats := s.decider.decide(s.world).Stats
	same(t, "served", stats.Services[StateServed], 0)
	same(t, "unknown", stats.Services[StateUnknown], 3)
	same(t, "backends", stats.Backends[ReasonEdgeUnreachable], 3)
	snapshot := s.decider.snapshot(s.world)
	same(t, "counts", snapshot.Status("", false).ServiceCounts, map[report.Level]int{report.Problem: 3})
	e, err := snapshot.Explain("default", "s-00000")
	if err != nil {
		t.Fatal(err)
	}
	if f := e.Findings[0]; f.Level != report.Problem || f.Reason != ReasonEdgeUnreachable || f.Do == "" {
		t.Errorf("the first finding is %+v, want a problem with an advice", f)
	}
}

// TestMovingAddressIsNotRefused has an address that waits for another edge to let
// go of it: that is no refusal.
func TestMovingAddressIsNotRefused(t *testing.T) {
	s := small(t, func(s *simulation) {
		s.world.Pools[0].Spec.EdgeSelector = selector("only", "e1")
		s.world.Edges[0].Labels = map[string]string{"only": "e1"}
	})
	former := s.world.Fleet["e1"]
	pool := s.world.Pools[0].DeepCopy()
	pool.Spec.EdgeSelector = selector("only", "e2")
	s.stamp(pool, 0)
	s.world.Pools[0] = pool
	other := s.world.Edges[1].DeepCopy()
	other.Labels = map[string]string{"only": "e2"}
	s.stamp(other, 1)
	s.world.Edges[1] = other
	s.world.Fleet["e1"] = former
	stats := s.decider.decide(s.world).Stats
	same(t, "refused", stats.Services[StateRefused], 0)
	same(t, "pending", stats.Services[StatePending], 3)
	status := s.decider.snapshot(s.world).Status("", false)
	same(t, "counts", status.ServiceCounts, map[report.Level]int{report.Notice: 3})
	same(t, "reason", status.Services[0].Findings[0].Reason, ReasonAddressMoving)
}

// TestConditionLevels says how bad each kind of condition is.
func TestConditionLevels(t *testing.T) {
	for _, test := range []struct {
		c    condition
		want report.Level
	}{
		{yes(ConditionProgrammed, ReasonProgrammed, ""), report.OK},
		{yes(ConditionProgrammed, ReasonDegraded, ""), report.Notice},
		{yes(ConditionAddressAssigned, ReasonPoolGone, ""), report.Notice},
		{no(ConditionProgrammed, ReasonRefused, ""), report.Problem},
		{unknown(ConditionProgrammed, ReasonPending, ""), report.Notice},
		{unknown(ConditionProgrammed, ReasonAddressMoving, ""), report.Notice},
		{unknown(ConditionProgrammed, ReasonEdgeUnreachable, ""), report.Problem},
		{unknown(ConditionBackendsHealthy, ReasonEdgeUnreachable, ""), report.Problem},
		{reachable(), report.OK},
	} {
		f, trouble := report.OfCondition(test.c.conditionType, string(test.c.status), test.c.reason, test.c.message, nil)
		if f.Level != test.want || trouble != (test.want != report.OK) {
			t.Errorf("%s %s %s is %s (%v), want %s", test.c.conditionType, test.c.status, test.c.reason, f.Level, trouble, test.want)
		}
	}
}
