package lbtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// Call names a method of [lb.Balancer].
type Call string

// The calls.
const (
	CallInfo   Call = "Info"
	CallClaim  Call = "Claim"
	CallConfig Call = "Config"
	CallSet    Call = "Set"
	CallStatus Call = "Status"
)

// FakeBalancer is an [lb.Balancer] in memory, as one cluster sees it: it keeps
// epochs, digests, revisions, the removal guard and cursors as an edge does, and
// fails when the test tells it to. Load balancers are applied as soon as they
// are set unless the test says otherwise with [FakeBalancer.SetLoadBalancer].
// All methods may be called concurrently.
type FakeBalancer struct {
	// Wait is how long Status waits for a change; NewFakeBalancer sets 30 s.
	// Change it only before the first use.
	Wait time.Duration

	mu       sync.Mutex
	info     lb.Info
	instance int
	changed  chan struct{}

	down     error
	failures map[Call][]error
	gates    map[Call]chan struct{}
	calls    map[Call]int

	claim      lb.Claim
	claims     []lb.Claim
	epoch      lb.Epoch
	epochs     int
	config     lb.Config
	digest     lb.Digest
	writes     []lb.Write
	durable    bool
	guard      bool
	largest    map[string]int
	overridden map[lb.UID]lb.LoadBalancerStatus

	status statusLog
}

var _ lb.Balancer = (*FakeBalancer)(nil)

// NewFakeBalancer returns a balancer of the given name that nobody has claimed
// and that can do what an edge with the proxy engine can.
func NewFakeBalancer(name string) *FakeBalancer {
	return &FakeBalancer{
		Wait: 30 * time.Second,
		info: lb.Info{
			Name: name, Version: "fake", Engine: "fake", Schema: lb.Schema,
			Capabilities: append(NewFakeEngine().Capabilities(), lb.CapCheckGRPC, lb.CapCheckNone),
		},
		instance:   1,
		changed:    make(chan struct{}),
		failures:   make(map[Call][]error),
		gates:      make(map[Call]chan struct{}),
		calls:      make(map[Call]int),
		durable:    true,
		largest:    make(map[string]int),
		overridden: make(map[lb.UID]lb.LoadBalancerStatus),
		status:     newStatusLog(),
	}
}

// Info returns the balancer's description.
func (b *FakeBalancer) Info(ctx context.Context) (lb.Info, error) {
	if err := b.enter(ctx, CallInfo); err != nil {
		return lb.Info{}, err
	}
	defer b.mu.Unlock()
	info := b.info
	info.Capabilities = slices.Clone(info.Capabilities)
	return info, nil
}

// Claim gives out the next epoch. Another ClusterUID than that of the first
// claim, and fewer transitions of the same Lease, are refused with ErrConflict.
func (b *FakeBalancer) Claim(ctx context.Context, c lb.Claim) (lb.Epoch, error) {
	if err := b.enter(ctx, CallClaim); err != nil {
		return "", err
	}
	defer b.mu.Unlock()
	if b.epoch != "" {
		if c.ClusterUID != b.claim.ClusterUID {
			return "", fmt.Errorf("claim by cluster UID %q: pinned to %q: %w", c.ClusterUID, b.claim.ClusterUID, lb.ErrConflict)
		}
		if c.LeaseUID == b.claim.LeaseUID && c.LeaseTransitions < b.claim.LeaseTransitions {
			return "", fmt.Errorf("claim by %q with %d lease transitions: %q has claimed with %d: %w",
				c.Holder, c.LeaseTransitions, b.claim.Holder, b.claim.LeaseTransitions, lb.ErrConflict)
		}
	}
	b.claim = c
	b.claims = append(b.claims, c)
	b.nextEpoch()
	return b.epoch, nil
}

// nextEpoch makes the current epoch stale. Callers hold mu.
func (b *FakeBalancer) nextEpoch() {
	b.epochs++
	b.epoch = lb.Epoch(fmt.Sprintf("%d.%d", b.instance, b.epochs))
	b.touch()
}

// Config returns what was set last, and its digest.
func (b *FakeBalancer) Config(ctx context.Context) (lb.Config, lb.Digest, error) {
	if err := b.enter(ctx, CallConfig); err != nil {
		return lb.Config{}, "", err
	}
	defer b.mu.Unlock()
	return b.config, b.digest, nil
}

// Set keeps the configuration after the checks that an edge makes: epoch, base,
// revision, and removals if [FakeBalancer.GuardRemovals] was called.
func (b *FakeBalancer) Set(ctx context.Context, w lb.Write) (lb.Receipt, error) {
	if err := b.enter(ctx, CallSet); err != nil {
		return lb.Receipt{}, err
	}
	defer b.mu.Unlock()
	if w.Epoch == "" || w.Epoch != b.epoch {
		return lb.Receipt{}, fmt.Errorf("set with epoch %q: current is %q: %w", w.Epoch, b.epoch, lb.ErrStaleEpoch)
	}
	if w.Base != "" && w.Base != b.digest {
		return lb.Receipt{}, fmt.Errorf("set on base %q: held is %q: %w", w.Base, b.digest, lb.ErrBaseDiffers)
	}
	if w.Config.Revision < b.config.Revision {
		return lb.Receipt{}, fmt.Errorf("set revision %d: %d was set before: %w", w.Config.Revision, b.config.Revision, lb.ErrConflict)
	}
	if err := b.held(w); err != nil {
		return lb.Receipt{}, err
	}
	digest, err := digestOf(w.Config)
	if err != nil {
		return lb.Receipt{}, err
	}
	b.writes = append(b.writes, w)
	b.config, b.digest = w.Config, digest
	b.applyLoadBalancers()
	b.touch()
	return lb.Receipt{Digest: b.digest, Durable: b.durable}, nil
}

