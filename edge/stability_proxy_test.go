package edge

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/proxy"
)

// local returns where an address of the world is on the loopback, which no
// configuration may name. Another process of this test has other ones.
func local(a netip.Addr) netip.Addr {
	b := a.As4()
	return netip.AddrFrom4([4]byte{127, byte(192 + os.Getpid()%60), b[0]%16 + b[1]*16, b[3]}) //nolint:gosec // whatever it is
}

// A localEngine carries the traffic of a table on the loopback.
type localEngine struct {
	lb.Engine

	mu     sync.Mutex
	tables []lb.Table // as they were set
	last   lb.Table   // in force
}

func (e *localEngine) Set(ctx context.Context, t lb.Table) (map[lb.Frontend]error, error) {
	e.mu.Lock()
	e.tables = append(e.tables, t)
	e.mu.Unlock()
	mapped := lb.Table{Routes: make(map[lb.Frontend]lb.Route), Groups: make(map[lb.GroupID]lb.Group)}
	back := make(map[lb.Frontend]lb.Frontend)
	for f, r := range t.Routes {
		at := f
		at.Addr = local(f.Addr)
		mapped.Routes[at], back[at] = r, f
	}
	for id, g := range t.Groups {
		g.Backends = slices.Clone(g.Backends)
		for i := range g.Backends {
			g.Backends[i].Addr = local(g.Backends[i].Addr)
		}
		mapped.Groups[id] = g
	}
	refused, err := e.Engine.Set(ctx, mapped)
	out := make(map[lb.Frontend]error, len(refused))
	for f, why := range refused {
		out[back[f]] = why
	}
	if err == nil {
		e.mu.Lock()
		e.last = t
		e.mu.Unlock()
	}
	return out, err
}

// table returns the table in force.
func (e *localEngine) table() lb.Table {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.last
}

// take returns all tables that were set since the last call, and the one before.
func (e *localEngine) take() []lb.Table {
	e.mu.Lock()
	defer e.mu.Unlock()
	tables := e.tables
	e.tables = tables[max(len(tables)-1, 0):]
	return tables
}

// members run what there is at the node ports of all nodes: it says which node it
// is, and echoes.
func members(t *testing.T, k kinds) {
	t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []io.Closer
	t.Cleanup(func() {
		mu.Lock()
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	serve := func(node netip.Addr, l net.Listener) {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, conn)
			mu.Unlock()
			wg.Go(func() {
				defer conn.Close()
				b := node.As4()
				if _, err := conn.Write(b[:]); err == nil {
					_, _ = io.Copy(struct{ io.Writer }{conn}, struct{ io.Reader }{conn})
				}
			})
		}
	}
	for _, p := range prefixes {
		for n := range k.nodes {
			for port := range k.ports {
				node := netip.AddrFrom4([4]byte{p.node[0], p.node[1], 0, byte(1 + n)})                    //nolint:gosec // small
				l, err := net.Listen("tcp", netip.AddrPortFrom(local(node), uint16(30001+port)).String()) //nolint:gosec // small
				if err != nil {
					t.Fatal(err)
				}
				mu.Lock()
				open = append(open, l)
				mu.Unlock()
				wg.Go(func() { serve(node, l) })
			}
		}
	}
}

// A visitor is a client's connection.
type visitor struct {
	net.Conn
	frontend lb.Frontend
	node     netip.Addr
	route    lb.Route // when it came
	since    int      // event
}

func visit(f lb.Frontend, r lb.Route, since int) (*visitor, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", netip.AddrPortFrom(local(f.Addr), f.Port).String())
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	var node [4]byte
	if _, err := io.ReadFull(conn, node[:]); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return &visitor{Conn: conn, frontend: f, node: netip.AddrFrom4(node), route: r, since: since}, nil
}

// ask tells whether the connection goes on.
func (v *visitor) ask() error {
	_ = v.SetDeadline(time.Now().Add(5 * time.Second))
	var b [1]byte
	if _, err := v.Write([]byte{'x'}); err != nil {
		return err
	}
	_, err := io.ReadFull(v, b[:])
	return err
}

// mayStay tells whether a table leaves the connection alone: its route is there
// for the same owner and port, and its member, too, and not to be reset.
func (v *visitor) mayStay(t lb.Table) bool {
	r, ok := t.Routes[v.frontend]
	if !ok || r.Owner != v.route.Owner || r.TargetPort != v.route.TargetPort || r.ProxyProtocol != v.route.ProxyProtocol {
		return false
	}
	return slices.ContainsFunc(t.Groups[r.Group].Backends, func(b lb.Backend) bool {
		return b.Addr == v.node && (b.State != lb.Dead || !r.ResetDead)
	})
}

// A busyLife is a life with traffic.
type busyLife struct {
	*life
	current  *localEngine
	retired  []func() // ends of edges that were taken over from
	visitors []*visitor
	asked    int
}

func newBusyLife(t *testing.T, w *world) *busyLife {
	t.Helper()
	l := &busyLife{life: newLife(t, w)}
	l.real = func() lb.Engine {
		l.current = &localEngine{Engine: proxy.New(proxy.Options{Loops: 1, MaxConnections: 4096})}
		return l.current
	}
	l.onRestart = l.restart
	t.Cleanup(func() {
		l.leaveAll()
		for _, end := range l.retired {
			end()
		}
	})
	return l
}

