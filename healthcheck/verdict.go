package healthcheck

import (
	"math"
	"strings"
	"time"
)

// evidence is one probe that counted.
type evidence struct {
	at      time.Time
	latency time.Duration
	failure *Failure // nil: a success
}

// record is what is known about a target, and how far it has come towards the
// next verdict. It is kept small: an edge may hold 100,000.
type record struct {
	since, checked int64    // Unix nanoseconds; 0: never
	failure        *Failure // of the last probe; nil: it succeeded
	latency        uint32   // microseconds
	failures       uint32
	misses, wins   uint8 // consecutive, towards Down and towards Up
	state          State
	answered       bool
	proven         bool  // has been Up, or was known before
	early          uint8 // probes before that, up to maxEarly
	hinted         uint8 // fast probes that a hint has left
	owns           uint8 // consecutive probes that did not count
}

// newRecord continues from a seed.
func newRecord(seed Result, now time.Time) record {
	r := record{
		state:    seed.State,
		since:    nanos(seed.Since),
		checked:  nanos(seed.Checked),
		answered: seed.Answered,
		latency:  micros(seed.Latency),
		failures: uint32(min(max(seed.Failures, 0), maxFailures)),
	}
	if r.state > Down {
		r.state = Unknown
	}
	r.proven = r.state != Unknown
	if r.since == 0 {
		r.since = nanos(now)
	}
	if seed.Reason != "" || seed.Error != "" {
		r.failure = trimmed(&Failure{Reason: seed.Reason, Text: seed.Error})
	}
	return r
}

// maxFailures is where counting failures ends.
const maxFailures = 1 << 30

// judge takes in one probe that counted, and reports whether something changed
// that users of the result act on: State, Reason or Answered.
//
// The first success of a new target brings it Up at once, others count towards
// the threshold. An answer that asks for no new connections drains at once. Every
// other failure counts towards Down.
func (r *record) judge(ev evidence, spec Spec) (changed bool) {
	before, reason := *r, r.reason()
	r.checked = nanos(ev.at)
	if !r.proven && r.early < maxEarly {
		r.early++
	}
	switch f := ev.failure; {
	case f == nil:
		r.latency = micros(ev.latency)
		r.answered = true
		r.failure, r.failures, r.misses = nil, 0, 0
		r.win(ev.at, spec.HealthyThreshold)
	case f.Draining:
		r.answered = true
		r.fail(f)
		r.misses = 0
		r.enter(Draining, ev.at)
	default:
		r.fail(f)
		r.miss(ev.at, spec.UnhealthyThreshold)
	}
	return r.state != before.state || r.answered != before.answered || r.reason() != reason
}

func (r *record) fail(f *Failure) {
	r.failures = min(r.failures+1, maxFailures)
	r.wins = 0
	// Equal failures share memory: the texts of thousands of dead targets
	// would otherwise be allocated again with every probe, and kept.
	if f = trimmed(f); r.failure == nil || *r.failure != *f {
		r.failure = f
	}
}

func (r *record) win(at time.Time, threshold int) {
	switch {
	case r.state == Up:
	case !r.proven:
		r.proven = true
		r.enter(Up, at)
	default:
		if r.wins++; int(r.wins) >= threshold {
			r.enter(Up, at)
		}
	}
}

func (r *record) miss(at time.Time, threshold int) {
	if r.state == Down {
		return
	}
	if r.misses++; int(r.misses) >= threshold {
		r.enter(Down, at)
	}
}

func (r *record) enter(s State, at time.Time) {
	if r.state != s {
		r.state, r.since = s, nanos(at)
	}
	r.misses, r.wins = 0, 0
}

// pending reports whether the last probes point to another verdict than the
// present one, so that the next should follow soon.
func (r *record) pending() bool { return r.misses > 0 || r.wins > 0 }

// maxEarly is how many of the first probes of a new target come at the fast pace
// while it answers and is not Up yet: three seconds of them.
const maxEarly = 12

// beginning reports whether a new target answers that it is not ready, or refuses
// connections: something is about to start there, such as kube-proxy's answer for
// a Service that it has just heard of, and clients wait for it.
func (r *record) beginning() bool {
	if r.proven || r.early >= maxEarly || r.failure == nil {
		return false
	}
	return r.failure.Draining || r.failure.Reason == Refused
}

func (r *record) reason() Reason {
	if r.failure == nil {
		return ""
	}
	return r.failure.Reason
}

// result returns the record as users see it.
func (r *record) result() Result {
	res := Result{
		State:    r.state,
		Since:    fromNanos(r.since),
		Answered: r.answered,
		Latency:  time.Duration(r.latency) * time.Microsecond,
		Failures: int(r.failures),
		Checked:  fromNanos(r.checked),
	}
	if r.failure != nil {
		res.Reason, res.Error = r.failure.Reason, r.failure.Text
	}
	return res
}

// trimmed returns f with a text of at most MaxError bytes.
func trimmed(f *Failure) *Failure {
	if len(f.Text) <= MaxError {
		return f
	}
	short := *f
	short.Text = strings.ToValidUTF8(f.Text[:MaxError], "")
	return &short
}

// micros keeps what a probe took, which is never over MaxTimeout by much, in four
// bytes.
func micros(d time.Duration) uint32 {
	return uint32(min(max(d.Microseconds(), 0), math.MaxUint32))
}

// nanos and fromNanos keep times in eight bytes. The zero Time is 0.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}
