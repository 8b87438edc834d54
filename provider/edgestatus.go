package provider

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lb"
)

// The reasons of an Edge's conditions.
const (
	ReasonServing     = "Serving"     // Ready: it is reached and has what is wanted
	ReasonPaused      = "Paused"      // Ready: it is reached, and nothing is written by order
	ReasonDraining    = "Draining"    // Ready: it lets go of its load balancers by order
	ReasonDrained     = "Drained"     // Ready: it has let go of all of them
	ReasonNotDurable  = "NotDurable"  // Ready: it serves what it could not save
	ReasonUnreachable = "Unreachable" // Ready False: it is not reached, or does not let us write
	ReasonRejected    = "Rejected"    // Ready False: it takes no new configuration
	ReasonUnconfirmed = "Unconfirmed" // RemovalHeld: removals wait for their confirmation
	ReasonNothingHeld = "NothingHeld" // RemovalHeld False
)

// edgeStatus says in an Edge's status what the fleet knows about the edge. What
// nothing is known of yet stays as it was before, so that a new leader does not
// begin by taking back what the one before has seen. Times of transition are kept
// from before as well, and set to now where something turned. It changes nothing.
func edgeStatus(w Wanted, s EdgeState, was v1alpha1.EdgeStatus, generation int64, now time.Time) v1alpha1.EdgeStatus {
	if !s.Connected && s.Problem == "" {
		return was
	}
	out := *was.DeepCopy()
	out.DesiredRevision = signed(w.Config.Revision)
	out.LoadBalancers = count(len(w.Config.LoadBalancers))
	out.HeldRemovals = slices.Clone(s.RemovalHeld[:min(len(s.RemovalHeld), v1alpha1.MaxHeldRemovals)])
	out.RemovalToken = s.RemovalToken
	out.DriftRepaired = signed(s.DriftRepaired)
	if s.Info.Schema != "" {
		out.Name, out.Engine, out.Version, out.Capabilities = s.Info.Name, s.Info.Engine, s.Info.Version, nil
		for _, c := range s.Info.Capabilities[:min(len(s.Info.Capabilities), maxCapabilities)] {
			out.Capabilities = append(out.Capabilities, string(c))
		}
	}
	if s.Status.Cursor != "" {
		out.AppliedRevision = signed(s.Status.Revision)
		out.LoadBalancersApplied, out.Refused = served(w, s)
		out.Backends, out.BackendsUp, out.SickNodes = backends(s.Status)
		out.NotDurable = !s.Status.Durable
	}
	for _, c := range []metav1.Condition{edgeReady(w, s, out.NotDurable), removalHeld(s)} {
		c.ObservedGeneration = generation
		c.LastTransitionTime = metav1.NewTime(now)
		meta.SetStatusCondition(&out.Conditions, c)
	}
	return out
}

// maxCapabilities is how many the API allows.
const maxCapabilities = 64

func edgeReady(w Wanted, s EdgeState, notDurable bool) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.EdgeReady, Status: metav1.ConditionTrue}
	switch {
	case !s.Connected:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, ReasonUnreachable, s.Problem
	case w.Paused:
		c.Reason, c.Message = ReasonPaused, "spec.paused is set: the edge goes on serving what it has, and nothing is written to it"
	case s.Problem != "":
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, ReasonRejected, s.Problem
	case w.Drain && !letGoOfAll(s):
		c.Reason, c.Message = ReasonDraining, "spec.drain is set: the edge takes no new connections and lets the established ones end"
	case w.Drain:
		c.Reason, c.Message = ReasonDrained, "spec.drain is set: the edge holds no load balancer and no address of this cluster any more"
	case notDurable:
		c.Reason, c.Message = ReasonNotDurable, "the edge serves what is wanted and cannot save it: it would start with something older; look at its disk"
	default:
		c.Reason, c.Message = ReasonServing, "the edge is reached and takes what is wanted"
	}
	c.Message = bounded(c.Message)
	return c
}

