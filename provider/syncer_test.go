package provider

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// soon is within what an edge that comes back must be right again.
const soon = 5 * time.Second

func TestSyncerRepairsDrift(t *testing.T) {
	short := config(7, 2, 2)
	delete(short.LoadBalancers, uid(1))
	changed := config(7, 3, 2)
	l := changed.LoadBalancers[uid(0)]
	l.MaxConnections = 5
	changed.LoadBalancers[uid(0)] = l
	for _, test := range []struct {
		name   string
		drift  func(*lbtest.FakeBalancer)
		within time.Duration
		want   string
	}{
		{"state lost", func(b *lbtest.FakeBalancer) { b.LoseState() }, 0, "load balancers: 2 missing; nodes: 2 missing; pools: 1 missing"},
		{"state lost while down", func(b *lbtest.FakeBalancer) {
			b.Down(errors.New("connection refused"))
			time.Sleep(time.Hour)
			b.LoseState()
			b.Down(nil)
		}, soon, "load balancers: 2 missing; nodes: 2 missing; pools: 1 missing"},
		{"one missing", func(b *lbtest.FakeBalancer) { _ = b.Drift(short) }, 0, "load balancers: 1 missing"},
		{"one changed, one extra", func(b *lbtest.FakeBalancer) { _ = b.Drift(changed) }, 0, "load balancers: 1 changed, 1 extra"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, "a")
				want := config(7, 2, 2)
				r.set("a", want)
				if st := r.settle(time.Minute); st.DriftRepaired != 0 {
					t.Fatalf("%d drifts repaired before there was one", st.DriftRepaired)
				}
				test.drift(r.edges["a"])
				st := r.settle(test.within)
				r.holds("a", want)
				if st.DriftRepaired != 1 || !st.Connected || st.Problem != "" {
					t.Errorf("state is %+v; want one drift repaired, connected", st)
				}
				if d := compare(want, st.Holds); !st.Known || !d.empty() {
					t.Errorf("state says that the edge holds something else: %s", d)
				}
				events := r.happened("DriftRepaired")
				if len(events) != 1 || !strings.Contains(events[0], "("+test.want+")") {
					t.Errorf("events are %q, want one with %q", events, test.want)
				}
				if st := r.settle(time.Hour); st.DriftRepaired != 1 {
					t.Errorf("%d drifts repaired an hour later, want 1", st.DriftRepaired)
				}
			})
		})
	}
}

func TestSyncerTakesARestartForNoDrift(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a")
		r.set("a", config(1, 2, 2))
		for range 20 {
			r.settle(20 * time.Second)
			r.edges["a"].Down(errors.New("connection refused"))
			r.settle(7 * time.Second)
			r.edges["a"].Restart()
			r.edges["a"].Down(nil)
			if st := r.settle(soon); !st.Connected || st.DriftRepaired != 0 {
				t.Fatalf("state is %+v; want connected, no drift", st)
			}
		}
		if n := len(r.edges["a"].Claims()); n != 1 {
			t.Errorf("edge was claimed %d times, want once: an epoch outlives restarts", n)
		}
	})
}

// TestSyncerRacesWithStatus has answers of the long poll cross writes: an answer
// from before a write must not be taken for drift.
func TestSyncerRacesWithStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a")
		for i := range 500 {
			r.set("a", config(uint64(i+1), 1+i%3, 1))
			if i%3 == 0 {
				r.edges["a"].SetMember("tcp:1", "node-000", &lb.MemberStatus{Since: time.Now()})
			}
			if i%5 == 0 {
				synctest.Wait()
			}
		}
		if st := r.settle(time.Minute); st.DriftRepaired != 0 || !st.Connected {
			t.Errorf("state is %+v; want no drift", st)
		}
		if n := r.edges["a"].Calls(lbtest.CallConfig); n != 1 {
			t.Errorf("edge was read back %d times, want once", n)
		}
	})
}

// lossy is an edge that does what it is told and whose answer is lost.
type lossy struct {
	*lbtest.FakeBalancer
	lose bool
}

