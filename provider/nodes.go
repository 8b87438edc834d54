package provider

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/eclusa-lb/eclusa/lb"
)

// toBeDeletedTaint is what the cluster autoscaler puts on a node before it
// deletes it.
const toBeDeletedTaint = "ToBeDeletedByClusterAutoscaler"

// AllNodes is the pool of all nodes that may take traffic.
const AllNodes lb.PoolName = "nodes"

// NodeSet is the nodes that may take traffic, as edges learn of them.
type NodeSet struct {
	// Nodes are the nodes.
	Nodes map[lb.NodeName]lb.Node
	// Unusable are nodes that cannot take traffic, with the reason. Nodes that
	// are excluded on purpose are not among them.
	Unusable map[lb.NodeName]string

	labels map[lb.NodeName]labels.Set
}

// ReadNodes returns the nodes that may take traffic. Nodes that are about to go
// are draining. Whether a node is Ready is not looked at: the edges find out by
// themselves which nodes work, and a control plane that has lost sight of all
// nodes must not empty every pool. Of each node the addresses of the first type
// come first.
func ReadNodes(nodes []*v1.Node, types []v1.NodeAddressType) NodeSet {
	set := NodeSet{
		Nodes:    make(map[lb.NodeName]lb.Node, len(nodes)),
		Unusable: map[lb.NodeName]string{},
		labels:   make(map[lb.NodeName]labels.Set, len(nodes)),
	}
	for _, n := range nodes {
		if excluded(n) {
			continue
		}
		name := lb.NodeName(n.Name)
		addrs := nodeAddresses(n, types)
		if len(addrs) == 0 {
			set.Unusable[name] = "has no usable address of the types that are looked for"
			continue
		}
		set.Nodes[name] = lb.Node{
			Addresses: addrs,
			Zone:      n.Labels[v1.LabelTopologyZone],
			Draining:  leaving(n),
		}
		set.labels[name] = n.Labels
	}
	return set
}

// excluded says whether the node's label keeps it out of load balancers. Any
// value but a false one does, as in Kubernetes' own service controller.
func excluded(n *v1.Node) bool {
	value, ok := n.Labels[v1.LabelNodeExcludeBalancers]
	if !ok {
		return false
	}
	yes, err := strconv.ParseBool(value)
	return err != nil || yes
}

// leaving says whether the node is about to go.
func leaving(n *v1.Node) bool {
	if n.DeletionTimestamp != nil {
		return true
	}
	return slices.ContainsFunc(n.Spec.Taints, func(t v1.Taint) bool { return t.Key == toBeDeletedTaint })
}

// nodeAddresses returns the addresses of these types, types in their order.
func nodeAddresses(n *v1.Node, types []v1.NodeAddressType) []netip.Addr {
	var addrs []netip.Addr
	for _, t := range types {
		for _, a := range n.Status.Addresses {
			addr, err := netip.ParseAddr(a.Address)
			if a.Type != t || err != nil || addr.Zone() != "" {
				continue
			}
			addr = addr.Unmap()
			if addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || addr.IsLinkLocalUnicast() {
				continue
			}
			if !slices.Contains(addrs, addr) {
				addrs = append(addrs, addr)
			}
		}
	}
	return addrs
}

// Pool returns the name and the nodes of the pool that a selector asks for; nil
// is all nodes. Equal selectors have equal names.
func (s NodeSet) Pool(selector labels.Selector) (lb.PoolName, lb.Pool) {
	pool := make(lb.Pool, len(s.Nodes))
	if selector == nil {
		for name := range maps.Keys(s.Nodes) {
			pool[name] = lb.Member{}
		}
		return AllNodes, pool
	}
	for name, l := range s.labels {
		if selector.Matches(l) {
			pool[name] = lb.Member{}
		}
	}
	return selectedNodes(selector), pool
}

// selectedNodes names the pool of a selector.
func selectedNodes(selector labels.Selector) lb.PoolName {
	text := selector.String()
	if len(text) > 512 {
		sum := sha256.Sum256([]byte(text))
		text = text[:256] + "... " + hex.EncodeToString(sum[:8])
	}
	return AllNodes + " with " + lb.PoolName(text)
}
