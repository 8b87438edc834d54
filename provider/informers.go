package provider

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
)

// eyes are the informers through which we see the cluster.
type eyes struct {
	services, nodes, slices, namespaces cache.SharedIndexInformer
	pools, edges                        cache.SharedIndexInformer
	own                                 dynamicinformer.DynamicSharedInformerFactory
}

// openEyes requests all informers. Those of Kubernetes' own types are shared
// with the stock controllers; whoever owns the factory starts them, afterwards.
func openEyes(shared informers.SharedInformerFactory, client dynamic.Interface, kick func()) (*eyes, error) {
	own := dynamicinformer.NewDynamicSharedInformerFactory(client, 0)
	e := &eyes{
		services:   shared.Core().V1().Services().Informer(),
		nodes:      shared.Core().V1().Nodes().Informer(),
		namespaces: shared.Core().V1().Namespaces().Informer(),
		slices:     shared.Discovery().V1().EndpointSlices().Informer(),
		pools:      own.ForResource(v1alpha1.AddressPoolResource).Informer(),
		edges:      own.ForResource(v1alpha1.EdgeResource).Informer(),
		own:        own,
	}
	if err := e.slices.AddIndexers(endpointIndexers); err != nil {
		return nil, fmt.Errorf("index EndpointSlices: %w", err)
	}
	for _, i := range []struct {
		what      string
		informer  cache.SharedIndexInformer
		transform cache.TransformFunc
		same      func(a, b any) bool
	}{
		{"Services", e.services, trimMeta, sameVersion},
		{"Nodes", e.nodes, trimNode, sameNode},
		{"Namespaces", e.namespaces, trimMeta, sameLabels},
		{"EndpointSlices", e.slices, trimEndpointSlice, sameEndpoints},
		{"AddressPools", e.pools, typed[v1alpha1.AddressPool], sameVersion},
		{"Edges", e.edges, typed[v1alpha1.Edge], sameVersion},
	} {
		if err := i.informer.SetTransform(i.transform); err != nil {
			return nil, fmt.Errorf("trim %s: %w", i.what, err)
		}
		if _, err := i.informer.AddEventHandler(kicks{kick, i.same}); err != nil {
			return nil, fmt.Errorf("watch %s: %w", i.what, err)
		}
	}
	return e, nil
}

// checkResources says by name which of our own resources the API server does not
// know, as soon as it answers.
func checkResources(ctx context.Context, client dynamic.Interface, log *zap.Logger) error {
	for _, resource := range []schema.GroupVersionResource{v1alpha1.AddressPoolResource, v1alpha1.EdgeResource} {
		for {
			_, err := client.Resource(resource).List(ctx, metav1.ListOptions{Limit: 1})
			if err == nil {
				break
			}
			if apierrors.IsNotFound(err) {
				return fmt.Errorf("custom resource %q is not known to the API server: install the definitions of the chart (charts/eclusa/crds)", resource.GroupResource())
			}
			log.Warn("resource cannot be listed; trying again, nothing is assigned before", zap.Stringer("resource", resource), zap.Error(err))
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Second):
			}
		}
	}
	return nil
}

// waitUntilOpen waits until everything was listed once.
func (e *eyes) waitUntilOpen(ctx context.Context) bool {
	return cache.WaitForCacheSync(ctx.Done(), e.services.HasSynced, e.nodes.HasSynced, e.namespaces.HasSynced,
		e.slices.HasSynced, e.pools.HasSynced, e.edges.HasSynced)
}

// endpoints returns where the endpoints of a Service are.
func (e *eyes) endpoints(namespace, name string) Endpoints {
	objects, err := e.slices.GetIndexer().ByIndex(byService, namespace+"/"+name)
	if err != nil {
		return Endpoints{}
	}
	parts := make([]*discoveryv1.EndpointSlice, 0, len(objects))
	for _, o := range objects {
		if s, ok := o.(*discoveryv1.EndpointSlice); ok {
			parts = append(parts, s)
		}
	}
	return ReadEndpoints(parts)
}

// listOf returns what an informer holds.
func listOf[T any](i cache.SharedIndexInformer) []T {
	objects := i.GetStore().List()
	out := make([]T, 0, len(objects))
	for _, o := range objects {
		if t, ok := o.(T); ok {
			out = append(out, t)
		}
	}
	return out
}

// namespaceLabels returns the labels of all namespaces.
func (e *eyes) namespaceLabels() map[string]labels.Set {
	out := map[string]labels.Set{}
	for _, n := range listOf[*v1.Namespace](e.namespaces) {
		out[n.Name] = n.Labels
	}
	return out
}

// kicks is an event handler that only says that there is something new.
type kicks struct {
	kick func()
	same func(before, after any) bool
}

func (k kicks) OnAdd(any, bool) { k.kick() }
func (k kicks) OnDelete(any)    { k.kick() }
func (k kicks) OnUpdate(before, after any) {
	if !k.same(before, after) {
		k.kick()
	}
}

func sameVersion(a, b any) bool {
	x, ok1 := a.(metav1.Object)
	y, ok2 := b.(metav1.Object)
	return ok1 && ok2 && x.GetResourceVersion() == y.GetResourceVersion()
}

func sameLabels(a, b any) bool {
	x, ok1 := a.(metav1.Object)
	y, ok2 := b.(metav1.Object)
	return ok1 && ok2 && labels.Equals(x.GetLabels(), y.GetLabels())
}

// sameNode says whether two versions of a Node differ in nothing that ReadNodes
// looks at: Nodes are written often.
func sameNode(a, b any) bool {
	x, ok1 := a.(*v1.Node)
	y, ok2 := b.(*v1.Node)
	return ok1 && ok2 && leaving(x) == leaving(y) && x.Spec.Unschedulable == y.Spec.Unschedulable &&
		x.Annotations[string(WeightKey)] == y.Annotations[string(WeightKey)] && labels.Equals(x.Labels, y.Labels) &&
		slices.Equal(x.Status.Addresses, y.Status.Addresses)
}

func sameEndpoints(a, b any) bool {
	x, ok1 := a.(*discoveryv1.EndpointSlice)
	y, ok2 := b.(*discoveryv1.EndpointSlice)
	return ok1 && ok2 && equality.Semantic.DeepEqual(x.Endpoints, y.Endpoints) && labels.Equals(x.Labels, y.Labels)
}

// trimMeta drops what nobody looks at. The object is shared with the stock
// controllers, which do not look at it either.
func trimMeta(object any) (any, error) {
	if o, ok := object.(metav1.Object); ok {
		o.SetManagedFields(nil)
	}
	return object, nil
}

// trimNode drops the parts of a Node that are large.
func trimNode(object any) (any, error) {
	if n, ok := object.(*v1.Node); ok {
		n.ManagedFields, n.Status.Images = nil, nil
		n.Status.VolumesInUse, n.Status.VolumesAttached = nil, nil
	}
	return object, nil
}

// typed makes one of our types of what the dynamic client reads. It is a
// [cache.TransformFunc] and takes what it has made before, too.
func typed[T any](object any) (any, error) {
	u, ok := object.(*unstructured.Unstructured)
	if !ok {
		return object, nil
	}
	out := new(T)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, out); err != nil {
		return nil, fmt.Errorf("read %s %q: %w", u.GetKind(), u.GetName(), err)
	}
	return trimMeta(out)
}
