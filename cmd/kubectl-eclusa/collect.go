package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/provider"
)

// collectObjects adds what eclusa reads, reduced to what matters.
func (c *cluster) collectObjects(ctx context.Context, b *bundle) {
	edges, err := listOwn[v1alpha1.Edge](ctx, c, v1alpha1.EdgeResource)
	for _, e := range edges {
		e.ObjectMeta = reducedMeta(e.ObjectMeta)
	}
	b.object("edges.yaml", edges, err)
	pools, err := listOwn[v1alpha1.AddressPool](ctx, c, v1alpha1.AddressPoolResource)
	for _, o := range pools {
		o.ObjectMeta = reducedMeta(o.ObjectMeta)
	}
	b.object("addresspools.yaml", pools, err)

	var services []v1.Service
	ours := map[string]bool{}
	list, err := c.kube.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err == nil {
		for _, s := range list.Items {
			if s.Spec.Type == v1.ServiceTypeLoadBalancer {
				s.ObjectMeta = reducedMeta(s.ObjectMeta)
				services = append(services, s)
				ours[s.Namespace+"/"+s.Name] = true
			}
		}
	}
	b.object("services.yaml", services, err)

	var endpoints []discoveryv1.EndpointSlice
	slices, err := c.kube.DiscoveryV1().EndpointSlices("").List(ctx, metav1.ListOptions{})
	if err == nil {
		for _, s := range slices.Items {
			if ours[s.Namespace+"/"+s.Labels[discoveryv1.LabelServiceName]] {
				s.ObjectMeta = reducedMeta(s.ObjectMeta)
				endpoints = append(endpoints, s)
			}
		}
	}
	b.object("endpointslices.yaml", endpoints, err)

	var nodes []v1.Node
	all, err := c.kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err == nil {
		for _, n := range all.Items {
			nodes = append(nodes, v1.Node{
				ObjectMeta: reducedMeta(n.ObjectMeta), Spec: v1.NodeSpec{Taints: n.Spec.Taints, Unschedulable: n.Spec.Unschedulable},
				Status: v1.NodeStatus{Addresses: n.Status.Addresses, Conditions: n.Status.Conditions, NodeInfo: n.Status.NodeInfo},
			})
		}
	}
	b.object("nodes.yaml", nodes, err)
	c.collectEvents(ctx, b)
}

// collectEvents adds Events about what eclusa serves and is.
func (c *cluster) collectEvents(ctx context.Context, b *bundle) {
	var events []v1.Event
	list, err := c.kube.CoreV1().Events("").List(ctx, metav1.ListOptions{})
	if err == nil {
		for _, e := range list.Items {
			kind := e.InvolvedObject.Kind
			if kind == "Service" || kind == v1alpha1.EdgeKind || kind == v1alpha1.AddressPoolKind || strings.Contains(e.InvolvedObject.Name, "eclusa") {
				e.ObjectMeta = reducedMeta(e.ObjectMeta)
				events = append(events, e)
			}
		}
	}
	b.object("events.yaml", events, err)
}

// collectLease adds who leads.
func (c *cluster) collectLease(ctx context.Context, b *bundle, namespace, lease string) {
	l, err := c.kube.CoordinationV1().Leases(namespace).Get(ctx, lease, metav1.GetOptions{})
	if err == nil {
		annotations := l.Annotations
		l.ObjectMeta = reducedMeta(l.ObjectMeta)
		l.Annotations = annotations
	}
	b.object("lease.yaml", l, err)
}

