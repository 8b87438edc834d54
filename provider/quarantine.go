package provider

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lb"
)

// quarantined is an address that nobody has any more and that an edge may still
// serve.
type quarantined struct {
	service string
	uid     lb.UID
	since   time.Time
	// saved says that the status of the address's pool tells of it.
	saved bool
}

// quarantine is the addresses that must not be given away yet.
type quarantine struct {
	addrs map[netip.Addr]*quarantined
	// loaded are the pools whose status was read, by UID.
	loaded map[string]bool
	// truncated are pools whose status, when it was read, could not list all that
	// was in quarantine: nothing new is assigned of them before all their edges
	// have told what they hold.
	truncated map[string]bool
	// released are Services that are not ours any more and whose addresses were
	// put into quarantine, which is done once.
	released map[lb.UID]bool
	// checked is what each edge held when it was last looked for addresses that
	// nobody has.
	checked map[string]uint64
}

func newQuarantine() quarantine {
	return quarantine{
		addrs: map[netip.Addr]*quarantined{}, loaded: map[string]bool{}, truncated: map[string]bool{},
		released: map[lb.UID]bool{}, checked: map[string]uint64{},
	}
}

// load takes over what the statuses of pools tell from before we started, and
// notes what they tell by now.
func (q *quarantine) load(pools []*v1alpha1.AddressPool) {
	for _, p := range pools {
		first := !q.loaded[string(p.UID)]
		q.loaded[string(p.UID)] = true
		if first && p.Status.QuarantineTruncated {
			q.truncated[p.Name] = true
		}
		for _, e := range p.Status.Quarantined {
			a, err := netip.ParseAddr(e.Address)
			if err != nil {
				continue
			}
			known := q.addrs[a]
			switch {
			case known != nil && known.uid == lb.UID(e.UID):
				known.saved = true
			case known == nil && first:
				q.addrs[a] = &quarantined{service: e.Service, uid: lb.UID(e.UID), since: e.Since.Time, saved: true}
			}
		}
	}
}

// add puts an address into quarantine.
func (q *quarantine) add(a netip.Addr, service string, uid lb.UID, now time.Time) {
	if known := q.addrs[a]; known != nil && known.uid == uid {
		return
	}
	q.addrs[a] = &quarantined{service: service, uid: uid, since: now}
}

// free puts into quarantine what somebody held in the last round and nobody has any
// more, before it could be given to somebody else.
func (r *round) free() {
	holders := make(map[netip.Addr]bool, len(r.subjects))
	for _, s := range r.subjects {
		for _, a := range s.held {
			holders[a] = true
		}
	}
	r.quarantineFreed(holders)
}

// quarantineFreed puts into quarantine what was held in the last round and is not
// among what is held now.
func (r *round) quarantineFreed(holders map[netip.Addr]bool) {
	var freed []former
	for uid, was := range r.holdings {
		for _, a := range was.addrs {
			if !holders[a] && r.quarantine.addrs[a] == nil {
				freed = append(freed, former{a, uid, was.name, ""})
			}
		}
	}
	r.quarantineAll(freed, func(former) string {
		return "address is free and stays in quarantine until every edge has let go of it"
	})
}

// former is who had an address, and on which edge.
type former struct {
	addr       netip.Addr
	uid        lb.UID
	name, edge string
}

// quarantineAll puts addresses into quarantine. Of several that shared one it is the
// first by UID who may have it back at once, whoever decides.
func (r *round) quarantineAll(freed []former, what func(former) string) {
	slices.SortFunc(freed, func(a, b former) int {
		return cmp.Or(a.addr.Compare(b.addr), cmp.Compare(a.uid, b.uid), cmp.Compare(a.edge, b.edge))
	})
	for _, f := range freed {
		if r.quarantine.addrs[f.addr] == nil {
			r.quarantine.add(f.addr, f.name, f.uid, r.Now)
			r.note(what(f), f.name, f.addr)
		}
	}
}

// keepHoldings notes who holds what by now, and puts into quarantine what
// somebody held before and nobody holds any more.
func (r *round) keepHoldings() {
	before := len(r.quarantine.addrs)
	holdings := make(map[lb.UID]holding, len(r.subjects))
	holders := make(map[netip.Addr]bool, len(r.subjects))
	keep := func(uid lb.UID, name string, addrs []netip.Addr) {
		holdings[uid] = holding{name, addrs}
		for _, a := range addrs {
			holders[a] = true
			delete(r.quarantine.addrs, a)
		}
	}
	for _, s := range r.subjects {
		addrs := s.recorded
		if p, ok := r.proposals[s.uid]; ok {
			addrs = appendNew(slices.Clone(addrs), p.addrs...)
		}
		keep(s.uid, s.translation.LoadBalancer.Name, addrs)
	}
	r.quarantineFreed(holders)
	r.release(holders)
	r.holdings = holdings
	if len(r.quarantine.addrs) > before {
		r.wakeIn(minPause) // edges may never have been told, and then say nothing
	}
}

// release puts the addresses of Services that we find not to be ours any more,
// such as those deleted while we were away, into quarantine. That a Service was ours
// its status says, which its users cannot write.
func (r *round) release(holders map[netip.Addr]bool) {
	released := make(map[lb.UID]bool)
	for _, svc := range r.others {
		uid := uidOf(svc)
		addrs := recordedAddresses(svc)
		if c := conditionOf(svc, ConditionAddressAssigned); len(addrs) == 0 || c == nil || c.Reason == ReasonForeignAddress {
			continue
		}
		released[uid] = true
		if _, before := r.holdings[uid]; before || r.quarantine.released[uid] {
			continue
		}
		for _, a := range addrs {
			if !holders[a] && r.quarantine.addrs[a] == nil && poolOf(r.pools, a) != nil {
				r.quarantine.add(a, nameOf(svc), uid, r.Now)
				r.note("address of a Service that is not ours any more is in quarantine until every edge has let go of it", nameOf(svc), a)
			}
		}
	}
	r.quarantine.released = released
}

