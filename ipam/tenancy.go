package ipam

import (
	"net/netip"
	"slices"

	"github.com/eclusa-lb/eclusa/lb"
)

// A tenancy is who has an address.
type tenancy struct {
	first *Claim
	// shared says that its pool lets everybody share it.
	shared bool
	ports  map[PortKey]*Claim // nil if nobody can share it
}

// admits says whether a claim may be on the address at all, its ports aside.
func (t *tenancy) admits(c *Claim) bool {
	return t.first == c || t.shared || c.SharingKey != "" && c.SharingKey == t.first.SharingKey
}

// blocks returns the claim because of which c cannot have the address too, and
// the port that they both want, if it is only for that.
func (t *tenancy) blocks(c *Claim) (*Claim, PortKey) {
	if !t.admits(c) {
		return t.first, PortKey{}
	}
	for _, p := range c.Ports {
		if other := t.ports[p]; other != nil && other != c {
			return other, p
		}
	}
	return nil, PortKey{}
}

// remain says whether a claim that holds the address may stay beside the others
// who hold it: they came together while the pool was shared, and each is known to
// be served there.
func (t *tenancy) remain(c *Claim) bool {
	return t.admits(c) || c.SharingKey == "" && t.first.SharingKey == "" && c.HeldPorts != nil && t.first.HeldPorts != nil && t.ports != nil
}

// tenancyOf returns the tenancy of an address, which begins with c if it is new.
func (a *assignment) tenancyOf(c *Claim, addr netip.Addr) *tenancy {
	t := a.taken[addr]
	if t != nil {
		return t
	}
	t = &tenancy{first: c, shared: a.isShared(addr)}
	a.taken[addr] = t
	if t.shared {
		a.common = append(a.common, addr)
	}
	if c.SharingKey != "" || t.shared || a.holders[addr] > 1 {
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

// take gives a claim those of its ports on an address that nobody has.
func (a *assignment) take(c *Claim, addr netip.Addr) {
	t := a.tenancyOf(c, addr)
	t.hand(c, c.Ports)
	if c.SharingKey != "" && t.first != c && !slices.Contains(a.byKey[c.SharingKey], addr) {
		a.byKey[c.SharingKey] = append(a.byKey[c.SharingKey], addr)
	}
}

func (t *tenancy) hand(c *Claim, ports []PortKey) {
	if t.ports == nil {
		return
	}
	for _, p := range ports {
		if t.ports[p] == nil {
			t.ports[p] = c
		}
	}
}

// establish gives a claim the ports that it is known to use of the addresses that
// it holds, before anybody gets a port that is new to him.
func (a *assignment) establish(c *Claim) {
	if c.HeldPorts == nil {
		return
	}
	for _, addr := range c.Held {
		if !usable(addr) {
			continue
		}
		if t := a.taken[addr]; t != nil && !t.remain(c) {
			continue
		}
		t := a.tenancyOf(c, addr)
		for _, p := range c.Ports {
			if slices.Contains(c.HeldPorts, p) {
				t.hand(c, []PortKey{p})
			}
		}
	}
}

// stays says whether a claim can go on with an address that it holds: nobody else
// has it, or it shares it and has at least one of its ports.
func (a *assignment) stays(c *Claim, addr netip.Addr) bool {
	t := a.taken[addr]
	switch {
	case t == nil:
		return true
	case !t.remain(c):
		return false
	case len(c.Ports) == 0 || t.ports == nil:
		return true
	}
	return slices.ContainsFunc(c.Ports, func(p PortKey) bool { return t.ports[p] == nil || t.ports[p] == c })
}

// clashes returns the ports of a claim that others have on its addresses.
func (a *assignment) clashes(c *Claim, addrs []netip.Addr) []Clash {
	var out []Clash
	for _, addr := range addrs {
		t := a.taken[addr]
		if t == nil || t.ports == nil {
			continue
		}
		for _, p := range c.Ports {
			if other := t.ports[p]; other != nil && other != c {
				out = append(out, Clash{Port: p, Address: addr, Holder: other.Name})
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
		if other, _ := a.taken[addr].blocks(c); other == nil {
			best = addr
		}
	}
	return best, best.IsValid()
}

// crowded says who has which of the claim's ports on the smallest address of a
// shared pool that has no room; empty if there is none.
func (a *assignment) crowded(c *Claim, f lb.Family, s *supply) (Clash, bool) {
	var best Clash
	for _, addr := range a.common {
		if lb.FamilyOf(addr) != f || !s.contains(addr) || best.Address.IsValid() && best.Address.Less(addr) {
			continue
		}
		if other, port := a.taken[addr].blocks(c); other != nil && port != (PortKey{}) {
			best = Clash{Port: port, Address: addr, Holder: other.Name}
		}
	}
	return best, best.Address.IsValid()
}
