package nftables

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// rule adds an ip rule of somebody else until the test ends.
func (r *directRig) rule(spec string) {
	r.Helper()
	r.ip("rule add " + spec)
	r.Cleanup(func() { r.ip("rule del " + spec) })
}

// unruled deletes ip rules that a test which fails has left.
func (r *directRig) unruled(specs ...string) {
	r.Cleanup(func() {
		for _, spec := range specs {
			if r.Failed() {
				_ = exec.Command("ip", append([]string{r.flag(), "rule", "del"}, strings.Fields(spec)...)...).Run()
			}
		}
	})
}

// nowhere makes table 77 prohibit everything until the test ends.
func (r *directRig) nowhere() {
	r.Helper()
	r.ip("route add prohibit default table 77")
	r.Cleanup(func() { r.ip("route flush table 77") })
}

// finds tells how the kernel routes to an address.
func (r *directRig) finds(a netip.Addr) string {
	routes, err := netlink.RouteGet(a.AsSlice())
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("type %d table %d", routes[0].Type, routes[0].Table)
}

// own is an address of this machine.
func (r *directRig) own() netip.Addr { return rigAddr(r.family, clientLink, 1).Addr() }

// steeringOthers: what ip rules of others decide does not change.
func steeringOthers(r *directRig) {
	r.nowhere()
	one := rigAddr(r.family, 77, 7).Addr()
	for _, priority := range []int{700, 300, 105, 99, 18, 17, 16, 5, 1} {
		r.rule(fmt.Sprintf("pref %d to %s lookup 77", priority, one))
		r.rule(fmt.Sprintf("pref %d to %s lookup 77", priority, r.own()))
		before, local := r.finds(one), r.finds(r.own())
		f := r.add(lb.TCP)
		r.mustSet()
		r.mustAsk(r.dial(f))
		if now := r.finds(one); now != before {
			r.Errorf("address that a rule of priority %d is for: got %s; want %s as without load balancers", priority, now, before)
		}
		if now := r.finds(r.own()); now != local {
			r.Errorf("own address, with a rule of priority %d for it: got %s; want %s as without load balancers", priority, now, local)
		}
	}
}

// steeringUnranked: ip rules that are added without priorities, as those of a VPN, do
// what they would do without load balancers, whose packets they do not get.
func steeringUnranked(r *directRig) {
	vpn := []string{"not fwmark 0xca6c lookup 77", "lookup main suppress_prefixlength 0"}
	r.past(true)
	defer r.past(false)
	r.ip(fmt.Sprintf("route add default via %s table 77", r.self()))
	r.Cleanup(func() { r.ip("route flush table 77") })
	before := r.ip("rule")
	elsewhere := rigAddr(r.family, 77, 7).Addr()
	decisions := func() string { return r.finds(r.own()) + ", " + r.finds(r.node(0)) + ", " + r.finds(elsewhere) }
	add := func() {
		for _, spec := range vpn {
			r.ip("rule add " + spec)
		}
	}
	remove := func() {
		for _, spec := range vpn {
			r.ip("rule del " + spec)
		}
	}
	r.unruled(vpn...)
	add()
	want := decisions()
	remove()

	f := r.add(lb.TCP)
	r.mustSet()
	alone := r.ip("rule")
	c := r.on(0, f)
	for range 2 {
		add()
		if got := decisions(); got != want {
			r.Errorf("ways to itself, a node, elsewhere with rules without priorities: got %s; want %s as without load balancers", got, want)
		}
		if node := r.mustAsk(c); node != "n0" {
			r.Errorf("the connection went to %s; want n0", node)
		}
		r.mustSet()
		r.mustAsk(r.on(1, f))
		if got := decisions(); got != want {
			r.Errorf("ways to itself, a node, elsewhere after a while: got %s; want %s as without load balancers", got, want)
		}
		remove()
		r.eventually("the rules are as before the others came", func() bool { return r.ip("rule") == alone })
	}
	if _, err := Cleanup(r.engine.log); err != nil {
		r.Error(err)
	}
	if now := r.ip("rule"); now != before {
		r.Errorf("ip rules after the cleanup:\n%s\nwant them as before:\n%s", now, before)
	}
}

// mustRefuse sets the table, of which f must be refused with a reason that has the
// words.
func (r *directRig) mustRefuse(f lb.Frontend, words ...string) {
	r.Helper()
	err := r.set()[f]
	if !errors.Is(err, lb.ErrUnsupported) {
		r.Fatalf("refusal of %s: got %v; want ErrUnsupported", f, err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			r.Errorf("refusal of %s: got %v; want %q in it", f, err, w)
		}
	}
}

