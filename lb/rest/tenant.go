package rest

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/eclusa-lb/eclusa/lb"
)

// tenant is what a handler keeps about one cluster, so that what one asks for
// too often or too slowly costs no other anything.
type tenant struct {
	cluster lb.Cluster
	limiter *rate.Limiter
	calls   chan struct{} // one element for each call under way
	large   chan struct{} // one for each write of more than smallBody
	polls   chan struct{} // one for each poll
	claims  chan struct{} // one for each claim: a new leader does not queue behind the old one's writes
	writing chan struct{} // held from reading what a write replaces until it is replaced

	mu       sync.Mutex
	answered map[lb.Cursor]time.Time // cursors given out within MinStatusGap
}

func newTenant(cluster lb.Cluster, o HandlerOptions) *tenant {
	return &tenant{
		cluster:  cluster,
		limiter:  rate.NewLimiter(rate.Limit(o.RequestsPerSecond), o.Burst),
		calls:    make(chan struct{}, o.MaxCalls),
		large:    make(chan struct{}, maxLarge),
		polls:    make(chan struct{}, o.MaxPolls),
		claims:   make(chan struct{}, o.MaxCalls),
		writing:  make(chan struct{}, 1),
		answered: make(map[lb.Cursor]time.Time),
	}
}

// admit counts a request against the cluster's rate.
func (t *tenant) admit() error {
	r := t.limiter.Reserve()
	if delay := r.Delay(); delay > 0 {
		r.Cancel()
		return tooMany(delay, "requests of cluster %q come faster than %v per second", t.cluster, t.limiter.Limit())
	}
	return nil
}

// enter takes one of the slots, or refuses at once.
func (t *tenant) enter(slots chan struct{}, what string) (leave func(), err error) {
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	default:
		return nil, tooMany(time.Second, "%d %s of cluster %q are under way", cap(slots), what, t.cluster)
	}
}

// lock lets one write at a time through from reading what is held until it is
// replaced.
func (t *tenant) lock(ctx context.Context) (unlock func(), err error) {
	select {
	case t.writing <- struct{}{}:
		return func() { <-t.writing }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for another write of cluster %q: %w", t.cluster, ctx.Err())
	}
}

func tooMany(wait time.Duration, format string, args ...any) error {
	seconds := max(1, int(math.Ceil(wait.Seconds())))
	return &refusal{http.StatusTooManyRequests, map[string]string{"Retry-After": strconv.Itoa(seconds)},
		fmt.Errorf(format+": %w", append(args, lb.ErrExhausted)...)}
}

// gave remembers that the cursor went out with changes.
func (t *tenant) gave(c lb.Cursor) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for old, at := range t.answered {
		if now.Sub(at) >= MinStatusGap {
			delete(t.answered, old)
		}
	}
	t.answered[c] = now
}

// gap returns how long an answer after the cursor has to wait. Whoever has the
// cursor is known by it: a poller comes back with the one it was given.
func (t *tenant) gap(c lb.Cursor) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	at, ok := t.answered[c]
	if !ok {
		return 0
	}
	return MinStatusGap - time.Since(at)
}
