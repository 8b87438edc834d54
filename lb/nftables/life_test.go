package nftables

import (
	"strings"
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
	r.gone("holders", "choosers", "hold_", "choose_", "take")
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
	r.eventually("the route is forgotten", func() bool {
		r.engine.mu.Lock()
		defer r.engine.mu.Unlock()
		return len(r.engine.state.leaving) == 0
	})
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

// TestMarksApart: what is on the engine's own packets is no mark of a connection.
func TestMarksApart(t *testing.T) {
	for _, kind := range []mark{ofRoute, ofPool, ofOwner, ofGateway} {
		if mark(bypassMark).kind() == kind {
			t.Errorf("mark %#x of the engine's own packets: is of the kind %#x; want none", bypassMark, uint32(kind))
		}
	}
}
