package edge

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// duplicate returns the lock as another process would have it.
func duplicate(t *testing.T, f *os.File) *os.File {
	t.Helper()
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "lock")
}

// successor returns a rig whose edge takes over what p leaves. adopt is called
// in place of the protocol.
func (b *rig) successor(p *Paused, adopt func() error, serving func() error) *rig {
	b.t.Helper()
	will := p.Will
	will.Lock = duplicate(b.t.(*testing.T), p.Lock)
	s := &rig{t: b.t, dir: b.dir, log: b.log, probes: b.probes, announcer: b.announcer}
	s.predecessor = &Predecessor{
		Will: will,
		Adopt: func(ctx context.Context, take func(context.Context, func() (lb.Parcel, error)) error) error {
			if err := adopt(); err != nil {
				return err
			}
			parcels := []lb.Parcel{{Data: []byte("socket")}}
			return take(ctx, func() (lb.Parcel, error) {
				if len(parcels) == 0 {
					return lb.Parcel{}, io.EOF
				}
				p := parcels[0]
				parcels = nil
				return p, nil
			})
		},
		Serving: serving,
	}
	s.open()
	return s
}

func TestHandOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t)
		b.probes.say("10.0.0.2:10256", errUnavailable)
		b.run()
		epoch := b.claim("prod")
		b.set("prod", epoch, testConfig(1, 2, 2))
		up := map[lb.NodeName]lb.BackendState{"n1": lb.Active, "n2": lb.Draining}
		b.table("one member is down", is(up))

		p, err := b.edge.Pause(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var late error
		var writing sync.WaitGroup
		writing.Go(func() {
			_, late = b.edge.Cluster("prod").Set(t.Context(), lb.Write{Epoch: epoch, Config: testConfig(2, 2, 2)})
		})
		synctest.Wait()

		released := make(chan struct{})
		s := b.successor(p, func() error { return nil }, func() error {
			if err := p.Release(); err != nil {
				t.Error(err)
			}
			close(released)
			return nil
		})
		before := time.Now()
		s.run()
		<-released
		if took := time.Since(before); took > 0 {
			t.Errorf("the successor serves after %s; want at once, since it was told what is known of the members", took)
		}
		if got := s.engine.Table(); !is(up)(got) {
			t.Errorf("the successor's first table: got %v; want %v", states(got), up)
		}
		if got := s.engine.Adopted(); len(got) != 1 || string(got[0].Data) != "socket" {
			t.Errorf("adopted: got %v; want the parcel", got)
		}
		writing.Wait()
		if !errors.Is(late, errReleased) {
			t.Errorf("a write that waited: got %v; want that another process serves", late)
		}
		synctest.Wait()
		if !b.engine.IsShutdown() {
			t.Error("the engine of before was not told to drain")
		}
		b.probes.say("10.0.0.1:10256", errRefused) // whatever happens now, it is the successor's affair
		tables := len(b.engine.Tables())
		s.set("prod", epoch, testConfig(3, 3, 2)) // nobody has to claim again
		s.status("prod", "the write is applied", func(s lb.Status) bool { return s.Revision == 3 })
		if got := len(b.engine.Tables()); got != tables {
			t.Errorf("the edge of before has set %d more tables; want none", got-tables)
		}
		b.stop()
		if _, err := Lock(b.dir); !errors.Is(err, ErrLocked) {
			t.Errorf("lock after the end of the edge of before: got %v; want ErrLocked", err)
		}
		s.stop()
		lock, err := Lock(b.dir)
		if err != nil {
			t.Fatalf("lock after the end of both: %v", err)
		}
		lock.Close()
	})
}

func TestResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t)
		b.run()
		epoch := b.claim("prod")
		b.set("prod", epoch, testConfig(1, 1, 1))
		p, err := b.edge.Pause(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		files := b.files()
		var writing sync.WaitGroup
		writing.Go(func() { b.set("prod", epoch, testConfig(2, 2, 1)) })
		time.Sleep(5 * time.Minute) // nothing happens in the meantime
		if got := b.files(); got != files {
			t.Errorf("files of a paused edge: got %s; want %s as before", got, files)
		}

		failed := errors.New("no memory")
		s := b.successor(p, func() error { return failed }, func() error { t.Error("serves"); return nil })
		if err := s.edge.Run(t.Context()); !errors.Is(err, failed) {
			t.Errorf("a successor that cannot adopt: got %v; want %v", err, failed)
		}
		s.stop = func() {}
		if n := len(s.engine.Tables()); n > 0 {
			t.Errorf("a successor that cannot adopt has set %d tables", n)
		}
		s = b.successor(p, func() error { return nil }, func() error { t.Error("serves"); return nil })
		s.engine.FailNext(failed)
		if err := s.edge.Run(t.Context()); !errors.Is(err, failed) {
			t.Errorf("a successor whose engine does not take the table: got %v; want %v", err, failed)
		}
		s.stop = func() {}
		p.Resume()
		writing.Wait()
		b.status("prod", "the write that waited is applied", func(s lb.Status) bool { return s.Revision == 2 })
		b.stop()
	})
}

