package edge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// successorInterval is how often an edge that was released looks whether anybody
// serves in its place.
const successorInterval = 250 * time.Millisecond

// rangesInterval is how often it looks whether a cluster has written.
const rangesInterval = time.Second

// errAbandoned is what Run returns of an edge whose successors have ended first.
var errAbandoned = errors.New("the process that has taken over has ended")

// errStopping is why an edge that was asked to stop is not paused.
var errStopping = errors.New("the edge was asked to stop")

// errReleased is what writers are told whose edge has gone to another process.
var errReleased error = releasedError{}

type releasedError struct{}

func (releasedError) Error() string { return "another process serves this edge from now on; ask again" }

// Temporary tells the protocol that the same call will do soon.
func (releasedError) Temporary() bool { return true }

// Will is what an edge leaves to its successor in another process, beside what
// its engine hands over.
type Will struct {
	// Lock is the locked file of the state directory. The lock is that of the
	// open file: whoever has it open has the lock.
	Lock *os.File
	// Digests and Epochs tell what the files of each cluster hold. A successor
	// that reads something else must not take over.
	Digests map[lb.Cluster]lb.Digest
	Epochs  map[lb.Cluster]lb.Epoch
	// Health is what is known about the members, encoded.
	Health []byte
	// Leaving are the addresses that are held for connections of load balancers
	// that have them no more. The successor cannot see those connections.
	Leaving []Leaving
}

// Leaving is an address that is held for its last connections.
type Leaving struct {
	Address netip.Addr `json:"address"`
	Cluster lb.Cluster `json:"cluster"`
	UID     lb.UID     `json:"uid"`
	Name    string     `json:"name"` // of the load balancer
	Until   time.Time  `json:"until"`
}

// Predecessor is the edge in another process that a new one takes over from.
type Predecessor struct {
	Will
	// Adopt is called when the first table is worked out, which then waits for
	// nothing else. It has adopt called with what the engine of the predecessor
	// sends, and returns when this process is the only one that may write state
	// and addresses.
	Adopt func(ctx context.Context, adopt func(context.Context, func() (lb.Parcel, error)) error) error
	// Serving is called when the first table is in force.
	Serving func() error
}

// Paused is an edge that neither writes nor decides: it is about to be handed
// over. Its connections go on. Call Resume or Release, once.
type Paused struct {
	Will
	edge    *Edge
	outcome chan bool // to the loop: whether it is released
}

// pauseRequest asks the loop to pause.
type pauseRequest struct {
	ctx     context.Context // of the caller who waits for the answer
	health  []byte
	leaving []Leaving
	answer  chan error // capacity 1
	outcome chan bool
}

// Pause makes the edge stop writing and deciding, at a moment when its files hold
// all that it knows. Clusters that write wait. It fails if the edge does not run,
// or has something that it cannot save.
func (e *Edge) Pause(ctx context.Context) (*Paused, error) {
	names := slices.Sorted(maps.Keys(e.clusters))
	var taken []*cluster
	giveBack := func() {
		for _, c := range taken {
			c.giveTurn()
		}
	}
	p := &Paused{edge: e, Will: Will{Digests: make(map[lb.Cluster]lb.Digest), Epochs: make(map[lb.Cluster]lb.Epoch)}, outcome: make(chan bool, 1)}
	for _, name := range names {
		c := e.clusters[name]
		if err := c.takeTurn(ctx); err != nil {
			giveBack()
			return nil, fmt.Errorf("wait for a write of cluster %q: %w", name, err)
		}
		taken = append(taken, c)
		if c.unsaved.Load() {
			giveBack()
			return nil, fmt.Errorf("the configuration of cluster %q is served but not saved; a new process could not read it: make room or repair the disk first", name)
		}
		p.Digests[name], p.Epochs[name] = c.held.Load().digest, c.lease.epoch()
	}
	request := pauseRequest{ctx: ctx, answer: make(chan error, 1), outcome: p.outcome}
	if err := e.askToPause(ctx, &request); err != nil {
		giveBack()
		return nil, err
	}
	p.Health, p.Leaving = request.health, request.leaving
	p.Lock = e.lock
	return p, nil
}

