package lbtest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

func drainingKeeps(r *rig) {
	m := r.members(2, greet)
	s := r.service(m...)
	s.route.DrainTimeout = soon / 4
	r.set()
	c := r.connect(s)
	i := slices.IndexFunc(m, func(m *node) bool { return m.node == c.node })
	s.backend(m[i]).State = lb.Draining
	r.set()
	if got := r.spread(s, 10)[m[i].node]; got != 0 {
		r.Errorf("new connections to the draining member: got %d; want none", got)
	}
	for start := time.Now(); time.Since(start) < soon; {
		c.mustAsk("draining has no end")
		pause(soon / 20)
	}
	if c.node != m[i].node {
		r.Errorf("the client moved to %s; want it kept by %s", c.node, m[i].node)
	}
}

func memberRemovalDrains(r *rig) {
	m := r.members(2, greet)
	s := r.service(m...)
	s.route.DrainTimeout = soon
	r.set()
	c := r.connect(s)
	for c.node != m[0].node {
		c = r.connect(s)
	}
	s.without(m[0])
	start := time.Now()
	r.set()
	c.mustAsk("the drain timeout runs")
	if got := r.spread(s, 10)[m[0].node]; got != 0 {
		r.Errorf("new connections to the removed member: got %d; want none", got)
	}
	_ = c.ended()
	if took := time.Since(start); took < soon*3/4 || took > soon+3*time.Second {
		r.Errorf("connection of the removed member: ended after %s; want the drain timeout, %s", took, soon)
	}
}

// memberBackInTime: a member that is gone for a moment costs nothing.
func memberBackInTime(r *rig) {
	m := r.members(1, greet)
	s := r.service(m...)
	s.route.DrainTimeout = soon
	r.set()
	c := r.connect(s)
	all := s.backends
	s.without(m[0])
	r.set()
	s.backends = all
	r.set()
	for start := time.Now(); time.Since(start) < 2*soon; {
		c.mustAsk("the member is back")
		pause(soon / 10)
	}
}

func routeRemovalDrains(r *rig) {
	s := r.service(r.members(1, greet)...)
	s.route.DrainTimeout = soon
	r.set()
	c := r.connect(s)
	r.remove(s)
	start := time.Now()
	r.set()
	r.unreachable(s, "the route is gone")
	c.mustAsk("the drain timeout runs")
	_ = c.ended()
	if took := time.Since(start); took < soon*3/4 || took > soon+3*time.Second {
		r.Errorf("connection of the removed route: ended after %s; want the drain timeout, %s", took, soon)
	}
	r.eventually("the counters go with the last connection", func() bool { return len(r.engine.Counters()) == 0 })
}

func routeBackInTime(r *rig) {
	s := r.service(r.members(1, greet)...)
	s.route.DrainTimeout = soon
	r.set()
	c := r.connect(s)
	services := r.services
	r.services = nil
	r.set()
	r.services = services
	r.set()
	for start := time.Now(); time.Since(start) < 2*soon; {
		c.mustAsk("the route is back")
		pause(soon / 10)
	}
	if got := r.counters(s); got.Accepted != 1 || got.Active != 1 {
		r.Errorf("counters: got %d accepted, %d active; want 1 and 1 as before", got.Accepted, got.Active)
	}
}

// routeChangesKeep: other members, another group, port or timeout are no reason
// to end connections or to open the listener again.
func routeChangesKeep(r *rig) {
	m := r.members(2, greet)
	s := r.service(m...)
	s.route.DrainTimeout = 0
	r.set()
	c := r.connect(s)
	before := r.sockets(s)
	s.route.Group.Name = "another"
	s.route.IdleTimeout = 2 * time.Hour
	s.route.Algorithm = lb.LeastConnections
	if !slices.Contains(r.engine.Capabilities(), lb.CapLeastConnections) {
		s.route.Algorithm = lb.SourceHash
	}
	s.route.SourceRanges = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	r.set()
	c.mustAsk("its member is in the new group too")
	s.route.TargetPort++
	r.set()
	c.mustAsk("the port is for new connections")
	if after := r.sockets(s); after != before {
		r.Errorf("sockets: got %s; want %s as before", after, before)
	}
	r.refused(s, netip.Addr{}, "nobody listens on the new target port")
}

