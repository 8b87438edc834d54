package provider

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/eclusa-lb/eclusa/lb"
)

// Trimmed is what an edge does not get of a load balancer that it serves otherwise.
type Trimmed struct {
	// Problems has the reason for each listener that is left out, by its place.
	Problems map[int]lb.Problem
	// Kept are the places of those that are sent, in their order.
	Kept []int
	// Addresses are those that are left out, and Untranslated is the reason, since
	// the edge cannot serve their family by nodes of another.
	Addresses    []netip.Addr
	Untranslated lb.Problem
}

// fit returns the configuration without what the edge cannot do, with the reasons:
// listeners whose protocol it does not speak are left out, so are addresses of which
// it cannot translate the family, and load balancers that need more than it can do
// otherwise, or of which nothing is left.
func fit(config lb.Config, info lb.Info) (lb.Config, map[lb.UID]lb.Problem, map[lb.UID]Trimmed) {
	var withheld map[lb.UID]lb.Problem
	var trimmed map[lb.UID]Trimmed
	own := false
	for uid, l := range config.LoadBalancers {
		short := l.Shortfall(info.Capabilities)
		if len(short.Lacking) == 0 {
			continue
		}
		if !own {
			withheld, trimmed, own = map[lb.UID]lb.Problem{}, map[lb.UID]Trimmed{}, true
			config.LoadBalancers = maps.Clone(config.LoadBalancers)
		}
		part, cut := trim(l, info)
		if len(part.Listeners) > 0 && len(part.Addresses) > 0 {
			short = part.Shortfall(info.Capabilities)
		}
		if len(short.Lacking) == 0 {
			config.LoadBalancers[uid], trimmed[uid] = part, cut
			continue
		}
		delete(config.LoadBalancers, uid)
		problem := short.Problems[0]
		problem.Detail = cannotDo(info, short.Lacking)
		if slices.Contains(short.Lacking, lb.CapDirect) {
			problem.Detail += "; use an edge with engine nftables and nftables.direct in its configuration, or an AddressPool with forwarding NAT, for which the Service needs node ports"
		}
		withheld[uid] = problem
	}
	return config, withheld, trimmed
}

func cannotDo(info lb.Info, lacking []lb.Capability) string {
	names := make([]string, len(lacking))
	for i, c := range lacking {
		names[i] = string(c)
	}
	return fmt.Sprintf("edge %q with engine %q and version %q cannot do: %s", info.Name, info.Engine, info.Version, strings.Join(names, ", "))
}

// trim leaves the listeners out that need what the edge cannot do.
func trim(l lb.LoadBalancer, info lb.Info) (lb.LoadBalancer, Trimmed) {
	cut := Trimmed{Problems: map[int]lb.Problem{}}
	all := l.Listeners
	l.Listeners = nil
	for i, li := range all {
		field, need := "protocol", lb.Capability(li.Protocol)
		if slices.Contains(info.Capabilities, need) && li.ProxyProtocol != lb.ProxyOff {
			field, need = "proxyProtocol", "proxy-protocol-"+lb.Capability(li.ProxyProtocol)
		}
		if slices.Contains(info.Capabilities, need) {
			l.Listeners = append(l.Listeners, li)
			cut.Kept = append(cut.Kept, i)
			continue
		}
		cut.Problems[i] = lb.Problem{
			Type: "unsupported", Field: fmt.Sprintf("listeners[%d].%s", i, field),
			Detail: fmt.Sprintf("port %d/%s: %s", li.Port, li.Protocol, cannotDo(info, []lb.Capability{need})),
		}
	}
	if len(l.MemberFamilies) > 0 && !slices.Contains(info.Capabilities, lb.CapFamilyTranslation) {
		cut.untranslate(&l, info)
	}
	return l, cut
}

// untranslate leaves the addresses out that nodes are not reached in the family of.
func (t *Trimmed) untranslate(l *lb.LoadBalancer, info lb.Info) {
	all, families := l.Addresses, l.MemberFamilies
	l.Addresses, l.MemberFamilies = nil, nil
	for _, a := range all {
		if slices.Contains(families, lb.FamilyOf(a)) {
			l.Addresses = append(l.Addresses, a)
		} else {
			t.Addresses = append(t.Addresses, a)
		}
	}
	t.Untranslated = lb.Problem{
		Type: "unsupported", Field: "memberFamilies",
		Detail: fmt.Sprintf("%s: nodes are reached over %s only, and %s", formatAddresses(t.Addresses), families[0], cannotDo(info, []lb.Capability{lb.CapFamilyTranslation})),
	}
}

// listenerOf returns the place of the listener that a problem is about.
func listenerOf(p lb.Problem) (int, bool) {
	rest, ok := strings.CutPrefix(p.Field, "listeners[")
	if !ok {
		return 0, false
	}
	number, _, _ := strings.Cut(rest, "]")
	i, err := strconv.Atoi(number)
	return i, err == nil && i >= 0
}
