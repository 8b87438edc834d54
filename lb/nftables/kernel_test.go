package nftables

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// patience is how long a test waits for what must happen soon.
const patience = 10 * time.Second

const targetPort = 31080

// bench is what the tests of the kernel's side work with.
type bench struct {
	*testing.T
	net    lbtest.Network
	family lb.Family
	engine *Engine
	table  lb.Table
	from   netip.Addr // of clients; any if it is the zero Addr
}

// TestKernel checks what is special about an engine in the kernel.
func TestKernel(t *testing.T) {
	inNamespaces(t, func(n lbtest.Network) {
		for _, c := range []struct {
			name string
			run  func(b *bench)
		}{
			{"IdenticalSet", identicalSet},
			{"Restart", restart},
			{"ResumeLearnsLater", resumeLearnsLater},
			{"Repair", repair},
			{"RepairAmongWork", repairAmongWork},
			{"ForeignTables", foreignTables},
			{"SourceAddresses", sourceAddresses},
			{"KeptSources", keptSources},
			{"ForwardsNothing", forwardsNothing},
			{"OfTheEdgeItself", ofTheEdgeItself},
			{"Unserved", unservedRefuses},
			{"AffinityEnds", affinityEnds},
			{"AffinityStays", affinityStays},
			{"HomesAfterRestart", homesAfterRestart},
			{"HomesInAnotherPool", homesInAnotherPool},
			{"HomesComeBack", homesComeBack},
			{"HomesUnread", homesUnread},
			{"HomesOfMany", homesOfMany},
			{"HomesOfManyComeBack", homesOfManyComeBack},
			{"ForgetsQuietly", forgetsQuietly},
			{"TimeoutsOfAnotherVersion", timeoutsOfAnotherVersion},
			{"CleanupLetsOthersServe", cleanupLetsOthersServe},
			{"SelectorsPick", selectorsPick},
			{"CutHangsNobody", cutHangsNobody},
			{"CutWithKeptSources", cutWithKeptSources},
			{"CutBesideClusterProxy", cutBesideClusterProxy},
			{"CutLosesOneSYN", cutLosesOneSYN},
			{"BytesExact", bytesExact},
			{"CountersOfTheGone", countersOfTheGone},
			{"Orphans", orphansDrain},
			{"Crowded", crowded},
		} {
			t.Run(c.name, func(t *testing.T) {
				for _, f := range []lb.Family{lb.IPv4, lb.IPv6} {
					t.Run(string(f), func(t *testing.T) {
						if n.Addresses(f) == 0 {
							lbtest.Lacking(t, "the network has no %s", f)
						}
						c.run(newBench(t, n, f))
					})
				}
			})
		}
	})
}

func newBench(t *testing.T, n lbtest.Network, f lb.Family) *bench {
	b := &bench{T: t, net: n, family: f, table: lb.Table{Routes: map[lb.Frontend]lb.Route{}, Groups: map[lb.GroupID]lb.Group{}}}
	t.Cleanup(func() {
		if t.Failed() {
			out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
			b.Logf("nft list ruleset: %v\n%s", err, out)
		}
		_ = b.engine.Shutdown(context.Background())
		if _, err := Cleanup(b.engine.log); err != nil {
			t.Error(err)
		}
	})
	b.begin(Options{})
	return b
}

