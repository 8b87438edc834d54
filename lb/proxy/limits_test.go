package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// place is a frontend on the loopback interface with members that echo, for tests
// of what other engines do not have.
type place struct {
	t      testing.TB
	engine *Engine
	front  lb.Frontend
	table  lb.Table
}

var lastPlace atomic.Uint32

// newPlace serves a frontend of an engine with the options. The members get
// addresses of their own and the port 31080, where nobody listens yet.
func newPlace(t testing.TB, o Options, p lb.Protocol, members int) *place {
	t.Helper()
	id := lastPlace.Add(1)
	second := byte(192 + os.Getpid()%60) // keeps processes apart
	addr := func(last int) netip.Addr { return netip.AddrFrom4([4]byte{127, second, byte(id), byte(last)}) }
	e := New(o)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := e.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	})
	group := lb.GroupID{Name: "g", Family: lb.IPv4}
	pl := &place{t: t, engine: e, front: lb.Frontend{Addr: addr(1), Port: 8080, Protocol: p}}
	var backends []lb.Backend
	for i := range members {
		backends = append(backends, lb.Backend{Node: lb.NodeName(fmt.Sprint("n", i)), Addr: addr(10 + i), Weight: 1, Check: "check"})
	}
	pl.table = lb.Table{
		Routes: map[lb.Frontend]lb.Route{pl.front: {Owner: lb.Owner{Cluster: "c", UID: "u"}, Name: "a/b", Group: group, TargetPort: 31080, Algorithm: lb.RoundRobin, IdleTimeout: time.Hour, DrainTimeout: time.Hour, ResetDead: true}},
		Groups: map[lb.GroupID]lb.Group{group: {Backends: backends}},
	}
	return pl
}

func (p *place) backends() []lb.Backend {
	for _, g := range p.table.Groups {
		return g.Backends
	}
	return nil
}

func (p *place) set() {
	p.t.Helper()
	refused, err := p.engine.Set(context.Background(), p.table)
	if err != nil || len(refused) > 0 {
		p.t.Fatalf("Set: got %v, %v; want everything served", refused, err)
	}
}

// echo starts the member's server.
func (p *place) echo(member int) {
	p.t.Helper()
	at := netip.AddrPortFrom(p.backends()[member].Addr, 31080).String()
	var wg sync.WaitGroup
	if p.front.Protocol == lb.UDP {
		c, err := net.ListenPacket("udp", at)
		if err != nil {
			p.t.Fatal(err)
		}
		wg.Go(func() {
			for b := make([]byte, 1<<16); ; {
				n, from, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = c.WriteTo(b[:n], from)
			}
		})
		p.t.Cleanup(func() { c.Close(); wg.Wait() })
		return
	}
	l, err := net.Listen("tcp", at)
	if err != nil {
		p.t.Fatal(err)
	}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
				c.Close()
			})
		}
	})
	p.t.Cleanup(func() { l.Close(); p.shut(); wg.Wait() })
}

// shut ends the engine, and with it the connections to members.
func (p *place) shut() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = p.engine.Shutdown(ctx)
}

func (p *place) dial() (net.Conn, error) {
	c, err := net.Dial(string(p.front.Protocol), netip.AddrPortFrom(p.front.Addr, p.front.Port).String())
	if err == nil {
		p.t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	}
	return c, err
}

// ask opens a connection and sends a text through it.
func (p *place) ask(text string) (net.Conn, error) {
	c, err := p.dial()
	if err != nil {
		return nil, err
	}
	return c, again(c, text)
}

func again(c net.Conn, text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	b := make([]byte, len(text))
	_, err := io.ReadFull(c, b)
	if err == nil && string(b) != text {
		err = fmt.Errorf("got %q; want %q", b, text)
	}
	return err
}

func (p *place) counters() lb.RouteCounters { return p.engine.Counters()[0] }

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func TestUDPSessionsOfOneFrontendAreLimited(t *testing.T) {
	p := newPlace(t, Options{UDPSessions: 3}, lb.UDP, 1)
	p.set()
	p.echo(0)
	testEviction(t, p)
}

func TestUDPSessionsOfOneSourceAreLimited(t *testing.T) {
	p := newPlace(t, Options{UDPSessionsPerSource: 3}, lb.UDP, 1)
	p.set()
	p.echo(0)
	testEviction(t, p)
	other, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 200, 0, 99)}, net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.front.Addr, p.front.Port)))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	_ = other.SetDeadline(time.Now().Add(10 * time.Second))
	if err := again(other, "x"); err != nil {
		t.Error(err)
	}
	if got := p.counters().Active; got != 4 {
		t.Errorf("sessions after one of another source: got %d; want 4", got)
	}
}

// testEviction opens four sessions where three have room: the one that was idle
// longest goes.
func testEviction(t *testing.T, p *place) {
	t.Helper()
	var c [4]net.Conn
	for i := range c {
		var err error
		if c[i], err = p.ask("hello"); err != nil {
			t.Fatal(err)
		}
		if i == 2 { // the first is not the oldest any more
			if err := again(c[0], "again"); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := p.counters()
	if got.Active != 3 || got.Accepted != 4 || got.Refused[lb.RefusedLimit] != 1 {
		t.Errorf("four sessions where there is room for three: got %+v; want 3 active and one refused", got)
	}
	if err := again(c[0], "again"); err != nil {
		t.Fatal(err)
	}
	if got := p.counters().Accepted; got != 4 {
		t.Errorf("sessions after the first client asked again: got %d; want 4, since it was not idle longest", got)
	}
	if err := again(c[1], "again"); err != nil {
		t.Fatal(err)
	}
	if got := p.counters().Accepted; got != 5 {
		t.Errorf("sessions after the evicted client asked again: got %d; want 5", got)
	}
}

func TestMaxConnectionsOfTheEngine(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	p := newPlace(t, Options{MaxConnections: 2, Log: zap.New(core)}, lb.TCP, 1)
	p.set()
	p.echo(0)
	first, err := p.ask("hello")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.ask("hello"); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if _, err := p.ask("hello"); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("third connection: got %v; want a reset", err)
		}
	}
	if got := p.counters().Refused[lb.RefusedLimit]; got != 5 {
		t.Errorf("refused: got %d; want 5", got)
	}
	if got := logs.Len(); got != 1 {
		t.Errorf("log lines about the limit: got %d; want 1 for all five", got)
	}
	first.Close()
	eventually(t, "there is room again", func() bool { return p.counters().Active == 1 })
	if _, err := p.ask("hello"); err != nil {
		t.Error(err)
	}
}

