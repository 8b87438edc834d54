package ipam

import (
	"net/netip"
	"slices"

	"github.com/eclusa-lb/eclusa/lb"
)

// A tenancy is who has an address.
type tenancy struct {
	addr  netip.Addr
	first *Claim
	// apart holds the address as well, and may not share it with first any more. As
	// long as there is one nobody can join them.
	apart *Claim
	// sole is the only claim that held the address before, nil if there are others.
	sole *Claim
	// shared says that its pool lets everybody share it.
	shared   bool
	reserved Reserved
	ports    map[PortKey]*Claim // nil if nobody can share it
}

// An obstacle is why a claim does not get something: the claim that has it, or why
// nobody gets it.
type obstacle struct {
	claim *Claim
	why   string
}

func (o obstacle) exists() bool { return o.claim != nil || o.why != "" }

// clash says which port the obstacle keeps from a claim.
func (o obstacle) clash(p PortKey, addr netip.Addr) Clash {
	c := Clash{Port: p, Address: addr, Why: o.why}
	if o.claim != nil {
		c.Holder = o.claim.Name
	}
	return c
}

// admits says whether a claim may be on the address at all, its ports aside.
func (t *tenancy) admits(c *Claim) bool {
	return t.first == c || t.shared || c.SharingKey != "" && c.SharingKey == t.first.SharingKey
}

// blocks returns why c cannot have the address too, and the port that it cannot
// have, if it is only for that.
func (t *tenancy) blocks(c *Claim) (obstacle, PortKey) {
	switch {
	case !t.admits(c):
		return obstacle{claim: t.first}, PortKey{}
	case t.apart != nil && t.first != c:
		return obstacle{claim: t.apart}, PortKey{}
	}
	for _, p := range c.Ports {
		if o := t.without(c, p); o.exists() {
			return o, p
		}
	}
	return obstacle{}, PortKey{}
}

// without returns why c goes without a port: another has it, or it is reserved.
func (t *tenancy) without(c *Claim, p PortKey) obstacle {
	switch owner := t.ports[p]; {
	case t.ports == nil, owner == c:
		return obstacle{}
	case owner != nil:
		return obstacle{claim: owner}
	case slices.Contains(c.HeldPorts[t.addr], p):
		return obstacle{}
	case t.reserved.All != "" && t.sole != c:
		return obstacle{why: t.reserved.All}
	}
	if r, ok := t.reserved.Ports[p]; ok && r.Owner != c.Owner {
		return obstacle{why: r.Why}
	}
	return obstacle{}
}

// remain says whether a claim that holds the address may stay beside the others
// who hold it: they came together while they shared it, and each is known to be
// served there, whatever keys they have now.
func (t *tenancy) remain(c *Claim, addr netip.Addr) bool {
	return t.admits(c) && t.apart == nil || c.knownOn(addr) && t.first.knownOn(addr) && t.ports != nil
}

// tenancyOf returns the tenancy of an address, which begins with c if it is new.
func (a *assignment) tenancyOf(c *Claim, addr netip.Addr) *tenancy {
	t := a.taken[addr]
	if t != nil {
		return t
	}
	t = &tenancy{addr: addr, first: c, shared: a.isShared(addr), reserved: a.reserved[addr]}
	if a.holders[addr] == 1 && slices.Contains(c.Held, addr) {
		t.sole = c
	}
	a.taken[addr] = t
	if t.shared {
		a.common = append(a.common, addr)
	}
	if c.SharingKey != "" || t.shared || a.holders[addr] > 1 || len(t.reserved.Ports) > 0 {
		t.ports = make(map[PortKey]*Claim, len(c.Ports))
	}
	if c.SharingKey != "" {
		a.byKey[c.SharingKey] = append(a.byKey[c.SharingKey], addr)
	}
	return t
}

func (a *assignment) isShared(addr netip.Addr) bool {
	return slices.ContainsFunc(a.supplies, func(s *supply) bool { return s.shared && s.contains(addr) })
}

// join puts a claim on an address, without any port yet.
func (a *assignment) join(c *Claim, addr netip.Addr) {
	t := a.tenancyOf(c, addr)
	if c.SharingKey != "" && t.first != c && !slices.Contains(a.byKey[c.SharingKey], addr) {
		a.byKey[c.SharingKey] = append(a.byKey[c.SharingKey], addr)
	}
}

