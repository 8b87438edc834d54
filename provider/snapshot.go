package provider

import (
	"maps"
	"net/netip"
	"sync"

	v1 "k8s.io/api/core/v1"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lb"
)

// Snapshot is what was known and decided in one round. It does not change, and
// its methods may be called concurrently: reports are made from it while the
// reconciler goes on.
//
// To take one costs a round next to nothing: it shares with the decider what
// that replaces and never changes. Whoever asks pays: the first question decides
// once more, on memories of its own, and finds what the reconciler found.
type Snapshot struct {
	world  World
	memory *decider
	view   func() *view
}

// Snapshot returns what was known and decided last, nil before the first round.
func (p *Provider) Snapshot() *Snapshot { return p.snapshot.Load() }

// SnapshotOf returns what a Provider knows and decides that begins in this
// world.
func SnapshotOf(w World) *Snapshot { return newSnapshot(w, newDecider()) }

// In returns what the Provider knows and decides when its world has become
// another.
func (s *Snapshot) In(w World) *Snapshot { return newSnapshot(w, s.view().remember()) }

// Wanted returns what each edge is to do, by name of the Edge object. It must
// not be changed.
func (s *Snapshot) Wanted() map[string]Wanted { return s.view().wanted }

// newSnapshot takes over memory, of which nobody else must change anything.
func newSnapshot(w World, memory *decider) *Snapshot {
	s := &Snapshot{world: w, memory: memory}
	s.view = sync.OnceValue(func() *view { return newView(s.world, s.memory.remember()) })
	return s
}

// snapshot returns what was decided about a world.
func (d *decider) snapshot(w World) *Snapshot { return newSnapshot(w, d.remember()) }

// remember returns a decider that decides the same, and of which deciding
// changes nothing in this one. What a round replaces as a whole is shared; what
// it changes in place is copied: little, or much that need not be remembered,
// since it is only about when to write.
func (d *decider) remember() *decider {
	n := newDecider()
	n.translations, n.proposals, n.holdings, n.builds = d.translations, d.proposals, d.holdings, d.builds
	n.granted, n.beginning, n.kept, n.saidOfNodes, n.revision = d.granted, d.beginning, d.kept, d.saidOfNodes, d.revision
	n.quarantine = d.quarantine.clone()
	for name, m := range d.edges {
		c := *m
		c.last = maps.Clone(m.last)
		n.edges[name] = &c
	}
	// Services that changed or wait are few, unless everything is new.
	n.untold = maps.Clone(d.untold)
	n.waiting, n.changes = maps.Clone(d.waiting), maps.Clone(d.changes)
	return n
}

func (q quarantine) clone() quarantine {
	c := quarantine{
		addrs:  make(map[netip.Addr]*quarantined, len(q.addrs)),
		loaded: maps.Clone(q.loaded), truncated: maps.Clone(q.truncated), released: maps.Clone(q.released), checked: maps.Clone(q.checked),
	}
	for a, e := range q.addrs {
		e := *e
		c.addrs[a] = &e
	}
	return c
}

// view is one round of decisions, with everything that reports look at. Nothing
// in it changes.
type view struct {
	*round
	wanted map[string]Wanted
	stats  Stats
	byName map[string]*v1.Service // that are ours, by namespace/name
}

// newView decides. The decider becomes the view's own.
func newView(w World, d *decider) *view {
	decision := d.decide(w)
	w.Settings = w.Settings.WithDefaults()
	r := &round{decider: d, World: w, nodes: ReadNodes(w.Nodes, w.Settings), members: map[lb.PoolName]lb.Pool{}}
	r.pools, r.faults = readPools(w.Pools)
	r.sortEdges()
	r.serving, r.drained = edgeSets(r.pools, r.live)
	r.names = sortedNames(r.edges)
	for _, b := range r.builds {
		if _, ok := r.members[b.Pool]; !ok {
			_, r.members[b.Pool] = r.nodes.Pool(b.of.Wishes.NodeSelector)
		}
	}
	v := &view{round: r, wanted: decision.Wanted, stats: decision.Stats, byName: make(map[string]*v1.Service, len(r.translations))}
	for _, svc := range w.Services {
		if _, ours := r.translations[uidOf(svc)]; ours {
			v.byName[nameOf(svc)] = svc
		}
	}
	return v
}

// membersFor returns the nodes that may take traffic of a load balancer.
func (v *view) membersFor(b *built) map[lb.NodeName]lb.Member {
	if b.Members != nil {
		return b.Members
	}
	return v.members[b.Pool]
}

// poolObject and edgeObject find objects by name, nil if there is none.
func (v *view) poolObject(name string) *v1alpha1.AddressPool {
	for _, o := range v.Pools {
		if o.Name == name {
			return o
		}
	}
	return nil
}

func (v *view) edgeObject(name string) *v1alpha1.Edge {
	for _, o := range v.Edges {
		if o.Name == name {
			return o
		}
	}
	return nil
}