func (l *lossy) Set(ctx context.Context, w lb.Write) (lb.Receipt, error) {
	r, err := l.FakeBalancer.Set(ctx, w)
	if l.lose && err == nil {
		l.lose = false
		return lb.Receipt{}, errors.New("connection reset by peer")
	}
	return r, err
}

func TestSyncerLosesAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a")
		edge := &lossy{FakeBalancer: r.edges["a"]}
		r.fleet.options.Dial = func(EdgeSpec) (lb.Balancer, error) { return edge, nil }
		r.set("a", config(1, 1, 1))
		r.settle(0)
		edge.lose = true
		r.set("a", config(2, 2, 1))
		if st := r.settle(0); st.Known || st.Connected {
			t.Errorf("state is %+v; want not connected, and nothing known about what the edge holds", st)
		}
		st := r.settle(soon)
		r.holds("a", config(2, 2, 1))
		if st.DriftRepaired != 0 || !st.Known || !st.Connected {
			t.Errorf("state is %+v; want connected, no drift", st)
		}
	})
}

// liar is an edge that acknowledges one write and forgets it.
type liar struct {
	*lbtest.FakeBalancer
	lies bool
}

func (l *liar) Set(ctx context.Context, w lb.Write) (lb.Receipt, error) {
	if l.lies {
		l.lies = false
		return lb.Receipt{Digest: "invented", Durable: true}, nil
	}
	return l.FakeBalancer.Set(ctx, w)
}

func TestSyncerWantsProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a")
		edge := &liar{FakeBalancer: r.edges["a"], lies: true}
		r.fleet.options.Dial = func(EdgeSpec) (lb.Balancer, error) { return edge, nil }
		r.set("a", config(1, 1, 1))
		st := r.settle(soon)
		r.holds("a", config(1, 1, 1))
		if !st.Connected || st.DriftRepaired != 1 {
			t.Errorf("state is %+v; want connected, one drift repaired", st)
		}
	})
}

func TestSyncerStaleEpoch(t *testing.T) {
	for _, test := range []struct {
		name  string
		learn func(*rig) // how we learn of it
	}{
		{"from the status", func(r *rig) { r.edges["a"].Steal() }},
		{"from a write", func(r *rig) {
			r.edges["a"].FailNext(lbtest.CallSet, fmt.Errorf("set: %w", lb.ErrStaleEpoch))
			r.set("a", config(2, 2, 1))
		}},
	} {
		t.Run(test.name+", another leads", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, "a", "b")
				r.set("a", config(1, 1, 1))
				r.set("b", config(1, 1, 1))
				r.settle(time.Minute)
				r.with(func() { r.lease = fmt.Errorf("held by %q: %w", "other", ErrNotLeader) })
				test.learn(r)
				if err := <-r.done; !errors.Is(err, ErrNotLeader) {
					t.Errorf("Run returned %v, want ErrNotLeader", err)
				}
				if n := len(r.edges["a"].Claims()); n != 1 {
					t.Errorf("edge was claimed %d times, want once: we do not lead any more", n)
				}
				r.holds("a", config(1, 1, 1))
			})
		})
		t.Run(test.name+", we lead", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, "a")
				r.set("a", config(1, 1, 1))
				r.settle(time.Minute)
				test.learn(r)
				st := r.settle(0)
				if n := len(r.edges["a"].Claims()); n != 2 || !st.Connected {
					t.Errorf("edge was claimed %d times, want twice; state %+v", n, st)
				}
				r.set("a", config(3, 3, 1))
				r.settle(0)
				r.holds("a", config(3, 3, 1))
			})
		})
	}
}

func TestSyncerWithoutLeaseKeepsItsEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a")
		r.set("a", config(1, 1, 1))
		r.settle(time.Minute)
		r.with(func() { r.lease = errors.New("API server is down") })
		r.edges["a"].Down(errors.New("no route to host"))
		r.settle(time.Minute)
		r.edges["a"].Down(nil)
		r.set("a", config(2, 2, 1))
		r.settle(soon)
		r.holds("a", config(2, 2, 1))

		r.edges["a"].LoseState()
		if st := r.settle(time.Minute); !strings.Contains(st.Problem, "API server is down") || st.Connected {
			t.Errorf("state is %+v; want the Lease as the problem", st)
		}
		r.with(func() { r.lease = nil })
		r.settle(soon)
		r.holds("a", config(2, 2, 1))
	})
}

func TestSyncerClaimRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a")
		r.edges["a"].FailNext(lbtest.CallClaim, fmt.Errorf("pinned to another cluster: %w", lb.ErrConflict))
		r.set("a", config(1, 1, 1))
		if st := r.settle(0); st.Connected || !strings.Contains(st.Problem, "pinned to another cluster") {
			t.Errorf("state is %+v; want the refusal as the problem", st)
		}
		r.settle(soon)
		r.holds("a", config(1, 1, 1))
	})
}

func TestSyncerPaused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a")
		r.set("a", config(1, 1, 1), paused)
		if st := r.settle(time.Minute); !st.Connected || st.Status.Cursor == "" || st.Problem != "" {
			t.Errorf("state is %+v; want connected, with a status", st)
		}
		if r.edges["a"].Calls(lbtest.CallSet)+r.edges["a"].Calls(lbtest.CallClaim) != 0 {
			t.Error("a paused edge was written to")
		}
		r.set("a", config(2, 2, 1))
		r.settle(0)
		r.holds("a", config(2, 2, 1))

		r.set("a", config(3, 3, 1), paused)
		r.settle(0)
		r.holds("a", config(2, 2, 1))
		other := config(2, 1, 1)
		if err := r.edges["a"].Drift(other); err != nil {
			t.Fatal(err)
		}
		st := r.settle(time.Hour)
		r.holds("a", other)
		if st.DriftRepaired != 0 || len(st.Holds.LoadBalancers) != 1 {
			t.Errorf("state is %+v; want the drift seen and not repaired", st)
		}
		if n := r.edges["a"].Calls(lbtest.CallConfig); n > 4 {
			t.Errorf("paused edge was read back %d times", n)
		}
		r.set("a", config(3, 3, 1))
		st = r.settle(0)
		r.holds("a", config(3, 3, 1))
		if st.DriftRepaired != 1 {
			t.Errorf("%d drifts repaired, want 1", st.DriftRepaired)
		}
	})
}

func TestSyncerRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a")
		r.set("a", config(1, 1, 1))
		r.settle(time.Minute)
		errs := make([]error, 1000)
		for i := range errs {
			errs[i] = fmt.Errorf("too many listeners: %w", lb.ErrExhausted)
		}
		r.edges["a"].FailNext(lbtest.CallSet, errs[:999]...)
		r.set("a", config(2, 2, 1))
		st := r.settle(0)
		if !st.Connected || !strings.Contains(st.Problem, "too many listeners") || !st.Known || st.Holds.Revision != 1 {
			t.Errorf("state is %+v; want connected, with the refusal as the problem", st)
		}
		before := r.edges["a"].Calls(lbtest.CallSet)
		r.settle(10 * time.Minute)
		if n := r.edges["a"].Calls(lbtest.CallSet) - before; n < 600/6 || n > 600/2 {
			t.Errorf("a refused configuration was tried %d times in ten minutes, want once in 2.5 to 5 s", n)
		}
		// The poll goes on meanwhile.
		r.edges["a"].SetMember("tcp:1", "node-000", &lb.MemberStatus{})
		if st := r.settle(0); len(st.Status.Checks) != 1 {
			t.Error("health does not arrive while a configuration is refused")
		}
	})
}

func TestSyncerSchema(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a")
		r.edges["a"].SetInfo(lb.Info{Name: "a", Version: "v9", Schema: "v2"})
		r.set("a", config(1, 1, 1))
		st := r.settle(time.Minute)
		if st.Connected || !strings.Contains(st.Problem, `reads schema "v2" and this program writes "v1"`) {
			t.Errorf("problem is %q, want both schemas", st.Problem)
		}
		if r.edges["a"].Calls(lbtest.CallSet) != 0 {
			t.Error("an edge of another schema was written to")
		}
	})
}