// take gives a claim those of its ports that it can have on each of its addresses.
// Those that it lacks on one it goes without on all of them, so that it keeps them
// from nobody on the others. Addresses that it is about to leave do not count.
func (a *assignment) take(c *Claim, addrs, leaving []netip.Addr) {
	all := slices.Concat(addrs, leaving)
	for _, addr := range all {
		a.join(c, addr)
	}
	for _, p := range c.Ports {
		lacks := slices.ContainsFunc(addrs, func(addr netip.Addr) bool { return a.taken[addr].without(c, p).exists() })
		for _, addr := range all {
			switch t := a.taken[addr]; {
			case t.ports == nil:
			case lacks && t.ports[p] == c:
				delete(t.ports, p)
			case !lacks && !t.without(c, p).exists():
				t.ports[p] = c
			}
		}
	}
}

// establish gives a claim the ports that it is known to use of the addresses that
// it holds, before anybody gets a port that is new to him.
func (a *assignment) establish(c *Claim) {
	for _, addr := range c.Held {
		if !usable(addr) || !c.knownOn(addr) {
			continue
		}
		if t := a.taken[addr]; t != nil && !t.remain(c, addr) {
			continue
		}
		t := a.tenancyOf(c, addr)
		if t.apart == nil && !t.admits(c) {
			t.apart = c
		}
		for _, p := range c.Ports {
			if t.ports != nil && t.ports[p] == nil && slices.Contains(c.HeldPorts[addr], p) {
				t.ports[p] = c
			}
		}
	}
}

// stays says whether a claim can go on with an address that it holds: nobody else
// has it, or it shares it and is known to be there, whatever ports it wants by now, or
// at least one of its ports is neither reserved nor known to be another's.
func (a *assignment) stays(c *Claim, addr netip.Addr) bool {
	t := a.taken[addr]
	switch {
	case t == nil:
		return true
	case !t.remain(c, addr):
		return false
	case len(c.Ports) == 0 || t.ports == nil || c.knownOn(addr):
		return true
	}
	return slices.ContainsFunc(c.Ports, func(p PortKey) bool {
		other := t.ports[p]
		r, reserved := t.reserved.Ports[p]
		return other == c || (other == nil || !other.knownOn(addr)) && (!reserved || r.Owner == c.Owner)
	})
}

// clashes returns the ports of a claim that it goes without on its addresses.
func (a *assignment) clashes(c *Claim, addrs []netip.Addr) []Clash {
	var out []Clash
	for _, addr := range addrs {
		t := a.taken[addr]
		if t == nil || t.ports == nil {
			continue
		}
		for _, p := range c.Ports {
			if o := t.without(c, p); o.exists() {
				out = append(out, o.clash(p, addr))
			}
		}
	}
	return out
}

// joinKey finds the smallest address that the claim can share by its key.
func (a *assignment) joinKey(c *Claim, f lb.Family, open []*supply) (netip.Addr, bool) {
	if c.SharingKey == "" {
		return netip.Addr{}, false
	}
	return a.joinOne(c, f, open, a.byKey[c.SharingKey])
}

// joinAny finds the smallest address that everybody can share.
func (a *assignment) joinAny(c *Claim, f lb.Family, open []*supply) (netip.Addr, bool) {
	return a.joinOne(c, f, open, a.common)
}

func (a *assignment) joinOne(c *Claim, f lb.Family, open []*supply, among []netip.Addr) (netip.Addr, bool) {
	var best netip.Addr
	for _, addr := range among {
		_, quarantined := a.quarantined[addr]
		if lb.FamilyOf(addr) != f || quarantined || a.leaving[addr] != nil || best.IsValid() && best.Less(addr) {
			continue
		}
		if !slices.ContainsFunc(open, func(s *supply) bool { return s.contains(addr) }) {
			continue
		}
		if o, _ := a.taken[addr].blocks(c); !o.exists() {
			best = addr
		}
	}
	return best, best.IsValid()
}

// crowded says which of the claim's ports it cannot have, and why, on the smallest address of a
// shared pool that has no room; empty if there is none.
func (a *assignment) crowded(c *Claim, f lb.Family, s *supply) (Clash, bool) {
	var best Clash
	for _, addr := range a.common {
		if lb.FamilyOf(addr) != f || !s.contains(addr) || best.Address.IsValid() && best.Address.Less(addr) {
			continue
		}
		if o, port := a.taken[addr].blocks(c); o.exists() && port != (PortKey{}) {
			best = o.clash(port, addr)
		}
	}
	return best, best.Address.IsValid()
}
