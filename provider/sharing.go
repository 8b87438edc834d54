package provider

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/eclusa-lb/eclusa/ipam"
	"github.com/eclusa-lb/eclusa/lb"
)

// sharingKey returns what the Service shares its address by, empty if it does not.
// Keys are those of a namespace: whoever may write Services in another one must not
// get at an address by guessing.
func sharingKey(s *subject) string {
	if key := s.translation.Wishes.SharingKey; key != "" {
		return s.svc.Namespace + "/" + key
	}
	return ""
}

// shelf is who has the addresses that Services hold, and their ports.
type shelf struct {
	holders map[netip.Addr][]*subject // the oldest first
	// owners are whose the ports are of addresses that several hold.
	owners map[netip.Addr]map[ipam.PortKey]*subject
}

// shared says whether several Services hold the address.
func (h shelf) shared(a netip.Addr) bool { return len(h.holders[a]) > 1 }

// findHeldPorts finds out whose the ports of shared addresses are, and which of them
// nobody gets for now.
//
// Nothing else of two Services must fit together: each listener has members, health
// check, source ranges and PROXY protocol of its own, and an address is on edges and
// not on a node, so that externalTrafficPolicy Local binds it to none.
func (r *round) findHeldPorts() {
	r.shelf = shelf{holders: make(map[netip.Addr][]*subject, len(r.subjects)), owners: map[netip.Addr]map[ipam.PortKey]*subject{}}
	for _, s := range r.subjects {
		for _, a := range s.held {
			r.shelf.holders[a] = append(r.shelf.holders[a], s)
		}
	}
	for a, all := range r.shelf.holders {
		if len(all) > 1 {
			r.findOwners(a, all)
		}
	}
	r.reserved = r.reserve()
}

// findOwners finds out whose each port of an address is: of those that want it
// theirs whose use of it is best established, and of them the oldest's.
func (r *round) findOwners(a netip.Addr, all []*subject) {
	type claimant struct {
		*subject
		proof
	}
	best := map[ipam.PortKey]claimant{}
	share := r.share(a, all)
	for _, s := range all {
		if !share && !slices.Contains(s.told, a) {
			continue // those that share no longer stay only if that outlives a restart
		}
		if slices.Contains(s.told, a) || r.heldOnEdge(s.uid, a) {
			s.establish(a)
		}
		proofs := r.proofs(s, a)
		for _, p := range s.claimedPorts() {
			if proof := proofs[p]; proof.better(best[p].proof) {
				best[p] = claimant{s, proof}
			}
		}
	}
	owners := make(map[ipam.PortKey]*subject, len(best))
	for p, c := range best {
		owners[p] = c.subject
		c.establish(a, p)
	}
	for _, s := range all {
		slices.SortFunc(s.heldPorts[a], comparePorts) // to be compared
	}
	r.shelf.owners[a] = owners
}

// establish notes that the Service is known on an address, and to use ports there.
func (s *subject) establish(a netip.Addr, ports ...ipam.PortKey) {
	if s.heldPorts == nil {
		s.heldPorts = make(map[netip.Addr][]ipam.PortKey, len(s.held))
	}
	s.heldPorts[a] = append(s.heldPorts[a], ports...)
}

func comparePorts(a, b ipam.PortKey) int {
	return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
}

// share says whether all these Services may share the address as they are.
func (r *round) share(a netip.Addr, all []*subject) bool {
	if p := poolOf(r.pools, a); p != nil && p.Shared {
		return true
	}
	key := sharingKey(all[0])
	return key != "" && !slices.ContainsFunc(all, func(s *subject) bool { return sharingKey(s) != key })
}

// mayShare says whether the Service shares the address, or others may come to.
func (r *round) mayShare(s *subject, a netip.Addr) bool {
	if p := poolOf(r.pools, a); p != nil && p.Shared {
		return true
	}
	return s.translation.Wishes.SharingKey != "" || r.shelf.shared(a)
}

// heldOnEdge says whether an edge holds the address for the Service.
func (r *round) heldOnEdge(uid lb.UID, a netip.Addr) bool {
	for name := range r.live {
		if slices.Contains(r.Fleet[name].Holds.LoadBalancers[uid].Addresses, a) {
			return true
		}
	}
	return false
}

// claimedPorts returns the ports that the Service is to have of its addresses.
func (s *subject) claimedPorts() []ipam.PortKey {
	switch {
	case len(s.translation.Refusals) == 0:
		return portKeys(s.translation.LoadBalancer.Listeners)
	case s.good != nil:
		return portKeys(s.good.LoadBalancer.Listeners) // with which it goes on
	}
	return s.keptPorts
}

// findKeptPorts finds out which ports Services go on with that are refused and of
// which it is not known what they asked for before.
func (r *round) findKeptPorts() {
	for _, s := range r.subjects {
		if len(s.translation.Refusals) > 0 && s.good == nil {
			s.keptPorts = r.keptPortsOf(s)
		}
	}
}

