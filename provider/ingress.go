package provider

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/eclusa-lb/eclusa/lb"
)

// ingressOf returns the addresses as the Service's status says them. Where edges
// terminate connections the addresses must be reached through them inside the
// cluster, too. If a port is not served on an address, all ports of the
// Service are told, that one with an error.
func (r *round) ingressOf(s *subject, addrs []netip.Addr, broken map[netip.Addr][]UnservedPort) []v1.LoadBalancerIngress {
	var ingress []v1.LoadBalancerIngress
	for _, a := range addrs {
		in := v1.LoadBalancerIngress{IP: a.String(), IPMode: ptr.To(r.modeOf(s, a))}
		if ports := portStatuses(s.svc, broken[a]); slices.ContainsFunc(ports, func(p v1.PortStatus) bool { return p.Error != nil }) {
			in.Ports = ports
		}
		ingress = append(ingress, in)
	}
	return ingress
}

func portStatuses(svc *v1.Service, errors []UnservedPort) []v1.PortStatus {
	if len(errors) == 0 {
		return nil
	}
	type key struct {
		protocol v1.Protocol
		port     int32
	}
	why := make(map[key]string, len(errors))
	for _, u := range errors {
		if k := (key{u.Protocol, u.Port}); why[k] == "" {
			why[k] = u.Error
		}
	}
	out := make([]v1.PortStatus, len(svc.Spec.Ports))
	for i, p := range svc.Spec.Ports {
		out[i] = v1.PortStatus{Port: p.Port, Protocol: protocolOf(p)}
		if e := why[key{out[i].Protocol, p.Port}]; e != "" {
			out[i].Error = ptr.To(Prefix + e)
		}
	}
	return out
}

// unserved returns the ports that are served nowhere, while others are.
func (s *subject) unserved() []UnservedPort {
	t := s.good
	if t == nil {
		return nil
	}
	return slices.Concat(t.Unserved, s.grant.unserved)
}

// unservedTexts says of each port why it is not served, once for all with the same
// reason.
func (s *subject) unservedTexts() []string {
	const shown = 8
	ports := map[string][]string{}
	var order []string
	for _, u := range s.unserved() {
		if ports[u.Why] == nil {
			order = append(order, u.Why)
		}
		ports[u.Why] = append(ports[u.Why], fmt.Sprintf("%d/%s", u.Port, strings.ToLower(string(u.Protocol))))
	}
	out := make([]string, len(order))
	for i, why := range order {
		all := ports[why]
		text := "port " + all[0] + " is"
		if n := len(all); n > shown {
			text = fmt.Sprintf("ports %s and %d more are", strings.Join(all[:shown], ", "), n-shown)
		} else if n > 1 {
			text = "ports " + strings.Join(all, ", ") + " are"
		}
		out[i] = text + " not served: " + why
	}
	return out
}

// brokenPorts returns, by address, the ports that are served nowhere or not by an
// edge that has the address; nil if all is well.
func (r *round) brokenPorts(s *subject, standings []standing) map[netip.Addr][]UnservedPort {
	everywhere := s.unserved()
	if s.built == nil {
		out := make(map[netip.Addr][]UnservedPort, len(s.served))
		for _, a := range s.served {
			out[a] = everywhere
		}
		return out
	}
	ofEdges := slices.ContainsFunc(standings, func(st standing) bool { return len(st.listeners) > 0 })
	unheard := len(standings) == 0 || slices.ContainsFunc(standings, func(st standing) bool { return !st.known })
	if len(everywhere) == 0 && !ofEdges && !unheard {
		return nil
	}
	out := make(map[netip.Addr][]UnservedPort, len(s.built.Addresses))
	for i, a := range s.built.Addresses {
		out[a] = slices.Clone(everywhere)
		for _, st := range standings {
			if !r.serving[s.built.pools[i]][st.edge] {
				continue
			}
			for _, at := range slices.Sorted(maps.Keys(st.listeners)) {
				p := st.listeners[at]
				if at < len(s.built.Listeners) {
					l := s.built.Listeners[at]
					out[a] = append(out[a], UnservedPort{Protocol: v1.Protocol(strings.ToUpper(string(l.Protocol))), Port: int32(l.Port), Error: camelCase(p.Type)})
				}
			}
		}
		if unheard {
			out[a] = append(out[a], r.stillBroken(s, a, s.built.pools[i], standings)...)
		}
	}
	return out
}

// stillBroken returns the ports that the Service's status says edges do not serve on
// the address, and that no edge tells by now to serve. As long as an edge has not told
// anything that stays.
func (r *round) stillBroken(s *subject, a netip.Addr, pool string, standings []standing) []UnservedPort {
	return slices.DeleteFunc(toldByEdges(s.svc, a), func(u UnservedPort) bool {
		at := slices.IndexFunc(s.built.Listeners, func(l lb.Listener) bool {
			return strings.EqualFold(string(l.Protocol), string(u.Protocol)) && int32(l.Port) == u.Port
		})
		return at < 0 || slices.ContainsFunc(standings, func(st standing) bool {
			_, broken := st.listeners[at]
			return st.applied && !broken && r.serving[pool][st.edge] && !slices.Contains(st.without, a)
		})
	})
}

// toldByEdges returns the ports that the Service's status says edges do not serve.
func toldByEdges(svc *v1.Service, a netip.Addr) []UnservedPort {
	var out []UnservedPort
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if in.IP != a.String() {
			continue
		}
		for _, p := range in.Ports {
			name, ours := strings.CutPrefix(ptr.Deref(p.Error, ""), Prefix)
			if ours && name != portWithoutNodePort && name != portInUse {
				out = append(out, UnservedPort{Protocol: p.Protocol, Port: p.Port, Error: name})
			}
		}
	}
	return out
}

// portError is what the API server takes for the name of a port's error, and for us a
// bounded word.
var portError = regexp.MustCompile(`^[A-Za-z0-9]{1,50}$`)

// camelCase makes of a problem's type what a port's error must look like. A type that
// does not lend itself to that, which only another version of the edge could use, must
// not spoil all that is written with it.
func camelCase(kind string) string {
	var b strings.Builder
	for word := range strings.SplitSeq(kind, "-") {
		if word != "" {
			b.WriteString(strings.ToUpper(word[:1]) + word[1:])
		}
	}
	if !portError.MatchString(b.String()) {
		return "NotServed"
	}
	return b.String()
}

// textOf writes what a status is to tell, to be compared.
func textOf(ingress []v1.LoadBalancerIngress) string {
	data, err := json.Marshal(ingress)
	if err != nil {
		return "" // cannot happen
	}
	return string(data)
}
