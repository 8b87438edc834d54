package lb

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Policy is what an edge allows one cluster, from the edge's own configuration.
// The zero Policy allows no address at all.
type Policy struct {
	// AddressRanges are where the cluster's load balancer addresses must lie.
	AddressRanges []netip.Prefix
	// Shared are the AddressRanges that other clusters may use as well.
	Shared []netip.Prefix
	// NodeRanges are where the addresses of its nodes must lie.
	NodeRanges []netip.Prefix
	// MaxLoadBalancers, MaxListeners and MaxNodes limit the size of its
	// configuration; a listener counts once for each address of its load balancer,
	// since each is a frontend. A Set that grows beyond them is refused with
	// ErrExhausted. Zero is unlimited.
	MaxLoadBalancers, MaxListeners, MaxNodes int
}

// Host is what an edge is, apart from any cluster: what it can do, and which
// addresses and ports are taken. It may change while the edge runs.
type Host struct {
	// Capabilities are the engine's.
	Capabilities []Capability
	// OwnAddresses are the addresses of the machine itself, without those that
	// it holds for load balancers.
	OwnAddresses []netip.Addr
	// ShareOwnAddresses allows load balancers on OwnAddresses.
	ShareOwnAddresses bool
	// Reserved are frontends that nobody may have, with the holder's name for
	// the message: "API of the edge". An unspecified address stands for every
	// address of its family.
	Reserved map[Frontend]string
}

// AllowsAddress reports whether a load balancer may have the address.
func (p Policy) AllowsAddress(a netip.Addr) bool { return within(a, p.AddressRanges) }

// AllowsNode reports whether a node may have the address.
func (p Policy) AllowsNode(a netip.Addr) bool { return within(a, p.NodeRanges) }

const whatListeners = "listeners"

// Admits returns nil if the next configuration is not larger than the policy allows,
// else the ErrExhausted that names every limit that is passed. Where the one before is
// beyond a limit, which has come down since, one that has no more is admitted: it may
// be what takes a node out.
func (p Policy) Admits(before, next Config) error {
	had, _, _ := before.frontends()
	have, largest, most := next.frontends()
	var over []string
	for _, limit := range []struct {
		what            string
		had, have, most int
	}{
		{"load balancers", len(before.LoadBalancers), len(next.LoadBalancers), p.MaxLoadBalancers},
		{whatListeners, had, have, p.MaxListeners},
		{"nodes", len(before.Nodes), len(next.Nodes), p.MaxNodes},
	} {
		if limit.most > 0 && limit.have > max(limit.most, limit.had) {
			text := fmt.Sprintf("%d %s where the edge allows %d", limit.have, limit.what, limit.most)
			if limit.what == whatListeners {
				text += fmt.Sprintf(" (each counts for every address; %q has most, %d)", next.LoadBalancers[largest].Name, most)
			}
			over = append(over, text)
		}
	}
	if over == nil {
		return nil
	}
	return fmt.Errorf("configuration has %s: %w", strings.Join(over, ", "), ErrExhausted)
}

// frontends counts the listeners, once for each address, and tells who has most of
// them.
func (c Config) frontends() (total int, largest UID, most int) {
	for uid, l := range c.LoadBalancers {
		n := len(l.Listeners) * max(len(l.Addresses), 1)
		total += n
		if n > most || n == most && uid < largest {
			largest, most = uid, n
		}
	}
	return total, largest, most
}

// ValidatePolicies returns everything that is wrong with the policies of an
// edge, in a stable order, each an ErrInvalid: ranges that are invalid or not
// masked, limits that are negative, shared ranges that are not among the address
// ranges, and address ranges of two clusters that overlap where not both have
// marked the overlap as shared.
func ValidatePolicies(policies map[Cluster]Policy) []error {
	var faults []error
	complain := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf(format+": %w", append(args, ErrInvalid)...))
	}
	clusters := slices.Sorted(maps.Keys(policies))
	for i, name := range clusters {
		p := policies[name]
		for _, ranges := range [][]netip.Prefix{p.AddressRanges, p.Shared, p.NodeRanges} {
			for _, r := range ranges {
				if !r.IsValid() || r != r.Masked() || r.Addr().Is4In6() {
					complain("cluster %q: range %s is not a range with all bits behind its length zero", name, r)
				}
			}
		}
		for _, s := range p.Shared {
			if !covered(s, p.AddressRanges) {
				complain("cluster %q: shared range %s is not within its address ranges %s", name, s, listed(p.AddressRanges))
			}
		}
		if p.MaxLoadBalancers < 0 || p.MaxListeners < 0 || p.MaxNodes < 0 {
			complain("cluster %q: a limit is negative; zero is unlimited", name)
		}
		for _, other := range clusters[i+1:] {
			for _, o := range overlaps(p, policies[other]) {
				complain("address ranges of clusters %q and %q overlap in %s: separate them, or mark it as shared for both", name, other, o)
			}
		}
	}
	return faults
}

// overlaps returns where two clusters may both have addresses though not both
// of them share.
func overlaps(p, q Policy) []netip.Prefix {
	var found []netip.Prefix
	for _, a := range p.AddressRanges {
		for _, b := range q.AddressRanges {
			if !a.Overlaps(b) {
				continue
			}
			common := a
			if b.Bits() > a.Bits() {
				common = b
			}
			if (!covered(common, p.Shared) || !covered(common, q.Shared)) && !slices.Contains(found, common) {
				found = append(found, common)
			}
		}
	}
	return found
}

// covered reports whether one of the ranges has all of p.
func covered(p netip.Prefix, ranges []netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(r netip.Prefix) bool {
		return r.Bits() <= p.Bits() && r.Overlaps(p)
	})
}

func within(a netip.Addr, ranges []netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(a) })
}

// listed writes a list for a message of bounded length.
func listed[T any](all []T) string {
	const shown = 8
	var b strings.Builder
	for i, v := range all {
		if i == shown {
			fmt.Fprintf(&b, " and %d more", len(all)-shown)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprint(&b, v)
	}
	if len(all) == 0 {
		return "none"
	}
	return b.String()
}
