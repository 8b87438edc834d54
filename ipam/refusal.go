package ipam

import "github.com/eclusa-lb/eclusa/lb"

// Reason is why a claim does not get an address, fit to be the reason of a
// Kubernetes condition.
type Reason string

// The reasons.
const (
	// InvalidClaim: the claim contradicts itself.
	InvalidClaim Reason = "InvalidAddressRequest"
	// WrongFamily: an address of a family is requested that the claim has not.
	WrongFamily Reason = "AddressFamilyMismatch"
	// OutsidePools: no pool has the requested address.
	OutsidePools Reason = "AddressOutsidePools"
	// NotEligible: the claim may not use the pool.
	NotEligible Reason = "PoolNotEligible"
	// PoolNotFound: the pool that the claim names does not exist.
	PoolNotFound Reason = "PoolNotFound"
	// NoPool: no pool gives addresses of the family to the claim unasked.
	NoPool Reason = "NoEligiblePool"
	// InUse: another claim has the requested address.
	InUse Reason = "AddressInUse"
	// Quarantined: the requested address was freed and edges may still hold it.
	Quarantined Reason = "AddressQuarantined"
	// Exhausted: every address of every pool that the claim may use is taken.
	Exhausted Reason = "PoolExhausted"
)

// Refusal says why a claim does not get what it wants. It is an error of the
// kind that fits: lb.ErrInvalid, lb.ErrNotFound, lb.ErrExhausted or
// lb.ErrAddressHeld.
type Refusal struct {
	Reason Reason
	// Detail is one sentence for people: the value, the cause and the remedy.
	Detail string
}

// Error returns the Detail.
func (r *Refusal) Error() string { return r.Detail }

// Unwrap returns the kind of the error.
func (r *Refusal) Unwrap() error {
	switch r.Reason {
	case InUse, Quarantined:
		return lb.ErrAddressHeld
	case Exhausted:
		return lb.ErrExhausted
	case PoolNotFound, NoPool:
		return lb.ErrNotFound
	case InvalidClaim, WrongFamily, OutsidePools, NotEligible:
		return lb.ErrInvalid
	}
	return lb.ErrInvalid
}
