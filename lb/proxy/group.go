package proxy

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

const (
	// avoidFor is how long a member that failed is avoided before one connection
	// tries it again.
	avoidFor = time.Second
	// reportEvery is the shortest time between two reports of one member to
	// Options.OnDialError.
	reportEvery = 250 * time.Millisecond
)

// memberKey is what makes a member the same member: a node that changes its
// address is another.
type memberKey struct {
	node lb.NodeName
	addr netip.Addr
}

// member is what is known about a member of a group over time, whatever its
// state. It is shared by all loops.
type member struct {
	memberKey
	hash uint64 // for rendezvous
	mark mark
	told throttle // to OnDialError
}

// mark remembers that a dial failed. The zero value is no mark.
type mark struct {
	// until is when the member may be tried again; zero is no mark.
	until atomic.Int64
}

func (m *mark) set(now int64) { m.until.Store(now + int64(avoidFor)) }

// clear forgets the mark. It writes only if it must, since all connections of a
// member pass here.
func (m *mark) clear() {
	if m.until.Load() != 0 {
		m.until.Store(0)
	}
}

// avoid tells whether the member is to be avoided now.
func (m *mark) avoid(now int64) bool { return now < m.until.Load() }

// try claims the right to try the member: always when there is no mark, else for
// one caller until the mark would end once more.
func (m *mark) try(now int64) bool {
	until := m.until.Load()
	return until == 0 || until <= now && m.until.CompareAndSwap(until, now+int64(avoidFor))
}

// candidate is a member that takes new connections.
type candidate struct {
	*member
	weight int
	check  lb.CheckID
}

// view is an immutable state of a group.
type view struct {
	candidates []candidate
	uneven     bool // weights differ
	total      int  // of all weights
	size       int  // of the group, in whatever state its members are
	states     map[memberKey]lb.BackendState

	key    tableKey                  // of the table for SourceHash; owned by Set
	placed atomic.Pointer[placement] // that table, or another one until it is made

	indexOnce sync.Once
	index     map[uint64]int // see position
}

// position returns where the candidate with a hash is, -1 if there is none.
func (v *view) position(hash uint64) int {
	v.indexOnce.Do(func() {
		v.index = make(map[uint64]int, len(v.candidates))
		for i, c := range v.candidates {
			v.index[c.hash] = i
		}
	})
	if i, ok := v.index[hash]; ok {
		return i
	}
	return -1
}

// group is a group of the table over time. The view is replaced by Set only.
type group struct {
	view     atomic.Pointer[view]
	backends []lb.Backend // as they were set; owned by Set
	indexed  bool         // views need their index; owned by Set
	members  map[memberKey]*member
}

func newGroup() *group {
	g := &group{members: make(map[memberKey]*member)}
	g.view.Store(&view{})
	return g
}

// set replaces the group's members and reports whether anything changed.
func (g *group) set(backends []lb.Backend) bool {
	if sameBackends(g.backends, backends) {
		return false
	}
	before := g.view.Load()
	v := &view{states: make(map[memberKey]lb.BackendState, len(backends)), size: len(backends)}
	for _, b := range backends {
		key := memberKey{b.Node, b.Addr.Unmap()}
		m := g.members[key]
		if m == nil {
			m = &member{memberKey: key, hash: key.hash()}
			m.told.interval = reportEvery
			g.members[key] = m
		}
		v.states[key] = b.State
		if b.State != lb.Active {
			continue
		}
		if was, ok := before.states[key]; ok && was != lb.Active {
			// Whoever says that it is active again knows more than an old failure.
			m.mark.clear()
		}
		c := candidate{member: m, weight: max(b.Weight, 1), check: b.Check}
		v.uneven = v.uneven || len(v.candidates) > 0 && c.weight != v.candidates[0].weight
		v.total += c.weight
		v.candidates = append(v.candidates, c)
	}
	for key := range g.members {
		if _, ok := v.states[key]; !ok {
			delete(g.members, key)
		}
	}
	g.backends = backends
	if g.indexed {
		v.position(0) // before a loop sees the view, and would make it
	}
	v.placed.Store(before.placed.Load().outdated(v))
	g.view.Store(v)
	return true
}

func sameBackends(a, b []lb.Backend) bool {
	if len(a) != len(b) {
		return false
	}
	if len(a) == 0 || &a[0] == &b[0] { // tables are immutable and share what stays
		return true
	}
	return slices.Equal(a, b)
}

// serves tells whether there is a member for new connections.
func (v *view) serves() bool { return len(v.candidates) > 0 }
