package provider

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// desk is a writer whose writes are noted.
type desk struct {
	*writer
	stop func()

	mu     sync.Mutex
	log    []string // names in the order in which they were written
	times  []time.Time
	events []string
	fail   func(Target, Write) error
	slow   time.Duration
}

func newDesk(t *testing.T, rate float64, burst, workers int) *desk {
	d := &desk{}
	d.writer = newWriter(writerOptions{
		patch: d.patch, rate: rate, burst: burst, workers: workers, log: zap.NewNop(),
		tell: func(_ runtime.Object, e Event) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.events = append(d.events, e.Reason)
		},
		observe: func(Kind, string) {},
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := d.Run(ctx); err != nil {
			t.Errorf("Run returned %v, want nil", err)
		}
	}()
	d.stop = func() { cancel(); <-ended }
	return d
}

func (d *desk) patch(ctx context.Context, t Target, w Write) (runtime.Object, error) {
	if d.slow > 0 {
		select {
		case <-time.After(d.slow):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = append(d.log, t.Name)
	d.times = append(d.times, time.Now())
	if d.fail != nil {
		if err := d.fail(t, w); err != nil {
			return nil, err
		}
	}
	return &v1.Service{ObjectMeta: metav1.ObjectMeta{Name: t.Name, ResourceVersion: "200"}}, nil
}

func (d *desk) written() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.log)
}

func (d *desk) told() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.events)
}

func writesOf(priority Priority, names ...string) map[Target]Write {
	all := map[Target]Write{}
	for _, n := range names {
		all[Target{Kind: ServiceKind, Namespace: "default", Name: n}] = Write{Base: "100", Patch: []byte("{}"), Priority: priority}
	}
	return all
}

func TestWriterUrgentFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, 10, 1, 1)
		defer d.stop()
		all := writesOf(PriorityDetail, "d")
		for priority, names := range map[Priority]string{PriorityProgress: "c1 c2", PriorityProblem: "b1 b2", PriorityAddress: "a1 a2"} {
			for target, w := range writesOf(priority, strings.Fields(names)...) {
				all[target] = w
			}
		}
		d.set(all)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		same(t, "order", d.written(), "[a1 a2 b1 b2 c1 c2 d]")
	})
}

func TestWriterRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, 100, 10, 4)
		d.slow = 10 * time.Millisecond
		defer d.stop()
		began := time.Now()
		all := map[Target]Write{}
		for i := range 500 {
			all[Target{Kind: ServiceKind, Namespace: "default", Name: fmt.Sprint(i)}] = Write{Base: "100", Patch: []byte("{}")}
		}
		d.set(all)
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(d.written()); n != 500 {
			t.Fatalf("%d of 500 writes were made", n)
		}
		d.mu.Lock()
		took := d.times[499].Sub(began)
		d.mu.Unlock()
		if took < 4*time.Second || took > 6*time.Second {
			t.Errorf("500 writes at 100 per second took %v, want about 5s", took)
		}
	})
}

// TestWriterReplaces gives new decisions before old ones are written: the old
// ones never are.
func TestWriterReplaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, 1, 1, 1)
		defer d.stop()
		d.set(writesOf(PriorityDetail, "a", "b", "c"))
		synctest.Wait()
		d.set(writesOf(PriorityDetail, "c"))
		time.Sleep(time.Minute)
		synctest.Wait()
		same(t, "written", d.written(), "[a c]")
		// What was decided on a version older than the result is not written either.
		d.set(writesOf(PriorityDetail, "c"))
		time.Sleep(time.Minute)
		synctest.Wait()
		same(t, "written", d.written(), "[a c]")
		results, _ := d.take()
		same(t, "results", len(results), 2)
	})
}

func TestWriterRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, 1000, 100, 4)
		defer d.stop()
		failures := map[string]int{}
		d.fail = func(target Target, _ Write) error {
			failures[target.Name]++
			if target.Name == "a" && failures["a"] <= 4 {
				return errors.New("connection refused")
			}
			return nil
		}
		all := writesOf(PriorityDetail, "a", "b")
		w := all[Target{Kind: ServiceKind, Namespace: "default", Name: "a"}]
		w.Events = []Event{{Reason: "Told"}}
		all[Target{Kind: ServiceKind, Namespace: "default", Name: "a"}] = w
		d.set(all)
		synctest.Wait()
		same(t, "written at once", len(d.written()), 2)
		same(t, "events", d.told(), []string{})
		time.Sleep(minWriteBackoff * 15)
		synctest.Wait()
		same(t, "attempts", len(d.written()), 1+5)
		same(t, "events", d.told(), []string{"Told"})
	})
}

// TestWriterConflict leaves a write alone whose object has changed, until there
// is a decision on the newer version.
func TestWriterConflict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, 1000, 100, 4)
		defer d.stop()
		d.fail = func(_ Target, w Write) error {
			if w.Base == "100" {
				return apierrors.NewConflict(schema.GroupResource{}, "a", errors.New("newer"))
			}
			return nil
		}
		d.set(writesOf(PriorityAddress, "a"))
		time.Sleep(time.Second)
		synctest.Wait()
		d.set(writesOf(PriorityAddress, "a"))
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		same(t, "attempts", len(d.written()), 1)
		newer := writesOf(PriorityAddress, "a")
		for target, w := range newer {
			w.Base = "101"
			newer[target] = w
		}
		d.set(newer)
		synctest.Wait()
		same(t, "attempts", len(d.written()), 2)
	})
}

func TestWriterGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, 1000, 100, 4)
		defer d.stop()
		d.fail = func(Target, Write) error { return apierrors.NewNotFound(schema.GroupResource{}, "a") }
		d.set(map[Target]Write{{Kind: ServiceKind, Namespace: "default", Name: "a"}: {UID: "uid-a"}})
		synctest.Wait()
		_, gone := d.take()
		if _, ok := gone["uid-a"]; !ok || len(gone) != 1 {
			t.Errorf("gone is %v, want uid-a", gone)
		}
	})
}
