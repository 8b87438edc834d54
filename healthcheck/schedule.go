package healthcheck

import (
	"container/heap"
	"math"
	"math/rand/v2"
	"time"
)

const (
	// fastPace is from the start of one probe to that of the next while a
	// verdict is pending.
	fastPace = 250 * time.Millisecond
	// burst is for how long the budget may be saved up, so that probes that a
	// coarse timer wakes together start together.
	burst = 20 * time.Millisecond
	// regularShare is the part of the budget that regular probes are fitted
	// into; the rest lets fast ones pass without a queue.
	regularShare = 0.9
	// jitter is the largest part by which an interval is shortened. Intervals
	// are never lengthened by it, because they bound the time of detection.
	jitter = 0.05

	never = time.Duration(math.MaxInt64)
)

// job is one probe to be made.
type job struct {
	e    *entry
	due  time.Duration // when it should have started
	at   time.Duration // when it could have started, with budget and a worker at hand
	lane lane          // whose share of workers it takes
}

// lane is a class of probes that may hold a share of the workers.
type lane uint8

const (
	short lane = iota // with a timeout of at most DefaultTimeout
	long              // with a longer one
	lost              // with a longer one, of a target that is Down
	lanes
)

func (e *entry) lane() lane {
	switch {
	case e.kind.spec.Timeout <= DefaultTimeout:
		return short
	case e.state == Down:
		return lost
	}
	return long
}

// schedule decides when which target is probed. It starts nothing and knows no
// clock; the Checker calls it with its mutex held.
//
// Probes run in workers that block, so targets that never answer must not hold
// all of them. The budget bounds how fast workers are taken, the timeout how
// long: up to DefaultTimeout, budget × timeout workers are enough even if nothing
// answers at all, and that is how many there are. Probes with longer timeouts may
// hold half of the workers, those of them whose target is Down another quarter.
// What is over its share waits in a line of its own, out of the others' way.
type schedule struct {
	queue   queue
	workers int
	gap     time.Duration // between two probes at the budget's rate
	token   time.Duration // when the budget allows the next probe
	stretch float64       // of regular intervals; at least 1
	wake    time.Duration // when next must be called again

	flying int           // probes under way
	full   bool          // next found no worker free
	freed  time.Duration // when a worker became free after full
	shares [lanes]share
}

// share is what a lane has of the workers.
type share struct {
	flying, most int
	parked       []*entry // due, but over the share
}

func (s *schedule) init(budget, workers int) {
	s.workers = workers
	s.shares[short].most = workers
	s.shares[long].most = max(workers/2, 1)
	s.shares[lost].most = max(workers/4, 1)
	s.gap = max(time.Second/time.Duration(budget), 1)
	s.stretch = 1
	s.wake = never
}

// setDemand fits probes that would be made at a rate of demand per second into
// the budget.
func (s *schedule) setDemand(demand float64) {
	s.stretch = max(1, demand*s.gap.Seconds()/regularShare)
}

// add enters a target that is not in the schedule.
func (s *schedule) add(e *entry, due time.Duration) {
	e.due = due
	heap.Push(&s.queue, e)
}

// remove takes a target out for good, wherever it is.
func (s *schedule) remove(e *entry) {
	if e.pos >= 0 {
		heap.Remove(&s.queue, int(e.pos))
	}
	e.pos = removed
}

// hasten makes a target due now if it waits for its time, and reports whether it
// did.
func (s *schedule) hasten(e *entry, now time.Duration) bool {
	if e.pos < 0 || e.due <= now {
		return false
	}
	e.due = now
	heap.Fix(&s.queue, int(e.pos))
	return true
}

// next takes out a target that is to be probed now. If there is none, wake says
// when to ask again.
func (s *schedule) next(now time.Duration) (job, bool) {
	for len(s.queue) > 0 {
		e := s.queue[0]
		at := max(e.due, s.token)
		if at > now {
			s.wake = at
			return job{}, false
		}
		if s.flying >= s.workers {
			s.full, s.wake = true, never
			return job{}, false
		}
		heap.Pop(&s.queue)
		l := e.lane()
		share := &s.shares[l]
		if share.flying >= share.most {
			share.parked = append(share.parked, e)
			continue
		}
		s.flying++
		share.flying++
		s.token = max(s.token, now-burst) + s.gap
		return job{e: e, due: e.due, at: max(at, s.freed), lane: l}, true
	}
	s.wake = never
	return job{}, false
}

// landed takes back a job's worker and reports whether next should be called.
func (s *schedule) landed(j job, now time.Duration) (again bool) {
	s.flying--
	if s.full {
		s.full, s.freed = false, now
		again = true
	}
	share := &s.shares[j.lane]
	share.flying--
	for len(share.parked) > 0 {
		e := share.parked[0]
		share.parked[0] = nil
		share.parked = share.parked[1:]
		if !e.gone() {
			s.add(e, now)
			return true
		}
	}
	return again
}

// requeue enters a target again after its probe, and reports whether that is
// before wake. Times are counted from when the probe was due, so that a regular
// schedule does not drift; a probe that was very late starts a new one.
func (s *schedule) requeue(e *entry, start, end time.Duration, r *rand.Rand) bool {
	interval := e.kind.spec.Interval.D()
	fast := min(fastPace, interval)
	base := e.due
	if start-base > fast {
		base = start
	}
	gap := fast
	if !e.hasty() {
		gap = time.Duration(float64(interval) * s.stretch * (1 - jitter*r.Float64()))
		if !e.spread {
			// First probes are sent as soon as may be and so close together;
			// from the second on they are spread over the interval.
			e.spread = true
			gap = time.Duration(float64(gap) * r.Float64())
		}
	}
	s.add(e, max(base+gap, end))
	return e.due < s.wake
}

// hasty reports whether the next probe should come at the fast pace.
func (e *entry) hasty() bool {
	const ownRepeats = 3 // a fault of this machine that stays is not retried fast for ever
	return e.pending() || e.beginning() || e.hinted > 0 || (e.owns > 0 && e.owns <= ownRepeats)
}

// queue is a heap of entries by due.
type queue []*entry

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due < q[j].due }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].pos, q[j].pos = int32(i), int32(j) //nolint:gosec // the memory ends before
}

func (q *queue) Push(x any) {
	e := x.(*entry)
	e.pos = int32(len(*q)) //nolint:gosec // as above
	*q = append(*q, e)
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	e := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	e.pos = unqueued
	return e
}
