package edge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// The files of a cluster, in a directory of its own.
const (
	configName    = "config.json"
	leaseName     = "lease.json"
	leaseLockName = "lease.lock"
)

// cluster is the edge as one cluster sees it. Writers of one cluster wait for
// one another and for the disk; those of other clusters do not notice.
type cluster struct {
	name   lb.Cluster
	policy lb.Policy
	info   lb.Info
	log    *zap.Logger
	kick   func()          // wakes the edge's loop
	begun  <-chan struct{} // closed when there is something to tell
	status *statusLog
	// released is closed when another process has taken over.
	released <-chan struct{}
	heir     bool // another process may write yet: only read
	now      func() time.Time

	configFile, leaseFile file
	leaseLock             string

	// turn is held by the writer at work: a channel, so that waiting for it ends
	// with the caller's context.
	turn chan struct{}
	// What follows belongs to whoever has the turn.
	guard guard
	lease lease

	held  atomic.Pointer[held]
	epoch atomic.Pointer[lb.Epoch]
	// unsaved is true while the disk holds less than held.
	unsaved atomic.Bool
	// lost is true from the start until the first Set if there was a state file
	// that could not be read.
	lost atomic.Bool
	// heldWrite is the last one that the removal guard held.
	heldWrite atomic.Pointer[HeldWrite]

	stats clusterStats

	// Told in the log; these belong to the loop.
	faults     map[lb.UID]string
	nodeFaults map[lb.NodeName]string
}

// clusterStats count what the metrics tell of a cluster.
type clusterStats struct {
	sets, held, saveErrors, claims, refusedClaims atomic.Uint64

	mu     sync.Mutex
	save   time.Duration // of the last save that ended
	saving time.Time     // when the one under way began, zero without one
}

// saveTook notes the end of a save.
func (s *clusterStats) saveTook(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.save, s.saving = d, time.Time{}
}

// saveBegan notes the beginning of a save.
func (s *clusterStats) saveBegan(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saving = at
}

// lastSave returns how long the last save took, or takes by now if the disk hangs
// and that is longer.
func (s *clusterStats) lastSave(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.saving.IsZero() {
		return s.save
	}
	return max(s.save, now.Sub(s.saving))
}

var _ lb.Balancer = (*cluster)(nil)

// clusterDir returns the directory of a cluster's files.
func clusterDir(stateDir string, name lb.Cluster) (string, error) {
	s := string(name)
	if s == "" || strings.HasPrefix(s, ".") || strings.ContainsAny(s, "/\\\x00") || len(s) > 253 {
		return "", fmt.Errorf("cluster %q: the name cannot be that of a directory", name)
	}
	return filepath.Join(stateDir, "clusters", s), nil
}

// open reads the cluster's files.
func (c *cluster) open(stateDir string) error {
	dir, err := clusterDir(stateDir, c.name)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the state directory of cluster %q: %w", c.name, err)
	}
	c.configFile.path = filepath.Join(dir, configName)
	c.leaseFile.path = filepath.Join(dir, leaseName)
	c.leaseLock = filepath.Join(dir, leaseLockName)
	c.openLease()
	c.openConfig()
	h := c.held.Load()
	c.guard.note(h.config, c.now())
	c.status.setHead(func(head *head) { head.digest, head.epoch = h.digest, c.lease.epoch() })
	return nil
}

func (c *cluster) openLease() {
	if err := c.lease.load(c.leaseFile); err != nil {
		c.log.Error("the lease file cannot be read; the cluster's leader has to claim again", zap.Error(err))
		if c.heir {
			return // the predecessor's epoch will not be the same
		}
		// On the disk too, the new instance must be the one that is known here.
		if err := c.lease.save(c.leaseFile); err != nil {
			c.log.Error("the lease file cannot be repaired now; the next claim tries again", zap.Error(err))
		}
	}
	c.setEpoch(c.lease.epoch())
}

