package provider

import (
	"encoding/json"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// servicePatch gathers what is to be changed in a Service. Its result is one
// strategic merge patch that touches nothing but what is ours.
type servicePatch struct {
	svc         *v1.Service
	now         time.Time
	annotations map[string]any
	add, remove []string // finalizers
	ingress     []v1.LoadBalancerIngress
	setIngress  bool
	conditions  []any
	events      []Event
	problem     bool
	onlyWords   bool // every condition has a new message and nothing else
}

// annotate sets an annotation, or drops it if the value is empty.
func (p *servicePatch) annotate(name Annotation, value string) {
	before, there := p.svc.Annotations[string(name)]
	if before == value && there == (value != "") {
		return
	}
	if p.annotations == nil {
		p.annotations = map[string]any{}
	}
	p.annotations[string(name)] = nil
	if value != "" {
		p.annotations[string(name)] = value
	}
}

// finalize adds a finalizer.
func (p *servicePatch) finalize(finalizer string) {
	if finalizer != "" && !slices.Contains(p.svc.Finalizers, finalizer) {
		p.add = append(p.add, finalizer)
	}
}

// publish replaces the addresses in the status.
func (p *servicePatch) publish(ingress []v1.LoadBalancerIngress) {
	if !slices.EqualFunc(p.svc.Status.LoadBalancer.Ingress, ingress, sameIngress) {
		p.ingress, p.setIngress = ingress, true
	}
}

func sameIngress(a, b v1.LoadBalancerIngress) bool {
	return a.IP == b.IP && a.Hostname == b.Hostname && ptr.Equal(a.IPMode, b.IPMode) &&
		slices.EqualFunc(a.Ports, b.Ports, func(x, y v1.PortStatus) bool {
			return x.Port == y.Port && x.Protocol == y.Protocol && ptr.Equal(x.Error, y.Error)
		})
}

// say makes our conditions say exactly these things.
func (p *servicePatch) say(conditions []condition) {
	p.onlyWords = true
	for _, before := range p.svc.Status.Conditions {
		if ourCondition(before.Type) && !slices.ContainsFunc(conditions, func(c condition) bool { return c.conditionType == before.Type }) {
			p.conditions = append(p.conditions, map[string]any{"$patch": "delete", "type": before.Type})
			p.onlyWords = false
		}
	}
	for _, c := range conditions {
		p.sayOne(c)
	}
}

func (p *servicePatch) sayOne(c condition) {
	next := metav1.Condition{
		Type: c.conditionType, Status: c.status, Reason: c.reason, Message: c.message,
		LastTransitionTime: metav1.NewTime(p.now.Truncate(time.Second)),
	}
	i := slices.IndexFunc(p.svc.Status.Conditions, func(b metav1.Condition) bool { return b.Type == c.conditionType })
	if i >= 0 {
		before := p.svc.Status.Conditions[i]
		if before.Status == next.Status {
			next.LastTransitionTime = before.LastTransitionTime
		}
		if before.Status == next.Status && before.Reason == next.Reason {
			if before.Message == next.Message {
				return
			}
		} else {
			p.onlyWords = false
		}
	} else {
		p.onlyWords = false
	}
	p.conditions = append(p.conditions, next)
	p.tell(c)
}

// tell makes an event of a condition that people should know of.
func (p *servicePatch) tell(c condition) {
	switch {
	case c.status == metav1.ConditionFalse && c.reason != ReasonNoAddress,
		c.reason == ReasonDegraded, c.reason == ReasonPortsNotServed, c.reason == ReasonAnnotationsIgnored:
		p.warn(c.reason, c.message)
	case c.reason == ReasonProgrammed:
		p.events = append(p.events, Event{v1.EventTypeNormal, c.reason, c.message})
	}
}

// warn makes an event about trouble, once.
func (p *servicePatch) warn(reason, message string) {
	p.problem = true
	e := Event{v1.EventTypeWarning, reason, bounded(message)}
	if !slices.Contains(p.events, e) {
		p.events = append(p.events, e)
	}
}

// changesMeta says whether more than the status is written.
func (p *servicePatch) changesMeta() bool {
	return len(p.annotations)+len(p.add)+len(p.remove) > 0
}

// empty says whether there is nothing to write.
func (p *servicePatch) empty() bool {
	return !p.changesMeta() && !p.setIngress && len(p.conditions) == 0
}

// write returns the patch. Everything that others decide on (annotations,
// finalizers, the addresses in the status) has the resourceVersion as its
// precondition, so that it is only written onto the version that was decided on.
func (p *servicePatch) write() (Write, error) {
	meta := map[string]any{"uid": p.svc.UID}
	if p.changesMeta() || p.setIngress {
		meta["resourceVersion"] = p.svc.ResourceVersion
	}
	if len(p.annotations) > 0 {
		meta["annotations"] = p.annotations
	}
	if len(p.add) > 0 {
		meta["finalizers"] = p.add
	}
	if len(p.remove) > 0 {
		meta["$deleteFromPrimitiveList/finalizers"] = p.remove
	}
	status := map[string]any{}
	if p.setIngress {
		status["loadBalancer"] = map[string]any{"ingress": p.ingress}
	}
	if len(p.conditions) > 0 {
		status["conditions"] = p.conditions
	}
	body := map[string]any{"metadata": meta}
	if len(status) > 0 {
		body["status"] = status
	}
	data, err := json.Marshal(body)
	w := Write{
		UID: p.svc.UID, Base: p.svc.ResourceVersion, Type: types.StrategicMergePatchType, Patch: data,
		Priority: PriorityDetail, Events: p.events,
	}
	switch {
	case p.changesMeta():
		w.Priority = PriorityAddress
	case p.problem:
		w.Priority = PriorityProblem
	case p.setIngress:
		w.Priority = PriorityProgress
	}
	return w, err
}
