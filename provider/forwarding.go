package provider

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/eclusa-lb/eclusa/lb"
)

// nodesFollow is how long nodes have to take an address for their own after the
// Service's status says that they should, before edges send them packets to it.
const nodesFollow = time.Second

// ForwardingOf returns how edges serve a Service as far as its status tells.
func ForwardingOf(svc *v1.Service) lb.Forwarding {
	if slices.ContainsFunc(svc.Status.LoadBalancer.Ingress, isVIP) {
		return lb.ForwardDirect
	}
	return lb.ForwardNAT
}

// isVIP says whether the mode is there, as the API server has it for every address.
func isVIP(in v1.LoadBalancerIngress) bool {
	return ptr.Deref(in.IPMode, v1.LoadBalancerIPModeProxy) == v1.LoadBalancerIPModeVIP
}

// tellsVIP says whether the Service's status has nodes take the address for their
// own.
func tellsVIP(svc *v1.Service, a netip.Addr) bool {
	return slices.ContainsFunc(svc.Status.LoadBalancer.Ingress, func(in v1.LoadBalancerIngress) bool {
		return in.IP == a.String() && isVIP(in)
	})
}

// wayFrom says where it comes from that a Service is served directly.
func wayFrom(svc *v1.Service) string {
	if withoutNodePorts(svc) {
		return "spec.ports has no node ports"
	}
	return "spec.forwarding of the AddressPool"
}

// withoutNodePorts says whether a Service has ports, and none has a node port.
func withoutNodePorts(svc *v1.Service) bool {
	return len(svc.Spec.Ports) > 0 && !slices.ContainsFunc(svc.Spec.Ports, func(p v1.ServicePort) bool { return p.NodePort != 0 })
}

// direct complains about what needs connections of the edge's own, and does
// without.
func (t *Translation) direct(svc *v1.Service) {
	l := &t.LoadBalancer
	l.Forwarding = lb.ForwardDirect
	complain := func(name Annotation, value, want, instead string) {
		t.Complaints = append(t.Complaints, Complaint{Field: string(name), Value: value, Want: want, Instead: instead})
	}
	const why = "as packets reach nodes as they are (forwarding direct)"
	proxied := false
	for i := range l.Listeners {
		proxied = proxied || l.Listeners[i].ProxyProtocol != lb.ProxyOff
		l.Listeners[i].ProxyProtocol = lb.ProxyOff
	}
	if proxied {
		complain(AnnotationProxyProtocol, svc.Annotations[string(AnnotationProxyProtocol)], "must be off, "+why, "the client's address is announced by nobody, since nodes see it themselves")
	}
	if l.MaxConnections != 0 {
		complain(AnnotationMaxConnections, fmt.Sprint(l.MaxConnections), "must not be given, "+why+" and edges do not see when connections end", "connections are not limited")
		l.MaxConnections = 0
	}
	if l.ConnectTimeout != 0 {
		complain(AnnotationConnectTimeout, svc.Annotations[string(AnnotationConnectTimeout)], "must not be given, "+why+" and edges make no connections", "it is of no use")
		l.ConnectTimeout = 0
	}
	if l.Algorithm == lb.LeastConnections || l.Algorithm == lb.RandomTwoChoices {
		complain(AnnotationAlgorithm, string(l.Algorithm), "must be round-robin or source-hash, "+why+" and edges do not see when connections end", "a hash of the client's address and port is used")
		l.Algorithm = ""
	}
}

// reread reads a Service, and returns what was read before if that says the same.
func reread(before *Translation, svc *v1.Service, way lb.Forwarding) *Translation {
	t := Translate(svc, way)
	if before != nil && reflect.DeepEqual(before, &t) {
		return before
	}
	return &t
}

// edgeCan says whether an edge is capable of something, and whether that is known:
// of one that was not reached yet counts what it could do before.
func (r *round) edgeCan(name string, c lb.Capability) (can, known bool) {
	if info := r.Fleet[name].Info; info.Schema != "" {
		return slices.Contains(info.Capabilities, c), true
	}
	before := r.live[name].Status.Capabilities
	return slices.Contains(before, string(c)), len(before) > 0
}

// steers says whether an edge of the address's pool can route packets as they are.
func (r *round) steers(a netip.Addr) bool {
	p := poolOf(r.pools, a)
	return p != nil && r.poolSteers(p.Name)
}

// poolSteers says whether an edge of the pool can, and nobody would get ports of
// others by it: kube-proxy gives a Service all of its ports on each of its
// addresses, whoever else has them there.
func (r *round) poolSteers(pool string) bool {
	if r.everybodyShares(pool) {
		return false
	}
	for name := range r.serving[pool] {
		if can, _ := r.edgeCan(name, lb.CapDirect); can {
			return true
		}
	}
	return false
}

// everybodyShares says whether Services that do not know each other may share the
// addresses of a pool.
func (r *round) everybodyShares(name string) bool {
	return slices.ContainsFunc(r.pools, func(p pool) bool { return p.Name == name && p.Shared })
}