// ownerChangeDrains: an address and port that goes to another load balancer takes
// new connections for it at once, and the old ones drain.
func ownerChangeDrains(r *rig) {
	m := r.members(2, greet)
	s := r.service(m[0])
	s.route.DrainTimeout = soon
	r.set()
	c := r.connect(s)
	r.remove(s)
	other := r.serviceAt(s.Frontend, m[1])
	other.route.Owner.UID = "other"
	other.route.Group.Name = "other"
	r.set()
	if got := r.connect(other).node; got != m[1].node {
		r.Errorf("new connection: got %s; want %s of the new owner", got, m[1].node)
	}
	c.mustAsk("the drain timeout runs")
	_ = c.ended()
}

// sockets returns the listening sockets of the service's port in this process's
// network as text, to be compared. An engine in the kernel has none.
func (r *rig) sockets(s *service) string {
	var found []string
	for _, table := range []string{"", "6"} {
		data, err := os.ReadFile("/proc/self/net/" + string(s.Protocol) + table)
		if err != nil {
			r.Fatal(err)
		}
		for _, line := range strings.Split(string(data), "\n") {
			f := strings.Fields(line)
			if len(f) > 9 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", s.Port)) && (f[3] == "0A" || f[3] == "07") {
				found = append(found, f[1]+" inode "+f[9])
			}
		}
	}
	slices.Sort(found)
	return strings.Join(found, ", ")
}

func identicalSet(r *rig) {
	s := r.service(r.members(1, greet)...)
	r.set()
	c := r.connect(s)
	before := r.sockets(s)
	for range 10 {
		r.set()
	}
	if after := r.sockets(s); after != before {
		r.Errorf("sockets: got %s; want %s as before", after, before)
	}
	c.mustAsk("nothing has changed")
	if got := r.counters(s).Accepted; got != 1 {
		r.Errorf("sessions: got %d; want 1", got)
	}
}

// load opens connections or sessions from several clients until stop is called,
// which returns how many there were. Every error fails the test.
func (r *rig) load(s *service, clients int) (stop func() int64) {
	var done atomic.Bool
	var count atomic.Int64
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for !done.Load() {
				c, err := r.tryConnect(s, netip.Addr{})
				if err == nil {
					err = c.ask("under load")
					c.Close()
				}
				if err != nil {
					r.Errorf("connection %d under load: %v", count.Load(), err)
					return
				}
				count.Add(1)
			}
		})
	}
	return func() int64 {
		done.Store(true)
		wg.Wait()
		return count.Load()
	}
}

func swapsUnderLoad(r *rig) {
	const swaps = 1000 / raceFactor
	m := r.members(2, greet)
	s := r.service(m...)
	a, b := s.backends[:1], s.backends[1:]
	s.backends = a
	if r.proto == lb.UDP {
		// A datagram that is on its way to a member that is removed just then may be
		// lost; one of a draining member is not.
		drained := slices.Clone(s.backends[:2])
		drained[1].State = lb.Draining
		a = drained
		drained = slices.Clone(drained)
		drained[0].State, drained[1].State = lb.Draining, lb.Active
		b = drained
		s.backends = a
	}
	r.set()
	long := r.connect(s)
	stop := r.load(s, 4)
	start, i := time.Now(), 0
	for ; i < swaps || r.counters(s).Accepted < swaps && time.Since(start) < patience; i++ {
		s.backends = a
		if i%2 == 0 {
			s.backends = b
		}
		r.set()
	}
	took := time.Since(start)
	n := stop()
	long.mustAsk("it drains")
	r.Logf("%d swaps in %s during %d connections", i, took, n)
}

