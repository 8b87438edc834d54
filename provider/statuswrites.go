package provider

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lb"
)

// statusEvery is how often the status of an Edge or AddressPool is written at
// most. Addresses that go into quarantine do not wait for it.
const statusEvery = 5 * time.Second

// ReasonDoubled says that an Edge is the same as another.
const ReasonDoubled = "SameEndpoint"

// ReasonTerminating says that an AddressPool is to be deleted and still in use.
const ReasonTerminating = "Terminating"

// maxCount is the largest number of addresses that a status tells: what JSON
// readers can count to.
const maxCount = 1<<53 - 1

// spaced says whether a status may be written now, and otherwise asks for
// another round when it may. base is the version that it would be written onto:
// a write that has not succeeded yet is not a second one.
func (r *round) spaced(t Target, base string) bool {
	last, ok := r.statuses[t]
	if wait := statusEvery - r.Now.Sub(last.at); ok && wait > 0 && last.base != base {
		r.wakeIn(wait)
		return false
	}
	r.statuses[t] = words{r.Now, base}
	return true
}

// writePools finds out what is to be written to the statuses of pools.
func (r *round) writePools() {
	byPool := map[string][]v1alpha1.QuarantinedAddress{}
	for a, q := range r.quarantine.addrs {
		p := poolOf(r.pools, a)
		if p == nil {
			continue
		}
		byPool[p.Name] = append(byPool[p.Name], v1alpha1.QuarantinedAddress{
			Address: a.String(), Service: q.service, UID: string(q.uid), Since: metav1.NewTime(q.since.Truncate(time.Second)),
		})
	}
	used := map[string]map[netip.Addr]bool{}
	for _, h := range r.holdings {
		for _, a := range h.addrs {
			if p := poolOf(r.pools, a); p != nil {
				if used[p.Name] == nil {
					used[p.Name] = map[netip.Addr]bool{}
				}
				used[p.Name][a] = true
			}
		}
	}
	for _, o := range r.Pools {
		status := r.poolStatus(o, byPool[o.Name], int64(len(used[o.Name])))
		r.stats.Pools = append(r.stats.Pools, PoolStats{
			Name: o.Name, Total: status.Total, Used: status.Used, Quarantined: status.QuarantinedTotal,
			Ready: meta.IsStatusConditionTrue(status.Conditions, v1alpha1.PoolReady),
		})
		leaving := o.DeletionTimestamp != nil && r.onlyHere(o)
		r.guardPool(o, leaving || status.Used+status.QuarantinedTotal > 0)
		if leaving || equality.Semantic.DeepEqual(o.Status, status) {
			continue
		}
		t := Target{Kind: PoolKind, Name: o.Name}
		priority := PriorityDetail
		if unsaved(o.Status.Quarantined, status.Quarantined) {
			priority = PriorityAddress
			r.statuses[t] = words{r.Now, o.ResourceVersion}
		} else if !r.spaced(t, o.ResourceVersion) {
			continue
		}
		r.putStatus(t, o.ResourceVersion, o.UID, status, priority)
	}
}

// onlyHere says whether the written status of a pool tells of an address in
// quarantine that is of another pool by now, whose status does not tell of it yet.
func (r *round) onlyHere(o *v1alpha1.AddressPool) bool {
	return slices.ContainsFunc(o.Status.Quarantined, func(e v1alpha1.QuarantinedAddress) bool {
		a, err := netip.ParseAddr(e.Address)
		if err != nil {
			return false
		}
		q, p := r.quarantine.addrs[a], poolOf(r.pools, a)
		if q == nil || q.uid != lb.UID(e.UID) || p == nil || p.Name == o.Name {
			return false
		}
		return !slices.ContainsFunc(r.Pools, func(other *v1alpha1.AddressPool) bool {
			return other.Name == p.Name && slices.ContainsFunc(other.Status.Quarantined, func(x v1alpha1.QuarantinedAddress) bool {
				return x.Address == e.Address && x.UID == e.UID
			})
		})
	})
}

// guardPool keeps a pool of which addresses are in use or in quarantine from
// vanishing, and lets one go that is to be deleted once that is over.
func (r *round) guardPool(o *v1alpha1.AddressPool, inUse bool) {
	at := slices.Index(o.Finalizers, v1alpha1.PoolFinalizer)
	var op string
	switch {
	case o.DeletionTimestamp == nil && inUse && at < 0 && len(o.Finalizers) == 0:
		op = fmt.Sprintf(`{"op":"add","path":"/metadata/finalizers","value":[%q]}`, v1alpha1.PoolFinalizer)
	case o.DeletionTimestamp == nil && inUse && at < 0:
		op = fmt.Sprintf(`{"op":"add","path":"/metadata/finalizers/-","value":%q}`, v1alpha1.PoolFinalizer)
	case o.DeletionTimestamp != nil && !inUse && at >= 0:
		op = fmt.Sprintf(`{"op":"remove","path":"/metadata/finalizers/%d"}`, at)
	default:
		return
	}
	patch := fmt.Sprintf(`[{"op":"replace","path":"/metadata/uid","value":%q},{"op":"replace","path":"/metadata/resourceVersion","value":%q},%s]`, o.UID, o.ResourceVersion, op)
	r.writes[Target{Kind: PoolKind, Name: o.Name, Meta: true}] = Write{
		UID: o.UID, Base: o.ResourceVersion, Type: types.JSONPatchType, Patch: []byte(patch), Priority: PriorityAddress,
	}
}

