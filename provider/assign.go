package provider

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/eclusa-lb/eclusa/lb"
)

// assign finds out which addresses each Service is to have, and proposes those
// that are not recorded yet.
func (r *round) assign() {
	r.grant()
	proposals := make(map[lb.UID]proposal)
	for _, s := range r.subjects {
		if s.path == foreigns || !s.grant.ok || sameAddresses(s.grant.addrs, s.recorded) {
			continue
		}
		p := proposal{addrs: s.grant.addrs, at: r.Now.Truncate(time.Second)}
		before, proposed := r.proposals[s.uid]
		switch {
		case slices.ContainsFunc(s.grant.addrs, func(a netip.Addr) bool { return slices.Contains(s.recorded, a) }) && !s.at.IsZero():
			p.at = s.at
		case proposed && sameAddresses(before.addrs, p.addrs):
			p.at = before.at
		}
		proposals[s.uid] = p
	}
	r.proposals = proposals
}

// admitted returns the pools that the Service may have addresses of, and if
// there are none, why.
func (r *round) admitted(s *subject) (pools []pool, reason, message string) {
	w := s.translation.Wishes
	if w.Pool != "" {
		i := slices.IndexFunc(r.pools, func(p pool) bool { return p.name == w.Pool })
		switch {
		case i < 0 && r.faults[w.Pool] != "":
			return nil, "PoolUnusable", fmt.Sprintf("AddressPool %q of annotation %s cannot be used: %s", w.Pool, AnnotationAddressPool, r.faults[w.Pool])
		case i < 0:
			return nil, "NoSuchPool", fmt.Sprintf("there is no AddressPool %q, which annotation %s asks for", w.Pool, AnnotationAddressPool)
		case !r.admits(r.pools[i], s):
			return nil, "NotAdmitted", fmt.Sprintf("AddressPool %q, which annotation %s asks for, does not admit the Service: see its namespaceSelector and serviceSelector", w.Pool, AnnotationAddressPool)
		}
		return []pool{r.pools[i]}, "", ""
	}
	for _, p := range r.pools {
		if r.admits(p, s) {
			pools = append(pools, p)
		}
	}
	return pools, "", ""
}

// admits says whether the selectors of a pool match the Service.
func (r *round) admits(p pool, s *subject) bool {
	return p.services.Matches(labels.Set(s.svc.Labels)) && p.namespaces.Matches(r.Namespaces[s.svc.Namespace])
}