func TestSilentEdgeComesBack(t *testing.T) {
	for _, silent := range []time.Duration{time.Second, 10 * time.Second, 44 * time.Second, 5 * time.Minute} {
		t.Run(silent.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, "a")
				r.set("a", config(1, 1, 1))
				r.settle(time.Minute)
				var releases []func()
				for _, call := range []lbtest.Call{lbtest.CallInfo, lbtest.CallClaim, lbtest.CallConfig, lbtest.CallSet, lbtest.CallStatus} {
					releases = append(releases, r.edges["a"].Hold(call))
				}
				r.set("a", config(2, 2, 1))
				r.settle(silent)
				for _, f := range releases {
					f()
				}
				r.settle(soon)
				r.holds("a", config(2, 2, 1))
			})
		})
	}
}

func TestSyncerIsPatientWithSlowLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a")
		slow := &slowEdge{FakeBalancer: r.edges["a"], takes: 35 * time.Second}
		r.fleet.options.Dial = func(EdgeSpec) (lb.Balancer, error) { return slow, nil }
		r.set("a", config(1, 1, 1))
		r.settle(3 * time.Minute)
		r.holds("a", config(1, 1, 1))
	})
}

// slowEdge needs time for every write.
type slowEdge struct {
	*lbtest.FakeBalancer
	takes time.Duration
}

func (e *slowEdge) Set(ctx context.Context, w lb.Write) (lb.Receipt, error) {
	select {
	case <-time.After(e.takes):
		return e.FakeBalancer.Set(ctx, w)
	case <-ctx.Done():
		return lb.Receipt{}, ctx.Err()
	}
}

func TestBackoff(t *testing.T) {
	for failures := range 100 {
		full := maxBackoff
		if failures < 3 {
			full = minBackoff << failures
		}
		for range 100 {
			if d := backoff(failures, maxBackoff); d < full/2 || d > full {
				t.Fatalf("after %d failures: %s, want %s to %s", failures, d, full/2, full)
			}
		}
	}
}

func TestSyncerTriesAtABoundedRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a")
		r.edges["a"].Down(errors.New("connection refused"))
		r.set("a", config(1, 1, 1))
		r.settle(10 * time.Minute)
		if n := r.edges["a"].Calls(lbtest.CallInfo); n < 300 || n > 620 {
			t.Errorf("a dead edge was tried %d times in ten minutes, want once in one to two seconds", n)
		}
		if n := len(r.happened("Disconnected")); n != 1 {
			t.Errorf("%d events tell that the edge is gone, want 1", n)
		}
		// Something new is tried at once, but not without end.
		for i := range 100 {
			before := r.edges["a"].Calls(lbtest.CallInfo)
			r.set("a", config(uint64(i+2), 1, 1))
			r.settle(minRetry)
			if n := r.edges["a"].Calls(lbtest.CallInfo) - before; n < 1 || n > 2 {
				t.Fatalf("edge was tried %d times within %s of something new, want once or twice", n, minRetry)
			}
		}
	})
}

// TestSyncerClaimsAtOnceAfterALoss has an edge lose its state and go away for a
// moment, which takes a new connection and a new claim.
func TestSyncerClaimsAtOnceAfterALoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a")
		r.set("a", config(1, 2, 2))
		r.settle(time.Minute)
		r.edges["a"].Down(errors.New("connection reset"))
		synctest.Wait()
		r.edges["a"].LoseState()
		r.edges["a"].Down(nil)
		r.settle(minBackoff)
		r.holds("a", config(1, 2, 2))
	})
}

// TestSyncerDoesNotSpin has an edge that never shows what it has acknowledged.
func TestSyncerDoesNotSpin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a")
		r.set("a", config(1, 1, 1))
		r.settle(time.Minute)
		before := r.edges["a"].Calls(lbtest.CallInfo)
		for range 600 {
			if err := r.edges["a"].Drift(config(0, 3, 3)); err != nil {
				t.Fatal(err)
			}
			r.settle(100 * time.Millisecond)
		}
		if n := r.edges["a"].Calls(lbtest.CallInfo) - before; n > 130 {
			t.Errorf("an edge that changes without end was read back %d times in a minute, want no more than about one a second", n)
		}
	})
}
