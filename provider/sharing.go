package provider

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

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

// findHeldPorts finds out which ports of each shared address Services are known to
// use.
//
// Nothing else of two Services must fit together: each listener has members, health
// check, source ranges and PROXY protocol of its own, and an address is on edges and
// not on a node, so that externalTrafficPolicy Local binds it to none.
func (r *round) findHeldPorts() {
	holders := make(map[netip.Addr][]*subject, len(r.subjects))
	for _, s := range r.subjects {
		for _, a := range s.held {
			holders[a] = append(holders[a], s)
		}
	}
	for _, s := range r.subjects {
		for _, a := range s.held {
			if len(holders[a]) < 2 || !slices.Contains(s.told, a) && !r.share(a, holders[a]) {
				continue // those that share no longer stay only if that outlives a restart
			}
			if ports, known := r.portsInUse(s, a); known {
				if s.heldPorts == nil {
					s.heldPorts = make(map[netip.Addr][]ipam.PortKey, len(s.held))
				}
				s.heldPorts[a] = ports
			}
		}
	}
}

// share says whether all these Services may share the address as they are.
func (r *round) share(a netip.Addr, all []*subject) bool {
	if p := poolOf(r.pools, a); p != nil && p.Shared {
		return true
	}
	key := sharingKey(all[0])
	return key != "" && !slices.ContainsFunc(all, func(s *subject) bool { return sharingKey(s) != key })
}

// portsInUse returns the ports of an address that the Service is known to use. The
// edges tell that have the address for it; where none is reached, what they were told
// last counts, and after a restart the Service's status, which its users cannot write.
// Its annotations tell nothing here.
func (r *round) portsInUse(s *subject, a netip.Addr) (ports []ipam.PortKey, known bool) {
	for _, name := range sortedNames(r.Fleet) {
		st := r.Fleet[name]
		l, ok := st.Holds.LoadBalancers[s.uid]
		if !ok || !st.Known || !slices.Contains(l.Addresses, a) {
			continue
		}
		known = true
		for _, p := range portKeys(l.Listeners) {
			if !slices.Contains(ports, p) {
				ports = append(ports, p)
			}
		}
	}
	b := r.builds[s.uid]
	switch {
	case known:
		return ports, true
	case b != nil && slices.Contains(b.Addresses, a):
		return portKeys(b.Listeners), true
	case b == nil && s.good != nil && slices.Contains(r.holdings[s.uid].addrs, a):
		return nil, true // others had all of its ports
	case slices.Contains(s.told, a):
		return s.portsTold(a), true
	}
	return nil, false
}

// portsTold returns those of the Service's ports that its status tells to be its own
// on an address.
func (s *subject) portsTold(a netip.Addr) []ipam.PortKey {
	var ports []ipam.PortKey
	for _, in := range s.svc.Status.LoadBalancer.Ingress {
		if in.IP != a.String() {
			continue
		}
		if len(in.Ports) == 0 {
			return s.claimedPorts()
		}
		for _, p := range in.Ports {
			if ptr.Deref(p.Error, "") != Prefix+portInUse {
				ports = append(ports, ipam.PortKey{Protocol: lb.Protocol(strings.ToLower(string(p.Protocol))), Port: uint16(p.Port)}) //nolint:gosec // the API server bounds ports
			}
		}
	}
	return ports
}

// claimedPorts returns the ports that the Service is to have of its addresses.
func (s *subject) claimedPorts() []ipam.PortKey {
	if len(s.translation.Refusals) > 0 && s.good != nil {
		return portKeys(s.good.LoadBalancer.Listeners) // with which it goes on
	}
	return portKeys(s.translation.LoadBalancer.Listeners)
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
		if !slices.ContainsFunc(out, u.same) {
			out = append(out, u)
		}
	}
	return out
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
