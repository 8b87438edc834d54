package proxy

import (
	"sync/atomic"
	"time"
)

// budget is a number of things of which a limited number may be in use. It is
// safe for concurrent use.
type budget struct {
	limit int64
	used  atomic.Int64
}

// take takes n, or nothing and returns false.
func (b *budget) take(n int64) bool {
	if b.used.Add(n) > b.limit {
		b.used.Add(-n)
		return false
	}
	return true
}

func (b *budget) give(n int64) { b.used.Add(-n) }

// throttle lets one event pass per interval and counts the others. It is safe
// for concurrent use.
type throttle struct {
	interval time.Duration
	next     atomic.Int64
	held     atomic.Int64
}

// pass tells whether the event at the time now may pass, and how many were held
// back since the last that did.
func (t *throttle) pass(now int64) (held int64, ok bool) {
	next := t.next.Load()
	if now < next || !t.next.CompareAndSwap(next, now+int64(t.interval)) {
		t.held.Add(1)
		return 0, false
	}
	return t.held.Swap(0), true
}