func (c *cluster) openConfig() {
	h := &held{}
	generation, err := c.configFile.load(func(data []byte) error {
		found, err := decodeState(data)
		if err == nil {
			h = found
		}
		return err
	})
	c.held.Store(h)
	switch {
	case generation == current:
		c.log.Info("serving the saved configuration", zap.Uint64("revision", h.config.Revision), zap.Int("loadBalancers", len(h.config.LoadBalancers)),
			zap.Int("nodes", len(h.config.Nodes)))
	case generation == previous:
		c.log.Error("the state file cannot be read; serving the configuration before it until the cluster writes again",
			zap.Uint64("revision", h.config.Revision), zap.Error(err))
	case err != nil:
		c.lost.Store(true)
		c.log.Error("no state file of the cluster can be read; what is in place stays until the cluster writes", zap.Error(err))
	default:
		c.log.Info("the cluster has not written yet")
	}
	if n := len(h.strange.loadBalancers); n > 0 {
		c.log.Warn("load balancers saved by a newer version cannot be served", zap.Int("loadBalancers", n), zap.String("schema", h.strange.schema))
	}
}

func (c *cluster) setEpoch(e lb.Epoch) { c.epoch.Store(&e) }

// Info says what the edge is and can do.
func (c *cluster) Info(ctx context.Context) (lb.Info, error) { return c.info, ctx.Err() }

// Config returns what the edge holds for the cluster.
func (c *cluster) Config(ctx context.Context) (lb.Config, lb.Digest, error) {
	if err := ctx.Err(); err != nil {
		return lb.Config{}, "", err
	}
	h := c.held.Load()
	return h.config, h.digest, nil
}

// Status returns what changed after the cursor.
func (c *cluster) Status(ctx context.Context, after lb.Cursor) (lb.StatusDelta, error) {
	hold := time.NewTimer(statusHold)
	defer hold.Stop()
	select {
	case <-c.begun:
	case <-hold.C:
	case <-ctx.Done():
		return lb.StatusDelta{}, ctx.Err()
	}
	return c.status.wait(ctx, after)
}

