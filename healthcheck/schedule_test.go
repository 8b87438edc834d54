package healthcheck

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"
)

func TestHint(t *testing.T) {
	virtually(t, Options{}, func(b *bench) {
		target := targets(1, Spec{Interval: sec(10)})[0]
		b.Set(whole([]Target{target}))
		b.sleep(25 * time.Second)

		began := b.since()
		b.m.set(blackHole, target.Addr)
		b.Hint(target)
		if got := b.until(target, Down, 3*time.Second); got != 1500*time.Millisecond {
			t.Errorf("dead member, hinted at: got down after %v; want 1.5s", got)
		}
		if got := b.m.starts(target.Addr, began); got[0] != began {
			t.Errorf("hinted at %v: got probes at %v; want one at once", began, got)
		}
		if r, _ := b.Result(target); r.Failures != 3 {
			t.Errorf("got %d failures; want those of the three probes only", r.Failures)
		}
	})
}

func TestHintAtAHealthyMember(t *testing.T) {
	virtually(t, Options{}, func(b *bench) {
		target := targets(1, Spec{})[0]
		b.Set(whole([]Target{target}))
		b.sleep(5100 * time.Millisecond)
		began := b.since()
		for range 3000 {
			b.Hint(target)
			b.sleep(time.Millisecond)
		}
		// Per second: three fast probes by the hint, and the regular one.
		got := b.m.starts(target.Addr, began)
		if len(got) < 9 || len(got) > 12 {
			t.Errorf("hinted at 3,000 times in 3s: got %d probes; want 9 to 12", len(got))
		}
		b.want(target, Up)
		if r, _ := b.Result(target); r.Failures != 0 {
			t.Errorf("got %d failures; want none, since a hint is none", r.Failures)
		}
		b.sleep(2 * time.Second)
		began = b.since()
		b.sleep(5 * time.Second)
		if got := b.m.starts(target.Addr, began); len(got) > 6 {
			t.Errorf("two seconds after the last hint: got %d probes in 5s; want the regular 5 or 6", len(got))
		}
	})
}

func TestHintDuringAProbeAndForOthers(t *testing.T) {
	virtually(t, Options{}, func(b *bench) {
		ts := targets(3, Spec{Interval: sec(5)})
		b.Hint(ts[0]) // not in the set
		b.m.set(slowly(100*time.Millisecond), ts[0].Addr)
		b.m.set(refuse, ts[1].Addr)
		b.Set(whole(ts[:2]))
		b.sleep(50 * time.Millisecond)
		b.Hint(ts[0])
		b.sleep(950 * time.Millisecond)
		if got := b.m.starts(ts[0].Addr, 0); len(got) < 3 {
			t.Errorf("hinted at during a probe: got probes at %v; want the fast pace", got)
		}
		b.want(ts[1], Down)
		before := len(b.m.starts(ts[1].Addr, 0))
		b.Hint(ts[1])
		b.sleep(100 * time.Millisecond)
		if got := len(b.m.starts(ts[1].Addr, 0)); got != before {
			t.Errorf("hinted at while down: got %d more probes; want none", got-before)
		}
	})
}

func TestBudgetStretchesIntervals(t *testing.T) {
	virtually(t, Options{Budget: 200}, func(b *bench) {
		ts := targets(900, Spec{})
		b.Set(whole(ts))
		b.sleep(30 * time.Second)
		s := b.Stats()
		if s.Stretched != 5 {
			t.Errorf("900 targets each second with 180 regular probes per second: got stretched by %v; want 5", s.Stretched)
		}
		if s.Rate < 150 || s.Rate > 200 {
			t.Errorf("rate: got %v; want about 180, and at most the budget of 200", s.Rate)
		}
		if got := b.m.busiest(0, time.Hour, time.Second); got > 205 {
			t.Errorf("got %d probes within a second; want at most 200 and a small burst", got)
		}
		for _, target := range ts {
			if got := b.m.starts(target.Addr, 10*time.Second); len(got) < 3 || len(got) > 5 {
				t.Fatalf("%v: got probes at %v; want 4 in 20s, as all others", target, got)
			}
		}

		// What the budget stretches is the regular interval, not the way to a verdict.
		b.m.set(refuse, ts[0].Addr)
		for r, _ := b.Result(ts[0]); r.Failures == 0; r, _ = b.Result(ts[0]) {
			b.sleep(time.Millisecond)
		}
		if got := b.until(ts[0], Down, 5*time.Second); got > 700*time.Millisecond {
			t.Errorf("from the first failure to down: got %v; want about 500ms", got)
		}

		b.Set(whole(ts[:90]))
		if got := b.Stats().Stretched; got != 1 {
			t.Errorf("with 90 targets: got stretched by %v; want 1", got)
		}
	})
}

