package lb

import (
	"errors"
	"fmt"
	"strings"
)

// The five kinds of errors that a Balancer returns and callers may test for
// with errors.Is. Everything else is an internal error or trouble of the
// network. Kinds survive the way through lb/rest.
var (
	// ErrInvalid: the request is wrong in itself; sending it again is useless.
	ErrInvalid = errors.New("invalid")
	// ErrUnsupported: the edge, its engine or its version lacks what was asked.
	ErrUnsupported = errors.New("unsupported")
	// ErrConflict: somebody or something else was there first; see the four
	// kinds of conflict below.
	ErrConflict = errors.New("conflict")
	// ErrExhausted: a limit of size, number or rate is reached.
	ErrExhausted = errors.New("exhausted")
	// ErrNotFound: what the request names does not exist.
	ErrNotFound = errors.New("not found")
)

// The conflicts, each of which is an ErrConflict too.
var (
	// ErrStaleEpoch: another leader claimed the cluster on this edge, or the
	// edge has lost its state.
	ErrStaleEpoch = fmt.Errorf("stale epoch: %w", ErrConflict)
	// ErrBaseDiffers: the configuration on the edge is not the one that the
	// write was meant to replace.
	ErrBaseDiffers = fmt.Errorf("base differs: %w", ErrConflict)
	// ErrRemovalHeld: the write removes more than the removal guard lets pass
	// unconfirmed; see [RemovalHeldError].
	ErrRemovalHeld = fmt.Errorf("removal held: %w", ErrConflict)
	// ErrAddressHeld: an address, or an address with protocol and port, belongs
	// to somebody else.
	ErrAddressHeld = fmt.Errorf("address held: %w", ErrConflict)
)

// RemovalHeldError is the ErrRemovalHeld that says what is held. Nothing of the
// write was done.
type RemovalHeldError struct {
	// Keys are the removals that need to be confirmed: "loadBalancers/UID" or
	// "nodes/NAME", sorted.
	Keys []string
	// Largest is the size of the largest set of the last ten minutes.
	Largest int
}

func (e *RemovalHeldError) Error() string {
	const shown = 5
	keys := e.Keys
	more := ""
	if len(keys) > shown {
		more = fmt.Sprintf(" and %d more", len(keys)-shown)
		keys = keys[:shown]
	}
	return fmt.Sprintf("removal of %d of %d needs to be confirmed: %s%s: %v",
		len(e.Keys), e.Largest, strings.Join(keys, ", "), more, ErrRemovalHeld)
}

// Unwrap makes the error an ErrRemovalHeld.
func (e *RemovalHeldError) Unwrap() error { return ErrRemovalHeld }
