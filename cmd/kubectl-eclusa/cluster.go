package main

import (
	"context"
	"fmt"
	"net/url"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/provider"
	"github.com/eclusa-lb/eclusa/version"
)

// cluster is the API server.
type cluster struct {
	config    *rest.Config
	namespace string
	kube      kubernetes.Interface
	own       dynamic.Interface
}

// connect makes the clients of the API server. It connects to nothing.
func (p *program) connect() (*cluster, error) {
	if p.cluster != nil {
		return p.cluster, nil
	}
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(p.rules, p.overrides)
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, usageError(fmt.Errorf("reading the kubeconfig: %w", err))
	}
	config.QPS, config.Burst = 50, 100
	config.UserAgent = "kubectl-eclusa/" + version.Number()
	if config.Timeout == 0 {
		config.Timeout = 15 * time.Second
	}
	c := &cluster{config: config}
	if c.namespace, _, err = loader.Namespace(); err != nil {
		return nil, usageError(fmt.Errorf("reading the kubeconfig: %w", err))
	}
	if c.kube, err = kubernetes.NewForConfig(config); err != nil {
		return nil, usageError(fmt.Errorf("making a client of the API server: %w", err))
	}
	if c.own, err = dynamic.NewForConfig(config); err != nil {
		return nil, usageError(fmt.Errorf("making a client of the API server: %w", err))
	}
	p.cluster = c
	return c, nil
}

// accessError makes of an API server's refusal what people should know.
func accessError(doing string, err error) error {
	code := exitFailed
	switch {
	case err == nil:
		return nil
	case apierrors.IsNotFound(err):
		code = exitNotFound
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err), apierrors.ReasonForError(err) == metav1.StatusReasonUnknown:
		code = exitAccess
	}
	return &coded{fmt.Errorf("%s: %w", doing, err), code}
}

// listOwn lists objects of one of our types.
func listOwn[T any](ctx context.Context, c *cluster, resource schema.GroupVersionResource) ([]*T, error) {
	list, err := c.own.Resource(resource).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, accessError("listing "+resource.Resource, err)
	}
	var out []*T
	for i := range list.Items {
		o := new(T)
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(list.Items[i].Object, o); err != nil {
			return nil, fmt.Errorf("reading %s %q: %w", list.Items[i].GetKind(), list.Items[i].GetName(), err)
		}
		out = append(out, o)
	}
	return out, nil
}

// world returns what the cluster says, as the manager would see it that knows
// no edge but from the status of its object.
func (c *cluster) world(ctx context.Context, now time.Time) (provider.World, error) {
	w := provider.World{Now: now, Controllers: provider.Controllers{Stock: true, Class: true}, Namespaces: map[string]labels.Set{}, Fleet: map[string]provider.EdgeState{}}
	services, err := c.kube.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return w, accessError("listing Services", err)
	}
	w.Services = pointers(services.Items)
	nodes, err := c.kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return w, accessError("listing Nodes", err)
	}
	w.Nodes = pointers(nodes.Items)
	namespaces, err := c.kube.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return w, accessError("listing Namespaces", err)
	}
	for _, n := range namespaces.Items {
		w.Namespaces[n.Name] = n.Labels
	}
	slices, err := c.kube.DiscoveryV1().EndpointSlices("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return w, accessError("listing EndpointSlices", err)
	}
	parts := map[string][]*discoveryv1.EndpointSlice{}
	for i := range slices.Items {
		s := &slices.Items[i]
		key := s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]
		parts[key] = append(parts[key], s)
	}
	w.Endpoints = func(namespace, name string) provider.Endpoints {
		return provider.ReadEndpoints(parts[namespace+"/"+name])
	}
	if w.Pools, err = listOwn[v1alpha1.AddressPool](ctx, c, v1alpha1.AddressPoolResource); err != nil {
		return w, err
	}
	if w.Edges, err = listOwn[v1alpha1.Edge](ctx, c, v1alpha1.EdgeResource); err != nil {
		return w, err
	}
	for _, e := range w.Edges {
		w.Fleet[e.Name] = stateFrom(e)
	}
	return w, nil
}

// stateFrom returns what the status of an Edge tells of its edge.
func stateFrom(e *v1alpha1.Edge) provider.EdgeState {
	st := provider.EdgeState{Name: e.Name}
	for _, c := range e.Status.Conditions {
		if c.Type != v1alpha1.EdgeReady {
			continue
		}
		st.Connected = c.Status == metav1.ConditionTrue || c.Reason == provider.ReasonRejected
		if c.Status != metav1.ConditionTrue {
			st.Problem = c.Message
		}
	}
	if len(e.Status.Capabilities) > 0 {
		st.Info = lb.Info{Name: e.Status.Name, Engine: e.Status.Engine, Version: e.Status.Version, Schema: lb.Schema}
		for _, c := range e.Status.Capabilities {
			st.Info.Capabilities = append(st.Info.Capabilities, lb.Capability(c))
		}
	}
	return st
}

func pointers[T any](items []T) []*T {
	out := make([]*T, len(items))
	for i := range items {
		out[i] = &items[i]
	}
	return out
}

// serviceNames completes names of Services of type LoadBalancer.
func (p *program) serviceNames(ctx context.Context) []string {
	c, err := p.connect()
	if err != nil {
		return nil
	}
	list, err := c.kube.CoreV1().Services(c.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil
	}
	var names []string
	for _, s := range list.Items {
		if s.Spec.Type == v1.ServiceTypeLoadBalancer {
			names = append(names, s.Name)
		}
	}
	return names
}

// parseServer checks --server.
func parseServer(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" {
		return nil, usageError(fmt.Errorf("--server: %q: must be https://HOST:PORT", text))
	}
	return u, nil
}
