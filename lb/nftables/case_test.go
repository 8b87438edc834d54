package nftables

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// identicalSet: a Set that changes nothing sends nothing, and a member's change
// is one transaction.
func identicalSet(b *bench) {
	f := b.add(lb.TCP, b.member(), b.member())
	b.set()
	before := b.generation()
	for range 5 {
		b.set()
	}
	if after := b.generation(); after != before {
		b.Errorf("generation after identical Sets: got %d; want %d as before", after, before)
	}
	b.state(f, 0, lb.Draining)
	b.set()
	if after := b.generation(); after != before+1 {
		b.Errorf("generation after a member's change: got %d; want one more than %d", after, before)
	}
}

// restart: connections and counters go on, and nothing is sent that the kernel has.
func restart(b *bench) {
	m := b.member()
	f := b.add(lb.TCP, m)
	b.set()
	c, _ := b.dial(f)
	b.eventually("the connection is counted", func() bool { return b.counters(f).Accepted == 1 })
	if err := b.engine.Shutdown(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.mustEcho(c, "nobody runs")
	other, _ := b.dial(f)
	b.mustEcho(other, "it came while nobody ran")
	was := b.engine.state.routes[f].id

	b.begin(Options{})
	b.set()
	if now := b.engine.state.routes[f].id; now != was {
		b.Errorf("mark of the route after a restart: got %#x; want %#x as before", now, was)
	}
	b.mustEcho(c, "another process has begun")
	got := b.counters(f)
	if got.Accepted != 2 || got.Active != 2 || len(got.Members) != 1 || got.Members[0].Node != "n0" || got.Members[0].Connections != 2 {
		b.Errorf("counters after a restart: got %+v; want 2 accepted and active, of n0", got)
	}

	b.begin(Options{})
	b.state(f, 0, lb.Dead)
	b.set()
	b.eventually("the connection of a member that died while nobody ran is reset", func() bool { return isReset(b.echo(c)) })
}

// repair: what others delete or change comes back.
func repair(b *bench) {
	f := b.add(lb.TCP, b.member())
	b.set()
	listing := func() string { return run(b, "nft", "-s", "list", "ruleset") }
	want := listing()
	for _, harm := range [][]string{
		{"delete", "table", "inet", TableName},
		{"flush", "ruleset"},
		{"flush", "chain", "inet", TableName, "prerouting"},
		{"flush", "map", "inet", TableName, "pools"},
		{"insert", "rule", "inet", TableName, "prerouting", "drop"},
	} {
		what := strings.Join(harm, " ")
		run(b, append([]string{"nft"}, harm...)...)
		b.eventually("restored after "+what, func() bool {
			c, err := b.net.Dial(b.Context(), netip.Addr{}, f)
			if err != nil {
				return false
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(time.Second))
			_, err = io.ReadFull(c, make([]byte, 1))
			return err == nil
		})
		b.eventually("everything is as before "+what, func() bool { return withoutCounts(listing()) == withoutCounts(want) })
	}
	run(b, "nft", "delete", "table", "inet", TableName)
	b.set()
	if got := withoutCounts(listing()); got != withoutCounts(want) {
		b.Errorf("table after Set following its deletion: got\n%s\nwant\n%s", got, want)
	}
}

// repairAmongWork: the table is restored before the keeper has done all else that it
// has to do.
func repairAmongWork(b *bench) {
	f := b.add(lb.TCP, b.member())
	b.set()
	client := netip.MustParseAddr("192.0.2.1")
	if b.family == lb.IPv6 {
		client = netip.MustParseAddr("2001:db8::1")
	}
	front, now := netip.AddrPortFrom(f.Addr, f.Port), time.Now()
	b.engine.mu.Lock()
	for i := range 30_000 {
		from := netip.AddrPortFrom(client, uint16(i))
		c := flow{version: b.version(), protocol: protocolNumber(lb.TCP), client: from, frontend: front, source: front, member: from}
		b.engine.cuts.add(cut[flow]{c, now.Add(-provokeAfter[1]), 1})
	}
	run(b, "nft", "delete", "table", "inet", TableName)
	b.engine.mu.Unlock()
	b.eventually("the table is restored", func() bool {
		p, err := b.left()
		return err == nil && p.table
	})
	b.engine.mu.Lock()
	defer b.engine.mu.Unlock()
	if len(b.engine.cuts[1]) == 0 {
		b.Error("the table was restored when all ends of cut connections were provoked; want it restored before")
	}
}

// withoutCounts leaves out the elements that packets have made.
func withoutCounts(listing string) string {
	var out []string
	for _, l := range strings.Split(listing, "\n") {
		if !strings.Contains(l, "counter") {
			out = append(out, l)
		}
	}
	return strings.Join(out, "\n")
}

// foreignTables: what others have is never touched.
func foreignTables(b *bench) {
	run(b, "nft", "add table inet other; add chain inet other c { type filter hook forward priority 0; }; add rule inet other c counter; add set inet other s { type ipv4_addr; }; add element inet other s { 192.0.2.1 }")
	b.Cleanup(func() { run(b, "nft", "delete", "table", "inet", "other") })
	want := run(b, "nft", "-s", "-a", "list", "table", "inet", "other")
	f := b.add(lb.TCP, b.member())
	b.set()
	b.dial(f)
	delete(b.table.Routes, f)
	b.set()
	if err := b.engine.Withdraw(cancelled()); err != nil {
		b.Fatal(err)
	}
	if got := run(b, "nft", "-s", "-a", "list", "table", "inet", "other"); got != want {
		b.Errorf("another table: got\n%s\nwant\n%s", got, want)
	}
	if tables := run(b, "nft", "list", "tables"); strings.Contains(tables, TableName) {
		b.Errorf("tables after Withdraw: got %s; want none of %q", tables, TableName)
	}
}

func cancelled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// sourceAddresses: members see the configured addresses, all of them.
func sourceAddresses(b *bench) {
	var sources []netip.Addr
	for range 4 {
		// Addresses of frontends are local to the edge, and members know the way there.
		sources = append(sources, b.net.Frontend(lb.TCP, b.family).Addr)
	}
	b.begin(Options{SourceAddresses: sources})
	f := b.add(lb.TCP, b.member())
	b.set()
	seen := make(map[netip.Addr]bool)
	for range 60 {
		c, who := b.dial(f)
		_ = c.Close()
		seen[netip.MustParseAddrPort(who).Addr()] = true
	}
	for _, a := range sources {
		if !seen[a] {
			b.Errorf("source address %s in 60 connections: never seen; want it used", a)
		}
		delete(seen, a)
	}
	if len(seen) > 0 {
		b.Errorf("members saw %v; want configured source addresses only", seen)
	}
}

// keptSources: without source translation members see the clients.
func keptSources(b *bench) {
	b.begin(Options{KeepSources: true})
	f := b.add(lb.TCP, b.member())
	b.set()
	from := b.net.Client(b.family)
	c, err := b.net.Dial(b.Context(), from, f)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	if who := netip.MustParseAddrPort(b.greeting(c)).Addr(); who != from {
		b.Errorf("member saw %s; want the client, %s", who, from)
	}
	b.mustEcho(c, "the way back leads through the edge")
	b.begin(Options{KeepSources: true})
	b.set()
	b.mustEcho(c, "the program was started again")
	if got := b.counters(f); got.Active != 1 || len(got.Members) != 1 || got.Members[0].BytesOut == 0 {
		b.Errorf("counters: got %+v; want one connection with bytes", got)
	}
}

// forwardsNothing: a machine that does not forward a family, and may not be made to,
// serves nothing of it and says why. Without IPv4 it does not serve at all.
func forwardsNothing(b *bench) {
	for _, s := range settings {
		if s.without != b.version() {
			continue
		}
		was := s.read()
		b.Cleanup(func() { _ = os.WriteFile(s.path(), []byte(was.have), 0o644) })
		if err := os.WriteFile(s.path(), []byte("0"), 0o644); err != nil {
			b.Fatal(err)
		}
		b.begin(Options{KeepSysctls: true})
		f := b.add(lb.TCP, b.member())
		refused, err := b.engine.Set(b.Context(), b.table)
		if b.family == lb.IPv6 {
			if err != nil {
				b.Errorf("Set without forwarding of IPv6: got %v; want only its frontends refused", err)
			}
			err = refused[f]
		}
		if !errors.Is(err, lb.ErrUnsupported) || !strings.Contains(err.Error(), s.dotted()) {
			b.Errorf("without forwarding: got %v; want ErrUnsupported that names %s", err, s.dotted())
		}
	}
}

// ofTheEdgeItself: programs on the edge reach its load balancers too.
func ofTheEdgeItself(b *bench) {
	f := b.add(lb.TCP, b.member())
	empty := b.add(lb.TCP)
	b.set()
	var d net.Dialer
	c, err := d.DialContext(b.Context(), "tcp", netip.AddrPortFrom(f.Addr, f.Port).String())
	if err != nil {
		b.Fatalf("dial %s on the edge: %v", f, err)
	}
	defer c.Close()
	b.greeting(c)
	b.mustEcho(c, "on the edge")
	if _, err := d.DialContext(b.Context(), "tcp", netip.AddrPortFrom(empty.Addr, empty.Port).String()); !isRefused(err) {
		b.Errorf("dial %s without members on the edge: got %v; want it refused", empty, err)
	}
}

// unservedRefuses: an address of load balancers answers where nobody listens.
func unservedRefuses(b *bench) {
	// Something on the edge that must not be reached by a load balancer's address.
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	f := b.add(lb.TCP, b.member())
	b.set()
	for _, p := range []lb.Protocol{lb.TCP, lb.UDP} {
		other := f
		other.Protocol, other.Port = p, uint16(l.Addr().(*net.TCPAddr).Port)
		c, err := b.net.Dial(b.Context(), netip.Addr{}, other)
		if err == nil {
			_ = c.SetDeadline(time.Now().Add(patience))
			_, _ = c.Write([]byte("hello"))
			_, err = c.Read(make([]byte, 1))
			_ = c.Close()
		}
		if !isRefused(err) {
			b.Errorf("client of %s, where nobody listens: got %v; want it refused", other, err)
		}
	}
}

// affinityEnds: a client is remembered for its time, and not longer.
func affinityEnds(b *bench) {
	f := b.add(lb.TCP, b.member(), b.member())
	b.change(f, func(r *lb.Route) { r.AffinityFor = time.Second })
	b.set()
	b.counters(f) // opens the sockets
	c, _ := b.dial(f)
	if n := b.remembered(); n != 1 {
		b.Errorf("remembered clients: got %d; want 1", n)
	}
	b.eventually("the client is forgotten", func() bool { return b.remembered() == 0 })
	b.mustEcho(c, "affinity is for new connections")
}

// affinityStays: counters of what is gone go, remembered clients of others stay.
func affinityStays(b *bench) {
	f := b.add(lb.TCP, b.member(), b.member())
	b.change(f, func(r *lb.Route) { r.AffinityFor = time.Hour })
	b.set()
	b.counters(f) // opens the sockets
	b.dial(f)
	b.cleaned()
	if n := b.remembered(); n != 1 {
		b.Errorf("remembered clients after what is gone was cleaned away: got %d; want 1", n)
	}
}

// cleaned waits until counters of what is gone are deleted.
func (b *bench) cleaned() {
	b.Helper()
	eventuallyCleaned(b.engine, b.eventually)
}

// eventuallyCleaned has the keeper clean at once.
func eventuallyCleaned(e *Engine, eventually func(string, func() bool)) {
	e.mu.Lock()
	e.unclean, e.cleaned = true, time.Time{}
	e.mu.Unlock()
	eventually("counters of what is gone are deleted", func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return !e.unclean && !e.cleaned.IsZero()
	})
}

