package provider

import (
	"maps"
	"net/netip"
	"reflect"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lb"
)

// edgeMemory is what an edge was last told.
type edgeMemory struct {
	config lb.Config
	builds map[lb.UID]*built
	// since is the revision in which each load balancer last changed.
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
		m.update(r.buildsOf(name, m), r.nodes.Nodes, r.members, &r.revision)
		wanted[name] = Wanted{
			EdgeSpec:        edgeSpec(e),
			Config:          m.config,
			ReleaseRemovals: e.Annotations[v1alpha1.ReleaseRemovalsAnnotation] == "true",
		}
	}
	return wanted
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
		here := 0
		for _, p := range s.built.pools {
			if r.serving[p][edge] {
				here++
			}
		}
		switch here {
		case 0:
		case len(s.built.pools):
			builds[s.uid] = s.built
		default:
			builds[s.uid] = r.partOf(s.built, edge, m.builds[s.uid])
		}
	}
	return builds
}

// partOf returns a load balancer with only those addresses that an edge serves.
func (r *round) partOf(b *built, edge string, before *built) *built {
	part := &built{LoadBalancer: b.LoadBalancer, of: b.of}
	part.Addresses = nil
	for i, p := range b.pools {
		if r.serving[p][edge] {
			part.Addresses = append(part.Addresses, b.Addresses[i])
			part.pools = append(part.pools, p)
		}
	}
	if before.sameAs(part) {
		return before
	}
	return part
}

// update brings the memory of an edge to what it is to do now, and takes the
// next revision if that is something else than before.
func (m *edgeMemory) update(builds map[lb.UID]*built, nodes map[lb.NodeName]lb.Node, pools map[lb.PoolName]lb.Pool, revision *uint64) {
	sameBuilds := maps.Equal(m.builds, builds)
	if m.config.Revision != 0 && !m.stale && sameBuilds && reflect.DeepEqual(m.config.Nodes, nodes) && reflect.DeepEqual(m.config.Pools, pools) {
		return
	}
	*revision++
	config := lb.Config{Revision: *revision, Nodes: nodes, Pools: pools, LoadBalancers: m.config.LoadBalancers}
	if !sameBuilds || config.LoadBalancers == nil {
		m.noteLast(builds)
		config.LoadBalancers = make(map[lb.UID]lb.LoadBalancer, len(builds))
		since := make(map[lb.UID]uint64, len(builds))
		for uid, b := range builds {
			config.LoadBalancers[uid] = b.LoadBalancer
			since[uid] = *revision
			if m.builds[uid] == b {
				since[uid] = m.since[uid]
			}
		}
		m.since = since
	}
	if m.first == 0 {
		m.first = *revision
	}
	m.config, m.builds, m.stale = config, builds, false
}

// noteLast notes the revision that last had the addresses that are about to go.
func (m *edgeMemory) noteLast(next map[lb.UID]*built) {
	for uid, b := range m.builds {
		if next[uid] == b {
			continue
		}
		for _, a := range b.Addresses {
			m.last[a] = m.config.Revision
		}
	}
	for _, b := range next {
		for _, a := range b.Addresses {
			delete(m.last, a)
		}
	}
}
