package provider

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/eclusa-lb/eclusa/lb"
)

const (
	// messageEvery is how often a condition is written of which only the message
	// has changed.
	messageEvery = time.Minute
	// unconfirmedAfter is how long a changed load balancer counts as programmed
	// while no edge has confirmed its newest version.
	unconfirmedAfter = 10 * time.Second
	// unreachableAfter is how long no edge of a Service may be reached until what is
	// said of it stops to count. Shorter cuts must not cost a write per Service.
	unreachableAfter = time.Minute
	// reachedAfter is how long an edge must have been reached after that.
	reachedAfter = 30 * time.Second
)

// words is when a condition was last written for the sake of its message, and
// onto which version.
type words struct {
	at   time.Time
	base string
}

// writeServices finds out what is to be written to Services: one PATCH that
// records the address, one when it is served, and after that only when something
// is different.
func (r *round) writeServices() {
	r.names = sortedNames(r.edges)
	uids := make(map[lb.UID]bool, len(r.subjects))
	for _, s := range r.subjects {
		uids[s.uid] = true
		r.measure(s)
		r.writeService(s)
	}
	for uid := range r.faces {
		if !uids[uid] {
			delete(r.faces, uid)
		}
	}
	for uid := range r.messages {
		if !uids[uid] {
			delete(r.messages, uid)
		}
	}
	for uid := range r.waiting {
		if !uids[uid] {
			delete(r.waiting, uid)
		}
	}
	for uid := range r.changes {
		if !uids[uid] {
			delete(r.changes, uid)
		}
	}
	for uid := range r.untold {
		if !uids[uid] {
			delete(r.untold, uid)
		}
	}
	for _, svc := range r.others {
		p := &servicePatch{svc: svc, now: r.Now}
		r.letGo(svc, p)
		r.put(svc, p)
	}
}

// face is everything that decides about what is written to a Service, besides
// the time. As long as it is the same, so is what is to be written.
type face struct {
	svc                          *v1.Service
	path                         Path
	controllers                  Controllers
	recorded, proposed, at       string
	ok                           bool // it has what it needs
	assigned, programmed, health condition
	knowsProgrammed, knowsHealth bool
	published, ports             string
	served                       int
}

// writeService finds out what is to be written to one Service of ours, unless
// that was found out before.
func (r *round) writeService(s *subject) {
	f, ingress := r.faceOf(s)
	target := Target{Kind: ServiceKind, Namespace: s.svc.Namespace, Name: s.svc.Name}
	if before, ok := r.faces[s.uid]; ok && before.face == f {
		if before.write != nil {
			r.writes[target] = *before.write
		}
		return
	}
	p := &servicePatch{svc: s.svc, now: r.Now}
	r.describe(s, p, f, ingress)
	if !r.put(s.svc, p) {
		delete(r.faces, s.uid) // the words must wait
		return
	}
	described := described{face: f}
	if w, ok := r.writes[target]; ok {
		described.write = &w
	}
	r.faces[s.uid] = described
}

// described is what was found out about a face.
type described struct {
	face
	write *Write // nil if there is nothing to write
}

// measure notes how long it took from a Service's change until every edge has
// applied it. What is refused does not count.
func (r *round) measure(s *subject) {
	since, waits := r.changes[s.uid]
	if !waits || s.built == nil {
		return
	}
	applied := true
	for _, st := range r.standings(s) {
		if !st.known {
			return
		}
		applied = applied && st.applied
	}
	delete(r.changes, s.uid)
	if applied && len(s.standings) > 0 {
		r.stats.Applied = append(r.stats.Applied, r.Now.Sub(since))
	}
}

