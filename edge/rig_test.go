package edge

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// testClaim is the claim that rig.claim makes.
var testClaim = lb.Claim{ClusterUID: "cluster", LeaseUID: "lease", LeaseTransitions: 1, Holder: "ccm"}

// A rig is an edge with a real checker, fake probes, and a fake engine.
type rig struct {
	t         testing.TB
	dir       string
	log       *zap.Logger
	engine    *lbtest.FakeEngine
	able      []lb.Capability // of the engine, if it is not to be the usual
	probes    *probes
	checker   *healthcheck.Checker
	announcer *fakeAnnouncer
	options   Options

	predecessor *Predecessor
	real        func() lb.Engine // makes the engine in place of the fake one

	edge *Edge
	stop func()
}

// newRig returns a rig with a new state directory.
func newRig(t testing.TB) *rig {
	t.Helper()
	return newRigIn(t, t.TempDir())
}

// newRigIn returns a rig with the given state directory.
func newRigIn(t testing.TB, dir string) *rig {
	t.Helper()
	b := &rig{t: t, dir: dir, log: zaptest.NewLogger(t)}
	b.open()
	return b
}

// open makes the edge, again after stop.
func (b *rig) open() {
	b.t.Helper()
	b.engine = lbtest.NewFakeEngine(b.able...)
	engine := lb.Engine(b.engine)
	if b.real != nil {
		engine = b.real()
	}
	if b.probes == nil {
		b.probes = newProbes()
	}
	if b.announcer == nil {
		b.announcer = &fakeAnnouncer{}
	}
	b.checker = healthcheck.New(healthcheck.Options{Seed: 1, Probers: map[healthcheck.Protocol]healthcheck.Prober{
		healthcheck.TCP: b.probes, healthcheck.HTTP: b.probes, healthcheck.GRPC: b.probes,
	}})
	policy := func(prefix string) lb.Policy {
		return lb.Policy{
			AddressRanges: []netip.Prefix{netip.MustParsePrefix(prefix)}, NodeRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
			MaxLoadBalancers: 20000, MaxListeners: 40000, MaxNodes: 1000,
		}
	}
	b.options = Options{
		Name: "edge-1", Version: "v1.2.3", Revision: "0123abc", StateDir: b.dir, Log: b.log,
		Clusters:  map[lb.Cluster]lb.Policy{"prod": policy("192.0.0.0/16"), "dev": policy("198.51.0.0/16")},
		Engine:    engine,
		Announcer: b.announcer,
		Checker:   b.checker,

		Predecessor: b.predecessor, UpgradeDrainTimeout: time.Hour,
	}
	e, err := New(b.options)
	if err != nil {
		b.t.Fatal(err)
	}
	b.edge = e
	b.stop = func() {
		if err := e.Close(); err != nil {
			b.t.Error(err)
		}
	}
	b.t.Cleanup(func() { b.stop() })
}

// run starts edge and checker; stop ends them.
func (b *rig) run() {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, f := range []func(context.Context) error{b.checker.Run, b.edge.Run} {
		wg.Go(func() {
			if err := f(ctx); err != nil {
				b.t.Error(err)
			}
		})
	}
	b.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
}

func (b *rig) claim(name lb.Cluster) lb.Epoch {
	b.t.Helper()
	epoch, err := b.edge.Cluster(name).Claim(b.t.Context(), testClaim)
	if err != nil {
		b.t.Fatal(err)
	}
	return epoch
}

