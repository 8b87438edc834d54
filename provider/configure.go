package provider

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lb"
)

// edgeMemory is what an edge was last told.
type edgeMemory struct {
	config lb.Config
	builds map[lb.UID]*built
	// kept are the addresses of those that go on as the edge holds them, and untold
	// those that it must not route yet.
	kept   map[lb.UID][]netip.Addr
	untold []lb.UID
	// since is the revision in which each load balancer last changed, or ceased to be
	// untold.
	since map[lb.UID]uint64
	// last is the last revision that had each address that is in none any more.
	last map[netip.Addr]uint64
	// stale asks for a new revision though nothing changed.
	stale bool
	// first is the first revision that the edge was given by this process.
	first uint64
}

// configure returns what each edge is to do. An edge gets the load balancers of
// the pools that it serves, and a new revision only if something changed.
func (r *round) configure() map[string]Wanted {
	if _, ok := r.members[AllNodes]; !ok {
		_, r.members[AllNodes] = r.nodes.Pool(nil)
	}
	r.rememberKept()
	r.followKept()
	objects := r.live
	r.startRevisions()
	for name := range r.edges {
		if _, ok := objects[name]; !ok {
			delete(r.edges, name)
		}
	}
	wanted := make(map[string]Wanted, len(objects))
	for name, e := range objects {
		m := r.edges[name]
		if m == nil {
			m = &edgeMemory{since: map[lb.UID]uint64{}, last: map[netip.Addr]uint64{}}
			r.edges[name] = m
		}
		builds, keep := r.buildsOf(name, m), r.keptOn(name)
		m.update(builds, addressesOfKept(keep), r.untoldOf(builds), r.nodes.Nodes, r.members, &r.revision)
		wanted[name] = Wanted{
			EdgeSpec:        edgeSpec(e),
			Config:          m.config,
			ReleaseRemovals: e.Annotations[v1alpha1.ReleaseRemovalsAnnotation],
			Blind:           !r.Fleet[name].Known,
			Keep:            keep,
			Untold:          m.untold,
			NodePorts:       r.nodePortsBeside(m),
		}
	}
	return wanted
}

// nodePortsBeside returns the node ports of an edge's direct load balancers.
func (r *round) nodePortsBeside(m *edgeMemory) map[lb.UID][]uint16 {
	var all map[lb.UID][]uint16
	for _, s := range r.subjects {
		if b := m.builds[s.uid]; b != nil && b.Direct() {
			if ports := nodePortsOf(s.svc); len(ports) > 0 {
				put(&all, s.uid, ports)
			}
		}
	}
	return all
}

// untoldOf returns those of an edge's load balancers that it must not route yet, in
// order.
func (r *round) untoldOf(builds map[lb.UID]*built) []lb.UID {
	var untold []lb.UID
	for _, s := range r.subjects {
		b := builds[s.uid]
		if b != nil && (s.untold || slices.ContainsFunc(s.early, func(a netip.Addr) bool { return slices.Contains(b.Addresses, a) })) {
			untold = append(untold, s.uid)
		}
	}
	slices.Sort(untold)
	return untold
}

// serves says whether the address is of a pool of the edge.
func (r *round) serves(edge string, a netip.Addr) bool {
	p := poolOf(r.pools, a)
	return p != nil && r.serving[p.Name][edge]
}

func edgeSpec(e *v1alpha1.Edge) EdgeSpec {
	spec := EdgeSpec{
		Name: e.Name, Endpoint: e.Spec.Endpoint, ServerName: e.Spec.ServerName,
		Drain: e.Spec.Drain, Paused: e.Spec.Paused,
	}
	if spec.ServerName == "" {
		spec.ServerName = e.Name
	}
	return spec
}

// startRevisions lets revisions begin above all that edges may hold. Revisions
// that count milliseconds since 1970 at their start and grow by one with each
// change stay below the clock, so that a leader that starts later begins higher
// than all before it. Should the clock have gone back, what the edges hold
// says so.
func (r *round) startRevisions() {
	if r.revision == 0 {
		r.revision = uint64(max(r.Now.UnixMilli(), 1))
	}
	for name, st := range r.Fleet {
		held := max(st.Status.Revision, st.Holds.Revision)
		if m := r.edges[name]; m != nil && held > m.config.Revision {
			r.revision = max(r.revision, held)
			m.stale = true
		}
	}
}

// buildsOf returns the load balancers of one edge, each with those of its
// addresses that the edge serves.
func (r *round) buildsOf(edge string, m *edgeMemory) map[lb.UID]*built {
	builds := make(map[lb.UID]*built, len(m.builds))
	for _, s := range r.subjects {
		if s.built == nil {
			continue
		}
		before := m.builds[s.uid]
		here := r.addressesOn(edge, s, before)
		switch len(here) {
		case 0:
		case len(s.built.pools):
			builds[s.uid] = s.built
		default:
			builds[s.uid] = s.built.only(here, before)
		}
	}
	return builds
}