// letGoOfAll says whether an edge has told that it holds nothing any more, not even
// an address with open connections.
func letGoOfAll(s EdgeState) bool {
	return s.Known && s.Status.Cursor != "" && s.Status.Revision >= s.Holds.Revision &&
		len(s.Holds.LoadBalancers) == 0 && len(s.Status.LoadBalancers) == 0
}

func removalHeld(s EdgeState) metav1.Condition {
	n := len(s.RemovalHeld)
	if n == 0 {
		return metav1.Condition{Type: v1alpha1.EdgeRemovalHeld, Status: metav1.ConditionFalse, Reason: ReasonNothingHeld, Message: "no removal waits"}
	}
	return metav1.Condition{
		Type: v1alpha1.EdgeRemovalHeld, Status: metav1.ConditionTrue, Reason: ReasonUnconfirmed,
		Message: bounded(fmt.Sprintf("%d removals are so many at once that the edge holds them until the API server has confirmed each; "+
			"if they are meant, kubectl annotate --overwrite edge %s %s=%s lets exactly these pass. The first: %s",
			n, s.Name, v1alpha1.ReleaseRemovalsAnnotation, s.RemovalToken, strings.Join(firstOf(s.RemovalHeld), ", "))),
	}
}

// served counts the wanted load balancers that the edge serves, and tells why it
// does not serve others, by name.
func served(w Wanted, s EdgeState) (applied int32, refused []v1alpha1.RefusedService) {
	why := make(map[string]lb.Problem)
	for uid, l := range w.Config.LoadBalancers {
		st := s.Status.LoadBalancers[uid]
		if p, withheld := s.Withheld[uid]; withheld {
			why[l.Name] = p
		} else if len(st.Problems) > 0 {
			why[l.Name] = st.Problems[0]
		}
		if st.Applied {
			applied++
		}
	}
	for _, name := range slices.Sorted(maps.Keys(why)) {
		if len(refused) == v1alpha1.MaxRefused {
			break
		}
		p := why[name]
		message := p.Detail
		if p.Field != "" {
			message = p.Field + ": " + p.Detail
		}
		refused = append(refused, v1alpha1.RefusedService{Service: name, Reason: p.Type, Message: bounded(message)})
	}
	return applied, refused
}

// backends counts the members of all checks and those that are up, and tells
// what is the matter with others.
func backends(s lb.Status) (all, up int32, sick []v1alpha1.SickNode) {
	for check, members := range s.Checks {
		for node, m := range members {
			all++
			if m.State.Serves() {
				up++
				continue
			}
			sick = append(sick, v1alpha1.SickNode{
				Node: string(node), Check: string(check), State: m.State.String(), Message: bounded(ailment(m)),
				// In whole seconds, as it is stored: otherwise it would differ each time.
				Since: metav1.NewTime(m.Since.Truncate(time.Second)),
			})
		}
	}
	slices.SortFunc(sick, func(a, b v1alpha1.SickNode) int {
		return cmp.Or(strings.Compare(a.Node, b.Node), strings.Compare(a.Check, b.Check))
	})
	return all, up, slices.Clip(sick[:min(len(sick), v1alpha1.MaxSickNodes)])
}

// ailment says what the last failed probe of a member said.
func ailment(m lb.MemberStatus) string {
	var parts []string
	switch {
	case m.Error != "":
		parts = append(parts, m.Error)
	case m.Reason != "":
		parts = append(parts, string(m.Reason))
	}
	if m.Dead {
		parts = append(parts, "its node port does not answer either")
	}
	return strings.Join(parts, "; ")
}

// signed and count bring numbers into the types of the API.
func signed(n uint64) int64 { return int64(min(n, math.MaxInt64)) }
func count(n int) int32     { return int32(min(n, math.MaxInt32)) } //nolint:gosec // bounded
