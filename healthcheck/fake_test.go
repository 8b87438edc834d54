package healthcheck

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// members is a Prober of members that the test controls, and keeps when each was
// probed, since the beginning.
type members struct {
	began time.Time

	mu     sync.Mutex
	answer map[netip.AddrPort]func(context.Context) error // nil: success
	probes map[netip.AddrPort][]time.Duration             // starts
	all    []time.Duration
	flying int
	most   int // probes at the same time
}

func newMembers() *members {
	return &members{
		began:  time.Now(),
		answer: map[netip.AddrPort]func(context.Context) error{},
		probes: map[netip.AddrPort][]time.Duration{},
	}
}

func (m *members) Probe(ctx context.Context, addr netip.AddrPort, _ Spec) error {
	m.mu.Lock()
	at := time.Since(m.began)
	m.probes[addr] = append(m.probes[addr], at)
	m.all = append(m.all, at)
	m.flying++
	m.most = max(m.most, m.flying)
	answer := m.answer[addr]
	m.mu.Unlock()

	var err error
	if answer != nil {
		err = answer(ctx)
	}
	m.mu.Lock()
	m.flying--
	m.mu.Unlock()
	return err
}

// set makes the members at the addresses answer in some way from now on.
func (m *members) set(answer func(context.Context) error, addrs ...netip.AddrPort) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range addrs {
		m.answer[a] = answer
	}
}

// starts returns when addr was probed since a moment.
func (m *members) starts(addr netip.AddrPort, since time.Duration) []time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, at := range m.probes[addr] {
		if at >= since {
			return append([]time.Duration(nil), m.probes[addr][i:]...)
		}
	}
	return nil
}

// busiest returns the most probes that started within any window of a length.
func (m *members) busiest(from, to, window time.Duration) (most int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	first := 0
	for i, at := range m.all {
		if at < from || at >= to {
			continue
		}
		for m.all[first] < from || at-m.all[first] >= window {
			first++
		}
		most = max(most, i-first+1)
	}
	return most
}

// The ways in which members answer, besides nil.
func blackHole(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}
func refuse(context.Context) error { return syscall.ECONNREFUSED }
func drain(context.Context) error {
	return &Failure{Reason: HTTPStatus, Text: "HTTP 503", Draining: true}
}
func noDescriptors(context.Context) error { return syscall.EMFILE }
func slowly(d time.Duration) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// bench is a running Checker over members, in virtual time.
type bench struct {
	*Checker
	t *testing.T
	m *members
}

// virtually runs a test in a bubble of virtual time, with a Checker that runs.
func virtually(t *testing.T, o Options, test func(b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := newMembers()
		o.Probers = map[Protocol]Prober{TCP: m, HTTP: m}
		o.Seed = 1
		b := &bench{New(o), t, m}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- b.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("run: %v", err)
			}
		}()
		test(b)
	})
}

// sleep lets virtual time pass, and everything that happens in it.
func (b *bench) sleep(d time.Duration) {
	time.Sleep(d) // virtual: this is how a bubble's clock is moved
	synctest.Wait()
}

// since returns the time since the beginning.
func (b *bench) since() time.Duration { return time.Since(b.m.began) }

// state returns a target's state, which must be in the set.
func (b *bench) state(t Target) State {
	b.t.Helper()
	r, ok := b.Result(t)
	if !ok {
		b.t.Fatalf("%v: not in the set", t)
	}
	return r.State
}

// want checks a target's state.
func (b *bench) want(t Target, s State) {
	b.t.Helper()
	if got := b.state(t); got != s {
		b.t.Errorf("at %v: %v: got %v; want %v", b.since(), t, got, s)
	}
}

// until waits for a state, in steps of a millisecond, and returns how long.
func (b *bench) until(t Target, s State, most time.Duration) time.Duration {
	b.t.Helper()
	began := b.since()
	for b.state(t) != s {
		if b.since()-began > most {
			b.t.Fatalf("%v: got %v for %v; want %v", t, b.state(t), most, s)
		}
		b.sleep(time.Millisecond)
	}
	return b.since() - began
}

// targets makes n targets with a spec.
func targets(n int, spec Spec) []Target {
	ts := make([]Target, n)
	for i := range ts {
		ip := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		ts[i] = Target{netip.AddrPortFrom(ip, 10256), spec.WithDefaults()}
	}
	return ts
}

// whole is a set without seeds.
func whole(groups ...[]Target) map[Target]Result {
	set := map[Target]Result{}
	for _, ts := range groups {
		for _, t := range ts {
			set[t] = Result{}
		}
	}
	return set
}

func addrs(ts []Target) []netip.AddrPort {
	as := make([]netip.AddrPort, len(ts))
	for i, t := range ts {
		as[i] = t.Addr
	}
	return as
}

func gaps(at []time.Duration) string {
	s := ""
	for i := 1; i < len(at); i++ {
		s += fmt.Sprint(at[i]-at[i-1], " ")
	}
	return s
}