// remembered counts the clients that the kernel remembers.
func (b *bench) remembered() int {
	n := 0
	if err := b.engine.census.rules.read("clients"+b.version().suffix, func(found) { n++ }); err != nil {
		b.Fatal(err)
	}
	return n
}

func (b *bench) version() *version {
	if b.family == lb.IPv6 {
		return v6
	}
	return v4
}

// countersOfTheGone: a member that was removed keeps its name while it drains.
func countersOfTheGone(b *bench) {
	f := b.add(lb.TCP, b.member())
	b.set()
	c, _ := b.dial(f)
	b.table.Groups[b.table.Routes[f].Group] = lb.Group{}
	b.set()
	b.mustEcho(c, "it drains")
	got := b.counters(f)
	if len(got.Members) != 1 || got.Members[0].Node != "n0" || got.Members[0].Active != 1 {
		b.Errorf("counters: got %+v; want n0 with one connection", got)
	}
	if _, err := b.net.Dial(b.Context(), netip.Addr{}, f); !isRefused(err) {
		b.Errorf("without members: got %v; want it refused", err)
	}
	if n := b.counters(f).Refused[lb.RefusedNoMember]; n != 1 {
		b.Errorf("refusals counted: got %d; want 1", n)
	}
}

// orphansDrain: a connection of a route that was removed while nobody ran is not
// cut at once.
func orphansDrain(b *bench) {
	f := b.add(lb.TCP, b.member())
	kept := b.add(lb.TCP, b.member())
	b.set()
	c, _ := b.dial(f)
	delete(b.table.Routes, f)
	b.begin(Options{})
	b.set()
	b.mustEcho(c, "its route is gone since a moment")
	if _, err := b.net.Dial(b.Context(), netip.Addr{}, f); err == nil {
		b.Errorf("new connection to a route that is gone: got none refused; want an error")
	}
	b.dial(kept)
}

// crowded: too many different timeouts are refused before the kernel sees them, and
// harm nothing else.
func crowded(b *bench) {
	m := b.member()
	for i := range maxDistinct + 6 {
		f := b.add(lb.TCP, m)
		b.change(f, func(r *lb.Route) { r.IdleTimeout = time.Duration(i+1) * time.Minute })
	}
	refused, err := b.engine.Set(b.Context(), b.table)
	if err != nil || len(refused) != 6 {
		b.Fatalf("Set with %d idle timeouts: got %d refused, error %v; want 6", maxDistinct+6, len(refused), err)
	}
	for f, err := range refused {
		if !errors.Is(err, lb.ErrExhausted) || !strings.Contains(err.Error(), f.String()) {
			b.Errorf("refusal of %s: got %v; want ErrExhausted that names it", f, err)
		}
		if r := b.table.Routes[f]; r.IdleTimeout <= maxDistinct*time.Minute {
			b.Errorf("refused %s with %s; want those with the largest", f, r.IdleTimeout)
		}
	}
	for f := range b.table.Routes {
		if refused[f] == nil {
			b.dial(f)
			break
		}
	}
}
