package provider

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"go.uber.org/zap"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/validation/field"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/informers"
	kubefake "k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	kubetesting "k8s.io/client-go/testing"
	servicecontroller "k8s.io/cloud-provider/controllers/service"
	controllersmetrics "k8s.io/component-base/metrics/prometheus/controllers"
	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// cluster is a Provider in a synctest bubble, between a fake API server, which
// keeps resource versions, preconditions and finalizers, and fake edges.
type cluster struct {
	t     *testing.T
	kube  *kubefake.Clientset
	own   *dynamicfake.FakeDynamicClient
	edges map[string]*lbtest.FakeBalancer // by endpoint

	provider *Provider
	stop     context.CancelFunc
	ended    chan error

	mu      sync.Mutex
	version int
	writes  []string // "Service default/a" and so on, in their order
	refuse  func(kubetesting.PatchAction) error
}

func newCluster(t *testing.T, objects ...runtime.Object) *cluster {
	t.Helper()
	known := runtime.NewScheme()
	if err := errors.Join(scheme.AddToScheme(known), v1alpha1.AddToScheme(known)); err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, edges: map[string]*lbtest.FakeBalancer{}, version: 1000}
	c.kube = kubefake.NewClientset()
	c.own = dynamicfake.NewSimpleDynamicClient(known)
	c.kube.PrependReactor("patch", "*", c.patchReactor(c.kube.Tracker()))
	c.own.PrependReactor("patch", "*", c.patchReactor(c.own.Tracker()))
	for _, o := range objects {
		c.add(o)
	}
	return c
}

func (c *cluster) nextVersion() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version++
	return strconv.Itoa(c.version)
}

// patchReactor applies patches as the API server does.
func (c *cluster) patchReactor(tracker kubetesting.ObjectTracker) kubetesting.ReactionFunc {
	return func(action kubetesting.Action) (bool, runtime.Object, error) {
		p := action.(kubetesting.PatchAction)
		gvr, ns, name := p.GetResource(), p.GetNamespace(), p.GetName()
		c.mu.Lock()
		refuse := c.refuse
		c.mu.Unlock()
		if refuse != nil {
			if err := refuse(p); err != nil {
				return true, nil, err
			}
		}
		before, err := tracker.Get(gvr, ns, name)
		if err != nil {
			return true, nil, err
		}
		after, err := applyPatch(before, p)
		if err != nil {
			return true, nil, err
		}
		was, is := accessor(before), accessor(after)
		if was.GetUID() != is.GetUID() || was.GetResourceVersion() != is.GetResourceVersion() {
			return true, nil, apierrors.NewConflict(gvr.GroupResource(), name, fmt.Errorf("version is %s, patch is for %s", was.GetResourceVersion(), is.GetResourceVersion()))
		}
		if err := validConditions(after); err != nil {
			return true, nil, apierrors.NewBadRequest(err.Error())
		}
		is.SetResourceVersion(c.nextVersion())
		c.mu.Lock()
		c.writes = append(c.writes, gvr.Resource+" "+ns+"/"+name)
		c.mu.Unlock()
		if is.GetDeletionTimestamp() != nil && len(is.GetFinalizers()) == 0 {
			return true, after, tracker.Delete(gvr, ns, name)
		}
		return true, after, tracker.Update(gvr, after, ns)
	}
}

func applyPatch(before runtime.Object, p kubetesting.PatchAction) (runtime.Object, error) {
	old, err := json.Marshal(before)
	if err != nil {
		return nil, err
	}
	var data []byte
	switch p.GetPatchType() {
	case types.StrategicMergePatchType:
		data, err = strategicpatch.StrategicMergePatch(old, p.GetPatch(), before)
	case types.JSONPatchType:
		var patch jsonpatch.Patch
		if patch, err = jsonpatch.DecodePatch(p.GetPatch()); err == nil {
			data, err = patch.Apply(old)
		}
	default:
		err = fmt.Errorf("patch type %s is not known here", p.GetPatchType())
	}
	if err != nil {
		return nil, err
	}
	if _, ok := before.(*unstructured.Unstructured); ok {
		u := &unstructured.Unstructured{}
		return u, u.UnmarshalJSON(data)
	}
	after := before.DeepCopyObject()
	switch o := after.(type) {
	case *v1.Service:
		*o = v1.Service{}
	case *v1alpha1.AddressPool:
		*o = v1alpha1.AddressPool{}
	case *v1alpha1.Edge:
		*o = v1alpha1.Edge{}
	}
	return after, json.Unmarshal(data, after)
}