func (e *Edge) askToPause(ctx context.Context, r *pauseRequest) error {
	select {
	case e.pauses <- r:
		return <-r.answer // the loop heeds the context itself
	case <-e.over:
		return errors.New("the edge does not serve any more")
	case <-ctx.Done():
		return fmt.Errorf("wait for the loop that decides: %w", ctx.Err())
	}
}

// Resume makes the edge go on as if nothing had happened.
func (p *Paused) Resume() {
	p.outcome <- false
	for _, c := range p.edge.clusters {
		c.giveTurn()
	}
}

// Release leaves everything to the successor: the edge gives its lock back and
// Run only waits for the connections that are left.
func (p *Paused) Release() error {
	close(p.edge.released)
	p.outcome <- true
	return p.edge.Close()
}

// pause waits for what becomes of a hand-over, and reports whether the edge was
// released. An edge that was asked to stop is not paused: its listeners may be
// closed already.
func (l *loop) pause(ctx context.Context, r *pauseRequest) bool {
	if ctx.Err() != nil {
		r.answer <- errStopping
		return false
	}
	var err error
	r.leaving = l.listLeaving()
	r.health, err = encodeHealth(l.knownHealth())
	if err == nil {
		err = l.saver.rest(r.ctx) //nolint:contextcheck // draining outlives the context that asked for the rest to end
	}
	r.answer <- err
	if err != nil {
		return false
	}
	// Not for longer than the hand-over takes, which has limits of its own.
	if <-r.outcome {
		return true
	}
	l.healthChanged = true // it may have been a while
	return false
}

// rest waits until nothing is being written. Only the loop calls it.
func (s *saver) rest(ctx context.Context) error {
	select {
	case <-s.health: // whoever comes next has a newer one
	default:
	}
	done := make(chan struct{})
	select {
	case s.resting <- done:
		<-done
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the disk: %w", ctx.Err())
	}
}

// takeOver makes this edge the one that serves, in place of the predecessor.
func (l *loop) takeOver(ctx context.Context) error {
	start := time.Now()
	err := l.predecessor.Adopt(ctx, l.engine.Adopt)
	if err != nil {
		return fmt.Errorf("take over: %w", err)
	}
	adopted := time.Now()
	l.inheritLeaving(l.predecessor.Leaving)
	l.turn(ctx, true)
	if !l.ready.Load() {
		return fmt.Errorf("take over: the first table is not in force: %w", errors.Join(l.stats.snapshot().engineErr, ctx.Err()))
	}
	took := time.Since(adopted)
	if err := l.predecessor.Serving(); err != nil {
		return fmt.Errorf("take over: %w", err)
	}
	l.log.Info("took over from the process before", zap.Duration("adopting", adopted.Sub(start).Round(time.Microsecond)), zap.Duration("firstTable", took.Round(time.Microsecond)))
	return nil
}

// inherited says whether the files that were read are what the predecessor has
// served.
func (e *Edge) inherited(w Will) error {
	for name, c := range e.clusters {
		digest, known := w.Digests[name]
		if !known {
			continue // new in the configuration
		}
		if got := c.held.Load().digest; got != digest {
			return fmt.Errorf("take over cluster %q: its state file holds %.12q, and the process before serves %.12q: stop that one, and look at the log of the next start", name, got, digest)
		}
		if got := c.lease.epoch(); got != w.Epochs[name] {
			return fmt.Errorf("take over cluster %q: its lease file holds epoch %q, and the process before has %q: stop that one, and look at the log of the next start", name, got, w.Epochs[name])
		}
	}
	return nil
}

// knownAtStart returns what is known of members: what the predecessor tells, or
// what the file holds.
func (e *Edge) knownAtStart() map[healthcheck.Target]healthcheck.Result {
	if e.predecessor == nil {
		return e.loadHealth()
	}
	known, err := decodeHealth(e.predecessor.Health)
	if err != nil {
		e.log.Warn("what the process before knew about the members' health cannot be read; the file of a while ago counts", zap.Error(err))
		return e.loadHealth()
	}
	return known
}

