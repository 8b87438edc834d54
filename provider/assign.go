package provider

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/ipam"
	"github.com/eclusa-lb/eclusa/lb"
)

// assign finds out which addresses each Service is to have, and proposes those
// that are not recorded yet.
func (r *round) assign() {
	r.grant()
	r.forgetLost()
	proposals := make(map[lb.UID]proposal)
	for _, s := range r.subjects {
		if s.path == foreigns || !s.grant.ok || sameAddresses(s.grant.addrs, s.recorded) {
			continue
		}
		p := proposal{addrs: s.grant.addrs, at: later(r.Now.Truncate(time.Second), s.born())}
		before, proposed := r.proposals[s.uid]
		switch {
		case allAmong(s.grant.addrs, s.recorded):
			p.at = s.at // it gives up another; one that is new must not be claimed since before
		case proposed && sameAddresses(before.addrs, p.addrs):
			p.at = before.at
		}
		if !proposed || !sameAddresses(before.addrs, p.addrs) {
			for _, a := range p.addrs {
				r.note("address is assigned", s.translation.LoadBalancer.Name, a)
			}
		}
		proposals[s.uid] = p
	}
	r.proposals = proposals
}

// forgetLost takes from the records of refused Services what others have got.
func (r *round) forgetLost() {
	granted := make(map[netip.Addr]bool, len(r.subjects))
	for _, s := range r.subjects {
		for _, a := range s.grant.addrs {
			granted[a] = true
		}
	}
	for _, s := range r.subjects {
		lost := func(a netip.Addr) bool { return granted[a] && !slices.Contains(s.grant.addrs, a) }
		if s.path != foreigns && !s.grant.ok && slices.ContainsFunc(s.recorded, lost) {
			s.recorded = slices.DeleteFunc(slices.Clone(s.recorded), lost)
		}
	}
}

// grant asks for the addresses of all Services at once.
func (r *round) grant() {
	for _, s := range r.subjects {
		r.findFamilies(s)
	}
	if r.sameClaims() {
		for _, s := range r.subjects {
			s.grant = r.granted.grants[s.uid]
		}
		return
	}
	pools := make([]ipam.Pool, len(r.pools))
	for i, p := range r.pools {
		pools[i] = p.Pool
	}
	claims := make([]ipam.Claim, 0, len(r.subjects))
	eligible := map[string][]string{}
	for _, s := range r.subjects {
		if r.claims(s) {
			claims = append(claims, r.claimOf(s, eligible))
		}
	}
	quarantined := make(map[netip.Addr]ipam.Quarantine, len(r.quarantine.addrs))
	for a, q := range r.quarantine.addrs {
		quarantined[a] = ipam.Quarantine{Since: q.since, Owner: string(q.uid)}
	}
	results := ipam.Assign(pools, claims, quarantined)
	for _, s := range r.subjects {
		s.grant = grantOf(s, results[string(s.uid)])
		r.granted.grants[s.uid] = s.grant
		if !s.grant.ok && len(r.quarantine.truncated) > 0 {
			s.grant.message += fmt.Sprintf("; after a restart pools %v assign nothing new before all their edges were reached, since more addresses are in quarantine than their status can list", sortedNames(r.quarantine.truncated))
		}
	}
}

// granted is the last assignment and what it was made from, to be used again
// while nothing of that changes: edges report much more often.
type granted struct {
	pools      []*v1alpha1.AddressPool
	namespaces map[string]labels.Set
	claims     []claimed
	grants     map[lb.UID]grant
	// quarantined says that something was in quarantine.
	quarantined bool
}

// claimed is one claim that took part in an assignment.
type claimed struct {
	svc          *v1.Service
	path         Path
	held         []netip.Addr
	families     []lb.Family
	untranslated string
	ports        map[netip.Addr][]ipam.PortKey
	translation  *Translation
	ways         []string
}