// validConditions makes sure that the API server would take what we write.
func validConditions(o runtime.Object) error {
	svc, ok := o.(*v1.Service)
	if !ok {
		return nil
	}
	return validation.ValidateConditions(svc.Status.Conditions, field.NewPath("status", "conditions")).ToAggregate()
}

func accessor(o runtime.Object) metav1.Object {
	m, err := meta.Accessor(o)
	if err != nil {
		panic(err)
	}
	return m
}

// place returns the tracker and resource that an object belongs to.
func (c *cluster) place(o runtime.Object) (kubetesting.ObjectTracker, schema.GroupVersionResource) {
	switch o.(type) {
	case *v1.Service:
		return c.kube.Tracker(), v1.SchemeGroupVersion.WithResource("services")
	case *v1.Node:
		return c.kube.Tracker(), v1.SchemeGroupVersion.WithResource("nodes")
	case *v1.Namespace:
		return c.kube.Tracker(), v1.SchemeGroupVersion.WithResource("namespaces")
	case *discoveryv1.EndpointSlice:
		return c.kube.Tracker(), discoveryv1.SchemeGroupVersion.WithResource("endpointslices")
	case *v1alpha1.AddressPool:
		return c.own.Tracker(), v1alpha1.AddressPoolResource
	case *v1alpha1.Edge:
		return c.own.Tracker(), v1alpha1.EdgeResource
	}
	c.t.Fatalf("object %T has no place", o)
	return nil, schema.GroupVersionResource{}
}

// stored returns the object as its tracker keeps it.
func (c *cluster) stored(o runtime.Object) runtime.Object {
	switch o := o.(type) {
	case *v1alpha1.AddressPool:
		u, _ := toUnstructured(c.t, o)
		return u
	case *v1alpha1.Edge:
		u, _ := toUnstructured(c.t, o)
		return u
	}
	return o
}

// toUnstructured makes of one of our types what the dynamic client takes.
func toUnstructured(t *testing.T, o metav1.Object) (*unstructured.Unstructured, schema.GroupVersionResource) {
	t.Helper()
	kind, gvr := v1alpha1.EdgeKind, v1alpha1.EdgeResource
	if _, ok := o.(*v1alpha1.AddressPool); ok {
		kind, gvr = v1alpha1.AddressPoolKind, v1alpha1.AddressPoolResource
	}
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		t.Fatal(err)
	}
	u := &unstructured.Unstructured{Object: m}
	u.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(kind))
	return u, gvr
}

// add creates an object.
func (c *cluster) add(o runtime.Object) {
	c.t.Helper()
	m := accessor(o)
	if m.GetUID() == "" {
		m.SetUID(types.UID("uid-" + m.GetName()))
	}
	if m.GetCreationTimestamp().Time.IsZero() {
		m.SetCreationTimestamp(metav1.Now())
	}
	m.SetResourceVersion(c.nextVersion())
	tracker, gvr := c.place(o)
	if err := tracker.Create(gvr, c.stored(o), m.GetNamespace()); err != nil {
		c.t.Fatal(err)
	}
}

// change replaces an object.
func (c *cluster) change(o runtime.Object) {
	c.t.Helper()
	m := accessor(o)
	m.SetResourceVersion(c.nextVersion())
	tracker, gvr := c.place(o)
	if err := tracker.Update(gvr, c.stored(o), m.GetNamespace()); err != nil {
		c.t.Fatal(err)
	}
}

// remove deletes an object; finalizers keep it.
func (c *cluster) remove(o runtime.Object) {
	c.t.Helper()
	m := accessor(o)
	if len(m.GetFinalizers()) > 0 {
		m.SetDeletionTimestamp(ptr.To(metav1.Now()))
		c.change(o)
		return
	}
	tracker, gvr := c.place(o)
	if err := tracker.Delete(gvr, m.GetNamespace(), m.GetName()); err != nil {
		c.t.Fatal(err)
	}
}

