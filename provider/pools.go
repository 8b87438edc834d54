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
)

// pool is an AddressPool that can be used.
type pool struct {
	name       string
	ranges     []addressRange
	auto       bool
	namespaces labels.Selector
	services   labels.Selector
	edges      labels.Selector
}

// addressRange is a range of addresses of one family, both ends included.
type addressRange struct{ from, to netip.Addr }

func (r addressRange) contains(a netip.Addr) bool {
	return a.BitLen() == r.from.BitLen() && r.from.Compare(a) <= 0 && a.Compare(r.to) <= 0
}

func (r addressRange) overlaps(o addressRange) bool {
	return r.from.BitLen() == o.from.BitLen() && r.from.Compare(o.to) <= 0 && o.from.Compare(r.to) <= 0
}

func (r addressRange) String() string {
	if r.from == r.to {
		return r.from.String()
	}
	return r.from.String() + "-" + r.to.String()
}

// readPools returns the pools that can be used, sorted by name, and the reasons
// why the others cannot. Of two pools that overlap the older one stays.
func readPools(objects []*v1alpha1.AddressPool) (pools []pool, faults map[string]string) {
	objects = slices.Clone(objects)
	slices.SortFunc(objects, func(a, b *v1alpha1.AddressPool) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
	faults = map[string]string{}
	for _, o := range objects {
		p, err := readPool(o)
		if err == nil {
			err = overlap(p, pools)
		}
		if err != nil {
			faults[o.Name] = err.Error()
			continue
		}
		pools = append(pools, p)
	}
	slices.SortFunc(pools, func(a, b pool) int { return strings.Compare(a.name, b.name) })
	return pools, faults
}

func readPool(o *v1alpha1.AddressPool) (pool, error) {
	p := pool{name: o.Name, auto: o.Spec.AutoAssign == nil || *o.Spec.AutoAssign}
	for i, text := range o.Spec.Addresses {
		r, err := readRange(string(text))
		if err != nil {
			return p, fmt.Errorf("spec.addresses[%d]: %s: %w", i, quoted(string(text)), err)
		}
		for _, before := range p.ranges {
			if r.overlaps(before) {
				return p, fmt.Errorf("spec.addresses[%d]: %s: overlaps %s of the same pool", i, quoted(string(text)), before)
			}
		}
		p.ranges = append(p.ranges, r)
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

// readRange reads a CIDR, a range or an address.
func readRange(text string) (addressRange, error) {
	const want = "must be a CIDR such as 192.0.2.0/24, a range such as 192.0.2.10-192.0.2.20, or one address"
	if from, to, ok := strings.Cut(text, "-"); ok {
		a, err1 := netip.ParseAddr(from)
		b, err2 := netip.ParseAddr(to)
		a, b = a.Unmap(), b.Unmap()
		switch {
		case err1 != nil || err2 != nil || a.Zone() != "" || b.Zone() != "" || a.BitLen() != b.BitLen():
			return addressRange{}, fmt.Errorf("%s", want)
		case b.Less(a):
			return addressRange{}, fmt.Errorf("must begin with the smaller address")
		}
		return addressRange{a, b}, nil
	}
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		return addressRange{a.Unmap(), a.Unmap()}, nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() {
		return addressRange{}, fmt.Errorf("%s", want)
	}
	return addressRange{p.Masked().Addr(), lastOf(p)}, nil
}

// lastOf returns the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	bytes := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(bytes)*8; i++ {
		bytes[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(bytes)
	return last
}

// overlap returns an error if a pool shares addresses with one of the others.
func overlap(p pool, others []pool) error {
	for _, o := range others {
		for _, a := range p.ranges {
			for _, b := range o.ranges {
				if a.overlaps(b) {
					return fmt.Errorf("spec.addresses: %s overlaps %s of the older pool %q", a, b, o.name)
				}
			}
		}
	}
	return nil
}

func (p pool) contains(a netip.Addr) bool {
	return slices.ContainsFunc(p.ranges, func(r addressRange) bool { return r.contains(a) })
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

// edgeSets says for each pool which edges serve it, by name of the Edge object.
func edgeSets(pools []pool, edges []*v1alpha1.Edge) map[string]map[string]bool {
	sets := make(map[string]map[string]bool, len(pools))
	for _, p := range pools {
		set := map[string]bool{}
		for _, e := range edges {
			if e.DeletionTimestamp == nil && p.edges.Matches(labels.Set(e.Labels)) {
				set[e.Name] = true
			}
		}
		sets[p.name] = set
	}
	return sets
}

// sortedNames returns the keys of a set in order.
func sortedNames[V any](set map[string]V) []string { return slices.Sorted(maps.Keys(set)) }