// files returns names, sizes and times of the files in the state directory.
func (b *rig) files() string {
	var all []string
	_ = filepath.Walk(b.dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() {
			all = append(all, path, info.ModTime().String())
		}
		return err
	})
	return strings.Join(all, " ")
}

func TestPauseRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t)
		b.run()
		epoch := b.claim("prod")
		b.edge.clusters["prod"].configFile.before = func(step) error { return errors.New("no space") }
		b.set("prod", epoch, testConfig(1, 1, 1))
		if _, err := b.edge.Pause(t.Context()); err == nil || !strings.Contains(err.Error(), `cluster "prod" is served but not saved`) {
			t.Errorf("with a full disk: got %v; want a refusal", err)
		}
		b.edge.clusters["prod"].configFile.before = nil
		b.set("prod", epoch, testConfig(2, 1, 1))
		p, err := b.edge.Pause(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// Somebody has changed the file of the state.
		will := p.Will
		will.Lock = duplicate(t, p.Lock)
		will.Digests = map[lb.Cluster]lb.Digest{"prod": "0123"}
		b.options.Predecessor = &Predecessor{Will: will}
		if _, err := New(b.options); err == nil || !strings.Contains(err.Error(), `cluster "prod"`) || !strings.Contains(err.Error(), "0123") {
			t.Errorf("a successor that reads something else: got %v; want an error that names cluster and digest", err)
		}
		p.Resume()
		b.stop()
		if _, err := b.edge.Pause(t.Context()); err == nil {
			t.Error("an edge that has stopped was paused")
		}
	})
}

// Whoever starts an edge again may wait for the end of all its processes: those
// that drain must not outlive the one that serves, however many came in between.
func TestDrainingEndsWithTheSuccessor(t *testing.T) {
	for _, c := range []struct {
		name    string
		stopped bool
		want    error
	}{
		{"crashed", false, errAbandoned},
		{"stopped", true, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newRig(t)
			b.edge.endsWithSuccessor, b.edge.drainTimeout = true, 2*successorInterval
			engine := &busyEngine{Engine: b.engine, cut: make(chan struct{})}
			b.edge.engine = engine
			ended := make(chan error, 1)
			go func() { ended <- b.edge.Run(t.Context()) }()
			epoch := b.claim("prod")
			b.set("prod", epoch, testConfig(1, 1, 1))
			p, err := b.edge.Pause(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			lock := duplicate(t, p.Lock) // as the successor has it, and the one after that
			if err := p.Release(); err != nil {
				t.Fatal(err)
			}
			select {
			case <-engine.cut:
				t.Fatal("connections were cut while another process serves")
			case <-time.After(2 * successorInterval):
			}
			if c.stopped {
				if err := mark(lock); err != nil {
					t.Fatal(err)
				}
			}
			start := time.Now()
			lock.Close()
			select {
			case err := <-ended:
				if !errors.Is(err, c.want) {
					t.Errorf("got %v; want %v", err, c.want)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("the process of before outlives the one that has taken over")
			}
			if took := time.Since(start); c.stopped && took < b.edge.drainTimeout {
				t.Errorf("ended %s after its successor was stopped; want the drain timeout of %s", took, b.edge.drainTimeout)
			}
			next, err := New(b.options)
			if err != nil {
				t.Fatalf("start again: %v", err)
			}
			if isMarked(next.lock) {
				t.Error("the mark of the edge before was not taken away")
			}
			next.Close()
		})
	}
}

// An address that is held for its last connections is held by the successor too,
// which does not see them, for as long as they were promised; and by the next one.
func TestLeavingAddressIsHandedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t)
		b.run()
		epoch := b.claim("prod")
		b.set("prod", epoch, testConfig(1, 3, 1))
		b.status("prod", "applied", func(s lb.Status) bool { return len(s.LoadBalancers) == 3 })
		active := func(addr string) lb.RouteCounters {
			return lb.RouteCounters{Frontend: lb.Frontend{Addr: netip.MustParseAddr(addr), Port: 80, Protocol: lb.TCP}, Active: 1}
		}
		b.engine.SetCounters([]lb.RouteCounters{active("192.0.0.2"), active("192.0.0.3")})
		b.set("prod", epoch, testConfig(2, 1, 1))
		start := time.Now()
		b.status("prod", "leaving", func(s lb.Status) bool { return s.Revision == 2 })
		all := []*rig{b}
		for range 2 {
			before := all[len(all)-1]
			p, err := before.edge.Pause(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			next := before.successor(p, func() error { return nil }, p.Release)
			next.run()
			defer next.stop()
			synctest.Wait()
			all = append(all, next)
			time.Sleep(3 * lingerInterval)
			if got := next.announcer.Held(); len(got) != 3 {
				t.Errorf("announced by the successor: got %v; want the addresses that are leaving too", got)
			}
		}
		last := all[2]
		s := last.status("prod", "told", func(s lb.Status) bool { return s.Revision == 2 })
		if got := s.LoadBalancers["u2"]; len(got.Leaving) != 1 || got.Problems[0].Type != "address-held" || !strings.Contains(got.Problems[0].Detail, `"default/s2"`) {
			t.Errorf("status of the successor: got %+v; want address-held with the name", got)
		}
		last.set("prod", epoch, testConfig(3, 2, 1)) // u2 is back, and stays
		last.status("prod", "gone", func(s lb.Status) bool { return s.Revision == 3 && len(s.LoadBalancers) == 2 })
		if took := time.Since(start); took < lb.DefaultDrainTimeout-time.Second || took > lb.DefaultDrainTimeout+2*lingerInterval {
			t.Errorf("released after %s; want what is left of the drain timeout", took)
		}
		if got := last.announcer.Held(); len(got) != 2 {
			t.Errorf("announced afterwards: got %v; want two addresses", got)
		}
	})
}

