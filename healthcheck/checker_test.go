package healthcheck

import (
	"context"
	"errors"
	"maps"
	"testing"
	"testing/synctest"
	"time"
)

func TestFirstProbeIsSentAtOnce(t *testing.T) {
	virtually(t, Options{}, func(b *bench) {
		b.sleep(3 * time.Second)
		ts := targets(1, Spec{})
		b.Set(whole(ts))
		synctest.Wait()
		if got := b.m.starts(ts[0].Addr, 0); len(got) != 1 || got[0] != 3*time.Second {
			t.Errorf("got probes at %v; want one at 3s", got)
		}
		b.want(ts[0], Up)
	})
}

func TestTargetsSetBeforeRunAreNotLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMembers()
		c := New(Options{Probers: map[Protocol]Prober{TCP: m}})
		c.Set(whole(targets(1000, Spec{})))
		time.Sleep(time.Minute) // virtual
		if c.Settled() {
			t.Error("settled before run")
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- c.Run(ctx) }()
		if err := c.WaitFirst(ctx); err != nil {
			t.Errorf("wait for the first results: %v", err)
		}
		if got := m.busiest(0, time.Hour, 100*time.Millisecond); got > 240 {
			t.Errorf("got %d probes within 100ms; want at most what the budget allows, 240", got)
		}
		// Second probes come while others still wait for their first, so some wait
		// for the budget.
		if got := c.Stats().LagP99; got > 200*time.Millisecond {
			t.Errorf("lag: got %v; want at most 200ms", got)
		}
		cancel()
		<-ended
		if err := c.Run(t.Context()); !errors.Is(err, errRunTwice) {
			t.Errorf("second run: got %v; want %v", err, errRunTwice)
		}
	})
}

func TestManyNewTargetsAreSpread(t *testing.T) {
	virtually(t, Options{}, func(b *bench) {
		ts := targets(1000, Spec{})
		b.Set(whole(ts))
		b.sleep(10 * time.Second)
		if got := b.m.busiest(0, time.Second/2, 20*time.Millisecond); got > 81 {
			t.Errorf("at the start: got %d probes within 20ms; want at most 81", got)
		}
		// On average 102 of 1,000 probes fall into a tenth of a second.
		if got := b.m.busiest(2*time.Second, 10*time.Second, 100*time.Millisecond); got > 150 {
			t.Errorf("later: got %d probes within 100ms; want them spread, about 102", got)
		}
		for _, target := range ts {
			b.want(target, Up)
			at := b.m.starts(target.Addr, 3*time.Second)
			for i := 1; i < len(at); i++ {
				if gap := at[i] - at[i-1]; gap > time.Second || gap < 950*time.Millisecond {
					t.Fatalf("%v: got gaps %s; want 950ms to 1s", target, gaps(at))
				}
			}
		}
	})
}

// TestDetection measures, for failures at many moments between two probes, how
// long a member that is dead stays up.
func TestDetection(t *testing.T) {
	tests := []struct {
		name   string
		answer func(context.Context) error
		worst  time.Duration
	}{
		{"black hole", blackHole, 2500 * time.Millisecond},
		{"refused", refuse, 1500 * time.Millisecond},
		{"503", drain, time.Second},
		{"answers after the timeout", slowly(501 * time.Millisecond), 2500 * time.Millisecond},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			virtually(t, Options{}, func(b *bench) {
				target := targets(1, Spec{})[0]
				b.Set(whole([]Target{target}))
				var worst time.Duration
				for i := range 100 {
					b.m.set(nil, target.Addr)
					b.until(target, Up, 3*time.Second)
					b.sleep(3*time.Second + time.Duration(i)*7*time.Millisecond)
					b.m.set(tt.answer, target.Addr)
					began := b.since()
					for b.state(target) == Up && b.since()-began < time.Minute {
						b.sleep(time.Millisecond)
					}
					worst = max(worst, b.since()-began)
				}
				if worst > tt.worst+time.Millisecond || worst < tt.worst*8/10 {
					t.Errorf("worst detection of 100: got %v; want at most, and near, %v", worst, tt.worst)
				}
			})
		})
	}
}

