package nftables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// Name is the engine's name.
const Name = "nftables"

var (
	errShutdown = errors.New("set a table: the engine is shut down")
	errHanded   = errors.New("set a table: the kernel's table was handed over to another process")
)

// Options configure an Engine. The zero value is usable.
type Options struct {
	// Log gets what an operator should know; nil is silence.
	Log *zap.Logger
	// SourceAddresses are what members see as the source of connections, of both
	// families. They lead to this machine. A family without any is masqueraded:
	// members see the machine's own address.
	SourceAddresses []netip.Addr
	// KeepSources leaves connections the source that they have, so that members see
	// the clients' addresses. Members must answer by way of this machine.
	KeepSources bool
	// KeepSysctls leaves the kernel's settings as they are. What is wrong with them
	// is an error of the first Set, or is logged if the engine can do without.
	KeepSysctls bool
	// Direct lets the engine route packets to members as they are. While a route
	// asks for that, ip rules of its own take such packets past those of others, and
	// the one for local addresses is not for them.
	Direct bool
	// OwnAddresses, unless nil, tells the addresses of the machine itself. On those
	// the engine refuses nothing: the machine's own services may listen there.
	OwnAddresses func() ([]netip.Addr, error)
}

// Engine is the data plane in the kernel. Make it with [New].
type Engine struct {
	opts    Options
	log     *zap.Logger
	sources map[*version][]netip.Addr

	// counting guards the socket that Counters reads with, and what it has read.
	counting sync.Mutex
	census   census

	keeper sync.WaitGroup
	wake   chan struct{} // capacity 1: the keeper has something to look at
	quit   chan struct{} // closed to end the keeper
	mended time.Time     // the keeper's: when it last looked whether the table is there

	mu         sync.Mutex // guards what follows
	watch      *socket    // the keeper's own, to look at flows while mu is free
	rules      *socket    // the kernel's tables; nil before the first Set
	tracking   *socket    // its connection tracking
	raw        *raw
	closed     bool
	handed     bool
	state      *state
	own        map[netip.Addr]bool // of the machine, at the last change of routes
	refused    map[lb.Frontend]error
	inForce    bool   // the kernel's table is state, as far as is known
	unlearned  bool   // what another process has left is not known yet
	generation uint32 // of the kernel's tables after the last look
	digest     string // of the table's rules
	dirty      bool   // others have changed tables since all elements were compared
	verified   time.Time
	verifyCost time.Duration

	numbers numbers
	direct  direct
	// keepSettings tells whether the kernel's are left alone.
	keepSettings bool
	former       map[lb.GroupID]map[netip.Addr]departed // of another process, until the first Set
	retired      map[retiredKey]*route
	byID         map[mark]*route    // those of state and the retired ones
	orphans      map[mark]time.Time // marks of flows that nobody knows, with when they end
	sweeps       []time.Time        // when flows have to be looked at
	soon         []selector         // which of them at once
	swept        time.Time
	cost         time.Duration // of the last look at all flows
	cuts         cuts[flow]
	unclean      bool      // counters of routes that are forgotten are left
	cleaned      time.Time // when that was seen to
	// closedTo are the families of which this machine forwards nothing, with why;
	// warned those about whose source addresses the log has been told.
	closedTo map[*version]error
	warned   map[*version]bool

	clients int       // that the kernel remembered at the last look
	purgeAt time.Time // when those are looked through again; zero if they need not
	// purgeTwice tells that this will be the first time after a change.
	purgeTwice bool
}

// retiredKey names a route that was removed from the table.
type retiredKey struct {
	lb.Frontend
	owner lb.Owner
}

var _ lb.Engine = (*Engine)(nil)

// New returns an engine that serves nothing yet. It opens and starts nothing; the
// first Set does.
func New(o Options) *Engine {
	e := &Engine{
		opts: o, log: o.Log, sources: make(map[*version][]netip.Addr), state: newState(),
		wake: make(chan struct{}, 1), quit: make(chan struct{}),
		retired: make(map[retiredKey]*route), byID: make(map[mark]*route), orphans: make(map[mark]time.Time),
		warned: make(map[*version]bool),
	}
	if e.log == nil {
		e.log = zap.NewNop()
	}
	if !o.KeepSources {
		for _, a := range o.SourceAddresses {
			v := versionOf(a)
			e.sources[v] = append(e.sources[v], a)
		}
	}
	return e
}

