package edge

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/lb"
)

// BenchmarkApply is one node's change of health under 5,000 load balancers with
// 500 nodes: from the result to the engine and the status.
func BenchmarkApply(b *testing.B) {
	r, l := scaled(b, 5000, 500)
	defer r.stop()
	key := anyMember(l)
	b.ReportAllocs()
	for b.Loop() {
		// A member that was down in the table is up now.
		delete(l.health, key)
		l.work(b.Context(), false)
	}
}

// BenchmarkResync is a repair of the same when nothing has changed.
func BenchmarkResync(b *testing.B) {
	r, l := scaled(b, 5000, 500)
	defer r.stop()
	for b.Loop() {
		l.work(b.Context(), true)
	}
}

// BenchmarkQuiet is a wake-up that turns out to change nothing.
func BenchmarkQuiet(b *testing.B) {
	r, l := scaled(b, 5000, 500)
	defer r.stop()
	for b.Loop() {
		l.work(b.Context(), false)
	}
}

// BenchmarkSet is one node's change written by the cluster: encoding, saving,
// publishing.
func BenchmarkSet(b *testing.B) {
	r, _ := scaled(b, 5000, 500)
	defer r.stop()
	epoch := *r.edge.clusters["prod"].epoch.Load()
	configs := [2]lb.Config{testConfig(2, 5000, 500), testConfig(2, 5000, 500)}
	n := configs[1].Nodes["n7"]
	n.Draining = true
	configs[1].Nodes["n7"] = n
	i := 0
	for b.Loop() {
		i++
		configs[i%2].Revision = uint64(i + 2)
		r.set("prod", epoch, configs[i%2])
	}
}

// BenchmarkOpen is the start of an edge with that state.
func BenchmarkOpen(b *testing.B) {
	r, _ := scaled(b, 5000, 500)
	r.stop()
	for b.Loop() {
		r.open()
		r.stop()
	}
}

// scaled returns an edge with a configuration of that size, and its loop, which
// the caller turns by hand.
func scaled(t testing.TB, lbs, nodes int) (*rig, *loop) {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), log: zap.NewNop()}
	r.open()
	r.set("prod", r.claim("prod"), testConfig(1, lbs, nodes))
	l := &loop{Edge: r.edge, seeds: r.edge.loadHealth()}
	l.work(t.Context(), true)
	return r, l
}

func anyMember(l *loop) memberKey {
	for key := range l.health {
		return key
	}
	return memberKey{}
}

// One cluster that writes without end does not make another one wait.
func TestClustersDoNotWaitForOneAnother(t *testing.T) {
	r := newRig(t)
	dev := r.edge.clusters["dev"]
	stuck, release := make(chan struct{}), make(chan struct{})
	dev.turn <- struct{}{}
	dev.configFile.before = func(s step) error {
		if s == stepSync {
			close(stuck)
			<-release
		}
		return nil
	}
	<-dev.turn
	epoch := r.claim("dev")
	var wg sync.WaitGroup
	wg.Go(func() { r.set("dev", epoch, testConfig(1, 1, 1)) })
	<-stuck // the disk hangs in the middle of dev's save
	r.set("prod", r.claim("prod"), testConfig(1, 1, 1))
	if _, _, err := dev.Config(t.Context()); err != nil {
		t.Errorf("reading while a save hangs: %v", err)
	}
	if _, err := dev.Status(t.Context(), ""); err != nil {
		t.Errorf("the status while a save hangs: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := dev.Set(ctx, lb.Write{Epoch: epoch, Config: testConfig(2, 1, 1)}); err == nil {
		t.Error("a second write while a save hangs: got nil; want the context's error")
	}
	close(release)
	wg.Wait()
}

// Many writers at once leave one of their configurations, saved and whole.
func TestConcurrentWriters(t *testing.T) {
	r := newRig(t)
	epoch := r.claim("prod")
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			// Revisions may come too late, and are refused then.
			_, _ = r.edge.Cluster("prod").Set(t.Context(), lb.Write{Epoch: epoch, Config: testConfig(uint64(i), i, 3)})
		})
	}
	wg.Wait()
	c, digest, err := r.edge.Cluster("prod").Config(t.Context())
	if err != nil || c.Revision != 19 || len(c.LoadBalancers) != 19 {
		t.Fatalf("got revision %d with %d load balancers, %v; want 19 with 19", c.Revision, len(c.LoadBalancers), err)
	}
	r.stop()
	r.open()
	if _, again, err := r.edge.Cluster("prod").Config(t.Context()); err != nil || again != digest {
		t.Errorf("after a restart: got digest %q, %v; want %q", again, err, digest)
	}
	if d, err := r.edge.Cluster("prod").Status(t.Context(), ""); err != nil || d.Epoch != epoch {
		t.Errorf("after a restart: got epoch %q, %v; want %q", d.Epoch, err, fmt.Sprint(epoch))
	}
}