// steeringRulesBefore: a rule of somebody else that comes before the engine's is named,
// and nothing is changed; without it, all is well.
func steeringRulesBefore(r *directRig) {
	direct, other := r.add(lb.TCP), r.viaNodePort()
	for spec, named := range map[string]string{
		"pref 0 iif lo fwmark 0x77 lookup 77":     `"0: from all iif lo fwmark 0x77/0xffffffff lookup 77"`,
		"pref 40000 iif lo fwmark 0x77 lookup 77": `"40000: from all iif lo fwmark 0x77/0xffffffff lookup 77"`,
	} {
		r.ip("rule add " + spec)
		before := r.ip("rule")
		r.mustRefuse(direct, named)
		r.mustServe(other)
		if now := r.ip("rule"); now != before {
			r.Errorf("ip rules where direct is refused:\n%s\nwant them as before:\n%s", now, before)
		}
		r.ip("rule del " + spec)
	}
	r.mustSet()
	r.mustAsk(r.dial(direct))
}

// steeringRulesBeforeLater: such a rule that comes later ends nothing of what works
// beside it. Only what is new is refused.
func steeringRulesBeforeLater(r *directRig) {
	r.nowhere()
	before := r.ip("rule")
	direct := r.add(lb.TCP)
	id, both := r.withFirst(direct)
	c := r.dial(direct)
	r.mustAsk(c)

	spec := fmt.Sprintf("pref 0 to %s lookup 77", r.own())
	r.unruled(spec)
	local := r.finds(r.own())
	r.ip("rule add " + spec)
	r.eventually("a rule that comes later is seen", func() bool {
		r.engine.mu.Lock()
		defer r.engine.mu.Unlock()
		return strings.Contains(r.engine.direct.told, `"0: from all to `)
	})
	r.table.Groups[id] = both
	var without *lb.MembersError
	if err := r.set()[direct]; !errors.As(err, &without) || len(without.Without) != 1 || !strings.Contains(without.Without["n1"], `"0: from all to `) {
		r.Errorf("a member that was not reached before: got %v; want it refused, and the rule named", err)
	}
	r.mustAsk(c)
	r.mustAsk(r.dial(direct))
	r.ip(fmt.Sprintf("route del default table %d", tableOf(gatewayMark(versionOf(r.own()), 0))))
	r.eventually("a way that is gone is restored", func() bool { return r.steered() != "" })
	r.mustAsk(c)

	// Behind it the kernel's rule would not be what it was.
	if err := r.engine.Shutdown(r.Context()); err != nil {
		r.Error(err)
	}
	for _, want := range []string{local, local} {
		if _, err := Cleanup(r.engine.log); err != nil {
			r.Error(err)
		}
		if now := r.finds(r.own()); now != want {
			r.Errorf("own address after a cleanup beside a rule of priority 0: got %s; want %s", now, want)
		}
	}
	r.ip("rule del " + spec)
	if _, err := Cleanup(r.engine.log); err != nil {
		r.Error(err)
	}
	if now := r.ip("rule"); now != before {
		r.Errorf("ip rules after the cleanup:\n%s\nwant them as before:\n%s", now, before)
	}
}

// steeringMovedLocal: where somebody else has moved the rule for local addresses the
// engine does not, and does not move it back.
func steeringMovedLocal(r *directRig) {
	other := r.viaNodePort()
	for _, priority := range []int{100, 32765} {
		direct := r.add(lb.TCP)
		r.ip(fmt.Sprintf("rule add pref %d lookup local proto kernel", priority))
		r.ip("rule del pref 0")
		before := r.ip("rule")
		r.mustRefuse(direct, fmt.Sprintf(`"%d: from all lookup local"`, priority))
		r.mustServe(other)
		delete(r.table.Routes, direct)
		r.mustSet()
		if _, err := Cleanup(r.engine.log); err != nil {
			r.Error(err)
		}
		if now := r.ip("rule"); now != before {
			r.Errorf("ip rules after the cleanup:\n%s\nwant them as before:\n%s", now, before)
		}
		r.ip("rule add pref 0 lookup local proto kernel")
		r.ip(fmt.Sprintf("rule del pref %d", priority))
	}
}

// steeringLocalIsThere: at no moment is there no rule for this machine's addresses,
// while load balancers come and go.
func steeringLocalIsThere(r *directRig) {
	f := r.add(lb.TCP)
	r.change(f, func(route *lb.Route) { route.DrainTimeout = 0 })
	route := r.table.Routes[f]
	local, done := r.finds(r.own()), make(chan string, 1)
	stop := make(chan struct{})
	go func() {
		handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			done <- err.Error()
			return
		}
		defer handle.Close()
		for {
			select {
			case <-stop:
				done <- ""
				return
			default:
			}
			routes, err := handle.RouteGet(r.own().AsSlice())
			if err != nil {
				done <- err.Error()
				return
			}
			if now := fmt.Sprintf("type %d table %d", routes[0].Type, routes[0].Table); now != local {
				done <- now
				return
			}
		}
	}()
	for range 2 {
		r.table.Routes[f] = route
		r.mustSet()
		r.ip("rule add pref 0 lookup local")
		r.eventually("a second rule for local addresses is deleted", func() bool {
			r.mustSet()
			return !strings.Contains(r.ip("rule"), "from all lookup local")
		})
		delete(r.table.Routes, f)
		r.mustSet()
		r.eventually("the kernel's rule is back", func() bool { return strings.HasPrefix(r.ip("rule"), "0:\tfrom all lookup local") })
	}
	close(stop)
	if got := <-done; got != "" {
		r.Errorf("own address at some moment: got %s; want %s", got, local)
	}
}

