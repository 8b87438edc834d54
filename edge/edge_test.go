package edge

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

func TestServesWhatWasSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t)
		b.run()
		defer b.stop()
		epoch := b.claim("prod")
		r := b.set("prod", epoch, testConfig(1, 2, 3))
		if !r.Durable || r.Digest == "" {
			t.Errorf("receipt: got %+v; want a durable one", r)
		}
		table := b.table("all nodes active", is(map[lb.NodeName]lb.BackendState{"n1": lb.Active, "n2": lb.Active, "n3": lb.Active}))
		if len(table.Routes) != 2 {
			t.Errorf("routes: got %d; want 2", len(table.Routes))
		}
		s := b.status("prod", "applied", func(s lb.Status) bool { return s.Revision == 1 && len(s.LoadBalancers) == 2 })
		if s.Digest != r.Digest || s.Epoch != epoch || !s.Durable || !s.LoadBalancers["u1"].Applied {
			t.Errorf("status: got %+v; want digest %q, epoch %q, durable and applied", s, r.Digest, epoch)
		}
		b.status("prod", "up", func(s lb.Status) bool {
			return s.Checks["http:10256/healthz"]["n3"].State == healthcheck.Up
		})
		if got := b.announcer.Held(); len(got) != 2 || got[0] != netip.MustParseAddr("192.0.0.1") {
			t.Errorf("announced: got %v; want two addresses", got)
		}
		// Another cluster knows nothing of it.
		c, digest, err := b.edge.Cluster("dev").Config(t.Context())
		if err != nil || digest != "" || len(c.LoadBalancers) != 0 {
			t.Errorf("config of another cluster: got %+v, %q, %v; want nothing", c, digest, err)
		}
		if b.edge.Cluster("stranger") != nil {
			t.Error("a cluster that is not served: got a balancer; want nil")
		}
		b.stop()
		if !b.engine.IsShutdown() {
			t.Error("the engine was not shut down")
		}
		if b.engine.Overlaps() > 0 {
			t.Error("the engine's Set was called concurrently")
		}
	})
}

func TestSetRefuses(t *testing.T) {
	b := newRig(t)
	prod := b.edge.Cluster("prod")
	if _, err := prod.Set(t.Context(), lb.Write{}); !errors.Is(err, lb.ErrStaleEpoch) {
		t.Errorf("without a claim: got %v; want ErrStaleEpoch", err)
	}
	stale := b.claim("prod")
	epoch := b.claim("prod")
	if epoch == stale {
		t.Error("an equal claim gave the same epoch; want a new one")
	}
	r := b.set("prod", epoch, testConfig(5, 10, 10))
	tooMany := testConfig(6, 0, 1001)
	for _, c := range []struct {
		name string
		w    lb.Write
		err  error
	}{
		{"stale epoch", lb.Write{Epoch: stale, Config: testConfig(6, 10, 10)}, lb.ErrStaleEpoch},
		{"other base", lb.Write{Epoch: epoch, Base: "other", Config: testConfig(6, 10, 10)}, lb.ErrBaseDiffers},
		{"older revision", lb.Write{Epoch: epoch, Base: r.Digest, Config: testConfig(4, 10, 10)}, lb.ErrConflict},
		{"too many nodes", lb.Write{Epoch: epoch, Config: tooMany}, lb.ErrExhausted},
		{"removals", lb.Write{Epoch: epoch, Config: testConfig(6, 4, 10)}, lb.ErrRemovalHeld},
	} {
		if _, err := prod.Set(t.Context(), c.w); !errors.Is(err, c.err) {
			t.Errorf("%s: got %v; want %v", c.name, err, c.err)
		}
	}
	if _, digest, err := prod.Config(t.Context()); err != nil || digest != r.Digest {
		t.Errorf("after refusals: got %q, %v; want the digest of before", digest, err)
	}
	// A new leader may begin with a lower revision.
	if r := b.set("prod", b.claim("prod"), testConfig(1, 10, 10)); r.Digest == "" {
		t.Error("lower revision in a new epoch: no digest")
	}
}

func TestEqualSetChangesNothing(t *testing.T) {
	b := newRig(t)
	epoch := b.claim("prod")
	first := b.set("prod", epoch, testConfig(1, 3, 3))
	path := filepath.Join(b.dir, "clusters", "prod", configName)
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if again := b.set("prod", epoch, testConfig(1, 3, 3)); again != first {
		t.Errorf("got %+v; want %+v", again, first)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("the state file was written again (%v)", err)
	}
}

func TestRestartServesTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t)
		b.run()
		epoch := b.claim("prod")
		r := b.set("prod", epoch, testConfig(1, 2, 2))
		b.probes.say("10.0.0.2:10256", errRefused)
		b.probes.say("10.0.0.2:30000", errRefused)
		b.table("n2 is dead", is(map[lb.NodeName]lb.BackendState{"n1": lb.Active, "n2": lb.Dead}))
		b.stop()

		b.open()
		b.run()
		defer b.stop()
		start := time.Now()
		table := b.table("the first table", func(lb.Table) bool { return true })
		if took := time.Since(start); took > time.Second {
			t.Errorf("the first table came after %s; want at most 1s", took)
		}
		want := map[lb.NodeName]lb.BackendState{"n1": lb.Active, "n2": lb.Dead}
		if diff := cmp.Diff(want, states(table)); diff != "" {
			t.Errorf("members of the first table (-want +got):\n%s", diff)
		}
		// The leader of before goes on with its epoch.
		config := testConfig(2, 2, 2)
		if again := b.set("prod", epoch, config); again.Digest == r.Digest {
			t.Error("a new revision has the digest of the old one")
		}
	})
}

// A starting edge waits a moment for what it does not know.
func TestFirstTableWaitsForProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t)
		b.set("prod", b.claim("prod"), testConfig(1, 1, 3))
		b.probes.say("10.0.0.3:10256", &healthcheck.Failure{Draining: true, Reason: healthcheck.HTTPStatus, Text: "HTTP 503"})
		b.run()
		defer b.stop()
		table := b.table("the first table", func(lb.Table) bool { return true })
		want := map[lb.NodeName]lb.BackendState{"n1": lb.Active, "n2": lb.Active, "n3": lb.Draining}
		if diff := cmp.Diff(want, states(table)); diff != "" {
			t.Errorf("members of the first table (-want +got):\n%s", diff)
		}
	})
}

func TestRefusedFrontendIsToldAndTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t)
		f := lb.Frontend{Addr: netip.MustParseAddr("192.0.0.1"), Port: 80, Protocol: lb.TCP}
		b.engine.Refuse(f, errors.Join(errors.New("in use by process 42"), lb.ErrAddressHeld))
		b.run()
		defer b.stop()
		b.set("prod", b.claim("prod"), testConfig(1, 2, 1))
		s := b.status("prod", "told", func(s lb.Status) bool { return s.Revision == 1 })
		got := s.LoadBalancers["u1"]
		if got.Applied || len(got.Problems) != 1 || got.Problems[0].Type != "address-held" || got.Problems[0].Field != "listeners[0]" || !strings.Contains(got.Problems[0].Detail, "process 42") {
			t.Errorf("status of the refused: got %+v; want address-held with the reason", got)
		}
		if !s.LoadBalancers["u2"].Applied {
			t.Error("the other load balancer is not applied")
		}
		if got := b.announcer.Held(); len(got) != 1 {
			t.Errorf("announced: got %v; want only the address that is served", got)
		}
		b.engine.Refuse(f, nil)
		start := time.Now()
		b.status("prod", "served after all", func(s lb.Status) bool { return s.LoadBalancers["u1"].Applied })
		if took := time.Since(start); took > 2*retryInterval {
			t.Errorf("it was tried again after %s; want about %s", took, retryInterval)
		}
		if got := b.announcer.Held(); len(got) != 2 {
			t.Errorf("announced: got %v; want both", got)
		}
	})
}

func TestMembersThatTheEngineLeavesOutAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t)
		f := lb.Frontend{Addr: netip.MustParseAddr("192.0.0.1"), Port: 80, Protocol: lb.TCP}
		b.engine.Refuse(f, &lb.MembersError{Without: map[lb.NodeName]string{"n1": "10.0.0.1 is behind a router"}})
		b.run()
		defer b.stop()
		b.set("prod", b.claim("prod"), testConfig(1, 1, 2))
		s := b.status("prod", "told", func(s lb.Status) bool { return s.Revision == 1 })
		want := lb.LoadBalancerStatus{Applied: true, Problems: []lb.Problem{
			{Type: "unsupported", Field: "pool", Detail: `192.0.0.1: is served without "n1": 10.0.0.1 is behind a router`},
		}}
		if diff := cmp.Diff(want, s.LoadBalancers["u1"]); diff != "" {
			t.Errorf("status of what is served without a member (-want +got):\n%s", diff)
		}
		if got := b.announcer.Held(); len(got) != 1 {
			t.Errorf("announced: got %v; want the address, which is served", got)
		}
	})
}

func TestEngineErrorKeepsTheStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t)
		b.run()
		defer b.stop()
		epoch := b.claim("prod")
		b.set("prod", epoch, testConfig(1, 1, 1))
		b.status("prod", "applied", func(s lb.Status) bool { return s.Revision == 1 })
		boom := errors.New("boom")
		b.engine.FailNext(boom, boom)
		b.set("prod", epoch, testConfig(2, 2, 1))
		synctest.Wait()
		d, err := b.edge.Cluster("prod").Status(t.Context(), "")
		if err != nil || d.Revision != 1 || len(d.LoadBalancers) != 1 {
			t.Errorf("status: got %+v, %v; want that of revision 1", d, err)
		}
		if got := strings.Join(b.edge.unreadiness(), "; "); !strings.Contains(got, "boom") {
			t.Errorf("readiness: got %q; want boom", got)
		}
		b.status("prod", "applied after all", func(s lb.Status) bool { return s.Revision == 2 && len(s.LoadBalancers) == 2 })
		if got := b.edge.unreadiness(); len(got) > 0 {
			t.Errorf("readiness: got %q; want nothing", got)
		}
	})
}

func TestAnnouncerErrorIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t)
		b.announcer.err = errors.New("no such interface")
		b.run()
		defer b.stop()
		b.set("prod", b.claim("prod"), testConfig(1, 1, 1))
		s := b.status("prod", "told", func(s lb.Status) bool { return s.Revision == 1 })
		if got := s.LoadBalancers["u1"]; got.Applied || len(got.Problems) != 1 || !strings.Contains(got.Problems[0].Detail, "no such interface") {
			t.Errorf("status: got %+v; want the announcer's error", got)
		}
		b.announcer.mu.Lock()
		b.announcer.err = nil
		b.announcer.mu.Unlock()
		b.status("prod", "announced", func(s lb.Status) bool { return s.LoadBalancers["u1"].Applied })
	})
}

// Connections that may still end must not lose the address under them.
func TestAddressStaysWhileItsConnectionsDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t)
		b.run()
		defer b.stop()
		epoch := b.claim("prod")
		b.set("prod", epoch, testConfig(1, 2, 1))
		b.status("prod", "applied", func(s lb.Status) bool { return len(s.LoadBalancers) == 2 })
		counters := []lb.RouteCounters{{Frontend: lb.Frontend{Addr: netip.MustParseAddr("192.0.0.2"), Port: 80, Protocol: lb.TCP}, Active: 1}}
		b.engine.SetCounters(counters)
		b.set("prod", epoch, testConfig(2, 1, 1))
		s := b.status("prod", "leaving", func(s lb.Status) bool { return s.Revision == 2 })
		if got, ok := s.LoadBalancers["u2"]; !ok || got.Applied || got.Problems[0].Type != "address-held" {
			t.Errorf("status while draining: got %+v, %v; want address-held", got, ok)
		}
		if got := b.announcer.Held(); len(got) != 2 {
			t.Errorf("announced while draining: got %v; want both addresses", got)
		}
		start := time.Now()
		b.status("prod", "gone", func(s lb.Status) bool { return len(s.LoadBalancers) == 1 })
		if took := time.Since(start); took < lb.DefaultDrainTimeout-time.Second || took > lb.DefaultDrainTimeout+2*lingerInterval {
			t.Errorf("released after %s; want the drain timeout", took)
		}
		if got := b.announcer.Held(); len(got) != 1 {
			t.Errorf("announced afterwards: got %v; want one address", got)
		}
		// Without connections it goes at once.
		b.engine.SetCounters(nil)
		b.set("prod", epoch, testConfig(3, 0, 1))
		s = b.status("prod", "removed", func(s lb.Status) bool { return s.Revision == 3 })
		if len(s.LoadBalancers) > 0 || len(b.announcer.Held()) > 0 {
			t.Errorf("got status %+v and addresses %v; want nothing", s.LoadBalancers, b.announcer.Held())
		}
	})
}

func TestLostStateKeepsAddressesUntilTheClusterWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t)
		b.run()
		b.set("prod", b.claim("prod"), testConfig(1, 2, 1))
		dev := testConfig(1, 1, 1)
		l := dev.LoadBalancers["u1"]
		l.Addresses = []netip.Addr{netip.MustParseAddr("198.51.0.1")}
		dev.LoadBalancers["u1"] = l
		b.set("dev", b.claim("dev"), dev)
		b.status("dev", "applied", func(s lb.Status) bool { return s.Revision == 1 })
		b.stop()
		for _, name := range []string{configName, configName + ".previous"} {
			if err := os.WriteFile(filepath.Join(b.dir, "clusters", "prod", name), []byte("garbage"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		b.open()
		b.run()
		defer b.stop()
		b.table("the other cluster's table", func(t lb.Table) bool { return len(t.Routes) == 1 })
		synctest.Wait()
		if got := b.announcer.Held(); len(got) != 3 {
			t.Errorf("announced after the loss: got %v; want all three", got)
		}
		if got := strings.Join(b.edge.unreadiness(), "; "); !strings.Contains(got, `state of cluster "prod" was lost`) {
			t.Errorf("readiness: got %q; want the loss", got)
		}
		b.set("prod", b.claim("prod"), testConfig(2, 1, 1))
		b.status("prod", "repaired", func(s lb.Status) bool { return s.Revision == 2 })
		if got := b.announcer.Held(); len(got) != 2 {
			t.Errorf("announced after the repair: got %v; want two", got)
		}
	})
}

func TestOneEdgePerStateDirectory(t *testing.T) {
	b := newRig(t)
	if _, err := New(b.options); err == nil || !strings.Contains(err.Error(), "another edge uses it") {
		t.Errorf("a second edge: got %v; want an error", err)
	}
}