// put keeps a patch unless there is nothing to write. It returns false if there
// are only words to write, and those must wait.
func (r *round) put(svc *v1.Service, p *servicePatch) bool {
	if p.empty() {
		return true
	}
	uid := uidOf(svc)
	if p.onlyWords && !p.changesMeta() && !p.setIngress {
		last := r.messages[uid]
		if wait := messageEvery - r.Now.Sub(last.at); wait > 0 && last.base != svc.ResourceVersion {
			r.wakeIn(wait)
			return false
		}
		r.messages[uid] = words{r.Now, svc.ResourceVersion}
	}
	w, err := p.write()
	if err != nil {
		return true // cannot happen: nothing in the patch can fail to be marshalled
	}
	r.writes[Target{Kind: ServiceKind, Namespace: svc.Namespace, Name: svc.Name}] = w
	return true
}

// faceOf finds out how the Service stands, and what its status is to tell of its
// addresses.
func (r *round) faceOf(s *subject) (face, []v1.LoadBalancerIngress) {
	f := face{svc: s.svc, path: s.path, controllers: r.Controllers, ok: s.grant.ok, assigned: s.assigned(), recorded: formatAddresses(s.recorded)}
	if s.path == foreigns {
		return f, nil
	}
	proposal, recording := r.proposals[s.uid]
	addrs := s.served
	at := s.at
	if recording {
		addrs, at = proposal.addrs, proposal.at
		f.proposed = formatAddresses(addrs)
	}
	if !at.IsZero() {
		f.at = at.UTC().Format(time.RFC3339)
	}
	standings := r.standings(s)
	f.programmed, f.knowsProgrammed = r.programmedOf(s, standings)
	if f.knowsProgrammed {
		f.health, f.knowsHealth = r.healthOf(s)
	}
	published := r.published(s, addrs, standings)
	f.served = len(s.served)
	f.published = formatAddresses(published)
	ingress := r.ingressOf(s, published, r.brokenPorts(s, standings))
	if slices.ContainsFunc(ingress, func(in v1.LoadBalancerIngress) bool {
		return len(in.Ports) > 0 || *in.IPMode != v1.LoadBalancerIPModeProxy
	}) {
		f.ports = textOf(ingress)
	}
	return f, ingress
}

// describe says what the Service is to look like.
func (r *round) describe(s *subject, p *servicePatch, f face, ingress []v1.LoadBalancerIngress) {
	conditions := []condition{f.assigned}
	if s.path == foreigns {
		p.say(conditions)
		return
	}
	recording := f.proposed != ""
	if recording {
		p.annotate(AnnotationAssignedAddresses, f.proposed)
		p.annotate(AnnotationAssignedAt, f.at)
	} else {
		s.restoreRecord(p, f)
	}
	if f.ok {
		p.finalize(s.path.finalizer())
	}
	p.remove = r.Controllers.staleFinalizers(s.svc, s.path)
	if f.knowsProgrammed {
		conditions = append(conditions, f.programmed)
		if f.knowsHealth {
			conditions = append(conditions, f.health)
		}
		if len(s.served) > 0 || recording {
			conditions = append(conditions, reachable())
		}
	}
	p.publish(ingress)
	p.say(conditions)
}

// restoreRecord puts our annotations right if somebody else has written there.
func (s *subject) restoreRecord(p *servicePatch, f face) {
	addrs, at := s.svc.Annotations[string(AnnotationAssignedAddresses)], s.svc.Annotations[string(AnnotationAssignedAt)]
	if !sameAddresses(s.recorded, recordedAddresses(s.svc)) {
		p.annotate(AnnotationAssignedAddresses, f.recorded)
		p.warn(ReasonAnnotationRestored, fmt.Sprintf("%s: %s: is written by eclusa alone: the Service has %s; use %s to ask for an address",
			AnnotationAssignedAddresses, quoted(addrs), cmp.Or(f.recorded, "none"), AnnotationAddresses))
	} else if at != f.at && f.at != "" {
		p.warn(ReasonAnnotationRestored, fmt.Sprintf("%s: %s: is written by eclusa alone: the Service has its addresses since %s", AnnotationAssignedAt, quoted(at), f.at))
	}
	p.annotate(AnnotationAssignedAt, f.at)
}

