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
	// HeldPorts are those that it is known to use of the Held addresses already, nil
	// if that is not known. Where addresses are shared they come before what others
	// want, however old those are.
	HeldPorts []PortKey
	// Held are the addresses that were assigned before. They are kept unless the
	// claim asks for something else, or an older claim holds them as well.
	Held []netip.Addr
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
	// Clashes are the claim's ports that another has on a shared address. The claim
	// goes without them.
	Clashes []Clash
}

// Clash is a port of a shared address that somebody else has.
type Clash struct {
	Port PortKey
	// Address is where, and Holder is the Name of the claim that has it.
	Address netip.Addr
	Holder  string
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