// TestBudgetHoldsWhenEverythingFails kills everything at once.
func TestBudgetHoldsWhenEverythingFails(t *testing.T) {
	virtually(t, Options{}, func(b *bench) {
		ts := targets(1500, Spec{})
		b.Set(whole(ts))
		b.sleep(5 * time.Second)
		b.m.set(blackHole, addrs(ts)...)
		b.sleep(5 * time.Second)
		for _, target := range ts {
			b.want(target, Down)
		}
		if got := b.m.busiest(0, time.Hour, time.Second); got > 2041 {
			t.Errorf("got %d probes within a second; want at most 2,000 and a small burst", got)
		}
		if b.m.most > 1024 {
			t.Errorf("got %d probes at once; want at most the number of workers, 1,024", b.m.most)
		}
	})
}

func TestOwnFaultsNeverCount(t *testing.T) {
	virtually(t, Options{}, func(b *bench) {
		ts := targets(2, Spec{})
		b.Set(whole(ts[:1]))
		b.sleep(3 * time.Second)
		b.m.set(noDescriptors, addrs(ts)...)
		b.Set(whole(ts))
		before, _ := b.Result(ts[0])
		b.sleep(10 * time.Second)
		b.want(ts[0], Up)
		b.want(ts[1], Unknown)
		if r, _ := b.Result(ts[0]); r.Failures != 0 || r.Reason != "" || r.Checked.Sub(before.Checked) > time.Second {
			t.Errorf("got %+v; want nothing new since %v", r, before.Checked)
		}
		s := b.Stats()
		if s.OwnErrors < 20 || s.OwnError != "too many open files" {
			t.Errorf("stats: got %d own errors, last %q; want at least 20, too many open files", s.OwnErrors, s.OwnError)
		}
		if got := b.m.starts(ts[1].Addr, 0); len(got) < 10 || len(got) > 16 {
			t.Errorf("got %d probes in 10s; want it repeated fast at first, then each second", len(got))
		}
		b.m.set(nil, addrs(ts)...)
		b.sleep(1100 * time.Millisecond)
		b.want(ts[1], Up)
	})
}

func TestUnknownProtocolIsAnOwnFault(t *testing.T) {
	virtually(t, Options{}, func(b *bench) {
		target := targets(1, Spec{Protocol: "carrier-pigeon"})[0]
		b.Set(whole([]Target{target}))
		b.sleep(5 * time.Second)
		b.want(target, Unknown)
		if got, want := b.Stats().OwnError, `protocol "carrier-pigeon": no prober`; got != want {
			t.Errorf("got own error %q; want %q", got, want)
		}
	})
}

// TestBlackHolesDelayNobody has 500 members that never answer, and one that goes
// and comes.
func TestBlackHolesDelayNobody(t *testing.T) {
	virtually(t, Options{}, func(b *bench) { deadAndFlapping(b, targets(500, Spec{})) })
}

// TestBlackHolesWithLongTimeouts takes away what makes the budget protect the
// workers: 500 members that hold one for 20 s each, and 64 workers.
func TestBlackHolesWithLongTimeouts(t *testing.T) {
	virtually(t, Options{Workers: 64}, func(b *bench) {
		dead := targets(500, Spec{Interval: sec(20), Timeout: sec(20)})
		b.m.set(blackHole, addrs(dead)...)
		seeds := map[Target]Result{}
		for _, target := range dead {
			seeds[target] = Result{State: Down}
		}
		b.Set(seeds)
		b.sleep(time.Minute)
		if got := b.Stats().Flying; got != 16 {
			t.Errorf("got %d probes of dead members under way; want a quarter of the workers", got)
		}
		fresh := targets(1000, Spec{Interval: sec(30), Timeout: sec(30)})[600:]
		b.m.set(blackHole, addrs(fresh)...)
		b.Set(whole(dead, fresh))
		b.sleep(10 * time.Second)
		if got := b.Stats().Flying; got != 48 {
			t.Errorf("got %d probes with long timeouts under way; want three quarters of the workers", got)
		}
		dead = append(dead, fresh...)
		deadAndFlapping(b, dead)

		// Those that wait in line are still in order: they come back, or go.
		b.m.set(nil, addrs(dead)...)
		b.Set(whole(dead[250:]))
		b.sleep(2 * time.Minute)
		for _, target := range dead[250:] {
			b.want(target, Up)
		}
		b.Set(nil)
		b.sleep(time.Minute)
		if got := b.Stats(); got.Flying != 0 || got.Targets != 0 {
			t.Errorf("after all were removed: got %+v; want nothing under way", got)
		}
	})
}

// deadAndFlapping measures detection of one member beside dead ones.
func deadAndFlapping(b *bench, dead []Target) {
	b.t.Helper()
	b.m.set(blackHole, addrs(dead)...)
	good := targets(len(dead)+1, Spec{})[len(dead)]
	b.Set(whole(dead, []Target{good}))
	b.sleep(5 * time.Second)
	for i := range 20 {
		b.m.set(blackHole, good.Addr)
		if got := b.until(good, Down, time.Minute); got > 2510*time.Millisecond {
			b.t.Fatalf("round %d: got down after %v; want at most 2.51s", i, got)
		}
		b.m.set(nil, good.Addr)
		if got := b.until(good, Up, time.Minute); got > 1760*time.Millisecond {
			b.t.Fatalf("round %d: got up after %v; want at most 1.76s", i, got)
		}
		b.sleep(time.Duration(i) * 53 * time.Millisecond)
	}
}