// told returns what the edge is to hold, but for what it must not route yet.
func (w Wanted) told(info lb.Info) lb.Config {
	config := w.Config
	if len(w.Untold) == 0 || !slices.Contains(info.Capabilities, lb.CapDirect) {
		return config
	}
	config.LoadBalancers = maps.Clone(config.LoadBalancers)
	for _, uid := range w.Untold {
		delete(config.LoadBalancers, uid)
	}
	return config
}

// findWays decides how Services are served as far as that is known before they get
// addresses, since it decides which ports they use: by the pools of those that they
// have, and of a Service without node ports by whether there is a pool that can serve
// it all the same. One of which the status says that it is served so stays that,
// whatever is known of edges at the moment.
func (r *round) findWays() {
	known := map[string][]string{}
	for _, s := range r.subjects {
		bare := withoutNodePorts(s.svc)
		if s.path == foreigns || len(s.held) == 0 && !bare {
			continue
		}
		if len(s.held) > 0 {
			r.serve(s, !slices.ContainsFunc(s.held, func(a netip.Addr) bool {
				p := poolOf(r.pools, a)
				able := p != nil && p.direct || bare && (r.steers(a) || tellsVIP(s.svc, a))
				return !able
			}))
			if bare {
				s.ways = r.waysOf(s, known)
			}
			continue
		}
		ways := r.waysOf(s, known)
		if r.serve(s, len(ways) > 0); len(ways) > 0 {
			s.ways = ways
		}
	}
}

// waysOf returns the pools that can serve a Service without node ports: those with an
// edge that can, and those of the addresses that it has.
func (r *round) waysOf(s *subject, known map[string][]string) []string {
	ways := []string{}
	for _, name := range r.eligible(s, known) {
		has := slices.ContainsFunc(s.held, func(a netip.Addr) bool { p := poolOf(r.pools, a); return p != nil && p.Name == name })
		if has || r.poolSteers(name) {
			ways = append(ways, name)
		}
	}
	return ways
}

// chooseWays decides, by the pools of its addresses, how each Service is served
// that has a choice.
func (r *round) chooseWays() {
	for _, s := range r.subjects {
		addrs := s.grant.addrs
		if s.path == foreigns || withoutNodePorts(s.svc) || len(addrs) == 0 {
			continue
		}
		r.serve(s, !slices.ContainsFunc(addrs, func(a netip.Addr) bool {
			p := poolOf(r.pools, a)
			return p == nil || !p.direct
		}))
	}
}

// serve has a Service served directly, or through node ports.
func (r *round) serve(s *subject, direct bool) {
	if s.translation.Direct == direct {
		return
	}
	t := r.translations[s.uid]
	t.Translation = t.nat
	if direct {
		if t.direct == nil {
			t.direct = reread(nil, s.svc, lb.ForwardDirect)
		}
		t.Translation = t.direct
	}
	if len(t.Refusals) == 0 {
		t.good = t.Translation
	}
	r.translations[s.uid] = t
	s.translation, s.good = t.Translation, t.good
}

// mustTell says whether edges must not be told yet to route packets of the Service
// to nodes, since its status does not say so or nodes may not have followed. A
// Service of which the status says so from the beginning need not wait. Nothing is
// written of an address that no edge is known to do it for: that is noted as early.
func (r *round) mustTell(s *subject) bool {
	if r.Eventual {
		return false
	}
	about := false
	for _, a := range s.served {
		switch {
		case tellsVIP(s.svc, a):
		case r.steers(a):
			about = true
		default:
			s.early = append(s.early, a)
		}
	}
	if about {
		r.untold[s.uid] = time.Time{}
		return true
	}
	since, waits := r.untold[s.uid]
	if !waits {
		return false
	}
	if since.IsZero() {
		since = r.Now
		r.untold[s.uid] = since
	}
	if wait := nodesFollow - r.Now.Sub(since); wait > 0 {
		r.wakeIn(wait)
		return true
	}
	delete(r.untold, s.uid)
	return false
}

// modeOf returns whether nodes are to take the address for their own: before an
// edge sends packets there as they are, and until none does any more.
func (r *round) modeOf(s *subject, a netip.Addr) v1.LoadBalancerIPMode {
	told, direct := tellsVIP(s.svc, a), s.good != nil && s.good.Direct
	if direct && (told || r.steers(a)) || told && r.steered(s) {
		return v1.LoadBalancerIPModeVIP
	}
	return v1.LoadBalancerIPModeProxy
}

// steered says whether an edge may still route packets of the Service to nodes as
// they are.
func (r *round) steered(s *subject) bool {
	for name := range r.live {
		st := r.Fleet[name]
		l, holds := st.Holds.LoadBalancers[s.uid]
		switch {
		case !st.Known && !s.unservedBy(r, name):
			return true
		case holds && l.Direct():
			return true
		}
	}
	return slices.ContainsFunc(s.standings, func(st standing) bool { return !st.known })
}

// unservedBy says whether no address of the Service is of a pool of the edge.
func (s *subject) unservedBy(r *round, edge string) bool {
	return !slices.ContainsFunc(s.served, func(a netip.Addr) bool { return r.serves(edge, a) })
}
