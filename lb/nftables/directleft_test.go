package nftables

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/eclusa-lb/eclusa/lb"
)

// directRemovedBeforeRestart: connections of a removed route drain on though the
// program is started again.
func directRemovedBeforeRestart(r *directRig) {
	f, _ := r.add(lb.TCP), r.add(lb.TCP)
	r.mustSet()
	c := r.on(0, f)
	delete(r.table.Routes, f)
	r.mustSet()
	r.begin()
	r.mustSet()
	if node := r.mustAsk(c); node != "n0" {
		r.Errorf("the connection went to %s; want n0", node)
	}
	if _, err := r.try(f); !errors.Is(err, syscall.ECONNREFUSED) {
		r.Errorf("dial what was removed: got %v; want refused", err)
	}
	r.engine.mu.Lock()
	defer r.engine.mu.Unlock()
	left := r.engine.state.leaving[f]
	if left == nil || left.deadline.After(time.Now().Add(lb.DefaultDrainTimeout)) || left.spec.IdleTimeout != time.Hour || left.spec.Name != "test/s0" {
		r.Errorf("the removed route: got %+v; want what it was, until the default drain timeout", left)
	}
}

// directRemovedMeanwhile: likewise if nobody ran when it was removed.
func directRemovedMeanwhile(r *directRig) {
	f, other := r.add(lb.TCP), r.add(lb.TCP)
	r.mustSet()
	c, stays := r.on(0, f), r.on(1, other)
	delete(r.table.Routes, f)
	r.begin()
	r.mustSet()
	if node := r.mustAsk(c); node != "n0" {
		r.Errorf("the connection went to %s; want n0", node)
	}
	if node := r.mustAsk(stays); node != "n1" {
		r.Errorf("the connection of the other route went to %s; want n1", node)
	}
}

// handOver gives what the engine has to another one.
func (r *directRig) handOver() {
	r.Helper()
	var parcels []lb.Parcel
	if err := r.engine.HandOver(r.Context(), func(p lb.Parcel) error { parcels = append(parcels, p); return nil }); err != nil {
		r.Fatal(err)
	}
	next := New(Options{Log: zaptest.NewLogger(r), Direct: true})
	if err := next.Adopt(r.Context(), func() (lb.Parcel, error) {
		if len(parcels) == 0 {
			return lb.Parcel{}, io.EOF
		}
		p := parcels[0]
		parcels = parcels[1:]
		return p, nil
	}); err != nil {
		r.Fatal(err)
	}
	if err := r.engine.Shutdown(r.Context()); err != nil {
		r.Fatal(err)
	}
	r.engine = next
}

