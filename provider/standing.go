package provider

import (
	"fmt"
	"maps"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/report"
)

// aspect is how one Service of ours stands.
type aspect struct {
	svc       *v1.Service
	uid       lb.UID
	of        *Translation
	face      face
	built     *built // nil if there is none
	standings []standing
	members   map[lb.NodeName]lb.Member
	vote      vote
	lastDown  time.Time // when the last member went down, as far as one is not up
}

// aspectOf looks a Service of ours up.
func (v *view) aspectOf(svc *v1.Service) aspect {
	a := aspect{svc: svc, uid: uidOf(svc)}
	a.of = v.translations[a.uid].Translation
	a.face = v.faces[a.uid].face
	a.built = v.builds[a.uid]
	if a.built == nil {
		return a
	}
	a.members = v.membersFor(a.built)
	var states []EdgeState
	for _, name := range v.names {
		m := v.edges[name]
		if _, ok := m.builds[a.uid]; !ok {
			continue
		}
		st := v.Fleet[name]
		a.standings = append(a.standings, standingOf(name, st, a.uid, m.since[a.uid]))
		states = append(states, st)
		for node := range a.members {
			if m, ok := st.Status.Checks[a.of.Check][node]; ok && m.State == healthcheck.Down && m.Since.After(a.lastDown) {
				a.lastDown = m.Since
			}
		}
	}
	a.vote = countVotes(a.members, a.of.Check, states)
	return a
}

// serving counts the edges that serve the newest version of the Service.
func (a aspect) serving() int {
	n := 0
	for _, st := range a.standings {
		if st.applied {
			n++
		}
	}
	return n
}

// findings returns what is wrong with the Service as a whole, the worst first.
func (a aspect) findings() []report.Finding {
	var out []report.Finding
	add := func(c condition) {
		if f, trouble := report.OfCondition(c.conditionType, string(c.status), c.reason, c.message, sinceOf(a.svc, c)); trouble {
			if f.Since == nil && c.reason == ReasonNoneHealthy {
				f.Since = report.At(a.lastDown.UTC()) // before it is written
			}
			out = append(out, f)
		}
	}
	add(a.face.assigned)
	// That there is nothing to serve without an address need not be said.
	if a.face.knowsProgrammed && a.face.programmed.reason != ReasonNoAddress {
		add(a.face.programmed)
	}
	if a.face.knowsHealth {
		add(a.face.health)
	}
	report.Sort(out)
	return out
}

// sinceOf returns since when the Service's status says the same, nil if it does
// not.
func sinceOf(svc *v1.Service, c condition) *time.Time {
	written := conditionOf(svc, c.conditionType)
	if written == nil || written.Status != c.status {
		return nil
	}
	return report.At(written.LastTransitionTime.UTC())
}

// report returns the state of the Service.
func (a aspect) report() report.Service {
	out := report.Service{
		Namespace: a.svc.Namespace, Name: a.svc.Name, Edges: len(a.standings), Serving: a.serving(),
		Members: len(a.members), Up: a.vote.up, Findings: a.findings(),
	}
	if a.built != nil {
		for i, addr := range a.built.Addresses {
			out.Addresses = append(out.Addresses, addr.String())
			if p := a.built.pools[i]; p != "" && !slices.Contains(out.Pools, p) {
				out.Pools = append(out.Pools, p)
			}
		}
	}
	if a.of != nil {
		for _, l := range a.of.LoadBalancer.Listeners {
			out.Ports = append(out.Ports, fmt.Sprintf("%d/%s", l.Port, l.Protocol))
		}
	}
	return out
}

// healthIn returns what an edge says about a node.
func healthIn(st EdgeState, check lb.CheckID, node lb.NodeName) (report.Health, bool) {
	m, ok := st.Status.Checks[check][node]
	if !ok {
		return report.Health{State: healthcheck.Unknown.String()}, false
	}
	h := report.Health{State: m.State.String(), Since: report.At(m.Since.UTC()), Dead: m.Dead, Substitute: m.Substitute}
	if m.State == healthcheck.Unchecked {
		h.State = "not checked"
	}
	if !m.State.Serves() {
		h.Error = m.Error
		if h.Error == "" {
			h.Error = string(m.Reason)
		}
	}
	return h, true
}

// sickness is what edges say about one node in one check, where it is not up.
type sickness struct {
	edges []string
	state healthcheck.State
	error string
	since time.Time
	dead  bool
}

// sick returns which nodes are not up, by check and node.
func (v *view) sick() map[lb.NodeName]map[lb.CheckID]*sickness {
	out := map[lb.NodeName]map[lb.CheckID]*sickness{}
	for _, edge := range v.names {
		for check, members := range v.Fleet[edge].Status.Checks {
			for node, m := range members {
				if m.State.Serves() {
					continue
				}
				if out[node] == nil {
					out[node] = map[lb.CheckID]*sickness{}
				}
				s := out[node][check]
				if s == nil {
					s = &sickness{state: m.State, error: ailment(m), since: m.Since, dead: m.Dead}
					out[node][check] = s
				}
				s.edges = append(s.edges, edge)
				if m.Since.Before(s.since) {
					s.since = m.Since
				}
			}
		}
	}
	return out
}

// nodeReports returns the nodes with findings, by name.
func (v *view) nodeReports() []report.Node {
	found := map[lb.NodeName][]report.Finding{}
	for node, why := range v.nodes.Unusable {
		found[node] = append(found[node], report.Finding{
			Level: report.Notice, Where: "node " + string(node), Reason: ReasonNoUsableAddress, What: "the node is left out: it " + why, Do: report.Advice(ReasonNoUsableAddress),
		})
	}
	for node, fault := range v.nodes.Faults {
		found[node] = append(found[node], report.Finding{
			Level: report.Notice, Where: "node " + string(node), Reason: ReasonNodeAnnotation, What: fault, Do: report.Advice(ReasonNodeAnnotation),
		})
	}
	for node, checks := range v.sick() {
		for _, check := range sortedNames(checks) {
			s := checks[check]
			what := fmt.Sprintf("%s in check %s for %s", s.state, check, listed("edge", s.edges))
			if s.error != "" {
				what += ": " + s.error
			}
			found[node] = append(found[node], report.Finding{
				Level: report.Notice, Where: "node " + string(node), Reason: "NotUp", What: what, Since: report.At(s.since.UTC()), Do: report.Advice("NotUp"),
			})
		}
	}
	var out []report.Node
	for _, node := range slices.Sorted(maps.Keys(found)) {
		out = append(out, report.Node{Name: string(node), Findings: found[node]})
	}
	return out
}

// listed names things with their kind, a few of them.
func listed(kind string, names []string) string {
	const most = 5
	if len(names) == 1 {
		return kind + " " + names[0]
	}
	text := kind + "s "
	for i, n := range names[:min(len(names), most)] {
		if i > 0 {
			text += ", "
		}
		text += n
	}
	if more := len(names) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