// addressesOn returns which of a load balancer's addresses an edge is to have, by
// their place: those of its pools, but for those that come from an edge that still
// has them. Two machines with one address would take it from each other.
func (r *round) addressesOn(edge string, s *subject, before *built) []int {
	var here []int
	for i, p := range s.built.pools {
		a := s.built.Addresses[i]
		if !r.serving[p][edge] {
			continue
		}
		if had := before != nil && slices.Contains(before.Addresses, a); had && r.Fleet[edge].Known || !r.heldByFormer(edge, p, s, a) {
			here = append(here, i)
		}
	}
	return here
}

// heldByFormer says whether another edge, which is not of the pool any more, still
// has an address of the pool or may have. An edge that has it already keeps it all
// the same.
func (r *round) heldByFormer(edge, pool string, s *subject, a netip.Addr) bool {
	if r.Eventual || len(r.serving[pool]) == len(r.live) || r.addressesOf(edge)[a] {
		return false
	}
	held := false
	for name := range r.live {
		if name != edge && !r.serving[pool][name] && r.mayHave(name, s, a) {
			held = true
			if !slices.Contains(s.former, name) {
				s.former = append(s.former, name)
			}
		}
	}
	slices.Sort(s.former)
	return held
}

// mayHave says whether an edge that is not to have an address has it for all that
// is known: it holds it, was told of it and has not told what became of that, or has
// told nothing yet while the Service was reached there before.
func (r *round) mayHave(edge string, s *subject, a netip.Addr) bool {
	if r.addressesOf(edge)[a] || slices.Contains(s.told, a) && r.unheard(edge) {
		return true
	}
	m := r.edges[edge]
	if m == nil {
		return false
	}
	if b := m.builds[s.uid]; b != nil && slices.Contains(b.Addresses, a) || slices.Contains(m.kept[s.uid], a) {
		return true
	}
	last, told := m.last[a]
	return told && r.Fleet[edge].Status.Revision <= last
}

// only returns the load balancer with only some of its addresses, by their place.
func (b *built) only(places []int, before *built) *built {
	part := &built{LoadBalancer: b.LoadBalancer, of: b.of}
	part.Addresses = nil
	for _, i := range places {
		part.Addresses = append(part.Addresses, b.Addresses[i])
		part.pools = append(part.pools, b.pools[i])
	}
	if !needsTranslation(part.MemberFamilies, part.Addresses) {
		part.MemberFamilies = nil // it would need an edge that can do it
	}
	if before.sameAs(part) {
		return before
	}
	return part
}

// update brings the memory of an edge to what it is to do now, and takes the
// next revision if that is something else than before. What the edge goes on with is
// not in its configuration, and still takes one when an address goes or a load balancer
// ceases to be untold: what the edge says of an older one is not about that.
func (m *edgeMemory) update(builds map[lb.UID]*built, kept map[lb.UID][]netip.Addr, untold []lb.UID, nodes map[lb.NodeName]lb.Node, pools map[lb.PoolName]lb.Pool, revision *uint64) {
	sameBuilds, sameKept := maps.Equal(m.builds, builds), maps.EqualFunc(m.kept, kept, slices.Equal)
	ended := m.endedOf(untold, builds)
	m.untold = untold
	if m.config.Revision != 0 && !m.stale && sameBuilds && sameKept && len(ended) == 0 && reflect.DeepEqual(m.config.Nodes, nodes) && reflect.DeepEqual(m.config.Pools, pools) {
		return
	}
	*revision++
	config := lb.Config{Revision: *revision, Nodes: nodes, Pools: pools, LoadBalancers: m.config.LoadBalancers}
	if !sameBuilds || !sameKept {
		m.noteLast(builds, kept)
	}
	if !sameBuilds || len(ended) > 0 || config.LoadBalancers == nil {
		config.LoadBalancers = make(map[lb.UID]lb.LoadBalancer, len(builds))
		since := make(map[lb.UID]uint64, len(builds))
		for uid, b := range builds {
			config.LoadBalancers[uid] = b.LoadBalancer
			since[uid] = *revision
			if m.builds[uid] == b && !ended[uid] {
				since[uid] = m.since[uid]
			}
		}
		m.since = since
	}
	if m.first == 0 {
		m.first = *revision
	}
	m.config, m.builds, m.kept, m.stale = config, builds, kept, false
}

// endedOf returns the load balancers that were untold and are so no more.
func (m *edgeMemory) endedOf(untold []lb.UID, builds map[lb.UID]*built) map[lb.UID]bool {
	var ended map[lb.UID]bool
	for _, uid := range m.untold {
		if _, still := slices.BinarySearch(untold, uid); !still && builds[uid] != nil {
			put(&ended, uid, true)
		}
	}
	return ended
}

// noteLast notes the revision that last had the addresses that are about to go.
func (m *edgeMemory) noteLast(builds map[lb.UID]*built, kept map[lb.UID][]netip.Addr) {
	note := func(addrs []netip.Addr) {
		for _, a := range addrs {
			m.last[a] = m.config.Revision
		}
	}
	forget := func(addrs []netip.Addr) {
		for _, a := range addrs {
			delete(m.last, a)
		}
	}
	for uid, b := range m.builds {
		if builds[uid] != b {
			note(b.Addresses)
		}
	}
	for _, addrs := range m.kept {
		note(addrs)
	}
	for _, b := range builds {
		forget(b.Addresses)
	}
	for _, addrs := range kept {
		forget(addrs)
	}
}
