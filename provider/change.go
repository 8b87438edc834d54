package provider

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/report"
)

// unallocated stands for a node port that the API server has not allocated yet.
const unallocated = 65535

// change is objects as they are to be, filled in as the API server would.
type change struct {
	services    []*v1.Service
	pools       []*v1alpha1.AddressPool
	edges       []*v1alpha1.Edge
	findings    map[string][]report.Finding // by Service
	assumptions []string
	live        live
}

// live is what of all living Services is looked up for each planned one.
type live struct {
	services map[string]*v1.Service // by namespace/name
	ports    map[portKey]string     // the names of Services by node port
	families []v1.IPFamily          // of the cluster, the first one first
}

// readChange reads the objects of a plan, until ctx ends.
func (v *view) readChange(ctx context.Context, objects []json.RawMessage) (*change, error) {
	c := &change{findings: map[string][]report.Finding{}, live: readLive(v.Services)}
	seen := map[string]bool{}
	var errs []error
	for i, raw := range objects {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		key, err := v.readObject(c, raw)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("objects[%d]: %w", i, err))
		case seen[key]:
			errs = append(errs, fmt.Errorf("objects[%d]: %s is given twice", i, key))
		}
		seen[key] = true
	}
	return c, errors.Join(errs...)
}

func (v *view) readObject(c *change, raw json.RawMessage) (key string, err error) {
	var m struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        metav1.ObjectMeta `json:"metadata"`
	}
	if err := yaml.Unmarshal(raw, &m); err != nil {
		return "", fmt.Errorf("is no Kubernetes object: %w", err)
	}
	if m.Metadata.Name == "" {
		return "", errors.New("metadata.name is missing")
	}
	key = m.Kind + " " + m.Metadata.Name
	switch kind := m.GroupVersionKind(); kind {
	case v1.SchemeGroupVersion.WithKind("Service"):
		svc := &v1.Service{}
		if err := yaml.UnmarshalStrict(raw, svc); err != nil {
			return key, fmt.Errorf("%s: %w", key, err)
		}
		if svc.Namespace == "" {
			svc.Namespace = metav1.NamespaceDefault
		}
		key = m.Kind + " " + nameOf(svc)
		c.services = append(c.services, v.filled(c, svc))
	case v1alpha1.GroupVersion.WithKind(v1alpha1.AddressPoolKind):
		o := &v1alpha1.AddressPool{}
		if err := yaml.UnmarshalStrict(raw, o); err != nil {
			return key, fmt.Errorf("%s: %w", key, err)
		}
		if live := v.poolObject(o.Name); live != nil {
			v.identify(o, live)
			o.Status = live.Status
		} else {
			v.identify(o, nil)
		}
		if o.Spec.AutoAssign == nil {
			o.Spec.AutoAssign = ptr.To(true)
		}
		c.pools = append(c.pools, o)
	case v1alpha1.GroupVersion.WithKind(v1alpha1.EdgeKind):
		o := &v1alpha1.Edge{}
		if err := yaml.UnmarshalStrict(raw, o); err != nil {
			return key, fmt.Errorf("%s: %w", key, err)
		}
		if live := v.edgeObject(o.Name); live != nil {
			v.identify(o, live)
			o.Status = live.Status
		} else {
			v.identify(o, nil)
		}
		c.edges = append(c.edges, o)
	default:
		return key, fmt.Errorf("%s: kind %q of %q: must be a Service (v1), AddressPool or Edge (%s)", key, m.Kind, m.APIVersion, v1alpha1.GroupVersion)
	}
	return key, nil
}

// identify gives an object what only the API server gives: that of the living
// one, or something new.
func (v *view) identify(o, live metav1.Object) {
	if live == nil {
		o.SetUID(types.UID("planned-" + o.GetNamespace() + "/" + o.GetName()))
		o.SetCreationTimestamp(metav1.NewTime(v.Now))
		o.SetResourceVersion("")
		o.SetDeletionTimestamp(nil)
		return
	}
	o.SetUID(live.GetUID())
	o.SetCreationTimestamp(live.GetCreationTimestamp())
	o.SetDeletionTimestamp(live.GetDeletionTimestamp())
	o.SetFinalizers(live.GetFinalizers())
	o.SetResourceVersion("planned")
}

