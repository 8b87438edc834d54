package provider

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/report"
)

// planRounds is how many rounds of decisions a plan looks ahead: one proposes
// addresses, the next sees them recorded, and moving Services may take one more.
const planRounds = 3

// Plan returns what a change would do, by making the decisions that would follow
// from it. See [report.Source].
func (s *Snapshot) Plan(ctx context.Context, request report.PlanRequest) (report.Plan, error) {
	v := s.view()
	out := report.Plan{Origin: report.Origin{Time: v.Now.UTC()}}
	if len(request.Objects) == 0 && request.Drain == nil {
		return out, errors.New("objects: must have at least one Service, AddressPool or Edge")
	}
	if d := request.Drain; d != nil {
		drain, err := v.drain(*d)
		if err != nil {
			return out, err
		}
		out.Drain = &drain
	}
	if len(request.Objects) == 0 {
		return out, nil
	}
	if err := request.Objects.Check(); err != nil {
		return out, err
	}
	c, err := v.readChange(ctx, request.Objects)
	if err != nil {
		return out, err
	}
	after, err := v.foresee(ctx, c)
	if err != nil {
		return out, err
	}
	p := planner{before: v, after: after, change: c}
	for _, svc := range c.services {
		if err := ctx.Err(); err != nil {
			return out, err
		}
		out.Services = append(out.Services, p.service(svc))
	}
	for _, o := range c.pools {
		out.Objects = append(out.Objects, p.pool(o))
	}
	for _, o := range c.edges {
		out.Objects = append(out.Objects, p.edge(o))
	}
	out.Others, out.Assumptions = p.others(), c.assumptions
	return out, nil
}

// foresee makes the decisions that would follow from a change, as the rounds of
// the reconciler would, with addresses being recorded in between.
func (v *view) foresee(ctx context.Context, c *change) (*view, error) {
	w := v.World
	w.Services = replaced(w.Services, c.services)
	w.Pools = replaced(w.Pools, c.pools)
	w.Edges = replaced(w.Edges, c.edges)
	d := v.remember()
	for range planRounds {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		d.decide(w)
		if len(d.proposals) == 0 {
			break
		}
		w.Services = recorded(w.Services, d.proposals)
	}
	w.Eventual = true
	return newView(w, d), nil
}

// replaced returns objects with some in place of those of the same name.
func replaced[T metav1.Object](objects, by []T) []T {
	key := func(o T) string { return o.GetNamespace() + "/" + o.GetName() }
	next := make(map[string]T, len(by))
	for _, o := range by {
		next[key(o)] = o
	}
	out := slices.Clone(objects)
	for i, o := range out {
		if n, ok := next[key(o)]; ok {
			out[i] = n
			delete(next, key(o))
		}
	}
	for _, o := range by {
		if _, isNew := next[key(o)]; isNew {
			out = append(out, o)
		}
	}
	return out
}

// recorded returns Services with proposed addresses in their annotations, and no
// others in their status.
func recorded(services []*v1.Service, proposals map[lb.UID]proposal) []*v1.Service {
	out := slices.Clone(services)
	for i, svc := range out {
		p, ok := proposals[uidOf(svc)]
		if !ok {
			continue
		}
		svc = svc.DeepCopy()
		if svc.Annotations == nil {
			svc.Annotations = map[string]string{}
		}
		svc.Annotations[string(AnnotationAssignedAddresses)] = formatAddresses(p.addrs)
		svc.Annotations[string(AnnotationAssignedAt)] = p.at.UTC().Format(time.RFC3339)
		svc.Status.LoadBalancer.Ingress = slices.DeleteFunc(svc.Status.LoadBalancer.Ingress, func(in v1.LoadBalancerIngress) bool {
			a, err := netip.ParseAddr(in.IP)
			return err == nil && !slices.Contains(p.addrs, a.Unmap())
		})
		out[i] = svc
	}
	return out
}

// planner tells the difference between now and then.
type planner struct {
	before, after *view
	change        *change
}

