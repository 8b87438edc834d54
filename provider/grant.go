package provider

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/eclusa-lb/eclusa/lb"
)

// grant gives addresses to the Services, the oldest first.
func (r *round) grant() {
	taken := map[netip.Addr]*subject{}
	for a := range r.quarantine.addrs {
		taken[a] = nil
	}
	for _, s := range r.subjects {
		for _, a := range s.held {
			if taken[a] == nil {
				taken[a] = s
			}
		}
	}
	for _, s := range r.subjects {
		s.grant = r.grantOne(s, taken)
		for _, a := range s.grant.addrs {
			taken[a] = s
		}
	}
}

func (r *round) grantOne(s *subject, taken map[netip.Addr]*subject) grant {
	var g grant
	pools, reason, message := r.admitted(s)
	if len(pools) == 0 {
		return grant{reason: reason, message: message}
	}
	for _, f := range s.translation.Families {
		a, p := r.pick(s, f, pools, taken)
		if !a.IsValid() {
			continue
		}
		g.addrs, g.pools = append(g.addrs, a), append(g.pools, p)
	}
	g.ok = len(g.addrs) > 0
	g.reason, g.message = ReasonAssigned, fmt.Sprintf("%s of pool %s", formatAddresses(g.addrs), strings.Join(g.pools, ", "))
	if !g.ok {
		g.reason, g.message = "PoolExhausted", "no free address"
	}
	return g
}

func (r *round) pick(s *subject, f lb.Family, pools []pool, taken map[netip.Addr]*subject) (netip.Addr, string) {
	for _, a := range s.held {
		if lb.FamilyOf(a) == f && taken[a] == s {
			if p := poolOf(pools, a); p != nil {
				return a, p.name
			}
		}
	}
	for _, p := range pools {
		for _, rg := range p.ranges {
			for a := rg.from; lb.FamilyOf(a) == f && rg.contains(a); a = a.Next() {
				if _, ok := taken[a]; !ok {
					return a, p.name
				}
			}
		}
	}
	return netip.Addr{}, ""
}