// standings returns how the Service stands on each edge that serves one of its
// addresses, by name.
func (r *round) standings(s *subject) []standing {
	if s.built == nil || s.standings != nil {
		return s.standings
	}
	all := []standing{}
	for _, name := range r.names {
		m := r.edges[name]
		if _, ok := m.builds[s.uid]; !ok {
			continue
		}
		st := standingOf(name, r.Fleet[name], s.uid, m.since[s.uid])
		if s.untold && !st.unsupported {
			st = standing{edge: name} // what it has is not the newest version
		}
		all = append(all, st)
	}
	if len(all) == 0 {
		for _, pool := range s.built.pools {
			if len(r.serving[pool]) == 0 {
				s.drained = append(s.drained, sortedNames(r.drained[pool])...)
			}
		}
		slices.Sort(s.drained)
		s.drained = slices.Compact(s.drained)
	}
	s.standings = all
	return all
}

// programmedOf says whether edges serve the Service. While nothing is known,
// what was said before stays, unless the Service has changed since and no edge
// has confirmed that for a while.
func (r *round) programmedOf(s *subject, standings []standing) (condition, bool) {
	before := conditionOf(s.svc, ConditionProgrammed)
	if len(s.served) == 0 && len(s.translation.Refusals) == 0 && !s.grant.ok && before == nil {
		return condition{}, false
	}
	if _, recording := r.proposals[s.uid]; recording && len(s.served) == 0 {
		return unknown(ConditionProgrammed, ReasonPending, "edges have not been told yet"), true
	}
	if r.lost(s, standings) {
		return unreachable(ConditionProgrammed, standings), true
	}
	c, known := programmed(s, standings)
	if known && c.reason == ReasonAddressMoving && before != nil && before.Reason != ReasonAddressMoving && r.mayBeIgnorance(s) {
		if wait := r.waitFor(s); wait > 0 {
			r.wakeIn(wait)
			return condition{before.Type, before.Status, before.Reason, before.Message}, true
		}
	}
	if known {
		delete(r.waiting, s.uid)
		return c, true
	}
	pending := unknown(ConditionProgrammed, ReasonPending, "no edge has confirmed the newest version of the Service yet")
	if s.untold {
		pending.message = fmt.Sprintf("edges route packets to %s to nodes as they are once the status of the Service says so (ipMode VIP) and nodes have had time to follow", formatAddresses(s.served))
	}
	if before == nil {
		return pending, true
	}
	said := condition{before.Type, before.Status, before.Reason, before.Message}
	if !r.changedHere(s) {
		return said, true
	}
	if wait := r.waitFor(s); wait > 0 {
		r.wakeIn(wait)
		return said, true
	}
	return pending, true
}

// waitFor returns how long what was said of a Service before counts for what is not
// known, from when that was first found.
func (r *round) waitFor(s *subject) time.Duration {
	since, waits := r.waiting[s.uid]
	if !waits {
		since = r.Now
		r.waiting[s.uid] = since
	}
	return unconfirmedAfter - r.Now.Sub(since)
}

// mayBeIgnorance says whether the edges that are waited for are only not known to
// have let go, since nothing was heard of them yet: after a restart no Service must
// be written to because of that.
func (r *round) mayBeIgnorance(s *subject) bool {
	return !slices.ContainsFunc(s.former, func(edge string) bool { return !r.unheard(edge) })
}

// lost says whether none of the edges has been reached for long, and asks for
// another round when that is about to change. Once it was said, it stays until an
// edge has been reached for a while: a line that comes and goes must not cost a
// write per Service each time.
func (r *round) lost(s *subject, standings []standing) bool {
	if len(standings) == 0 {
		return false
	}
	before := conditionOf(s.svc, ConditionProgrammed)
	said := before != nil && before.Reason == ReasonEdgeUnreachable
	var last time.Duration // until the last edge counts as lost
	for _, st := range standings {
		state := r.Fleet[st.edge]
		since := r.Now.Sub(state.Since)
		switch {
		case state.Since.IsZero(), state.Connected && !said:
			return said && !state.Connected
		case state.Connected && since >= reachedAfter:
			return false
		case state.Connected:
			r.wakeIn(reachedAfter - since)
		default:
			last = max(last, unreachableAfter-since)
		}
	}
	if !said && last > 0 {
		r.wakeIn(last)
	}
	return said || last <= 0
}