func othersUndisturbed(r *rig) {
	m := r.members(1, greet)
	s := r.service(m...)
	r.set()
	before := r.sockets(s)
	long := r.connect(s)
	stop := r.load(s, 2)
	kept := slices.Clone(r.services)
	for range 5 {
		for range 50 {
			r.service(m...)
		}
		r.set()
		r.services = slices.Clone(kept)
		r.set()
	}
	stop()
	long.mustAsk("others came and went")
	if after := r.sockets(s); after != before {
		r.Errorf("sockets: got %s; want %s as before", after, before)
	}
}

func sharedAddress(r *rig) {
	m := r.members(1, greet)
	first := r.service(m...)
	at := first.Frontend
	at.Port++
	second := r.serviceAt(at, m...)
	r.set()
	a, b := r.connect(first), r.connect(second)
	r.remove(first)
	r.set()
	r.unreachable(first, "its route is gone")
	if r.proto == lb.TCP {
		a.mustAsk("it drains")
	}
	b.mustAsk("its route stays")
	r.connect(second)
}

func bindConflict(r *rig) {
	m := r.members(1, greet)
	taken, free := r.service(m...), r.service(m...)
	release, err := hold(taken.Frontend)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(release)
	for range 2 {
		refused := r.trySet()
		if !errors.Is(refused[taken.Frontend], lb.ErrAddressHeld) || len(refused) != 1 {
			r.Fatalf("Set with %s in use: got %v; want it refused with ErrAddressHeld", taken.Frontend, refused)
		}
		for _, part := range []string{taken.Addr.String(), fmt.Sprint(taken.Port), string(taken.Protocol)} {
			if text := refused[taken.Frontend].Error(); !strings.Contains(text, part) {
				r.Errorf("refusal: got %q; want it to name %q", text, part)
			}
		}
		r.connect(free)
	}
	release()
	r.set()
	r.connect(taken)
}

// thousandsOfListeners opens 5,000 listeners, uses some, and closes them.
func thousandsOfListeners(r *rig) {
	const count = 5000
	m := r.members(1, greet)
	group := lb.GroupID{Cluster: "c", Name: "shared", Family: r.family}
	t := lb.Table{Routes: map[lb.Frontend]lb.Route{}, Groups: map[lb.GroupID]lb.Group{
		group: {Backends: []lb.Backend{{Node: m[0].node, Addr: m[0].addr, Weight: 1}}},
	}}
	template := r.service(m...)
	for i := range count {
		f := lb.Frontend{Addr: template.Addr, Port: uint16(1024 + i*5), Protocol: r.proto}
		if r.net.Addresses(r.family) > count {
			f = r.net.Frontend(r.proto, r.family)
		}
		route := template.route
		route.Group = group
		route.Owner.UID = lb.UID(fmt.Sprint(i))
		t.Routes[f] = route
	}
	start := time.Now()
	refused, err := r.engine.Set(r.context(), t)
	if err != nil {
		r.Fatal(err)
	}
	opened := time.Since(start)
	if len(refused) > 0 && r.net.Addresses(r.family) > count {
		r.Fatalf("refused: got %d, such as %v; want none", len(refused), refused)
	}
	start = time.Now()
	if _, err := r.engine.Set(r.context(), t); err != nil {
		r.Fatal(err)
	}
	again := time.Since(start)
	tried := 0
	for f := range t.Routes {
		if tried++; tried > 50 {
			break
		}
		if refused[f] != nil {
			continue
		}
		c := r.connect(&service{Frontend: f})
		c.Close()
	}
	start = time.Now()
	if _, err := r.engine.Set(context.Background(), lb.Table{}); err != nil {
		r.Fatal(err)
	}
	r.Logf("%d listeners opened in %s, set again in %s, closed in %s", len(t.Routes)-len(refused), opened, again, time.Since(start))
	if limit := 2 * time.Second * raceFactor; opened > limit {
		r.Errorf("%d listeners opened in %s; want at most %s", count, opened, limit)
	}
}
