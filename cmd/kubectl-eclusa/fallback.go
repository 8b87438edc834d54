package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/provider"
	"github.com/eclusa-lb/eclusa/report"
)

// unknownCount says that a number is not known.
const unknownCount = -1

// statusFromObjects makes a status of what the objects in the cluster say.
func (c *cluster) statusFromObjects(ctx context.Context, now time.Time, namespace string, all bool) (report.Status, error) {
	s := report.Status{
		Origin: report.Origin{Time: now.UTC()}, ServiceCounts: map[report.Level]int{},
		Edges: []report.Edge{}, Pools: []report.Pool{}, Services: []report.Service{},
	}
	edges, err := listOwn[v1alpha1.Edge](ctx, c, v1alpha1.EdgeResource)
	if err != nil {
		return s, err
	}
	pools, err := listOwn[v1alpha1.AddressPool](ctx, c, v1alpha1.AddressPoolResource)
	if err != nil {
		return s, err
	}
	services, err := c.kube.CoreV1().Services(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return s, accessError("listing Services", err)
	}
	sick := map[string][]report.Finding{}
	for _, e := range edges {
		s.Edges = append(s.Edges, edgeFromObject(e))
		for _, n := range e.Status.SickNodes {
			what := fmt.Sprintf("%s in check %s for edge %s", n.State, n.Check, e.Name)
			if n.Message != "" {
				what += ": " + n.Message
			}
			sick[n.Node] = append(sick[n.Node], report.Finding{
				Level: report.Notice, Where: "node " + n.Node, Reason: "NotUp", What: what, Since: report.At(n.Since.UTC()), Do: report.Advice("NotUp"),
			})
		}
	}
	for node, findings := range sick {
		s.Nodes = append(s.Nodes, report.Node{Name: node, Findings: findings})
	}
	slices.SortFunc(s.Nodes, func(a, b report.Node) int { return cmp.Compare(a.Name, b.Name) })
	if nodes, err := c.kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{}); err == nil {
		s.NodeCount = len(provider.ReadNodes(pointers(nodes.Items), provider.Settings{}).Nodes)
	}
	for _, o := range pools {
		s.Pools = append(s.Pools, poolFromObject(o))
	}
	for i := range services.Items {
		svc := &services.Items[i]
		if !maybeOurs(svc) {
			continue
		}
		r := serviceFromObject(svc)
		s.ServiceCounts[r.Level()]++
		if all || r.Level() != report.OK {
			s.Services = append(s.Services, r)
		}
	}
	report.SortServices(s.Services)
	return s, nil
}

func edgeFromObject(e *v1alpha1.Edge) report.Edge {
	st := e.Status
	out := report.Edge{
		Name: e.Name, Engine: st.Engine, Version: st.Version, Drain: e.Spec.Drain, Paused: e.Spec.Paused,
		Desired: uint64(max(st.DesiredRevision, 0)), Applied: uint64(max(st.AppliedRevision, 0)),
		LoadBalancers: int(st.LoadBalancers), Serving: int(st.LoadBalancersApplied), Backends: int(st.Backends), Up: int(st.BackendsUp),
	}
	add := func(level report.Level, reason, what string, since *time.Time) {
		do := strings.ReplaceAll(report.Advice(reason), "NAME", e.Name)
		out.Findings = append(out.Findings, report.Finding{Level: level, Where: "edge " + e.Name, Reason: reason, What: what, Since: since, Do: do})
	}
	ready := false
	for _, c := range e.Status.Conditions {
		since := report.At(c.LastTransitionTime.UTC())
		switch {
		case c.Type == v1alpha1.EdgeReady:
			ready = true
			out.Reached = c.Status == metav1.ConditionTrue || c.Reason == provider.ReasonRejected
			if c.Status != metav1.ConditionTrue {
				add(report.Problem, c.Reason, c.Message, since)
			} else if c.Reason != provider.ReasonServing {
				add(report.Notice, c.Reason, c.Message, since)
			}
		case c.Type == v1alpha1.EdgeRemovalHeld && c.Status == metav1.ConditionTrue:
			add(report.Problem, c.Reason, c.Message, since)
		}
	}
	if !ready {
		add(report.Notice, "", "the manager has not said anything about the edge yet", nil)
	}
	if e.Spec.Drain {
		add(report.Notice, "Drained", "spec.drain is set", nil)
	}
	for _, r := range st.Refused {
		add(report.Notice, r.Reason, fmt.Sprintf("Service %s: %s: %s", r.Service, r.Reason, r.Message), nil)
	}
	report.Sort(out.Findings)
	return out
}