// linkDown takes a link of this machine down, and returns what has it up again.
func (r *directRig) linkDown(n int) (up func()) {
	r.Helper()
	l, err := netlink.LinkByName(fmt.Sprintf("d%d", n))
	if err != nil {
		r.Fatal(err)
	}
	if err := netlink.LinkSetDown(l); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = netlink.LinkSetUp(l) }) // of a test that fails
	return func() {
		r.Helper()
		if err := netlink.LinkSetUp(l); err != nil {
			r.Fatal(err)
		}
		// The kernel has forgotten the IPv6 address.
		if err := netlink.AddrReplace(l, &netlink.Addr{IPNet: ipNetIn(rigAddr(lb.IPv6, n, 1)), Flags: unix.IFA_F_NODAD}); err != nil {
			r.Fatal(err)
		}
	}
}

// steeringStartTrouble: what is in the way only when a process begins takes no member
// out that the one before has served.
func steeringStartTrouble(r *directRig) {
	f := r.add(lb.TCP)
	r.mustSet()
	c := r.on(0, f)
	r.begin()
	up := r.linkDown(1)
	r.mustSet()
	up()
	if node := r.mustAsk(c); node != "n0" {
		r.Errorf("the connection went to %s; want n0", node)
	}
	r.mustAsk(r.on(0, f))
}

// steeringResumes: an engine that goes on after another has served knows what that one
// has done, and has left behind.
func steeringResumes(r *directRig) {
	if r.family == lb.IPv4 {
		unsettled(r)
	}
	f := r.add(lb.TCP)
	id, both := r.withFirst(f)
	r.mustAsk(r.dial(f))
	first := r.engine
	if err := first.HandOver(r.Context(), func(lb.Parcel) error { return nil }); err != nil {
		r.Fatal(err)
	}
	r.engine = New(Options{Log: zaptest.NewLogger(r), Direct: true})
	r.table.Groups[id] = both
	r.mustSet()
	c := r.on(1, f)
	if err := r.engine.Shutdown(r.Context()); err != nil {
		r.Fatal(err)
	}
	r.engine = first
	if err := first.Resume(); err != nil {
		r.Fatal(err)
	}
	third := lb.Backend{Node: "n2", Addr: rigAddr(r.family, 2, 7).Addr(), Weight: 1}
	r.table.Groups[id] = lb.Group{Backends: []lb.Backend{both.Backends[0], third}}
	r.mustSet()
	if node := r.mustAsk(c); node != "n1" {
		r.Errorf("a connection that the other process has taken went to %s; want n1, which drains", node)
	}
	if err := first.Shutdown(r.Context()); err != nil {
		r.Error(err)
	}
	if _, err := Cleanup(first.log); err != nil {
		r.Error(err)
	}
	if left := r.steered(); left != "" {
		r.Errorf("routes after the cleanup: got %s; want none of the engine's", left)
	}
	if r.family == lb.IPv4 && linksNow(r) != "01 01" {
		r.Errorf("accept_local and rp_filter after the cleanup: got %s; want 01 01 as at first", linksNow(r))
	}
}

// steeringRestoredBefore: an engine to which the table comes back without its rules,
// which another has deleted meanwhile, has them made before packets need them.
func steeringRestoredBefore(r *directRig) {
	f := r.add(lb.TCP)
	r.mustSet()
	c := r.on(0, f)
	if err := r.engine.HandOver(r.Context(), func(lb.Parcel) error { return nil }); err != nil {
		r.Fatal(err)
	}
	var s steering
	defer s.close()
	if _, err := s.prune(nil, true); err != nil {
		r.Fatal(err)
	}
	if err := r.engine.Resume(); err != nil {
		r.Fatal(err)
	}
	r.mustSet()
	if rules := r.ip("rule"); strings.Contains(rules, "from all lookup local") || r.steered() == "" {
		r.Errorf("ip rules right after the first Set:\n%s\nwant those of the engine", rules)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	if node := r.mustAsk(c); node != "n0" {
		r.Errorf("the connection went to %s; want n0", node)
	}
}
