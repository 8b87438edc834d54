package lab

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestUntil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		err := until(t.Context(), time.Minute, func(context.Context) error {
			if calls++; calls < 5 {
				return errors.New("not yet")
			}
			return nil
		})
		if err != nil || calls != 5 {
			t.Errorf("got %v after %d calls, want nil after 5", err, calls)
		}
		last := errors.New("still not")
		start := time.Now()
		err = until(t.Context(), time.Minute, func(context.Context) error { return last })
		if !errors.Is(err, last) || time.Since(start) != time.Minute {
			t.Errorf("got %v after %v, want %v after a minute", err, time.Since(start), last)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := until(ctx, time.Minute, func(context.Context) error { return last }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the end of the whole context", err)
		}
	})
}

func TestParseRSS(t *testing.T) {
	got, err := parseRSS("Name:\tx\nVmHWM:\t  99 kB\nVmRSS:\t  1234 kB\nThreads:\t1\n")
	if err != nil || got != 1234<<10 {
		t.Errorf("got %d, %v; want %d", got, err, 1234<<10)
	}
	if _, err := parseRSS("Name:\tkthreadd\n"); err == nil {
		t.Error("a kernel thread: no error")
	}
}

func TestAnsweringNode(t *testing.T) {
	got, err := answeringNode("hello from web-1 on node-2, you are 172.31.0.10:4711\n")
	if err != nil || got != "node-2" {
		t.Errorf("got %q, %v; want node-2", got, err)
	}
	if _, err := answeringNode("404 page not found"); err == nil {
		t.Error("a foreign page: no error")
	}
}

func TestLiteral(t *testing.T) {
	for _, good := range []string{"192.0.2.1:80", "[fd00::1]:80", "[fe80::1%eth0]:80"} {
		if err := literal(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"localhost:80", "192.0.2.1", ""} {
		if err := literal(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestQuote(t *testing.T) {
	if got, want := quote("/it's here"), `'/it'\''s here'`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestPinnedVersions(t *testing.T) {
	for _, p := range append(slices.Clone(kubernetesBundle.programs), helmBundle.programs...) {
		got, err := p.version("..")
		if err != nil || !strings.HasPrefix(got, "v") {
			t.Errorf("%s: got %q, %v; want v and a number", p.name, got, err)
		}
	}
	if got, err := kubernetesBundle.versions(".."); err != nil || len(got) != 1 || !strings.HasPrefix(got[0], "v1.") {
		t.Errorf("Kubernetes: got %q, %v; want one v1.something", got, err)
	}
	if got, err := helmBundle.versions(".."); err != nil || len(got) != 2 || !strings.HasPrefix(got[0], "v3.") || !strings.HasPrefix(got[1], "v4.") {
		t.Errorf("Helm: got %q, %v; want one v3.something and one v4.something", got, err)
	}
	if got, err := pinned("..", "helm3", "example.com/other"); err == nil {
		t.Errorf("a module that is not required: got %q, want an error", got)
	}
	if _, err := pinned(t.TempDir(), "helm3", "helm.sh/helm/v3"); err == nil {
		t.Error("no go.mod: no error")
	}
}

func TestLinkerFlags(t *testing.T) {
	for _, p := range []program{kubernetesBundle.programs[0], helmBundle.programs[0], helmBundle.programs[1]} {
		flags, err := p.linkerFlags("..")
		version, _ := p.version("..")
		if err != nil || !strings.Contains(flags, "ersion="+version) {
			t.Errorf("%s: got %q, %v; want the version %s in it", p.name, flags, err, version)
		}
	}
}

func TestCountPackages(t *testing.T) {
	var done atomic.Int64
	last := countPackages(strings.NewReader("go: downloading a v1\nb\nc\nc/d.go:1:2: what is this\n"), &done)
	if got := done.Load(); got != 3 || last[len(last)-1] != "c/d.go:1:2: what is this" {
		t.Errorf("got %d packages, last line %q", got, last)
	}
}
