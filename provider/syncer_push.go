package provider

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/lb"
)

// push brings the newest that is wanted to the edge. It returns after which time
// to push again even if nothing changes, zero for never, and an error if the
// session cannot go on.
func (c *session) push(ctx context.Context) (again time.Duration, err error) {
	w, ok := c.fleet.newest(c.spec)
	if !ok || w.Paused {
		c.sent = nil
		return 0, nil
	}
	if w.Blind {
		return 0, nil // what we know by now leads to another decision
	}
	if c.epoch == "" {
		return 0, fmt.Errorf("edge %q is not claimed yet: %w", c.spec.Name, errRestart)
	}
	if c.sent == nil || !c.sent.same(w) {
		if err := c.send(ctx, w); err != nil {
			return c.refuse(err)
		}
		c.sent, c.refused = &w, 0
	}
	return c.confirmHeld(ctx, w)
}

// send brings what is wanted to the edge, but for what it cannot do and for
// removals that it holds.
func (c *session) send(ctx context.Context, w Wanted) error {
	config, withheld, trimmed := c.compose(w)
	c.state.Withheld, c.state.Trimmed = withheld, trimmed
	if err := c.deliver(ctx, config, func(key string) bool { return c.releasedByHand(w, key) }); err != nil {
		return err
	}
	c.repaired()
	c.state.Problem = ""
	c.publish()
	return nil
}

// compose returns what the edge is to hold; see [compose].
func (c *session) compose(w Wanted) (lb.Config, map[lb.UID]lb.Problem, map[lb.UID]Trimmed) {
	return compose(w, c.state.Info, c.remembered())
}

// remembered returns what the edge holds and, besides, what it had been given and
// has lost.
func (c *session) remembered() lb.Config {
	holds := c.state.Holds
	if c.drift == nil || c.given == nil {
		return holds
	}
	holds.LoadBalancers = union(c.given.LoadBalancers, holds.LoadBalancers)
	holds.Pools = union(c.given.Pools, holds.Pools)
	return holds
}

// union returns the entries of both, of which those of b count.
func union[K comparable, V any](a, b map[K]V) map[K]V {
	all := maps.Clone(a)
	if all == nil {
		return b
	}
	maps.Copy(all, b)
	return all
}

// set writes once, and keeps the books about what the edge holds.
func (c *session) set(ctx context.Context, config lb.Config, confirmed []string) error {
	receipt, err := within(ctx, setTimeout*c.patience, func(ctx context.Context) (lb.Receipt, error) {
		return c.balancer.Set(ctx, lb.Write{Epoch: c.epoch, Config: config, ConfirmedRemovals: confirmed})
	})
	switch {
	case err == nil:
		c.patience = 1
		if receipt.Digest != c.digest {
			c.unproven = time.Now()
		}
		c.given, c.digest = &config, receipt.Digest
		c.recent[receipt.Digest] = true
		c.state.Holds, c.state.Known = config, true
		c.state.LastContact = time.Now()
	case !refusal(err):
		// Nobody knows whether the edge has it: what is read back is no drift.
		c.given = nil
		c.state.Known = false
		c.grow(err)
	}
	return err
}

// refusal says whether the edge itself has answered that it does not do it, so
// that nothing has changed there.
func refusal(err error) bool {
	for _, kind := range []error{lb.ErrInvalid, lb.ErrUnsupported, lb.ErrConflict, lb.ErrExhausted, lb.ErrNotFound} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// refuse decides how to go on after a write that failed.
func (c *session) refuse(err error) (again time.Duration, _ error) {
	c.sent = nil
	switch {
	case errors.Is(err, lb.ErrStaleEpoch):
		c.epoch = ""
		return 0, fmt.Errorf("edge %q takes our right to write for outdated: %w (%w)", c.spec.Name, errRestart, err)
	case errors.Is(err, lb.ErrBaseDiffers):
		return 0, fmt.Errorf("edge %q holds something else than it was given: %w (%w)", c.spec.Name, errRestart, err)
	case !refusal(err):
		return 0, fmt.Errorf("writing to edge %q: %w", c.spec.Name, err)
	}
	again = backoff(c.refused, maxRefusedBackoff)
	c.refused++
	problem := fmt.Sprintf("the edge refuses the configuration: %v", err)
	if c.state.Problem != problem {
		c.state.Problem = problem
		c.log.Warn("edge refuses the configuration, it keeps what it holds; trying again when the configuration changes and in between",
			zap.Duration("in", again), zap.Error(err))
		c.publish()
	}
	return again, nil
}

// repaired tells of drift that the write before has put right.
func (c *session) repaired() {
	if c.drift == nil {
		return
	}
	c.state.DriftRepaired++
	c.log.Info("edge is right again", zap.Stringer("difference", c.drift), zap.Uint64("revision", c.given.Revision))
	c.fleet.options.Event(c.spec.Name, corev1.EventTypeWarning, "DriftRepaired",
		fmt.Sprintf("the edge did not hold what it had been given (%s), and was put right", c.drift))
	c.drift = nil
}

// same says whether o asks for the very same, told by identity where comparing
// would be dear: a configuration is never changed, so equal maps are the same.
func (w Wanted) same(o Wanted) bool {
	return w.EdgeSpec == o.EdgeSpec && w.ReleaseRemovals == o.ReleaseRemovals && reflect.DeepEqual(w.Keep, o.Keep) && slices.Equal(w.Untold, o.Untold) &&
		reflect.DeepEqual(w.NodePorts, o.NodePorts) &&
		w.Config.Revision == o.Config.Revision &&
		sameMap(w.Config.Nodes, o.Config.Nodes) &&
		sameMap(w.Config.Pools, o.Config.Pools) &&
		sameMap(w.Config.LoadBalancers, o.Config.LoadBalancers)
}

// sortedKeys returns the keys of a set in order.
func sortedKeys(set map[string]bool) []string {
	return slices.Sorted(maps.Keys(set))
}