// service says what would become of one Service of the request.
func (p planner) service(asked *v1.Service) report.PlannedService {
	out := report.PlannedService{Namespace: asked.Namespace, Name: asked.Name, Findings: p.change.findings[nameOf(asked)]}
	was, is := p.before.byName[nameOf(asked)], p.after.byName[nameOf(asked)]
	switch {
	case is == nil && was == nil:
		out.Action = report.ActionIgnore
		out.Findings = append(out.Findings, report.Finding{Level: report.Notice, Where: "Service", What: p.after.whyNotOurs(asked.Namespace, asked.Name)})
		return out
	case is == nil:
		out.Action = report.ActionRemove
		out.Findings = append(out.Findings, report.Finding{Level: report.Notice, Where: "Service", What: "the Service is not one of eclusa's any more: " + p.after.whyNotOurs(asked.Namespace, asked.Name)})
	case was == nil:
		out.Action = report.ActionCreate
	}
	p.compare(&out, was, is)
	if is != nil {
		p.judge(&out, p.after.aspectOf(is))
	}
	report.Sort(out.Findings)
	return out
}

// compare fills in what edges would serve, and the difference to what they serve
// now.
func (p planner) compare(out *report.PlannedService, was, is *v1.Service) {
	var before, after *built
	held := map[netip.Addr]bool{}
	if was != nil {
		before = p.before.builds[uidOf(was)]
		for _, a := range p.before.holdings[uidOf(was)].addrs {
			held[a] = true
		}
	}
	if is != nil {
		after = p.after.builds[uidOf(is)]
		out.Listeners = ListenersOf(p.after.translations[uidOf(is)].LoadBalancer)
		for i := range out.Listeners {
			if out.Listeners[i].NodePort == unallocated {
				out.Listeners[i].NodePort = 0
			}
		}
	}
	if after != nil {
		for i, a := range after.Addresses {
			out.Addresses = append(out.Addresses, report.PlannedAddress{Address: a.String(), Pool: after.pools[i], New: !held[a]})
		}
		for _, name := range p.after.names {
			if _, ok := p.after.edges[name].builds[uidOf(is)]; ok {
				out.Edges = append(out.Edges, name)
			}
		}
	}
	out.Changes = builtChanges(before, after)
	if out.Action == "" {
		out.Action = report.ActionKeep
		if len(out.Changes) > 0 {
			out.Action = report.ActionChange
		}
	}
}

// judge finds everything that would be wrong with the Service.
func (p planner) judge(out *report.PlannedService, a aspect) {
	add := func(level report.Level, where, reason, what string) {
		out.Findings = append(out.Findings, report.Finding{Level: level, Where: where, Reason: reason, What: what, Do: report.Advice(reason)})
	}
	for _, c := range a.of.Refusals {
		add(report.Problem, c.Field, ReasonNotServable, strings.TrimPrefix(c.String(), c.Field+": "))
	}
	for _, c := range a.of.Complaints {
		add(report.Notice, c.Field, ReasonAnnotationsIgnored, strings.TrimPrefix(c.String(), c.Field+": "))
	}
	partly := subject{good: a.of, grant: p.after.granted.grants[a.uid]}
	for _, what := range partly.unservedTexts() {
		add(report.Problem, "spec.ports", ReasonPortsNotServed, what)
	}
	for _, what := range a.of.Remarks {
		add(report.Notice, "Service", "", what)
	}
	switch c := a.face.assigned; {
	case len(a.of.Refusals) > 0:
	case c.status == metav1.ConditionFalse:
		add(report.Problem, c.conditionType, c.reason, c.message)
	case c.reason == ReasonAssignedPartly:
		add(report.Notice, c.conditionType, c.reason, c.message)
	}
	if a.built == nil {
		return
	}
	switch {
	case len(out.Edges) == 0:
		c, _ := programmed(&subject{translation: a.of, served: a.built.Addresses, built: a.built}, nil)
		add(report.Problem, c.conditionType, c.reason, c.message)
	case a.face.health.reason == ReasonNoNodes:
		add(report.Problem, ConditionBackendsHealthy, ReasonNoNodes, a.face.health.message)
	}
	p.judgeOnEdges(a, out.Edges, add)
}

