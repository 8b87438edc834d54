package nftables

import (
	"context"
	"errors"
	"io"
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
