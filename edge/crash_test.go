package edge

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// envCrashEdge makes the test binary an edge that kills itself while it saves.
const envCrashEdge = "ECLUSA_TEST_CRASH_EDGE"

// crashEdge writes twice, and dies at a step of saving the second configuration
// or the second claim.
func crashEdge(where string) {
	what, rest, _ := strings.Cut(where, "|")
	at, dir, _ := strings.Cut(rest, "|")
	e, err := New(Options{
		Name: "edge-1", StateDir: dir, Log: zap.NewNop(), Engine: lbtest.NewFakeEngine(), Checker: healthcheck.New(healthcheck.Options{}),
		Clusters: map[lb.Cluster]lb.Policy{"prod": {AddressRanges: []netip.Prefix{netip.MustParsePrefix("192.0.0.0/16")}}},
	})
	if err != nil {
		panic(err)
	}
	c, ctx := e.clusters["prod"], context.Background()
	epoch, err := c.Claim(ctx, testClaim)
	if err == nil {
		_, err = c.Set(ctx, lb.Write{Epoch: epoch, Config: testConfig(1, 3, 3)})
	}
	if err != nil {
		panic(err)
	}
	die := func(s step) error {
		if string(s) == at {
			return syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		return nil
	}
	if what == "claim" {
		c.leaseFile.before = die
		_, _ = c.Claim(ctx, testClaim)
	} else {
		c.configFile.before = die
		_, _ = c.Set(ctx, lb.Write{Epoch: epoch, Config: testConfig(2, 5, 5)})
	}
	select {} // the signal is on its way
}

// Whenever an edge is killed, the next one serves what was set before or after,
// never nothing and never a mixture, and no epoch is given out twice.
func TestKilledEdgeServesOneOrTheOther(t *testing.T) {
	for _, what := range []string{"config", "claim"} {
		for _, at := range steps {
			t.Run(what+" "+string(at), func(t *testing.T) {
				dir := t.TempDir()
				c := exec.Command(os.Args[0])
				c.Env = append(os.Environ(), envCrashEdge+"="+what+"|"+string(at)+"|"+dir)
				err := c.Run()
				if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("the process ended with %v; want SIGKILL", err)
				}
				synctest.Test(t, func(t *testing.T) { servesOneOrTheOther(t, dir, what, at) })
			})
		}
	}
}

func servesOneOrTheOther(t *testing.T, dir, what string, at step) {
	r := newRigIn(t, dir)
	r.run()
	defer r.stop()
	renamed := at == stepSyncDir || at == stepDone
	want, counter := 3, "1"
	if renamed && what == "config" {
		want = 5
	}
	if renamed && what == "claim" {
		counter = "2"
	}
	table := r.table("the first table", func(lb.Table) bool { return true })
	if len(table.Routes) != want {
		t.Errorf("routes: got %d; want %d", len(table.Routes), want)
	}
	config, _, err := r.edge.Cluster("prod").Config(t.Context())
	if err != nil || len(config.LoadBalancers) != want || len(config.Nodes) != want {
		t.Errorf("configuration: got %d load balancers and %d nodes, %v; want %d of each", len(config.LoadBalancers), len(config.Nodes), err, want)
	}
	d, err := r.edge.Cluster("prod").Status(t.Context(), "")
	if err != nil || !strings.HasSuffix(string(d.Epoch), "."+counter) {
		t.Errorf("epoch: got %q, %v; want number %s", d.Epoch, err, counter)
	}
	if next := r.claim("prod"); next == d.Epoch {
		t.Errorf("the next claim gave the epoch %q again", next)
	}
	if _, err := os.Stat(filepath.Join(dir, "clusters", "prod", configName)); err != nil {
		t.Error(err)
	}
}
