package nftables

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"
	"go.uber.org/zap/zaptest/observer"

	"github.com/eclusa-lb/eclusa/lb"
)

// beginWatched begins another engine, whose warnings are returned.
func (r *directRig) beginWatched() (warnings func() []string) {
	r.Helper()
	if err := r.engine.Shutdown(r.Context()); err != nil {
		r.Fatal(err)
	}
	core, seen := observer.New(zap.WarnLevel)
	log := zaptest.NewLogger(r, zaptest.WrapOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core { return zapcore.NewTee(c, core) })))
	r.engine = New(Options{Log: log, Direct: true})
	return func() []string {
		var all []string
		for _, e := range seen.FilterLevelExact(zap.WarnLevel).All() {
			if e.Message != "few source addresses are configured: "+fewSources(0) {
				all = append(all, e.Message)
			}
		}
		return all
	}
}

// tableOutlivesDirect: when a process begins without the routes that its table has
// chains for, everything else in the table stays.
func tableOutlivesDirect(r *directRig) {
	nat := r.add(lb.TCP)
	for i := range r.nodes {
		r.listen(i, lb.Frontend{Addr: r.node(i), Port: targetPort, Protocol: lb.TCP})
	}
	r.change(nat, func(route *lb.Route) {
		route.Direct, route.TargetPort, route.AffinityFor = false, targetPort, time.Hour
	})
	f, datagrams := r.add(lb.TCP), r.add(lb.UDP)
	r.change(datagrams, func(route *lb.Route) { route.AffinityFor = time.Hour })
	r.mustSet()
	if _, _, err := r.dial(nat).ask(patience); err != nil {
		r.Fatal(err)
	}
	warnings := r.beginWatched()
	delete(r.table.Routes, f)
	delete(r.table.Routes, datagrams)
	r.mustSet()
	if got := warnings(); len(got) > 0 {
		r.Errorf("warnings of a start without direct routes: got %q; want none", got)
	}
	for _, c := range r.engine.Counters() {
		if c.Frontend == nat && c.Accepted != 1 {
			r.Errorf("accepted by the other route: got %d; want 1, of before", c.Accepted)
		}
	}
	r.drained()
	r.gone("holders", "choosers", "hold_", "choose_", "take")
}

// drained lets the time be over that the connections of removed routes have.
func (r *directRig) drained() {
	r.Helper()
	e := r.engine
	e.mu.Lock()
	over := *e.state
	over.leaving = make(map[lb.Frontend]*route)
	for f, old := range e.state.leaving {
		gone := *old
		gone.deadline = time.Now()
		over.leaving[f] = &gone
	}
	e.state = &over
	e.sweepAt(time.Now())
	e.mu.Unlock()
	r.eventually("removed routes are forgotten", func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return len(e.state.leaving) == 0
	})
}

// tableLosesChains: chains that go to each other go together, in one transaction.
func tableLosesChains(r *directRig) {
	f := r.add(lb.TCP)
	r.change(f, func(route *lb.Route) { route.DrainTimeout = 0 })
	warnings := r.beginWatched()
	r.mustSet()
	r.change(f, func(route *lb.Route) { route.AffinityFor = time.Hour })
	r.mustSet()
	r.mustAsk(r.dial(f))
	delete(r.table.Routes, f)
	r.mustSet()
	r.drained()
	if got := warnings(); len(got) > 0 {
		r.Errorf("warnings of changes of chains: got %q; want none", got)
	}
	r.gone("holders", "choosers", "hold_", "choose_", "take")
}

// gone checks that the table has nothing whose name begins so.
func (r *directRig) gone(prefixes ...string) {
	r.Helper()
	s, err := dial()
	if err != nil {
		r.Fatal(err)
	}
	defer s.close()
	p, err := s.present()
	if err != nil {
		r.Fatal(err)
	}
	for _, prefix := range prefixes {
		for name := range p.sets {
			if strings.HasPrefix(name, prefix) {
				r.Errorf("set %q is left", name)
			}
		}
		for name := range p.chains {
			if strings.HasPrefix(name, prefix) {
				r.Errorf("chain %q is left", name)
			}
		}
	}
}

