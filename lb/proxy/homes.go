package proxy

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"time"
)

const (
	// waysOfHomes is the number of places of a set. A client's entry may be in two.
	waysOfHomes = 8
	// firstHomes is the size that a table begins with. Each frontend has as much,
	// whatever others have.
	firstHomes = 4 * waysOfHomes
	// maxHomes is the number of clients that a frontend remembers, 3 MiB.
	maxHomes = 1 << 17
	// tickShift makes ticks of 17 ms of nanoseconds: an entry has 32 bits for a time,
	// and 414 days, since ages are signed, are more than any timeout.
	tickShift = 24
)

func tick(now int64) uint32 { return uint32(uint64(now) >> tickShift) } //nolint:gosec // it wraps, and only differences count

// homesSeed makes nobody know which clients share a set. Their hashes are public,
// since they are the same in every process.
var homesSeed = rand.Uint64() //nolint:gosec // it is seeded by the system

// home is the member that a client has. Clients and members go by their hashes,
// which are the same in every process.
type home struct {
	client uint64
	member uint64 // zero is a free place
	seen   uint32 // the tick of the last beginning or end of a connection
	open   uint16 // connections and sessions that are open, as many as are counted
	gen    uint16 // of the entry, never zero: those that it counts know it by that
}

// age returns the ticks since the client was seen. Loops have clocks of their own,
// which differ by what they are busy with, so that now may be before h.seen.
func (h *home) age(now uint32) uint32 {
	return uint32(max(int32(now-h.seen), 0)) //nolint:gosec // not negative
}

// idle tells whether the entry has had its time.
func (h *home) idle(now, timeout uint32) bool { return h.open == 0 && h.age(now) > timeout }

// yields tells whether the entry makes room rather than another one: one without
// connections goes first, and then the one whose client was away for longer.
func (h *home) yields(o *home, now uint32) bool {
	if (h.open > 0) != (o.open > 0) {
		return h.open == 0
	}
	return h.age(now) > o.age(now)
}

// homes remembers the members of a frontend's clients. Hashing alone would move
// clients to a member that joins or comes back; a client that is remembered stays
// where it is while that member takes new connections. Clients that are not
// remembered, since they were away for longer than the timeout or the table is
// full, go by the hash, which nearly always is where they were. It is a cache in
// sets of eight. An entry is in the emptier one of two, so that none is full while
// the table is not; then the client that was away longest makes room.
// frontend.mu guards it.
type homes struct {
	gen    uint16  // that the last entry was given
	budget *budget // entries of all frontends of the engine, but for the first of each
	used   int     // places that are not free
	places []home

	vain   bool // it could not grow since others have the memory, since the last Set
	capped bool // it must not grow, since the owner has more than its share and others need it
}

// sets returns the two sets that a client's entry may be in.
func (h *homes) sets(client uint64) [2][]home {
	n := uint64(len(h.places) / waysOfHomes)
	if n == 0 {
		return [2][]home{}
	}
	x := mix(client ^ homesSeed)
	first := x & (n - 1)
	second := (first + 1 + (x>>32)%(n-1)) & (n - 1) // another one
	return [2][]home{h.places[first*waysOfHomes:][:waysOfHomes], h.places[second*waysOfHomes:][:waysOfHomes]}
}

// find returns a client's entry, nil if there is none.
func (h *homes) find(client uint64) *home {
	for _, set := range h.sets(client) {
		for i := range set {
			if set[i].client == client && set[i].member != 0 {
				return &set[i]
			}
		}
	}
	return nil
}

// settle notes that a client has reached a member, and returns the entry that the
// connection counts for. There is none, zero, if the client is at home elsewhere, at
// a member that still takes connections, and came here only since that one did not
// answer just now.
func (h *homes) settle(client, member uint64, now, timeout uint32, serves func(member uint64) bool) (gen uint16) {
	e := h.find(client)
	if e != nil && e.member != member && !e.idle(now, timeout) && serves(e.member) {
		e.seen = now
		return 0
	}
	if e == nil {
		if e = h.room(client, now, timeout); e == nil {
			return 0
		}
	}
	if e.client != client || e.member != member {
		h.enter(e, home{client: client, member: member})
	}
	e.seen = now
	if e.open == math.MaxUint16 {
		return 0 // while any of those goes on it counts as connected all the same
	}
	e.open++
	return e.gen
}

// enter makes a place that of a new entry.
func (h *homes) enter(place *home, entry home) {
	if h.gen++; h.gen == 0 {
		h.gen++
	}
	entry.gen = h.gen
	*place = entry
}

// entry returns a client's entry if it is still the one that settle returned.
func (h *homes) entry(client uint64, gen uint16) *home {
	if e := h.find(client); e != nil && e.gen == gen {
		return e
	}
	return nil
}

// leave notes the end of a connection for which settle returned an entry.
func (h *homes) leave(client uint64, now uint32, gen uint16) {
	if e := h.entry(client, gen); e != nil && e.open > 0 {
		e.open--
		e.seen = now
	}
}