// begin makes another engine, as a start of the program does.
func (b *bench) begin(o Options) {
	if b.engine != nil {
		if err := b.engine.Shutdown(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
	o.Log = zaptest.NewLogger(b)
	b.engine = New(o)
}

// add adds a route with members of the same name as their index.
func (b *bench) add(p lb.Protocol, members ...netip.Addr) lb.Frontend {
	f := b.net.Frontend(p, b.family)
	name := fmt.Sprintf("s%d", len(b.table.Routes))
	group := lb.GroupID{Cluster: "c", Name: name, Family: b.family}
	b.table.Routes[f] = lb.Route{
		Owner: lb.Owner{Cluster: "c", UID: lb.UID(name)}, Name: "test/" + name, Group: group, TargetPort: targetPort,
		Algorithm: lb.RoundRobin, IdleTimeout: time.Hour, DrainTimeout: time.Hour, ResetDead: true,
	}
	g := lb.Group{}
	for i, a := range members {
		g.Backends = append(g.Backends, lb.Backend{Node: lb.NodeName(fmt.Sprintf("n%d", i)), Addr: a, Weight: 1})
	}
	b.table.Groups[group] = g
	return f
}

// change changes a route.
func (b *bench) change(f lb.Frontend, by func(*lb.Route)) {
	r := b.table.Routes[f]
	by(&r)
	b.table.Routes[f] = r
}

// state changes the state of a member.
func (b *bench) state(f lb.Frontend, member int, s lb.BackendState) {
	g := b.table.Groups[b.table.Routes[f].Group]
	g.Backends = append([]lb.Backend(nil), g.Backends...)
	g.Backends[member].State = s
	b.table.Groups[b.table.Routes[f].Group] = g
}

// set sets a copy of the table.
func (b *bench) set() {
	b.Helper()
	t := lb.Table{Routes: map[lb.Frontend]lb.Route{}, Groups: map[lb.GroupID]lb.Group{}}
	for f, r := range b.table.Routes {
		t.Routes[f] = r
	}
	for id, g := range b.table.Groups {
		t.Groups[id] = g
	}
	refused, err := b.engine.Set(b.Context(), t)
	if err != nil || len(refused) > 0 {
		b.Fatalf("Set: got refused %v, error %v; want neither", refused, err)
	}
}

// member starts a member that greets with its client's address as it sees it, and
// echoes lines but for "wait", which it never answers.
func (b *bench) member() netip.Addr {
	b.Helper()
	a := b.net.Member(b.family)
	l, err := b.net.Listen(netip.AddrPortFrom(a, targetPort))
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := make(map[net.Conn]bool)
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			wg.Go(func() { serve(c) })
		}
	})
	b.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return a
}

func serve(c net.Conn) {
	defer c.Close()
	if _, err := fmt.Fprintf(c, "%s\n", c.RemoteAddr()); err != nil {
		return
	}
	line := make([]byte, 5)
	for {
		if _, err := io.ReadFull(c, line); err != nil {
			return
		}
		switch string(line) {
		case "wait\n":
			_, _ = io.Copy(io.Discard, c)
			return
		case "quit\n":
			return // this end closes first, and keeps TIME_WAIT
		}
		if _, err := c.Write(line); err != nil {
			return
		}
	}
}

// dial connects to a frontend and returns the greeting: who the member thinks the
// client is.
func (b *bench) dial(f lb.Frontend) (net.Conn, string) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	defer cancel()
	c, err := b.net.Dial(ctx, b.from, f)
	if err != nil {
		b.Fatalf("dial %s: %v", f, err)
	}
	b.Cleanup(func() { _ = c.Close() })
	return c, b.greeting(c)
}

func (b *bench) greeting(c net.Conn) string {
	b.Helper()
	_ = c.SetDeadline(time.Now().Add(patience))
	var line []byte
	for one := make([]byte, 1); ; {
		if _, err := io.ReadFull(c, one); err != nil {
			b.Fatalf("greeting through %s: %v", c.RemoteAddr(), err)
		}
		if one[0] == '\n' {
			return string(line)
		}
		line = append(line, one[0])
	}
}

func (b *bench) echo(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "ping\n"); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 5))
	return err
}

func (b *bench) mustEcho(c net.Conn, why string) {
	b.Helper()
	if err := b.echo(c); err != nil {
		b.Errorf("%s: got %v; want the connection to go on", why, err)
	}
}

func (b *bench) generation() uint32 {
	b.Helper()
	s, err := dial()
	if err != nil {
		b.Fatal(err)
	}
	defer s.close()
	g, err := s.currentGeneration()
	if err != nil {
		b.Fatal(err)
	}
	return g
}

func (b *bench) counters(f lb.Frontend) lb.RouteCounters {
	for _, c := range b.engine.Counters() {
		if c.Frontend == f {
			return c
		}
	}
	return lb.RouteCounters{}
}

func (b *bench) eventually(what string, ok func() bool) {
	b.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			b.Fatalf("after %s still not: %s", patience, what)
		}
		<-tick.C
	}
}

// run runs a command and returns what it writes.
func run(t testing.TB, command ...string) string {
	t.Helper()
	out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(command, " "), err, out)
	}
	return string(out)
}

func isReset(err error) bool { return errors.Is(err, syscall.ECONNRESET) }

func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