// cleanupLetsOthersServe: what an engine leaves is known; its end resets connections,
// and lets whoever listens on this machine take new ones.
func cleanupLetsOthersServe(b *bench) {
	f := b.add(lb.TCP, b.member())
	if found, err := Left(); found || err != nil {
		b.Errorf("Left before: got %v, %v; want nothing", found, err)
	}
	b.set()
	c, _ := b.dial(f)
	if err := b.engine.Shutdown(b.Context()); err != nil {
		b.Fatal(err)
	}
	if found, err := Left(); !found || err != nil {
		b.Errorf("Left after a shutdown: got %v, %v; want something", found, err)
	}
	l, err := net.Listen("tcp", netip.AddrPortFrom(f.Addr, f.Port).String())
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "this machine\n")
			_ = c.Close()
		}
	}()
	if _, who := b.dial(f); who == "this machine" {
		b.Fatal("the kernel does not serve after a shutdown")
	}
	p, err := b.left()
	if err != nil {
		b.Fatal(err)
	}
	rules, err := dial()
	if err != nil {
		b.Fatal(err)
	}
	defer rules.close()
	if err := takeNobody(rules, p); err != nil {
		b.Fatal(err)
	}
	b.mustEcho(c, "nobody is taken any more, and nobody cut yet")
	if _, who := b.dial(f); who != "this machine" {
		b.Errorf("a new connection while others are cut: got %q; want this machine", who)
	}
	if found, err := Cleanup(b.engine.log); !found || err != nil {
		b.Errorf("Cleanup: got %v, %v; want something found", found, err)
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); !isReset(err) {
		b.Errorf("a connection through the kernel: got %v; want a reset", err)
	}
	if _, who := b.dial(f); who != "this machine" {
		b.Errorf("after the cleanup: got %q; want this machine", who)
	}
	if found, err := Left(); found || err != nil {
		b.Errorf("Left after the cleanup: got %v, %v; want nothing", found, err)
	}
}

// timeoutsOfAnotherVersion: what a process of another version has given to idle
// connections is corrected, and all else stays.
func timeoutsOfAnotherVersion(b *bench) {
	f := b.add(lb.TCP, b.member())
	b.set()
	c, _ := b.dial(f)
	t := b.engine.state.routes[f].timeouts()
	if err := b.engine.Shutdown(b.Context()); err != nil {
		b.Fatal(err)
	}
	other := t
	other.seconds += 1000
	w := newBatch()
	w.flushChain(t.chain())
	w.deleteTimeouts(t.name())
	w.timeouts(t, other.states())
	w.addRules(&chain{name: t.chain(), rules: [][]byte{newRule().idleAfter(t.name()).b}})
	s, err := dial()
	if err != nil {
		b.Fatal(err)
	}
	defer s.close()
	if err := s.commit(w); err != nil {
		b.Fatal(err)
	}
	b.begin(Options{})
	b.set()
	p, err := b.left()
	if err != nil {
		b.Fatal(err)
	}
	if !t.are(p.timeouts[t.name()]) {
		b.Errorf("timeouts %q: got those of the other version; want %v", t.name(), t.states())
	}
	b.mustEcho(c, "its timeouts were corrected")
	b.dial(f)
	if n := b.counters(f).Accepted; n != 2 {
		b.Errorf("accepted: got %d; want 2, one of before", n)
	}
}

// resumeLearnsLater: an engine that cannot read what another process has left sets no
// table until it can, and then knows its connections again.
func resumeLearnsLater(b *bench) {
	f := b.add(lb.TCP, b.member())
	b.set()
	c, _ := b.dial(f)
	e := b.engine
	was := e.state.routes[f].id
	if err := e.HandOver(b.Context(), func(lb.Parcel) error { return nil }); err != nil {
		b.Fatal(err)
	}
	broken, err := dial()
	if err != nil {
		b.Fatal(err)
	}
	broken.close()
	e.mu.Lock()
	works := e.rules
	e.rules = broken
	e.mu.Unlock()
	if err := e.Resume(); err == nil {
		b.Error("Resume without a way to read the table: got nil; want an error")
	}
	if _, err := e.Set(b.Context(), b.table); err == nil {
		b.Error("Set before the table was read: got nil; want an error")
	}
	e.mu.Lock()
	e.rules = works
	e.mu.Unlock()
	b.set()
	if now := e.state.routes[f].id; now != was {
		b.Errorf("mark of the route: got %#x; want %#x as before", now, was)
	}
	b.mustEcho(c, "the engine has gone on")
}

func (b *bench) left() (*present, error) {
	s, err := dial()
	if err != nil {
		return nil, err
	}
	defer s.close()
	return s.present()
}

// cleanupTellsClients: a client of a route whose packets are routed as they are, which
// only waits, learns that its connection is over.
func cleanupTellsClients(r *directRig) {
	f := r.add(lb.TCP)
	r.mustSet()
	c := r.dial(f)
	r.mustAsk(c)
	if err := r.engine.Shutdown(r.Context()); err != nil {
		r.Fatal(err)
	}
	if found, err := Left(); !found || err != nil {
		r.Errorf("Left after a shutdown: got %v, %v; want something", found, err)
	}
	if _, err := Cleanup(r.engine.log); err != nil {
		r.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.in.ReadString('\n'); !errors.Is(err, syscall.ECONNRESET) {
		r.Errorf("a client that waits: got %v; want a reset", err)
	}
	if found, err := Left(); found || err != nil {
		r.Errorf("Left after the cleanup: got %v, %v; want nothing", found, err)
	}
}

// TestMarksApart: what is on the engine's own packets is no mark of a connection.
func TestMarksApart(t *testing.T) {
	for _, kind := range []mark{ofRoute, ofPool, ofOwner, ofGateway} {
		if mark(bypassMark).kind() == kind {
			t.Errorf("mark %#x of the engine's own packets: is of the kind %#x; want none", bypassMark, uint32(kind))
		}
	}
}