// TestNoDescriptorsLeft takes all descriptors away from a serving engine: clients
// are turned away promptly, nothing spins, and it goes on when there are some.
func TestNoDescriptorsLeft(t *testing.T) {
	core, logs := observer.New(zap.ErrorLevel)
	p := newPlace(t, Options{Log: zap.New(core)}, lb.TCP, 1)
	p.set()
	p.echo(0)
	if _, err := p.ask("hello"); err != nil {
		t.Fatal(err)
	}
	// Sockets that exist before the limit falls.
	clients := make([]int, 8)
	for i := range clients {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		clients[i] = fd
	}
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	restore := sync.OnceFunc(func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &was) })
	defer restore()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 200, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	for {
		fd, err := unix.Dup(0)
		if err != nil {
			break
		}
		defer unix.Close(fd)
	}
	before := cpuTime(t)
	start := time.Now()
	for _, fd := range clients {
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
		if err := unix.Connect(fd, sockaddrOf(netip.AddrPortFrom(p.front.Addr, p.front.Port))); err != nil {
			t.Errorf("connect: %v", err)
			continue
		}
		if _, err := unix.Read(fd, make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("a client without descriptors left: got %v; want a reset", err)
		}
	}
	if took, used := time.Since(start), cpuTime(t)-before; used > took/2 {
		t.Errorf("processor time: got %s in %s; want it not to spin", used, took)
	}
	restore()
	if _, err := p.ask("hello"); err != nil {
		t.Errorf("after there are descriptors again: %v", err)
	}
	if got := logs.Len(); got != 1 {
		t.Errorf("log lines: got %d; want 1", got)
	}
}

func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestFileShareLeavesAReserve(t *testing.T) {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		t.Fatal(err)
	}
	if got := fileShare(); got >= int(r.Cur) || got < int(r.Cur)/2 {
		t.Errorf("share of %d descriptors: got %d; want less, and at least half", r.Cur, got)
	}
}

func TestListenersBeyondTheShareAreRefused(t *testing.T) {
	p := newPlace(t, Options{}, lb.TCP, 1)
	p.engine.files.limit = 1
	second := p.front
	second.Port++
	p.table.Routes[second] = p.table.Routes[p.front]
	refused, err := p.engine.Set(t.Context(), p.table)
	if err != nil || len(refused) != 1 {
		t.Fatalf("Set: got %v, %v; want one of two refused", refused, err)
	}
	for _, err := range refused {
		if !errors.Is(err, lb.ErrExhausted) {
			t.Errorf("refusal: got %v; want ErrExhausted", err)
		}
	}
	p.engine.files.limit = 2
	p.set()
}

func TestPausedListenerLosesItsPort(t *testing.T) {
	p := newPlace(t, Options{}, lb.TCP, 1)
	p.backends()[0].State = lb.Dead
	p.set()
	l, err := net.Listen("tcp", netip.AddrPortFrom(p.front.Addr, p.front.Port).String())
	if err != nil {
		t.Skipf("the kernel keeps the port from others: %v", err)
	}
	for id, g := range p.table.Groups {
		b := g.Backends[0]
		b.State = lb.Active
		p.table.Groups[id] = lb.Group{Backends: []lb.Backend{b}}
	}
	refused, err := p.engine.Set(t.Context(), p.table)
	if err != nil || !errors.Is(refused[p.front], lb.ErrAddressHeld) {
		t.Fatalf("Set: got %v, %v; want it refused with ErrAddressHeld", refused, err)
	}
	l.Close()
	p.set()
	p.echo(0)
	if _, err := p.ask("hello"); err != nil {
		t.Error(err)
	}
}

func TestControlSeesEverySocket(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]bool{}
	p := newPlace(t, Options{Control: func(network, address string, c syscall.RawConn) error {
		mu.Lock()
		defer mu.Unlock()
		return c.Control(func(fd uintptr) {
			kind, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE)
			seen[fmt.Sprint(network, " ", address, " ", kind == unix.SOCK_STREAM && err == nil)] = true
		})
	}}, lb.TCP, 1)
	p.set()
	p.echo(0)
	if _, err := p.ask("hello"); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, want := range []string{
		fmt.Sprintf("tcp4 %s true", netip.AddrPortFrom(p.front.Addr, p.front.Port)),
		fmt.Sprintf("tcp4 %s true", netip.AddrPortFrom(p.backends()[0].Addr, 31080)),
	} {
		if !seen[want] {
			t.Errorf("sockets seen: got %v; want %q among them", seen, want)
		}
	}
}

func TestIdleEngineSleeps(t *testing.T) {
	p := newPlace(t, Options{}, lb.TCP, 1)
	p.set()
	p.echo(0)
	if _, err := p.ask("hello"); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	before := cpuTime(t)
	<-time.After(300 * time.Millisecond)
	if used := cpuTime(t) - before; used > 100*time.Millisecond {
		t.Errorf("processor time of 300 ms without traffic: got %s; want next to none", used)
	}
}
