package provider

import (
	"context"
	"maps"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/lb"
)

// EdgeSpec is what the spec of an Edge object says.
type EdgeSpec struct {
	// Name is the name of the Edge object.
	Name string
	// Endpoint is where the edge's API is reached, an https URL or host:port.
	Endpoint string
	// ServerName is the name that the edge's certificate must carry.
	ServerName string
	// Drain asks the edge to withdraw from its addresses.
	Drain bool
	// Paused keeps the edge as it is: nothing is written, its status is read on.
	Paused bool
}

// Dial makes the Balancer that stands for an edge. It connects to nothing.
type Dial func(EdgeSpec) (lb.Balancer, error)

// Wanted is what one edge is to do.
type Wanted struct {
	EdgeSpec
	// Config is the whole configuration that the edge is to hold. It is not
	// changed after it was handed over.
	Config lb.Config
	// ReleaseRemovals confirms by hand the removals that the edge's guard holds, if
	// it is their token: see [EdgeState.RemovalToken]. What is held later has
	// another one.
	ReleaseRemovals string
	// Blind says that the configuration was decided on without knowing what the edge
	// holds. It is not sent.
	Blind bool
	// Keep are load balancers that go on as the edge holds them, since what their
	// Services ask for by now cannot be served.
	Keep map[lb.UID]Kept
	// Untold are direct load balancers of which the status of the Service does not
	// say so yet. An edge that can do it goes on with what it has of them.
	Untold []lb.UID
	// NodePorts are those of direct load balancers whose Services have some, for
	// edges that go on with an older version.
	NodePorts map[lb.UID][]uint16
}

// FleetOptions are what a Fleet needs from its surroundings. All are required
// but Event.
type FleetOptions struct {
	// Dial makes a client of an edge.
	Dial Dial
	// Claim reads back that we lead, directly before an edge is claimed. It
	// returns ErrNotLeader when another holds the Lease.
	Claim func(ctx context.Context) (lb.Claim, error)
	// ConfirmRemovals returns those of the keys, which are as in
	// [lb.RemovalHeldError], whose objects the API server itself says are gone.
	ConfirmRemovals func(ctx context.Context, keys []string) (confirmed []string, err error)
	// Event tells the people who watch an Edge object what happened to it. It
	// must not block.
	Event func(edge, eventType, reason, message string)
	// Log is where the fleet tells what it does.
	Log *zap.Logger
}

// Fleet keeps every edge at its wanted configuration. Edges do not wait for
// each other. Its methods may be called concurrently.
type Fleet struct {
	options FleetOptions
	changed chan struct{}
	kick    chan struct{}

	mu     sync.Mutex
	wanted map[string]Wanted
	states map[string]EdgeState
	// snapshot is what State returned last, nil once it is outdated.
	snapshot map[string]EdgeState
}

// NewFleet returns a Fleet of no edges that does nothing until Run.
func NewFleet(o FleetOptions) *Fleet {
	if o.Event == nil {
		o.Event = func(string, string, string, string) {}
	}
	return &Fleet{
		options: o,
		changed: make(chan struct{}, 1),
		kick:    make(chan struct{}, 1),
		states:  make(map[string]EdgeState),
	}
}

// Set replaces the edges and what each of them is to do, by name of the Edge
// object. Only the newest is of interest: what was set before and not yet sent
// is never sent. An edge that is not in wanted any more is let go and keeps what
// it holds. Set never blocks.
func (f *Fleet) Set(wanted map[string]Wanted) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name := range f.states {
		if _, ok := wanted[name]; !ok {
			delete(f.states, name)
		}
	}
	for name, w := range wanted {
		st, known := f.states[name]
		if !known || !f.wanted[name].sameEdge(w.EdgeSpec) {
			st = EdgeState{Name: name, Since: time.Now()}
		}
		st.Desired = w.Config.Revision
		f.states[name] = st
	}
	f.wanted = maps.Clone(wanted)
	f.snapshot = nil
	signal(f.kick)
}

// State returns what is known about each edge that was Set. It must not be
// changed.
func (f *Fleet) State() map[string]EdgeState {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.snapshot == nil {
		f.snapshot = maps.Clone(f.states)
	}
	return f.snapshot
}

