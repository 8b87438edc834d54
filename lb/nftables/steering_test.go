package nftables

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// TestSteering checks what the engine does to the machine's routing and links, and
// what becomes of it.
func TestSteering(t *testing.T) {
	inNamespaces(t, func(n lbtest.Network) {
		for _, c := range []struct {
			name string
			run  func(r *directRig)
		}{
			{"OthersKeepTheirPlace", steeringOthers},
			{"WithoutPriority", steeringUnranked},
			{"RefusesRulesBefore", steeringRulesBefore},
			{"RuleBeforeComesLater", steeringRulesBeforeLater},
			{"LocalIsThere", steeringLocalIsThere},
			{"TroubleAtTheStart", steeringStartTrouble},
			{"Resumes", steeringResumes},
			{"ResumesWithoutRules", steeringRestoredBefore},
			{"RefusesMovedLocal", steeringMovedLocal},
			{"NetworkdStartsAgain", steeringNetworkd},
			{"LinkGoesDown", steeringLinkDown},
			{"Repairs", steeringRepairs},
			{"TroubleIsOfDirectOnly", steeringTrouble},
			{"ReadOnlySettings", steeringReadOnly},
			{"LeavingMember", steeringLeaving},
			{"PutsSettingsBack", steeringPutsBack},
			{"KeepsSettings", steeringKeepsSettings},
			{"TriesAgain", steeringTriesAgain},
			{"Check", steeringCheck},
		} {
			t.Run(c.name, func(t *testing.T) {
				for _, f := range []lb.Family{lb.IPv4, lb.IPv6} {
					t.Run(string(f), func(t *testing.T) {
						if n.Addresses(f) == 0 {
							lbtest.Lacking(t, "the network has no %s", f)
						}
						c.run(newDirectRig(t, n, f))
					})
				}
			})
		}
	})
}

// viaNodePort adds a route that is served by node ports.
func (r *directRig) viaNodePort() lb.Frontend {
	f := r.add(lb.TCP)
	r.change(f, func(route *lb.Route) { route.Direct, route.TargetPort = false, targetPort })
	for i := range r.nodes {
		r.listen(i, lb.Frontend{Addr: r.node(i), Port: targetPort, Protocol: lb.TCP})
	}
	return f
}

func (r *directRig) mustServe(f lb.Frontend) {
	r.Helper()
	if _, _, err := r.dial(f).ask(patience); err != nil {
		r.Errorf("%s: %v", f, err)
	}
}

// steeringNetworkd: systemd-networkd deletes, whenever it starts, all rules and routes
// that it does not know and that are not the kernel's.
func steeringNetworkd(r *directRig) {
	f := r.add(lb.TCP)
	r.mustSet()
	c := r.on(0, f)
	family := map[lb.Family]int{lb.IPv4: netlink.FAMILY_V4, lb.IPv6: netlink.FAMILY_V6}[r.family]
	rules, err := netlink.RuleList(family)
	if err != nil {
		r.Fatal(err)
	}
	for _, rule := range rules {
		if rule.Protocol != unix.RTPROT_KERNEL {
			rule.Family = family
			r.Logf("deleting %s", rule)
			if err := netlink.RuleDel(&rule); err != nil {
				r.Fatal(err)
			}
		}
	}
	routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		r.Fatal(err)
	}
	for _, route := range routes {
		if route.Table >= 1000 && route.Protocol != unix.RTPROT_KERNEL {
			r.Logf("deleting %s", route)
			if err := netlink.RouteDel(&route); err != nil {
				r.Fatal(err)
			}
		}
	}
	if got := r.finds(rigAddr(r.family, clientLink, 1).Addr()); !strings.HasPrefix(got, fmt.Sprintf("type %d ", unix.RTN_LOCAL)) {
		r.Errorf("this machine's own address: got %s; want it local", got)
	}
	if node := r.mustAsk(c); node != "n0" {
		r.Errorf("the connection went to %s; want n0", node)
	}
	r.mustAsk(r.dial(f))
}

// steeringLinkDown: a link to nodes that is down for a moment costs no connection.
func steeringLinkDown(r *directRig) {
	f := r.add(lb.TCP)
	r.mustSet()
	c := r.on(0, f)
	up := r.linkDown(1)
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintln(c, "who"); err != nil {
		r.Error(err)
	}
	r.mustSet() // health checks have seen nothing
	up()
	line, err := c.in.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "n0 ") {
		r.Errorf("a connection over a link that was down for a moment: got %q, %v; want an answer of n0", line, err)
	}
}

