package proxy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

const (
	// maxTablePlaces is how many places the tables of all groups have together at
	// most: 64 MiB, twice as much for a moment while they are replaced, and about two
	// seconds of one processor for all of them. The groups beyond go by rendezvous.
	maxTablePlaces = 1 << 24
	// tableWait is how long a Set waits for tables: nearly always long enough for all
	// of them, and never so long that others would notice.
	tableWait = 250 * time.Millisecond
)

// tableKey tells tables apart: it is the same for groups that have the same
// candidates with the same weights, which share one.
type tableKey struct {
	size int
	sum  [sha256.Size]byte
}

// table is a Maglev table. It is immutable once it is made.
type table struct {
	key        tableKey
	candidates []candidate
	places     []int32       // positions in candidates
	made       chan struct{} // closed when places is there

	waiting []*view // for places; guarded by tables.mu
}

// placement is a table as a view uses it.
type placement struct {
	*table
	// at are the positions in the view of the table's candidates, -1 for one that is
	// none any more. It is nil for the view's own table.
	at []int32
}

// place returns the position of a client's candidate, -1 if it has none any more.
func (p *placement) place(client uint64) int {
	i := p.places[client%uint64(len(p.places))]
	if p.at != nil {
		i = p.at[i]
	}
	return int(i)
}

// outdated returns the placement for a view that follows the one it was made for,
// until that has its own table: the clients of candidates that are left stay.
func (p *placement) outdated(next *view) *placement {
	if p == nil {
		return nil
	}
	at := make([]int32, len(p.candidates))
	for i, c := range p.candidates {
		at[i] = int32(next.position(c.hash)) //nolint:gosec // fewer than 2^31
	}
	return &placement{p.table, at}
}

// tableOf says which table a view needs.
func (v *view) tableOf() tableKey {
	b := make([]byte, 0, 16*len(v.candidates))
	for _, c := range v.candidates {
		b = binary.LittleEndian.AppendUint64(b, c.hash)
		b = binary.LittleEndian.AppendUint64(b, uint64(c.weight)) //nolint:gosec // positive
	}
	return tableKey{maglevSize(v.size), sha256.Sum256(b)}
}

// tables makes the tables of groups beside Set, one after the other, so that
// nothing else waits for them.
type tables struct {
	running *sync.WaitGroup
	limit   int // places of all tables together

	mu      sync.Mutex
	wanted  map[tableKey]*table
	pending []*table // those that are not made, in order
	working bool
}

// hashedGroup is a group whose routes go by its table.
type hashedGroup struct {
	id lb.GroupID
	*view
}

// want gives the views of groups the tables that there are, and has the others made.
// What else there was is forgotten. It returns the tables that are to be made: those
// of views that have none meanwhile, and the others. Only Set calls it.
func (ts *tables) want(groups []hashedGroup) (missing, outdated []*table) {
	// Small tables first, so that they neither wait for large ones nor go without.
	slices.SortFunc(groups, func(a, b hashedGroup) int {
		return cmp.Or(cmp.Compare(maglevSize(a.size), maglevSize(b.size)), cmp.Compare(a.id.Cluster, b.id.Cluster),
			strings.Compare(a.id.Name, b.id.Name), cmp.Compare(a.id.Family, b.id.Family))
	})
	ts.mu.Lock()
	defer ts.mu.Unlock()
	before := ts.wanted
	ts.wanted, ts.pending = make(map[tableKey]*table), nil
	for _, t := range before {
		t.waiting = nil
	}
	places := 0
	for _, g := range groups {
		if len(g.candidates) == 0 {
			g.placed.Store(nil) // the one before does not count any more
			continue
		}
		if g.key == (tableKey{}) {
			g.key = g.tableOf()
		}
		t := ts.wanted[g.key]
		if t == nil {
			if places+g.key.size > ts.limit {
				g.placed.Store(nil)
				continue
			}
			places += g.key.size
			if t = before[g.key]; t == nil {
				t = &table{key: g.key, candidates: g.candidates, made: make(chan struct{})}
			}
			ts.wanted[g.key] = t
			if t.places == nil {
				ts.pending = append(ts.pending, t)
			}
		}
		if t.places != nil {
			g.place(t)
			continue
		}
		if g.placed.Load() == nil {
			missing = append(missing, t)
		} else {
			outdated = append(outdated, t)
		}
		t.waiting = append(t.waiting, g.view)
	}
	if len(ts.pending) > 0 && !ts.working {
		ts.working = true
		ts.running.Go(ts.work)
	}
	return missing, outdated
}

// place makes a view use its own table.
func (v *view) place(t *table) {
	if p := v.placed.Load(); p == nil || p.table != t || p.at != nil {
		v.placed.Store(&placement{table: t})
	}
}

// work makes what is pending.
func (ts *tables) work() {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for len(ts.pending) > 0 {
		t := ts.pending[0]
		ts.pending = ts.pending[1:]
		if t.places != nil { // it was wanted again while it was made
			continue
		}
		ts.mu.Unlock()
		places := maglev(t.candidates, t.key.size)
		ts.mu.Lock()
		t.places = places
		for _, v := range t.waiting {
			v.place(t)
		}
		t.waiting = nil
		close(t.made)
	}
	ts.working = false
}

// stop makes work end soon.
func (ts *tables) stop() {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.wanted, ts.pending = nil, nil
}

// await waits until tables are made or the context ends.
func await(ctx context.Context, all []*table) {
	for _, t := range all {
		select {
		case <-t.made:
		case <-ctx.Done():
			return
		}
	}
}
