package nftables

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// The engine's own ranges. A packet with the mark of a member is routed by a table
// that has nothing but the way to that member. The rules that say so must come
// before the one for this machine's own addresses, which load balancers' addresses
// usually are, so that one is moved behind them. All that is the engine's has its
// protocol, and nothing else is touched.
const (
	routeProtocol = 0xec
	// firstTable is the number of the first routing table; there are two times
	// maxGateways.
	firstTable = 0xec0000
	// skipPriority lets packets without such a mark go on at localPriority.
	skipPriority  = 100
	firstPriority = 110
	localPriority = firstPriority + 2*maxGateways
)

// link is how an address is reached.
type link struct {
	index int
	name  string
	why   string // it is on no link
}

// gateway is a member that packets are routed to as they are.
type gateway struct {
	addr netip.Addr
	mark mark
	link link
}

func (g gateway) number() int { return int(g.mark & maxID) }
func (g gateway) table() int  { return firstTable + g.number() }

// steering is the kernel's routing rules and tables of the engine.
type steering struct {
	handle *netlink.Handle
	set    map[string]bool // links whose settings are right
}

func (s *steering) open() error {
	if s.handle != nil {
		return nil
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink socket for routes: %w", err)
	}
	s.handle, s.set = h, make(map[string]bool)
	return nil
}

func (s *steering) close() {
	if s.handle != nil {
		s.handle.Close()
		s.handle = nil
	}
}

// links tells of addresses on which link they are.
func (s *steering) links(addrs map[netip.Addr]bool) (map[netip.Addr]link, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	names := make(map[int]string)
	found := make(map[netip.Addr]link, len(addrs))
	for a := range addrs {
		routes, err := s.handle.RouteGet(a.AsSlice())
		switch {
		case err != nil:
			found[a] = link{why: fmt.Sprintf("there is no way to %s: %v", a, err)}
			continue
		case len(routes) == 0 || routes[0].Type != unix.RTN_UNICAST:
			found[a] = link{why: fmt.Sprintf("%s is no other machine's address", a)}
			continue
		case routes[0].Gw != nil:
			found[a] = link{why: fmt.Sprintf("%s is behind the router %s: with forwarding direct nodes must be on a link of the edge", a, routes[0].Gw)}
			continue
		}
		index := routes[0].LinkIndex
		if names[index] == "" {
			l, err := s.handle.LinkByIndex(index)
			if err != nil {
				return nil, fmt.Errorf("link %d of %s: %w", index, a, err)
			}
			names[index] = l.Attrs().Name
		}
		found[a] = link{index: index, name: names[index]}
	}
	return found, nil
}

// add makes whatever is missing for the gateways.
func (s *steering) add(gateways []gateway, keep bool, log *zap.Logger) error {
	if err := s.open(); err != nil {
		return err
	}
	for _, g := range gateways {
		if err := s.prepare(g.link.name, keep, log); err != nil {
			return err
		}
	}
	for _, v := range versions {
		own := of(v, gateways)
		if len(own) == 0 {
			continue
		}
		if err := s.addRoutes(v, own); err != nil {
			return err
		}
		if err := s.addRules(v, own); err != nil {
			return err
		}
	}
	return nil
}

func of(v *version, gateways []gateway) []gateway {
	return slices.DeleteFunc(slices.Clone(gateways), func(g gateway) bool { return versionOf(g.addr) != v })
}

func (s *steering) addRoutes(v *version, gateways []gateway) error {
	present, err := s.routes(v)
	if err != nil {
		return err
	}
	for _, g := range gateways {
		want := g.route()
		have, there := present[g.table()]
		if there && have.Gw.Equal(want.Gw) && have.LinkIndex == want.LinkIndex {
			continue
		}
		if err := s.handle.RouteReplace(want); err != nil {
			return fmt.Errorf("route to %s on %s: %w", g.addr, g.link.name, err)
		}
	}
	return nil
}

func (g gateway) route() *netlink.Route {
	all := &net.IPNet{IP: make(net.IP, g.addr.BitLen()/8), Mask: net.CIDRMask(0, g.addr.BitLen())}
	return &netlink.Route{
		Table: g.table(), Dst: all, Gw: g.addr.AsSlice(), LinkIndex: g.link.index,
		Flags: int(netlink.FLAG_ONLINK), Protocol: routeProtocol,
	}
}

// routes returns the engine's routes of a family by their tables.
func (s *steering) routes(v *version) (map[int]netlink.Route, error) {
	all, err := s.handle.RouteListFiltered(int(v.af), &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	found := make(map[int]netlink.Route)
	for _, r := range all {
		if r.Table >= firstTable && r.Table < firstTable+2*maxGateways {
			found[r.Table] = r
		}
	}
	return found, nil
}

// addRules adds rules: before the one for own addresses is moved there must be
// another, and before packets are sent around the others they must be there.
func (s *steering) addRules(v *version, gateways []gateway) error {
	present, err := s.rules(v)
	if err != nil {
		return err
	}
	wanted := []*netlink.Rule{localRule(v)}
	for _, g := range gateways {
		wanted = append(wanted, g.rule(v))
	}
	for _, r := range append(wanted, skipRule(v)) {
		if present.own[r.Priority] {
			continue
		}
		if err := s.handle.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("routing rule %d: %w", r.Priority, err)
		}
	}
	if !present.local {
		return nil
	}
	first := firstRule(v)
	if err := s.handle.RuleDel(first); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("move the routing rule for this machine's addresses behind: %w", err)
	}
	return nil
}

