package proxy

import (
	"errors"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// dialError is a call of OnDialError.
type dialError struct {
	owner lb.Owner
	check lb.CheckID
	node  lb.NodeName
	err   error
}

func TestDialErrorsAreTold(t *testing.T) {
	var mu sync.Mutex
	var told []dialError
	p := newPlace(t, Options{OnDialError: func(o lb.Owner, c lb.CheckID, n lb.NodeName, err error) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, dialError{o, c, n, err})
	}}, lb.TCP, 2)
	p.set()
	p.echo(1)
	start := time.Now()
	for range 50 {
		c, err := p.ask("hello")
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	// One per connection that tries the member: the first, and one per second.
	mu.Lock()
	defer mu.Unlock()
	if limit := 1 + int(time.Since(start)/reportEvery); len(told) == 0 || len(told) > limit {
		t.Fatalf("dial errors told: got %d; want 1 to %d", len(told), limit)
	}
	got := told[0]
	if got.owner.UID != "u" || got.check != "check" || got.node != "n0" || !errors.Is(got.err, syscall.ECONNREFUSED) {
		t.Errorf("dial error: got %+v; want that of n0", got)
	}
}

func TestOwnFaultsAreNotTold(t *testing.T) {
	p := newPlace(t, Options{OnDialError: func(_ lb.Owner, _ lb.CheckID, n lb.NodeName, err error) {
		t.Errorf("told: %s %v; want nothing about a fault of this machine", n, err)
	}, Control: func(network, address string, _ syscall.RawConn) error {
		if strings.HasSuffix(address, ":31080") {
			return syscall.EMFILE
		}
		return nil
	}}, lb.TCP, 2)
	p.set()
	if _, err := p.ask("hello"); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a client that nobody can be dialled for: got %v; want a reset", err)
	}
	if got := p.counters().Refused[lb.RefusedNoMember]; got != 1 {
		t.Errorf("refused: got %d; want 1", got)
	}
}

// TestSilentMemberIsAskedAgain: when nobody else is left, one lost packet must
// not cost a connection.
func TestSilentMemberIsAskedAgain(t *testing.T) {
	p := newPlace(t, Options{DialTimeout: 100 * time.Millisecond, DialAttempts: 3}, lb.TCP, 1)
	lbtest.Loopback().Silence(t, netip.AddrPortFrom(p.backends()[0].Addr, 31080))
	p.set()
	if _, err := p.ask("hello"); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a client of a silent member: got %v; want a reset", err)
	}
	if got := p.counters().Members[0].DialErrors; got != 3 {
		t.Errorf("dials to a silent member that is the only one: got %d; want all 3 attempts", got)
	}
}

// TestPanicCostsOneConnection makes the engine's own code panic on behalf of one
// connection.
func TestPanicCostsOneConnection(t *testing.T) {
	core, logs := observer.New(zap.ErrorLevel)
	panics := true
	p := newPlace(t, Options{Log: zap.New(core), Loops: 1, OnDialError: func(lb.Owner, lb.CheckID, lb.NodeName, error) {
		if panics {
			panics = false
			panic("a bug")
		}
	}}, lb.TCP, 2)
	p.set()
	p.echo(1)
	failed := 0
	for range 10 {
		if _, err := p.ask("hello"); err != nil {
			failed++
		}
	}
	if failed != 1 {
		t.Errorf("failed connections: got %d of 10; want the one that met the bug", failed)
	}
	if got := p.engine.panics.Load(); got != 1 {
		t.Errorf("panics counted: got %d; want 1", got)
	}
	if got := logs.FilterMessageSnippet("bug").Len(); got != 1 {
		t.Errorf("log lines: got %d; want 1", got)
	}
	if got := p.counters(); got.Active != 9 {
		t.Errorf("active: got %d; want the 9 others", got.Active)
	}
}

func TestCountersDuringShutdown(t *testing.T) {
	p := newPlace(t, Options{}, lb.TCP, 1)
	p.set()
	p.echo(0)
	c, err := p.ask("hello")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.engine.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "Shutdown has begun", func() bool {
		_, err := p.engine.Set(t.Context(), p.table)
		return err != nil
	})
	if got := p.counters().Active; got != 1 {
		t.Errorf("active while it drains: got %d; want 1", got)
	}
	if err := again(c, "again"); err != nil {
		t.Errorf("while it drains: %v", err)
	}
	c.Close()
	wg.Wait()
	if got := p.counters(); got.Active != 0 || got.Accepted != 1 {
		t.Errorf("counters after Shutdown: got %+v; want 1 accepted, none active", got)
	}
}

func TestUnsupportedRoutesAreRefused(t *testing.T) {
	p := newPlace(t, Options{}, lb.TCP, 1)
	good := p.table.Routes[p.front]
	for i, change := range []func(*lb.Frontend, *lb.Route){
		func(f *lb.Frontend, _ *lb.Route) { f.Protocol = lb.SCTP },
		func(f *lb.Frontend, r *lb.Route) { f.Protocol, r.ProxyProtocol = lb.UDP, lb.ProxyV2 },
		func(_ *lb.Frontend, r *lb.Route) { r.ProxyProtocol = "v3" },
		func(_ *lb.Frontend, r *lb.Route) { r.Algorithm = "magic" },
	} {
		f, r := p.front, good
		f.Port += uint16(i + 1)
		change(&f, &r)
		p.table.Routes[f] = r
	}
	refused, err := p.engine.Set(t.Context(), p.table)
	if err != nil || len(refused) != 4 {
		t.Fatalf("Set: got %v, %v; want four refused", refused, err)
	}
	for f, err := range refused {
		if !errors.Is(err, lb.ErrUnsupported) || !strings.Contains(err.Error(), f.String()) {
			t.Errorf("refusal of %s: got %v; want ErrUnsupported that names it", f, err)
		}
	}
	p.echo(0)
	if _, err := p.ask("hello"); err != nil {
		t.Error(err)
	}
}