// directRemovedBeforeHandOver: connections of a removed route go on for what is left
// of its drain timeout.
func directRemovedBeforeHandOver(r *directRig) {
	f, _ := r.add(lb.TCP), r.add(lb.TCP)
	r.change(f, func(route *lb.Route) { route.DrainTimeout = 2 * time.Second })
	r.mustSet()
	c := r.on(0, f)
	delete(r.table.Routes, f)
	r.mustSet()
	end := r.engine.state.leaving[f].deadline
	r.handOver()
	r.mustSet()
	if now := r.engine.state.leaving[f]; now == nil || !now.deadline.Equal(end) {
		r.Fatalf("the removed route: got %+v; want it until %s", now, end)
	}
	if node := r.mustAsk(c); node != "n0" {
		r.Errorf("the connection went to %s; want n0", node)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.in.ReadString('\n'); !errors.Is(err, syscall.ECONNRESET) {
		r.Errorf("the connection after the drain timeout: got %v; want a reset", err)
	}
	if now := time.Now(); now.Before(end) {
		r.Errorf("it was reset at %s; want not before %s", now, end)
	}
}

// directLeftBeforeRestart: the same for a member that has left its group.
func directLeftBeforeRestart(r *directRig) {
	f := r.add(lb.TCP)
	r.mustSet()
	c := r.on(0, f)
	id := r.table.Routes[f].Group
	r.table.Groups[id] = lb.Group{Backends: slices.Clone(r.table.Groups[id].Backends[1:])}
	r.mustSet()
	r.begin()
	r.mustSet()
	if node := r.mustAsk(c); node != "n0" {
		r.Errorf("the connection went to %s; want n0", node)
	}
	for range 10 {
		if node := r.mustAsk(r.dial(f)); node != "n1" {
			r.Fatalf("a new connection went to %s; want n1", node)
		}
	}
}

// directCutBeforeHandOver: the ends of what was cut are provoked again by whoever
// takes over.
func directCutBeforeHandOver(r *directRig) {
	f := r.add(lb.TCP)
	r.mustSet()
	client := netip.AddrPortFrom(r.self(), 9999)
	frontend := netip.AddrPortFrom(f.Addr, f.Port)
	member := netip.AddrPortFrom(r.node(0), targetPort)
	now := time.Now()
	r.engine.mu.Lock()
	r.engine.direct.cuts.add(cut[ends]{ends{client, f}, now, 1})
	r.engine.cuts.add(cut[flow]{flow{version: versionOf(f.Addr), client: client, frontend: frontend, source: client, member: member}, now, 2})
	r.engine.mu.Unlock()
	r.handOver()
	r.engine.mu.Lock()
	direct, through := r.engine.direct.cuts.all(), r.engine.cuts.all()
	r.engine.mu.Unlock()
	if len(direct) != 1 || direct[0].what != (ends{client, f}) || direct[0].tries != 1 || !direct[0].at.Equal(now) {
		r.Errorf("cut flows: got %+v; want that of %s", direct, client)
	}
	if len(through) != 1 || through[0].tries != 2 || through[0].what.member != member || through[0].what.source != client || through[0].what.frontend != frontend {
		r.Errorf("cut connections: got %+v; want that of %s", through, client)
	}
	r.mustSet()
	r.eventually("they are provoked", func() bool {
		r.engine.mu.Lock()
		defer r.engine.mu.Unlock()
		return r.engine.direct.cuts.empty() && r.engine.cuts.empty()
	})
}

// directWithdraw: connections go on until the end, and are reset then, also those whose
// client only waits.
func directWithdraw(r *directRig) {
	f := r.add(lb.TCP)
	r.mustSet()
	waits, speaks := r.on(0, f), r.on(1, f)
	ctx, end := context.WithCancel(r.Context())
	defer end()
	over := make(chan error, 1)
	go func() { over <- r.engine.Withdraw(ctx) }()
	r.eventually("new connections are refused", func() bool {
		c, err := r.try(f)
		if err == nil {
			_ = c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	if node := r.mustAsk(speaks); node != "n1" {
		r.Errorf("a connection went to %s meanwhile; want n1", node)
	}
	select {
	case err := <-over:
		r.Fatalf("Withdraw has not waited for open connections: %v", err)
	default:
	}
	end()
	for name, c := range map[string]*dialled{"waits": waits, "speaks": speaks} {
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.in.ReadString('\n'); !errors.Is(err, syscall.ECONNRESET) {
			r.Errorf("the client that %s: got %v; want a reset", name, err)
		}
	}
	if err := <-over; err != nil {
		r.Errorf("Withdraw: %v", err)
	}
}

// directRemovedAmongSets: a client that waits is reset at the end of the drain timeout,
// though the table is set all the time.
func directRemovedAmongSets(r *directRig) {
	f := r.add(lb.TCP)
	r.change(f, func(route *lb.Route) { route.DrainTimeout = 300 * time.Millisecond })
	r.mustSet()
	c := r.on(0, f)
	delete(r.table.Routes, f)
	r.mustSet()
	over := make(chan error, 1)
	go func() {
		_ = c.SetDeadline(time.Now().Add(patience))
		_, err := c.in.ReadString('\n')
		over <- err
	}()
	same := lb.Table{Routes: map[lb.Frontend]lb.Route{}, Groups: map[lb.GroupID]lb.Group{}}
	for {
		select {
		case err := <-over:
			if !errors.Is(err, syscall.ECONNRESET) {
				r.Errorf("the connection after the drain timeout: got %v; want a reset", err)
			}
			return
		default:
		}
		r.mustSet()
		for range 2 { // of which the second has nothing but members to compare
			if _, err := r.engine.Set(r.Context(), same); err != nil {
				r.Fatal(err)
			}
		}
	}
}

// directRemovedIsNobodys: while connections of a removed route drain, new ones do not
// reach programs of this machine.
func directRemovedIsNobodys(r *directRig) {
	streams, datagrams := r.add(lb.TCP), r.add(lb.UDP)
	r.mustSet()
	r.mustAsk(r.dial(streams))
	l, err := net.Listen("tcp", netip.AddrPortFrom(streams.Addr, streams.Port).String())
	if err != nil {
		r.Fatal(err)
	}
	defer l.Close()
	p, err := net.ListenPacket("udp", netip.AddrPortFrom(datagrams.Addr, datagrams.Port).String())
	if err != nil {
		r.Fatal(err)
	}
	defer p.Close()
	go answerStreams(l, 9)
	go answerDatagrams(p, 9)
	delete(r.table.Routes, streams)
	delete(r.table.Routes, datagrams)
	r.mustSet()
	if _, err := r.try(streams); !errors.Is(err, syscall.ECONNREFUSED) {
		r.Errorf("dial what was removed: got %v; want refused", err)
	}
	if node, _, err := r.dial(datagrams).ask(patience); !errors.Is(err, syscall.ECONNREFUSED) {
		r.Errorf("a datagram to what was removed: got %v from %q; want refused", err, node)
	}
}

// directSessionsOfOthers: the sessions of a member end that no such route has, and
// nobody looks at the flows of such routes for that.
func directSessionsOfOthers(r *directRig) {
	r.add(lb.TCP)
	f := r.add(lb.UDP)
	r.change(f, func(route *lb.Route) { route.Direct, route.TargetPort = false, targetPort })
	far := lb.Backend{Node: "far", Addr: r.net.Member(r.family), Weight: 1}
	r.table.Groups[r.table.Routes[f].Group] = lb.Group{Backends: []lb.Backend{far}}
	r.mustSet()
	c, err := r.net.Dial(r.Context(), netip.Addr{}, f)
	if err != nil {
		r.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "hello"); err != nil {
		r.Fatal(err)
	}
	tracking, err := dial()
	if err != nil {
		r.Fatal(err)
	}
	defer tracking.close()
	session := flow{
		version: versionOf(f.Addr), protocol: protocolNumber(lb.UDP), frontend: netip.AddrPortFrom(f.Addr, f.Port),
		client: c.LocalAddr().(*net.UDPAddr).AddrPort(),
	}
	known := func() bool {
		is, err := tracking.known(&session)
		if err != nil {
			r.Fatal(err)
		}
		return is
	}
	r.eventually("the session is known", known)
	e := r.engine
	e.mu.Lock()
	e.sweepAt(time.Now())
	at := e.sweeps[0]
	e.mu.Unlock()
	var before time.Time
	r.eventually("the looks that the first table has caused", func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		before = e.direct.swept
		return !e.swept.Before(at) && !before.Before(at)
	})
	r.state(f, 0, lb.Dead)
	r.mustSet()
	r.eventually("the session has ended", func() bool { return !known() })
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.direct.swept.Equal(before) {
		r.Errorf("all direct flows were looked at first, at %s; want nobody to wait for that", e.direct.swept)
	}
}
