package provider

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/ipam"
	"github.com/eclusa-lb/eclusa/lb"
)

// Decision is what follows from a World.
type Decision struct {
	// Wanted is what each edge is to do, by name of the Edge object.
	Wanted map[string]Wanted
	// Writes are what is to be written to the API server, by target.
	Writes map[Target]Write
	// Unsaved are Services that are not ours any more and whose addresses are in
	// quarantine without anybody but us knowing.
	Unsaved map[lb.UID]bool
	// WakeIn is when decisions are due again though nothing changes; zero is never.
	WakeIn time.Duration
	// Notes are what people who read the log should know.
	Notes []Note
	// Stats are counted for the metrics.
	Stats Stats
}

// Note is something that was decided about an address or a node.
type Note struct {
	// What happened, and why if that is not plain.
	What string
	// Object is the Service or node, Address its address if it is about one.
	Object  string
	Address netip.Addr
	// Event, unless nil, is to be made on the node that Object names.
	Event *Event
}

// decider makes decisions, remembering what no object in the cluster can tell:
// what was proposed and not yet recorded, what was freed and not yet confirmed,
// and what edges were told. It is not safe for concurrent use, does no I/O and
// starts nothing.
type decider struct {
	translations map[lb.UID]translated
	proposals    map[lb.UID]proposal
	holdings     map[lb.UID]holding
	quarantine   quarantine
	builds       map[lb.UID]*built
	edges        map[string]*edgeMemory
	revision     uint64
	waiting      map[lb.UID]time.Time
	messages     map[lb.UID]words
	statuses     map[Target]words
	changes      map[lb.UID]time.Time // when a Service changed that no edge has confirmed
	saidOfNodes  map[lb.NodeName]string
	faces        map[lb.UID]described
	granted      granted
	// untold are Services whose status has not said for long that packets reach
	// nodes as they are, with the time since when it does.
	untold    map[lb.UID]time.Time
	beginning beginning
	kept      map[lb.UID]keptVersion
}

// newDecider returns a decider without memories.
func newDecider() *decider {
	return &decider{
		translations: map[lb.UID]translated{},
		proposals:    map[lb.UID]proposal{},
		holdings:     map[lb.UID]holding{},
		quarantine:   newQuarantine(),
		builds:       map[lb.UID]*built{},
		edges:        map[string]*edgeMemory{},
		waiting:      map[lb.UID]time.Time{},
		messages:     map[lb.UID]words{},
		statuses:     map[Target]words{},
		changes:      map[lb.UID]time.Time{},
		faces:        map[lb.UID]described{},
		untold:       map[lb.UID]time.Time{},
	}
}

// translated is everything that is read from one version of a Service.
type translated struct {
	svc          *v1.Service
	*Translation // the one in force
	// nat is for edges that use node ports, direct for those that route packets as
	// they are; nil as long as nobody asks.
	nat, direct *Translation
	// good is the newest Translation that could be served, nil if none is known.
	good     *Translation
	recorded []netip.Addr
	ingress  []netip.Addr
	strange  bool
}

// proposal is addresses that a Service is to have and that are not recorded yet.
type proposal struct {
	addrs []netip.Addr
	at    time.Time
}

// holding is which addresses a Service held in the last round.
type holding struct {
	name  string
	addrs []netip.Addr
}

// round is one round of decisions.
type round struct {
	*decider
	World
	pools    []pool
	faults   map[string]string          // of pools that cannot be used
	serving  map[string]map[string]bool // edges by pool, without drained ones
	drained  map[string]map[string]bool // those
	live     map[string]*v1alpha1.Edge  // the edges that count, by name
	doubled  map[string]string          // the others, with which edge they are the same as
	nodes    NodeSet
	subjects []*subject // that are ours, the oldest first
	others   []*v1.Service
	members  map[lb.PoolName]lb.Pool
	votes    map[voteKey]vote
	has      map[string]map[netip.Addr]bool // addresses by edge, of those that were asked for
	shelf    shelf
	reserved map[netip.Addr]ipam.Reserved
	writes   map[Target]Write
	unsaved  map[lb.UID]bool
	names    []string // of the edges, in order
	wake     time.Duration
	notes    []Note
	stats    Stats
}

func (r *round) note(what, object string, a netip.Addr) {
	r.notes = append(r.notes, Note{What: what, Object: object, Address: a})
}

// wakeIn asks for another round after some time.
func (r *round) wakeIn(d time.Duration) {
	if r.wake == 0 || d < r.wake {
		r.wake = max(d, time.Millisecond)
	}
}

