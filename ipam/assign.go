package ipam

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// Assign decides for all claims at once, and returns a Result for each Owner.
//
//   - What a claim holds it keeps, even if it could not get it today: the pool
//     changed, or does not exist any more.
//   - A claim that asks for another address or another pool than it has moves,
//     as soon as it can. Until then it keeps what it has and is refused. What it
//     leaves is given to nobody in the same call; the caller quarantines it.
//   - Requests are honoured or refused; an address that another claim holds
//     stays where it is, whichever claim is older.
//   - Where an address is shared, a port belongs to whoever is known to use it
//     already, then to the older claim, unless it is reserved. Whoever comes to want a
//     port that another has keeps the address, goes without the port on all of its
//     addresses, and is told so by the Clashes.
//   - Without a request a claim gets the smallest free address of its family in
//     the first pool, by name, that is open to it.
//
// Assign changes none of its arguments. Its result does not depend on the order
// of pools, of claims or of the EligiblePools of a claim.
func Assign(pools []Pool, claims []Claim, quarantined map[netip.Addr]Quarantine, reserved map[netip.Addr]Reserved) map[string]Result {
	a := &assignment{
		supplies:    newSupplies(pools),
		quarantined: quarantined,
		reserved:    reserved,
		taken:       make(map[netip.Addr]*tenancy, len(claims)),
		leaving:     map[netip.Addr]*Claim{},
		byKey:       map[string][]netip.Addr{},
		holders:     make(map[netip.Addr]int, len(claims)),
		exhausted:   map[supplyFamily]string{},
	}
	sorted := make([]*Claim, len(claims))
	for i := range claims {
		sorted[i] = &claims[i]
		for _, addr := range claims[i].Held {
			a.holders[addr]++
		}
	}
	slices.SortFunc(sorted, byAge)
	for _, c := range sorted {
		a.establish(c)
	}
	kept := make([]map[lb.Family]netip.Addr, len(sorted))
	for i, c := range sorted {
		kept[i] = a.keep(c)
	}
	results := make(map[string]Result, len(sorted))
	for i, c := range sorted {
		results[c.Owner] = a.decide(c, kept[i])
	}
	return results
}

// An assignment is one run of Assign.
type assignment struct {
	supplies    []*supply // by name
	quarantined map[netip.Addr]Quarantine
	reserved    map[netip.Addr]Reserved
	taken       map[netip.Addr]*tenancy
	leaving     map[netip.Addr]*Claim   // held until now by claims that moved
	byKey       map[string][]netip.Addr // the addresses of each sharing key
	common      []netip.Addr            // the taken addresses of shared pools
	holders     map[netip.Addr]int      // how many claims hold each address
	exhausted   map[supplyFamily]string
}

// A supplyFamily names one family of a pool.
type supplyFamily struct {
	*supply
	family lb.Family
}

// keep gives a claim what it holds, unless a claim before it has that, and
// returns the address of each family that it can go on with.
func (a *assignment) keep(c *Claim) map[lb.Family]netip.Addr {
	if len(c.Held) == 0 {
		return nil
	}
	kept := make(map[lb.Family]netip.Addr, len(c.Held))
	var left []netip.Addr
	for _, addr := range c.Held {
		f := lb.FamilyOf(addr)
		if !usable(addr) || kept[f] == addr || !a.stays(c, addr) {
			continue
		}
		a.join(c, addr)
		before, known := kept[f]
		if known && addr != c.requested(f) || !slices.Contains(c.Families, f) {
			left = append(left, addr)
			continue
		}
		if known {
			left = append(left, before)
		}
		kept[f] = addr
	}
	for _, addr := range left {
		a.leave(c, addr)
	}
	a.take(c, slices.Collect(maps.Values(kept)), left)
	return kept
}

// leave notes that a claim goes without an address that it held.
func (a *assignment) leave(c *Claim, addr netip.Addr) {
	if a.leaving[addr] == nil {
		a.leaving[addr] = c
	}
}

// decide finds the addresses of a claim, given those that it can keep.
func (a *assignment) decide(c *Claim, kept map[lb.Family]netip.Addr) Result {
	if fault := c.fault(); fault != nil {
		return a.result(c, kept, fault, nil)
	}
	var missing *Refusal
	chosen := make(map[lb.Family]netip.Addr, len(c.Families))
	for _, f := range c.Families {
		addr, refusal := a.choose(c, f, kept[f])
		switch {
		case refusal == nil:
			chosen[f] = addr
		case c.RequireAll || c.requested(f).IsValid() || kept[f].IsValid():
			return a.result(c, kept, refusal, nil)
		case missing == nil:
			missing = refusal
		}
	}
	if len(chosen) == 0 {
		return a.result(c, kept, missing, nil)
	}
	for f, addr := range chosen {
		if held := kept[f]; held.IsValid() && held != addr {
			a.leave(c, held)
		}
	}
	a.take(c, slices.Collect(maps.Values(chosen)), nil)
	return a.result(c, chosen, nil, missing)
}

