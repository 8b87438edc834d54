package provider

import (
	"net/netip"
	"reflect"
	"slices"

	"github.com/eclusa-lb/eclusa/ipam"
	"github.com/eclusa-lb/eclusa/lb"
)

// keptVersion is what is known of a load balancer that goes on as it was asked for
// before: its newest version, and every address that an edge holds of it or held.
type keptVersion struct {
	lb.LoadBalancer
	revision uint64
}

// rememberKept notes the newest versions that edges hold of Services of which this
// process does not know what they had asked for before: an edge that is drained loses
// its own, and has to get it back.
func (r *round) rememberKept() {
	kept, names := map[lb.UID]keptVersion{}, sortedNames(r.Fleet)
	for _, s := range r.subjects {
		if !s.keepsLast() {
			continue
		}
		k := r.kept[s.uid]
		for _, name := range names {
			c, m := r.Fleet[name].Holds, r.edges[name]
			if l, holds := c.LoadBalancers[s.uid]; holds {
				// Each write of ours is newer, whatever is in it of such Services.
				ours := m != nil && m.first != 0 && c.Revision >= m.first
				k = k.seen(l, c.Revision, ours)
			}
		}
		k.Addresses = slices.DeleteFunc(slices.Clone(k.Addresses), func(a netip.Addr) bool { return !slices.Contains(s.served, a) })
		if len(k.Addresses) > 0 {
			kept[s.uid] = k
		}
	}
	r.kept = kept
}

// seen returns what is known when an edge is seen to hold l.
func (k keptVersion) seen(l lb.LoadBalancer, revision uint64, ours bool) keptVersion {
	addrs, families := appendNew(slices.Clone(k.Addresses), l.Addresses...), k.MemberFamilies
	switch {
	case len(k.Listeners) == 0 || extends(l, k.LoadBalancer):
		k = keptVersion{l, max(k.revision, revision)}
	case ours || revision <= k.revision:
	case extends(k.LoadBalancer, l):
		k.revision = revision
	default:
		k = keptVersion{l, revision}
	}
	k.Addresses = addrs
	k.Members = nil // which change, and are found anew
	if len(k.MemberFamilies) == 0 && !k.Direct() {
		// An edge has none if none of its addresses needs them.
		if k.MemberFamilies = families; len(families) == 0 {
			k.MemberFamilies = l.MemberFamilies
		}
	}
	return k
}

// extends says whether l is o with more listeners, some of which an edge may have been
// unable to serve.
func extends(l, o lb.LoadBalancer) bool {
	if len(l.Listeners) <= len(o.Listeners) || slices.ContainsFunc(o.Listeners, func(x lb.Listener) bool { return !slices.Contains(l.Listeners, x) }) {
		return false
	}
	for _, x := range []*lb.LoadBalancer{&l, &o} {
		x.Addresses, x.Listeners, x.Members, x.MemberFamilies = nil, nil, nil, nil
	}
	return reflect.DeepEqual(l, o)
}

// keptOn returns the Services of the edge's pools that go on with what they had
// asked for before, since what they ask for by now cannot be served.
func (r *round) keptOn(edge string) map[lb.UID]Kept {
	var kept map[lb.UID]Kept
	for _, s := range r.subjects {
		if !s.keepsLast() {
			continue
		}
		here := slices.DeleteFunc(slices.Clone(s.served), func(a netip.Addr) bool { return !r.serves(edge, a) })
		if len(here) > 0 {
			put(&kept, s.uid, Kept{Addresses: here, Endpoints: s.endpoints, NodePorts: nodePortsOf(s.svc), Last: r.lastOn(edge, s, here)})
		}
	}
	return kept
}

// lastOn returns what an edge is to have of such a Service as others hold it or did,
// but for ports that are not the Service's any more, and for addresses that an edge
// may still have from which they move away. Before all have told there is none: what
// an edge was given it goes on with.
func (r *round) lastOn(edge string, s *subject, here []netip.Addr) lb.LoadBalancer {
	if r.beginning.unheard != "" {
		return lb.LoadBalancer{}
	}
	l := r.kept[s.uid].LoadBalancer
	l.Listeners = slices.DeleteFunc(slices.Clone(l.Listeners), func(x lb.Listener) bool {
		return !slices.Contains(s.keptPorts, ipam.PortKey{Protocol: x.Protocol, Port: x.Port})
	})
	l.Listeners = withoutUnserved(l.Listeners, s.grant.unserved)
	l.Addresses = slices.DeleteFunc(slices.Clone(l.Addresses), func(a netip.Addr) bool {
		return !slices.Contains(here, a) || l.Direct() && !tellsVIP(s.svc, a) || r.heldByFormer(edge, poolOf(r.pools, a).Name, s, a)
	})
	return l
}

// addressesOfKept returns only the addresses.
func addressesOfKept(keep map[lb.UID]Kept) map[lb.UID][]netip.Addr {
	var kept map[lb.UID][]netip.Addr
	for uid, k := range keep {
		put(&kept, uid, k.Addresses)
	}
	return kept
}

// followKept finds the nodes of the pools that edges hold for such Services.
func (r *round) followKept() {
	follow := func(name lb.PoolName) {
		if _, known := r.members[name]; known {
			return
		}
		if selector := selectorOf(name); selector != nil {
			_, r.members[name] = r.nodes.Pool(selector)
		}
	}
	for _, s := range r.subjects {
		if !s.keepsLast() {
			continue
		}
		for _, st := range r.Fleet {
			follow(st.Holds.LoadBalancers[s.uid].Pool)
		}
		follow(r.kept[s.uid].Pool)
	}
}