// filled returns a Service as the API server would store it.
func (v *view) filled(c *change, svc *v1.Service) *v1.Service {
	live := c.live.services[nameOf(svc)]
	svc.Status = v1.ServiceStatus{}
	if live != nil {
		v.identify(svc, live)
		svc.Status = live.Status
		for _, a := range recordedAnnotations {
			if value, ok := live.Annotations[string(a)]; ok {
				if svc.Annotations == nil {
					svc.Annotations = map[string]string{}
				}
				svc.Annotations[string(a)] = value
			}
		}
		c.immutable(svc, live)
	} else {
		v.identify(svc, nil)
		// Nothing speaks for what a new object says of itself.
		for _, a := range recordedAnnotations {
			delete(svc.Annotations, string(a))
		}
	}
	if v.Namespaces[svc.Namespace] == nil {
		c.find(svc, report.Notice, "metadata.namespace", fmt.Sprintf("there is no namespace %q yet; pools with a namespaceSelector do not admit it", svc.Namespace))
	}
	if svc.Spec.Type == "" {
		svc.Spec.Type = v1.ServiceTypeClusterIP
	}
	if svc.Spec.ExternalTrafficPolicy == "" {
		svc.Spec.ExternalTrafficPolicy = v1.ServiceExternalTrafficPolicyCluster
	}
	c.refused(svc)
	c.fillPorts(svc, live)
	c.fillFamilies(svc, live)
	return svc
}

func (c *change) find(svc *v1.Service, level report.Level, where, what string) {
	c.findings[nameOf(svc)] = append(c.findings[nameOf(svc)], report.Finding{Level: level, Where: where, What: what})
}

func (c *change) assume(what string) {
	if !slices.Contains(c.assumptions, what) {
		c.assumptions = append(c.assumptions, what)
	}
}

// immutable finds what the API server would refuse to change.
func (c *change) immutable(svc, live *v1.Service) {
	class := func(s *v1.Service) string { return ptr.Deref(s.Spec.LoadBalancerClass, "") }
	both := svc.Spec.Type == v1.ServiceTypeLoadBalancer && live.Spec.Type == v1.ServiceTypeLoadBalancer
	if both && class(svc) != class(live) {
		c.find(svc, report.Problem, "spec.loadBalancerClass", fmt.Sprintf(
			"is %q now and cannot become %q while the type stays LoadBalancer: the API server would refuse it; delete the Service and create it anew, or change its type in between", class(live), class(svc)))
	}
	first := func(s *v1.Service) v1.IPFamily {
		if len(s.Spec.IPFamilies) == 0 {
			return ""
		}
		return s.Spec.IPFamilies[0]
	}
	if is, was := first(svc), first(live); is != "" && was != "" && is != was {
		c.find(svc, report.Problem, "spec.ipFamilies[0]", fmt.Sprintf(
			"is %s now and cannot become %s: the API server would refuse it; delete the Service and create it anew, or add the other family behind it", was, is))
	}
}

// refused finds what the API server would refuse of the Service by itself.
func (c *change) refused(svc *v1.Service) {
	if svc.Spec.Type == v1.ServiceTypeLoadBalancer && svc.Spec.ClusterIP == v1.ClusterIPNone {
		c.find(svc, report.Problem, "spec.clusterIP", "None: a Service of type LoadBalancer cannot be headless: the API server would refuse it; leave it out")
	}
	if svc.Spec.LoadBalancerClass != nil && svc.Spec.Type != v1.ServiceTypeLoadBalancer {
		c.find(svc, report.Problem, "spec.loadBalancerClass", fmt.Sprintf("is only for Services of type LoadBalancer, and this one is of type %s: the API server would refuse it", svc.Spec.Type))
	}
}

// portKey is what one port of a Service is told from another by.
type portKey struct {
	protocol v1.Protocol
	port     int32
}