func (a *assignment) result(c *Claim, addrs map[lb.Family]netip.Addr, refusal, missing *Refusal) Result {
	r := Result{Refusal: refusal, Missing: missing}
	for _, f := range c.Families {
		addr, ok := addrs[f]
		if !ok || slices.Contains(r.Addresses, addr) {
			continue
		}
		pool := a.poolOf(c, addr)
		if pool == "" {
			r.Orphaned = append(r.Orphaned, addr)
		}
		if len(r.Addresses) == 0 {
			r.Pool = pool
		}
		r.Addresses = append(r.Addresses, addr)
	}
	r.Clashes = a.clashes(c, r.Addresses)
	r.Ports = slices.DeleteFunc(slices.Clone(c.Ports), func(p PortKey) bool {
		return slices.ContainsFunc(r.Clashes, func(x Clash) bool { return x.Port == p })
	})
	return r
}

// poolOf returns the name of the pool that has an address; of several, one that
// the claim may use.
func (a *assignment) poolOf(c *Claim, addr netip.Addr) string {
	found := ""
	for _, s := range a.supplies {
		if !s.contains(addr) {
			continue
		}
		if c.mayUse(s) {
			return s.name
		}
		if found == "" {
			found = s.name
		}
	}
	return found
}

func (c *Claim) mayUse(s *supply) bool {
	return (c.Pool == "" || c.Pool == s.name) && slices.Contains(c.EligiblePools, s.name)
}

// usable reports whether an address is written the one way that it is known by.
func usable(a netip.Addr) bool { return a.IsValid() && a.Zone() == "" && !a.Is4In6() }

// fault says how a claim contradicts itself.
func (c *Claim) fault() *Refusal {
	if len(c.Families) == 0 {
		return &Refusal{InvalidClaim, "no address family is wanted: at least one of ipv4 and ipv6 is needed"}
	}
	for i, addr := range c.Requested {
		switch {
		case !usable(addr):
			return &Refusal{InvalidClaim, fmt.Sprintf("requested address %q is not usable: it must be an IPv4 or IPv6 address without zone", addr)}
		case !slices.Contains(c.Families, lb.FamilyOf(addr)):
			return &Refusal{WrongFamily, fmt.Sprintf("requested address %s is of family %s, but the Service is %s only", addr, lb.FamilyOf(addr), join(c.Families))}
		case slices.ContainsFunc(c.Requested[:i], func(b netip.Addr) bool { return lb.FamilyOf(b) == lb.FamilyOf(addr) }):
			return &Refusal{InvalidClaim, fmt.Sprintf("requested addresses %s: at most one of each family can be had", join(c.Requested))}
		}
	}
	return nil
}

// choose finds the address of one family. Held is the one that the claim can
// keep, if any.
func (a *assignment) choose(c *Claim, f lb.Family, held netip.Addr) (netip.Addr, *Refusal) {
	if want := c.requested(f); want.IsValid() {
		if want == held {
			return held, nil
		}
		return want, a.examine(c, want)
	}
	if c.Pool == "" && held.IsValid() {
		return held, nil
	}
	if c.Pool != "" {
		i := slices.IndexFunc(a.supplies, func(s *supply) bool { return s.name == c.Pool })
		switch {
		case i < 0:
			return netip.Addr{}, &Refusal{PoolNotFound, fmt.Sprintf("pool %q does not exist: create it, or name another one; the pools are %s", c.Pool, join(names(a.supplies)))}
		case held.IsValid() && a.supplies[i].contains(held):
			return held, nil
		case !c.mayUse(a.supplies[i]):
			return netip.Addr{}, &Refusal{NotEligible, fmt.Sprintf("pool %q may not be used: its selectors do not select this Service: name another pool, or change the selectors", c.Pool)}
		}
	}
	return a.find(c, f)
}

// examine says why a claim cannot have an address that it asks for.
func (a *assignment) examine(c *Claim, want netip.Addr) *Refusal {
	var having []string
	allowed := false
	for _, s := range a.supplies {
		if s.contains(want) {
			having = append(having, s.name)
			allowed = allowed || c.mayUse(s)
		}
	}
	switch {
	case len(having) == 0:
		return &Refusal{OutsidePools, fmt.Sprintf("requested address %s is outside every pool: ask for an address of one, or add it to one; the pools are %s", want, join(names(a.supplies)))}
	case !allowed && c.Pool != "" && !slices.Contains(having, c.Pool):
		return &Refusal{NotEligible, fmt.Sprintf("requested address %s is in pool %s, but pool %q is asked for: leave one of them out", want, join(having), c.Pool)}
	case !allowed:
		return &Refusal{NotEligible, fmt.Sprintf("requested address %s is in pool %s, whose selectors do not select this Service: ask for an address of another pool, or change the selectors", want, join(having))}
	}
	if other := a.leaving[want]; other != nil && other != c {
		return &Refusal{InUse, fmt.Sprintf("requested address %s is being given up by %q, and is free when every edge has let go of it", want, other.Name)}
	}
	if t := a.taken[want]; t != nil {
		if o, port := t.blocks(c); o.exists() {
			return inUse(c, want, o, port)
		}
	}
	if q, ok := a.quarantined[want]; ok && q.Owner != c.Owner {
		return &Refusal{Quarantined, fmt.Sprintf("requested address %s was freed at %s, and is in quarantine until every edge has let go of it: wait, or bring back the edges that are not reached", want, q.Since.UTC().Format(time.RFC3339))}
	}
	return nil
}

