package provider

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// The types of our conditions on Services.
const (
	// ConditionAddressAssigned says whether the Service has its addresses.
	ConditionAddressAssigned = Prefix + "AddressAssigned"
	// ConditionProgrammed says whether edges serve the Service.
	ConditionProgrammed = Prefix + "Programmed"
	// ConditionBackendsHealthy says whether enough nodes can serve the Service: it
	// is False when none or under half of them can, or no endpoint is ready.
	ConditionBackendsHealthy = Prefix + "BackendsHealthy"
	// ConditionReachable says whether the addresses answer from outside. It is
	// only ever claimed from a measurement.
	ConditionReachable = Prefix + "Reachable"
)

var ourConditions = []string{ConditionAddressAssigned, ConditionProgrammed, ConditionBackendsHealthy, ConditionReachable}

// ourCondition says whether a condition is one of ours.
func ourCondition(conditionType string) bool { return slices.Contains(ourConditions, conditionType) }

// The reasons of our conditions.
const (
	ReasonAssigned           = "Assigned"
	ReasonAssignedPartly     = "AssignedPartly"
	ReasonPoolGone           = "PoolGone"
	ReasonForeignAddress     = "ForeignAddress"
	ReasonInvalidAnnotation  = "InvalidAnnotation"
	ReasonNotServable        = "NotServable"
	ReasonProgrammed         = "Programmed"
	ReasonAnnotationsIgnored = "AnnotationsIgnored"
	ReasonPortsNotServed     = "PortsNotServed"
	ReasonDegraded           = "Degraded"
	ReasonPending            = "Pending"
	ReasonNoAddress          = "NoAddress"
	ReasonNoEdge             = "NoEdge"
	ReasonEdgeDraining       = "EdgeDraining"
	ReasonAddressMoving      = "AddressMoving"
	ReasonEdgeUnreachable    = "EdgeUnreachable"
	ReasonRefused            = "Refused"
	ReasonUnsupported        = "Unsupported"
	ReasonHealthy            = "Healthy"
	ReasonHealthySubstitute  = "HealthySubstitute"
	ReasonNotChecked         = "NotChecked"
	ReasonNoEndpoints        = "NoEndpoints"
	ReasonNoNodes            = "NoNodes"
	ReasonNoneHealthy        = "NoneHealthy"
	ReasonFewHealthy         = "FewHealthy"
	ReasonNotMeasured        = "NotMeasured"
)

// The reasons of what is said of nodes.
const (
	ReasonNoUsableAddress = "NoUsableAddress"
	ReasonNodeAnnotation  = "InvalidNodeValue"
)

// ReasonAnnotationRestored is of the Event that tells that somebody has changed what
// we alone write.
const ReasonAnnotationRestored = "AnnotationRestored"

// maxMessage bounds the message of a condition, in bytes.
const maxMessage = 1024

// condition is what one of our conditions is to say.
type condition struct {
	conditionType string
	status        metav1.ConditionStatus
	reason        string
	message       string
}

func yes(conditionType, reason, message string) condition {
	return condition{conditionType, metav1.ConditionTrue, reason, bounded(message)}
}

func no(conditionType, reason, message string) condition {
	return condition{conditionType, metav1.ConditionFalse, reason, bounded(message)}
}

func unknown(conditionType, reason, message string) condition {
	return condition{conditionType, metav1.ConditionUnknown, reason, bounded(message)}
}

// bounded shortens a message that is too long, at a whole character.
func bounded(s string) string {
	if len(s) <= maxMessage {
		return s
	}
	return strings.ToValidUTF8(s[:maxMessage-3], "") + "..."
}

// standing is how one load balancer stands on one edge.
type standing struct {
	edge string
	// known says that the edge has told about the newest version of the load
	// balancer.
	known   bool
	applied bool // or part of it
	// unsupported says that the edge cannot do what the load balancer needs.
	unsupported bool
	problems    []lb.Problem
	// listeners are those of the problems that are about one listener, by its place
	// in the load balancer.
	listeners map[int]lb.Problem
	// without are addresses that the edge does not serve.
	without []netip.Addr
}

