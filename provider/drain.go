package provider

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/report"
)

// drain says what taking out an edge or a node would do.
func (v *view) drain(d report.Drain) (report.DrainPlan, error) {
	switch {
	case (d.Edge == "") == (d.Node == ""):
		return report.DrainPlan{}, errors.New("drain: must name either an edge or a node")
	case d.Edge != "":
		return v.drainEdge(d.Edge)
	}
	return v.drainNode(d.Node)
}

func (v *view) drainEdge(name string) (report.DrainPlan, error) {
	out := report.DrainPlan{Kind: "Edge", Name: name, HealthKnown: v.healthKnown(), Losses: []report.Loss{}}
	o := v.edgeObject(name)
	if o == nil {
		return out, fmt.Errorf("there is no Edge %q: %w", name, report.ErrNotFound)
	}
	out.Already = o.Spec.Drain
	for _, svc := range v.byName {
		before, after := 0, 0
		for _, st := range v.aspectOf(svc).standings {
			edge := v.edgeObject(st.edge)
			if edge == nil || edge.Spec.Drain || out.HealthKnown && !st.applied {
				continue
			}
			before++
			if st.edge != name {
				after++
			}
		}
		out.Lose(svc.Namespace, svc.Name, before, after)
	}
	sortLosses(out.Losses)
	return out, nil
}

func (v *view) drainNode(name string) (report.DrainPlan, error) {
	out := report.DrainPlan{Kind: "Node", Name: name, HealthKnown: v.healthKnown(), Losses: []report.Loss{}}
	found := false
	for _, n := range v.Nodes {
		if n.Name == name {
			found, out.Already = true, excluded(n)
		}
	}
	if !found {
		return out, fmt.Errorf("there is no Node %q: %w", name, report.ErrNotFound)
	}
	for _, svc := range v.byName {
		a := v.aspectOf(svc)
		before, after := 0, 0
		for node := range a.members {
			if v.nodes.Nodes[node].Draining || !v.mayServeNow(a, node) {
				continue
			}
			before++
			if string(node) != name {
				after++
			}
		}
		out.Lose(svc.Namespace, svc.Name, before, after)
	}
	sortLosses(out.Losses)
	return out, nil
}

// healthKnown says whether any edge has told about nodes.
func (v *view) healthKnown() bool {
	for _, st := range v.Fleet {
		if st.Status.Cursor != "" {
			return true
		}
	}
	return false
}

// mayServeNow says whether some edge sees the node up, or none has a verdict.
func (v *view) mayServeNow(a aspect, node lb.NodeName) bool {
	verdict := false
	for _, st := range a.standings {
		m, ok := v.Fleet[st.edge].Status.Checks[a.of.Check][node]
		if !ok || m.State == healthcheck.Unknown {
			continue
		}
		if m.State == healthcheck.Up {
			return true
		}
		verdict = true
	}
	return !verdict
}

func sortLosses(losses []report.Loss) {
	slices.SortFunc(losses, func(a, b report.Loss) int {
		return cmp.Or(cmp.Compare(a.After, b.After), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
}
