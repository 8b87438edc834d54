package lbtest

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/eclusa-lb/eclusa/lb"
)

// FailNext makes the next calls of the method fail with these errors, one each.
// A nil among them lets one call pass.
func (b *FakeBalancer) FailNext(c Call, errs ...error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures[c] = append(b.failures[c], errs...)
}

// Down makes every call fail with err, those waiting in Status too, until Down
// is called with nil.
func (b *FakeBalancer) Down(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down = err
	close(b.changed)
	b.changed = make(chan struct{})
}

// Hold makes calls of the method wait until the returned function is called or
// their context ends: an edge that does not answer.
func (b *FakeBalancer) Hold(c Call) (release func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	gate := make(chan struct{})
	b.gates[c] = gate
	return sync.OnceFunc(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.gates[c] == gate {
			delete(b.gates, c)
		}
		close(gate)
	})
}

// Restart is what a restart of an edge is to its clients: all cursors are
// unknown, everything else is kept.
func (b *FakeBalancer) Restart() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.instance++
	b.touch()
}

// LoseState is a restart after the edge's state was deleted: configuration,
// digest, epoch and the pinned cluster are gone.
func (b *FakeBalancer) LoseState() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.instance++
	b.epoch, b.epochs, b.claim = "", 0, lb.Claim{}
	b.config, b.digest = lb.Config{}, ""
	clear(b.largest)
	b.status = statusLog{version: b.status.version, loadBalancers: map[lb.UID]entry[lb.LoadBalancerStatus]{}, members: map[member]entry[lb.MemberStatus]{}}
	b.touch()
}

// Steal gives the right to write to somebody else: the current epoch is stale.
func (b *FakeBalancer) Steal() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.nextEpoch()
}

// Drift replaces what the balancer holds behind the writers' backs.
func (b *FakeBalancer) Drift(c lb.Config) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	digest, err := digestOf(c)
	if err != nil {
		return err
	}
	b.config, b.digest = c, digest
	b.applyLoadBalancers()
	b.touch()
	return nil
}

// GuardRemovals turns the removal guard on: a write that removes more than half
// of the largest set ever held, and at least four, is held until it confirms
// exactly those keys.
func (b *FakeBalancer) GuardRemovals() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.guard = true
}

// SetInfo replaces what Info returns.
func (b *FakeBalancer) SetInfo(info lb.Info) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.info = info
}

// SetDurable says whether configurations can be saved.
func (b *FakeBalancer) SetDurable(durable bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.durable = durable
	b.touch()
}

// SetLoadBalancer says what becomes of a load balancer, whether it is held now
// or later; nil goes back to applying it.
func (b *FakeBalancer) SetLoadBalancer(uid lb.UID, s *lb.LoadBalancerStatus) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.overridden, uid)
	if s != nil {
		b.overridden[uid] = *s
	}
	b.applyLoadBalancers()
	b.touch()
}

// SetMember says how a node fares in a check; nil forgets it.
func (b *FakeBalancer) SetMember(check lb.CheckID, node lb.NodeName, s *lb.MemberStatus) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status.setMember(member{check, node}, s)
	b.touch()
}

// Held returns the configuration that is held now.
func (b *FakeBalancer) Held() lb.Config {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.config
}

// Writes returns the writes that were accepted, oldest first.
func (b *FakeBalancer) Writes() []lb.Write {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.writes)
}

// Claims returns the claims that were accepted, oldest first.
func (b *FakeBalancer) Claims() []lb.Claim {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.claims)
}

// Calls returns how often the method was called, failures included.
func (b *FakeBalancer) Calls(c Call) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls[c]
}

// WaitConfig returns the configuration held as soon as ok is true of it, or the
// error of ctx.
func (b *FakeBalancer) WaitConfig(ctx context.Context, ok func(lb.Config) bool) (lb.Config, error) {
	for {
		b.mu.Lock()
		config, changed := b.config, b.changed
		b.mu.Unlock()
		if ok(config) {
			return config, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return config, ctx.Err()
		}
	}
}

// member names an entry of the status.
type member struct {
	check lb.CheckID
	node  lb.NodeName
}

// entry is a value with the version of its last change; a nil value is one that
// is gone.
type entry[V any] struct {
	version int
	value   *V
}

// statusLog is a status that remembers when each of its entries changed.
type statusLog struct {
	// version is that of the newest change that readers may know of; entries
	// that change now get the next one.
	version       int
	loadBalancers map[lb.UID]entry[lb.LoadBalancerStatus]
	members       map[member]entry[lb.MemberStatus]
}

func newStatusLog() statusLog {
	return statusLog{
		version:       1,
		loadBalancers: make(map[lb.UID]entry[lb.LoadBalancerStatus]),
		members:       make(map[member]entry[lb.MemberStatus]),
	}
}

func (l *statusLog) setLoadBalancer(uid lb.UID, s *lb.LoadBalancerStatus) {
	was := l.loadBalancers[uid].value
	if was == nil && s == nil || was != nil && s != nil && was.Applied == s.Applied && was.Partial == s.Partial && slices.Equal(was.Problems, s.Problems) {
		return
	}
	l.loadBalancers[uid] = entry[lb.LoadBalancerStatus]{l.version + 1, s}
}

func (l *statusLog) setMember(m member, s *lb.MemberStatus) {
	if s != nil {
		kept := *s
		s = &kept
	}
	l.members[m] = entry[lb.MemberStatus]{l.version + 1, s}
}

// since returns what changed after the cursor, everything if the cursor is not
// one of the instance.
func (l *statusLog) since(instance int, after lb.Cursor) lb.StatusDelta {
	d := lb.StatusDelta{Cursor: lb.Cursor(fmt.Sprintf("%d.%d", instance, l.version))}
	known := -1
	if i, n, ok := strings.Cut(string(after), "."); ok && i == strconv.Itoa(instance) {
		if v, err := strconv.Atoi(n); err == nil && v <= l.version {
			known = v
		}
	}
	d.Full = known < 0
	for uid, e := range l.loadBalancers {
		if e.version <= known || d.Full && e.value == nil {
			continue
		}
		if d.LoadBalancers == nil {
			d.LoadBalancers = make(map[lb.UID]*lb.LoadBalancerStatus)
		}
		d.LoadBalancers[uid] = e.value
	}
	for m, e := range l.members {
		if e.version <= known || d.Full && e.value == nil {
			continue
		}
		if d.Checks == nil {
			d.Checks = make(map[lb.CheckID]*lb.CheckDelta)
		}
		if d.Checks[m.check] == nil {
			d.Checks[m.check] = &lb.CheckDelta{Members: make(map[lb.NodeName]*lb.MemberStatus)}
		}
		d.Checks[m.check].Members[m.node] = e.value
	}
	return d
}
