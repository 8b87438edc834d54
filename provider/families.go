package provider

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/eclusa-lb/eclusa/lb"
)

// findFamilies finds out of which families a Service is to have addresses: its own,
// or those that it asks for by address where edges serve clients of one family by
// nodes of the other. One that stays as it is keeps those that it has.
func (r *round) findFamilies(s *subject) {
	t := s.translation
	s.families, s.untranslated = t.Families, ""
	if s.staysAsItIs() {
		s.families = nil
		for _, a := range ofNewFamilies(nil, s.held...) {
			s.families = append(s.families, lb.FamilyOf(a))
		}
		return
	}
	if len(t.Families) != 1 {
		return
	}
	var families []lb.Family
	for _, a := range t.Wishes.Addresses {
		f := lb.FamilyOf(a)
		families = append(families, f)
		had := slices.ContainsFunc(s.held, func(h netip.Addr) bool { return lb.FamilyOf(h) == f })
		if f == t.Families[0] || had {
			continue
		}
		if s.untranslated = r.cannotTranslate(s, a); s.untranslated != "" {
			return
		}
	}
	if len(families) == 2 && families[0] != t.Families[0] {
		slices.Reverse(families)
	}
	if len(families) > 0 && !slices.Equal(families, t.Families) {
		s.families = families
	}
}

// cannotTranslate returns what is in the way of serving clients of one family by
// nodes of the other on the address: an edge of its pool that cannot, or of which it
// is not known, since the Service must not leave what works for what may not.
func (r *round) cannotTranslate(s *subject, a netip.Addr) string {
	p := poolOf(r.pools, a)
	if p == nil {
		return ""
	}
	if p.direct || r.translations[s.uid].Direct {
		return fmt.Sprintf("packets to it are routed to nodes as they are (pool %q, forwarding direct), so that clients are served by nodes of their own family only", p.Name)
	}
	for _, name := range sortedNames(r.serving[p.Name]) {
		can, known := r.edgeCan(name, lb.CapFamilyTranslation)
		switch {
		case can:
		case !known:
			return fmt.Sprintf("edge %q was not reached yet, so that it is not known whether it can serve clients of one family by nodes of the other", name)
		default:
			return fmt.Sprintf("edge %q cannot serve clients of one family by nodes of the other (%s is not among status.capabilities): use an edge that can, or change spec.ipFamilyPolicy", name, lb.CapFamilyTranslation)
		}
	}
	return ""
}

// otherFamily says what to do about a requested address of a family that the
// Service is not of.
func otherFamily(untranslated string) string {
	if untranslated == "" {
		return "; ask for an address of its family, or change spec.ipFamilyPolicy"
	}
	return "; " + untranslated
}

// memberFamilies returns the families in which a Service's node ports are reached,
// if clients of another family are to be served too, and nil otherwise: node ports
// are open in the families of the Service, and nodes have addresses of some.
func memberFamilies(own []lb.Family, nodes map[lb.Family]bool, addrs []netip.Addr) []lb.Family {
	var usable []lb.Family
	for _, f := range own {
		if nodes[f] {
			usable = append(usable, f)
		}
	}
	if len(usable) == 0 {
		usable = own
	}
	if !needsTranslation(usable, addrs) {
		return nil
	}
	return usable
}

func needsTranslation(members []lb.Family, addrs []netip.Addr) bool {
	return slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !slices.Contains(members, lb.FamilyOf(a)) })
}
