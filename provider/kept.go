package provider

import (
	"net/netip"
	"slices"

	"github.com/eclusa-lb/eclusa/ipam"
	"github.com/eclusa-lb/eclusa/lb"
)

// keptAddress is an address of a Service that goes on with what it had asked for
// before, and of which this process does not know that.
type keptAddress struct {
	uid  lb.UID
	addr netip.Addr
}

// keptVersion is a load balancer as an edge last held it.
type keptVersion struct {
	lb.LoadBalancer
	revision uint64
}

// rememberKept notes the newest versions that edges hold of such Services: an edge
// that is drained loses its own, and has to get it back.
func (r *round) rememberKept() {
	kept := map[keptAddress]keptVersion{}
	for _, s := range r.subjects {
		if !s.keepsLast() {
			continue
		}
		for _, a := range s.served {
			key := keptAddress{s.uid, a}
			best, known := r.kept[key]
			for _, name := range sortedNames(r.Fleet) {
				c := r.Fleet[name].Holds
				if l := c.LoadBalancers[s.uid]; slices.Contains(l.Addresses, a) && (!known || c.Revision > best.revision) {
					best, known = keptVersion{l, c.Revision}, true
				}
			}
			if known {
				best.Members = nil // which change, and are found anew
				kept[key] = best
			}
		}
	}
	r.kept = kept
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

// lastOn returns what an edge is to hold of such a Service if it holds nothing: what
// another one does or did, but for ports that are not the Service's any more and
// addresses that an edge may still have from which they move away.
func (r *round) lastOn(edge string, s *subject, here []netip.Addr) lb.LoadBalancer {
	l := r.kept[keptAddress{s.uid, here[0]}].LoadBalancer
	l.Listeners = slices.DeleteFunc(slices.Clone(l.Listeners), func(x lb.Listener) bool {
		return !slices.Contains(s.keptPorts, ipam.PortKey{Protocol: x.Protocol, Port: x.Port})
	})
	l.Listeners = withoutUnserved(l.Listeners, s.grant.unserved)
	l.Addresses = slices.DeleteFunc(slices.Clone(l.Addresses), func(a netip.Addr) bool {
		return !slices.Contains(here, a) || r.heldByFormer(edge, poolOf(r.pools, a).Name, s, a)
	})
	return l
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
		for _, a := range s.served {
			follow(r.kept[keptAddress{s.uid, a}].Pool)
		}
	}
}