// decide makes all decisions anew.
func (d *decider) decide(w World) Decision {
	w.Settings = w.Settings.WithDefaults()
	r := &round{
		decider: d, World: w,
		nodes:   ReadNodes(w.Nodes, w.Settings),
		members: map[lb.PoolName]lb.Pool{},
		votes:   map[voteKey]vote{},
		writes:  map[Target]Write{},
	}
	r.pools, r.faults = readPools(w.Pools)
	r.sortEdges()
	r.serving, r.drained = edgeSets(r.pools, r.live)
	r.quarantine.load(w.Pools)
	r.noteNodes()
	r.sortServices()
	r.findWays()
	r.learn()
	r.findKeptPorts()
	r.vouch()
	r.findStrangers()
	r.free()
	r.quarantine.confirm(r)
	r.assign()
	r.chooseWays()
	r.keepHoldings()
	r.findUnsaved()
	r.build()
	wanted := r.configure()
	r.writeServices()
	r.writePools()
	r.writeEdges(wanted)
	r.count()
	return Decision{Wanted: wanted, Writes: r.writes, Unsaved: r.unsaved, WakeIn: r.wake, Notes: r.notes, Stats: r.stats}
}

// sortServices finds out which Services are ours.
func (r *round) sortServices() {
	translations := make(map[lb.UID]translated, len(r.translations))
	for _, svc := range r.Services {
		path := r.Controllers.PathOf(svc)
		if path == Nobody {
			r.others = append(r.others, svc)
			continue
		}
		uid := uidOf(svc)
		t := r.translate(uid, svc)
		translations[uid] = t
		s := &subject{
			svc: svc, uid: uid, path: path, translation: t.Translation, good: t.good,
			endpoints: r.Endpoints(svc.Namespace, svc.Name),
			told:      t.ingress,
		}
		r.hold(s, t)
		r.subjects = append(r.subjects, s)
	}
	r.translations = translations
	slices.SortFunc(r.subjects, func(a, b *subject) int {
		return cmp.Or(a.svc.CreationTimestamp.Compare(b.svc.CreationTimestamp.Time), strings.Compare(string(a.uid), string(b.uid)))
	})
}

// translate reads a Service, unless this version was read before. A Translation
// that says the same as before is the same pointer.
func (r *round) translate(uid lb.UID, svc *v1.Service) translated {
	before, known := r.translations[uid]
	if known && before.svc == svc {
		return before
	}
	t := translated{svc: svc, nat: reread(before.nat, svc, lb.ForwardNAT), recorded: recordedAddresses(svc)}
	t.Translation = t.nat
	if before.direct != nil {
		t.direct = reread(before.direct, svc, lb.ForwardDirect)
		if before.Translation == before.direct {
			t.Translation = t.direct
		}
	}
	t.ingress, t.strange = ingressAddresses(svc)
	switch {
	case known && before.Translation == t.Translation:
	case known || conditionOf(svc, ConditionProgrammed) == nil:
		if _, waits := r.changes[uid]; !waits {
			r.changes[uid] = r.Now
		}
	}
	t.good = t.Translation
	if len(t.Refusals) > 0 {
		t.good = before.good
	}
	return t
}

// hold finds out which addresses are the Service's already, and whether
// somebody else looks after it.
func (r *round) hold(s *subject, t translated) {
	s.recorded = r.recordOf(s, t)
	s.held = appendNew(slices.Clone(s.recorded), r.proposals[s.uid].addrs...)
	strange := t.strange
	for _, a := range t.ingress {
		if slices.Contains(s.held, a) {
			continue
		}
		if poolOf(r.pools, a) != nil {
			s.held = append(s.held, a)
		} else {
			strange = true
		}
	}
	if strange && s.path == ByStock {
		s.path = foreigns
	}
}

