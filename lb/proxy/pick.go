package proxy

import (
	"encoding/binary"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/eclusa-lb/eclusa/lb"
)

// pick chooses the member for a new connection of the client, none of those
// tried before, and counts the connection as the link's. It returns nil if there
// is no member left. The caller gives the link back with link.active.Add(-1).
func (fe *frontend) pick(now int64, client netip.Addr, tried []*link) *link {
	fe.mu.Lock()
	defer fe.mu.Unlock()
	s := fe.spec.Load()
	if fe.retired {
		return nil
	}
	if v := s.group.view.Load(); v != fe.view {
		fe.look(v)
	}
	i := fe.choose(s, now, client, func(i int) bool { return !fe.tried(i, tried) && !fe.avoid(i, now) })
	for i >= 0 && !fe.claim(i, now) {
		// Another connection tries this one just now; it is avoided from here on.
		i = fe.choose(s, now, client, func(i int) bool { return !fe.tried(i, tried) && !fe.avoid(i, now) })
	}
	if i < 0 {
		i = fe.choose(s, now, client, func(i int) bool { return !fe.tried(i, tried) })
	}
	if i < 0 {
		return nil
	}
	k := fe.link(i)
	k.active.Add(1)
	return k
}

// look goes over to another view of the group. Callers hold mu.
func (fe *frontend) look(v *view) {
	fe.view = v
	fe.byPos = make([]*link, len(v.candidates))
	for i := range v.candidates {
		c := &v.candidates[i]
		if k := fe.links[c.memberKey]; k != nil {
			k.member.Store(c.member)
			k.check.Store(&c.check)
			k.gone = false
			k.drainAt.Store(0)
			fe.byPos[i] = k
		}
	}
	fe.current = nil
	if v.uneven {
		fe.current = make([]int, len(v.candidates))
	}
}

// link returns the link of a candidate, a new one at the first time. Callers
// hold mu.
func (fe *frontend) link(i int) *link {
	if k := fe.byPos[i]; k != nil {
		return k
	}
	c := &fe.view.candidates[i]
	k := &link{memberKey: c.memberKey, fe: fe, tracked: make([]*tracked, fe.loops)}
	k.member.Store(c.member)
	k.check.Store(&c.check)
	fe.byPos[i], fe.links[c.memberKey] = k, k
	return k
}

func (fe *frontend) tried(i int, tried []*link) bool {
	return len(tried) > 0 && fe.byPos[i] != nil && slices.Contains(tried, fe.byPos[i])
}

func (fe *frontend) avoid(i int, now int64) bool {
	return fe.view.candidates[i].mark.avoid(now) || fe.byPos[i] != nil && fe.byPos[i].mark.avoid(now)
}

// claim claims the right to try a candidate that failed a while ago.
func (fe *frontend) claim(i int, now int64) bool {
	return fe.view.candidates[i].mark.try(now) && (fe.byPos[i] == nil || fe.byPos[i].mark.try(now))
}

// choose returns the position of the best candidate for which ok is true, or -1.
// Callers hold mu.
func (fe *frontend) choose(s *spec, now int64, client netip.Addr, ok func(int) bool) int {
	switch {
	case s.AffinityFor > 0:
		h := hashAddr(client)
		if i := fe.home(s, now, h); i >= 0 && ok(i) {
			return i
		}
		return fe.view.rendezvous(h, ok)
	case s.Algorithm == lb.SourceHash:
		return fe.hashed(hashAddr(client), ok)
	case s.Algorithm == lb.LeastConnections:
		return fe.least(ok)
	case s.Algorithm == lb.RandomTwoChoices:
		return fe.twoChoices(ok)
	case fe.view.uneven:
		return fe.smooth(ok)
	}
	return fe.next(ok)
}

// next is round robin.
func (fe *frontend) next(ok func(int) bool) int {
	n := len(fe.view.candidates)
	for range n {
		i := fe.turn % n
		fe.turn = i + 1
		if ok(i) {
			return i
		}
	}
	return -1
}

