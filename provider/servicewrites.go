package provider

import (
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
		p := &servicePatch{svc: s.svc, now: r.Now}
		r.describe(s, p)
		r.put(s.svc, p)
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
	for _, svc := range r.others {
		p := &servicePatch{svc: svc, now: r.Now}
		r.letGo(svc, p)
		r.put(svc, p)
	}
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

// put keeps a patch unless there is nothing to write, or only words that must
// wait.
func (r *round) put(svc *v1.Service, p *servicePatch) {
	if p.empty() {
		return
	}
	uid := uidOf(svc)
	if p.onlyWords && !p.changesMeta() && !p.setIngress {
		last := r.messages[uid]
		if wait := messageEvery - r.Now.Sub(last.at); wait > 0 && last.base != svc.ResourceVersion {
			r.wakeIn(wait)
			return
		}
		r.messages[uid] = words{r.Now, svc.ResourceVersion}
	}
	w, err := p.write()
	if err != nil {
		return // cannot happen: nothing in the patch can fail to be marshalled
	}
	r.writes[Target{ServiceKind, svc.Namespace, svc.Name}] = w
}

// describe says what the Service is to look like.
func (r *round) describe(s *subject, p *servicePatch) {
	if s.path == foreigns {
		p.say([]condition{s.assigned()})
		return
	}
	conditions := []condition{s.assigned()}
	proposed, recording := r.proposals[s.uid]
	switch {
	case recording:
		p.annotate(AnnotationAssignedAddresses, formatAddresses(proposed.addrs))
		p.annotate(AnnotationAssignedAt, proposed.at.UTC().Format(time.RFC3339))
	case !sameAddresses(s.recorded, recordedAddresses(s.svc)):
		// Somebody else has written there.
		p.annotate(AnnotationAssignedAddresses, formatAddresses(s.recorded))
	}
	if s.grant.ok {
		p.finalize(s.path.finalizer())
	}
	p.remove = r.Controllers.staleFinalizers(s.svc, s.path)
	standings := r.standings(s)
	if c, ok := r.programmedOf(s, standings); ok {
		conditions = append(conditions, c)
		if h, ok := r.healthOf(s); ok {
			conditions = append(conditions, h)
		}
		if len(s.served) > 0 || recording {
			conditions = append(conditions, reachable())
		}
	}
	published := s.served
	if recording {
		published = proposed.addrs
	}
	p.publish(ingressOf(r.published(s, published, standings)))
	p.say(conditions)
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
		all = append(all, standingOf(name, r.Fleet[name], s.uid, m.since[s.uid]))
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
	c, known := programmed(s, standings)
	if known {
		delete(r.waiting, s.uid)
		return c, true
	}
	pending := unknown(ConditionProgrammed, ReasonPending, "no edge has confirmed the newest version of the Service yet")
	if before == nil {
		return pending, true
	}
	said := condition{before.Type, before.Status, before.Reason, before.Message}
	if !r.changedHere(s) {
		return said, true
	}
	since, waits := r.waiting[s.uid]
	if !waits {
		since = r.Now
		r.waiting[s.uid] = since
	}
	if wait := unconfirmedAfter - r.Now.Sub(since); wait > 0 {
		r.wakeIn(wait)
		return said, true
	}
	return pending, true
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
	if s.built == nil {
		return condition{}, false
	}
	check := s.translation.Check
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

// published returns the addresses that the status is to tell: those that an
// edge serves, and those that it tells already, since an edge that is lost for
// a moment must not change what the cluster's DNS says.
func (r *round) published(s *subject, addrs []netip.Addr, standings []standing) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		serves := func(st standing) bool {
			p := poolOf(r.pools, a)
			return st.applied && p != nil && r.serving[p.Name][st.edge]
		}
		if slices.Contains(s.told, a) || slices.Contains(s.served, a) && slices.ContainsFunc(standings, serves) {
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