func appendNew(addrs []netip.Addr, more ...netip.Addr) []netip.Addr {
	for _, a := range more {
		if !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// build makes the load balancers of all Services that can be served.
func (r *round) build() {
	builds := make(map[lb.UID]*built, len(r.subjects))
	ofPools := map[lb.PoolName]map[lb.Family]bool{}
	for _, s := range r.subjects {
		s.served = r.servedAddresses(s)
		if len(s.served) > 0 && len(s.translation.Refusals) > 0 {
			s.kept = r.heldAnywhere(s.uid)
		}
		if len(s.served) == 0 || s.good == nil {
			continue
		}
		b := &built{LoadBalancer: s.good.LoadBalancer, of: s.good}
		b.Addresses, b.ClaimTime = s.served, s.at
		b.Listeners = withoutUnserved(b.Listeners, s.grant.unserved)
		b.Listeners = r.withoutNew(s, b.Listeners)
		if s.good != s.translation { // an older version, whose node ports may be others' by now
			b.LoadBalancer = withNodePorts(b.LoadBalancer, nodePortsOf(s.svc))
		}
		for _, a := range s.served {
			name := ""
			if p := poolOf(r.pools, a); p != nil {
				name = p.Name
			}
			b.pools = append(b.pools, name)
		}
		b.Pool = r.poolFor(s)
		b.Members = s.endpoints.among(r.members[b.Pool], s.good.Local)
		nodeFamilies := r.nodeFamilies(b, ofPools)
		if !b.Direct() {
			b.MemberFamilies = memberFamilies(s.good.Families, nodeFamilies, s.served)
		}
		s.homeless = len(nodeFamilies) > 0 && !slices.ContainsFunc(s.good.Families, func(f lb.Family) bool { return nodeFamilies[f] })
		if len(b.Listeners) == 0 {
			continue // others have all of its ports
		}
		before := r.builds[s.uid]
		if before.sameAs(b) {
			b = before
		}
		s.untold = b.Direct() && r.mustTell(s)
		s.built, builds[s.uid] = b, b
	}
	r.builds = builds
}

// heldAnywhere says whether an edge holds the load balancer, or was told of it.
func (r *round) heldAnywhere(uid lb.UID) bool {
	for _, m := range r.edges {
		if m.builds[uid] != nil {
			return true
		}
	}
	for _, st := range r.Fleet {
		if _, ok := st.Holds.LoadBalancers[uid]; ok {
			return true
		}
	}
	return false
}

// servedAddresses returns the addresses that edges may be told of: those that
// are recorded. While a Service moves to other addresses it keeps the old ones
// until the new ones are recorded.
func (r *round) servedAddresses(s *subject) []netip.Addr {
	if s.path == foreigns {
		return nil
	}
	var served []netip.Addr
	for _, a := range s.grant.addrs {
		if slices.Contains(s.recorded, a) {
			served = append(served, a)
		}
	}
	if len(served) == 0 && s.grant.ok {
		// On one that others hold too it has no ports unless it is known there.
		return slices.DeleteFunc(slices.Clone(s.recorded), func(a netip.Addr) bool {
			_, known := s.heldPorts[a]
			return r.shelf.shared(a) && !known
		})
	}
	return served
}

// poolFor returns the name of the pool of nodes that the Service uses.
func (r *round) poolFor(s *subject) lb.PoolName {
	selector := s.good.Wishes.NodeSelector
	name := AllNodes
	if selector != nil {
		name = selectedNodes(selector)
	}
	if _, ok := r.members[name]; !ok {
		_, r.members[name] = r.nodes.Pool(selector)
	}
	return name
}

// nodeFamilies returns the address families in which the nodes of a load balancer
// are reached. If it has none at the moment, those of its pool count, and then all
// nodes, so that as little as possible changes when there are some again. What is
// known of whole pools is kept in ofPools.
func (r *round) nodeFamilies(b *built, ofPools map[lb.PoolName]map[lb.Family]bool) map[lb.Family]bool {
	if len(b.Members) > 0 {
		return r.nodes.families(maps.Keys(b.Members))
	}
	found, known := ofPools[b.Pool]
	if !known {
		found = r.nodes.families(maps.Keys(r.members[b.Pool]))
		if len(found) == 0 {
			found = r.nodes.families(maps.Keys(r.nodes.Nodes))
		}
		ofPools[b.Pool] = found
	}
	return found
}

// noteNodes tells of nodes that cannot take traffic, and of what cannot be honoured
// of others, once.
func (r *round) noteNodes() {
	said := make(map[lb.NodeName]string, len(r.nodes.Unusable)+len(r.nodes.Faults))
	for name, why := range r.nodes.Unusable {
		said[name] = "node is left out: it " + why
	}
	maps.Copy(said, r.nodes.Faults)
	for _, name := range sortedNames(said) {
		if what := said[name]; r.saidOfNodes[name] != what {
			reason := ReasonNodeAnnotation
			if r.nodes.Unusable[name] != "" {
				reason = ReasonNoUsableAddress
			}
			r.notes = append(r.notes, Note{What: what, Object: string(name), Event: &Event{v1.EventTypeWarning, reason, what}})
		}
	}
	r.saidOfNodes = said
}

// sortEdges finds out which Edge objects count: those that are not about to be
// deleted, and of several with the same endpoint the oldest, since two would
// take the edge from each other for ever.
func (r *round) sortEdges() {
	r.live, r.doubled = map[string]*v1alpha1.Edge{}, map[string]string{}
	objects := slices.SortedFunc(slices.Values(r.Edges), func(a, b *v1alpha1.Edge) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
	first := map[string]string{}
	for _, e := range objects {
		if e.DeletionTimestamp != nil {
			continue
		}
		endpoint := strings.ToLower(strings.TrimSuffix(e.Spec.Endpoint, "/"))
		if other, taken := first[endpoint]; taken {
			r.doubled[e.Name] = other
			continue
		}
		first[endpoint] = e.Name
		r.live[e.Name] = e
	}
}