// smooth is weighted round robin that spreads the turns of a heavy member: each
// candidate gains its weight, the richest is chosen and pays for all.
func (fe *frontend) smooth(ok func(int) bool) int {
	best, total := -1, 0
	for i, c := range fe.view.candidates {
		if !ok(i) {
			continue
		}
		total += c.weight
		fe.current[i] += c.weight
		if best < 0 || fe.current[i] > fe.current[best] {
			best = i
		}
	}
	if best >= 0 {
		fe.current[best] -= total
	}
	return best
}

// least chooses the member with the fewest connections for its weight, in turn
// among equals.
func (fe *frontend) least(ok func(int) bool) int {
	best, bestActive, bestWeight := -1, 0, 0
	n := len(fe.view.candidates)
	for range n {
		i := fe.turn % n
		fe.turn = i + 1
		if !ok(i) {
			continue
		}
		active, weight := fe.load(i)
		if best < 0 || active*bestWeight < bestActive*weight {
			best, bestActive, bestWeight = i, active, weight
		}
	}
	if best >= 0 {
		fe.turn = best + 1
	}
	return best
}

// load returns how many connections a candidate would have with one more, and its
// weight.
func (fe *frontend) load(i int) (active, weight int) {
	active, weight = 1, fe.view.candidates[i].weight
	if k := fe.byPos[i]; k != nil {
		active += int(k.active.Load())
	}
	return active, weight
}

// drawsOfTwo is how often twoChoices draws before it looks at all candidates: more
// than twice only where one has most of the weight, or many fail.
const drawsOfTwo = 8

// twoChoices draws two members at random, by their weights, and takes the one with
// fewer connections for its weight. That spreads nearly as well as looking at all
// of them, and edges that do not know of one another do not all choose the same.
func (fe *frontend) twoChoices(ok func(int) bool) int {
	first := -1
	for range drawsOfTwo {
		i := fe.draw()
		if i < 0 || i == first || !ok(i) {
			continue
		}
		if first < 0 {
			first = i
			continue
		}
		activeA, weightA := fe.load(first)
		activeB, weightB := fe.load(i)
		if activeB*weightA < activeA*weightB {
			return i
		}
		return first
	}
	return fe.least(ok)
}

// draw returns a candidate at random, by weight; -1 if there is none.
func (fe *frontend) draw() int {
	n := len(fe.view.candidates)
	if n == 0 {
		return -1
	}
	if !fe.view.uneven {
		return rand.IntN(n) //nolint:gosec // nobody gains by guessing it
	}
	at := rand.IntN(fe.view.total) //nolint:gosec // nobody gains by guessing it
	for i := range fe.view.candidates {
		if at -= fe.view.candidates[i].weight; at < 0 {
			return i
		}
	}
	return -1
}

// rendezvous chooses by the client's address, so that only the clients of a
// member that is lost go elsewhere, and come back when it does.
func (v *view) rendezvous(client uint64, ok func(int) bool) int {
	best, bestScore, bestHash := -1, 0.0, uint64(0)
	for i, c := range v.candidates {
		if !ok(i) {
			continue
		}
		h := mix(client ^ c.hash)
		if !v.uneven {
			if best < 0 || h > bestHash {
				best, bestHash = i, h
			}
			continue
		}
		// With u uniform in (0,1), -weight/ln(u) is largest for a candidate with a
		// probability in proportion to its weight.
		u := (float64(h>>11) + 0.5) / (1 << 53)
		if score := -float64(c.weight) / math.Log(u); best < 0 || score > bestScore {
			best, bestScore = i, score
		}
	}
	return best
}

// hashAddr and the hash of members are the same in every process, so that a
// client keeps its member when an edge is restarted or replaced by another.
func hashAddr(a netip.Addr) uint64 {
	b := a.As16()
	return mix(binary.LittleEndian.Uint64(b[:8])) ^ mix(binary.LittleEndian.Uint64(b[8:])+1)
}

func (k memberKey) hash() uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(k.node))
	return mix(h.Sum64()) ^ hashAddr(k.addr)
}

// mix spreads the bits of x over all bits of the result (the finalizer of
// splitmix64).
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}
