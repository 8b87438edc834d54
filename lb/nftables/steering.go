package nftables

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// A packet with the mark of a member is routed by a table that has nothing but the
// way to that member. The ip rule for this machine's own addresses, which load
// balancers' addresses usually are, is replaced by one that is not for such packets,
// and these jump over the rules of others. What is the engine's is known by priorities,
// marks and tables, and nothing else is touched.
const (
	// steeringProtocol is that of the engine's ip rules and routes: what has another
	// systemd-networkd takes away whenever it starts, unless its configuration has it.
	steeringProtocol = unix.RTPROT_KERNEL
	// firstTable is the number of the first routing table; that of a member follows
	// from its mark.
	firstTable = 0xec0000
	lastTable  = firstTable + int(gatewayNumbers)
)

func tableOf(m mark) int { return firstTable + int(m&gatewayNumbers) }

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

func (g gateway) route() *netlink.Route {
	return &netlink.Route{
		Table: tableOf(g.mark), Dst: everyone(versionOf(g.addr)), Gw: g.addr.AsSlice(), LinkIndex: g.link.index,
		Flags: int(netlink.FLAG_ONLINK), Protocol: steeringProtocol,
	}
}

func everyone(v *version) *net.IPNet {
	return &net.IPNet{IP: make(net.IP, v.length), Mask: net.CIDRMask(0, int(v.length)*8)}
}

// trouble is what keeps packets from being routed to members. Its zero value is none.
type trouble struct {
	obstacles map[*version]string   // to all members of a family
	faults    map[netip.Addr]string // of one that was never reached
	passing   []string              // of those that were
}

func (t trouble) any() bool { return len(t.obstacles)+len(t.faults)+len(t.passing) > 0 }

// steering is the kernel's routing rules and tables of the engine.
type steering struct {
	handle   *netlink.Handle
	sockets  map[int]*nl.SocketHandle
	done     map[mark]gateway // to whom the way was made
	broken   map[mark]bool    // and is not there any more
	settings linkSettings
	warned   map[string]bool // settings of links about which the log has been told
}

func (s *steering) open() error {
	if s.done == nil {
		s.forget()
	}
	if s.handle != nil {
		return nil
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink socket for routes: %w", err)
	}
	own, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return fmt.Errorf("netlink socket for ip rules: %w", err)
	}
	s.handle, s.sockets = h, map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: own}}
	return nil
}

// forget makes nothing known of what was done.
func (s *steering) forget() {
	s.done, s.broken, s.warned = make(map[mark]gateway), make(map[mark]bool), make(map[string]bool)
}

func (s *steering) close() {
	if s.handle != nil {
		s.handle.Close()
		s.sockets[unix.NETLINK_ROUTE].Close()
		s.handle = nil
	}
}

// links tells of addresses on which link they are.
func (s *steering) links(addrs map[netip.Addr]bool) map[netip.Addr]link {
	found := make(map[netip.Addr]link, len(addrs))
	err := s.open()
	names := make(map[int]string)
	for a := range addrs {
		if err != nil {
			found[a] = link{why: err.Error()}
			continue
		}
		found[a] = s.link(a, names)
	}
	return found
}

func (s *steering) link(a netip.Addr, names map[int]string) link {
	routes, err := s.handle.RouteGet(a.AsSlice())
	switch {
	case err != nil:
		return link{why: fmt.Sprintf("there is no way to %s: %v", a, err)}
	case len(routes) == 0 || routes[0].Type != unix.RTN_UNICAST:
		return link{why: fmt.Sprintf("%s is no other machine's address", a)}
	case routes[0].Gw != nil:
		return link{why: fmt.Sprintf("%s is behind the router %s: with forwarding direct nodes must be on a link of the edge", a, routes[0].Gw)}
	}
	index := routes[0].LinkIndex
	if names[index] == "" {
		l, err := s.handle.LinkByIndex(index)
		if err != nil {
			return link{why: fmt.Sprintf("link %d of %s: %v", index, a, err)}
		}
		names[index] = l.Attrs().Name
	}
	return link{index: index, name: names[index]}
}

// has tells whether nothing is to be done for the gateways, as far as is known.
func (s *steering) has(gateways []gateway) bool {
	for _, g := range gateways {
		if s.done[g.mark] != g || s.broken[g.mark] {
			return false
		}
	}
	return true
}

// add makes whatever is missing for the gateways.
func (s *steering) add(gateways []gateway, keep bool, log *zap.Logger) trouble {
	t := trouble{obstacles: make(map[*version]string), faults: make(map[netip.Addr]string)}
	for _, v := range versions {
		own := of(v, gateways)
		if len(own) == 0 {
			continue
		}
		if err := s.addVersion(v, own, &t, keep, log); err != nil {
			for _, g := range own {
				s.fail(&t, g, err)
			}
		}
	}
	return t
}

func of(v *version, gateways []gateway) []gateway {
	return slices.DeleteFunc(slices.Clone(gateways), func(g gateway) bool { return versionOf(g.addr) != v })
}

