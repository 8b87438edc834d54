package proxy

import (
	"math"
	"net/netip"
	"time"
)

const (
	// waysOfHomes is the number of places that a client's entry may be in.
	waysOfHomes = 8
	// firstHomes is the size that a table begins with.
	firstHomes = 4 * waysOfHomes
	// maxHomes is the number of clients that a frontend remembers, 3 MiB.
	maxHomes = 1 << 17
	// tickShift makes ticks of 17 ms of nanoseconds: an entry has 32 bits for a time,
	// and 828 days are more than any timeout.
	tickShift = 24
)

func tick(now int64) uint32 { return uint32(uint64(now) >> tickShift) } //nolint:gosec // it wraps, and only differences count

// home is the member that a client has. Clients and members go by their hashes,
// which are the same in every process.
type home struct {
	client uint64
	member uint64 // zero is a free place
	seen   uint32 // the tick of the last beginning or end of a connection
	open   uint32 // connections and sessions that are open
}

// idle tells whether the entry has had its time.
func (h *home) idle(now uint32, timeout uint32) bool {
	return h.open == 0 && now-h.seen > timeout
}

// homes remembers the members of a frontend's clients. Hashing alone would move
// clients to a member that joins or comes back; a client that is remembered stays
// where it is while that member takes new connections. Clients that are not
// remembered, since they were away for longer than the timeout or the table is
// full, go by the hash, which nearly always is where they were. It is a cache in
// sets of eight, of which the client that was away longest makes room; frontend.mu
// guards it.
type homes struct {
	gen    uint8   // which table of the frontend it is, never zero
	budget *budget // entries of all frontends of the engine
	places []home
}

// set returns the places that a client's entry may be in.
func (h *homes) set(client uint64) []home {
	if len(h.places) == 0 {
		return nil
	}
	i := int(client & uint64(len(h.places)/waysOfHomes-1)) //nolint:gosec // less than the length
	return h.places[i*waysOfHomes : (i+1)*waysOfHomes]
}

// find returns a client's entry, nil if there is none.
func (h *homes) find(client uint64) *home {
	set := h.set(client)
	for i := range set {
		if set[i].client == client && set[i].member != 0 {
			return &set[i]
		}
	}
	return nil
}

// settle notes that a client has reached a member, and returns whether the
// connection counts for the entry: not if the client is at home elsewhere, at a
// member that still takes connections, and came here only since that one did not
// answer just now.
func (h *homes) settle(client, member uint64, now, timeout uint32, serves func(member uint64) bool) bool {
	e := h.find(client)
	if e != nil && e.member != member && !e.idle(now, timeout) && serves(e.member) {
		e.seen = now
		return false
	}
	if e == nil {
		if e = h.room(client, now, timeout); e == nil {
			return false
		}
	}
	if e.client != client || e.member != member {
		*e = home{client: client, member: member}
	}
	e.seen = now
	e.open++
	return true
}

// leave notes the end of a connection for which settle returned true.
func (h *homes) leave(client, member uint64, now uint32) {
	if e := h.find(client); e != nil && e.member == member && e.open > 0 {
		e.open--
		e.seen = now
	}
}

// room returns a place for a client, nil if there is no memory for it.
func (h *homes) room(client uint64, now, timeout uint32) *home {
	for {
		var oldest *home
		set := h.set(client)
		for i := range set {
			e := &set[i]
			if e.member == 0 || e.idle(now, timeout) {
				return e
			}
			// One without connections goes first.
			if oldest == nil || (e.open > 0) != (oldest.open > 0) && e.open == 0 ||
				(e.open > 0) == (oldest.open > 0) && now-e.seen > now-oldest.seen {
				oldest = e
			}
		}
		if !h.grow(now, timeout) {
			return oldest
		}
	}
}

// grow doubles the table, unless it is as large as it may be.
func (h *homes) grow(now, timeout uint32) bool {
	had := len(h.places)
	size := max(2*had, firstHomes)
	if size > maxHomes || !h.budget.take(int64(size-had)) {
		return false
	}
	old := h.places
	h.places = make([]home, size)
	for i := range old {
		if old[i].member == 0 || old[i].idle(now, timeout) {
			continue
		}
		// Each set of the old table becomes two, so there is room.
		set := h.set(old[i].client)
		for j := range set {
			if set[j].member == 0 {
				set[j] = old[i]
				break
			}
		}
	}
	return true
}

// release gives the memory back.
func (h *homes) release() {
	h.budget.give(int64(len(h.places)))
	h.places = nil
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
		if fe.homeGen++; fe.homeGen == 0 {
			fe.homeGen++
		}
		fe.homes = &homes{gen: fe.homeGen, budget: b}
	case !on && fe.homes != nil:
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
// table counts the connection; it is zero for a connection that none counts.
func (k *link) settle(now int64, client netip.Addr, gen *uint8) {
	fe := k.fe
	s := fe.spec.Load()
	if s.AffinityFor <= 0 {
		return
	}
	fe.mu.Lock()
	defer fe.mu.Unlock()
	h := fe.homes
	if h == nil || *gen == h.gen {
		return
	}
	*gen = 0
	serves := func(member uint64) bool { return s.group.view.Load().position(member) >= 0 }
	if h.settle(hashAddr(client), k.member.Load().hash, tick(now), ticks(s.AffinityFor), serves) {
		*gen = h.gen
	}
}

// leave notes the end of a connection that settle has noted.
func (k *link) leave(now int64, client netip.Addr, gen *uint8) {
	if *gen == 0 {
		return
	}
	fe := k.fe
	fe.mu.Lock()
	defer fe.mu.Unlock()
	if h := fe.homes; h != nil && h.gen == *gen {
		h.leave(hashAddr(client), k.member.Load().hash, tick(now))
	}
	*gen = 0
}

// settleAll remembers the clients that a loop has when the route begins to want it.
func (fe *frontend) settleAll(l *loop) {
	for _, item := range fe.tracked(l) {
		item.settle(l)
	}
}