// changedHere says whether the load balancer has changed after the first
// configuration that an edge was given by this process: before, the edge may
// well have it from whoever led last.
func (r *round) changedHere(s *subject) bool {
	for _, m := range r.edges {
		if m.since[s.uid] > m.first {
			return true
		}
	}
	return false
}

// voteKey names a count that many Services share.
type voteKey struct {
	pool  lb.PoolName
	check lb.CheckID
	edges string
}

// healthOf says whether enough nodes can serve the Service; what was said before
// stays while nothing is known.
func (r *round) healthOf(s *subject) (condition, bool) {
	if s.built == nil && s.kept {
		return unknown(ConditionBackendsHealthy, ReasonPending, "edges go on with a version of the Service that is not known here, so that nothing is known of its nodes"), true
	}
	if s.built == nil {
		return condition{}, false
	}
	if r.lost(s, s.standings) {
		return unreachable(ConditionBackendsHealthy, s.standings), true
	}
	check := s.good.Check
	var c condition
	var known bool
	if members := s.built.Members; members != nil {
		c, known = healthy(s, len(members), countVotes(members, check, r.statesFor(s)))
	} else {
		pool := r.members[s.built.Pool]
		key := voteKey{s.built.Pool, check, s.built.pools[0]}
		v, ok := r.votes[key]
		if !ok {
			v = countVotes(pool, check, r.statesFor(s))
			r.votes[key] = v
		}
		c, known = healthy(s, len(pool), v)
	}
	if known {
		return c, true
	}
	before := conditionOf(s.svc, ConditionBackendsHealthy)
	if before == nil {
		return condition{}, false
	}
	return condition{before.Type, before.Status, before.Reason, before.Message}, true
}

// statesFor returns the states of the edges that serve the Service's first
// address.
func (r *round) statesFor(s *subject) []EdgeState {
	var states []EdgeState
	for name := range r.serving[s.built.pools[0]] {
		if st, ok := r.Fleet[name]; ok {
			states = append(states, st)
		}
	}
	return states
}

// published returns the addresses that the status is to tell: those that an edge
// serves, or is to serve once the status tells them, and those that it tells already,
// since an edge that is lost for a moment must not change what the cluster's DNS says.
func (r *round) published(s *subject, addrs []netip.Addr, standings []standing) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		serves := func(st standing) bool {
			p := poolOf(r.pools, a)
			return st.applied && p != nil && r.serving[p.Name][st.edge] && !slices.Contains(st.without, a)
		}
		before := s.good != nil && s.good.Direct && r.steers(a) // nodes must know of them first
		if slices.Contains(s.told, a) || slices.Contains(s.served, a) && (before || slices.ContainsFunc(standings, serves)) {
			out = append(out, a)
		}
	}
	return out
}

// letGo takes away what is ours from a Service that is not, after its addresses
// are safe in quarantine.
func (r *round) letGo(svc *v1.Service, p *servicePatch) {
	if !onceOurs(svc) || r.unsaved[uidOf(svc)] {
		return
	}
	p.remove = r.Controllers.staleFinalizers(svc, Nobody)
	if svc.DeletionTimestamp != nil {
		return
	}
	recorded := recordedAddresses(svc)
	told, strange := ingressAddresses(svc)
	ours := len(told) > 0 && !strange && !slices.ContainsFunc(told, func(a netip.Addr) bool { return !slices.Contains(recorded, a) })
	if ours {
		p.publish(nil)
	}
	for _, a := range recordedAnnotations {
		p.annotate(a, "")
	}
	p.say(nil)
}

// conditionOf returns one of the Service's conditions, or nil.
func conditionOf(svc *v1.Service, conditionType string) *metav1.Condition {
	for i := range svc.Status.Conditions {
		if svc.Status.Conditions[i].Type == conditionType {
			return &svc.Status.Conditions[i]
		}
	}
	return nil
}