// fail notes why there is no way to a member. One that was served goes on to be:
// what is wrong may pass, and health checks tell whether it matters.
func (s *steering) fail(t *trouble, g gateway, err error) {
	if s.done[g.mark].addr == g.addr {
		s.broken[g.mark] = true
		t.passing = append(t.passing, err.Error())
		return
	}
	t.faults[g.addr] = err.Error()
}

func (s *steering) addVersion(v *version, gateways []gateway, t *trouble, keep bool, log *zap.Logger) error {
	if err := s.open(); err != nil {
		return err
	}
	present, err := s.rules(v)
	if err != nil {
		return err
	}
	why := present.obstacle()
	if why != "" {
		t.obstacles[v] = why
	}
	var ready []gateway
	ruled := make(map[mark]bool)
	for _, g := range gateways {
		served := s.done[g.mark].addr == g.addr
		if why != "" {
			s.fail(t, g, errors.New(why))
			if !served {
				continue
			}
		}
		if s.done[g.mark] != g || s.broken[g.mark] {
			if err := s.addRoute(g, keep, log); err != nil {
				s.fail(t, g, err)
				ruled[g.mark] = served
				continue
			}
		}
		ready, ruled[g.mark] = append(ready, g), true
	}
	maps.DeleteFunc(ruled, func(_ mark, yes bool) bool { return !yes })
	if err := s.addRules(v, present, ruled); err != nil {
		return err
	}
	for _, g := range ready {
		s.done[g.mark] = g
		delete(s.broken, g.mark)
	}
	return nil
}

// addRoute makes the way to a member. It is not asked whether it is there, since the
// kernel goes through the routes of everybody for that.
func (s *steering) addRoute(g gateway, keep bool, log *zap.Logger) error {
	if versionOf(g.addr) == v4 {
		if err := s.prepare(g.link.name, keep, log); err != nil {
			return err
		}
	}
	if err := s.handle.RouteReplace(g.route()); err != nil {
		return fmt.Errorf("route to %s on %s: %w", g.addr, g.link.name, err)
	}
	return nil
}

// addRules adds rules: what is jumped to must be there before the jump, and what takes
// the place of the kernel's rule before that is deleted.
func (s *steering) addRules(v *version, present ipRules, members map[mark]bool) error {
	if len(members) == 0 {
		if present.deaf() {
			return s.addRule(firstRule(v))
		}
		return nil
	}
	var wanted []*netlink.Rule
	if !present.loses {
		wanted = append(wanted, lostRule(v))
	}
	for _, m := range slices.Sorted(maps.Keys(members)) {
		if !present.members[m] {
			wanted = append(wanted, memberRule(v, m))
		}
	}
	place := present.place()
	if !slices.Contains(present.jumps, place) {
		wanted = append(wanted, jumpRule(v, place))
	}
	if !present.spares && !present.othersLocal(true) {
		wanted = append(wanted, sparingRule(v))
	}
	for _, r := range wanted {
		if err := s.addRule(r); err != nil {
			return err
		}
	}
	for _, priority := range present.jumps {
		if priority != place {
			if err := s.deleteRule(jumpRule(v, priority)); err != nil {
				return err
			}
		}
	}
	return s.deleteFirst(v, present)
}

// deleteFirst deletes the kernel's rule for this machine's addresses, and such as
// others have put in its place.
func (s *steering) deleteFirst(v *version, present ipRules) error {
	if len(present.first) > 0 && present.spares {
		// To the kernel, a rule without a mark that is to be deleted is any with the
		// same priority and table, so the engine's must not come before.
		if err := s.deleteRule(sparingRule(v)); err != nil {
			return err
		}
		if err := s.addRule(sparingRule(v)); err != nil {
			return err
		}
	}
	for _, protocol := range present.first {
		r := firstRule(v)
		r.Protocol = protocol
		if err := s.deleteRule(r); err != nil {
			return err
		}
	}
	return nil
}

func (s *steering) addRule(r *netlink.Rule) error {
	if err := s.handle.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add an ip rule of priority %d: %w", r.Priority, err)
	}
	return nil
}

func (s *steering) deleteRule(r *netlink.Rule) error {
	if err := s.handle.RuleDel(r); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete an ip rule of priority %d: %w", r.Priority, err)
	}
	return nil
}

// survey finds the gateways to which packets do not go any more. It changes nothing.
func (s *steering) survey(gateways []gateway, keep bool) (wrong map[mark]bool, obstacles map[*version]string, err error) {
	if err := s.open(); err != nil {
		return nil, nil, err
	}
	wrong, obstacles = make(map[mark]bool), make(map[*version]string)
	settled := make(map[string]bool) // links
	for _, v := range versions {
		own := of(v, gateways)
		if len(own) == 0 {
			continue
		}
		present, err := s.rules(v)
		if err != nil {
			return nil, nil, err
		}
		if why := present.obstacle(); why != "" {
			obstacles[v] = why
		}
		whole := present.complete(own)
		for _, g := range own {
			if _, known := settled[g.link.name]; v == v4 && !known {
				settled[g.link.name] = keep || rightSettings(g.link.name)
			}
			if !whole || v == v4 && !settled[g.link.name] || !s.leads(v, g) {
				wrong[g.mark] = true
			}
		}
	}
	return wrong, obstacles, nil
}