// Name returns "nftables".
func (e *Engine) Name() string { return Name }

// Capabilities says what the engine can do, sorted.
func (e *Engine) Capabilities() []lb.Capability {
	c := []lb.Capability{
		lb.CapTCP, lb.CapUDP, lb.CapIPv4, lb.CapIPv6, lb.CapRoundRobin, lb.CapSourceHash,
		lb.CapSourceRanges, lb.CapAffinity, lb.CapMaxConnections,
	}
	if e.opts.Direct {
		c = append(c, lb.CapDirect)
	}
	slices.Sort(c)
	return c
}

// Set replaces the table in one transaction, of which only what has changed is
// sent. The first one takes over what the kernel has from a process before.
func (e *Engine) Set(ctx context.Context, t lb.Table) (map[lb.Frontend]error, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.closed:
		return nil, errShutdown
	case e.handed:
		return nil, errHanded
	}
	if err := e.start(); err != nil {
		return nil, fmt.Errorf("set a table: %w", err)
	}
	own, err := e.ownAddresses()
	if err != nil {
		return nil, fmt.Errorf("set a table: %w", err)
	}
	if e.inForce {
		if err := e.look(); err != nil {
			return nil, fmt.Errorf("set a table: %w", err)
		}
	}
	if e.unlearned {
		if err := e.relearn(); err != nil {
			return nil, fmt.Errorf("set a table: %w", err)
		}
	}
	begins := e.state.chains == nil
	if begins {
		e.numbers.recall(t.Routes)
		if err := e.recallLeaving(time.Now()); err != nil {
			return nil, fmt.Errorf("set a table: %w", err)
		}
	}
	now, routes := time.Now(), t.Routes
	t = e.withDirect(t, now)
	p := e.plan(t, own, now)
	if begins { // there may be connections of a process before
		p.soon = append(p.soon, selector{})
	}
	if err := e.bringHome(p); err != nil {
		return nil, fmt.Errorf("set a table: %w", err)
	}
	e.discountOthers(p.strangers)
	if err := e.carryOut(p); err != nil {
		return nil, fmt.Errorf("set a table: %w", err)
	}
	e.own, e.refused, e.former = own, p.refused, nil
	e.adopt(p, begins)
	e.unsteer()
	refused := maps.Clone(p.refused)
	e.direct.complain(refused, routes)
	if len(refused) == 0 {
		return nil, nil
	}
	return refused, nil
}

func (e *Engine) ownAddresses() (map[netip.Addr]bool, error) {
	own := make(map[netip.Addr]bool)
	if e.opts.OwnAddresses == nil {
		return own, nil
	}
	all, err := e.opts.OwnAddresses()
	if err != nil {
		return nil, fmt.Errorf("read the machine's addresses: %w", err)
	}
	for _, a := range all {
		own[a.Unmap().WithZone("")] = true
	}
	return own, nil
}

// carryOut brings the kernel from one state to the next. On error nothing has
// changed.
func (e *Engine) carryOut(p *plan) error {
	if !e.inForce {
		if err := e.replace(p.next); err != nil {
			return err
		}
		e.inForce = true
		return nil
	}
	w := newBatch()
	p.write(w)
	if w.empty() {
		return nil
	}
	if err := e.rules.commit(w); err != nil {
		// Nobody knows what others have changed, so the next one looks.
		e.inForce = false
		e.log.Warn("the kernel's table is not as this process has left it; all of it is compared", zap.Error(err))
		if err := e.replace(p.next); err != nil {
			return err
		}
		e.inForce = true
		return nil
	}
	e.committed(p.was.shape != p.next.shape)
	return nil
}