func (b *rig) set(name lb.Cluster, epoch lb.Epoch, c lb.Config) lb.Receipt {
	b.t.Helper()
	r, err := b.edge.Cluster(name).Set(b.t.Context(), lb.Write{Epoch: epoch, Config: c})
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

// table waits until the engine has a table for which ok is true.
func (b *rig) table(what string, ok func(lb.Table) bool) lb.Table {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	table, err := b.engine.WaitTable(ctx, ok)
	if err != nil {
		b.t.Fatalf("%s: %v; the last table is %+v", what, err, table)
	}
	return table
}

// status follows the status of a cluster until ok is true of it.
func (b *rig) status(name lb.Cluster, what string, ok func(lb.Status) bool) lb.Status {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	var s lb.Status
	for {
		d, err := b.edge.Cluster(name).Status(ctx, s.Cursor)
		if err != nil {
			b.t.Fatalf("%s: %v; the last status is %+v", what, err, s)
		}
		s.Apply(d)
		if ok(s) {
			return s
		}
	}
}

// states returns what the members of the only group of a load balancer may get.
func states(t lb.Table) map[lb.NodeName]lb.BackendState {
	out := make(map[lb.NodeName]lb.BackendState)
	for _, g := range t.Groups {
		for _, be := range g.Backends {
			out[be.Node] = be.State
		}
	}
	return out
}

// is returns a test for tables whose members are in the given states.
func is(want map[lb.NodeName]lb.BackendState) func(lb.Table) bool {
	return func(t lb.Table) bool {
		got := states(t)
		for n, s := range want {
			if g, ok := got[n]; !ok || g != s {
				return false
			}
		}
		return len(got) >= len(want)
	}
}

// testConfig has the given number of load balancers in front of as many nodes.
func testConfig(revision uint64, lbs, nodes int) lb.Config {
	c := lb.Config{
		Revision: revision, Nodes: map[lb.NodeName]lb.Node{}, Pools: map[lb.PoolName]lb.Pool{"all": {}},
		LoadBalancers: map[lb.UID]lb.LoadBalancer{},
	}
	for i := range nodes {
		name := lb.NodeName(fmt.Sprintf("n%d", i+1))
		c.Nodes[name] = lb.Node{Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte((i + 1) >> 8), byte(i + 1)})}}
		c.Pools["all"][name] = lb.Member{}
	}
	for i := range lbs {
		c.LoadBalancers[lb.UID(fmt.Sprintf("u%d", i+1))] = testLoadBalancer(i)
	}
	return c
}

func testLoadBalancer(i int) lb.LoadBalancer {
	return lb.LoadBalancer{
		Name: fmt.Sprintf("default/s%d", i+1), ClaimTime: time.Unix(int64(i), 0).UTC(), Pool: "all", FailOpen: true,
		Addresses:   []netip.Addr{netip.AddrFrom4([4]byte{192, 0, byte((i + 1) >> 8), byte(i + 1)})},
		Listeners:   []lb.Listener{{Protocol: lb.TCP, Port: 80, TargetPort: uint16(30000 + i%10000)}},
		HealthCheck: lb.HealthCheck{Spec: healthcheck.Spec{Protocol: healthcheck.HTTP}, Port: 10256},
	}
}

// probes answer as the test says, by address; an address that was not told of is
// fine.
type probes struct {
	mu      sync.Mutex
	answers map[netip.AddrPort]error
	asked   map[netip.AddrPort]int
	takes   time.Duration                                // one probe
	judge   func(netip.AddrPort, healthcheck.Spec) error // if set, answers in place of answers
}

func newProbes() *probes {
	return &probes{answers: make(map[netip.AddrPort]error), asked: make(map[netip.AddrPort]int)}
}

func (p *probes) Probe(_ context.Context, addr netip.AddrPort, spec healthcheck.Spec) error {
	if p.judge != nil {
		return p.judge(addr, spec)
	}
	p.mu.Lock()
	p.asked[addr]++
	takes, answer := p.takes, p.answers[addr]
	p.mu.Unlock()
	if takes > 0 {
		<-time.After(takes)
	}
	return answer
}

// slow makes every probe take some time.
func (p *probes) slow(takes time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.takes = takes
}

// say makes probes of an address fail with err, or succeed.
func (p *probes) say(addr string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answers[netip.MustParseAddrPort(addr)] = err
}

func (p *probes) count(addr string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked[netip.MustParseAddrPort(addr)]
}

var (
	errRefused     = &healthcheck.Failure{Reason: healthcheck.Refused, Text: "connection refused"}
	errUnavailable = &healthcheck.Failure{Reason: healthcheck.HTTPStatus, Text: "HTTP 500"}
)

// fakeAnnouncer keeps addresses in memory, beyond the life of an edge.
type fakeAnnouncer struct {
	mu    sync.Mutex
	addrs []netip.Addr
	err   error
	sets  int
}

func (a *fakeAnnouncer) Set(_ context.Context, addrs []netip.Addr) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sets++
	if a.err != nil {
		return a.err
	}
	a.addrs = addrs
	return nil
}

func (a *fakeAnnouncer) Held() []netip.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.addrs
}
