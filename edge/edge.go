// Package edge is the daemon in front of the clusters: it keeps what each of
// them wants, decides with [lb.Compile] where packets go, and tells an engine and
// an announcer.
//
// One goroutine decides. It is woken when a cluster has written, when a node's
// health has changed, and now and then to repair what others have changed. What
// clusters have written is on disk before they are answered, so that an edge
// serves again at once when it starts, before it has talked to anyone.
//
// The package knows neither the network protocol of its clients nor any engine.
package edge

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// Announcer makes addresses arrive at this machine.
type Announcer interface {
	// Set replaces the whole set of addresses. It is idempotent, and repairs what
	// others have taken away. An error that is about some of the addresses only
	// has a method FailedAddresses() map[netip.Addr]error.
	Set(ctx context.Context, addrs []netip.Addr) error
	// Held returns the addresses that arrive here because of the announcer, those
	// of a process before this one too.
	Held() []netip.Addr
}

// Checker is what an edge needs of a [healthcheck.Checker].
type Checker interface {
	Set(targets map[healthcheck.Target]healthcheck.Result)
	Result(t healthcheck.Target) (healthcheck.Result, bool)
	Changed() <-chan struct{}
	Hint(t healthcheck.Target)
	WaitFirst(ctx context.Context) error
	Stats() healthcheck.Stats
}

// Options are what an Edge is made of. Name, Clusters, Engine, Checker, StateDir
// and Log are required.
type Options struct {
	Name, Version string
	// Revision is the commit that the program was built from.
	Revision string
	// Clusters are those that may use the edge.
	Clusters map[lb.Cluster]lb.Policy
	// Engine carries the traffic. The edge shuts it down.
	Engine lb.Engine
	// Announcer may be nil: addresses arrive here anyway.
	Announcer Announcer
	// Checker probes the members. Its Run is the caller's affair.
	Checker Checker
	// Predecessor, unless it is nil, is who serves until this edge takes over.
	Predecessor *Predecessor
	// StateDir is where the edge keeps its files; no other process may use it.
	StateDir string
	// Reserved are frontends that no load balancer may have, and who has them.
	Reserved map[lb.Frontend]string
	// ShareHostAddress lets load balancers use the machine's own addresses.
	ShareHostAddress bool
	// OwnAddresses returns the machine's addresses without those of the
	// Announcer; nil if it has none to protect.
	OwnAddresses func() ([]netip.Addr, error)
	// DrainTimeout is how long connections may go on after Run's context ended.
	DrainTimeout time.Duration
	// UpgradeDrainTimeout is how long they may go on after another process has
	// taken over.
	UpgradeDrainTimeout time.Duration
	// EndsWithSuccessor makes Run return at once, with an error, when the process
	// that has taken over crashes, or the last of those that came after it:
	// whoever starts the edge again may wait for the end of all.
	EndsWithSuccessor bool
	// Pulse, unless it is nil, is called by the loop that decides after each round
	// of work, with whether a table is in force. While the loop is well, rounds are
	// less than Patience apart. Pulse must return soon: traffic waits for nothing,
	// but decisions do.
	Pulse func(serving bool)
	Log   *zap.Logger
}

const (
	// resyncInterval is how often everything is set again, to repair what
	// others have changed.
	resyncInterval = 30 * time.Second
	// retryInterval is how soon it is set again while something is refused.
	retryInterval = 2 * time.Second
	// deadInterval is how often members are looked at that may be dead.
	deadInterval = 250 * time.Millisecond
	// firstWait is how long a starting edge waits for the first results: the
	// time that a probe has by default, and a little for the machine.
	firstWait = 600 * time.Millisecond
	// applyTimeout bounds one round of engine and announcer.
	applyTimeout = 30 * time.Second
	// Patience is how long the loop that decides may be busy with one round while
	// nothing is wrong: it wakes at every resync, and tables and addresses take
	// their time. Whoever restarts an edge that hangs must wait that long.
	Patience = resyncInterval + 2*applyTimeout
	// statusHold is how long a starting edge keeps back its first status, so that
	// clients do not take a restart for the loss of everything.
	statusHold = 2 * time.Second
	// healthInterval is how often known health is saved, at most.
	healthInterval = 5 * time.Second
)

// Edge is the daemon. Make it with New and start it with Run.
type Edge struct {
	info             lb.Info
	started          time.Time
	revision         string
	policies         map[lb.Cluster]lb.Policy
	engine           lb.Engine
	announcer        Announcer
	checker          Checker
	reserved         map[lb.Frontend]string
	shareHostAddress bool
	ownAddresses     func() ([]netip.Addr, error)
	drainTimeout     time.Duration

	upgradeDrainTimeout time.Duration
	endsWithSuccessor   bool
	predecessor         *Predecessor
	pauses              chan *pauseRequest
	released            chan struct{} // closed when another process has taken over
	over                chan struct{} // closed when the loop has ended

	applyTimeout time.Duration
	pulse        func(serving bool)
	log          *zap.Logger

	clusters   map[lb.Cluster]*cluster
	kicks      chan struct{} // capacity 1
	begun      chan struct{} // closed after the first round of work
	lock       *os.File      // of the state directory
	lockPath   string
	healthPath string

	hints     atomic.Pointer[map[hint]healthcheck.Target] // for the engine, from its goroutines
	silence   silence
	registry  *prometheus.Registry
	maxSeries int
	ready     atomic.Bool // the first table is in force
	stats     stats
}