// unsaved says whether something is in quarantine of which the written status
// does not tell.
func unsaved(written, wanted []v1alpha1.QuarantinedAddress) bool {
	if len(wanted) == 0 {
		return false
	}
	type entry struct{ address, uid string }
	known := make(map[entry]bool, len(written))
	for _, q := range written {
		known[entry{q.Address, q.UID}] = true
	}
	return slices.ContainsFunc(wanted, func(q v1alpha1.QuarantinedAddress) bool { return !known[entry{q.Address, q.UID}] })
}

func (r *round) poolStatus(o *v1alpha1.AddressPool, in []v1alpha1.QuarantinedAddress, used int64) v1alpha1.AddressPoolStatus {
	slices.SortFunc(in, func(a, b v1alpha1.QuarantinedAddress) int {
		// What is saved stays saved when there is more than fits.
		return compareTimes(a.Since, b.Since, strings.Compare(a.Address, b.Address))
	})
	status := v1alpha1.AddressPoolStatus{
		Used: used, QuarantinedTotal: int64(len(in)), QuarantineTruncated: len(in) > v1alpha1.MaxQuarantined,
		Quarantined: in[:min(len(in), v1alpha1.MaxQuarantined)],
		Conditions:  slices.Clone(o.Status.Conditions),
	}
	ready := metav1.Condition{
		Type: v1alpha1.PoolReady, Status: metav1.ConditionTrue, Reason: "Usable",
		Message: "the pool can be used", ObservedGeneration: o.Generation, LastTransitionTime: metav1.NewTime(r.Now.Truncate(time.Second)),
	}
	i := slices.IndexFunc(r.pools, func(p pool) bool { return p.Name == o.Name })
	switch {
	case r.faults[o.Name] != "":
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, "Unusable", bounded(r.faults[o.Name])
	case o.DeletionTimestamp != nil:
		ready.Status, ready.Reason = metav1.ConditionFalse, ReasonTerminating
		ready.Message = fmt.Sprintf("the pool is to be deleted and gives nothing out; it goes when its last address is free: %d are in use, %d in quarantine", used, len(in))
	case len(r.serving[o.Name]) == 0 && len(r.drained[o.Name]) > 0:
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, ReasonEdgeDraining, "no Edge serves the pool: spec.drain is set on "+quotedList(sortedNames(r.drained[o.Name]))
	case len(r.serving[o.Name]) == 0:
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, ReasonNoEdge, "no Edge serves the pool: its edgeSelector matches none"
	}
	if i >= 0 {
		status.Total = r.pools[i].size()
	}
	meta.SetStatusCondition(&status.Conditions, ready)
	return status
}

// compareTimes orders by time, then by what else there is.
func compareTimes(a, b metav1.Time, otherwise int) int {
	if c := a.Compare(b.Time); c != 0 {
		return c
	}
	return otherwise
}

// writeEdges finds out what is to be written to the statuses of edges.
func (r *round) writeEdges(wanted map[string]Wanted) {
	for _, o := range r.Edges {
		status := o.Status
		st, known := r.Fleet[o.Name]
		switch _, live := r.live[o.Name]; {
		case live && known:
			status = edgeStatus(wanted[o.Name], st, o.Status, o.Generation, r.Now.Truncate(time.Second))
		case live:
			r.wakeIn(time.Second) // the fleet hears of it after this round
			continue
		case r.doubled[o.Name] != "":
			status.Conditions = slices.Clone(status.Conditions)
			meta.SetStatusCondition(&status.Conditions, metav1.Condition{
				Type: v1alpha1.EdgeReady, Status: metav1.ConditionFalse, Reason: ReasonDoubled, ObservedGeneration: o.Generation,
				Message:            fmt.Sprintf("Edge %q has the same endpoint, and is older: delete one of them", r.doubled[o.Name]),
				LastTransitionTime: metav1.NewTime(r.Now.Truncate(time.Second)),
			})
		}
		if equality.Semantic.DeepEqual(o.Status, status) {
			continue
		}
		t := Target{Kind: EdgeKind, Name: o.Name}
		if r.spaced(t, o.ResourceVersion) {
			r.putStatus(t, o.ResourceVersion, o.UID, status, PriorityDetail)
		}
	}
}

// putStatus writes a whole status onto the version that it was decided on: the
// API server refuses to change an object's UID or an old resourceVersion. Fields
// that are empty now are taken away.
func (r *round) putStatus(t Target, base string, uid types.UID, status any, priority Priority) {
	data, err := json.Marshal(status)
	if err != nil {
		return // cannot happen: no type of a status can fail to be marshalled
	}
	patch := fmt.Sprintf(`[{"op":"replace","path":"/metadata/uid","value":%q},{"op":"replace","path":"/metadata/resourceVersion","value":%q},{"op":"add","path":"/status","value":%s}]`, uid, base, data)
	r.writes[t] = Write{UID: uid, Base: base, Type: types.JSONPatchType, Patch: []byte(patch), Priority: priority}
}
