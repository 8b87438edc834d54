package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lab"
)

// atATime is how many tests have a lab at the same time. Two are enough: tests wait
// more than they compute, and two use up two processors and two gigabytes.
const atATime = 2

// longest are the tests that begin first, so that none of them is alone at the end.
// The first builds programs, and has those beside it that do not measure.
var longest = []string{
	"TestExamples", "TestReleaseIsReplaced", "TestKubeletsStop", "TestEdgePackageIsInstalledUpgradedAndRemoved",
	"TestKernelEngine", "TestEverythingAServiceCanSay", "TestScale", "TestFailuresFireAlerts", "TestEdgeDaemonSetIsUpgraded",
	"TestNodeDiesSilently", "TestPlugin", "TestCCMRestarts",
}

// turns are who waits for a turn, and the labs that are idle.
var turns struct {
	mu      sync.Mutex
	coming  int // tests that will wait for a turn, or have
	waiting []*turn
	arrived int
	taken   int // of atATime
	idle    []*cluster
	begun   int // how many labs were brought up
}

// A turn is one test's right to a lab.
type turn struct {
	name  string
	alone bool
	ready chan struct{}
}

func TestMain(m *testing.M) {
	flag.Parse()
	// Whose turn it is is for us to say, among all tests that wait for it.
	if err := flag.Set("test.parallel", "1000"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	for _, c := range turns.idle {
		atEnd(c.Down)
	}
	for _, f := range atTheEnd {
		if err := f(); err != nil {
			fmt.Fprintln(os.Stderr, "clean up:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// atTheEnd are what is to be done when all tests have ended.
var atTheEnd []func() error

func atEnd(f func() error) {
	turns.mu.Lock()
	defer turns.mu.Unlock()
	atTheEnd = append(atTheEnd, f)
}

// inLab returns a lab that no other test uses meanwhile, while others run in
// others. Without root the test is skipped, but fails in CI, where it must not be
// missed.
func inLab(t *testing.T) *cluster {
	t.Helper()
	takeTurn(t, false)
	return takeLab(t)
}

// inLabAlone is inLab for tests that measure: no other test runs meanwhile.
func inLabAlone(t *testing.T) *cluster {
	t.Helper()
	takeTurn(t, true)
	return takeLab(t)
}

// takeTurn waits until it is the test's turn, which lasts until the test ends.
func takeTurn(t *testing.T, alone bool) {
	t.Helper()
	needRoot(t)
	turns.mu.Lock()
	turns.coming++
	turns.mu.Unlock()
	t.Parallel()
	own := &turn{t.Name(), alone, make(chan struct{})}
	turns.mu.Lock()
	turns.arrived++
	turns.waiting = append(turns.waiting, own)
	giveTurns()
	turns.mu.Unlock()
	begun := time.Now()
	<-own.ready
	t.Logf("its turn came after %.0f s, which are part of how long it took", time.Since(begun).Seconds())
	t.Cleanup(func() {
		turns.mu.Lock()
		defer turns.mu.Unlock()
		turns.taken -= own.share()
		giveTurns()
	})
}

// share is how many places the test takes up.
func (o *turn) share() int {
	if o.alone {
		return atATime
	}
	return 1
}

// giveTurns gives turns to those who are next, once everybody is there: the longest
// first and those who want to be alone last. The caller holds turns.mu.
func giveTurns() {
	rank := func(o *turn) int {
		i := slices.Index(longest, o.name)
		switch {
		case o.alone:
			return len(longest) + 1
		case i < 0:
			return len(longest)
		}
		return i
	}
	for len(turns.waiting) > 0 && turns.arrived == turns.coming {
		next := slices.MinFunc(turns.waiting, func(a, b *turn) int { return rank(a) - rank(b) })
		if turns.taken+next.share() > atATime {
			return
		}
		turns.taken += next.share()
		turns.waiting = slices.DeleteFunc(turns.waiting, func(o *turn) bool { return o == next })
		close(next.ready)
	}
}

// takeLab lends the test a lab that is idle, or brings one up.
func takeLab(t *testing.T) *cluster {
	t.Helper()
	turns.mu.Lock()
	if n := len(turns.idle); n > 0 {
		c := turns.idle[n-1]
		turns.idle = turns.idle[:n-1]
		turns.mu.Unlock()
		t.Cleanup(func() { giveLab(t, c) })
		return c
	}
	turns.begun++
	o := lab.Options{
		Log: os.Stderr, NodeGrace: nodeGrace, Lease: lease,
		NodePortRange: fmt.Sprintf("30000-%d", 30000+manyNodePorts-1),
	}
	if dir := logDir(); dir != "" {
		o.LogDir = filepath.Join(dir, fmt.Sprintf("lab-%d", turns.begun))
	}
	turns.mu.Unlock()
	c, err := start(context.Background(), o)
	if err != nil {
		t.Fatalf("bring a lab up: %v", err)
	}
	t.Cleanup(func() { giveLab(t, c) })
	return c
}

// giveLab takes a lab back. One in which a test has failed may not be whole: the
// next test gets another.
func giveLab(t *testing.T, c *cluster) {
	if t.Failed() {
		if err := c.Down(); err != nil {
			t.Error(err)
		}
		return
	}
	turns.mu.Lock()
	defer turns.mu.Unlock()
	turns.idle = append(turns.idle, c)
}
