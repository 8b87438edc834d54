package ipam

import (
	"cmp"
	"net/netip"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// Claim is what one load balancer wants, and what it has.
type Claim struct {
	// Owner identifies the claim for all time: the Service's UID. It is unique
	// among the claims.
	Owner string
	// Name says to people who this is: "namespace/name".
	Name string
	// Time is when the claim was made. Older claims come first, then the smaller
	// Owner.
	Time time.Time
	// Families are the address families that are wanted, most wanted first, one
	// address of each.
	Families []lb.Family
	// RequireAll refuses the claim unless there is an address of every family.
	// Otherwise one is enough, and Result.Missing says why there are not more.
	RequireAll bool
	// Requested are the addresses that are wanted, at most one of each family.
	// The claim gets these and no others of their families.
	Requested []netip.Addr
	// Pool, unless empty, is the only pool that may serve the claim.
	Pool string
	// EligiblePools are the pools that the claim may use, in any order.
	EligiblePools []string
	// SharingKey, unless empty, lets the claim share an address with claims of
	// the same key as long as their Ports differ. Without a request it joins such
	// an address where it can.
	SharingKey string
	// Ports are what the claim uses of its addresses.
	Ports []PortKey
	// HeldPorts are those that it is known to use already of each of the Held
	// addresses; one of which that is not known is missing. Where addresses are
	// shared they come before what others want, however old those are.
	HeldPorts map[netip.Addr][]PortKey
	// Held are the addresses that were assigned before. They are kept unless the
	// claim asks for something else, or an older claim holds them as well.
	Held []netip.Addr
}

// knownOn says whether it is known what the claim uses of an address.
func (c *Claim) knownOn(addr netip.Addr) bool {
	_, known := c.HeldPorts[addr]
	return known
}

// PortKey is one port of an address.
type PortKey struct {
	Protocol lb.Protocol
	Port     uint16
}

// Quarantine is why nobody may have a freed address yet.
type Quarantine struct {
	// Since is when the address was freed.
	Since time.Time
	// Owner is whose it was. This claim may have it back.
	Owner string
}

// Reserved is what nobody gets of an address that somebody holds. It takes nothing
// from those who are known to use it.
type Reserved struct {
	// All, unless empty, says why nobody gets any port that is new to him. A claim that
	// holds the address alone is not meant.
	All string
	// Ports are single ones.
	Ports map[PortKey]Reservation
}

// Reservation is why nobody gets a port that he does not use already.
type Reservation struct {
	// Owner is whose it was. This claim may have it back.
	Owner string
	// Why is a sentence for people, with the remedy.
	Why string
}

// Result is what became of a claim.
type Result struct {
	// Addresses are the claim's, in the order of its Families. Besides a Refusal
	// they are what the claim goes on with until it can be honoured.
	Addresses []netip.Addr
	// Pool is the pool of the first address, empty if none has it.
	Pool string
	// Refusal says why the claim does not get what it must have, nil if it does.
	Refusal *Refusal
	// Missing says why a family is without an address that the claim can do
	// without; nil if none is.
	Missing *Refusal
	// Orphaned are those of the Addresses that no pool has any more.
	Orphaned []netip.Addr
	// Ports are those of the claim's that it has, on each of the Addresses.
	Ports []PortKey
	// Clashes are those that it goes without.
	Clashes []Clash
}

// Clash is a port of a shared address that a claim goes without.
type Clash struct {
	Port PortKey
	// Address is where, and Holder is the Name of the claim that has it. If nobody has
	// it, Why says why it is given to nobody.
	Address     netip.Addr
	Holder, Why string
}

// byAge orders claims by their right to a contested address.
func byAge(a, b *Claim) int {
	if c := a.Time.Compare(b.Time); c != 0 {
		return c
	}
	return cmp.Compare(a.Owner, b.Owner)
}

// requested returns the address of a family that the claim asks for, if any.
func (c *Claim) requested(f lb.Family) netip.Addr {
	for _, a := range c.Requested {
		if lb.FamilyOf(a) == f {
			return a
		}
	}
	return netip.Addr{}
}