func inUse(c *Claim, want netip.Addr, o obstacle, port PortKey) *Refusal {
	switch {
	case o.claim == nil:
		return &Refusal{InUse, fmt.Sprintf("requested address %s is shared, and %s port %d of it is not free: %s", want, port.Protocol, port.Port, o.why)}
	case port != PortKey{}:
		return &Refusal{InUse, fmt.Sprintf("requested address %s is shared with %q, which uses %s port %d as well: use another port or another address", want, o.claim.Name, port.Protocol, port.Port)}
	case c.SharingKey != "":
		return &Refusal{InUse, fmt.Sprintf("requested address %s is in use by %q, which does not have the sharing key %s: ask for another address, or give both the same key", want, o.claim.Name, quote(c.SharingKey))}
	}
	return &Refusal{InUse, fmt.Sprintf("requested address %s is in use by %q: ask for another address, or let both share it", want, o.claim.Name)}
}

// find looks for any address of a family in the pools that are open to a claim.
func (a *assignment) find(c *Claim, f lb.Family) (netip.Addr, *Refusal) {
	var open []*supply
	for _, s := range a.supplies {
		if c.mayUse(s) && (s.auto || c.Pool != "") && len(s.ranges[f]) > 0 {
			open = append(open, s)
		}
	}
	if len(open) == 0 {
		return netip.Addr{}, a.noPool(c, f)
	}
	if addr, ok := a.joinKey(c, f, open); ok {
		return addr, nil
	}
	unavailable := func(addr netip.Addr) bool {
		_, quarantined := a.quarantined[addr]
		return quarantined || a.taken[addr] != nil || a.leaving[addr] != nil
	}
	for _, s := range open {
		if addr, ok := s.free(f, unavailable); ok {
			return addr, nil
		}
	}
	if addr, ok := a.joinAny(c, f, open); ok {
		return addr, nil
	}
	var details []string
	for _, s := range open {
		if x, ok := a.crowded(c, f, s); ok {
			why := fmt.Sprintf(" is %q's", x.Holder)
			if x.Why != "" {
				why = " is not free: " + x.Why
			}
			details = append(details, fmt.Sprintf("pool %q has no %s address with room: %s port %d of %s%s", s.name, f, x.Port.Protocol, x.Port.Port, x.Address, why))
			continue
		}
		details = append(details, a.exhaustion(supplyFamily{s, f}))
	}
	return netip.Addr{}, &Refusal{Exhausted, strings.Join(details, ", ") + "; add addresses to the pool, or delete what is not needed"}
}

func (a *assignment) noPool(c *Claim, f lb.Family) *Refusal {
	if c.Pool != "" {
		return &Refusal{NoPool, fmt.Sprintf("pool %q has no %s addresses; add some, or ask for another family", c.Pool, f)}
	}
	if len(c.EligiblePools) == 0 {
		return &Refusal{NoPool, fmt.Sprintf("no pool selects this Service: create one, or change the selectors of one; the pools are %s", join(names(a.supplies)))}
	}
	return &Refusal{NoPool, fmt.Sprintf("none of the pools that select this Service has %s addresses and assigns them unasked: add some, or ask for a pool or an address by name; they are %s", f, join(slices.Sorted(slices.Values(c.EligiblePools))))}
}

// exhaustion says how a pool came to be empty. It is worked out once, however
// many claims wait.
func (a *assignment) exhaustion(s supplyFamily) string {
	text, known := a.exhausted[s]
	if !known {
		used := make(map[netip.Addr]bool, len(a.taken))
		for addr := range a.taken {
			used[addr] = true
		}
		count := s.usage(used, a.quarantined)
		n := count.of(s.family)
		text = fmt.Sprintf("pool %q has no free %s address: %d of %d are in use, %d in quarantine", s.name, s.family, n.Used, n.Total, n.Quarantined)
		a.exhausted[s] = text
	}
	return text
}

func names(supplies []*supply) []string {
	var all []string
	for _, s := range supplies {
		all = append(all, s.name)
	}
	return all
}

// join writes a list for a message of bounded length.
func join[T any](all []T) string {
	const shown = 8
	if len(all) == 0 {
		return "none"
	}
	var texts []string
	for _, v := range all[:min(len(all), shown)] {
		texts = append(texts, fmt.Sprint(v))
	}
	if len(all) > shown {
		texts = append(texts, fmt.Sprintf("and %d more", len(all)-shown))
	}
	return strings.Join(texts, ", ")
}
