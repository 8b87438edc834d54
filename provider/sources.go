package provider

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/eclusa-lb/eclusa/lb"
)

// maxSourceRanges bounds loadBalancerSourceRanges.
const maxSourceRanges = 1024

// sourceRangesField is the path of the field.
const sourceRangesField = "spec.loadBalancerSourceRanges"

// sourceRanges reads who may connect. A range that cannot be read refuses the
// Service: leaving it out would lock somebody out, and leaving all out would let
// everybody in. Kubernetes' helper is not used since it stands 0.0.0.0/0 for
// everybody and so forgets IPv6.
func (t *Translation) sourceRanges(svc *v1.Service) {
	field, ranges := sourceRangesField, svc.Spec.LoadBalancerSourceRanges
	old := strings.TrimSpace(svc.Annotations[v1.AnnotationLoadBalancerSourceRangesKey])
	switch {
	case len(ranges) == 0 && old == "":
		return
	case len(ranges) == 0:
		field, ranges = v1.AnnotationLoadBalancerSourceRangesKey, strings.SplitN(old, ",", maxSourceRanges+1)
	case old != "":
		t.Complaints = append(t.Complaints, Complaint{
			Field: v1.AnnotationLoadBalancerSourceRangesKey, Value: old,
			Want: "must not be given beside " + sourceRangesField, Instead: "the field counts and the annotation is not looked at",
		})
	}
	if len(ranges) > maxSourceRanges {
		t.refuse(field, fmt.Sprintf("%d ranges", len(ranges)), fmt.Sprintf("must not be more than %d", maxSourceRanges))
		return
	}
	var prefixes []netip.Prefix
	for _, text := range ranges {
		p, ok := readRange(strings.TrimSpace(text))
		if !ok {
			t.refuse(field, text, "must be a range of addresses such as 192.0.2.0/24 or 2001:db8::/32")
			continue
		}
		if !slices.Contains(prefixes, p) {
			prefixes = append(prefixes, p)
		}
	}
	t.LoadBalancer.SourceRanges = prefixes
	t.lockedOut(field, prefixes)
}

func readRange(text string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, false
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return p, false
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), true
}

// lockedOut remarks that all clients of a family are refused, which a list that
// begins with 0.0.0.0/0 is not always meant to do.
func (t *Translation) lockedOut(field string, prefixes []netip.Prefix) {
	families := slices.Clone(t.Families)
	for _, a := range t.Wishes.Addresses {
		if f := lb.FamilyOf(a); !slices.Contains(families, f) {
			families = append(families, f)
		}
	}
	for _, f := range families {
		if len(prefixes) > 0 && !slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return lb.FamilyOf(p.Addr()) == f }) {
			everybody := map[lb.Family]string{lb.IPv4: "0.0.0.0/0", lb.IPv6: "::/0"}[f]
			t.Remarks = append(t.Remarks, fmt.Sprintf("%s has no %s range, so that nobody may connect over %s; %s would admit everybody", field, f, f, everybody))
		}
	}
}