// adopt makes the next state the one in force, and sees to the flows that it
// concerns.
func (e *Engine) adopt(p *plan, begins bool) {
	for _, r := range p.revived {
		delete(e.retired, retiredKey{r.Frontend, r.spec.Owner})
	}
	for _, r := range p.removed {
		e.retire(r, p.now)
	}
	if !sameMap(p.was.routes, p.next.routes) {
		for _, r := range p.next.routes {
			e.byID[r.id] = r
			if r.spec.Direct {
				e.direct.counts[r.Frontend] = r.spec.Owner
			}
		}
		e.restrictRetired(p)
		e.warnOfSources(p.next.routes)
	}
	e.state = p.next
	e.numbers.keep(e.state)
	if len(p.affinity) > 0 || p.rehomed || begins {
		e.direct.purgeAt, e.direct.changed = p.now, true
		e.kick()
		e.purgeClients(p.now)
	}
	if len(p.soon) > 0 {
		e.soon = few(append(e.soon, p.soon...))
		e.kick()
	}
	if p.later || begins {
		e.schedule(p.now)
	}
}

// retire keeps in mind a route that was removed, as long as it has connections.
func (e *Engine) retire(r *route, now time.Time) {
	old := *r
	old.deadline = now.Add(r.spec.DrainTimeout)
	e.retired[retiredKey{r.Frontend, r.spec.Owner}] = &old
	e.byID[r.id] = &old
}

// restrictRetired makes the source ranges of a load balancer reach connections that
// drain on frontends that it has no more.
func (e *Engine) restrictRetired(p *plan) {
	if len(e.retired) == 0 {
		return
	}
	ranges := make(map[lb.Owner][]netip.Prefix) // the frontends of an owner have the same
	for _, r := range p.next.routes {
		if len(r.spec.SourceRanges) > 0 {
			ranges[r.spec.Owner] = r.spec.SourceRanges
		}
	}
	for key, r := range e.retired {
		if now := ranges[key.owner]; len(now) > 0 && !slices.Equal(now, r.spec.SourceRanges) {
			e.retired[key] = r.restricted(now)
			e.byID[r.id] = e.retired[key]
			p.soon = append(p.soon, selector{frontend: r.Addr})
		}
	}
}

// warnOfSources tells once of each family that has load balancers and too few
// source addresses.
func (e *Engine) warnOfSources(routes map[lb.Frontend]*route) {
	for f := range routes {
		v := versionOf(f.Addr)
		if e.warned[v] || e.opts.KeepSources {
			continue
		}
		e.warned[v] = true
		if why := fewSources(len(e.sources[v])); why != "" {
			e.log.Warn("few source addresses are configured: "+why, zap.String("family", string(v.family)))
		}
	}
}

// schedule notes when connections to what was removed now have to be cut.
func (e *Engine) schedule(now time.Time) {
	drains := maps.Clone(e.state.drains)
	drains[0] = true // those that are half open end at once
	for _, r := range e.retired {
		drains[r.spec.DrainTimeout] = true
	}
	for d := range drains {
		e.sweepAt(now.Add(d))
	}
	for _, r := range e.state.leaving {
		if r.deadline.After(now) {
			e.sweepAt(r.deadline)
		}
	}
	e.kick()
}

// sweepAt notes that flows have to be looked at. The time is rounded up, so that
// many changes in a row have one look in common.
func (e *Engine) sweepAt(at time.Time) {
	at = at.Add(sweepGrain).Truncate(sweepGrain)
	if i, there := slices.BinarySearchFunc(e.sweeps, at, time.Time.Compare); !there {
		e.sweeps = slices.Insert(e.sweeps, i, at)
	}
}

// kick wakes the keeper.
func (e *Engine) kick() {
	select {
	case e.wake <- struct{}{}:
	default: // it is awake already
	}
}

// sourceElements are the configured source addresses, by number.
func (e *Engine) sourceElements() []element {
	var all []element
	for _, v := range versions {
		for i, a := range e.sources[v] {
			all = append(all,
				element{"sources" + v.suffix, string(binary.NativeEndian.AppendUint32(nil, uint32(i))), value{data: string(a.AsSlice())}},
				element{set: "answers" + v.suffix, key: string(a.AsSlice())})
		}
	}
	return all
}

// sameMap tells whether two maps are the very same, which a table that is
// immutable makes a comparison of all of it needless.
func sameMap[K comparable, V any](a, b map[K]V) bool {
	return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
}

func isNotFound(err error) bool { return errors.Is(err, unix.ENOENT) }
