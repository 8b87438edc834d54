package healthcheck

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Prober asks one member once. Probe returns nil when the member answered as it
// should, and otherwise a [*Failure] or any error, which is then classified by
// what it wraps. It must return when ctx ends, which it does at the timeout; a
// Prober that does not holds one of the Checker's workers. It is called by many
// goroutines at once.
type Prober interface {
	Probe(ctx context.Context, addr netip.AddrPort, spec Spec) error
}

// ProberFunc is a function that is a Prober.
type ProberFunc func(ctx context.Context, addr netip.AddrPort, spec Spec) error

// Probe calls f.
func (f ProberFunc) Probe(ctx context.Context, addr netip.AddrPort, spec Spec) error {
	return f(ctx, addr, spec)
}

// Options configure a Checker. The zero value is usable.
type Options struct {
	// Probers replace the real ones, by protocol.
	Probers map[Protocol]Prober
	// Workers is the largest number of probes under way at once. 0 means what
	// the budget needs when every probe takes DefaultTimeout, at most 1024.
	Workers int
	// Budget is the most probes per second. Intervals are stretched when the
	// targets ask for more, and Stats says so. 0 means 2000.
	Budget int
	// Seed makes the jitter repeatable; 0 means random.
	Seed uint64
	// Control is called on every socket of the real probers before it connects,
	// like net.Dialer's field of that name.
	Control func(network, address string, c syscall.RawConn) error
}

// Checker probes a set of targets and keeps what is known about each. All
// methods can be called at any time from any goroutine.
type Checker struct {
	probers map[Protocol]Prober
	changed chan struct{} // capacity 1: tells users
	kick    chan struct{} // capacity 1: wakes Run

	setMu sync.Mutex // held by Set, taken before mu

	mu      sync.Mutex      // guards what follows
	kinds   map[class]*kind // every class in use; written with setMu held too
	entries index           // every target; written with setMu held too
	rand    *rand.Rand
	epoch   time.Time // when Run began; zero: the schedule's clock stands at 0
	plan    schedule
	first   chan struct{} // closed when waiting is 0
	waiting int           // entries without a probe that counted
	waitEnd time.Duration // when the last of them has had time for one
	count   counters
}

// New returns a Checker without targets. It starts nothing.
func New(o Options) *Checker {
	if o.Budget <= 0 {
		o.Budget = 2000
	}
	if o.Workers <= 0 {
		o.Workers = min(max(int(float64(o.Budget)*DefaultTimeout.D().Seconds()), 64), 1024)
	}
	if o.Seed == 0 {
		o.Seed = rand.Uint64() //nolint:gosec // nobody gains by guessing when a probe comes
	}
	d := dialer{control: o.Control}
	probers := map[Protocol]Prober{TCP: tcpProber{d}, HTTP: httpProber{dialer: d}, HTTPS: newHTTPSProber(d), GRPC: grpcProber{d}}
	for protocol, p := range o.Probers {
		probers[protocol] = p
	}
	c := &Checker{
		probers: probers,
		changed: make(chan struct{}, 1),
		kick:    make(chan struct{}, 1),
		kinds:   map[class]*kind{},
		entries: newIndex(),
		rand:    rand.New(rand.NewPCG(o.Seed, o.Seed)), //nolint:gosec // as above
		first:   make(chan struct{}),
	}
	close(c.first)
	c.plan.init(o.Budget, o.Workers)
	return c
}

// Set replaces the whole set of targets. The value is where a target that is new
// starts from: its state stays until probes come to a verdict, Unknown for the
// zero Result. A target that stays keeps what is known about it, and its value is
// ignored. A probe under way for a target that is removed is forgotten, also if
// the target comes back.
//
// A single new target is probed at once; many are spread at the rate of the
// budget. Set may be called before Run.
//
// Targets of protocol None are left out.
//
// Targets are told apart by their specs as they are written, so callers fill in
// defaults first if they mean them to be equal.
func (c *Checker) Set(targets map[Target]Result) {
	c.setMu.Lock()
	defer c.setMu.Unlock()
	now := time.Now()

	var gone, added []*entry
	for e := range c.entries.all {
		if _, ok := targets[e.target()]; !ok {
			gone = append(gone, e)
		}
	}
	for t, seed := range targets {
		if t.Spec.Protocol == None {
			continue
		}
		if c.find(t) == nil {
			added = append(added, newEntry(t.Addr, c.hold(classOf(t)), newRecord(seed, now)))
		}
	}
	for _, e := range gone {
		c.release(e.kind)
	}
	demand := 0.0
	for _, k := range c.kinds {
		demand += float64(k.refs) / k.spec.Interval.D().Seconds()
	}
	// Maps are ranged over in any order; sorting makes Seed repeatable.
	slices.SortFunc(added, func(a, b *entry) int {
		return cmp.Or(a.addr().Compare(b.addr()), compareSpec(a.kind.as.Spec, b.kind.as.Spec))
	})
	c.replace(gone, added, demand)
	wake(c.kick)
}

