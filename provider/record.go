package provider

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/eclusa-lb/eclusa/lb"
)

// recordedAddresses returns the addresses that the annotation records. What
// cannot be read is left out, and so is a second address of a family: we write
// nothing of that kind.
func recordedAddresses(svc *v1.Service) []netip.Addr {
	value := svc.Annotations[string(AnnotationAssignedAddresses)]
	if value == "" || len(value) > maxAnnotation {
		return nil
	}
	var addrs []netip.Addr
	for item := range strings.SplitSeq(value, ",") {
		if a, err := netip.ParseAddr(strings.TrimSpace(item)); err == nil && a.Zone() == "" {
			addrs = ofNewFamilies(addrs, a.Unmap())
		}
	}
	return addrs
}

// ofNewFamilies adds those addresses of whose family there is none yet.
func ofNewFamilies(addrs []netip.Addr, more ...netip.Addr) []netip.Addr {
	for _, a := range more {
		if !slices.ContainsFunc(addrs, func(b netip.Addr) bool { return lb.FamilyOf(a) == lb.FamilyOf(b) }) {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// recordOf returns the addresses that are the Service's for all that is recorded.
// The annotation is writable for whoever may edit the Service, and is lost when the
// Service is replaced by what a repository has. What we have told in the status comes
// before it, since whatever we tell is recorded, and what edges were told stands in
// for both.
func (r *round) recordOf(s *subject, t translated) []netip.Addr {
	b := r.builds[s.uid]
	var told []netip.Addr
	if conditionOf(s.svc, ConditionProgrammed) != nil { // it is ours already
		for _, a := range t.ingress {
			if poolOf(r.pools, a) != nil || b != nil && slices.Contains(b.Addresses, a) {
				told = append(told, a)
			}
		}
	}
	record := ofNewFamilies(ofNewFamilies(nil, told...), t.recorded...)
	if len(record) == 0 && b != nil {
		return b.Addresses
	}
	return record
}

// claimTime returns since when the Service claims its addresses: what we remember,
// or what edges hold. Where these do not know all of the addresses the annotation
// counts as well, but nobody is senior to what an edge holds for him, nor to his own
// Service, by writing there.
func (r *round) claimTime(s *subject) time.Time {
	if len(s.recorded) == 0 {
		return time.Time{}
	}
	if p, ok := r.proposals[s.uid]; ok && sameAddresses(p.addrs, s.recorded) {
		return p.at // which was just recorded
	}
	at, known := s.born(), []netip.Addr(nil)
	vouches := func(l lb.LoadBalancer) {
		for _, a := range l.Addresses {
			if slices.Contains(s.recorded, a) {
				known, at = appendNew(known, a), later(at, l.ClaimTime)
			}
		}
	}
	if b := r.builds[s.uid]; b != nil {
		vouches(b.LoadBalancer)
	}
	for _, st := range r.Fleet {
		if st.Known {
			vouches(st.Holds.LoadBalancers[s.uid])
		}
	}
	if len(known) == len(s.recorded) {
		return at
	}
	if told, err := time.Parse(time.RFC3339, s.svc.Annotations[string(AnnotationAssignedAt)]); err == nil && !told.After(r.Now) {
		return later(at, told)
	}
	if c := conditionOf(s.svc, ConditionAddressAssigned); c != nil {
		return later(at, c.LastTransitionTime.Time)
	}
	return later(at, r.Now.Truncate(time.Second))
}

// born returns when the Service was created, in whole seconds as the API server has it.
func (s *subject) born() time.Time { return s.svc.CreationTimestamp.Truncate(time.Second) }

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// allAmong says whether there are addresses, and all are among others.
func allAmong(addrs, others []netip.Addr) bool {
	return len(addrs) > 0 && !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !slices.Contains(others, a) })
}
