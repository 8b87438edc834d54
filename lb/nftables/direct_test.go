package nftables

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// directCase is a test of routes whose packets are routed as they are.
type directCase struct {
	name string
	run  func(r *directRig)
}

var directCases = []directCase{
	{"Through", func(r *directRig) { directServes(r) }},
	{"Past", func(r *directRig) {
		r.past(true)
		defer r.past(false)
		directServes(r)
	}},
	{"Datagrams", directDatagrams},
	{"DeadNode", directDeadNode},
	{"DeadNodeOfDatagrams", directDeadDatagrams},
	{"Draining", directDraining},
	{"Memberless", directMemberless},
	{"SourceRanges", directSourceRanges},
	{"Affinity", directAffinity},
	{"Restart", directRestart},
	{"RemovedRouteDrains", directRemoved},
	{"ChangeFromNAT", directFromNAT},
	{"BehindRouter", directBehindRouter},
	{"Redirects", directRedirects},
	{"LeavesNoTrace", directLeavesNoTrace},
	{"TableOutlivesDirect", tableOutlivesDirect},
	{"TableLosesChains", tableLosesChains},
	{"CleanupTellsClients", cleanupTellsClients},
}

// directServes: members see the client, both are used, connections stay where they
// are, and all of it is counted.
func directServes(r *directRig) {
	f := r.add(lb.TCP)
	r.mustSet()
	seen := map[string]int{}
	for range 40 {
		c := r.dial(f)
		node := r.mustAsk(c)
		for range 3 {
			if now := r.mustAsk(c); now != node {
				r.Fatalf("a connection went to %s and then to %s", node, now)
			}
		}
		seen[node]++
		if err := c.Close(); err != nil {
			r.Fatal(err)
		}
	}
	if seen["n0"] < 5 || seen["n1"] < 5 {
		r.Errorf("connections by node: got %v; want some on both", seen)
	}
	c := r.dial(f)
	r.mustAsk(c)
	for _, counted := range r.engine.Counters() {
		var connections, bytes uint64
		for _, m := range counted.Members {
			connections += m.Connections
			bytes += m.BytesIn
		}
		if counted.Frontend != f || counted.Accepted != 41 || connections != 41 || bytes < 41*4*40 || counted.Active != 1 {
			r.Errorf("counters: got %+v; want 41 accepted, one of them open", counted)
		}
	}
}

// directDatagrams: a session stays with its member, which sees the client.
func directDatagrams(r *directRig) {
	f := r.add(lb.UDP)
	r.mustSet()
	seen := map[string]bool{}
	for range 30 {
		c := r.dial(f)
		node := r.mustAsk(c)
		seen[node] = true
		for range 3 {
			if now := r.mustAsk(c); now != node {
				r.Fatalf("a session went to %s and then to %s", node, now)
			}
		}
	}
	if len(seen) != 2 {
		r.Errorf("nodes of 30 sessions: got %v; want both", seen)
	}
}

// directDeadNode: connections of a dead node are reset, also those whose client only
// waits, and new ones go elsewhere.
func directDeadNode(r *directRig) {
	f := r.add(lb.TCP)
	r.mustSet()
	waits, speaks, stays := r.on(0, f), r.on(0, f), r.on(1, f)
	r.state(f, 0, lb.Dead)
	r.mustSet()
	if _, _, err := speaks.ask(patience); !errors.Is(err, syscall.ECONNRESET) {
		r.Errorf("a client of the dead node that speaks: got %v; want a reset", err)
	}
	_ = waits.SetDeadline(time.Now().Add(patience))
	if _, err := waits.in.ReadString('\n'); !errors.Is(err, syscall.ECONNRESET) {
		r.Errorf("a client of the dead node that waits: got %v; want a reset", err)
	}
	if node := r.mustAsk(stays); node != "n1" {
		r.Errorf("a connection of the other node went to %s", node)
	}
	for range 10 {
		if node := r.mustAsk(r.dial(f)); node != "n1" {
			r.Fatalf("a new connection went to %s; want n1", node)
		}
	}
}

// directDeadDatagrams: sessions of a dead node go to the other with the next
// datagram.
func directDeadDatagrams(r *directRig) {
	f := r.add(lb.UDP)
	r.mustSet()
	c := r.on(0, f)
	r.state(f, 0, lb.Dead)
	r.mustSet()
	if node := r.mustAsk(c); node != "n1" {
		r.Errorf("the next datagram went to %s; want n1", node)
	}
	r.state(f, 0, lb.Active)
	r.mustSet()
	if node := r.mustAsk(c); node != "n1" {
		r.Errorf("when the node is back the session went to %s; want n1 still", node)
	}
}

// directDraining: connections go on, and none is new.
func directDraining(r *directRig) {
	f := r.add(lb.TCP)
	r.mustSet()
	c := r.on(0, f)
	r.state(f, 0, lb.Draining)
	r.mustSet()
	for range 10 {
		if node := r.mustAsk(r.dial(f)); node != "n1" {
			r.Fatalf("a new connection went to %s; want n1", node)
		}
	}
	if node := r.mustAsk(c); node != "n0" {
		r.Errorf("the connection of before went to %s; want n0", node)
	}
}

