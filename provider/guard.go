package provider

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/lb"
)

// An edge holds a write that removes much at once until each removal is
// confirmed, so that an informer that shows nothing takes nothing down. What is
// added or changed does not wait: everything is sent but the held removals,
// whose entries stay as the edge holds them, and then each of them is looked up
// at the API server itself.

// confirmEvery is how often held removals are looked up again.
const confirmEvery = 10 * time.Second

// The prefixes of the keys in an [lb.RemovalHeldError].
const (
	loadBalancerKey = "loadBalancers/"
	nodeKey         = "nodes/"
)

// deliver writes what is wanted but for the removals that the edge holds and
// that are not confirmed.
func (c *session) deliver(ctx context.Context, want lb.Config, confirmed func(key string) bool) error {
	c.forgetHeld(want)
	var demanded []string // what the edge wants to see confirmed, exactly
	for tries := 1; ; tries++ {
		var kept, done, confirmations []string
		for _, key := range sortedKeys(c.held) {
			if !confirmed(key) {
				kept = append(kept, key)
				continue
			}
			done = append(done, key)
			if demanded == nil || slices.Contains(demanded, key) {
				confirmations = append(confirmations, key)
			}
		}
		err := c.set(ctx, keep(want, c.state.Holds, kept), confirmations)
		var held *lb.RemovalHeldError
		switch {
		case errors.As(err, &held) && tries < 4:
			demanded = held.Keys
			c.hold(held)
		case err != nil:
			return err
		default:
			c.released(done)
			return nil
		}
	}
}

// hold notes removals that the edge holds.
func (c *session) hold(e *lb.RemovalHeldError) {
	fresh := 0
	for _, key := range e.Keys {
		if !c.held[key] {
			c.held[key] = true
			fresh++
		}
	}
	if fresh == 0 {
		return
	}
	c.confirm = time.Now()
	c.tellHeld()
	c.log.Warn("edge holds removals until they are confirmed; everything else is sent",
		zap.Int("held", len(c.held)), zap.Int("largest", e.Largest), zap.Strings("some", firstOf(c.state.RemovalHeld)))
	c.fleet.options.Event(c.spec.Name, corev1.EventTypeWarning, "RemovalHeld",
		fmt.Sprintf("the removal of %d of %d entries is held until the API server has confirmed each: %s",
			len(c.held), e.Largest, strings.Join(firstOf(c.state.RemovalHeld), ", ")))
	c.publish()
}

// released forgets removals that were confirmed and have been done.
func (c *session) released(keys []string) {
	if len(keys) == 0 {
		return
	}
	for _, key := range keys {
		delete(c.held, key)
	}
	c.tellHeld()
	c.log.Info("held removals are confirmed and done", zap.Int("done", len(keys)), zap.Int("stillHeld", len(c.held)), zap.Strings("some", firstOf(keys)))
	c.fleet.options.Event(c.spec.Name, corev1.EventTypeNormal, "RemovalReleased",
		fmt.Sprintf("%d held removals are confirmed and done, %d are still held", len(keys), len(c.held)))
}

// forgetHeld lets go of removals that are not asked for any more, or that the
// edge has done after all.
func (c *session) forgetHeld(want lb.Config) {
	if len(c.held) == 0 {
		return
	}
	for key := range c.held {
		if has(want, key) || !has(c.state.Holds, key) {
			delete(c.held, key)
		}
	}
	c.tellHeld()
}

// tellHeld says in the state which removals are held, and by which token a person
// lets them pass. The token is of no use for any others, nor for the same at
// another time.
func (c *session) tellHeld() {
	keys := sortedKeys(c.held)
	if slices.Equal(keys, c.state.RemovalHeld) {
		return
	}
	c.state.RemovalHeld, c.state.RemovalToken = keys, ""
	if len(keys) == 0 {
		c.heldSince = time.Time{}
		return
	}
	if c.heldSince.IsZero() {
		c.heldSince = time.Now()
	}
	sum := sha256.Sum256([]byte(c.heldSince.UTC().Format(time.RFC3339Nano) + "\n" + strings.Join(keys, "\n")))
	c.state.RemovalToken = hex.EncodeToString(sum[:5])
}

// releasedByHand says whether a person has let a held removal pass. That of a load
// balancer of an edge that is drained is meant.
func (c *session) releasedByHand(w Wanted, key string) bool {
	return w.Drain && strings.HasPrefix(key, loadBalancerKey) || w.ReleaseRemovals != "" && w.ReleaseRemovals == c.state.RemovalToken
}

