package proxy

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/lb"
)

// Name is the engine's name.
const Name = "proxy"

// errShutdown is what Set says after Shutdown.
var errShutdown = errors.New("set a table: the proxy is shut down")

// errHanded is what Set says after HandOver.
var errHanded = errors.New("set a table: the proxy was handed over to another process")

// Engine is the data plane in user space. Make it with [New].
type Engine struct {
	opts  Options
	start time.Time

	// files are the descriptors in use, population the connections and sessions.
	files      budget
	population budget
	clients    budget // entries of clients that are remembered
	tables     tables // of groups
	panics     atomic.Uint64
	limitLog   throttle // "a limit is reached"
	acceptLog  throttle // "accepting does not work"
	icmpDenied sync.Once

	running sync.WaitGroup
	spareFD spareFD

	mu        sync.Mutex // serializes Set and Shutdown, and guards what follows
	loops     []*loop
	closed    bool                         // Shutdown was called
	handed    bool                         // HandOver was called, and Resume was not
	inherited map[lb.Frontend]*inheritance // from Adopt, until the first Set
	stopped   bool                         // the loops have ended
	homes     int                          // listeners placed so far
	groups    map[lb.GroupID]*group
	owners    map[lb.Owner]*owner
	frontends map[lb.Frontend]*frontend
	retired   map[retiredKey]*frontend // removed ones whose connections drain
}

var (
	_ lb.Engine     = (*Engine)(nil)
	_ lb.Restricter = (*Engine)(nil)
)

// New returns an engine that serves nothing yet. It opens and starts nothing;
// the first Set does.
func New(o Options) *Engine {
	e := &Engine{
		opts:      o.withDefaults(),
		start:     time.Now(),
		groups:    make(map[lb.GroupID]*group),
		owners:    make(map[lb.Owner]*owner),
		frontends: make(map[lb.Frontend]*frontend),
		retired:   make(map[retiredKey]*frontend),
		limitLog:  throttle{interval: logEvery},
		acceptLog: throttle{interval: logEvery},
	}
	e.files.limit = int64(fileShare())
	e.clients.limit = int64(e.opts.AffinityClients)
	e.tables.limit, e.tables.running = maxTablePlaces, &e.running
	e.population.limit = int64(o.MaxConnections)
	if o.MaxConnections <= 0 {
		e.population.limit = e.files.limit
	}
	return e
}

// logEvery is the shortest time between two log lines about the same trouble.
const logEvery = 10 * time.Second

// Name returns "proxy".
func (e *Engine) Name() string { return Name }

// Capabilities says what the engine can do, sorted.
func (e *Engine) Capabilities() []lb.Capability {
	c := []lb.Capability{
		lb.CapTCP, lb.CapUDP, lb.CapIPv4, lb.CapIPv6, lb.CapRoundRobin,
		lb.CapLeastConnections, lb.CapRandomTwoChoices, lb.CapSourceHash, lb.CapSourceRanges,
		lb.CapAffinity, lb.CapMaxConnections, lb.CapConnectTimeout, lb.CapFamilyTranslation,
		lb.CapProxyV1, lb.CapProxyV2,
	}
	slices.Sort(c)
	return c
}

// clock returns the time since the engine was made.
func (e *Engine) clock() int64 { return int64(time.Since(e.start)) }

// run starts the loops unless they run. Callers hold mu.
func (e *Engine) run() error {
	if len(e.loops) > 0 {
		return nil
	}
	loops := make([]*loop, e.opts.Loops)
	for i := range loops {
		l, err := newLoop(e, i)
		if err != nil {
			for _, l := range loops[:i] {
				l.close()
			}
			return err
		}
		loops[i] = l
	}
	e.spareFD.open()
	e.loops = loops
	lendProcessors(len(loops))
	for _, l := range loops {
		e.running.Add(1)
		go l.run()
	}
	return nil
}

// do calls the functions in their loops and returns after all have been called.
// Callers hold mu.
func (e *Engine) do(work [][]func(*loop)) {
	var pending sync.WaitGroup
	for i, fs := range work {
		if len(fs) == 0 {
			continue
		}
		pending.Add(1)
		e.loops[i].post(func(l *loop) {
			defer pending.Done()
			for _, f := range fs {
				l.guard(waker{}, func() { f(l) })
			}
		})
	}
	pending.Wait()
}

// doAll calls f in every loop and returns after that. Callers hold mu.
func (e *Engine) doAll(f func(*loop)) {
	work := make([][]func(*loop), len(e.loops))
	for i := range work {
		work[i] = []func(*loop){f}
	}
	e.do(work)
}

// Counters returns what passed through every frontend, also through removed ones
// as long as they have connections. Refusals by the kernel, while a frontend has
// no active member, are not counted.
func (e *Engine) Counters() []lb.RouteCounters {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.forgetRetired()
	all := make([]lb.RouteCounters, 0, len(e.frontends)+len(e.retired))
	for _, fe := range e.frontends {
		all = append(all, fe.counters())
	}
	for _, fe := range e.retired {
		all = append(all, fe.counters())
	}
	return all
}

// Shutdown stops taking new connections and sessions at once, lets the others go
// on until ctx ends, and then resets them. It returns early when all have ended
// by themselves.
func (e *Engine) Shutdown(ctx context.Context) error {
	for _, idle := range e.stopAccepting() {
		select {
		case <-idle:
		case <-ctx.Done():
		}
	}
	return e.stop()
}

// stopAccepting closes the listeners. It returns a channel for each loop that is
// closed when the loop has no connection left.
func (e *Engine) stopAccepting() []chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	e.closeInherited()
	e.closeListeners()
	idle := make([]chan struct{}, len(e.loops))
	e.doAll(func(l *loop) {
		idle[l.index] = make(chan struct{})
		l.idle = idle[l.index]
	})
	return idle
}

// stop ends what goes on, and the loops.
func (e *Engine) stop() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stopped || len(e.loops) == 0 {
		return nil
	}
	e.stopped = true
	e.tables.stop()
	if n := e.population.used.Load(); n > 0 {
		e.opts.Log.Info("connections are reset, since the time to drain is over", zap.Int64("connections", n))
	}
	e.doAll(func(l *loop) {
		for _, s := range l.slots {
			if h := s.h; h != nil {
				l.guard(h, func() { h.abandon(l) })
			}
		}
		l.quit = true
	})
	e.running.Wait()
	lendProcessors(-len(e.loops))
	for _, l := range e.loops {
		l.close()
	}
	e.spareFD.close()
	if n := e.files.used.Load(); n != 0 {
		return errors.New("shut down the proxy: descriptors are left over")
	}
	return nil
}

// closeListeners closes all TCP listeners, and keeps UDP ports open only for the
// sessions that they have. Callers hold mu.
func (e *Engine) closeListeners() {
	work := make([][]func(*loop), len(e.loops))
	for _, fe := range e.frontends {
		if ln := fe.ln; ln != nil {
			work[ln.home()] = append(work[ln.home()], ln.retire)
			fe.ln = nil
		}
	}
	e.do(work)
}