// standingOf reads from an edge's state how a load balancer stands there, whose
// newest version it was given with the revision since.
func standingOf(name string, st EdgeState, uid lb.UID, since uint64) standing {
	if p, ok := st.Withheld[uid]; ok {
		return standing{edge: name, known: true, unsupported: true, problems: []lb.Problem{p}}
	}
	s, ok := st.Status.LoadBalancers[uid]
	if !ok || st.Status.Revision < since {
		return standing{edge: name}
	}
	out := standing{edge: name, known: true, applied: s.Applied || s.Partial, problems: s.Problems}
	cut, trimmed := st.Trimmed[uid]
	for _, p := range s.Problems {
		if i, about := listenerOf(p); about {
			if trimmed && i < len(cut.Kept) {
				i = cut.Kept[i]
			}
			out.note(i, p)
		}
	}
	if trimmed {
		out.problems = slices.Clone(out.problems)
		for _, i := range slices.Sorted(maps.Keys(cut.Problems)) {
			out.problems = append(out.problems, cut.Problems[i])
			out.note(i, cut.Problems[i])
		}
		if out.without = cut.Addresses; len(out.without) > 0 {
			out.problems = append(out.problems, cut.Untranslated)
		}
	}
	return out
}

func (st *standing) note(listener int, p lb.Problem) {
	if st.listeners == nil {
		st.listeners = map[int]lb.Problem{}
	}
	st.listeners[listener] = p
}

// programmed sums up how a load balancer stands on all edges of its pools. It
// returns no condition as long as nothing is known, so that what was written
// before stays true while an edge cannot be reached.
func programmed(s *subject, standings []standing) (condition, bool) {
	const t = ConditionProgrammed
	switch {
	case len(s.translation.Refusals) > 0:
		message := sentences(s.translation.Refusals, s.translation.Complaints)
		if s.kept {
			message += "; edges go on with what it asked for before"
		}
		return no(t, ReasonNotServable, message), true
	case len(s.served) > 0 && s.built == nil && len(s.unserved()) > 0:
		return no(t, ReasonPortsNotServed, joinBounded(s.unservedTexts())), true
	case len(s.served) == 0:
		return no(t, ReasonNoAddress, "the Service has no address"), true
	case len(standings) == 0 && len(s.former) > 0:
		return unknown(t, ReasonAddressMoving, fmt.Sprintf("waits until %s lets go of %s; see kubectl describe edge %s if that takes longer than connections may go on: its removals may be held, it may be paused, and if its machine is gone, delete the Edge",
			quotedList(s.former), formatAddresses(s.served), s.former[0])), true
	case len(standings) == 0 && len(s.drained) > 0:
		return no(t, ReasonEdgeDraining, fmt.Sprintf("the edges of %s let go of it since spec.drain is set on %s: end the drain, or give the pool another edge", formatAddresses(s.served), quotedList(s.drained))), true
	case len(standings) == 0:
		return no(t, ReasonNoEdge, fmt.Sprintf("no Edge serves the pool of %s: create an Edge whose labels the pool's edgeSelector matches", formatAddresses(s.served))), true
	}
	applied, known, unsupported := 0, 0, 0
	var trouble []string
	for _, st := range standings {
		if st.applied {
			applied++
		}
		if st.known {
			known++
		}
		if st.unsupported {
			unsupported++
		}
		for _, p := range st.problems {
			trouble = append(trouble, fmt.Sprintf("edge %q: %s", st.edge, problemText(p)))
		}
	}
	trouble = slices.Compact(trouble)
	partly := s.unservedTexts()
	complaints := texts(s.translation.Complaints)
	message := joinBounded(partly, trouble, complaints)
	switch {
	case known == 0, s.untold && applied == 0: // an edge that can do it is about to be told
		return condition{}, false
	case applied > 0 && len(trouble) > 0:
		return yes(t, ReasonDegraded, message), true
	case applied > 0 && len(partly) > 0:
		return yes(t, ReasonPortsNotServed, message), true
	case applied > 0 && len(complaints) > 0:
		return yes(t, ReasonAnnotationsIgnored, message), true
	case applied > 0:
		return yes(t, ReasonProgrammed, joinBounded([]string{"edges serve " + formatAddresses(s.served)}, s.translation.Remarks)), true
	case unsupported == known:
		return no(t, ReasonUnsupported, message), true
	}
	return no(t, ReasonRefused, cmp.Or(message, "no edge serves it, and none says why")), true
}

