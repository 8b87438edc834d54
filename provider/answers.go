package provider

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/report"
)

var _ report.Source = (*Snapshot)(nil)

// Status returns the state of everything. See [report.Source].
func (s *Snapshot) Status(namespace string, all bool) report.Status {
	v := s.view()
	out := report.Status{
		Origin: report.Origin{Time: v.Now.UTC()},
		Edges:  []report.Edge{}, Pools: []report.Pool{}, Services: []report.Service{},
		Nodes: v.nodeReports(), NodeCount: len(v.nodes.Nodes), ServiceCounts: map[report.Level]int{},
	}
	for _, o := range slices.SortedFunc(slices.Values(v.Edges), func(a, b *v1alpha1.Edge) int { return cmp.Compare(a.Name, b.Name) }) {
		out.Edges = append(out.Edges, v.edgeReport(o))
	}
	for _, p := range slices.SortedFunc(slices.Values(v.stats.Pools), func(a, b PoolStats) int { return cmp.Compare(a.Name, b.Name) }) {
		out.Pools = append(out.Pools, v.poolReport(p))
	}
	for _, svc := range v.byName {
		if namespace != "" && svc.Namespace != namespace {
			continue
		}
		r := v.aspectOf(svc).report()
		out.ServiceCounts[r.Level()]++
		if all || r.Level() != report.OK {
			out.Services = append(out.Services, r)
		}
	}
	report.SortServices(out.Services)
	return out
}

func (v *view) edgeReport(o *v1alpha1.Edge) report.Edge {
	st, w := v.Fleet[o.Name], v.wanted[o.Name]
	out := report.Edge{
		Name: o.Name, Engine: cmp.Or(st.Info.Engine, o.Status.Engine), Version: cmp.Or(st.Info.Version, o.Status.Version),
		Reached: st.Connected, Desired: w.Config.Revision, Applied: st.Status.Revision, LoadBalancers: len(w.Config.LoadBalancers),
		Drain: o.Spec.Drain, Paused: o.Spec.Paused,
	}
	for uid := range w.Config.LoadBalancers {
		if st.Status.LoadBalancers[uid].Applied {
			out.Serving++
		}
	}
	for _, members := range st.Status.Checks {
		for _, m := range members {
			out.Backends++
			if m.State.Serves() {
				out.Up++
			}
		}
	}
	out.Findings = v.edgeFindings(o, st, w)
	return out
}

func (v *view) edgeFindings(o *v1alpha1.Edge, st EdgeState, w Wanted) []report.Finding {
	var out []report.Finding
	where := "edge " + o.Name
	add := func(level report.Level, reason, what string) *report.Finding {
		out = append(out, report.Finding{Level: level, Where: where, Reason: reason, What: what, Do: strings.ReplaceAll(report.Advice(reason), "NAME", o.Name)})
		return &out[len(out)-1]
	}
	if other := v.doubled[o.Name]; other != "" {
		add(report.Problem, ReasonDoubled, fmt.Sprintf("Edge %q has the same endpoint, and is older: this one is not used", other))
		return out
	}
	if o.DeletionTimestamp != nil {
		return out
	}
	if !st.Connected && st.Problem == "" {
		add(report.Notice, ReasonPending, "the edge was not reached yet").Do = ""
		return out
	}
	notDurable := st.Status.Cursor != "" && !st.Status.Durable
	switch ready := edgeReady(w, st, notDurable); {
	case ready.Status != metav1.ConditionTrue:
		add(report.Problem, ready.Reason, ready.Message).Since = report.At(st.Since.UTC())
	case ready.Reason != ReasonServing:
		add(report.Notice, ready.Reason, ready.Message)
	}
	if held := removalHeld(st); held.Status == metav1.ConditionTrue {
		add(report.Problem, held.Reason, held.Message)
	}
	if o.Spec.Drain {
		add(report.Notice, "Drained", "spec.drain is set")
	}
	if st.Connected && !w.Paused && st.Status.Revision < w.Config.Revision {
		add(report.Notice, "Behind", fmt.Sprintf("the edge has applied revision %d of %d", st.Status.Revision, w.Config.Revision))
	}
	refused := map[string][]string{}
	for uid, l := range w.Config.LoadBalancers {
		for _, p := range standingOf(o.Name, st, uid, 0).problems {
			refused[p.Type] = append(refused[p.Type], l.Name)
		}
	}
	for _, kind := range sortedNames(refused) {
		names := slices.Compact(slices.Sorted(slices.Values(refused[kind])))
		add(report.Notice, kind, fmt.Sprintf("%s: %s", kind, listed("Service", names)))
	}
	report.Sort(out)
	return out
}