// steeringRepairs: what somebody takes away comes back without a Set.
func steeringRepairs(r *directRig) {
	f := r.add(lb.TCP)
	r.mustSet()
	c := r.on(0, f)
	state := func() string { return sortedLines(r.ip("rule")) + r.steered() + settingOf(r, "d1", "accept_local") }
	want := state()
	harm := []string{
		"rule del pref 0", "rule del pref 32765", "rule del pref 40000", "rule del pref 40001",
		"rule add pref 0 lookup local proto kernel", "rule add pref 0 lookup local",
	}
	for _, table := range []string{"15466496", "15466752"} {
		if strings.Contains(want, "table "+table) {
			harm = append(harm, "route flush table "+table)
		}
	}
	for _, command := range harm {
		r.ip(command)
		r.eventually("restored after "+command, func() bool { return state() == want })
	}
	if r.family == lb.IPv4 {
		change(r, "d1", "accept_local", "0")
		r.eventually("setting of the link is restored", func() bool { return state() == want })
	}
	if node := r.mustAsk(c); node != "n0" {
		r.Errorf("the connection went to %s; want n0", node)
	}
}

// withFirst leaves a route the first node only, and returns its group as it was.
func (r *directRig) withFirst(f lb.Frontend) (lb.GroupID, lb.Group) {
	r.Helper()
	id := r.table.Routes[f].Group
	was := r.table.Groups[id]
	r.table.Groups[id] = lb.Group{Backends: was.Backends[:1]}
	r.mustSet()
	return id, was
}

// steeringTrouble: when the kernel does not take routes, those that are served by
// node ports are served, and the members that were reached before.
func steeringTrouble(r *directRig) {
	direct, other := r.add(lb.TCP), r.viaNodePort()
	id, both := r.withFirst(direct)
	c := r.dial(direct)
	r.mustAsk(c)
	r.deaf()
	r.table.Groups[id] = both
	other = r.another(other)
	refused := r.set()
	var without *lb.MembersError
	if !errors.As(refused[direct], &without) || without.Without["n1"] == "" || len(without.Without) != 1 {
		r.Errorf("a member that cannot be reached: got %v; want it named", refused[direct])
	}
	r.mustServe(other)
	if node := r.mustAsk(c); node != "n0" {
		r.Errorf("the connection went to %s; want n0", node)
	}
	r.mustAsk(r.dial(direct))
	r.hears()
	r.mustSet()
	r.mustAsk(r.on(1, direct))
}

// deaf takes the engine's socket for ip rules away.
func (r *directRig) deaf() {
	r.engine.mu.Lock()
	defer r.engine.mu.Unlock()
	r.engine.direct.steering.sockets[unix.NETLINK_ROUTE].Close()
}

// hears has the engine open it again.
func (r *directRig) hears() {
	r.engine.mu.Lock()
	defer r.engine.mu.Unlock()
	r.engine.direct.steering.close()
}

// another adds a route like one that is served by node ports, and takes that away.
func (r *directRig) another(f lb.Frontend) lb.Frontend {
	other, route := r.net.Frontend(lb.TCP, r.family), r.table.Routes[f]
	delete(r.table.Routes, f)
	route.Owner.UID += "other"
	r.table.Routes[other] = route
	return other
}