func (c *cluster) takeTurn(ctx context.Context) error {
	select {
	case c.turn <- struct{}{}:
		return nil
	case <-c.released:
		return errReleased
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *cluster) giveTurn() { <-c.turn }

// Claim makes the caller the only writer.
func (c *cluster) Claim(ctx context.Context, claim lb.Claim) (lb.Epoch, error) {
	if err := c.takeTurn(ctx); err != nil {
		return "", err
	}
	defer c.giveTurn()
	lock, err := lockFile(c.leaseLock, unix.LOCK_EX)
	if err != nil {
		return "", fmt.Errorf("claim %q: lock the lease: %w", c.name, err)
	}
	defer lock.Close()
	// The operator may have accepted another cluster since; a file that cannot be
	// read says nothing, and what is remembered holds.
	before := c.lease
	if data, err := os.ReadFile(c.leaseFile.path); err == nil {
		if found, err := decodeLease(data); err == nil && found.Instance == before.Instance {
			before = found
		}
	}
	next, err := before.claimed(c.name, claim)
	if err != nil {
		c.stats.refusedClaims.Add(1)
		c.log.Warn("a claim is refused", zap.String("holder", claim.Holder), zap.String("clusterUID", claim.ClusterUID), zap.Error(err))
		return "", err
	}
	if err := next.save(c.leaseFile); err != nil {
		c.stats.saveErrors.Add(1)
		c.log.Error("a claim cannot be saved and is refused", zap.String("holder", claim.Holder), zap.Error(err))
		return "", fmt.Errorf("claim %q: %w", c.name, err)
	}
	c.lease = next
	epoch := next.epoch()
	c.setEpoch(epoch)
	c.status.setHead(func(h *head) { h.epoch = epoch })
	c.stats.claims.Add(1)
	c.log.Info("the cluster has a new leader", zap.String("holder", claim.Holder), zap.Int64("leaseTransitions", claim.LeaseTransitions), zap.String("epoch", string(epoch)))
	return epoch, nil
}

// Set replaces the cluster's configuration.
func (c *cluster) Set(ctx context.Context, w lb.Write) (lb.Receipt, error) {
	if err := c.takeTurn(ctx); err != nil {
		return lb.Receipt{}, err
	}
	defer c.giveTurn()
	before := c.held.Load()
	if err := c.admit(before, w); err != nil {
		return lb.Receipt{}, err
	}
	next, data, err := newHeld(before, w.Config, w.Epoch)
	if err != nil {
		return lb.Receipt{}, fmt.Errorf("set %q: %w: %w", c.name, err, lb.ErrInvalid)
	}
	if next.digest != before.digest || next.epoch != before.epoch {
		c.replace(before, next, data)
	}
	return lb.Receipt{Digest: next.digest, Durable: !c.unsaved.Load()}, nil
}

// admit says whether a write may be done.
func (c *cluster) admit(before *held, w lb.Write) error {
	epoch := c.lease.epoch()
	switch {
	case w.Epoch == "" || w.Epoch != epoch:
		return fmt.Errorf("set %q with epoch %q: the current one is %q: %w", c.name, w.Epoch, epoch, lb.ErrStaleEpoch)
	case w.Base != "" && w.Base != before.digest:
		return fmt.Errorf("set %q on base %q: the edge holds %q: %w", c.name, w.Base, before.digest, lb.ErrBaseDiffers)
	case before.epoch == w.Epoch && w.Config.Revision < before.config.Revision:
		return fmt.Errorf("set %q to revision %d: revision %d was set in this epoch already: %w", c.name, w.Config.Revision, before.config.Revision, lb.ErrConflict)
	}
	if err := c.policy.Admits(before.config, w.Config); err != nil {
		return fmt.Errorf("set %q: %w", c.name, err)
	}
	err := c.guard.check(before.config, w.Config, w.ConfirmedRemovals, c.now())
	if held, ok := errors.AsType[*lb.RemovalHeldError](err); ok {
		c.stats.held.Add(1)
		c.heldWrite.Store(&HeldWrite{At: c.now(), Keys: held.Keys, Largest: held.Largest})
		c.log.Warn("a write is held because it removes too much unconfirmed; the cluster's controller confirms each removal or sends everything but those",
			zap.Int("removals", len(held.Keys)), zap.Int("largest", held.Largest), zap.Strings("first", held.Keys[:min(5, len(held.Keys))]))
	}
	return err
}

// replace saves and publishes what the cluster has written. Callers have the
// turn.
func (c *cluster) replace(before, next *held, data []byte) {
	c.save(data)
	next.written = c.now()
	c.held.Store(next)
	c.lost.Store(false)
	c.guard.note(next.config, c.now())
	c.stats.sets.Add(1)
	durable := !c.unsaved.Load()
	c.status.setHead(func(h *head) { h.digest, h.durable = next.digest, durable })
	c.logSet(before, next, durable)
	c.kick()
}

// save writes the state file. A disk that cannot be written must not stop the
// cluster from changing its mind; it is told, and tried again.
func (c *cluster) save(data []byte) {
	start := c.now()
	c.stats.saveBegan(start)
	err := c.configFile.save(data)
	c.stats.saveTook(c.now().Sub(start))
	was := c.unsaved.Swap(err != nil)
	switch {
	case err != nil:
		c.stats.saveErrors.Add(1)
		if !was {
			c.log.Error("the configuration cannot be saved; it is served all the same, and saving is tried again: make room or repair the disk", zap.Error(err))
		}
	case was:
		c.log.Info("the configuration is saved again")
	}
}

// saveAgain tries to save what could not be saved.
func (c *cluster) saveAgain(ctx context.Context) {
	if !c.unsaved.Load() || c.takeTurn(ctx) != nil {
		return
	}
	defer c.giveTurn()
	h := c.held.Load()
	canonical, err := h.canonical()
	if err != nil {
		return // it could be encoded before
	}
	data, err := h.encode(canonical)
	if err != nil {
		return
	}
	c.save(data)
	durable := !c.unsaved.Load()
	c.status.setHead(func(h *head) { h.durable = durable })
}

func (c *cluster) logSet(before, next *held, durable bool) {
	added, changed, removed := difference(before.config.LoadBalancers, next.config.LoadBalancers)
	nodesAdded, nodesChanged, nodesRemoved := difference(before.config.Nodes, next.config.Nodes)
	c.log.Info("the cluster has written", zap.Uint64("revision", next.config.Revision),
		zap.Ints("loadBalancersAddedChangedRemoved", []int{added, changed, removed}),
		zap.Ints("nodesAddedChangedRemoved", []int{nodesAdded, nodesChanged, nodesRemoved}),
		zap.Int("loadBalancers", len(next.config.LoadBalancers)), zap.Int("nodes", len(next.config.Nodes)), zap.Bool("durable", durable))
}