// New reads the state directory, which it makes and locks, and returns an edge
// that serves nothing yet. It starts nothing. Close it if it is not run.
func New(o Options) (*Edge, error) {
	if o.Name == "" || o.Engine == nil || o.Checker == nil || o.StateDir == "" || o.Log == nil {
		return nil, errors.New("edge: name, engine, checker, state directory and log are required")
	}
	e := &Edge{
		info: lb.Info{
			Name: o.Name, Version: o.Version, Engine: o.Engine.Name(),
			Schema: lb.Schema, Capabilities: capabilities(o.Engine),
		},
		started: time.Now(), revision: o.Revision, policies: o.Clusters, engine: o.Engine, announcer: o.Announcer, checker: o.Checker,
		reserved: o.Reserved, shareHostAddress: o.ShareHostAddress, ownAddresses: o.OwnAddresses,
		drainTimeout: o.DrainTimeout, upgradeDrainTimeout: o.UpgradeDrainTimeout, endsWithSuccessor: o.EndsWithSuccessor, predecessor: o.Predecessor,
		pauses: make(chan *pauseRequest), released: make(chan struct{}), over: make(chan struct{}),
		applyTimeout: applyTimeout, pulse: o.Pulse, log: o.Log,
		clusters: make(map[lb.Cluster]*cluster, len(o.Clusters)),
		kicks:    make(chan struct{}, 1),
		begun:    make(chan struct{}),
		registry: prometheus.NewRegistry(), stats: newStats(), maxSeries: maxSeries,
	}
	e.hints.Store(newHints(nil))
	e.register(e.registry)
	if err := e.open(o.StateDir); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// capabilities returns what the edge can do, sorted: what its engine can, and the
// kinds of health check that not every edge knows.
func capabilities(e lb.Engine) []lb.Capability {
	all := slices.Concat(e.Capabilities(), []lb.Capability{lb.CapCheckGRPC, lb.CapCheckNone})
	slices.Sort(all)
	return slices.Compact(all)
}

// ErrLocked says that a state directory belongs to a running edge.
var ErrLocked = errors.New("another edge uses it")

// Lock makes the state directory, unless it is there, and takes it for the
// caller until the lock is closed. It fails at once with [ErrLocked] if an edge
// runs there.
func Lock(stateDir string) (*os.File, error) {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	lock, err := lockFile(lockPath(stateDir), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("state directory %q: %w; stop that one, or give this one a stateDir of its own", stateDir, ErrLocked)
	}
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	return lock, nil
}

func lockPath(stateDir string) string { return filepath.Join(stateDir, "lock") }

func (e *Edge) open(stateDir string) error {
	e.lockPath = lockPath(stateDir)
	if e.predecessor != nil {
		e.lock = e.predecessor.Lock
	} else {
		lock, err := Lock(stateDir)
		if err != nil {
			return err
		}
		e.lock = lock
		if err := unmark(lock); err != nil {
			return fmt.Errorf("lock the state directory: %w", err)
		}
	}
	e.healthPath = filepath.Join(stateDir, "health.json")
	e.reportStrangers(stateDir)
	instance := rand.Text()[:12]
	for name, policy := range e.policies {
		c := &cluster{
			name: name, policy: policy, info: e.info, log: e.log.With(zap.String("cluster", string(name))),
			kick: e.kick, begun: e.begun, status: newStatusLog(instance), now: time.Now, turn: make(chan struct{}, 1),
			released: e.released, heir: e.predecessor != nil,
		}
		if err := c.open(stateDir); err != nil {
			return err
		}
		e.clusters[name] = c
	}
	if e.predecessor != nil {
		return e.inherited(e.predecessor.Will)
	}
	return nil
}

// reportStrangers logs clusters whose state is there and that may not use the
// edge any more.
func (e *Edge) reportStrangers(stateDir string) {
	entries, err := os.ReadDir(filepath.Join(stateDir, "clusters"))
	if err != nil {
		return // there is none yet
	}
	for _, entry := range entries {
		if _, ok := e.policies[lb.Cluster(entry.Name())]; !ok {
			e.log.Warn("the state of a cluster that is not in the configuration is kept and not served; delete it if the cluster does not come back",
				zap.String("cluster", entry.Name()), zap.String("path", filepath.Join(stateDir, "clusters", entry.Name())))
		}
	}
}

// Close gives the state directory back. Run does it too.
func (e *Edge) Close() error {
	if e.lock == nil {
		return nil
	}
	if err := e.lock.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Cluster returns the edge as the cluster sees it, nil if the edge does not
// serve it.
func (e *Edge) Cluster(name lb.Cluster) lb.Balancer {
	c, ok := e.clusters[name]
	if !ok {
		return nil
	}
	return c
}

// DialFailed tells that a connection to a member has just failed, as the engine
// has found: the member is probed at once. If it did not answer at all, it is no last
// resort any more.
func (e *Edge) DialFailed(name lb.Cluster, check lb.CheckID, node lb.NodeName, err error) {
	h := hint{name, check, node}
	t, ok := (*e.hints.Load())[h]
	if !ok {
		return
	}
	e.checker.Hint(t)
	if !errors.Is(err, unix.ETIMEDOUT) && !errors.Is(err, unix.EHOSTUNREACH) {
		return
	}
	r, _ := e.checker.Result(t)
	if r.State == healthcheck.Draining && e.silence.note(h, r.Since, time.Now()) {
		e.kick()
	}
}

// Registry returns the edge's metrics, to which others may add theirs.
func (e *Edge) Registry() *prometheus.Registry { return e.registry }

func (e *Edge) kick() {
	select {
	case e.kicks <- struct{}{}:
	default:
	}
}