// confirmHeld looks held removals up at the API server when that is due, and
// has the edge do those that are right. It returns when the next look is due.
func (c *session) confirmHeld(ctx context.Context, w Wanted) (again time.Duration, _ error) {
	if len(c.held) == 0 {
		return 0, nil
	}
	if wait := time.Until(c.confirm); wait > 0 {
		return wait, nil
	}
	c.confirm = time.Now().Add(confirmEvery)
	config, withheld, _ := c.compose(w)
	confirmed, err := c.lookUp(ctx, func(uid lb.UID) bool {
		_, ours := withheld[uid]
		_, kept := w.Keep[uid]
		return ours || kept
	})
	if err != nil {
		c.log.Warn("held removals cannot be looked up, they stay held; trying again", zap.Duration("in", confirmEvery), zap.Error(err))
		return confirmEvery, nil
	}
	if len(confirmed) == 0 {
		c.log.Warn("held removals are not confirmed by the API server, they stay held; annotate the Edge to let them pass by hand",
			zap.Int("held", len(c.held)), zap.Duration("in", confirmEvery))
		return confirmEvery, nil
	}
	if err := c.deliver(ctx, config, func(key string) bool { return confirmed[key] }); err != nil {
		return c.refuse(err)
	}
	c.publish()
	if len(c.held) == 0 {
		return 0, nil
	}
	return max(time.Until(c.confirm), minRetry), nil
}

// lookUp returns the held removals that are right. Load balancers that are meant
// not to be on this edge, although their Services are there, need no confirmation.
func (c *session) lookUp(ctx context.Context, meant func(lb.UID) bool) (map[string]bool, error) {
	confirmed := make(map[string]bool)
	var keys []string
	for _, key := range sortedKeys(c.held) {
		if uid, ok := strings.CutPrefix(key, loadBalancerKey); ok && meant(lb.UID(uid)) {
			confirmed[key] = true
			continue
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return confirmed, nil
	}
	listed, err := within(ctx, confirmTimeout, func(ctx context.Context) ([]string, error) {
		return c.fleet.options.ConfirmRemovals(ctx, keys)
	})
	if err != nil {
		return nil, err
	}
	for _, key := range listed {
		if c.held[key] {
			confirmed[key] = true
		}
	}
	return confirmed, nil
}

// has says whether the configuration has the entry that a removal's key names.
func has(c lb.Config, key string) bool {
	if uid, ok := strings.CutPrefix(key, loadBalancerKey); ok {
		_, there := c.LoadBalancers[lb.UID(uid)]
		return there
	}
	if node, ok := strings.CutPrefix(key, nodeKey); ok {
		_, there := c.Nodes[lb.NodeName(node)]
		return there
	}
	return false
}

// keep returns want with the entries that the keys name as the edge holds them:
// nodes with their places in pools, load balancers with their pool.
func keep(want, holds lb.Config, keys []string) lb.Config {
	if len(keys) == 0 {
		return want
	}
	want.Nodes, want.LoadBalancers = maps.Clone(want.Nodes), maps.Clone(want.LoadBalancers)
	want.Pools = clonePools(want.Pools)
	var kept []lb.NodeName
	for _, key := range keys {
		node, ok := strings.CutPrefix(key, nodeKey)
		if n, there := holds.Nodes[lb.NodeName(node)]; ok && there {
			put(&want.Nodes, lb.NodeName(node), n)
			kept = append(kept, lb.NodeName(node))
		}
	}
	for _, key := range keys {
		uid, ok := strings.CutPrefix(key, loadBalancerKey)
		if l, there := holds.LoadBalancers[lb.UID(uid)]; ok && there {
			l.Members = onlyNodes(l.Members, want.Nodes)
			put(&want.LoadBalancers, lb.UID(uid), l)
			if _, ok := want.Pools[l.Pool]; !ok {
				put(&want.Pools, l.Pool, onlyNodes(holds.Pools[l.Pool], want.Nodes))
			}
		}
	}
	for name, pool := range holds.Pools {
		into, ok := want.Pools[name]
		if !ok {
			continue
		}
		for _, node := range kept {
			if member, in := pool[node]; in {
				put(&into, node, member)
			}
		}
		want.Pools[name] = into
	}
	return want
}

// clonePools copies pools so that they can be added to.
func clonePools(pools map[lb.PoolName]lb.Pool) map[lb.PoolName]lb.Pool {
	out := make(map[lb.PoolName]lb.Pool, len(pools))
	for name, pool := range pools {
		out[name] = maps.Clone(pool)
	}
	return out
}

// onlyNodes returns the members that are among the nodes, nil for nil.
func onlyNodes[M ~map[lb.NodeName]lb.Member](members M, nodes map[lb.NodeName]lb.Node) M {
	members = maps.Clone(members)
	maps.DeleteFunc(members, func(n lb.NodeName, _ lb.Member) bool {
		_, ok := nodes[n]
		return !ok
	})
	return members
}

// put adds an entry to a map that may be nil.
func put[M ~map[K]V, K comparable, V any](m *M, k K, v V) {
	if *m == nil {
		*m = make(M)
	}
	(*m)[k] = v
}

// firstOf returns as many keys as a person wants to read.
func firstOf(keys []string) []string {
	const shown = 5
	return slices.Clone(keys[:min(len(keys), shown)])
}