// sameClaims says whether an assignment would have the same result as the last
// one, and notes what it is made from if not.
func (r *round) sameClaims() bool {
	r.findHeldPorts()
	claims := make([]claimed, len(r.subjects))
	for i, s := range r.subjects {
		claims[i] = claimed{s.svc, s.path, s.held, s.families, s.untranslated, s.heldPorts, s.translation, s.ways}
	}
	last := r.granted
	r.granted = granted{pools: r.Pools, namespaces: r.Namespaces, claims: claims, grants: make(map[lb.UID]grant, len(claims))}
	if last.grants == nil || len(r.quarantine.addrs) > 0 || len(r.quarantine.truncated) > 0 || last.quarantined ||
		!slices.Equal(last.pools, r.Pools) || !maps.EqualFunc(last.namespaces, r.Namespaces, labels.Equals) ||
		!slices.EqualFunc(last.claims, claims, func(a, b claimed) bool {
			return a.svc == b.svc && a.path == b.path && slices.Equal(a.held, b.held) &&
				slices.Equal(a.families, b.families) && a.untranslated == b.untranslated &&
				a.translation == b.translation && slices.Equal(a.ways, b.ways) &&
				maps.EqualFunc(a.ports, b.ports, slices.Equal)
		}) {
		r.granted.quarantined = len(r.quarantine.addrs)+len(r.quarantine.truncated) > 0
		return false
	}
	r.granted = last
	return true
}

// claims says whether the Service takes part in the assignment. One that cannot
// be served keeps what it has, and gets nothing new.
func (r *round) claims(s *subject) bool {
	return len(s.held) > 0 || !s.staysAsItIs()
}

// staysAsItIs says that the Service keeps the addresses that it has, and gets no
// others: what it asks for is not clear, or cannot be served, or another load balancer
// looks after it.
func (s *subject) staysAsItIs() bool {
	return s.translation.Wishes.AddressesUnclear || len(s.translation.Refusals) > 0 || s.path == foreigns
}

func (r *round) claimOf(s *subject, eligible map[string][]string) ipam.Claim {
	t := s.translation
	c := ipam.Claim{
		Owner: string(s.uid), Name: t.LoadBalancer.Name, Time: s.svc.CreationTimestamp.Time,
		Families: s.families, Held: s.held, HeldPorts: s.heldPorts,
	}
	c.SharingKey = sharingKey(s)
	c.Ports = s.claimedPorts()
	if !s.staysAsItIs() {
		c.EligiblePools = s.ways
		if s.ways == nil {
			c.EligiblePools = r.eligible(s, eligible)
		}
		c.Requested, c.Pool, c.RequireAll = t.Wishes.Addresses, t.Wishes.Pool, !t.OneFamilySuffices
	}
	return c
}

// eligible returns the pools whose selectors match the Service. Services of one
// namespace with equal labels share the answer.
func (r *round) eligible(s *subject, known map[string][]string) []string {
	key := s.svc.Namespace + " " + labels.Set(s.svc.Labels).String()
	names, ok := known[key]
	if !ok {
		for _, p := range r.pools {
			if !p.closed && r.admits(p, s) && !r.quarantine.truncated[p.Name] {
				names = append(names, p.Name)
			}
		}
		known[key] = names
	}
	return names
}

// grantOf reads the result of the assignment.
func grantOf(s *subject, result ipam.Result) grant {
	g := grant{addrs: result.Addresses, unserved: clashing(result.Clashes)}
	t := s.translation
	switch {
	case t.Wishes.AddressesUnclear:
		g.reason, g.message = ReasonInvalidAnnotation, sentences(about(t.Complaints, true, string(AnnotationAddresses), loadBalancerIPField))
	case len(t.Refusals) > 0:
		g.reason, g.message = ReasonNotServable, sentences(t.Refusals, t.Complaints)
	case result.Refusal != nil:
		g.reason, g.message = string(result.Refusal.Reason), result.Refusal.Detail
		if result.Refusal.Reason == ipam.WrongFamily {
			g.message += otherFamily(s.untranslated)
		}
	case len(result.Orphaned) > 0:
		g.reason = ReasonPoolGone
		g.message = fmt.Sprintf("no AddressPool has %s any more, so that no edge serves it: restore the pool, or name another one in the annotation %s",
			formatAddresses(result.Orphaned), AnnotationAddressPool)
	default:
		g.ok = len(result.Addresses) > 0
		g.reason, g.message = ReasonAssigned, "the Service has "+formatAddresses(result.Addresses)
		if result.Missing != nil {
			g.reason, g.message = ReasonAssignedPartly, g.message+"; "+result.Missing.Detail
		}
	}
	return g
}

// about returns the complaints about some fields, or those about all others.
func about(complaints []Complaint, these bool, fields ...string) []Complaint {
	return slices.DeleteFunc(slices.Clone(complaints), func(c Complaint) bool { return slices.Contains(fields, c.Field) != these })
}

// admits says whether the selectors of a pool match the Service.
func (r *round) admits(p pool, s *subject) bool {
	return p.services.Matches(labels.Set(s.svc.Labels)) && p.namespaces.Matches(r.Namespaces[s.svc.Namespace])
}
