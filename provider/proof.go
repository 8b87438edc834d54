package provider

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/utils/ptr"

	"github.com/eclusa-lb/eclusa/ipam"
	"github.com/eclusa-lb/eclusa/lb"
)

// beginning is what a process finds when it begins to lead. Until every edge has told
// what it holds, and for a minute at most, it learns whose the ports of shared
// addresses are, and gives nobody one that is new to him. After that it knows from
// its own decisions.
type beginning struct {
	at time.Time
	// wanted is the revision that each edge was to hold, by the status of the Edge
	// before we wrote to it, and found what it held when it first told that.
	wanted map[string]int64
	found  map[string]lb.Config
	// unheard is an edge that is waited for, complete says that there is none any more,
	// and over that something was decided since.
	unheard        string
	complete, over bool
}

// learn notes what edges tell for the first time.
func (r *round) learn() {
	b := r.beginning
	if b.over = b.over || b.complete; b.over {
		r.beginning = beginning{over: true}
		return
	}
	if b.at.IsZero() {
		b.at = r.Now
	}
	b.wanted, b.found, b.unheard = maps.Clone(b.wanted), maps.Clone(b.found), ""
	for _, name := range sortedNames(r.live) {
		if _, known := b.wanted[name]; !known {
			put(&b.wanted, name, r.live[name].Status.DesiredRevision)
		}
		st := r.Fleet[name]
		switch _, told := b.found[name]; {
		case told:
		case st.Known:
			put(&b.found, name, st.Holds)
		case b.unheard == "":
			b.unheard = name
		}
	}
	if wait := unreachableAfter - r.Now.Sub(b.at); b.unheard != "" && wait > 0 {
		r.wakeIn(wait)
	} else {
		b.unheard = ""
	}
	b.complete = b.unheard == "" && !r.Eventual
	r.beginning = b
}

// proof is how well it is established that a Service uses a port; the zero value is
// not at all. Of two edges the one that was written to last is right.
type proof struct {
	by       voucher
	revision uint64
}

// voucher is who says that a Service uses a port, the better the greater.
type voucher int

const (
	_ voucher = iota // nobody
	// byProcess: this process gave it the port.
	byProcess
	// byAddress: the Service's status tells the address, and of no ports, as versions
	// did that listed them only if one was not served. It wants the port by now.
	byAddress
	// byOldEdge: an edge holds it that has missed what it was to hold last.
	byOldEdge
	// byStatus: the Service's status lists the port as its own. Users cannot write it.
	byStatus
	// byEdge: an edge holds it that has what it was to hold last.
	byEdge
)

func (p proof) better(o proof) bool {
	return p.by > o.by || p.by == o.by && p.revision > o.revision
}

// proofs returns how well it is established which ports of an address a Service uses.
// Its annotations, which its users write, are none.
func (r *round) proofs(s *subject, a netip.Addr) map[ipam.PortKey]proof {
	proofs := map[ipam.PortKey]proof{}
	add := func(ports []ipam.PortKey, by proof) {
		for _, p := range ports {
			if by.better(proofs[p]) {
				proofs[p] = by
			}
		}
	}
	if g := r.granted.grants[s.uid]; slices.Contains(g.addrs, a) {
		add(g.ports, proof{by: byProcess})
	}
	if r.beginning.over {
		return proofs
	}
	for name, c := range r.beginning.found {
		if l := c.LoadBalancers[s.uid]; slices.Contains(l.Addresses, a) {
			by := byEdge
			if c.Revision < uint64(max(r.beginning.wanted[name], 0)) {
				by = byOldEdge
			}
			add(portKeys(l.Listeners), proof{by, c.Revision})
		}
	}
	if slices.Contains(s.told, a) {
		listed, any := s.portsTold(a)
		add(listed, proof{by: byStatus})
		if !any {
			add(s.claimedPorts(), proof{by: byAddress})
		}
	}
	return proofs
}

// portsTold returns those of the Service's ports that its status tells to be its own
// on an address, and whether it tells of ports at all.
func (s *subject) portsTold(a netip.Addr) (ports []ipam.PortKey, any bool) {
	for _, in := range s.svc.Status.LoadBalancer.Ingress {
		if in.IP != a.String() {
			continue
		}
		any = any || len(in.Ports) > 0
		for _, p := range in.Ports {
			if e := ptr.Deref(p.Error, ""); e != Prefix+portInUse && e != Prefix+portWithoutNodePort {
				ports = append(ports, ipam.PortKey{Protocol: lb.Protocol(strings.ToLower(string(p.Protocol))), Port: uint16(p.Port)}) //nolint:gosec // the API server bounds ports
			}
		}
	}
	return ports, any
}