// TestWorkersRunOut has more members with verdicts pending than workers: probes
// start late, but are neither lost nor excused.
func TestWorkersRunOut(t *testing.T) {
	virtually(t, Options{Workers: 4}, func(b *bench) {
		ts := targets(40, Spec{Interval: sec(1)})
		b.m.set(blackHole, addrs(ts)...)
		b.Set(whole(ts))
		b.sleep(60 * time.Second)
		for _, target := range ts {
			b.want(target, Down)
		}
		s := b.Stats()
		if b.m.most != 4 || s.OwnErrors != 0 || s.LagP99 < time.Second {
			t.Errorf("got %d at once, %+v; want 4 workers, no own errors, and the lag shown", b.m.most, s)
		}
	})
}

func TestExcuse(t *testing.T) {
	const timeout = 500 * time.Millisecond
	tests := []struct {
		name       string
		late, took time.Duration
		own        bool
	}{
		{"in time", 0, timeout, false},
		{"a little late", 200 * time.Millisecond, timeout, false},
		{"started late", 300 * time.Millisecond, timeout, true},
		{"suspended while it waited", 0, time.Hour, true},
	}
	for _, tt := range tests {
		f := &Failure{Reason: Timeout, Text: "no answer"}
		if got := excuse(f, tt.late, tt.took, timeout); got.Own != tt.own {
			t.Errorf("%s: got %+v; want own %v", tt.name, got, tt.own)
		}
	}
}

// TestLateProbesAreRepeated lets this machine sleep in the middle of a probe.
func TestLateProbesAreRepeated(t *testing.T) {
	virtually(t, Options{}, func(b *bench) {
		target := targets(1, Spec{})[0]
		b.Set(whole([]Target{target}))
		b.sleep(5 * time.Second)
		b.m.set(func(ctx context.Context) error {
			<-time.After(3 * time.Second) // deaf to ctx, as a machine that sleeps
			return ctx.Err()
		}, target.Addr)
		b.sleep(4 * time.Second)
		b.m.set(nil, target.Addr)
		b.sleep(4 * time.Second)
		if r, _ := b.Result(target); r.State != Up || r.Failures != 0 || b.Stats().OwnErrors == 0 {
			t.Errorf("got %+v, stats %+v; want up, and own errors counted", r, b.Stats())
		}
	})
}

// TestScheduleUnderRandomChange keeps the books of the schedule while targets
// come, go, fail and are hinted at in any order.
func TestScheduleUnderRandomChange(t *testing.T) {
	virtually(t, Options{Workers: 8, Budget: 500}, func(b *bench) {
		r := rand.New(rand.NewPCG(1, 2))
		ts := append(targets(60, Spec{}), targets(60, Spec{Timeout: sec(3)})...)
		answers := []func(context.Context) error{nil, blackHole, refuse, drain, noDescriptors, slowly(100 * time.Millisecond)}
		for range 2000 {
			switch r.IntN(4) {
			case 0:
				set := map[Target]Result{}
				for _, target := range ts {
					if r.IntN(3) > 0 {
						set[target] = Result{State: State(r.IntN(4))}
					}
				}
				b.Set(set)
			case 1:
				b.m.set(answers[r.IntN(len(answers))], ts[r.IntN(len(ts))].Addr)
			case 2:
				b.Hint(ts[r.IntN(len(ts))])
			case 3:
				b.sleep(time.Duration(r.IntN(400)) * time.Millisecond)
			}
			b.audit()
		}
		b.m.set(nil, addrs(ts)...)
		b.Set(whole(ts))
		b.sleep(5 * time.Second)
		for _, target := range ts {
			b.want(target, Up)
		}
		b.audit()
	})
}

// audit checks that every target is in exactly one place of the schedule.
func (b *bench) audit() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	p := &b.plan
	places, flying, waiting, inLanes := map[*entry]int{}, 0, 0, 0
	for i, e := range p.queue {
		places[e]++
		if int(e.pos) != i {
			b.t.Fatalf("queue[%d]: got place %d; want its own", i, e.pos)
		}
		if up := (i - 1) / 2; i > 0 && p.queue[up].due > e.due {
			b.t.Fatalf("queue[%d] is due before its parent", i)
		}
	}
	for _, s := range p.shares {
		for _, e := range s.parked {
			if !e.gone() {
				places[e]++
			}
		}
		inLanes += s.flying
	}
	for e := range b.entries.all {
		switch places[e] {
		case 0:
			flying++
		case 1:
		default:
			b.t.Fatalf("%v: in the schedule %d times", e.target(), places[e])
		}
		if !e.settled {
			waiting++
		}
	}
	if flying > p.flying || p.flying > p.workers || inLanes != p.flying || waiting != b.waiting {
		b.t.Fatalf("got %d under way of %d in the books, %d in lanes; %d waiting of %d", flying, p.flying, inLanes, waiting, b.waiting)
	}
}