// unreachable sums up a load balancer of which no edge has been reached for long:
// what was known of it says nothing about now.
func unreachable(conditionType string, standings []standing) condition {
	names := make([]string, len(standings))
	for i, st := range standings {
		names[i] = st.edge
	}
	return unknown(conditionType, ReasonEdgeUnreachable, fmt.Sprintf("%s cannot be reached, so that nothing is known; an edge goes on serving what it had as long as it runs: see kubectl describe edges", quotedList(names)))
}

// quotedList writes names as a person reads them: edge "a" and edge "b".
func quotedList(names []string) string {
	texts := make([]string, len(names))
	for i, n := range names {
		texts[i] = fmt.Sprintf("edge %q", n)
	}
	return strings.Join(texts, " and ")
}

func problemText(p lb.Problem) string {
	if p.Field == "" {
		return p.Type + ": " + p.Detail
	}
	return p.Type + ": " + p.Field + ": " + p.Detail
}

// sentences joins complaints.
func sentences(complaints ...[]Complaint) string {
	return joinBounded(texts(slices.Concat(complaints...)))
}

func texts(complaints []Complaint) []string {
	out := make([]string, len(complaints))
	for i, c := range complaints {
		out[i] = c.String()
	}
	return out
}

// joinBounded joins sentences, and says how many there are more when they are
// longer than a condition may be.
func joinBounded(lists ...[]string) string {
	const reserve = len("; and 9999 more")
	all := slices.Concat(lists...)
	var b strings.Builder
	for i, text := range all {
		if i > 0 && b.Len()+len("; ")+len(text)+reserve > maxMessage {
			fmt.Fprintf(&b, "; and %d more", len(all)-i)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(text)
	}
	return b.String()
}

// healthy says whether enough of the members can serve. The text names no node
// and no number, so that it stays the same while single nodes come and go.
func healthy(s *subject, members int, v vote) (condition, bool) {
	const t = ConditionBackendsHealthy
	check := string(s.good.Check)
	switch {
	case s.endpoints.Known && !s.endpoints.Ready:
		return no(t, ReasonNoEndpoints, "no endpoint of the Service is ready: connections are refused"), true
	case members == 0 && s.built.Members == nil:
		return no(t, ReasonNoNodes, "there is no node that may take traffic of the Service"), true
	case members == 0:
		return no(t, ReasonNoNodes, "no endpoint of the Service is on a node that may take its traffic: connections are refused"), true
	case s.homeless:
		return no(t, ReasonNoNodes, fmt.Sprintf("no node of the Service has an address of the family %s, in which alone the node ports of the Service are open: give nodes one, or change spec.ipFamilies", s.good.Families[0])), true
	case 2*v.up >= members && s.good.LoadBalancer.HealthCheck.Protocol == healthcheck.None:
		return yes(t, ReasonNotChecked, "the nodes are not checked, as the Service asks, and count as up"), true
	case 2*v.up >= members && v.up == v.substituted:
		return yes(t, ReasonHealthySubstitute, "at least half of the nodes are up; none of them ever answered the health check "+check+", so that a TCP connection to a node port is tried in its place"), true
	case 2*v.up >= members:
		return yes(t, ReasonHealthy, "at least half of the nodes pass the health check "+check), true
	case !v.complete:
		return condition{}, false
	case v.up == 0:
		return no(t, ReasonNoneHealthy, "no node passes the health check "+check), true
	}
	return no(t, ReasonFewHealthy, "less than half of the nodes pass the health check "+check), true
}

// vote is what edges say about the members of a load balancer.
type vote struct {
	// up is the number of members that are up, as the edge sees it that sees most.
	up int
	// substituted is how many of these never answered the check itself.
	substituted int
	// complete says that at least one edge knows about every member.
	complete bool
}

// countVotes asks the edges about members.
func countVotes[M ~map[lb.NodeName]lb.Member](members M, check lb.CheckID, states []EdgeState) vote {
	var v vote
	for _, st := range states {
		up, seen, substituted := 0, 0, 0
		results := st.Status.Checks[check]
		for node := range members {
			if m, ok := results[node]; ok && m.State != healthcheck.Unknown {
				seen++
				if m.State.Serves() {
					up++
					if m.Substitute {
						substituted++
					}
				}
			}
		}
		v.complete = v.complete || seen == len(members)
		if up > v.up {
			v.up, v.substituted = up, substituted
		}
	}
	return v
}

// reachable says that nobody has measured yet.
func reachable() condition {
	return unknown(ConditionReachable, ReasonNotMeasured, "nobody outside the edges has tried the addresses")
}
