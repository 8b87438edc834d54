package provider

import (
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
)

// World is everything that is known when decisions are made. Nothing in it is
// changed by whoever reads it.
type World struct {
	// Now is the time of the decisions.
	Now time.Time
	// Controllers says which Services are ours.
	Controllers Controllers
	// Settings are the operator's choices.
	Settings Settings
	// Services are all Services of the cluster.
	Services []*v1.Service
	// Nodes are all Nodes of the cluster.
	Nodes []*v1.Node
	// Endpoints returns where the endpoints of a Service are.
	Endpoints func(namespace, name string) Endpoints
	// Namespaces are the labels of all namespaces.
	Namespaces map[string]labels.Set
	// Pools and Edges are our own objects.
	Pools []*v1alpha1.AddressPool
	Edges []*v1alpha1.Edge
	// Eventual asks for decisions as they will be once every edge has let go of what
	// it is not to have any more, instead of those for now.
	Eventual bool
	// Fleet is what is known about the edges.
	Fleet map[string]EdgeState
}

// Settings are the operator's choices. The zero value is right.
type Settings struct {
	// NodeAddressTypes are the types of node addresses that edges may use, the
	// most wanted first; none means InternalIP, then ExternalIP.
	NodeAddressTypes []v1.NodeAddressType
	// DrainCordoned takes cordoned nodes (spec.unschedulable) out of load balancers.
	DrainCordoned bool
}

// WithDefaults returns the settings with everything filled in.
func (s Settings) WithDefaults() Settings {
	if len(s.NodeAddressTypes) == 0 {
		s.NodeAddressTypes = []v1.NodeAddressType{v1.NodeInternalIP, v1.NodeExternalIP}
	}
	return s
}
