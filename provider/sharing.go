package provider

import (
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

// findHeldPorts finds out which ports of shared addresses Services are known to
// use. The edges tell; where none is reached that has the Service, what they were
// told last counts.
//
// Nothing else of two Services must fit together: each listener has members, health
// check, source ranges and PROXY protocol of its own, and an address is on edges and
// not on a node, so that externalTrafficPolicy Local binds it to none.
func (r *round) findHeldPorts() {
	holders := make(map[netip.Addr]int, len(r.subjects))
	for _, s := range r.subjects {
		for _, a := range s.held {
			holders[a]++
		}
	}
	for _, s := range r.subjects {
		if slices.ContainsFunc(s.held, func(a netip.Addr) bool { return holders[a] > 1 }) {
			s.heldPorts = r.portsInUse(s)
		}
	}
}

func (r *round) portsInUse(s *subject) []ipam.PortKey {
	var ports []ipam.PortKey
	known := false
	for _, name := range sortedNames(r.Fleet) {
		st := r.Fleet[name]
		l, ok := st.Holds.LoadBalancers[s.uid]
		if !ok || !st.Known || !slices.ContainsFunc(l.Addresses, func(a netip.Addr) bool { return slices.Contains(s.held, a) }) {
			continue
		}
		known = true
		for _, p := range portKeys(l.Listeners) {
			if !slices.Contains(ports, p) {
				ports = append(ports, p)
			}
		}
	}
	switch b := r.builds[s.uid]; {
	case known && ports == nil:
		return []ipam.PortKey{}
	case known:
		return ports
	case b != nil:
		return portKeys(b.Listeners)
	}
	return nil
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
