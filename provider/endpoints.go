package provider

import (
	"fmt"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/eclusa-lb/eclusa/lb"
)

// Endpoints is where the endpoints of one Service are.
type Endpoints struct {
	// Known says that there is at least one EndpointSlice, even an empty one, so
	// that the absence of endpoints means something.
	Known bool
	// Ready says that at least one endpoint can serve.
	Ready bool
	// Nodes are the nodes with endpoints that can serve.
	Nodes map[lb.NodeName]lb.Member
}

// ReadEndpoints sums up the EndpointSlices of one Service. Endpoints that are
// terminating and still serve count: they are the last ones of their node, and
// the node's health check says when they are gone.
func ReadEndpoints(parts []*discoveryv1.EndpointSlice) Endpoints {
	e := Endpoints{Known: len(parts) > 0, Nodes: map[lb.NodeName]lb.Member{}}
	for _, s := range parts {
		for i := range s.Endpoints {
			if !serves(s.Endpoints[i].Conditions) {
				continue
			}
			e.Ready = true
			if node := s.Endpoints[i].NodeName; node != nil {
				e.Nodes[lb.NodeName(*node)] = lb.Member{}
			}
		}
	}
	return e
}

// among narrows a pool to where the endpoints are, nil if all of it serves. A Service
// of which no EndpointSlice is known has all nodes: that may be our ignorance, and a
// node without endpoints refuses connections by itself.
func (e Endpoints) among(pool lb.Pool, local bool) map[lb.NodeName]lb.Member {
	switch {
	case !e.Known, e.Ready && !local:
		return nil
	case !e.Ready:
		return map[lb.NodeName]lb.Member{}
	}
	members := map[lb.NodeName]lb.Member{}
	for node := range e.Nodes {
		if m, ok := pool[node]; ok {
			members[node] = m
		}
	}
	return members
}

// serves says whether an endpoint takes connections; what is not said is true.
func serves(c discoveryv1.EndpointConditions) bool {
	if c.Serving != nil {
		return *c.Serving || c.Ready != nil && *c.Ready
	}
	return c.Ready == nil || *c.Ready
}

// trimEndpointSlice drops from an EndpointSlice, before it is cached, everything
// that ReadEndpoints does not look at. It is a [cache.TransformFunc].
func trimEndpointSlice(object any) (any, error) {
	s, ok := object.(*discoveryv1.EndpointSlice)
	if !ok {
		return object, nil
	}
	type place struct {
		node   string
		serves bool
	}
	seen := map[place]bool{}
	trimmed := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
		Namespace: s.Namespace, Name: s.Name, UID: s.UID, ResourceVersion: s.ResourceVersion,
		Labels: map[string]string{discoveryv1.LabelServiceName: s.Labels[discoveryv1.LabelServiceName]},
	}}
	for i := range s.Endpoints {
		p := place{serves: serves(s.Endpoints[i].Conditions)}
		if n := s.Endpoints[i].NodeName; n != nil {
			p.node = *n
		}
		if seen[p] {
			continue
		}
		seen[p] = true
		e := discoveryv1.Endpoint{Conditions: discoveryv1.EndpointConditions{Ready: &p.serves}}
		if p.node != "" {
			e.NodeName = &p.node
		}
		trimmed.Endpoints = append(trimmed.Endpoints, e)
	}
	return trimmed, nil
}

// byService is the index of EndpointSlices by "namespace/name" of their Service.
const byService = "service"

var endpointIndexers = cache.Indexers{byService: func(object any) ([]string, error) {
	s, ok := object.(*discoveryv1.EndpointSlice)
	if !ok {
		return nil, fmt.Errorf("index by Service: got %T, want *EndpointSlice", object)
	}
	service := s.Labels[discoveryv1.LabelServiceName]
	if service == "" {
		return nil, nil
	}
	return []string{s.Namespace + "/" + service}, nil
}}