// hold returns the kind of a class that has one more target.
func (c *Checker) hold(as class) *kind {
	k := c.kinds[as]
	if k == nil {
		k = &kind{as: as, spec: as.WithDefaults().clamped()}
		if k.prober = c.probers[k.spec.Protocol]; k.prober == nil {
			k.prober = noProber{}
		}
		c.mu.Lock()
		c.kinds[as] = k
		c.mu.Unlock()
	}
	k.refs++
	return k
}

func (c *Checker) release(k *kind) {
	if k.refs--; k.refs == 0 {
		c.mu.Lock()
		delete(c.kinds, k.as)
		c.mu.Unlock()
	}
}

// replace is the part of Set that readers and probes wait for.
func (c *Checker) replace(gone, added []*entry, demand float64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range gone {
		c.entries.remove(e)
		c.plan.remove(e)
		c.settle(e)
	}
	c.plan.setDemand(demand)

	c.rand.Shuffle(len(added), func(i, j int) { added[i], added[j] = added[j], added[i] })
	now := c.now()
	if c.waiting == 0 && len(added) > 0 {
		c.first = make(chan struct{})
	}
	c.plan.queue = slices.Grow(c.plan.queue, len(added)) // no more than it takes
	for i, e := range added {
		c.entries.add(e)
		c.plan.add(e, now+time.Duration(i)*c.plan.gap)
		c.waitEnd = max(c.waitEnd, e.due+e.kind.spec.Timeout.D())
	}
	c.waiting += len(added)
}

// settle notes that e has had its first probe, or will have none.
func (c *Checker) settle(e *entry) {
	if e.settled {
		return
	}
	e.settled = true
	if c.waiting--; c.waiting == 0 {
		close(c.first)
	}
}

// Result returns what is known about a target; false if it is not in the set.
func (c *Checker) Result(t Target) (Result, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.find(t)
	if e == nil {
		return Result{}, false
	}
	return e.result(), true
}

// Results returns a copy of what is known about every target. With very many
// targets prefer Result: the copy holds the schedule up while it is made.
func (c *Checker) Results() map[Target]Result {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make(map[Target]Result, c.entries.len)
	for e := range c.entries.all {
		all[e.target()] = e.result()
	}
	return all
}

// Changed returns a channel of capacity 1 that receives after the State, Reason
// or Answered of any target has changed. It is the same channel in every call,
// for one receiver.
func (c *Checker) Changed() <-chan struct{} { return c.changed }

// Hint tells that traffic to the target has just failed: it is probed now, and
// then at the fast pace as many times as make a verdict. A hint is no failure
// itself. Hints for targets that are Down are ignored, and so are those that come
// sooner than an interval, or a second, after the last one.
func (c *Checker) Hint(t Target) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, now := c.find(t), c.now()
	if e == nil || e.state == Down || now < e.deaf {
		return
	}
	e.deaf = now + max(e.kind.spec.Interval.D(), time.Second)
	e.hinted = uint8(e.kind.spec.UnhealthyThreshold) //nolint:gosec // at most MaxThreshold
	if c.plan.hasten(e, now) {
		wake(c.kick)
	}
}

// Settled reports whether every target has had a probe that counted, or the time
// for one: its timeout has passed since its first probe was due. It is false
// before Run, unless there are no targets.
func (c *Checker) Settled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.unsettled() <= 0
}

// unsettled returns the time until Settled holds at the latest.
func (c *Checker) unsettled() time.Duration {
	if c.waiting == 0 {
		return 0
	}
	return c.waitEnd - c.now()
}

// WaitFirst waits until Settled, or returns ctx's error.
func (c *Checker) WaitFirst(ctx context.Context) error {
	for {
		c.mu.Lock()
		left, first := c.unsettled(), c.first
		c.mu.Unlock()
		if left <= 0 {
			return nil
		}
		timer := time.NewTimer(left)
		select {
		case <-first:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		timer.Stop()
	}
}

// find returns a target's entry, or nil.
func (c *Checker) find(t Target) *entry {
	k := c.kinds[classOf(t)]
	if k == nil {
		return nil
	}
	return c.entries.find(keyOf(t.Addr, k))
}

// now reads the schedule's clock. It stands at 0 until Run begins, so that
// targets that were set before then are not late.
func (c *Checker) now() time.Duration {
	if c.epoch.IsZero() {
		return 0
	}
	return time.Since(c.epoch)
}

// wake sends without waiting to a channel of capacity 1.
func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// noProber stands in for a protocol that nobody speaks. Validate refuses such
// specs, so this is the edge's own fault.
type noProber struct{}

func (noProber) Probe(_ context.Context, _ netip.AddrPort, spec Spec) error {
	return &Failure{Own: true, Text: fmt.Sprintf("protocol %s: no prober", quote(string(spec.Protocol)))}
}