// judgeOnEdges finds what edges would not do.
func (p planner) judgeOnEdges(a aspect, edges []string, add func(report.Level, string, string, string)) {
	unable := 0
	lacking := map[string]lb.Problem{}
	for _, name := range edges {
		st := p.after.Fleet[name]
		one := lb.Config{LoadBalancers: map[lb.UID]lb.LoadBalancer{a.uid: a.built.LoadBalancer}}
		if st.Info.Schema != "" {
			_, withheld, trimmed := fit(one, st.Info)
			if len(withheld) > 0 {
				lacking[name] = withheld[a.uid]
				unable++
			}
			cut := trimmed[a.uid].Problems
			for _, i := range slices.Sorted(maps.Keys(cut)) {
				add(report.Problem, "edge "+name, ReasonUnsupported, problemText(cut[i]))
			}
			if len(trimmed[a.uid].Addresses) > 0 {
				add(report.Problem, "edge "+name, ReasonUnsupported, problemText(trimmed[a.uid].Untranslated))
			}
		}
	}
	for _, name := range sortedNames(lacking) {
		level := report.Notice
		if unable == len(edges) {
			level = report.Problem
		}
		add(level, "edge "+name, lacking[name].Type, problemText(lacking[name]))
	}
	for _, name := range edges {
		if st := p.after.Fleet[name]; !st.Connected && st.Problem != "" {
			add(report.Notice, "edge "+name, ReasonUnreachable, "the edge is not reached and gets this when it is: "+st.Problem)
		}
	}
	config := lb.Config{
		Nodes: p.after.nodes.Nodes, Pools: map[lb.PoolName]lb.Pool{a.built.Pool: p.after.members[a.built.Pool]},
		LoadBalancers: map[lb.UID]lb.LoadBalancer{a.uid: a.built.LoadBalancer},
	}
	for _, c := range config.Validate() {
		if c.LoadBalancer == a.uid {
			add(report.Problem, "edges", c.Problem.Type, problemText(c.Problem))
		}
	}
}

// others says what would become of Services that are not in the request.
func (p planner) others() []report.PlannedService {
	asked := make(map[string]bool, len(p.change.services))
	for _, svc := range p.change.services {
		asked[nameOf(svc)] = true
	}
	var out []report.PlannedService
	for _, name := range slices.Sorted(maps.Keys(p.after.byName)) {
		is := p.after.byName[name]
		was := p.before.byName[name]
		if asked[name] || was == nil {
			continue
		}
		uid := uidOf(is)
		ok := func(v *view) bool { return v.granted.grants[uid].ok }
		if p.before.builds[uid] == p.after.builds[uid] && ok(p.before) == ok(p.after) && slices.Equal(p.edgesOf(p.before, uid), p.edgesOf(p.after, uid)) {
			continue
		}
		o := report.PlannedService{Namespace: is.Namespace, Name: is.Name}
		p.compare(&o, was, is)
		if before, after := p.edgesOf(p.before, uid), p.edgesOf(p.after, uid); !slices.Equal(before, after) {
			o.Action = report.ActionChange
			o.Changes = append(o.Changes, report.Change{Path: "edges", Before: joined(before), After: joined(after)})
		}
		if c := p.after.faces[uid].assigned; c.status == metav1.ConditionFalse && ok(p.before) {
			o.Action = report.ActionChange
			o.Findings = append(o.Findings, report.Finding{Level: report.Problem, Where: c.conditionType, Reason: c.reason, What: c.message, Do: report.Advice(c.reason)})
		}
		if o.Action != report.ActionKeep {
			out = append(out, o)
		}
	}
	return out
}

func (p planner) edgesOf(v *view, uid lb.UID) []string {
	var out []string
	for _, name := range v.names {
		if _, ok := v.edges[name].builds[uid]; ok {
			out = append(out, name)
		}
	}
	return out
}

// pool says what would become of an AddressPool of the request.
func (p planner) pool(o *v1alpha1.AddressPool) report.PlannedObject {
	out := report.PlannedObject{Kind: v1alpha1.AddressPoolKind, Name: o.Name, Action: report.ActionCreate}
	if live := p.before.poolObject(o.Name); live != nil {
		out.Changes = jsonChanges(live.Spec, o.Spec)
		out.Action = report.ActionKeep
		if len(out.Changes) > 0 {
			out.Action = report.ActionChange
		}
	}
	add := func(level report.Level, reason, what string) {
		out.Findings = append(out.Findings, report.Finding{Level: level, Where: "pool " + o.Name, Reason: reason, What: what, Do: report.Advice(reason)})
	}
	if why := p.after.faults[o.Name]; why != "" {
		add(report.Problem, "Unusable", why)
	} else if len(p.after.serving[o.Name]) == 0 {
		add(report.Problem, ReasonNoEdge, "no Edge serves the pool: its edgeSelector matches none")
	}
	return out
}