func newRoutingRule(v *version, priority int) *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Priority, r.Protocol = int(v.af), priority, routeProtocol
	return r
}

// localRule is the one for this machine's own addresses, in its new place.
func localRule(v *version) *netlink.Rule {
	r := newRoutingRule(v, localPriority)
	r.Table = unix.RT_TABLE_LOCAL
	return r
}

// firstRule is the same in the place that the kernel gives it.
func firstRule(v *version) *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Priority, r.Table, r.Protocol = int(v.af), 0, unix.RT_TABLE_LOCAL, unix.RTPROT_KERNEL
	return r
}

// skipRule spares other packets the rules of the members.
func skipRule(v *version) *netlink.Rule {
	r := newRoutingRule(v, skipPriority)
	mask := uint32(kindMask)
	r.Mark, r.Mask, r.Invert, r.Goto = uint32(ofGateway), &mask, true, localPriority
	return r
}

func (g gateway) rule(v *version) *netlink.Rule {
	r := newRoutingRule(v, firstPriority+g.number())
	r.Mark, r.Table = uint32(g.mark), g.table()
	return r
}

// rulesPresent is what the kernel has of a family.
type rulesPresent struct {
	own   map[int]bool // by priority
	all   []netlink.Rule
	local bool // the rule for own addresses is the first
}

func (s *steering) rules(v *version) (rulesPresent, error) {
	p := rulesPresent{own: make(map[int]bool)}
	all, err := s.handle.RuleList(int(v.af))
	if err != nil {
		return p, fmt.Errorf("list routing rules: %w", err)
	}
	for _, r := range all {
		switch {
		case r.Priority <= 0 && r.Table == unix.RT_TABLE_LOCAL && r.Mark == 0:
			p.local = true
		case r.Protocol == routeProtocol && r.Priority >= skipPriority && r.Priority <= localPriority:
			p.own[r.Priority] = true
			r.Family = int(v.af)
			p.all = append(p.all, r)
		}
	}
	return p, nil
}

// prune takes away what is there for others than the gateways. Without any it
// leaves everything as it was before the engine.
func (s *steering) prune(gateways []gateway) (found bool, err error) {
	if err := s.open(); err != nil {
		return false, err
	}
	var errs []error
	for _, v := range versions {
		some, err := s.pruneVersion(v, of(v, gateways))
		found = found || some
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue // the machine has no such family
		}
		errs = append(errs, err)
	}
	return found, errors.Join(errs...)
}

func (s *steering) pruneVersion(v *version, gateways []gateway) (found bool, err error) {
	present, err := s.rules(v)
	if err != nil {
		return false, err
	}
	wanted, tables := make(map[int]bool), make(map[int]bool)
	for _, g := range gateways {
		wanted[g.rule(v).Priority], tables[g.table()] = true, true
	}
	if len(gateways) > 0 {
		wanted[skipPriority], wanted[localPriority] = true, true
	} else if len(present.all) > 0 && !present.local {
		if err := s.handle.RuleAdd(firstRule(v)); err != nil && !errors.Is(err, unix.EEXIST) {
			return true, fmt.Errorf("move the routing rule for this machine's addresses back: %w", err)
		}
	}
	for _, r := range present.all {
		if wanted[r.Priority] {
			continue
		}
		found = true
		if err := s.handle.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
			return true, fmt.Errorf("delete routing rule %d: %w", r.Priority, err)
		}
	}
	routes, err := s.routes(v)
	if err != nil {
		return found, err
	}
	for _, table := range slices.Sorted(maps.Keys(routes)) {
		if tables[table] {
			continue
		}
		found = true
		r := routes[table]
		if err := s.handle.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return true, fmt.Errorf("delete the route of table %d: %w", table, err)
		}
	}
	return found, nil
}

// prepare lets answers of members come in on a link: their source is an address
// that is this machine's own as well.
func (s *steering) prepare(name string, keep bool, log *zap.Logger) error {
	if s.set[name] {
		return nil
	}
	for _, setting := range []struct {
		name, want string
		right      func(have string) bool
	}{
		{"accept_local", "1", func(have string) bool { return have == "1" }},
		// 2 is below 1, and what counts is the larger one of the link's and of all.
		{"rp_filter", "2", func(have string) bool { return have == "2" || have == "0" && allUnfiltered() }},
	} {
		path := filepath.Join("/proc/sys/net/ipv4/conf", name, setting.name)
		b, err := os.ReadFile(path)
		have := strings.TrimSpace(string(b))
		switch {
		case errors.Is(err, os.ErrNotExist):
			continue
		case err != nil:
			return fmt.Errorf("setting of the link %s: %w", name, err)
		case setting.right(have):
			continue
		case keep:
			log.Warn("a setting of a link is not as it should be: answers of nodes that come back through this machine are dropped", zap.String("setting", path), zap.String("is", have), zap.String("want", setting.want))
			continue
		}
		if err := os.WriteFile(path, []byte(setting.want), 0o644); err != nil { //nolint:gosec // a file of the kernel
			return fmt.Errorf("setting of the link %s: %w", name, err)
		}
		log.Info("changed a setting of a link, so that answers of nodes may come back through this machine", zap.String("setting", path), zap.String("was", have), zap.String("is", setting.want))
	}
	s.set[name] = true
	return nil
}

// allUnfiltered tells whether the setting of all links filters nothing.
func allUnfiltered() bool {
	b, err := os.ReadFile("/proc/sys/net/ipv4/conf/all/rp_filter")
	return err == nil && strings.TrimSpace(string(b)) == "0"
}