// An edge that was asked to stop is not handed over any more.
func TestStoppingEdgeIsNotPaused(t *testing.T) {
	b := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := &pauseRequest{ctx: t.Context(), answer: make(chan error, 1)}
	if released := (&loop{Edge: b.edge}).pause(ctx, r); released || !errors.Is(<-r.answer, errStopping) {
		t.Errorf("got released %v; want a refusal", released)
	}
}

// A process that was asked to stop says so to those that drain.
func TestStopIsMarked(t *testing.T) {
	b := newRig(t)
	b.run()
	b.claim("prod")
	b.stop()
	lock, err := Lock(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if !isMarked(lock) {
		t.Error("an edge that was stopped looks as if it had crashed")
	}
}

// Who is shut out after a hand-over is shut out of the process before too.
func TestRangesReachTheDraining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t)
		engine := &busyEngine{Engine: b.engine, cut: make(chan struct{}), restricted: make(chan map[lb.Owner][]netip.Prefix, 10)}
		b.edge.engine = engine
		b.run()
		epoch := b.claim("prod")
		b.set("prod", epoch, testConfig(1, 2, 1))
		b.status("prod", "applied", func(s lb.Status) bool { return len(s.LoadBalancers) == 2 })
		p, err := b.edge.Pause(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		next := b.successor(p, func() error { return nil }, p.Release)
		next.run()
		if got := <-engine.restricted; len(got) != 0 {
			t.Errorf("before a change: got %v; want nobody restricted", got)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(engine.restricted); n != 0 {
			t.Errorf("without a change: got %d calls; want none", n)
		}
		config := testConfig(2, 2, 1)
		l := config.LoadBalancers["u1"]
		l.SourceRanges = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
		config.LoadBalancers["u1"] = l
		start := time.Now()
		next.set("prod", epoch, config)
		got := <-engine.restricted
		if all := got[lb.Owner{Cluster: "prod", UID: "u1"}]; len(got) != 1 || len(all) != 1 || all[0] != l.SourceRanges[0] {
			t.Errorf("after a change: got %v; want the range of u1", got)
		}
		if took := time.Since(start); took > rangesInterval {
			t.Errorf("after a change: got it after %s; want %s", took, rangesInterval)
		}
		next.stop()
		b.stop()
	})
}

// busyEngine has connections that never end by themselves.
type busyEngine struct {
	lb.Engine
	cut        chan struct{}
	restricted chan map[lb.Owner][]netip.Prefix
}

func (e *busyEngine) Restrict(allowed map[lb.Owner][]netip.Prefix) {
	if e.restricted != nil {
		e.restricted <- allowed
	}
}

func (e *busyEngine) Shutdown(ctx context.Context) error {
	<-ctx.Done()
	close(e.cut)
	return nil
}