func sortedLines(s string) string {
	lines := strings.Split(s, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func ipNetIn(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// steeringLeaving: connections of a member that leaves its group go on.
func steeringLeaving(r *directRig) {
	f := r.add(lb.TCP)
	r.mustSet()
	c := r.on(1, f)
	id := r.table.Routes[f].Group
	r.table.Groups[id] = lb.Group{Backends: r.table.Groups[id].Backends[:1]}
	for end := time.Now().Add(2500 * time.Millisecond); time.Now().Before(end); time.Sleep(100 * time.Millisecond) { // poll
		r.mustSet()
		if node := r.mustAsk(c); node != "n1" {
			r.Fatalf("the connection went to %s; want n1, which drains", node)
		}
	}
	for range 10 {
		if node := r.mustAsk(r.dial(f)); node != "n0" {
			r.Fatalf("a new connection went to %s; want n0", node)
		}
	}
}

// steeringTriesAgain: rules that could not be deleted are with the next Set.
func steeringTriesAgain(r *directRig) {
	before := r.ip("rule")
	f := r.add(lb.TCP)
	r.change(f, func(route *lb.Route) { route.DrainTimeout = 0 })
	r.mustSet()
	r.deaf()
	delete(r.table.Routes, f)
	r.mustSet()
	r.mustSet()
	if r.ip("rule") == before {
		r.Fatal("the rules were deleted without a socket")
	}
	r.hears()
	r.mustSet()
	r.eventually("the rules are deleted", func() bool { return r.ip("rule") == before })
}

// steeringCheck: what would be refused is told before, and what others must accept.
func steeringCheck(r *directRig) {
	r.rule("pref 0 to " + rigAddr(r.family, 77, 7).Addr().String() + " lookup 77")
	listing(r, "nft", "add table inet wall; add chain inet wall fw { type filter hook forward priority 0; policy drop; }")
	defer listing(r, "nft", "delete table inet wall")
	said := make(map[string]Item)
	for _, i := range Check(Options{Direct: true}) {
		said[i.Name] = i
	}
	if i := said["forwarding direct of "+string(r.family)]; !i.Doubtful || !strings.Contains(i.Detail, `"0: from all to `) {
		r.Errorf("check with a rule before the engine's: got %+v; want it named", i)
	}
	if i := said["rules of others"]; !strings.Contains(i.Detail, "meta mark and 0xff000000 == 0xef000000") {
		r.Errorf("check with a firewall: got %+v; want told what it must accept", i)
	}
}

// TestNumbers: members that have left do not keep others from a number, and none is
// given again before flows were looked at and counters deleted.
func TestNumbers(t *testing.T) {
	d := &direct{
		groups: map[lb.GroupID]bool{{Name: "g"}: true}, numbers: map[netip.Addr]mark{}, leaving: map[netip.Addr]time.Time{},
		links: map[netip.Addr]link{}, lost: map[netip.Addr]time.Time{}, freed: map[mark]bool{},
	}
	s := newState()
	s.shape.holders[holder{version: v4}] = true
	now := time.Now()
	give := func(first, n int) (refused int) {
		g := lb.Group{}
		for i := range n {
			a := netip.AddrFrom4([4]byte{10, 0, byte((first + i) >> 8), byte(first + i)})
			d.links[a] = link{index: 1, name: "l"}
			g.Backends = append(g.Backends, lb.Backend{Addr: a})
		}
		d.number(lb.Table{Groups: map[lb.GroupID]lb.Group{{Name: "g"}: g}}, s, now)
		for _, b := range g.Backends {
			if d.refuses(b.Addr) != "" {
				refused++
			}
		}
		return refused
	}
	if n := give(0, maxGateways+1); n != 1 {
		t.Errorf("refused of %d members: got %d; want 1", maxGateways+1, n)
	}
	if n := give(1000, maxGateways); n != 0 {
		t.Errorf("refused of as many others: got %d; want none", n)
	}
	seen := map[mark]bool{}
	for a, m := range d.numbers {
		if seen[m] || m.version() != v4 || m.kind() != ofGateway || m&^(ofGateway|0x100ff) != 0 {
			t.Errorf("mark of %s: got %#x; want one of its own, of IPv4", a, m)
		}
		seen[m] = true
	}
	now = now.Add(lb.DefaultDrainTimeout + time.Second)
	if n := give(2000, maxGateways); n != maxGateways {
		t.Errorf("refused before flows were looked at: got %d; want all %d, since no number is free", n, maxGateways)
	}
	d.swept = now
	now = now.Add(time.Second)
	if n := give(2000, maxGateways); n != maxGateways {
		t.Errorf("refused before counters were deleted: got %d; want all %d, since no number is free", n, maxGateways)
	}
	clear(d.freed)
	if n := give(2000, maxGateways); n != 0 {
		t.Errorf("refused after flows were looked at and counters deleted: got %d; want none", n)
	}
}

// steered returns the routes of the engine's tables.
func (r *directRig) steered() string {
	r.Helper()
	var own []string
	for _, line := range strings.Split(r.ip("route show table all"), "\n") {
		if strings.Contains(line, " table 154664") || strings.Contains(line, " table 154667") {
			own = append(own, line)
		}
	}
	return strings.Join(own, "\n")
}

// listing returns what a command prints.
func listing(t testing.TB, command ...string) string {
	t.Helper()
	out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
	return string(out)
}