// probes are addresses of nobody.
var probes = map[*version]net.IP{v4: net.IPv4(192, 0, 2, 1), v6: net.ParseIP("2001:db8::1")}

// leads tells whether the kernel would send packets with the mark of a member there.
func (s *steering) leads(v *version, g gateway) bool {
	r, ok := s.way(v, g.mark)
	return ok && r.LinkIndex == g.link.index && r.Gw.Equal(g.addr.AsSlice())
}

// way returns the route that packets with a mark take, if it is in the table of that
// mark.
func (s *steering) way(v *version, m mark) (netlink.Route, bool) {
	routes, err := s.handle.RouteGetWithOptions(probes[v], &netlink.RouteGetOptions{Mark: uint32(m), FIBMatch: true})
	if err != nil || len(routes) != 1 || routes[0].Table != tableOf(m) {
		return netlink.Route{}, false
	}
	return routes[0], true
}

// learn returns the members whose rules are there, without an address if there is no
// way to them at present.
func (s *steering) learn() (map[mark]gateway, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	all := make(map[mark]gateway)
	for _, v := range versions {
		present, err := s.rules(v)
		if noFamily(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for m := range present.members {
			all[m] = s.learnWay(v, m)
		}
	}
	return all, nil
}

func (s *steering) learnWay(v *version, m mark) gateway {
	g := gateway{mark: m}
	r, ok := s.way(v, m)
	if !ok {
		return g
	}
	a, ok := netip.AddrFromSlice(r.Gw)
	if !ok || versionOf(a.Unmap()) != v {
		return g
	}
	g.addr = a.Unmap()
	if l, err := s.handle.LinkByIndex(r.LinkIndex); err == nil {
		g.link = link{index: r.LinkIndex, name: l.Attrs().Name}
	}
	return g
}

// noFamily tells whether the machine does not have an address family.
func noFamily(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}

// prune takes away what is there for others than the members that are kept. Without
// any it leaves everything as it was before the engine. If thorough it looks for
// routes of which there are no rules.
func (s *steering) prune(kept map[mark]bool, thorough bool) (found bool, err error) {
	if err := s.open(); err != nil {
		return false, err
	}
	var errs []error
	for _, v := range versions {
		some, err := s.pruneVersion(v, kept, thorough)
		found = found || some
		if !noFamily(err) {
			errs = append(errs, err)
		}
	}
	if len(kept) == 0 && len(s.settings) > 0 {
		found = true
		errs = append(errs, s.settings.restore())
	}
	return found, errors.Join(errs...)
}

func (s *steering) pruneVersion(v *version, kept map[mark]bool, thorough bool) (found bool, err error) {
	present, err := s.rules(v)
	if err != nil {
		return false, err
	}
	some := slices.ContainsFunc(slices.Collect(maps.Keys(kept)), func(m mark) bool { return m.version() == v })
	if !some && len(present.first) == 0 && (present.spares && !present.stays() || present.own() && present.deaf()) && !present.othersLocal(true) {
		if err := s.addRule(firstRule(v)); err != nil {
			return true, fmt.Errorf("put back the ip rule for this machine's addresses: %w", err)
		}
	}
	unwanted := present.without(v, kept, some)
	for _, r := range unwanted {
		r.Protocol = 0 // of anybody
		if err := s.deleteRule(r); err != nil {
			return true, err
		}
	}
	tables := make(map[mark]bool)
	for m := range s.done {
		tables[m] = m.version() == v
	}
	maps.Copy(tables, present.members)
	maps.DeleteFunc(tables, func(m mark, here bool) bool { return !here || kept[m] })
	if thorough {
		if err := s.strayTables(v, kept, tables); err != nil {
			return true, err
		}
	}
	for _, m := range slices.Sorted(maps.Keys(tables)) {
		err := s.handle.RouteDel(&netlink.Route{Table: tableOf(m), Dst: everyone(v)})
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return true, fmt.Errorf("delete the route of table %d: %w", tableOf(m), err)
		}
		delete(s.done, m)
		delete(s.broken, m)
	}
	return len(unwanted)+len(tables) > 0, nil
}

// strayTables adds the tables that have routes and are not kept.
func (s *steering) strayTables(v *version, kept, tables map[mark]bool) error {
	const attempts = 20
	var all []netlink.Route
	var err error
	for range attempts {
		all, err = s.handle.RouteListFiltered(int(v.af), &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range all {
		if m := ofGateway | mark(r.Table-firstTable); r.Table >= firstTable && r.Table <= lastTable && !kept[m] {
			tables[m] = true
		}
	}
	return nil
}