// directMemberless: nobody waits for a time-out.
func directMemberless(r *directRig) {
	tcp, udp := r.add(lb.TCP), r.add(lb.UDP)
	for _, f := range []lb.Frontend{tcp, udp} {
		r.table.Groups[r.table.Routes[f].Group] = lb.Group{}
	}
	r.mustSet()
	if _, err := r.try(tcp); !errors.Is(err, syscall.ECONNREFUSED) {
		r.Errorf("dial without a member: got %v; want refused", err)
	}
	if _, _, err := r.dial(udp).ask(patience); !errors.Is(err, syscall.ECONNREFUSED) {
		r.Errorf("datagram without a member: got %v; want refused", err)
	}
	for _, counted := range r.engine.Counters() {
		if counted.Refused[lb.RefusedNoMember] == 0 {
			r.Errorf("counters of %s: got %+v; want one refused", counted.Frontend, counted)
		}
	}
}

// directSourceRanges: they decide about new connections, and end established ones.
func directSourceRanges(r *directRig) {
	f := r.add(lb.TCP)
	self := netip.PrefixFrom(r.self(), r.self().BitLen())
	r.change(f, func(route *lb.Route) { route.SourceRanges = []netip.Prefix{self} })
	r.mustSet()
	c := r.dial(f)
	r.mustAsk(c)
	other := netip.PrefixFrom(r.self().Next(), r.self().BitLen())
	r.change(f, func(route *lb.Route) { route.SourceRanges = []netip.Prefix{other} })
	r.mustSet()
	if _, err := r.try(f); !errors.Is(err, syscall.ECONNREFUSED) {
		r.Errorf("dial from elsewhere: got %v; want refused", err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.in.ReadString('\n'); !errors.Is(err, syscall.ECONNRESET) {
		r.Errorf("a connection that is not allowed any more: got %v; want a reset", err)
	}
}

// directAffinity: a client stays with its node when others come, and leaves a dead
// one.
func directAffinity(r *directRig) { r.leaves(lb.Dead) }

// leaves checks that a client stays with its node until that has the state, and with
// the next one when the first is back.
func (r *directRig) leaves(state lb.BackendState) {
	r.Helper()
	f := r.add(lb.TCP)
	r.change(f, func(route *lb.Route) { route.AffinityFor = time.Hour })
	r.mustSet()
	node := r.mustAsk(r.dial(f))
	for range 10 {
		if now := r.mustAsk(r.dial(f)); now != node {
			r.Fatalf("the client went to %s and then to %s", node, now)
		}
	}
	had := int(node[1] - '0')
	r.state(f, had, state)
	r.mustSet()
	next := r.mustAsk(r.dial(f))
	if next == node {
		r.Fatalf("the client went to %s, which it must leave", node)
	}
	r.state(f, had, lb.Active)
	r.mustSet()
	if now := r.mustAsk(r.dial(f)); now != next {
		r.Errorf("when the node is back the client went to %s; want %s, where it was last", now, next)
	}
}

// directRestart: flows go on while nobody runs, and after another process has begun.
func directRestart(r *directRig) {
	f := r.add(lb.TCP)
	r.mustSet()
	a, b := r.on(0, f), r.on(1, f)
	before := r.engine.state.gateways
	r.begin()
	if r.mustAsk(a) != "n0" || r.mustAsk(b) != "n1" {
		r.Error("connections went elsewhere while nobody ran")
	}
	r.mustSet()
	if r.mustAsk(a) != "n0" || r.mustAsk(b) != "n1" {
		r.Error("connections went elsewhere when another process had begun")
	}
	if now := r.engine.state.gateways; fmt.Sprint(now) != fmt.Sprint(before) {
		r.Errorf("numbers of members: got %v; want %v as before", now, before)
	}
	sent := r.engine.generation
	r.mustSet()
	if now := r.engine.generation; now != sent {
		r.Errorf("an identical Set was sent to the kernel: generation %d after %d", now, sent)
	}
}

// directRemoved: connections of a removed route go on for its drain timeout.
func directRemoved(r *directRig) {
	f, other := r.add(lb.TCP), r.add(lb.TCP)
	r.change(f, func(route *lb.Route) { route.DrainTimeout = time.Second })
	r.mustSet()
	c := r.on(0, f)
	delete(r.table.Routes, f)
	r.mustSet()
	if node := r.mustAsk(c); node != "n0" {
		r.Errorf("the connection went to %s; want n0", node)
	}
	if _, err := r.try(f); !errors.Is(err, syscall.ECONNREFUSED) {
		r.Errorf("dial what was removed: got %v; want refused", err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.in.ReadString('\n'); !errors.Is(err, syscall.ECONNRESET) {
		r.Errorf("the connection after the drain timeout: got %v; want a reset", err)
	}
	r.mustAsk(r.dial(other))
	r.eventually("the route is forgotten", func() bool {
		r.engine.mu.Lock()
		defer r.engine.mu.Unlock()
		return len(r.engine.state.leaving) == 0
	})
}

// directFromNAT: connections go on that began through node ports, and the reverse
// until the drain timeout.
func directFromNAT(r *directRig) {
	f := r.add(lb.TCP)
	r.change(f, func(route *lb.Route) { route.Direct, route.TargetPort = false, targetPort })
	for i := range r.nodes {
		r.listen(i, lb.Frontend{Addr: r.node(i), Port: targetPort, Protocol: lb.TCP})
	}
	r.mustSet()
	ask := func(when string, c *dialled) string {
		node, _, err := c.ask(patience)
		if err != nil {
			r.Errorf("%s: %v", when, err)
		}
		return node
	}
	old := r.dial(f)
	node := ask("through a node port", old)
	r.change(f, func(route *lb.Route) { route.Direct, route.TargetPort = true, f.Port })
	r.mustSet()
	if now := ask("after the change", old); now != node {
		r.Errorf("the connection through a node port went to %s; want %s", now, node)
	}
	direct := r.dial(f)
	node = r.mustAsk(direct)
	r.change(f, func(route *lb.Route) { route.Direct, route.TargetPort = false, targetPort })
	r.mustSet()
	if now := r.mustAsk(direct); now != node {
		r.Errorf("the direct connection went to %s; want %s", now, node)
	}
	if _, from, err := r.dial(f).ask(patience); err != nil || strings.HasPrefix(from, r.self().String()) {
		r.Errorf("a new connection: the node has seen %s, %v; want an address of the edge", from, err)
	}
}

// directBehindRouter: members that are on no link are left out and named.
func directBehindRouter(r *directRig) {
	f, lost := r.add(lb.TCP), r.add(lb.TCP)
	far := lb.Backend{Node: "far", Addr: r.net.Member(r.family), Weight: 1}
	id := r.table.Routes[f].Group
	g := r.table.Groups[id]
	g.Backends = append(append([]lb.Backend(nil), g.Backends...), far)
	r.table.Groups[id] = g
	r.table.Groups[r.table.Routes[lost].Group] = lb.Group{Backends: []lb.Backend{far}}
	refused := r.set()
	var without *lb.MembersError
	if !errors.As(refused[f], &without) || len(without.Without) != 1 || !strings.Contains(without.Without["far"], "router") {
		r.Errorf("a member behind a router: got %v; want it named", refused[f])
	}
	if err := refused[lost]; !errors.Is(err, lb.ErrUnsupported) || !strings.Contains(err.Error(), `"far"`) {
		r.Errorf("nobody but a member behind a router: got %v; want the frontend refused", err)
	}
	for range 20 {
		r.mustAsk(r.dial(f))
	}
}

// directLeavesNoTrace: the engine's rules and routes come and go, and others stay.
func directLeavesNoTrace(r *directRig) {
	six := map[lb.Family]string{lb.IPv4: "-4", lb.IPv6: "-6"}[r.family]
	rules := func() string {
		return listing(r, "ip", six, "rule") + r.steered()
	}
	for _, command := range []string{"rule add pref 105 fwmark 0x77 lookup 77", "route add blackhole default table 77"} {
		listing(r, append([]string{"ip", six}, strings.Fields(command)...)...)
	}
	defer func() {
		for _, command := range []string{"rule del pref 105", "route flush table 77"} {
			listing(r, append([]string{"ip", six}, strings.Fields(command)...)...)
		}
	}()
	before := rules()
	f := r.add(lb.TCP)
	r.mustSet()
	r.mustAsk(r.dial(f))
	with := rules()
	if !strings.HasPrefix(with, "0:\tnot from all fwmark 0xef000000/0xff000000 lookup local\n104:\tfrom all fwmark 0xef000000/0xff000000 goto 40000\n105:\t") ||
		!strings.Contains(with, "40000:\tfrom all fwmark 0xef000") || !strings.Contains(with, "40001:\tfrom all fwmark 0xef000000/0xff000000 blackhole") {
		r.Errorf("rules while packets are routed:\n%s\nwant the local table but for members, a jump before all others, and behind them those of members and one that drops", with)
	}
	delete(r.table.Routes, f)
	if err := r.engine.Shutdown(r.Context()); err != nil {
		r.Fatal(err)
	}
	if rules() != with {
		r.Errorf("rules after a shutdown:\n%s\nwant those of before:\n%s", rules(), with)
	}
	if found, err := Cleanup(r.engine.log); err != nil || !found {
		r.Errorf("Cleanup: got %v, %v; want something found", found, err)
	}
	if after := rules(); after != before {
		r.Errorf("rules after the cleanup:\n%s\nwant those of before:\n%s", after, before)
	}
	if found, err := Cleanup(r.engine.log); err != nil || found {
		r.Errorf("another Cleanup: got %v, %v; want nothing found", found, err)
	}
}