func (v *view) poolReport(p PoolStats) report.Pool {
	o := v.poolObject(p.Name)
	out := report.Pool{
		Name: p.Name, AutoAssign: o.Spec.AutoAssign == nil || *o.Spec.AutoAssign,
		Used: p.Used, Quarantined: p.Quarantined, Total: p.Total, Edges: append([]string{}, sortedNames(v.serving[p.Name])...),
	}
	for _, a := range o.Spec.Addresses {
		out.Addresses = append(out.Addresses, string(a))
	}
	add := func(level report.Level, reason, what string) {
		out.Findings = append(out.Findings, report.Finding{Level: level, Where: "pool " + p.Name, Reason: reason, What: what, Do: report.Advice(reason)})
	}
	if why := v.faults[p.Name]; why != "" {
		add(report.Problem, "Unusable", why)
		return out
	}
	if len(out.Edges) == 0 {
		add(report.Problem, ReasonNoEdge, "no Edge serves the pool: its edgeSelector matches none")
	}
	switch taken := p.Used + p.Quarantined; {
	case taken >= p.Total:
		add(report.Notice, "PoolExhausted", fmt.Sprintf("no address is free: %d in use, %d in quarantine", p.Used, p.Quarantined))
	case p.Total <= maxCount/10 && taken*10 >= p.Total*8:
		add(report.Notice, "NearlyFull", fmt.Sprintf("%d of %d addresses are taken", taken, p.Total))
	}
	return out
}

// Explain returns everything about one Service. See [report.Source].
func (s *Snapshot) Explain(namespace, name string) (report.Explanation, error) {
	v := s.view()
	svc := v.byName[namespace+"/"+name]
	if svc == nil {
		return report.Explanation{}, fmt.Errorf("%s: %w", v.whyNotOurs(namespace, name), report.ErrNotFound)
	}
	a := v.aspectOf(svc)
	e := report.Explanation{
		Origin: report.Origin{Time: v.Now.UTC()}, Namespace: namespace, Name: name,
		Policy: cmp.Or(string(svc.Spec.ExternalTrafficPolicy), "Cluster"), Findings: a.findings(),
		Listeners: ListenersOf(a.of.LoadBalancer), Limits: limitsOf(svc, a.of),
		Addresses: []report.Address{}, Edges: []report.EdgeView{}, Members: []report.Member{},
	}
	if svc.Spec.LoadBalancerClass != nil {
		e.Class = *svc.Spec.LoadBalancerClass
	}
	if ends := v.Endpoints(namespace, name); ends.Known {
		e.Endpoints = &report.Endpoints{Ready: ends.Ready}
		for _, n := range sortedNames(ends.Nodes) {
			e.Endpoints.Nodes = append(e.Endpoints.Nodes, string(n))
		}
	}
	for _, t := range ourConditions {
		if c := conditionOf(svc, t); c != nil {
			e.Conditions = append(e.Conditions, report.Condition{
				Type: c.Type, Status: string(c.Status), Reason: c.Reason, Message: c.Message, Since: c.LastTransitionTime.UTC(),
			})
		}
	}
	if a.built != nil {
		e.Listeners = ListenersOf(a.built.LoadBalancer)
		e.Limits = append(e.Limits, familiesLimit(svc, a))
	}
	for _, what := range a.of.Remarks {
		e.Findings = append(e.Findings, report.Finding{Level: report.Notice, Where: "Service", What: what})
	}
	v.explainPath(a, &e)
	report.Sort(e.Findings)
	return e, nil
}

