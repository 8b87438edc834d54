package edge

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/lb"
)

// Of the tests of stability, ECLUSA_STABILITY says for how long they go on (a
// duration such as 5m; short by default), and ECLUSA_SEED with which seed they
// begin. A failure names its seed.
const (
	stabilityVariable = "ECLUSA_STABILITY"
	seedVariable      = "ECLUSA_SEED"
)

// soonEnough is how long an edge may take to come to what it has to: the verdict on
// a node that has died takes longest. It is less than the resync, which would repair
// what was forgotten.
const soonEnough = 15 * time.Second

// seeds calls f with so many seeds, or for as long as the environment says.
func seeds(t *testing.T, usual int, f func(t *testing.T, seed uint64)) {
	t.Helper()
	first, long := uint64(1), time.Duration(0)
	if s := os.Getenv(seedVariable); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("%s=%q: must be a number", seedVariable, s)
		}
		first = n
	}
	if s := os.Getenv(stabilityVariable); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatalf("%s=%q: must be a duration such as 5m", stabilityVariable, s)
		}
		long = d
	}
	began := time.Now()
	for n := 0; n < usual || time.Since(began) < long; n++ {
		seed := first + uint64(n) //nolint:gosec // not negative
		if !t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { f(t, seed) }) {
			t.Fatalf("again with %s=%d", seedVariable, seed)
		}
	}
	t.Logf("from seed %d for %s", first, time.Since(began).Round(time.Second))
}

// A life is an edge in a world, and what its clusters know of it.
type life struct {
	*rig
	t      *testing.T
	w      *world
	epochs map[lb.Cluster]lb.Epoch
	terms  map[lb.Cluster]int64
	past   []string // what has happened

	onRestart func()
}

func newLife(t *testing.T, w *world) *life {
	t.Helper()
	l := &life{t: t, w: w, epochs: map[lb.Cluster]lb.Epoch{}, terms: map[lb.Cluster]int64{}}
	l.rig = &rig{t: t, dir: t.TempDir(), log: zap.NewNop(), probes: newProbes()}
	l.probes.judge = w.probe
	l.onRestart = func() {
		l.note("restart the edge")
		l.stop()
		l.open()
		l.run()
	}
	return l
}

// begin starts the edge, and leaders that write what the world wants.
func (l *life) begin() {
	l.t.Helper()
	l.open()
	l.run()
	for cluster := range prefixes {
		l.lead(cluster)
		l.write(cluster, l.w.configs[cluster])
	}
}

// note remembers what happens, for whoever reads of a failure.
func (l *life) note(format string, args ...any) {
	l.past = append(l.past, fmt.Sprintf(format, args...))
}

// lead makes a new leader.
func (l *life) lead(cluster lb.Cluster) {
	l.t.Helper()
	l.terms[cluster]++
	claim := testClaim
	claim.LeaseTransitions = l.terms[cluster]
	epoch, err := l.edge.Cluster(cluster).Claim(l.t.Context(), claim)
	if err != nil {
		l.t.Fatal(err)
	}
	l.epochs[cluster] = epoch
}

// write sets a configuration, and confirms what the guard holds.
func (l *life) write(cluster lb.Cluster, config lb.Config) {
	l.t.Helper()
	config.Revision++
	w := lb.Write{Epoch: l.epochs[cluster], Config: config}
	_, err := l.edge.Cluster(cluster).Set(l.t.Context(), w)
	if held, ok := errors.AsType[*lb.RemovalHeldError](err); ok {
		l.note("confirm %v", held.Keys)
		w.ConfirmedRemovals = held.Keys
		_, err = l.edge.Cluster(cluster).Set(l.t.Context(), w)
	}
	if err != nil {
		l.t.Fatalf("%v\nwrite %s: %v", l.past, cluster, err)
	}
	l.w.configs[cluster] = config
}

// reject makes writes that an edge must not do.
func (l *life) reject(cluster lb.Cluster) {
	l.t.Helper()
	next, _ := l.w.change(cluster)
	next.Revision++
	w := lb.Write{Epoch: l.epochs[cluster], Config: next}
	var want error
	switch l.w.IntN(4) {
	case 0:
		w.Epoch, want = "long-ago.1", lb.ErrStaleEpoch
	case 1:
		w.Base, want = "another", lb.ErrBaseDiffers
	case 2:
		w.Config.Nodes, want = testConfig(1, 0, 1001).Nodes, lb.ErrExhausted
	case 3:
		w.Config.Revision, want = 0, lb.ErrConflict
	}
	if _, err := l.edge.Cluster(cluster).Set(l.t.Context(), w); !errors.Is(err, want) {
		l.t.Errorf("%v\na write to be refused: got %v; want %v", l.past, err, want)
	}
}

