package provider

import (
	"context"
	"slices"
	"time"

	"go.uber.org/zap"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lb"
)

const (
	// minPause and maxPause bound the time between two rounds of decisions.
	// Between them a round leaves three times its own duration to others.
	minPause = 10 * time.Millisecond
	maxPause = 500 * time.Millisecond
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
	settled     chan struct{} // closed when no address waits to be recorded for the first time
	calm        bool          // it is closed
	log         *zap.Logger
	metrics     *metrics
	waiters     *waiters
	// tellNode makes an Event on a Node.
	tellNode func(*v1.Node, Event)
	// publish takes what was known and decided, unless it is nil.
	publish func(*Snapshot)

	decider  *decider
	services newest[*v1.Service]
	pools    newest[*v1alpha1.AddressPool]
	edges    newest[*v1alpha1.Edge]
	nodes    []*v1.Node

	missingServices missing[*v1.Service]
	missingPools    missing[*v1alpha1.AddressPool]
	missingEdges    missing[*v1alpha1.Edge]
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
		case <-time.After(min(max(3*took, minPause), maxPause)):
		}
		timer.Reset(next)
	}
}

// round looks at everything, decides, and hands the decisions on. It returns
// when to look again at the latest.
func (r *reconciler) round(now time.Time) time.Duration {
	asked := r.waiters.asked()
	r.takeResults()
	world, ask := r.look(now)
	d := r.decider.decide(world)
	r.settle(d.Writes)
	if r.publish != nil {
		r.publish(r.decider.snapshot(world))
	}
	for t, uid := range ask {
		d.Writes[t] = Write{UID: uid, Priority: PriorityAddress}
	}
	if len(ask) > 0 && (d.WakeIn == 0 || d.WakeIn > confirmMissing) {
		d.WakeIn = confirmMissing
	}
	r.tell(d.Notes)
	r.fleet.Set(d.Wanted)
	r.writer.set(d.Writes)
	r.waiters.answer(asked, func(uid lb.UID) bool { return !d.Unsaved[uid] })
	r.metrics.set(d.Stats, r.writer.waiting())
	if d.WakeIn > 0 {
		return min(d.WakeIn, resync)
	}
	return resync
}

// settle notes when no address of a Service waits to be recorded.
func (r *reconciler) settle(writes map[Target]Write) {
	if r.calm {
		return
	}
	for t, w := range writes {
		if t.Kind == ServiceKind && w.Priority == PriorityAddress {
			return
		}
	}
	r.calm = true
	close(r.settled)
}

// tell writes notes to the log, and makes the Events that they ask for. When there
// are very many, most are left out.
func (r *reconciler) tell(notes []Note) {
	const most = 100
	for _, n := range notes[:min(len(notes), most)] {
		fields := []zap.Field{zap.String("object", n.Object)}
		if n.Address.IsValid() {
			fields = append(fields, zap.Stringer("address", n.Address))
		}
		r.log.Info(n.What, fields...)
		if n.Event == nil {
			continue
		}
		if i := slices.IndexFunc(r.nodes, func(node *v1.Node) bool { return node.Name == n.Object }); i >= 0 {
			r.tellNode(r.nodes[i], *n.Event)
		}
	}
	if len(notes) > most {
		r.log.Info("and so on", zap.Int("more", len(notes)-most))
	}
}

// takeResults remembers what was written until the informers show it.
func (r *reconciler) takeResults() {
	results, gone := r.writer.take()
	for _, object := range results {
		switch o := object.(type) {
		case *v1.Service:
			r.services.put(o)
			r.missingServices.saw(o.UID, o, true)
		case *v1alpha1.AddressPool:
			r.pools.put(o)
			r.missingPools.saw(o.UID, o, true)
		case *v1alpha1.Edge:
			r.edges.put(o)
			r.missingEdges.saw(o.UID, o, true)
		}
	}
	for uid := range gone {
		r.missingServices.saw(uid, nil, false)
		r.missingPools.saw(uid, nil, false)
		r.missingEdges.saw(uid, nil, false)
	}
}

// look gathers everything that decisions are made from, and the objects that
// are missing and that the API server is to be asked about.
func (r *reconciler) look(now time.Time) (World, map[Target]types.UID) {
	w := World{
		Now: now, Controllers: r.controllers(), Settings: r.settings,
		Nodes:      listOf[*v1.Node](r.eyes.nodes),
		Endpoints:  r.eyes.endpoints,
		Namespaces: r.eyes.namespaceLabels(),
		Fleet:      r.fleet.State(),
	}
	ask := map[Target]types.UID{}
	r.missingServices.matters = func(svc *v1.Service) bool { return w.Controllers.PathOf(svc) != Nobody }
	r.missingPools.matters = func(o *v1alpha1.AddressPool) bool {
		return o.DeletionTimestamp == nil || slices.Contains(o.Finalizers, v1alpha1.PoolFinalizer)
	}
	r.missingEdges.matters = func(o *v1alpha1.Edge) bool { return o.DeletionTimestamp == nil }
	w.Services = lookFor(r, ServiceKind, r.services.of(listOf[*v1.Service](r.eyes.services)), &r.missingServices, now, ask)
	w.Pools = lookFor(r, PoolKind, r.pools.of(listOf[*v1alpha1.AddressPool](r.eyes.pools)), &r.missingPools, now, ask)
	w.Edges = lookFor(r, EdgeKind, r.edges.of(listOf[*v1alpha1.Edge](r.eyes.edges)), &r.missingEdges, now, ask)
	// A cluster without a single node serves nothing anyway; an informer that
	// shows none is more likely.
	if len(w.Nodes) == 0 && len(r.nodes) > 0 {
		r.log.Warn("the API server shows no nodes any more; going on with those that were there", zap.Int("nodes", len(r.nodes)))
		w.Nodes = r.nodes
	}
	r.nodes = w.Nodes
	return w, ask
}

// lookFor adds objects that are missing, and notes which are to be asked about.
func lookFor[T interface {
	object
	metav1.Object
}](r *reconciler, kind Kind, objects []T, m *missing[T], now time.Time, ask map[Target]types.UID) []T {
	all, questions := m.fill(objects, now)
	for _, o := range questions {
		ask[Target{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()}] = o.GetUID()
	}
	if n := len(questions); n > 0 {
		r.log.Info("objects are not shown any more; asking the API server before they count as gone",
			zap.Stringer("kind", kind), zap.Int("objects", n), zap.String("one", questions[0].GetName()))
	}
	return all
}

// object is what newest can hold.
type object interface {
	runtime.Object
	GetUID() types.UID
	GetResourceVersion() string
}

// newest remembers objects that we have written until the informer shows them
// or something newer, so that no decision is made twice.
type newest[T object] struct{ written map[types.UID]T }

func (n *newest[T]) put(o T) {
	if n.written == nil {
		n.written = map[types.UID]T{}
	}
	n.written[o.GetUID()] = o
}

// of returns the objects in their newest version.
func (n *newest[T]) of(objects []T) []T {
	if len(n.written) == 0 {
		return objects
	}
	seen := make(map[types.UID]bool, len(n.written))
	for i, o := range objects {
		id := o.GetUID()
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
