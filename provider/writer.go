package provider

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
)

// How writes that failed are tried again.
const (
	minWriteBackoff = 250 * time.Millisecond
	maxWriteBackoff = 30 * time.Second
	writeTimeout    = 10 * time.Second
	// conflictPatience is how long a write that was decided on an old version
	// waits for a decision on a newer one.
	conflictPatience = 2 * time.Second
)

// writerOptions are what a writer needs.
type writerOptions struct {
	// patch sends one write and returns the object as it is then.
	patch func(ctx context.Context, t Target, w Write) (runtime.Object, error)
	// tell makes an event on an object.
	tell func(object runtime.Object, e Event)
	// rate and burst bound the writes per second, workers those at once.
	rate    float64
	burst   int
	workers int
	log     *zap.Logger
	// observe counts writes, by kind and outcome.
	observe func(kind Kind, outcome string)
}

// writer is the one that writes to the API server. It is given all writes that
// are to be made by now with set, and makes the most urgent first.
type writer struct {
	o       writerOptions
	limiter *rate.Limiter
	wake    chan struct{} // capacity 1, for one worker to look for work
	done    chan struct{} // capacity 1, for the reader of results

	mu      sync.Mutex
	pending map[Target]Write
	queue   []Target // of pending, the most urgent first; may name what is gone
	running map[Target]bool
	trouble map[Target]*writeTrouble
	results map[Target]runtime.Object
	gone    map[types.UID]Target
}

// writeTrouble is what stands in the way of writes to one object.
type writeTrouble struct {
	failures int
	until    time.Time
	base     string // a conflict: nothing decided on this version is written
}

func newWriter(o writerOptions) *writer {
	return &writer{
		o: o, limiter: rate.NewLimiter(rate.Limit(o.rate), o.burst),
		wake: make(chan struct{}, 1), done: make(chan struct{}, 1),
		pending: map[Target]Write{}, running: map[Target]bool{},
		trouble: map[Target]*writeTrouble{}, results: map[Target]runtime.Object{}, gone: map[types.UID]Target{},
	}
}

// set replaces all writes that are to be made and were not begun.
func (w *writer) set(writes map[Target]Write) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pending = make(map[Target]Write, len(writes))
	w.queue = make([]Target, 0, len(writes))
	for t, write := range writes {
		if newer(w.results[t], write.Base) {
			continue // decided before the last result was seen
		}
		w.pending[t] = write
		w.queue = append(w.queue, t)
	}
	slices.SortFunc(w.queue, func(a, b Target) int {
		return cmp.Or(cmp.Compare(w.pending[a].Priority, w.pending[b].Priority), cmp.Compare(a.Kind, b.Kind),
			strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	for t := range w.trouble {
		if _, ok := writes[t]; !ok && !w.running[t] {
			delete(w.trouble, t)
		}
	}
	if len(w.queue) > 0 {
		signal(w.wake)
	}
}

// take returns the objects that were written since the last call, in their
// newest version, and those that turned out to be gone.
func (w *writer) take() (results map[Target]runtime.Object, gone map[types.UID]Target) {
	w.mu.Lock()
	defer w.mu.Unlock()
	results, gone = w.results, w.gone
	w.results, w.gone = map[Target]runtime.Object{}, map[types.UID]Target{}
	return results, gone
}

// waiting returns the number of writes that were not begun.
func (w *writer) waiting() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.pending)
}

// Run makes writes until ctx ends.
func (w *writer) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for range w.o.workers {
		wg.Go(func() { w.work(ctx) })
	}
	return nil
}

// work makes one write after the other.
func (w *writer) work(ctx context.Context) {
	for {
		if err := w.limiter.Wait(ctx); err != nil {
			return
		}
		t, write, ok := w.next(ctx)
		if !ok {
			return
		}
		callCtx, cancel := context.WithTimeout(ctx, writeTimeout)
		object, err := w.o.patch(callCtx, t, write)
		cancel()
		w.finish(ctx, t, write, object, err)
	}
}

// next waits for something to write.
func (w *writer) next(ctx context.Context) (Target, Write, bool) {
	for {
		t, write, wait, ok := w.pick()
		if ok {
			return t, write, true
		}
		var timer <-chan time.Time
		if wait > 0 {
			timer = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return t, write, false
		case <-w.wake:
		case <-timer:
		}
	}
}

// pick returns the most urgent write that may be made now, or how long the first
// of the others has to wait.
func (w *writer) pick() (_ Target, _ Write, wait time.Duration, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	for i, t := range w.queue {
		write, there := w.pending[t]
		if !there || w.running[t] {
			continue
		}
		if tr := w.trouble[t]; tr != nil && now.Before(tr.until) && (tr.base == "" || tr.base == write.Base) {
			if left := tr.until.Sub(now); wait == 0 || left < wait {
				wait = left
			}
			continue
		}
		delete(w.pending, t)
		if i == 0 {
			w.queue = w.queue[1:]
		} else {
			w.queue = slices.Delete(w.queue, i, i+1)
		}
		w.running[t] = true
		if len(w.queue) > 0 {
			signal(w.wake)
		}
		return t, write, 0, true
	}
	return Target{}, Write{}, wait, false
}

// finish notes what became of a write.
func (w *writer) finish(ctx context.Context, t Target, write Write, object runtime.Object, err error) {
	outcome := "written"
	if write.Patch == nil {
		outcome = "confirmed"
	}
	switch {
	case err == nil:
		for _, e := range write.Events {
			w.o.tell(object, e)
		}
	case apierrors.IsConflict(err):
		outcome = "conflict"
	case apierrors.IsNotFound(err):
		outcome = "gone"
	default:
		outcome = "error"
	}
	w.o.observe(t.Kind, outcome)
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.running, t)
	switch outcome {
	case "written", "confirmed":
		delete(w.trouble, t)
		w.results[t] = object
		if m, ok := object.(interface{ GetUID() types.UID }); ok && m.GetUID() != write.UID {
			w.gone[write.UID] = t // another object has the name by now
		}
		if newer(object, w.pending[t].Base) {
			delete(w.pending, t)
		}
	case "conflict", "gone":
		if outcome == "gone" {
			w.gone[write.UID] = t
		}
		w.trouble[t] = &writeTrouble{until: time.Now().Add(conflictPatience), base: write.Base}
	default:
		w.retry(ctx, t, write, err)
	}
	signal(w.done)
	signal(w.wake)
}

// retry puts a write that failed back, for later. Callers hold mu.
func (w *writer) retry(ctx context.Context, t Target, write Write, err error) {
	tr := w.trouble[t]
	if tr == nil {
		tr = &writeTrouble{}
		w.trouble[t] = tr
	}
	tr.failures++
	wait := min(minWriteBackoff<<min(tr.failures-1, 10), maxWriteBackoff)
	tr.until, tr.base = time.Now().Add(wait), ""
	if _, replaced := w.pending[t]; !replaced {
		w.pending[t] = write
		w.queue = append(w.queue, t)
	}
	if ctx.Err() == nil {
		w.o.log.Warn("status cannot be written; trying again", zap.Stringer("object", t), zap.Duration("in", wait),
			zap.Int("failures", tr.failures), zap.Error(err))
	}
}

// newer says whether an object is newer than a version.
func newer(object runtime.Object, base string) bool {
	if object == nil || base == "" {
		return false
	}
	m, ok := object.(interface{ GetResourceVersion() string })
	if !ok {
		return false
	}
	c, err := resourceversion.CompareResourceVersion(m.GetResourceVersion(), base)
	return err == nil && c > 0
}
