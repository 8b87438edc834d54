package provider

import (
	"context"
	"fmt"

	"golang.org/x/time/rate"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
)

// patch makes one write, or asks whether the object is still there.
func (c clients) patch(ctx context.Context, t Target, w Write) (runtime.Object, error) {
	switch t.Kind {
	case ServiceKind:
		return c.patchService(ctx, t, w)
	case PoolKind:
		return patchOwn[v1alpha1.AddressPool](ctx, c, v1alpha1.AddressPoolResource, t, w)
	case EdgeKind:
		return patchOwn[v1alpha1.Edge](ctx, c, v1alpha1.EdgeResource, t, w)
	}
	return nil, fmt.Errorf("write to %s: unknown kind", t)
}

func (c clients) patchService(ctx context.Context, t Target, w Write) (runtime.Object, error) {
	services := c.write.CoreV1().Services(t.Namespace)
	var svc *v1.Service
	var err error
	if w.Patch == nil {
		svc, err = services.Get(ctx, t.Name, metav1.GetOptions{})
	} else {
		svc, err = services.Patch(ctx, t.Name, w.Type, w.Patch, metav1.PatchOptions{}, "status")
	}
	if err != nil {
		return nil, err
	}
	svc.ManagedFields = nil
	return svc, nil
}

// patchOwn makes one write to an object of ours.
func patchOwn[T any, P interface {
	*T
	runtime.Object
}](ctx context.Context, c clients, resource schema.GroupVersionResource, t Target, w Write) (runtime.Object, error) {
	objects := c.dynamic.Resource(resource)
	var u *unstructured.Unstructured
	var err error
	if w.Patch == nil {
		u, err = objects.Get(ctx, t.Name, metav1.GetOptions{})
	} else {
		var subresource []string
		if !t.Meta {
			subresource = []string{"status"}
		}
		u, err = objects.Patch(ctx, t.Name, w.Type, w.Patch, metav1.PatchOptions{}, subresource...)
	}
	if err != nil {
		return nil, err
	}
	o, err := typed[T](u)
	if err != nil {
		return nil, err
	}
	p, ok := o.(P)
	if !ok {
		return nil, fmt.Errorf("answer to a write to %s is a %T", t, o)
	}
	return p, nil
}

// How many Events are told per second although nothing is wrong.
const (
	calmRate  = 2
	calmBurst = 100
)

// speaker tells Events.
type speaker struct {
	recorder record.EventRecorder
	// calm bounds what is told although nothing is wrong: thousands of new
	// Services must not cost thousands of Events.
	calm *rate.Limiter
}

// start begins to send Events and returns the function that ends it.
func (s *speaker) start(client kubernetes.Interface) (stop func()) {
	known := runtime.NewScheme()
	// Neither can fail: both only fill a table.
	_ = scheme.AddToScheme(known)
	_ = v1alpha1.AddToScheme(known)
	broadcaster := record.NewBroadcaster()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	s.calm = rate.NewLimiter(calmRate, calmBurst)
	s.recorder = broadcaster.NewRecorder(known, v1.EventSource{Component: Name})
	return broadcaster.Shutdown
}

// tell makes an Event on an object. It does not block.
func (s *speaker) tell(o runtime.Object, e Event) {
	if e.Type == v1.EventTypeNormal && !s.calm.Allow() {
		return
	}
	s.recorder.Event(o, e.Type, e.Reason, e.Message)
}

// tellEdge makes an Event on an Edge.
func (p *Provider) tellEdge(edge, eventType, reason, message string) {
	o, ok, err := p.eyes.edges.GetStore().GetByKey(edge)
	if e, typed := o.(*v1alpha1.Edge); err == nil && ok && typed {
		p.speaker.tell(e, Event{Type: eventType, Reason: reason, Message: message})
	}
}