// edge says what would become of an Edge of the request.
func (p planner) edge(o *v1alpha1.Edge) report.PlannedObject {
	out := report.PlannedObject{Kind: v1alpha1.EdgeKind, Name: o.Name, Action: report.ActionCreate}
	if live := p.before.edgeObject(o.Name); live != nil {
		out.Changes = jsonChanges(live.Spec, o.Spec)
		out.Action = report.ActionKeep
		if len(out.Changes) > 0 || !maps.Equal(live.Labels, o.Labels) {
			out.Action = report.ActionChange
		}
	}
	add := func(level report.Level, reason, what string) {
		out.Findings = append(out.Findings, report.Finding{Level: level, Where: "edge " + o.Name, Reason: reason, What: what, Do: report.Advice(reason)})
	}
	if other := p.after.doubled[o.Name]; other != "" {
		add(report.Problem, ReasonDoubled, fmt.Sprintf("Edge %q has the same endpoint, and is older: this one would not be used", other))
	}
	if out.Action == report.ActionCreate {
		add(report.Notice, "", fmt.Sprintf("its certificate must carry the name %q; what the edge can do is known when it is reached", cmp.Or(o.Spec.ServerName, o.Name)))
	}
	return out
}

// builtChanges returns the difference between two load balancers.
func builtChanges(before, after *built) []report.Change {
	if before == after || before != nil && after != nil && reflect.DeepEqual(before.LoadBalancer, after.LoadBalancer) {
		return nil
	}
	side := func(b *built) any {
		if b == nil {
			return nil
		}
		l := b.LoadBalancer
		l.ClaimTime = time.Time{} // of no interest to people
		return l
	}
	return slices.DeleteFunc(jsonChanges(side(before), side(after)), func(c report.Change) bool { return c.Path == "claimTime" || c.Path == "name" })
}

// jsonChanges returns the difference between two values as JSON, by path.
func jsonChanges(before, after any) []report.Change {
	tree := func(x any) any {
		data, err := json.Marshal(x)
		var t any
		if err == nil {
			err = json.Unmarshal(data, &t)
		}
		if err != nil {
			return nil // cannot happen: all of these types can be marshalled
		}
		return t
	}
	var out []report.Change
	compareTrees("", tree(before), tree(after), &out)
	return out
}

func compareTrees(path string, before, after any, out *[]report.Change) {
	_, leftMap := before.(map[string]any)
	_, rightMap := after.(map[string]any)
	left, _ := before.(map[string]any)
	right, _ := after.(map[string]any)
	if leftMap && (rightMap || after == nil) || rightMap && before == nil {
		keys := maps.Clone(left)
		if keys == nil {
			keys = map[string]any{}
		}
		maps.Copy(keys, right)
		if len(keys) > 0 {
			for _, k := range slices.Sorted(maps.Keys(keys)) {
				next := k
				if path != "" {
					next = path + "." + k
				}
				compareTrees(next, left[k], right[k], out)
			}
			return
		}
	}
	leftList, lok := before.([]any)
	rightList, rok := after.([]any)
	if (lok || rok) && (hasObjects(leftList) || hasObjects(rightList)) {
		at := func(l []any, i int) any {
			if i < len(l) {
				return l[i]
			}
			return nil
		}
		for i := range max(len(leftList), len(rightList)) {
			compareTrees(fmt.Sprintf("%s[%d]", path, i), at(leftList, i), at(rightList, i), out)
		}
		return
	}
	if !reflect.DeepEqual(before, after) {
		*out = append(*out, report.Change{Path: path, Before: leaf(before), After: leaf(after)})
	}
}

func hasObjects(list []any) bool {
	return slices.ContainsFunc(list, func(x any) bool { _, ok := x.(map[string]any); return ok })
}

// leaf writes a value for people.
func leaf(x any) string {
	switch x := x.(type) {
	case nil:
		return ""
	case string:
		return x
	case float64:
		if x == unallocated {
			return "(allocated by the API server)"
		}
	}
	data, err := json.Marshal(x)
	if err != nil {
		return fmt.Sprint(x)
	}
	return string(data)
}

func joined(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return listed("edge", names)
}