// room returns a place for a client, which the caller fills, nil if there is no
// memory for it.
func (h *homes) room(client uint64, now, timeout uint32) *home {
	for {
		free, oldest := h.choose(client, now, timeout)
		if free != nil {
			if free.member == 0 {
				h.used++
			}
			return free
		}
		// A table that is hardly used does not grow, whatever its sets are like.
		if h.used < len(h.places)/4 || !h.grow(now, timeout) {
			return oldest
		}
	}
}

// choose returns a place for a client in the emptier of its sets, or none and the
// entry that makes room first.
func (h *homes) choose(client uint64, now, timeout uint32) (free, oldest *home) {
	most := 0
	for _, set := range h.sets(client) {
		var place *home
		n := 0
		for i := range set {
			e := &set[i]
			if e.member == 0 || e.idle(now, timeout) {
				place = e
				n++
				continue
			}
			if oldest == nil || e.yields(oldest, now) {
				oldest = e
			}
		}
		if n > most {
			free, most = place, n
		}
	}
	return free, oldest
}

// grow doubles the table, unless it is as large as it may be.
func (h *homes) grow(now, timeout uint32) bool {
	had := len(h.places)
	size := max(2*had, firstHomes)
	if size > maxHomes || h.capped {
		return false
	}
	if had > 0 && !h.budget.take(int64(size-had)) {
		h.vain = true
		return false
	}
	h.rehash(size, now, timeout)
	return true
}

// shrink makes the table smaller, and gives the memory back.
func (h *homes) shrink(size int, now, timeout uint32) {
	h.budget.give(int64(len(h.places) - size))
	h.rehash(size, now, timeout)
}

// rehash moves the entries to a table of another size. Some make room if there is
// too little.
func (h *homes) rehash(size int, now, timeout uint32) {
	old := h.places
	h.places, h.used = make([]home, size), 0
	for i := range old {
		e := &old[i]
		if e.member == 0 || e.idle(now, timeout) {
			continue
		}
		free, oldest := h.choose(e.client, now, timeout)
		switch {
		case free != nil:
			*free = *e
			h.used++
		case oldest.yields(e, now):
			*oldest = *e
		}
	}
}

// live counts the entries that have not had their time.
func (h *homes) live(now, timeout uint32) int {
	n := 0
	for i := range h.places {
		if e := &h.places[i]; e.member != 0 && !e.idle(now, timeout) {
			n++
		}
	}
	return n
}

// size is what the table takes of the budget.
func (h *homes) size() int64 { return int64(max(len(h.places)-firstHomes, 0)) }

// release gives the memory back.
func (h *homes) release() {
	h.budget.give(h.size())
	h.places, h.used = nil, 0
}

// ticks returns a timeout in ticks, rounded up.
func ticks(d time.Duration) uint32 {
	return uint32(min(int64(max(d, 0))>>tickShift+1, math.MaxInt32)) //nolint:gosec // bounded
}

// remember begins or ends to remember clients, as the route wants. Only Set calls it.
func (fe *frontend) remember(b *budget, on bool) {
	fe.mu.Lock()
	defer fe.mu.Unlock()
	switch {
	case on && fe.homes == nil:
		fe.homes = &homes{gen: fe.homeGen, budget: b}
	case !on && fe.homes != nil:
		fe.homeGen = fe.homes.gen // connections that are open may be counted again
		fe.homes.release()
		fe.homes = nil
	}
}

// home returns the position of the candidate that is a client's home, -1 if it
// has none. Callers hold mu.
func (fe *frontend) home(s *spec, now int64, client uint64) int {
	if fe.homes == nil {
		return -1
	}
	e := fe.homes.find(client)
	if e == nil || e.idle(tick(now), ticks(s.AffinityFor)) {
		return -1
	}
	return fe.view.position(e.member)
}

// settle notes that a client has reached the link's member. gen remembers which
// entry counts the connection; it is zero for a connection that none counts.
func (k *link) settle(now int64, client netip.Addr, gen *uint16) {
	fe := k.fe
	s := fe.spec.Load()
	if s.AffinityFor <= 0 {
		return
	}
	fe.mu.Lock()
	defer fe.mu.Unlock()
	h := fe.homes
	if h == nil || *gen != 0 && h.entry(hashAddr(client), *gen) != nil {
		return
	}
	serves := func(member uint64) bool { return s.group.view.Load().position(member) >= 0 }
	*gen = h.settle(hashAddr(client), k.member.Load().hash, tick(now), ticks(s.AffinityFor), serves)
}

// leave notes the end of a connection that settle has noted.
func (k *link) leave(now int64, client netip.Addr, gen *uint16) {
	if *gen == 0 {
		return
	}
	fe := k.fe
	fe.mu.Lock()
	defer fe.mu.Unlock()
	if h := fe.homes; h != nil {
		h.leave(hashAddr(client), tick(now), *gen)
	}
	*gen = 0
}

// settleAll remembers the clients that a loop has when the route begins to want it.
func (fe *frontend) settleAll(l *loop) {
	for _, item := range fe.tracked(l) {
		item.settle(l)
	}
}