// drain waits for the connections of an edge that was released.
func (l *loop) drain(ctx context.Context) error {
	l.log.Info("another process has taken over; open connections may end here", zap.Duration("within", l.upgradeDrainTimeout), zap.Int64("connections", l.activeConnections()))
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.upgradeDrainTimeout)
	defer cancel()
	var watching sync.WaitGroup
	defer watching.Wait()
	within, abandon := context.WithCancelCause(within)
	defer abandon(nil)
	if engine, ok := l.engine.(lb.Restricter); ok {
		watching.Go(func() { l.watchRanges(within, engine) })
	}
	stop := sync.OnceFunc(func() {
		l.log.Info("asked to stop; open connections may end", zap.Duration("within", l.drainTimeout))
		time.AfterFunc(l.drainTimeout, cancel)
	})
	if l.endsWithSuccessor {
		go l.watchSuccessor(within, stop, abandon)
	}
	// Asked to stop, it stops as ever.
	defer context.AfterFunc(ctx, stop)()
	err := l.shutdown(within)
	if cause := context.Cause(within); errors.Is(cause, errAbandoned) {
		return errors.Join(err, cause)
	}
	return err
}

// watchRanges keeps to the source ranges that clusters write to the successor: who is
// shut out there must not go on here.
func (l *loop) watchRanges(ctx context.Context, engine lb.Restricter) {
	tick := time.NewTicker(rangesInterval)
	defer tick.Stop()
	seen := make(map[lb.Cluster]os.FileInfo, len(l.clusters))
	for {
		changed := false
		for name, c := range l.clusters {
			info, err := os.Stat(c.configFile.path)
			if err != nil || seen[name] != nil && os.SameFile(info, seen[name]) && info.ModTime().Equal(seen[name].ModTime()) {
				continue
			}
			seen[name], changed = info, true
		}
		if changed {
			engine.Restrict(l.savedRanges())
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// savedRanges returns the source ranges of load balancers as they are saved now. What
// cannot be read restricts nobody.
func (l *loop) savedRanges() map[lb.Owner][]netip.Prefix {
	all := make(map[lb.Owner][]netip.Prefix)
	for name, c := range l.clusters {
		err := c.configFile.read(c.configFile.path, func(data []byte) error {
			h, err := decodeState(data)
			if err != nil {
				return err
			}
			for uid, b := range h.config.LoadBalancers {
				if len(b.SourceRanges) > 0 && !slices.ContainsFunc(b.SourceRanges, func(p netip.Prefix) bool { return !p.IsValid() }) {
					all[lb.Owner{Cluster: name, UID: uid}] = b.SourceRanges
				}
			}
			return nil
		})
		if err != nil {
			l.log.Warn("the source ranges that a cluster has written since the hand-over cannot be read; open connections that they forbid may go on here", zap.String("cluster", string(name)), zap.Error(err))
		}
	}
	return all
}

// watchSuccessor waits until no process has the state directory any more: all that
// came after this one have ended. If the last of them was stopped, this one is too,
// whether it was told or not; else it has crashed.
func (l *loop) watchSuccessor(ctx context.Context, stop func(), abandon context.CancelCauseFunc) {
	tick := time.NewTicker(successorInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		// Shared, so that those who watch do not take each other for a successor. A
		// new edge that starts at this very moment is refused, and started again.
		lock, err := lockFile(l.lockPath, unix.LOCK_SH|unix.LOCK_NB)
		if err != nil {
			continue
		}
		stopped := isMarked(lock)
		_ = lock.Close()
		if stopped {
			stop()
			return
		}
		l.log.Warn("nobody serves any more in place of this process; it ends at once, so that the edge is started again")
		abandon(errAbandoned)
		return
	}
}

// The lock of the state directory is empty while an edge runs, and is not once it
// was asked to stop. Its size can be changed on a full disk too.

func mark(lock *os.File) error { return lock.Truncate(1) }

func unmark(lock *os.File) error { return lock.Truncate(0) }

func isMarked(lock *os.File) bool {
	info, err := lock.Stat()
	return err == nil && info.Size() > 0
}

func (l *loop) activeConnections() int64 {
	var n int64
	for _, r := range l.engine.Counters() {
		if r.Frontend.Protocol == lb.TCP {
			n += r.Active
		}
	}
	return n
}