func poolFromObject(o *v1alpha1.AddressPool) report.Pool {
	out := report.Pool{
		Name: o.Name, AutoAssign: o.Spec.AutoAssign == nil || *o.Spec.AutoAssign, Edges: []string{},
		Used: o.Status.Used, Quarantined: o.Status.QuarantinedTotal, Total: o.Status.Total,
	}
	for _, a := range o.Spec.Addresses {
		out.Addresses = append(out.Addresses, string(a))
	}
	for _, c := range o.Status.Conditions {
		if c.Type == v1alpha1.PoolReady && c.Status != metav1.ConditionTrue {
			out.Findings = append(out.Findings, report.Finding{
				Level: report.Problem, Where: "pool " + o.Name, Reason: c.Reason, What: c.Message, Since: report.At(c.LastTransitionTime.UTC()), Do: report.Advice(c.Reason),
			})
		}
	}
	if taken := out.Used + out.Quarantined; taken > 0 && taken >= out.Total {
		out.Findings = append(out.Findings, report.Finding{
			Level: report.Notice, Where: "pool " + o.Name, Reason: "PoolExhausted",
			What: fmt.Sprintf("no address is free: %d in use, %d in quarantine", out.Used, out.Quarantined), Do: report.Advice("PoolExhausted"),
		})
	}
	return out
}

// maybeOurs says whether eclusa serves a Service, as far as it shows: one without
// a class may be somebody else's.
func maybeOurs(svc *v1.Service) bool {
	if svc.Spec.Type != v1.ServiceTypeLoadBalancer || svc.DeletionTimestamp != nil {
		return false
	}
	if class := svc.Spec.LoadBalancerClass; class != nil {
		return *class == provider.Class
	}
	return len(conditionsOf(svc)) > 0 || len(svc.Status.LoadBalancer.Ingress) == 0
}

// conditionsOf returns eclusa's conditions on a Service.
func conditionsOf(svc *v1.Service) []report.Condition {
	var out []report.Condition
	for _, c := range svc.Status.Conditions {
		if strings.HasPrefix(c.Type, provider.Prefix) {
			out = append(out, report.Condition{Type: c.Type, Status: string(c.Status), Reason: c.Reason, Message: c.Message, Since: c.LastTransitionTime.UTC()})
		}
	}
	return out
}

// findingsOf returns what the conditions on a Service tell of trouble.
func findingsOf(svc *v1.Service) []report.Finding {
	conditions := conditionsOf(svc)
	var out []report.Finding
	for _, c := range conditions {
		if f, trouble := report.OfCondition(c.Type, c.Status, c.Reason, c.Message, report.At(c.Since)); trouble && c.Reason != provider.ReasonNoAddress {
			out = append(out, f)
		}
	}
	if len(conditions) == 0 {
		out = append(out, report.Finding{
			Level: report.Notice, Where: "Service", What: "eclusa has not said anything about it yet",
			Do: "see whether the manager runs, and whether it serves Services of this class",
		})
	}
	report.Sort(out)
	return out
}

func serviceFromObject(svc *v1.Service) report.Service {
	out := report.Service{Namespace: svc.Namespace, Name: svc.Name, Members: unknownCount, Edges: unknownCount, Findings: findingsOf(svc)}
	for _, in := range svc.Status.LoadBalancer.Ingress {
		out.Addresses = append(out.Addresses, in.IP+in.Hostname)
	}
	for _, p := range svc.Spec.Ports {
		out.Ports = append(out.Ports, fmt.Sprintf("%d/%s", p.Port, strings.ToLower(string(p.Protocol))))
	}
	return out
}

// explainFromObjects explains a Service by what it says itself.
func (c *cluster) explainFromObjects(ctx context.Context, now time.Time, namespace, name string) (report.Explanation, error) {
	svc, err := c.kube.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return report.Explanation{}, accessError(fmt.Sprintf("reading Service %q", namespace+"/"+name), err)
	}
	if !maybeOurs(svc) {
		return report.Explanation{}, &coded{fmt.Errorf("service %q is none of eclusa's: it is of type %s and class %q", namespace+"/"+name, svc.Spec.Type, deref(svc.Spec.LoadBalancerClass)), exitNotFound}
	}
	e := report.Explanation{
		Origin: report.Origin{Time: now.UTC()}, Namespace: namespace, Name: name, Class: deref(svc.Spec.LoadBalancerClass),
		Policy: cmp.Or(string(svc.Spec.ExternalTrafficPolicy), "Cluster"), Findings: findingsOf(svc), Conditions: conditionsOf(svc),
		Addresses: []report.Address{}, Edges: []report.EdgeView{}, Members: []report.Member{}, Limits: provider.Limits(svc),
	}
	for _, in := range svc.Status.LoadBalancer.Ingress {
		e.Addresses = append(e.Addresses, report.Address{Address: in.IP + in.Hostname, Published: true})
	}
	e.Listeners = provider.ListenersOf(provider.Translate(svc, provider.ForwardingOf(svc)).LoadBalancer)
	return e, nil
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
