package provider

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/eclusa-lb/eclusa/lb"
)

// WeightKey is the annotation or label of a Node with its share of new
// connections relative to the other nodes', from 1 to 1000. The annotation counts
// before the label.
const WeightKey Annotation = Prefix + "weight"

// toBeDeletedTaint is what the cluster autoscaler puts on a node before it
// deletes it.
const toBeDeletedTaint = "ToBeDeletedByClusterAutoscaler"

// leavingTaints are those that tell that a node is about to go, or is gone: who
// sets them evicts its pods, or has lost them. A taint that only keeps new pods
// away is none, and neither is that of a node that is not ready: see ReadNodes.
var leavingTaints = []string{
	toBeDeletedTaint,
	"karpenter.sh/disrupted",                    // Karpenter since v1
	"karpenter.sh/disruption",                   // and before
	"node.kubernetes.io/out-of-service",         // an administrator says that it is down
	"node.cloudprovider.kubernetes.io/shutdown", // its cloud says so
}

// AllNodes is the pool of all nodes that may take traffic.
const AllNodes lb.PoolName = "nodes"

// NodeSet is the nodes that may take traffic, as edges learn of them.
type NodeSet struct {
	// Nodes are the nodes.
	Nodes map[lb.NodeName]lb.Node
	// Unusable are nodes that cannot take traffic, with the reason. Nodes that
	// are excluded on purpose are not among them.
	Unusable map[lb.NodeName]string
	// Faults are what cannot be honoured of nodes that take traffic all the same.
	Faults map[lb.NodeName]string

	labels map[lb.NodeName]labels.Set
}

// ReadNodes returns the nodes that may take traffic. Nodes that are about to go
// are draining, and so are cordoned ones if the settings say so. Whether a node is
// Ready is not looked at: the edges find out by themselves which nodes work, and a
// control plane that has lost sight of all nodes must not empty every pool. Of each
// node the addresses of the first type come first.
func ReadNodes(nodes []*v1.Node, settings Settings) NodeSet {
	settings = settings.WithDefaults()
	set := NodeSet{
		Nodes:    make(map[lb.NodeName]lb.Node, len(nodes)),
		Unusable: map[lb.NodeName]string{}, Faults: map[lb.NodeName]string{},
		labels: make(map[lb.NodeName]labels.Set, len(nodes)),
	}
	for _, n := range nodes {
		if excluded(n) {
			continue
		}
		name := lb.NodeName(n.Name)
		addrs := nodeAddresses(n, settings.NodeAddressTypes)
		if len(addrs) == 0 {
			set.Unusable[name] = fmt.Sprintf("has no usable address of the types that are looked for, %s", joinTypes(settings.NodeAddressTypes))
			continue
		}
		weight, fault := weightOf(n)
		if fault != "" {
			set.Faults[name] = fault
		}
		set.Nodes[name] = lb.Node{
			Addresses: addrs,
			Zone:      n.Labels[v1.LabelTopologyZone],
			Draining:  leaving(n) || settings.DrainCordoned && n.Spec.Unschedulable,
			Weight:    weight,
		}
		set.labels[name] = n.Labels
	}
	return set
}

func joinTypes(types []v1.NodeAddressType) string {
	texts := make([]string, len(types))
	for i, t := range types {
		texts[i] = string(t)
	}
	return strings.Join(texts, " and ")
}

// weightOf returns the weight of a node, zero if it says none, and what is wrong
// with what it says.
func weightOf(n *v1.Node) (weight int, fault string) {
	where, text := "annotation", n.Annotations[string(WeightKey)]
	if _, given := n.Annotations[string(WeightKey)]; !given {
		if text, given = n.Labels[string(WeightKey)]; !given {
			return 0, ""
		}
		where = "label"
	}
	w, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil || w < 1 || w > lb.MaxWeight {
		return 0, fmt.Sprintf("%s %s: %s: must be a number from 1 to %d; 1 is used", where, WeightKey, quoted(text), lb.MaxWeight)
	}
	if w == 1 {
		return 0, "" // the same as none
	}
	return w, ""
}

// families returns the address families in which at least one of the nodes is
// reached.
func (s NodeSet) families(names iter.Seq[lb.NodeName]) map[lb.Family]bool {
	found := map[lb.Family]bool{}
	for name := range names {
		for _, a := range s.Nodes[name].Addresses {
			found[lb.FamilyOf(a)] = true
		}
		if len(found) == 2 {
			break
		}
	}
	return found
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
	return slices.ContainsFunc(n.Spec.Taints, func(t v1.Taint) bool { return slices.Contains(leavingTaints, t.Key) })
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

// selectorOf returns the selector that a pool is named for, nil if it has none or the
// name is too short to tell.
func selectorOf(name lb.PoolName) labels.Selector {
	text, ok := strings.CutPrefix(string(name), string(AllNodes)+" with ")
	if !ok {
		return nil
	}
	selector, err := labels.Parse(text)
	if err != nil || selectedNodes(selector) != name {
		return nil
	}
	return selector
}