// findStrangers puts addresses into quarantine that an edge holds and nobody has
// any more, before anything is assigned: their Service is gone, or has moved to
// others while we were away.
func (r *round) findStrangers() {
	var holders map[netip.Addr]bool
	var found []former
	for name, st := range r.Fleet {
		if !st.Known || r.quarantine.checked[name] == st.Holds.Revision {
			continue
		}
		r.quarantine.checked[name] = st.Holds.Revision
		if holders == nil {
			holders = map[netip.Addr]bool{}
			for _, s := range r.subjects {
				for _, a := range s.held {
					holders[a] = true
				}
			}
		}
		for uid, l := range st.Holds.LoadBalancers {
			for _, a := range l.Addresses {
				if !holders[a] && r.quarantine.addrs[a] == nil {
					found = append(found, former{a, uid, l.Name, name})
				}
			}
		}
	}
	r.quarantineAll(found, func(f former) string {
		return fmt.Sprintf("edge %q holds an address for a Service that does not have it: it is in quarantine until the edge has let go of it", f.edge)
	})
}

// confirm sets free what every edge of the address's pool has let go of. An edge
// whose object is gone is not asked.
func (q *quarantine) confirm(r *round) {
	for name := range q.checked {
		if _, ok := r.Fleet[name]; !ok {
			delete(q.checked, name)
		}
	}
	for name := range q.truncated {
		if !r.anyUnknown(name) {
			delete(q.truncated, name)
		}
	}
	if len(q.addrs) == 0 {
		return
	}
	kept := map[netip.Addr]bool{}
	for name := range r.live {
		told := r.toldBy(name)
		for a := range q.addrs {
			kept[a] = kept[a] || told(a) && r.mayServe(name, a)
		}
	}
	for a, was := range q.addrs {
		if !kept[a] {
			delete(q.addrs, a)
			r.note("address is out of quarantine: every edge has let go of it", was.service, a)
		}
	}
}

// anyUnknown says whether an edge of the pool has not told yet what it holds.
func (r *round) anyUnknown(pool string) bool {
	for edge := range r.serving[pool] {
		if !r.Fleet[edge].Known {
			return true
		}
	}
	return false
}

// toldBy returns a function that says whether an edge serves an address for all
// that is known: the edge cannot be asked, or holds it, or was told of it and
// has not confirmed anything newer.
func (r *round) toldBy(edge string) func(netip.Addr) bool {
	st, ok := r.Fleet[edge]
	if !ok || !st.Known || st.Status.Revision < st.Holds.Revision {
		return func(netip.Addr) bool { return true }
	}
	serving := maps.Clone(r.addressesOf(edge))
	last := map[netip.Addr]uint64{}
	if m := r.edges[edge]; m != nil {
		for _, b := range m.builds {
			for _, a := range b.Addresses {
				serving[a] = true
			}
		}
		for _, addrs := range m.kept {
			for _, a := range addrs {
				serving[a] = true
			}
		}
		maps.DeleteFunc(m.last, func(_ netip.Addr, revision uint64) bool { return st.Holds.Revision > revision })
		last = m.last
	}
	return func(a netip.Addr) bool { return serving[a] || last[a] != 0 }
}

// mayServe says whether an address is of a pool that the edge serves, or of
// none: then any edge may.
func (r *round) mayServe(edge string, a netip.Addr) bool {
	p := poolOf(r.pools, a)
	if p == nil || r.serving[p.Name][edge] || r.drained[p.Name][edge] || r.unheard(edge) {
		return true
	}
	// The pool's edges may have changed since.
	return r.addressesOf(edge)[a]
}

// unheard says whether an edge has not told yet what it has, and may still do so:
// it was not given the time of unreachableAfter.
func (r *round) unheard(edge string) bool {
	st := r.Fleet[edge]
	if st.Known && st.Status.Cursor != "" {
		return false
	}
	wait := unreachableAfter
	if !st.Since.IsZero() {
		wait -= r.Now.Sub(st.Since)
	}
	if wait > 0 {
		r.wakeIn(wait)
	}
	return wait > 0
}

// addressesOf returns the addresses that an edge has, as far as it has told: it
// holds a load balancer with them, or lets the last connections to them end.
func (r *round) addressesOf(edge string) map[netip.Addr]bool {
	if has, ok := r.has[edge]; ok {
		return has
	}
	st, has := r.Fleet[edge], map[netip.Addr]bool{}
	for _, l := range st.Holds.LoadBalancers {
		for _, a := range l.Addresses {
			has[a] = true
		}
	}
	for _, l := range st.Status.LoadBalancers {
		for _, a := range l.Leaving {
			has[a] = true
		}
	}
	if r.has == nil {
		r.has = map[string]map[netip.Addr]bool{}
	}
	r.has[edge] = has
	return has
}

// findUnsaved notes the Services with addresses in quarantine of which the
// status of the pool does not tell yet. Addresses of no pool have nowhere to be
// saved.
func (r *round) findUnsaved() {
	r.unsaved = map[lb.UID]bool{}
	for a, q := range r.quarantine.addrs {
		if !q.saved && poolOf(r.pools, a) != nil {
			r.unsaved[q.uid] = true
		}
	}
}

func nameOf(svc *v1.Service) string { return svc.Namespace + "/" + svc.Name }