// Changed gets a value after State has changed by what edges did or said;
// several changes may be one value. It is for one reader.
func (f *Fleet) Changed() <-chan struct{} { return f.changed }

// Run keeps the edges at what was last Set until ctx ends, and returns nil then.
// It returns ErrNotLeader as soon as it learns that another leads.
func (f *Fleet) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lost := make(chan error, 1)
	start := func(s *syncer) {
		ctx, end := context.WithCancel(ctx)
		s.end = end
		wg.Go(func() {
			defer end()
			defer close(s.ended)
			if err := s.Run(ctx); err != nil {
				select {
				case lost <- err:
				default:
				}
			}
		})
	}
	running := make(map[string]*syncer)
	for {
		f.adjust(running, start)
		select {
		case <-ctx.Done():
			return nil
		case err := <-lost:
			return err
		case <-f.kick:
		}
	}
}

// adjust starts a syncer for every new edge, ends those of edges that are gone
// or live elsewhere now, and wakes those that have something new to do.
func (f *Fleet) adjust(running map[string]*syncer, start func(*syncer)) {
	f.mu.Lock()
	wanted := f.wanted
	f.mu.Unlock()
	for name, s := range running {
		if _, ok := wanted[name]; !ok {
			s.end()
			delete(running, name)
		}
	}
	for name, w := range wanted {
		s := running[name]
		if s == nil || !s.spec.sameEdge(w.EdgeSpec) {
			next := newSyncer(f, w.EdgeSpec)
			if s != nil {
				s.end()
				next.after = s.ended
			}
			running[name] = next
			start(next)
			continue
		}
		s.wake()
	}
}

// newest returns what the edge is to do by now, and false if it is not among
// those that were Set any more.
func (f *Fleet) newest(spec EdgeSpec) (Wanted, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w, ok := f.wanted[spec.Name]
	return w, ok && w.sameEdge(spec)
}

// publish replaces the state of an edge, unless the edge is gone or lives
// elsewhere now. Readers are told of it if it is news.
func (f *Fleet) publish(spec EdgeSpec, st EdgeState, news bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w, ok := f.wanted[spec.Name]
	if !ok || !w.sameEdge(spec) {
		return
	}
	st.Desired = w.Config.Revision
	f.states[spec.Name] = st
	f.snapshot = nil
	if news {
		signal(f.changed)
	}
}

// sameEdge says whether both reach the same edge.
func (e EdgeSpec) sameEdge(o EdgeSpec) bool {
	return e.Name == o.Name && e.Endpoint == o.Endpoint && e.ServerName == o.ServerName
}

// signal leaves a value in a channel of capacity 1 unless there is one already.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// EdgeState is what is known about one edge.
type EdgeState struct {
	// Name is the name of the Edge object.
	Name string
	// Connected says that the edge answers, and has let us claim the cluster
	// unless it is paused.
	Connected bool
	// Problem says what is in the way, in one sentence, empty if nothing is.
	Problem string
	// Since is when Connected last changed.
	Since time.Time
	// Info is what the edge last said about itself.
	Info lb.Info
	// Status is what the edge last said about this cluster.
	Status lb.Status
	// Known says that Holds is valid. It is false until the edge was read back
	// for the first time, and after a write whose answer was lost.
	Known bool
	// Holds is what the edge holds, as it last acknowledged or was read back.
	Holds lb.Config
	// Desired is the revision of the newest configuration wanted of the edge.
	Desired uint64
	// Withheld are the load balancers that are not sent to the edge because it
	// cannot do what they need, with the reason.
	Withheld map[lb.UID]lb.Problem
	// Trimmed are those of which single listeners are not sent.
	Trimmed map[lb.UID]Trimmed
	// RemovalHeld are the removals, as in [lb.RemovalHeldError], that the edge's
	// guard holds and nobody has confirmed, sorted.
	RemovalHeld []string
	// RemovalToken stands for exactly these removals, empty if there are none.
	RemovalToken string
	// DriftRepaired counts how often the edge had lost or changed its state and
	// was put right.
	DriftRepaired uint64
	// LastContact is when the edge last answered. It changes without a value in
	// Changed.
	LastContact time.Time
}