// service returns a copy of a Service of the namespace default, nil if there is
// none.
func (c *cluster) service(name string) *v1.Service {
	c.t.Helper()
	svc, err := c.kube.CoreV1().Services("default").Get(c.t.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return svc
}

func (c *cluster) edge(name string) *v1alpha1.Edge {
	return get[v1alpha1.Edge](c, v1alpha1.EdgeResource, name)
}

func (c *cluster) pool(name string) *v1alpha1.AddressPool {
	return get[v1alpha1.AddressPool](c, v1alpha1.AddressPoolResource, name)
}

func get[T any](c *cluster, gvr schema.GroupVersionResource, name string) *T {
	c.t.Helper()
	u, err := c.own.Resource(gvr).Get(c.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	o, err := typed[T](u)
	if err != nil {
		c.t.Fatal(err)
	}
	return o.(*T)
}

// start runs a Provider, and Kubernetes' own service controller if it is among
// the controllers.
func (c *cluster) start(controllers ...string) {
	c.t.Helper()
	p := New(Options{
		Dial: c.dial, Log: zap.NewNop(),
		Claim: func(context.Context) (lb.Claim, error) {
			return lb.Claim{ClusterUID: "cluster", LeaseUID: "lease", LeaseTransitions: 1, Holder: "me"}, nil
		},
	})
	ctx, cancel := context.WithCancel(c.t.Context())
	shared := informers.NewSharedInformerFactory(c.kube, 0)
	p.clients = clients{events: c.kube, write: c.kube, dynamic: c.own}
	p.failed = nil
	p.SetInformers(shared)
	var stock sync.WaitGroup
	for _, name := range controllers {
		if err := p.Enable(name); err != nil {
			c.t.Fatal(err)
		}
		if name != StockController {
			continue
		}
		// It races with itself when Nodes change (k8s.io/cloud-provider v0.37.2 reads
		// its cache of Services without its lock), so that it sees none.
		blind := informers.NewSharedInformerFactory(kubefake.NewClientset(), 0)
		sc, err := servicecontroller.New(p, c.kube, shared.Core().V1().Services(), blind.Core().V1().Nodes(), "test", nil)
		if err != nil {
			c.t.Fatal(err)
		}
		blind.Start(ctx.Done())
		stock.Go(func() {
			sc.Run(ctx, 2, controllersmetrics.NewControllerManagerMetrics("test"))
			blind.Shutdown()
		})
	}
	shared.Start(ctx.Done())
	c.provider, c.ended = p, make(chan error, 1)
	go func() {
		err := p.Run(ctx)
		cancel()
		stock.Wait()
		shared.Shutdown()
		c.ended <- err
	}()
	c.stop = func() {
		cancel()
		if err := <-c.ended; err != nil {
			c.t.Errorf("Run returned %v, want nil", err)
		}
	}
}

func (c *cluster) dial(s EdgeSpec) (lb.Balancer, error) {
	if b, ok := c.edges[s.Endpoint]; ok {
		return b, nil
	}
	return nil, fmt.Errorf("no edge at %q", s.Endpoint)
}

// settle lets everything happen that takes no longer than d of virtual time.
func (c *cluster) settle(d time.Duration) {
	c.t.Helper()
	time.Sleep(d)
	synctest.Wait()
}

// written returns the writes since the last call.
func (c *cluster) written() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.writes
	c.writes = nil
	return w
}

// addEdge creates an Edge with a fake behind it.
func (c *cluster) addEdge(name string, labels map[string]string) *lbtest.FakeBalancer {
	c.t.Helper()
	b := lbtest.NewFakeBalancer(name)
	e := testEdge(name)
	e.Labels = labels
	c.edges[e.Spec.Endpoint] = b
	c.add(e)
	return b
}

func testEdge(name string) *v1alpha1.Edge {
	return &v1alpha1.Edge{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.EdgeSpec{Endpoint: "https://" + name + ":9440"}}
}

func TestMain(m *testing.M) {
	klog.SetLogger(logr.Discard())
	// One of them sleeps until the wall clock is reached, which in virtual time is
	// far away.
	utilruntime.ErrorHandlers = nil
	flag.Parse()
	os.Exit(m.Run())
}
