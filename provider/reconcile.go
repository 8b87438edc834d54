package provider

import (
	"context"
	"time"

	"go.uber.org/zap"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lb"
)

const (
	// minPause and maxPause bound the time between two rounds of decisions.
	// Between them a round leaves twice its own duration to others.
	minPause = 10 * time.Millisecond
	maxPause = time.Second
	// resync is when decisions are made anew though nothing is known to have
	// changed.
	resync = 30 * time.Second
)

// fleet is what the reconciler needs of a Fleet.
type fleet interface {
	Run(ctx context.Context) error
	Set(map[string]Wanted)
	State() map[string]EdgeState
	Changed() <-chan struct{}
}

// reconciler is the one goroutine that decides. Everything but the channels
// belongs to it.
type reconciler struct {
	eyes        *eyes
	controllers func() Controllers
	settings    Settings
	fleet       fleet
	writer      *writer
	kick        chan struct{}
	log         *zap.Logger
	metrics     *metrics
	waiters     *waiters

	decider  *decider
	services newest[*v1.Service]
	pools    newest[*v1alpha1.AddressPool]
	edges    newest[*v1alpha1.Edge]
	nodes    []*v1.Node
}

// Run makes decisions until ctx ends.
func (r *reconciler) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.kick:
		case <-r.fleet.Changed():
		case <-r.writer.done:
		case <-timer.C:
		}
		began := time.Now()
		next := r.round(began)
		took := time.Since(began)
		r.metrics.observeRound(took)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(min(max(2*took, minPause), maxPause)):
		}
		timer.Reset(next)
	}
}

// round looks at everything, decides, and hands the decisions on. It returns
// when to look again at the latest.
func (r *reconciler) round(now time.Time) time.Duration {
	asked := r.waiters.asked()
	r.takeResults()
	d := r.decider.decide(r.look(now))
	r.fleet.Set(d.Wanted)
	r.writer.set(d.Writes)
	r.waiters.answer(asked, func(uid lb.UID) bool { return !d.Unsaved[uid] })
	r.metrics.set(d.Stats, r.writer.waiting())
	if d.WakeIn > 0 {
		return min(d.WakeIn, resync)
	}
	return resync
}

// takeResults remembers what was written until the informers show it.
func (r *reconciler) takeResults() {
	for _, object := range r.writer.take() {
		switch o := object.(type) {
		case *v1.Service:
			r.services.put(string(o.UID), o)
		case *v1alpha1.AddressPool:
			r.pools.put(string(o.UID), o)
		case *v1alpha1.Edge:
			r.edges.put(string(o.UID), o)
		}
	}
}

// look gathers everything that decisions are made from.
func (r *reconciler) look(now time.Time) World {
	w := World{
		Now: now, Controllers: r.controllers(), Settings: r.settings,
		Services:   r.services.of(listOf[*v1.Service](r.eyes.services)),
		Nodes:      listOf[*v1.Node](r.eyes.nodes),
		Endpoints:  r.eyes.endpoints,
		Namespaces: r.eyes.namespaceLabels(),
		Pools:      r.pools.of(listOf[*v1alpha1.AddressPool](r.eyes.pools)),
		Edges:      r.edges.of(listOf[*v1alpha1.Edge](r.eyes.edges)),
		Fleet:      r.fleet.State(),
	}
	// A cluster without a single node serves nothing anyway; an informer that
	// shows none is more likely.
	if len(w.Nodes) == 0 && len(r.nodes) > 0 {
		r.log.Warn("the API server shows no nodes any more; going on with those that were there", zap.Int("nodes", len(r.nodes)))
		w.Nodes = r.nodes
	}
	r.nodes = w.Nodes
	return w
}

// object is what newest can hold.
type object interface {
	runtime.Object
	GetUID() types.UID
	GetResourceVersion() string
}

// newest remembers objects that we have written until the informer shows them
// or something newer, so that no decision is made twice.
type newest[T object] struct{ written map[string]T }

func (n *newest[T]) put(uid string, o T) {
	if n.written == nil {
		n.written = map[string]T{}
	}
	n.written[uid] = o
}

// of returns the objects in their newest version.
func (n *newest[T]) of(objects []T) []T {
	if len(n.written) == 0 {
		return objects
	}
	seen := make(map[string]bool, len(n.written))
	for i, o := range objects {
		id := string(o.GetUID())
		w, ok := n.written[id]
		if !ok {
			continue
		}
		c, err := resourceversion.CompareResourceVersion(w.GetResourceVersion(), o.GetResourceVersion())
		if err == nil && c > 0 {
			objects[i], seen[id] = w, true
		}
	}
	for id := range n.written {
		if !seen[id] {
			delete(n.written, id)
		}
	}
	return objects
}