func (l *busyLife) leaveAll() {
	for _, v := range l.visitors {
		_ = v.Close()
	}
	l.visitors = nil
}

// restart ends the edge and starts another one, which every connection notices, or
// hands over to another one, which none does.
func (l *busyLife) restart() {
	if l.w.IntN(3) == 0 {
		l.note("restart the edge")
		l.leaveAll()
		l.stop()
		l.open()
		l.run()
		return
	}
	l.note("hand the edge over")
	first := l.current
	before := first.table()
	p, err := l.edge.Pause(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	will := p.Will
	will.Lock = duplicate(l.t, p.Lock)
	served := make(chan struct{})
	l.predecessor = &Predecessor{
		Will: will,
		Adopt: func(ctx context.Context, take func(context.Context, func() (lb.Parcel, error)) error) error {
			parcels, err := parcelsOf(ctx, first)
			if err != nil {
				return err
			}
			return take(ctx, func() (lb.Parcel, error) {
				if len(parcels) == 0 {
					return lb.Parcel{}, io.EOF
				}
				p := parcels[0]
				parcels = parcels[1:]
				return p, nil
			})
		},
		Serving: func() error {
			defer close(served)
			return p.Release()
		},
	}
	l.retired = append(l.retired, l.stop)
	l.open()
	l.predecessor = nil
	l.current.tables = []lb.Table{before}
	l.run()
	select {
	case <-served:
	case <-time.After(10 * time.Second):
		l.t.Fatalf("%v\nthe hand-over does not end", l.past)
	}
}

// parcelsOf returns what an engine hands over, as another process would have it.
func parcelsOf(ctx context.Context, e lb.Engine) (parcels []lb.Parcel, err error) {
	err = e.HandOver(ctx, func(p lb.Parcel) error {
		q := lb.Parcel{Data: slices.Clone(p.Data)}
		for _, fd := range p.Files {
			own, err := syscall.Dup(fd)
			if err != nil {
				return err
			}
			q.Files = append(q.Files, own)
		}
		parcels = append(parcels, q)
		return nil
	})
	return parcels, err
}

// look asks all visitors that may not have been disturbed, and lets others come.
func (l *busyLife) look() {
	l.t.Helper()
	tables := l.current.take()
	now := tables[len(tables)-1]
	var still []*visitor
	busy := make(map[lb.Frontend]int)
	for _, v := range l.visitors {
		if slices.ContainsFunc(tables, func(t lb.Table) bool { return !v.mayStay(t) }) {
			_ = v.Close()
			continue
		}
		l.asked++
		if err := v.ask(); err != nil {
			l.t.Errorf("%v\nthe connection of %s to %s by %s, from event %d, was cut: %v", l.past, v.LocalAddr(), v.node, v.frontend, v.since, err)
			l.t.Logf("it came by %+v", v.route)
			for _, t := range tables {
				r := t.Routes[v.frontend]
				l.t.Logf("a table since: %+v to %+v", r, t.Groups[r.Group])
			}
			continue
		}
		still = append(still, v)
		busy[v.frontend]++
	}
	l.visitors = still
	for f, r := range now.Routes {
		serves := slices.ContainsFunc(now.Groups[r.Group].Backends, func(b lb.Backend) bool { return b.State == lb.Active })
		if f.Protocol != lb.TCP || !serves || busy[f] >= 3 {
			continue
		}
		v, err := visit(f, r, len(l.past))
		if err != nil {
			l.t.Errorf("%v\na client of %s is not served: %v", l.past, f, err)
			continue
		}
		l.visitors = append(l.visitors, v)
	}
}

// carriedKinds are those that a real engine can carry on the loopback, with checks
// that come to a verdict soon.
func carriedKinds() kinds {
	k := kinds{loadBalancers: 6, nodes: 4, ports: 4}
	soon := func(p healthcheck.Protocol, path string, port uint16) lb.HealthCheck {
		return lb.HealthCheck{Port: port, Spec: healthcheck.Spec{
			Protocol: p, Path: path, Interval: healthcheck.MinInterval, Timeout: healthcheck.MinInterval, UnhealthyThreshold: 1, HealthyThreshold: 1,
		}}
	}
	k.check = []lb.HealthCheck{
		soon(healthcheck.HTTP, "", 10256), soon(healthcheck.HTTP, "", 10256), soon(healthcheck.HTTP, "/local", 30500),
		soon(healthcheck.TCP, "", 30001), {Spec: healthcheck.Spec{Protocol: healthcheck.None}},
	}
	return k
}

// Connections on routes and to members that stay go on whatever else happens, and
// every frontend that has somebody to serve it takes new ones.
func TestStabilityOfConnections(t *testing.T) {
	asked := 0
	seeds(t, 2, func(t *testing.T, seed uint64) {
		k := carriedKinds()
		members(t, k)
		l := newBusyLife(t, newWorld(seed, k))
		l.w.populate()
		l.begin()
		for range 25 {
			for range 1 + l.w.IntN(2) {
				l.step()
			}
			l.eventually(20*time.Second, func() lb.Table { return l.current.table() })
			l.look()
			if t.Failed() {
				break
			}
		}
		asked += l.asked
		l.leaveAll()
		l.stop()
	})
	if t.Logf("connections were asked %d times whether they go on", asked); asked < 20 {
		t.Error("that is too few to show anything")
	}
}