// keptPortsOf returns the ports that edges hold for a Service, that this process gave
// it, and that its status lists.
func (r *round) keptPortsOf(s *subject) []ipam.PortKey {
	var ports []ipam.PortKey
	add := func(more ...ipam.PortKey) {
		for _, p := range more {
			if !slices.Contains(ports, p) {
				ports = append(ports, p)
			}
		}
	}
	for name := range r.live {
		add(portKeys(r.Fleet[name].Holds.LoadBalancers[s.uid].Listeners)...)
	}
	add(r.granted.grants[s.uid].ports...)
	if !r.beginning.over {
		for _, a := range s.told {
			listed, _ := s.portsTold(a)
			add(listed...)
		}
	}
	slices.SortFunc(ports, comparePorts)
	return ports
}

// reserve returns what nobody gets who does not use it already: ports that an edge
// may still serve for somebody else, as that of an address in quarantine. As long as
// an edge that we began with may still tell what it serves, that is all of them.
func (r *round) reserve() map[netip.Addr]ipam.Reserved {
	if r.Eventual {
		return nil
	}
	out := map[netip.Addr]ipam.Reserved{}
	if edge := r.beginning.unheard; edge != "" {
		for a := range r.shelf.holders {
			out[a] = ipam.Reserved{All: fmt.Sprintf("which ports others use is known when edge %q has told, which is waited for %s at most", edge, unreachableAfter)}
		}
	}
	for _, edge := range sortedNames(r.live) {
		for uid, l := range r.Fleet[edge].Holds.LoadBalancers {
			for _, a := range l.Addresses {
				holders := r.shelf.holders[a]
				his := slices.ContainsFunc(holders, func(s *subject) bool { return s.uid == uid })
				if len(holders) == 0 || his && (len(holders) == 1 || r.givesUp(edge, uid)) {
					continue
				}
				out = r.reserveOn(out, a, edge, uid, l)
			}
		}
	}
	return out
}

// givesUp says whether an edge lets go of a port in the moment in which another
// Service is to have it, and not before: it goes on with an older version of the load
// balancer, since it cannot do what the newest needs, and takes what it is told.
func (r *round) givesUp(edge string, uid lb.UID) bool {
	st := r.Fleet[edge]
	_, withheld := st.Withheld[uid]
	held := slices.Contains(st.RemovalHeld, loadBalancerKey+string(uid)) // all of it, then
	return withheld && !held && st.Connected && st.Known && st.Problem == "" && !r.live[edge].Spec.Paused
}

// reserveOn notes what an edge holds of an address for a Service whose it is not.
func (r *round) reserveOn(out map[netip.Addr]ipam.Reserved, a netip.Addr, edge string, uid lb.UID, l lb.LoadBalancer) map[netip.Addr]ipam.Reserved {
	for _, p := range portKeys(l.Listeners) {
		if owner := r.shelf.owners[a][p]; owner != nil && owner.uid == uid {
			continue
		}
		at := out[a]
		if at.Ports == nil {
			at.Ports = map[ipam.PortKey]ipam.Reservation{}
		}
		before, there := at.Ports[p]
		switch {
		case !there:
			at.Ports[p] = ipam.Reservation{Owner: string(uid), Why: fmt.Sprintf("edge %q has not let go of it for %q yet: wait, or delete the Edge if its machine is gone", edge, l.Name)}
		case before.Owner != string(uid):
			before.Owner = "" // several edges, for several Services
			at.Ports[p] = before
		}
		out[a] = at
	}
	return out
}

func portKeys(listeners []lb.Listener) []ipam.PortKey {
	keys := make([]ipam.PortKey, len(listeners))
	for i, l := range listeners {
		keys[i] = ipam.PortKey{Protocol: l.Protocol, Port: l.Port}
	}
	return keys
}

// clashing returns the ports that are not served because others have them.
func clashing(clashes []ipam.Clash) []UnservedPort {
	var out []UnservedPort
	for _, x := range clashes {
		u := UnservedPort{
			Protocol: v1.Protocol(strings.ToUpper(string(x.Port.Protocol))), Port: int32(x.Port.Port), Error: portInUse,
			Why: fmt.Sprintf("%q has it on %s, which both share: use another port, or ask for another address", x.Holder, x.Address),
		}
		if x.Why != "" {
			u.Why = fmt.Sprintf("it is not free on %s: %s", x.Address, x.Why)
		}
		if !slices.ContainsFunc(out, u.same) {
			out = append(out, u)
		}
	}
	return out
}

// withoutNew leaves out what a Service that moves away did not have on the addresses
// that it leaves and that others have as well: it was given its ports elsewhere.
func (r *round) withoutNew(s *subject, listeners []lb.Listener) []lb.Listener {
	for _, a := range s.served {
		if !r.shelf.shared(a) || slices.Contains(s.grant.addrs, a) {
			continue
		}
		had := s.heldPorts[a]
		listeners = slices.DeleteFunc(slices.Clone(listeners), func(l lb.Listener) bool {
			return !slices.Contains(had, ipam.PortKey{Protocol: l.Protocol, Port: l.Port})
		})
	}
	return listeners
}

// withoutUnserved returns the listeners without those of ports that others have.
func withoutUnserved(listeners []lb.Listener, unserved []UnservedPort) []lb.Listener {
	if len(unserved) == 0 {
		return listeners
	}
	return slices.DeleteFunc(slices.Clone(listeners), func(l lb.Listener) bool {
		return slices.ContainsFunc(unserved, UnservedPort{Protocol: v1.Protocol(strings.ToUpper(string(l.Protocol))), Port: int32(l.Port)}.same)
	})
}
