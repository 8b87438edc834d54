package nftables

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/lb"
)

// The kernel sends a client to the member that it remembers for it, whatever that
// one's state is, and remembers it the longer the more often the client tries. So
// what it remembers is looked through whenever a member or a route's pool changes,
// and once more a moment later: a packet that was on its way through the table may
// have brought back what was forgotten.

const (
	// purgeAgain is when clients are looked through once more.
	purgeAgain = time.Second
	// maxClientsAtOnce is up to how many clients are looked through before Set
	// returns. More are left to the keeper, so that the next change need not wait.
	maxClientsAtOnce = 20_000
)

// remembered is a client with the member that it is sent to.
type remembered struct {
	version *version
	key     string
	member  netip.Addr
}

// misleads tells whether a client is sent to a member that takes no new connections
// of its route.
func (v view) misleads(c remembered) bool {
	r := v.byID[hostMark([]byte(c.key))]
	if r == nil || !r.deadline.IsZero() {
		return false // nobody is sent anywhere
	}
	pool := v.state.pools[r.spec.Group]
	if pool == nil {
		return true
	}
	b, there := pool.members[c.member]
	return !there || b.State != lb.Active
}

// misled returns the clients that must be forgotten, and of how many. With an error
// those are not all.
func (s *socket) misled(v view) (wrong []remembered, n int, err error) {
	for _, version := range versions {
		if !v.state.affine(version) {
			continue
		}
		// A set that changes meanwhile is not read anew: what is missed now is met by
		// the next look.
		if failed := s.readSome("clients"+version.suffix, func(f found) {
			n++
			a, ok := netip.AddrFromSlice([]byte(f.data))
			if c := (remembered{version, f.key, a}); ok && v.misleads(c) {
				wrong = append(wrong, c)
			}
		}); failed != nil {
			err = errors.Join(err, failed)
		}
	}
	return wrong, n, err
}

// purgeClients lets the table forget the clients that must go elsewhere. Callers
// hold mu.
func (e *Engine) purgeClients(now time.Time) {
	if e.clients > maxClientsAtOnce {
		e.purgeAt, e.purgeTwice = now, true
		e.kick()
		return
	}
	v := view{e.state, e.byID}
	if !v.state.affine(v4) && !v.state.affine(v6) {
		return
	}
	wrong, n, err := e.rules.misled(v)
	e.clients, e.purgeAt = n, now.Add(purgeAgain)
	e.complainOfClients(err)
	e.forgetClients(wrong)
}

// purgeDue does the same when it is due, and holds mu only while it deletes some.
func (e *Engine) purgeDue() {
	e.mu.Lock()
	now := time.Now()
	if e.idle() || e.purgeAt.IsZero() || now.Before(e.purgeAt) {
		e.mu.Unlock()
		return
	}
	first := e.purgeTwice
	e.purgeAt, e.purgeTwice = time.Time{}, false
	before, socket := view{e.state, maps.Clone(e.byID)}, e.watch
	e.mu.Unlock()
	wrong, n, err := socket.misled(before)
	for part := range slices.Chunk(wrong, maxElements) {
		e.mu.Lock()
		if !e.idle() {
			e.forgetClients(part)
		}
		e.mu.Unlock()
		e.mend()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.clients = n
	e.complainOfClients(err)
	switch end := time.Now(); {
	case first:
		e.purgeSoon(end.Add(purgeAgain))
	case len(wrong) > 0 || err != nil:
		e.purgeSoon(end.Add(max(purgeAgain, sweepShare*end.Sub(now))))
	}
}

// purgeSoon has clients looked through at a time, if not earlier. Callers hold mu.
func (e *Engine) purgeSoon(at time.Time) {
	if e.purgeAt.IsZero() || at.Before(e.purgeAt) {
		e.purgeAt = at
	}
}

func (e *Engine) complainOfClients(err error) {
	if err != nil && !errors.Is(err, errInterrupted) {
		e.log.Error("clients of members that are gone cannot be read; it is tried again", zap.Error(err))
	}
}

// forgetClients deletes clients, unless they may stay by now, and has the attempts to
// connect looked at that they have made since. Callers hold mu.
func (e *Engine) forgetClients(wrong []remembered) {
	v := view{e.state, e.byID}
	gone := make(map[string][]element)
	for _, c := range wrong {
		if v.misleads(c) {
			set := "clients" + c.version.suffix
			gone[set] = append(gone[set], element{set: set, key: c.key})
			e.soon = append(e.soon, selector{member: c.member})
		}
	}
	if len(gone) == 0 {
		return
	}
	e.soon = few(e.soon)
	e.kick()
	for set, all := range gone {
		if !e.deleteQuietly(set, all) {
			e.purgeSoon(time.Now().Add(purgeAgain))
		}
	}
}

// affine tells whether any route remembers clients.
func (s *state) affine(v *version) bool {
	for a := range s.shape.affinities {
		if a.version == v {
			return true
		}
	}
	return false
}

// readSome is read for sets that change all the time. If this one does meanwhile it
// calls f for some elements twice or never, and returns errInterrupted in the end.
func (s *socket) readSome(set string, f func(found)) error {
	err := s.stream(s.elementsOf(set), func(_ uint8, body []byte) { eachFound(body, f) })
	if err != nil && !isNotFound(err) {
		return fmt.Errorf("read set %q: %w", set, err)
	}
	return nil
}