// step does one random thing.
func (l *life) step() {
	l.t.Helper()
	cluster := l.w.cluster()
	switch l.w.IntN(12) {
	case 0, 1, 2, 3, 4, 5:
		config, what := l.w.change(cluster)
		l.note("%s: %s", cluster, what)
		l.write(cluster, config)
	case 6, 7, 8:
		addr, c := l.w.ail()
		l.note("node at %s is %s", addr, conditionNames[c])
	case 9:
		l.onRestart()
	case 10:
		l.note("%s: a new leader writes the same", cluster)
		l.lead(cluster)
		l.write(cluster, l.w.configs[cluster])
	case 11:
		l.note("%s: a write is refused", cluster)
		l.reject(cluster)
	}
}

// wanted is what the edge has to come to.
func (l *life) wanted() lb.Outcome {
	return l.w.table(l.options.Clusters, lb.Host{Capabilities: l.options.Engine.Capabilities()})
}

// eventually waits until the edge has come to that.
func (l *life) eventually(within time.Duration, table func() lb.Table) {
	l.t.Helper()
	want := l.wanted()
	var diff string
	for deadline := time.Now().Add(within); ; {
		got := table()
		if diff = l.difference(got, want); diff == "" || time.Now().After(deadline) {
			break
		}
		time.Sleep(20 * time.Millisecond) // poll
	}
	if diff != "" {
		l.t.Fatalf("%v\nafter %s the edge differs from what a fresh one would come to (-want +got):\n%s", l.past, within, diff)
	}
}

var byValue = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, lb.Frontend{})

// difference compares table and statuses, cheaply while they are equal.
func (l *life) difference(table lb.Table, want lb.Outcome) string {
	if !reflect.DeepEqual(table, want.Table) {
		return cmp.Diff(want.Table, table, byValue)
	}
	for cluster, c := range l.edge.clusters {
		status, _ := c.status.whole()
		if status.Revision != l.w.configs[cluster].Revision {
			return fmt.Sprintf("cluster %s: revision %d is told; want %d", cluster, status.Revision, l.w.configs[cluster].Revision)
		}
		got := map[lb.Owner]lb.LoadBalancerStatus{}
		for uid, s := range status.LoadBalancers {
			s.Leaving = nil
			if _, wanted := l.w.configs[cluster].LoadBalancers[uid]; wanted {
				got[lb.Owner{Cluster: cluster, UID: uid}] = s
			}
		}
		mine := maps.Clone(want.LoadBalancers)
		maps.DeleteFunc(mine, func(o lb.Owner, _ lb.LoadBalancerStatus) bool { return o.Cluster != cluster })
		if diff := cmp.Diff(mine, got, byValue); diff != "" {
			return diff
		}
	}
	return ""
}

// After any sequence of events an edge comes to what a fresh one would that starts
// with the last configuration, and stays there.
func TestStability(t *testing.T) {
	seeds(t, 5, func(t *testing.T, seed uint64) {
		synctest.Test(t, func(t *testing.T) {
			l := newLife(t, newWorld(seed, everyKind))
			l.begin()
			for n := range 40 {
				for range 1 + l.w.IntN(3) {
					if l.w.IntN(20) == 0 {
						l.note("the engine fails")
						l.engine.FailNext(errors.New("busy"))
					}
					l.step()
					time.Sleep(time.Duration(l.w.IntN(800)) * time.Millisecond)
				}
				l.eventually(soonEnough, l.engine.Table)
				// A node that died may count as less than dead again, for the six probes
				// that it takes when a node port is probed in place of the check.
				time.Sleep(time.Duration(10+l.w.IntN(30)) * time.Second)
				l.eventually(0, l.engine.Table)
				if n%10 == 9 {
					l.likeAFreshOne()
				}
			}
			if n := l.engine.Overlaps(); n > 0 {
				t.Errorf("the engine's Set was called concurrently %d times", n)
			}
			l.stop()
		})
	})
}

// likeAFreshOne compares with an edge that starts from nothing.
func (l *life) likeAFreshOne() {
	l.t.Helper()
	fresh := newLife(l.t, l.w)
	fresh.past = append(slices.Clone(l.past), "and a fresh edge")
	before := maps.Clone(l.w.configs)
	fresh.begin()
	fresh.eventually(soonEnough, fresh.engine.Table)
	l.w.configs = before // the revisions of the other edge's
	if diff := cmp.Diff(fresh.engine.Table(), l.engine.Table(), byValue); diff != "" {
		l.t.Errorf("%v\nthe edge differs from a fresh one (-fresh +old):\n%s", l.past, diff)
	}
	if want, got := fresh.announcer.Held(), l.announcer.Held(); !slices.Equal(want, got) {
		l.t.Errorf("%v\nthe edge announces %v; a fresh one %v", l.past, got, want)
	}
	fresh.stop()
}