// held returns a RemovalHeldError if the write removes more than half of the
// largest set, and at least four, without having confirmed exactly that.
// Callers hold mu.
func (b *FakeBalancer) held(w lb.Write) error {
	if !b.guard {
		return nil
	}
	removed := map[string][]string{
		"loadBalancers": missing("loadBalancers/", b.config.LoadBalancers, w.Config.LoadBalancers),
		"nodes":         missing("nodes/", b.config.Nodes, w.Config.Nodes),
	}
	b.largest["loadBalancers"] = max(b.largest["loadBalancers"], len(b.config.LoadBalancers))
	b.largest["nodes"] = max(b.largest["nodes"], len(b.config.Nodes))
	var keys []string
	largest := 0
	for _, kind := range []string{"loadBalancers", "nodes"} {
		if n := len(removed[kind]); n >= 4 && 2*n > b.largest[kind] {
			keys = append(keys, removed[kind]...)
			largest = max(largest, b.largest[kind])
		}
	}
	slices.Sort(keys)
	confirmed := slices.Clone(w.ConfirmedRemovals)
	slices.Sort(confirmed)
	if len(keys) == 0 || slices.Equal(keys, confirmed) {
		return nil
	}
	return &lb.RemovalHeldError{Keys: keys, Largest: largest}
}

// missing returns the keys of was that are not in is, with a prefix.
func missing[K ~string, V any](prefix string, was, is map[K]V) []string {
	var keys []string
	for k := range was {
		if _, ok := is[k]; !ok {
			keys = append(keys, prefix+string(k))
		}
	}
	return keys
}

func digestOf(c lb.Config) (lb.Digest, error) {
	data, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("digest of revision %d: %w", c.Revision, err)
	}
	sum := sha256.Sum256(data)
	return lb.Digest(hex.EncodeToString(sum[:8])), nil
}

// applyLoadBalancers brings the status of load balancers in line with the
// configuration. Callers hold mu.
func (b *FakeBalancer) applyLoadBalancers() {
	for uid := range b.config.LoadBalancers {
		s, ok := b.overridden[uid]
		if !ok {
			s = lb.LoadBalancerStatus{Applied: true}
		}
		b.status.setLoadBalancer(uid, &s)
	}
	for uid := range maps.Clone(b.status.loadBalancers) {
		if _, held := b.config.LoadBalancers[uid]; held {
			continue
		}
		if s := b.overridden[uid]; len(s.Leaving) > 0 {
			b.status.setLoadBalancer(uid, &s)
			continue
		}
		b.status.setLoadBalancer(uid, nil)
	}
}

// Status returns what changed after the cursor, waiting for at most Wait.
func (b *FakeBalancer) Status(ctx context.Context, after lb.Cursor) (lb.StatusDelta, error) {
	if err := b.enter(ctx, CallStatus); err != nil {
		return lb.StatusDelta{}, err
	}
	timer := time.NewTimer(b.Wait)
	defer timer.Stop()
	for expired := false; ; {
		if b.down != nil {
			defer b.mu.Unlock()
			return lb.StatusDelta{}, b.down
		}
		d := b.delta(after)
		if d.Cursor != after || expired {
			defer b.mu.Unlock()
			return d, nil
		}
		changed := b.changed
		b.mu.Unlock()
		select {
		case <-changed:
		case <-timer.C:
			expired = true
		case <-ctx.Done():
			return lb.StatusDelta{}, ctx.Err()
		}
		b.mu.Lock()
	}
}

// delta returns what changed after the cursor. Callers hold mu.
func (b *FakeBalancer) delta(after lb.Cursor) lb.StatusDelta {
	d := b.status.since(b.instance, after)
	d.Revision, d.Digest, d.Epoch, d.Durable = b.config.Revision, b.digest, b.epoch, b.durable
	return d
}

// enter counts the call, makes it fail or wait as the test has ordered, and
// returns nil with mu locked.
func (b *FakeBalancer) enter(ctx context.Context, c Call) error {
	b.mu.Lock()
	b.calls[c]++
	if gate := b.gates[c]; gate != nil {
		b.mu.Unlock()
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
		b.mu.Lock()
	}
	err := ctx.Err()
	if err == nil {
		err = b.down
	}
	if f := b.failures[c]; err == nil && len(f) > 0 {
		err, b.failures[c] = f[0], f[1:]
	}
	if err != nil {
		b.mu.Unlock()
	}
	return err
}

// touch wakes everybody who waits in Status. Callers hold mu.
func (b *FakeBalancer) touch() {
	b.status.version++
	close(b.changed)
	b.changed = make(chan struct{})
}