func TestRecovery(t *testing.T) {
	virtually(t, Options{}, func(b *bench) {
		target := targets(1, Spec{})[0]
		b.m.set(refuse, target.Addr)
		b.Set(whole([]Target{target}))
		if got := b.until(target, Down, time.Second); got != 500*time.Millisecond {
			t.Errorf("new target that refuses: got down after %v; want 500ms", got)
		}
		b.sleep(5 * time.Second)
		b.m.set(nil, target.Addr)
		if got := b.until(target, Up, 2*time.Second); got > 1251*time.Millisecond {
			t.Errorf("recovered: got up after %v; want at most 1.25s", got)
		}
		r, _ := b.Result(target)
		if r.Reason != "" || r.Error != "" || r.Failures != 0 || !r.Answered || !r.Since.Equal(r.Checked) {
			t.Errorf("recovered: got %+v; want no failure, and up since the last probe", r)
		}
	})
}

func TestDownTargetsAreProbedAtTheInterval(t *testing.T) {
	virtually(t, Options{}, func(b *bench) {
		target := targets(1, Spec{})[0]
		b.m.set(blackHole, target.Addr)
		b.Set(whole([]Target{target}))
		b.sleep(13 * time.Second)
		got := b.m.starts(target.Addr, 3*time.Second)
		if len(got) < 10 || len(got) > 11 {
			t.Errorf("got %d probes in 10s, gaps %s; want 10 or 11", len(got), gaps(got))
		}
		r, _ := b.Result(target)
		if r.State != Down || r.Reason != Timeout || r.Answered || r.Failures < 12 {
			t.Errorf("got %+v; want down by timeout, never answered, all failures counted", r)
		}
	})
}

func TestSeedsStandUntilAVerdict(t *testing.T) {
	virtually(t, Options{}, func(b *bench) {
		ts := targets(4, Spec{})
		since := time.Now().Add(-time.Hour)
		b.m.set(blackHole, addrs(ts)...)
		b.Set(map[Target]Result{
			ts[0]: {State: Up, Since: since, Answered: true},
			ts[1]: {State: Down, Since: since, Reason: Refused, Error: "connection refused"},
			ts[2]: {State: Draining, Since: since},
			ts[3]: {},
		})
		b.sleep(1200 * time.Millisecond)
		for i, want := range []State{Up, Down, Draining, Unknown} {
			b.want(ts[i], want)
		}
		if r, _ := b.Result(ts[0]); !r.Since.Equal(since) || !r.Answered {
			t.Errorf("seeded: got %+v; want since %v, answered", r, since)
		}
		b.sleep(time.Second)
		for _, target := range ts {
			b.want(target, Down)
		}
		if r, _ := b.Result(ts[0]); !r.Answered {
			t.Error("answered was not kept")
		}

		// The second Set's seed is for a target that stays: ignored.
		b.Set(map[Target]Result{ts[0]: {State: Up}})
		b.want(ts[0], Down)
		if _, ok := b.Result(ts[1]); ok {
			t.Error("a target that was removed has a result")
		}
	})
}

func TestChanged(t *testing.T) {
	virtually(t, Options{}, func(b *bench) {
		changed := func() bool {
			select {
			case <-b.Changed():
				return true
			default:
				return false
			}
		}
		target := targets(1, Spec{})[0]
		b.Set(whole([]Target{target}))
		synctest.Wait()
		if !changed() {
			t.Error("unknown to up was not told")
		}
		b.sleep(10 * time.Second)
		if changed() {
			t.Error("told, though nothing changed")
		}
		b.m.set(refuse, target.Addr)
		for !changed() {
			b.sleep(time.Millisecond)
		}
		if r, _ := b.Result(target); r.State != Up || r.Reason != Refused {
			t.Errorf("told of %+v; want of the first failure", r)
		}
		for !changed() {
			b.sleep(time.Millisecond)
		}
		b.want(target, Down)
		b.sleep(10 * time.Second)
		if changed() {
			t.Error("told, though down has stayed down")
		}
	})
}