// fillPorts gives ports without a node port the one that they have, or stands
// something in for what the API server would allocate.
func (c *change) fillPorts(svc, live *v1.Service) {
	has := map[portKey]int32{}
	if live != nil {
		for _, p := range live.Spec.Ports {
			has[portKey{p.Protocol, p.Port}] = p.NodePort
		}
	}
	allocate := svc.Spec.Type == v1.ServiceTypeLoadBalancer && ptr.Deref(svc.Spec.AllocateLoadBalancerNodePorts, true)
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		if p.Protocol == "" {
			p.Protocol = v1.ProtocolTCP
		}
		if p.NodePort == 0 {
			p.NodePort = has[portKey{p.Protocol, p.Port}]
		} else if other := c.live.ports[portKey{p.Protocol, p.NodePort}]; other != "" && other != nameOf(svc) {
			c.find(svc, report.Problem, fmt.Sprintf("spec.ports[%d].nodePort", i), fmt.Sprintf("%d is that of Service %q: the API server would refuse it", p.NodePort, other))
		}
		if p.NodePort == 0 && allocate {
			p.NodePort = unallocated
			c.assume("node ports that are not given are allocated by the API server when the Service is created")
		}
	}
	if local(svc) && svc.Spec.Type == v1.ServiceTypeLoadBalancer && svc.Spec.HealthCheckNodePort == 0 {
		if live != nil {
			svc.Spec.HealthCheckNodePort = live.Spec.HealthCheckNodePort
		}
		if svc.Spec.HealthCheckNodePort == 0 {
			svc.Spec.HealthCheckNodePort = unallocated
		}
	}
}

// readLive indexes the living Services, once for all planned ones.
func readLive(services []*v1.Service) live {
	l := live{services: make(map[string]*v1.Service, len(services)), ports: map[portKey]string{}, families: clusterFamilies(services)}
	for _, s := range services {
		l.services[nameOf(s)] = s
		for _, p := range s.Spec.Ports {
			if p.NodePort != 0 {
				l.ports[portKey{p.Protocol, p.NodePort}] = nameOf(s)
			}
		}
	}
	return l
}

// fillFamilies gives a Service the address families that the API server would.
func (c *change) fillFamilies(svc, live *v1.Service) {
	if len(svc.Spec.IPFamilies) > 0 {
		return
	}
	policy := ptr.Deref(svc.Spec.IPFamilyPolicy, v1.IPFamilyPolicySingleStack)
	if live != nil && (svc.Spec.IPFamilyPolicy == nil || ptr.Deref(live.Spec.IPFamilyPolicy, "") == policy) {
		svc.Spec.IPFamilies = slices.Clone(live.Spec.IPFamilies)
		svc.Spec.IPFamilyPolicy = live.Spec.IPFamilyPolicy
		return
	}
	families := c.live.families
	if svc.Spec.IPFamilyPolicy == nil {
		svc.Spec.IPFamilyPolicy = ptr.To(v1.IPFamilyPolicySingleStack)
	}
	switch policy {
	case v1.IPFamilyPolicyRequireDualStack:
		other := map[v1.IPFamily]v1.IPFamily{v1.IPv4Protocol: v1.IPv6Protocol, v1.IPv6Protocol: v1.IPv4Protocol}
		svc.Spec.IPFamilies = []v1.IPFamily{families[0], other[families[0]]}
	case v1.IPFamilyPolicyPreferDualStack:
		svc.Spec.IPFamilies = slices.Clone(families)
	default:
		svc.Spec.IPFamilies = slices.Clone(families[:1])
	}
	c.assume(fmt.Sprintf("a Service without spec.ipFamilies gets %v, as the other Services of this cluster have", svc.Spec.IPFamilies))
}

// clusterFamilies returns the families of the cluster's Services, the first one
// first, as far as they can be seen.
func clusterFamilies(services []*v1.Service) []v1.IPFamily {
	families := []v1.IPFamily{v1.IPv4Protocol}
	seen := map[v1.IPFamily]bool{}
	for _, s := range services {
		if s.Namespace == metav1.NamespaceDefault && s.Name == "kubernetes" && len(s.Spec.IPFamilies) > 0 {
			families = s.Spec.IPFamilies[:1]
		}
		for _, f := range s.Spec.IPFamilies {
			seen[f] = true
		}
	}
	families = slices.Clone(families)
	for _, f := range slices.Sorted(maps.Keys(seen)) {
		if !slices.Contains(families, f) {
			families = append(families, f)
		}
	}
	return families
}
