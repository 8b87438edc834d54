package provider

import (
	"net/netip"
	"slices"

	"github.com/eclusa-lb/eclusa/ipam"
	"github.com/eclusa-lb/eclusa/lb"
)

// vouch leaves only those recorded addresses to a Service that are surely its
// own. Whoever may edit a Service may write into its annotations, so an address
// there that nothing else speaks for is no more than a wish: it is honoured
// only if the Service could have been given it and nobody else has it, and not at
// all if another load balancer serves the Service.
//
// For an address speak our own memory, the status of the Service (which its
// users cannot write), and an edge that holds the address for it.
func (r *round) vouch() {
	taken := map[netip.Addr][]*subject{}
	doubtful := map[*subject][]netip.Addr{}
	for _, s := range r.subjects {
		for _, a := range s.held {
			if slices.Contains(s.recorded, a) && !r.speaksFor(s, a) {
				doubtful[s] = append(doubtful[s], a)
				continue
			}
			taken[a] = append(taken[a], s)
		}
	}
	for _, s := range r.subjects { // the oldest first
		for _, a := range doubtful[s] {
			if s.path != foreigns && r.isFree(a, s, taken[a]) && r.couldHave(s, a) {
				taken[a] = append(taken[a], s)
				continue
			}
			drop := func(x netip.Addr) bool { return x == a }
			// Both may be shared with what was read from the Service.
			s.recorded = slices.DeleteFunc(slices.Clone(s.recorded), drop)
			s.held = slices.DeleteFunc(slices.Clone(s.held), drop)
			if s.path == foreigns {
				continue
			}
			r.note("address in the annotation "+string(AnnotationAssignedAddresses)+" is not the Service's and is ignored; only eclusa writes that annotation", nameOf(s.svc), a)
		}
		s.at = r.claimTime(s)
	}
}

// isFree says whether a wish of the Service for the address takes nothing from those
// who have it: all share it, and leave it at least one of its ports. Of two Services
// that nothing speaks for neither is known to have a port.
func (r *round) isFree(a netip.Addr, s *subject, holders []*subject) bool {
	p, key, wanted := poolOf(r.pools, a), sharingKey(s), s.claimedPorts()
	left := slices.Clone(wanted)
	for _, h := range holders {
		if (p == nil || !p.Shared) && (key == "" || key != sharingKey(h)) {
			return false
		}
		ports, known := r.portsInUse(h, a)
		if !known && r.speaksFor(h, a) {
			ports = h.claimedPorts()
		}
		left = slices.DeleteFunc(left, func(k ipam.PortKey) bool { return slices.Contains(ports, k) })
	}
	return len(left) > 0 || len(wanted) == 0
}

// speaksFor says whether anything but the annotation tells that the Service has
// the address.
func (r *round) speaksFor(s *subject, a netip.Addr) bool {
	if slices.Contains(s.told, a) || slices.Contains(r.proposals[s.uid].addrs, a) || slices.Contains(r.holdings[s.uid].addrs, a) {
		return true
	}
	for _, st := range r.Fleet {
		if st.Known && slices.Contains(st.Holds.LoadBalancers[s.uid].Addresses, a) {
			return true
		}
	}
	return false
}

// couldHave says whether the Service could be given the address as it is.
func (r *round) couldHave(s *subject, a netip.Addr) bool {
	p := poolOf(r.pools, a)
	if p == nil || p.closed || !r.admits(*p, s) {
		return false
	}
	if q := r.quarantine.addrs[a]; q != nil && q.uid != lb.UID(s.svc.UID) {
		return false
	}
	wishes := s.translation.Wishes
	return p.AutoAssign || wishes.Pool == p.Name || slices.Contains(wishes.Addresses, a)
}