// collectManager adds what is known of the manager's processes. It asks for its
// namespace only: a role cannot tell the manager's pods from others by a label.
func (c *cluster) collectManager(ctx context.Context, b *bundle, namespace string) {
	o := metav1.ListOptions{LabelSelector: managerLabels}
	deployments, err := c.kube.AppsV1().Deployments(namespace).List(ctx, o)
	var kept []appsv1.Deployment
	if err == nil {
		for _, d := range deployments.Items {
			d.ObjectMeta = reducedMeta(d.ObjectMeta)
			d.Spec.Template = reducedTemplate(d.Spec.Template)
			kept = append(kept, d)
		}
	}
	b.object("manager/deployments.yaml", kept, err)

	configs, err := c.kube.CoreV1().ConfigMaps(namespace).List(ctx, o)
	var maps []v1.ConfigMap
	if err == nil {
		for _, m := range configs.Items {
			m.ObjectMeta = reducedMeta(m.ObjectMeta)
			m.BinaryData = nil
			maps = append(maps, m)
		}
	}
	b.object("manager/configmaps.yaml", maps, err)

	pods, err := c.kube.CoreV1().Pods(namespace).List(ctx, o)
	var reduced []v1.Pod
	if err == nil {
		for _, p := range pods.Items {
			t := reducedTemplate(v1.PodTemplateSpec{Spec: p.Spec})
			reduced = append(reduced, v1.Pod{ObjectMeta: reducedMeta(p.ObjectMeta), Spec: t.Spec, Status: p.Status})
		}
	}
	if err == nil && len(reduced) == 0 {
		err = fmt.Errorf("there is no pod with the label %s in namespace %s; say --manager-namespace if the manager runs in another", managerLabels, namespace)
	}
	b.object("manager/pods.yaml", reduced, err)
	for _, p := range reduced {
		for _, container := range p.Spec.Containers {
			c.collectLog(ctx, b, p, container.Name, false)
		}
		for _, s := range p.Status.ContainerStatuses {
			if s.RestartCount > 0 {
				c.collectLog(ctx, b, p, s.Name, true)
			}
		}
	}
}

func (c *cluster) collectLog(ctx context.Context, b *bundle, pod v1.Pod, container string, previous bool) {
	name := fmt.Sprintf("manager/logs/%s/%s/%s.log", pod.Namespace, pod.Name, container)
	if previous {
		name = strings.TrimSuffix(name, ".log") + ".previous.log"
	}
	stream, err := c.kube.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &v1.PodLogOptions{
		Container: container, Previous: previous, Timestamps: true, TailLines: ptr.To(int64(maxLogLines)), LimitBytes: ptr.To(int64(maxLog)),
	}).Stream(ctx)
	if err != nil {
		b.failures = append(b.failures, fmt.Errorf("%s: %w", name, err))
		return
	}
	defer stream.Close()
	data, err := io.ReadAll(io.LimitReader(stream, maxLog))
	if err != nil {
		b.failures = append(b.failures, fmt.Errorf("%s: %w", name, err))
	}
	b.kept++
	b.text(name, string(data))
}

// reducedMeta keeps names, times and labels, and of annotations those of eclusa:
// others, such as the last applied manifest, may hold anything.
func reducedMeta(m metav1.ObjectMeta) metav1.ObjectMeta {
	kept := metav1.ObjectMeta{
		Name: m.Name, Namespace: m.Namespace, UID: m.UID, ResourceVersion: m.ResourceVersion, Generation: m.Generation,
		CreationTimestamp: m.CreationTimestamp, DeletionTimestamp: m.DeletionTimestamp, Labels: m.Labels, Finalizers: m.Finalizers,
		OwnerReferences: m.OwnerReferences,
	}
	for k, v := range m.Annotations {
		if strings.HasPrefix(k, provider.Prefix) {
			if kept.Annotations == nil {
				kept.Annotations = map[string]string{}
			}
			kept.Annotations[k] = v
		}
	}
	return kept
}

// reducedTemplate keeps of a pod what says how it runs, without the values of
// environment variables.
func reducedTemplate(t v1.PodTemplateSpec) v1.PodTemplateSpec {
	t = *t.DeepCopy()
	t.ObjectMeta = reducedMeta(t.ObjectMeta)
	for _, containers := range [][]v1.Container{t.Spec.InitContainers, t.Spec.Containers} {
		for i := range containers {
			reduceContainer(containers[i].Env, &containers[i].Args, &containers[i].Command)
		}
	}
	for i := range t.Spec.EphemeralContainers {
		c := &t.Spec.EphemeralContainers[i]
		reduceContainer(c.Env, &c.Args, &c.Command)
	}
	return t
}

func reduceContainer(env []v1.EnvVar, args, command *[]string) {
	for i := range env {
		if env[i].Value != "" {
			env[i].Value = redacted
		}
	}
	*args, *command = reducedArgs(*args), reducedArgs(*command)
}

// reducedArgs takes the values out of flags that are called after a secret. A
// path is no secret.
func reducedArgs(args []string) []string {
	out := slices.Clone(args)
	for i, a := range out {
		name, value, both := strings.Cut(a, "=")
		switch {
		case both && !harmlessName(name) && !strings.HasPrefix(value, "/"):
			out[i] = name + "=" + redacted
		case i > 0 && strings.HasPrefix(out[i-1], "-") && !strings.Contains(out[i-1], "=") && !harmlessName(out[i-1]) && !strings.HasPrefix(a, "-") && !strings.HasPrefix(a, "/"):
			out[i] = redacted
		}
	}
	return out
}
