package lbtest

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"sync"

	"github.com/eclusa-lb/eclusa/lb"
)

// FakeEngine is an [lb.Engine] without traffic: it records the tables it is
// given and refuses what the test tells it to. The zero value is not usable; see
// [NewFakeEngine]. All methods may be called concurrently, but a Set during
// another Set breaks the contract of engines and is counted by [FakeEngine.Overlaps].
type FakeEngine struct {
	mu           sync.Mutex
	capabilities []lb.Capability
	tables       []lb.Table
	refusals     map[lb.Frontend]error
	failures     []error
	counters     []lb.RouteCounters
	changed      chan struct{}
	gate         chan struct{}
	setting      int
	overlaps     int
	shutdown     bool
	handedOver   bool
	parcels      []lb.Parcel
	adopted      []lb.Parcel
}

var _ lb.Engine = (*FakeEngine)(nil)

// NewFakeEngine returns an engine with the capabilities of the proxy engine, or
// with the given ones.
func NewFakeEngine(capabilities ...lb.Capability) *FakeEngine {
	if len(capabilities) == 0 {
		capabilities = []lb.Capability{
			lb.CapTCP, lb.CapUDP, lb.CapIPv4, lb.CapIPv6, lb.CapRoundRobin,
			lb.CapLeastConnections, lb.CapRandomTwoChoices, lb.CapSourceHash, lb.CapSourceRanges,
			lb.CapAffinity, lb.CapMaxConnections, lb.CapConnectTimeout, lb.CapFamilyTranslation,
			lb.CapProxyV1, lb.CapProxyV2,
		}
	}
	slices.Sort(capabilities)
	return &FakeEngine{
		capabilities: capabilities,
		refusals:     make(map[lb.Frontend]error),
		changed:      make(chan struct{}),
	}
}

// Name returns "fake".
func (e *FakeEngine) Name() string { return "fake" }

// Capabilities returns what NewFakeEngine was told.
func (e *FakeEngine) Capabilities() []lb.Capability { return slices.Clone(e.capabilities) }

// Set records the table. It fails with the errors of [FakeEngine.FailNext], and
// while the engine is held by [FakeEngine.Hold] it waits.
func (e *FakeEngine) Set(ctx context.Context, t lb.Table) (map[lb.Frontend]error, error) {
	e.mu.Lock()
	e.setting++
	if e.setting > 1 {
		e.overlaps++
	}
	gate := e.gate
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		e.setting--
		e.mu.Unlock()
	}()

	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.shutdown {
		return nil, errors.New("set a table on an engine that was shut down")
	}
	if e.handedOver {
		return nil, errors.New("set a table on an engine that was handed over")
	}
	if len(e.failures) > 0 {
		err := e.failures[0]
		e.failures = e.failures[1:]
		if err != nil {
			return nil, err
		}
	}
	e.tables = append(e.tables, t)
	close(e.changed)
	e.changed = make(chan struct{})
	var refused map[lb.Frontend]error
	for f := range t.Routes {
		if err := e.refusals[f]; err != nil {
			if refused == nil {
				refused = make(map[lb.Frontend]error)
			}
			refused[f] = err
		}
	}
	return refused, nil
}

// Counters returns what [FakeEngine.SetCounters] was told.
func (e *FakeEngine) Counters() []lb.RouteCounters {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.counters)
}

// Shutdown makes every later Set fail.
func (e *FakeEngine) Shutdown(context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.shutdown = true
	return nil
}

// HandOver sends what [FakeEngine.SetParcels] was told, and makes every later Set
// fail until Resume.
func (e *FakeEngine) HandOver(ctx context.Context, send func(lb.Parcel) error) error {
	e.mu.Lock()
	e.handedOver = true
	parcels := e.parcels
	e.mu.Unlock()
	for _, p := range parcels {
		if err := errors.Join(ctx.Err(), send(p)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Resume undoes HandOver.
func (e *FakeEngine) Resume() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.shutdown {
		return errors.New("resume an engine that was shut down")
	}
	e.handedOver = false
	return nil
}

// Adopt records the parcels.
func (e *FakeEngine) Adopt(ctx context.Context, receive func() (lb.Parcel, error)) error {
	var got []lb.Parcel
	for {
		p, err := receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err = errors.Join(ctx.Err(), err); err != nil {
			return err
		}
		got = append(got, p)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.tables) > 0 {
		return errors.New("adopt after a table was set")
	}
	e.adopted = got
	return nil
}

// SetParcels says what HandOver sends.
func (e *FakeEngine) SetParcels(p ...lb.Parcel) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.parcels = p
}

// Adopted returns what Adopt received.
func (e *FakeEngine) Adopted() []lb.Parcel {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.adopted)
}

// IsHandedOver tells whether HandOver was called, and Resume was not.
func (e *FakeEngine) IsHandedOver() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.handedOver
}

// Refuse makes Set return err for the frontend whenever a table has it; nil ends
// that.
func (e *FakeEngine) Refuse(f lb.Frontend, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err == nil {
		delete(e.refusals, f)
		return
	}
	e.refusals[f] = err
}

// FailNext makes the next Sets fail with these errors, one each. A nil among
// them lets one Set pass.
func (e *FakeEngine) FailNext(errs ...error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failures = append(e.failures, errs...)
}

// Hold makes Sets wait until the returned function is called or their context
// ends.
func (e *FakeEngine) Hold() (release func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	gate := make(chan struct{})
	e.gate = gate
	return sync.OnceFunc(func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.gate == gate {
			e.gate = nil
		}
		close(gate)
	})
}

// SetCounters says what Counters returns.
func (e *FakeEngine) SetCounters(c []lb.RouteCounters) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.counters = slices.Clone(c)
}

// Tables returns every table that was set, oldest first.
func (e *FakeEngine) Tables() []lb.Table {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.tables)
}

// Table returns the table that is in force, the zero Table before the first Set.
func (e *FakeEngine) Table() lb.Table {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.tables) == 0 {
		return lb.Table{}
	}
	return e.tables[len(e.tables)-1]
}

// Served returns the routes of the table in force that are not refused.
func (e *FakeEngine) Served() map[lb.Frontend]lb.Route {
	t := e.Table()
	e.mu.Lock()
	defer e.mu.Unlock()
	served := maps.Clone(t.Routes)
	maps.DeleteFunc(served, func(f lb.Frontend, _ lb.Route) bool { return e.refusals[f] != nil })
	return served
}

// WaitTable returns the table in force as soon as ok is true of it, or the error
// of ctx.
func (e *FakeEngine) WaitTable(ctx context.Context, ok func(lb.Table) bool) (lb.Table, error) {
	for {
		e.mu.Lock()
		changed := e.changed
		n := len(e.tables)
		var t lb.Table
		if n > 0 {
			t = e.tables[n-1]
		}
		e.mu.Unlock()
		if n > 0 && ok(t) {
			return t, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return t, ctx.Err()
		}
	}
}

// Overlaps counts the Sets that were called while another Set ran.
func (e *FakeEngine) Overlaps() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.overlaps
}

// IsShutdown tells whether Shutdown was called.
func (e *FakeEngine) IsShutdown() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.shutdown
}
