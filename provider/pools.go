package provider

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/ipam"
)

// pool is an AddressPool that can be used.
type pool struct {
	ipam.Pool
	namespaces labels.Selector
	services   labels.Selector
	edges      labels.Selector
	// closed pools overlap an older one, or are about to be deleted: Services keep
	// what they have of them, and nothing more is given out.
	closed bool
	// direct has packets routed to nodes as they are.
	direct bool
}

// readPools returns the pools that can be used, sorted by name with the closed
// ones last, and what is wrong with the others. A pool that overlaps an older one
// is among both.
func readPools(objects []*v1alpha1.AddressPool) (pools []pool, faults map[string]string) {
	objects = slices.Clone(objects)
	slices.SortFunc(objects, func(a, b *v1alpha1.AddressPool) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
	faults = map[string]string{}
	for _, o := range objects {
		p, err := readPool(o)
		if err != nil {
			faults[o.Name] = err.Error()
			continue
		}
		if o.DeletionTimestamp != nil {
			// Whatever takes its place may have the same addresses.
			p.closed, p.AutoAssign = true, false
		} else if err := overlap(p, pools); err != nil {
			faults[o.Name] = err.Error()
			p.closed, p.AutoAssign = true, false
		}
		pools = append(pools, p)
	}
	slices.SortFunc(pools, func(a, b pool) int {
		if a.closed != b.closed {
			return cmp.Compare(ord(a.closed), ord(b.closed))
		}
		return strings.Compare(a.Name, b.Name)
	})
	for i, p := range pools {
		if p.closed && overlap(p, pools[:i]) != nil {
			pools[i].Shared = false // how addresses are shared is up to the pool that gives them out
		}
	}
	return pools, faults
}

// ord orders false before true.
func ord(b bool) int {
	if b {
		return 1
	}
	return 0
}

func readPool(o *v1alpha1.AddressPool) (pool, error) {
	p := pool{Pool: ipam.Pool{Name: o.Name, AutoAssign: o.Spec.AutoAssign == nil || *o.Spec.AutoAssign, Shared: o.Spec.Sharing == v1alpha1.ShareAlways}, direct: o.Spec.Forwarding == v1alpha1.ForwardDirect && o.Spec.Sharing != v1alpha1.ShareAlways}
	for i, text := range o.Spec.Addresses {
		r, err := ipam.ParseRange(string(text))
		if err != nil {
			return p, fmt.Errorf("spec.addresses[%d]: %w", i, err)
		}
		before := ipam.Pool{Name: "before", Ranges: p.Ranges}
		if len(ipam.Overlaps([]ipam.Pool{before, {Name: "new", Ranges: []ipam.Range{r}}})) > 0 {
			return p, fmt.Errorf("spec.addresses[%d]: %s: overlaps another range of the same pool", i, quoted(string(text)))
		}
		p.Ranges = append(p.Ranges, r)
	}
	for _, s := range []struct {
		field string
		from  *metav1.LabelSelector
		to    *labels.Selector
	}{
		{"namespaceSelector", o.Spec.NamespaceSelector, &p.namespaces},
		{"serviceSelector", o.Spec.ServiceSelector, &p.services},
		{"edgeSelector", o.Spec.EdgeSelector, &p.edges},
	} {
		*s.to = labels.Everything()
		if s.from == nil {
			continue
		}
		selector, err := metav1.LabelSelectorAsSelector(s.from)
		if err != nil {
			return p, fmt.Errorf("spec.%s: %w", s.field, err)
		}
		*s.to = selector
	}
	return p, nil
}

// overlap returns an error if a pool has addresses of another one that gives them
// out.
func overlap(p pool, others []pool) error {
	for _, o := range others {
		if o.closed {
			continue
		}
		if faults := ipam.Overlaps([]ipam.Pool{p.Pool, o.Pool}); len(faults) > 0 {
			return fmt.Errorf("spec.addresses: %w", faults[0])
		}
	}
	return nil
}

func (p pool) contains(a netip.Addr) bool {
	return slices.ContainsFunc(p.Ranges, func(r ipam.Range) bool { return r.Contains(a) })
}

// size returns the number of addresses, maxCount if there are more.
func (p pool) size() int64 {
	var total uint64
	for _, r := range p.Ranges {
		total = min(total+min(r.Size(), maxCount), maxCount)
	}
	return int64(total)
}

// poolOf returns the pool that an address is of, nil if it is of none.
func poolOf(pools []pool, a netip.Addr) *pool {
	for i := range pools {
		if pools[i].contains(a) {
			return &pools[i]
		}
	}
	return nil
}

// edgeSets says for each pool which edges serve it, by name of the Edge object,
// and which would if they were not to be drained.
func edgeSets(pools []pool, edges map[string]*v1alpha1.Edge) (serving, drained map[string]map[string]bool) {
	serving, drained = make(map[string]map[string]bool, len(pools)), make(map[string]map[string]bool, len(pools))
	for _, p := range pools {
		serving[p.Name], drained[p.Name] = map[string]bool{}, map[string]bool{}
		for name, e := range edges {
			switch {
			case !p.edges.Matches(labels.Set(e.Labels)):
			case e.Spec.Drain:
				drained[p.Name][name] = true
			default:
				serving[p.Name][name] = true
			}
		}
	}
	return serving, drained
}

// sortedNames returns the keys of a set in order.
func sortedNames[K ~string, V any](set map[K]V) []K { return slices.Sorted(maps.Keys(set)) }