// TestLateResultsAreForgotten removes targets while their probes are under way,
// and brings one of them back.
func TestLateResultsAreForgotten(t *testing.T) {
	virtually(t, Options{}, func(b *bench) {
		ts := targets(2, Spec{})
		b.m.set(slowly(300*time.Millisecond), addrs(ts)...)
		b.Set(whole(ts))
		b.sleep(100 * time.Millisecond)
		b.Set(nil)
		if got := b.Results(); len(got) != 0 {
			t.Errorf("results of an empty set: %v", got)
		}
		b.m.set(blackHole, ts[0].Addr)
		b.Set(whole(ts[:1]))
		b.sleep(300 * time.Millisecond) // the first probe has succeeded by now
		b.want(ts[0], Unknown)
		b.sleep(200 * time.Millisecond)
		if r, _ := b.Result(ts[0]); r.Failures != 1 || r.Answered {
			t.Errorf("got %+v; want one failure of the second probe only", r)
		}
		if got := b.m.starts(ts[1].Addr, 0); len(got) != 1 {
			t.Errorf("a target that was removed is probed on: %v", got)
		}
		if got := b.Stats(); got.Targets != 1 || got.Flying != 1 {
			t.Errorf("stats: got %+v; want one target and its probe", got)
		}
	})
}

func TestSetKeepsTheScheduleOfTargetsThatStay(t *testing.T) {
	virtually(t, Options{}, func(b *bench) {
		ts := targets(3, Spec{})
		set := whole(ts[:1])
		for i := range 100 {
			set = maps.Clone(set)
			if i%2 == 0 {
				set[ts[1]], set[ts[2]] = Result{}, Result{}
			} else {
				delete(set, ts[2])
			}
			b.Set(set)
			b.sleep(100 * time.Millisecond)
		}
		if got := b.m.starts(ts[0].Addr, 0); len(got) < 10 || len(got) > 13 {
			t.Errorf("got %d probes in 10s, gaps %s; want 10 to 13", len(got), gaps(got))
		}
	})
}

func TestEqualTargetsAreProbedOnceAndSpecsApart(t *testing.T) {
	virtually(t, Options{}, func(b *bench) {
		plain := targets(1, Spec{})[0]
		http := plain
		http.Spec = Spec{Protocol: HTTP}.WithDefaults()
		b.Set(whole([]Target{plain, plain, http}))
		synctest.Wait()
		b.sleep(time.Millisecond)
		if got := b.m.starts(plain.Addr, 0); len(got) != 2 {
			t.Errorf("got %d probes; want one of each spec", len(got))
		}
	})
}

func TestSettled(t *testing.T) {
	virtually(t, Options{}, func(b *bench) {
		if !b.Settled() {
			t.Error("not settled without targets")
		}
		ts := targets(3, Spec{})
		b.m.set(slowly(200*time.Millisecond), ts[0].Addr)
		b.Set(whole(ts[:1]))
		if b.Settled() {
			t.Error("settled before the first probe has ended")
		}
		began := b.since()
		if err := b.WaitFirst(b.t.Context()); err != nil || b.since()-began != 200*time.Millisecond {
			t.Errorf("got %v after %v; want nil after 200ms", err, b.since()-began)
		}

		// A fault of this machine is no result, so the timeout has to do.
		b.m.set(noDescriptors, ts[1].Addr)
		b.Set(whole(ts[:2]))
		began = b.since()
		if err := b.WaitFirst(b.t.Context()); err != nil || b.since()-began != 500*time.Millisecond {
			t.Errorf("got %v after %v; want nil after the timeout, 500ms", err, b.since()-began)
		}

		b.Set(whole(ts[:1]))
		if !b.Settled() {
			t.Error("not settled though the target without result is gone")
		}
		b.m.set(blackHole, ts[2].Addr)
		b.Set(whole(ts))
		ctx, cancel := context.WithTimeout(b.t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := b.WaitFirst(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v; want %v", err, context.DeadlineExceeded)
		}
	})
}

func TestRunEndsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMembers()
		c := New(Options{Probers: map[Protocol]Prober{TCP: m}})
		ts := targets(100, Spec{Interval: sec(30), Timeout: sec(30)})
		m.set(blackHole, addrs(ts)...)
		c.Set(whole(ts))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
		if got := time.Since(m.began); got != time.Second {
			t.Errorf("run ended after %v; want with its context, after 1s", got)
		}
		for target, r := range c.Results() {
			if r.State != Unknown || r.Failures != 0 {
				t.Fatalf("%v: got %+v; want no judgement from probes that were cut short", target, r)
			}
		}
	})
}