// whyNotOurs says why a Service is none of ours.
func (v *view) whyNotOurs(namespace, name string) string {
	for _, svc := range v.Services {
		if svc.Namespace != namespace || svc.Name != name {
			continue
		}
		switch class := svc.Spec.LoadBalancerClass; {
		case svc.DeletionTimestamp != nil:
			return fmt.Sprintf("Service %q is being deleted", namespace+"/"+name)
		case svc.Spec.Type != "LoadBalancer":
			return fmt.Sprintf("Service %q is of type %s, not LoadBalancer", namespace+"/"+name, svc.Spec.Type)
		case class == nil:
			return fmt.Sprintf("Service %q has no class, and the manager runs without %s, so that it serves only spec.loadBalancerClass %s", namespace+"/"+name, StockController, Class)
		default:
			return fmt.Sprintf("Service %q has spec.loadBalancerClass %s, which another implementation serves", namespace+"/"+name, *class)
		}
	}
	return fmt.Sprintf("there is no Service %q", namespace+"/"+name)
}

// explainPath follows a connection from address to node.
func (v *view) explainPath(a aspect, e *report.Explanation) {
	if a.built == nil {
		return
	}
	told, _ := ingressAddresses(a.svc)
	for i, addr := range a.built.Addresses {
		pool := a.built.pools[i]
		e.Addresses = append(e.Addresses, report.Address{
			Address: addr.String(), Pool: pool, Edges: sortedNames(v.serving[pool]), Published: slices.Contains(told, addr),
		})
	}
	for _, st := range a.standings {
		state := v.Fleet[st.edge]
		view := report.EdgeView{Name: st.edge, Reached: state.Connected, Confirmed: st.known, Serving: st.applied}
		for _, p := range st.problems {
			view.Problems = append(view.Problems, problemText(p))
			level := report.Notice
			if a.serving() == 0 {
				level = report.Problem
			}
			e.Findings = append(e.Findings, report.Finding{Level: level, Where: "edge " + st.edge, Reason: p.Type, What: problemText(p), Do: report.Advice(p.Type)})
		}
		e.Edges = append(e.Edges, view)
		if o := v.live[st.edge]; o != nil {
			for _, f := range v.edgeFindings(o, state, v.wanted[st.edge]) {
				if f.Reason == ReasonUnreachable || f.Reason == ReasonRejected || f.Reason == ReasonPaused || f.Reason == ReasonPending {
					f.Level = report.Notice // it goes on serving what it has
					e.Findings = append(e.Findings, f)
				}
			}
		}
	}
	for _, node := range sortedNames(a.members) {
		m := report.Member{Node: string(node), Draining: v.nodes.Nodes[node].Draining, Weight: v.nodes.Nodes[node].Weight, Health: map[string]report.Health{}}
		for _, addr := range v.nodes.Nodes[node].Addresses {
			m.Addresses = append(m.Addresses, addr.String())
		}
		for _, st := range a.standings {
			m.Health[st.edge], _ = healthIn(v.Fleet[st.edge], a.of.Check, node)
		}
		e.Members = append(e.Members, m)
	}
	v.explainSick(a, e)
}

// explainSick says which members are not up.
func (v *view) explainSick(a aspect, e *report.Explanation) {
	sick := v.sick()
	for _, node := range sortedNames(a.members) {
		s := sick[node][a.of.Check]
		if s == nil {
			continue
		}
		edges := slices.DeleteFunc(slices.Clone(s.edges), func(edge string) bool {
			return !slices.ContainsFunc(a.standings, func(st standing) bool { return st.edge == edge })
		})
		if len(edges) == 0 {
			continue
		}
		what := fmt.Sprintf("%s for %s", s.state, listed("edge", edges))
		if s.error != "" {
			what += ": " + s.error
		}
		e.Findings = append(e.Findings, report.Finding{
			Level: report.Notice, Where: "node " + string(node), Reason: "NotUp", What: what, Since: report.At(s.since.UTC()), Do: report.Advice("NotUp"),
		})
	}
}

// ListenersOf returns the listeners of a load balancer as reports show them.
func ListenersOf(l lb.LoadBalancer) []report.Listener {
	direct := l.Direct()
	out := make([]report.Listener, 0, len(l.Listeners))
	for _, l := range l.Listeners {
		r := report.Listener{Name: l.Name, Protocol: string(l.Protocol), Port: l.Port, NodePort: l.TargetPort, Proxy: string(l.ProxyProtocol)}
		if direct {
			r.NodePort, r.Direct = 0, true
		}
		out = append(out, r)
	}
	return out
}
