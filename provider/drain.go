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
		before, after := v.edgeLoss(v.aspectOf(svc), name, out.HealthKnown)
		out.Lose(svc.Namespace, svc.Name, before, after)
	}
	sortLosses(out.Losses)
	return out, nil
}

// edgeLoss returns how many edges the address of a Service has with and without
// one of them, of the address that is worst off without it: what other addresses
// have is of no use to who connects to that one.
func (v *view) edgeLoss(a aspect, name string, told bool) (before, after int) {
	if a.built == nil {
		return 0, 0
	}
	for _, addr := range a.built.Addresses {
		with, without := 0, 0
		for _, st := range a.standings {
			switch here := slices.Contains(v.edges[st.edge].builds[a.uid].Addresses, addr); {
			case here && st.edge == name && mayServe(st):
				with++
			case here && st.edge != name && v.servesNow(st, told):
				with++
				without++
			}
		}
		if without < with && (before == 0 || without < after) {
			before, after = with, without
		}
	}
	return before, after
}

// mayServe says whether an edge serves a load balancer for all that is known: one
// that is not reached goes on with what it has.
func mayServe(st standing) bool { return st.applied || !st.known }

// servesNow says whether an edge can be relied on: it answers, and serves the load
// balancer. Where edges have told nothing, it must take what is wanted.
func (v *view) servesNow(st standing, told bool) bool {
	state := v.Fleet[st.edge]
	if !told {
		return state.Connected && state.Problem == ""
	}
	return state.Connected && st.applied
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

// healthKnown says whether any edge that is reached has told about nodes.
func (v *view) healthKnown() bool {
	for _, st := range v.Fleet {
		if st.Connected && st.Status.Cursor != "" {
			return true
		}
	}
	return false
}

// mayServeNow says whether some edge that is reached sees the node up, or none has
// a verdict: what a lost edge once saw says nothing about now.
func (v *view) mayServeNow(a aspect, node lb.NodeName) bool {
	verdict := false
	for _, st := range a.standings {
		m, ok := v.Fleet[st.edge].Status.Checks[a.of.Check][node]
		if !ok || !v.Fleet[st.edge].Connected || m.State == healthcheck.Unknown {
			continue
		}
		if m.State.Serves() {
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
