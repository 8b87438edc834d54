package edge

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

const (
	// statusWait is the longest that Status waits for a change.
	statusWait = 30 * time.Second
	// statusGather is how long an answer waits for what comes with a change: a new
	// configuration is held first and applied a moment later, and whoever was told
	// of the first would have to wait for the next answer.
	statusGather = 20 * time.Millisecond
	// maxTombstones is how many removed entries a cluster's status remembers.
	// Beyond it clients that know older ones get everything again.
	maxTombstones = 8192
)

// An entry is a part of a status with the version at which it last changed. An
// entry that is gone stays as a tombstone, so that deltas can tell.
type entry[V any] struct {
	value   V
	version uint64
	gone    bool
}

// statusLog keeps a cluster's status so that the difference to any version can
// be told. Writers give it the whole truth; it finds out what changed.
type statusLog struct {
	instance string // of the process: versions mean nothing to another one

	mu         sync.Mutex
	changed    chan struct{} // closed and replaced at each new version
	version    uint64
	floor      uint64 // the oldest version of which everything since is known
	tombstones int
	head       head
	applied    time.Time // when head.revision came into force
	lbs        map[lb.UID]entry[lb.LoadBalancerStatus]
	checks     map[lb.CheckID]map[lb.NodeName]entry[lb.MemberStatus]
}

// head is what a status says about the cluster as a whole.
type head struct {
	revision uint64
	digest   lb.Digest
	epoch    lb.Epoch
	durable  bool
}

func newStatusLog(instance string) *statusLog {
	return &statusLog{
		instance: instance,
		changed:  make(chan struct{}),
		version:  1,
		floor:    1,
		head:     head{durable: true},
		lbs:      make(map[lb.UID]entry[lb.LoadBalancerStatus]),
		checks:   make(map[lb.CheckID]map[lb.NodeName]entry[lb.MemberStatus]),
	}
}

// setHead changes the head and wakes those who wait.
func (s *statusLog) setHead(change func(*head)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.head
	change(&s.head)
	if s.head != was {
		s.advance()
	}
}

// setLoadBalancers replaces what is told of all load balancers, together with
// the revision that it belongs to. It reports whether that is another one than
// before.
func (s *statusLog) setLoadBalancers(revision uint64, now map[lb.UID]lb.LoadBalancerStatus) (newRevision bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.version + 1
	newRevision = s.head.revision != revision
	if newRevision {
		s.head.revision, s.applied = revision, time.Now()
	}
	if s.replace(next, now) || newRevision {
		s.advance()
	}
	return newRevision
}

func (s *statusLog) replace(next uint64, now map[lb.UID]lb.LoadBalancerStatus) bool {
	buried, changed := replaceAll(s.lbs, now, next, func(a, b lb.LoadBalancerStatus) bool {
		return a.Applied == b.Applied && a.Partial == b.Partial && slices.Equal(a.Problems, b.Problems) && slices.Equal(a.Leaving, b.Leaving)
	})
	s.tombstones += buried
	return changed
}

// setMembers replaces what is told of all members.
func (s *statusLog) setMembers(now map[lb.CheckID]map[lb.NodeName]lb.MemberStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.version + 1
	any := false
	for id := range now {
		if s.checks[id] == nil {
			s.checks[id] = make(map[lb.NodeName]entry[lb.MemberStatus])
		}
	}
	for id, members := range s.checks {
		buried, changed := replaceAll(members, now[id], next, sameMember)
		s.tombstones += buried
		any = any || changed
	}
	if any {
		s.advance()
	}
}

// sameMember tells whether two statuses say the same to a reader. Texts of
// probes' errors differ from probe to probe, and that alone is no news; a text
// without a reason is not from a probe.
func sameMember(a, b lb.MemberStatus) bool {
	return a.State == b.State && a.Dead == b.Dead && a.Reason == b.Reason && a.Substitute == b.Substitute &&
		(a.Reason != "" || a.Error == b.Error)
}

// replaceAll brings entries to what now says at a version. It returns how many
// tombstones were added, less those that came back to life.
func replaceAll[K comparable, V any](entries map[K]entry[V], now map[K]V, version uint64, same func(a, b V) bool) (buried int, changed bool) {
	for k, v := range now {
		old, ok := entries[k]
		if ok && !old.gone && same(old.value, v) {
			continue
		}
		if old.gone {
			buried--
		}
		entries[k] = entry[V]{value: v, version: version}
		changed = true
	}
	for k, old := range entries {
		if _, ok := now[k]; !ok && !old.gone {
			entries[k] = entry[V]{version: version, gone: true}
			buried++
			changed = true
		}
	}
	return buried, changed
}

// advance makes a new version known. Callers hold mu.
func (s *statusLog) advance() {
	s.version++
	if s.tombstones > maxTombstones {
		s.forget()
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// forget drops all tombstones: whoever knows an older version than the present
// one will be told everything.
func (s *statusLog) forget() {
	dropGone(s.lbs)
	for id, members := range s.checks {
		if dropGone(members); len(members) == 0 {
			delete(s.checks, id)
		}
	}
	s.tombstones = 0
	s.floor = s.version
}

func dropGone[K comparable, V any](entries map[K]entry[V]) {
	for k, e := range entries {
		if e.gone {
			delete(entries, k)
		}
	}
}

// wait returns what changed after the cursor once something has, or the empty
// delta when nothing did for statusWait.
func (s *statusLog) wait(ctx context.Context, after lb.Cursor) (lb.StatusDelta, error) {
	timer := time.NewTimer(statusWait)
	defer timer.Stop()
	for {
		d, changed := s.delta(after)
		if d.Full || d.Cursor != after {
			return d, nil
		}
		select {
		case <-changed:
			timer.Reset(statusGather)
			select {
			case <-timer.C:
			case <-ctx.Done():
			}
			d, _ := s.delta(after)
			return d, nil
		case <-timer.C:
			return d, nil
		case <-ctx.Done():
			return lb.StatusDelta{}, ctx.Err()
		}
	}
}

// delta returns what changed after the cursor, and a channel that is closed at
// the next change.
func (s *statusLog) delta(after lb.Cursor) (lb.StatusDelta, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	since, known := s.parse(after)
	if !known {
		since = 0
	}
	d := lb.StatusDelta{
		Cursor:   lb.Cursor(fmt.Sprintf("%s.%d", s.instance, s.version)),
		Full:     !known,
		Revision: s.head.revision,
		Digest:   s.head.digest,
		Epoch:    s.head.epoch,
		Durable:  s.head.durable,
	}
	d.LoadBalancers = changedAfter(s.lbs, since, d.Full)
	for id, members := range s.checks {
		changed := changedAfter(members, since, d.Full)
		if len(changed) == 0 {
			continue
		}
		if d.Checks == nil {
			d.Checks = make(map[lb.CheckID]*lb.CheckDelta)
		}
		d.Checks[id] = &lb.CheckDelta{Members: changed}
		if allGone(members) {
			d.Checks[id] = nil
		}
	}
	return d, s.changed
}

// changedAfter returns the entries that changed after a version, nil for those gone.
func changedAfter[K comparable, V any](entries map[K]entry[V], version uint64, full bool) map[K]*V {
	var out map[K]*V
	for k, e := range entries {
		if e.version <= version || full && e.gone {
			continue
		}
		if out == nil {
			out = make(map[K]*V)
		}
		out[k] = nil
		if !e.gone {
			out[k] = &e.value
		}
	}
	return out
}

func allGone[K comparable, V any](entries map[K]entry[V]) bool {
	for _, e := range entries {
		if !e.gone {
			return false
		}
	}
	return true
}

// parse returns a cursor's version; false if everything must be told.
func (s *statusLog) parse(c lb.Cursor) (uint64, bool) {
	number, ok := strings.CutPrefix(string(c), s.instance+".")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil || n < s.floor || n > s.version {
		return 0, false
	}
	return n, true
}

// whole returns everything that is told, and since when its revision is in force.
func (s *statusLog) whole() (lb.Status, time.Time) {
	d, _ := s.delta("")
	var all lb.Status
	all.Apply(d)
	s.mu.Lock()
	defer s.mu.Unlock()
	return all, s.applied
}

// summary returns the applied revision and how many load balancers are applied
// and not.
func (s *statusLog) summary() (revision uint64, applied, refused int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.lbs {
		switch {
		case e.gone:
		case e.value.Applied:
			applied++
		default:
			refused++
		}
	}
	return s.head.revision, applied, refused
}

// members returns a copy of what is told of the members.
func (s *statusLog) members() map[lb.CheckID]map[lb.NodeName]lb.MemberStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[lb.CheckID]map[lb.NodeName]lb.MemberStatus, len(s.checks))
	for id, members := range s.checks {
		out[id] = make(map[lb.NodeName]lb.MemberStatus, len(members))
		for node, e := range members {
			if !e.gone {
				out[id][node] = e.value
			}
		}
	}
	return out
}
