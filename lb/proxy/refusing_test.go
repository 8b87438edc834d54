package proxy

import (
	"context"
	"io"
	"slices"
	"syscall"
	"testing"

	"github.com/eclusa-lb/eclusa/lb"
)

// A frontend that has nobody to serve it at a hand-over serves whole connections
// when somebody comes: its socket was shut down, and to shut down one that is so
// already makes all that it accepts later look half-closed by their clients.
func TestRefusingFrontendIsHandedOver(t *testing.T) {
	for _, passed := range []bool{true, false} {
		p := newPlace(t, Options{}, lb.TCP, 1)
		p.echo(0)
		p.set()
		p.state(lb.Draining)
		first := p.engine
		var parcels []lb.Parcel
		if err := first.HandOver(t.Context(), func(q lb.Parcel) error {
			own := lb.Parcel{Data: slices.Clone(q.Data)}
			for _, fd := range q.Files {
				d, err := syscall.Dup(fd)
				if err != nil {
					return err
				}
				own.Files = append(own.Files, d)
			}
			parcels = append(parcels, own)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if passed {
			second := New(Options{})
			if err := second.Adopt(t.Context(), func() (lb.Parcel, error) {
				if len(parcels) == 0 {
					return lb.Parcel{}, io.EOF
				}
				q := parcels[0]
				parcels = parcels[1:]
				return q, nil
			}); err != nil {
				t.Fatal(err)
			}
			p.engine = second
			t.Cleanup(func() { shutNow(t, second) })
			shutNow(t, first)
		} else {
			for _, q := range parcels {
				closeAll(q.Files)
			}
			if err := first.Resume(); err != nil {
				t.Fatal(err)
			}
		}
		p.state(lb.Draining)
		if _, err := p.ask("nobody"); err == nil {
			t.Errorf("passed on: %v: a client is served while nobody can; want it refused", passed)
		}
		p.state(lb.Active)
		for range 3 {
			c, err := p.ask("somebody")
			if err != nil {
				t.Fatalf("passed on: %v: a client after a member has come: %v", passed, err)
			}
			if err := again(c, "and again"); err != nil {
				t.Errorf("passed on: %v: a client that goes on: %v", passed, err)
			}
		}
	}
}

func shutNow(t *testing.T, e *Engine) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := e.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// state sets the state of all members.
func (p *place) state(s lb.BackendState) {
	p.t.Helper()
	groups := make(map[lb.GroupID]lb.Group, len(p.table.Groups))
	for id, g := range p.table.Groups {
		g.Backends = slices.Clone(g.Backends)
		for i := range g.Backends {
			g.Backends[i].State = s
		}
		groups[id] = g
	}
	p.table = lb.Table{Routes: p.table.Routes, Groups: groups}
	p.set()
}

// TestUnusedPortChangesHands: a UDP port that nobody serves and that has lost its
// last sessions with its owner is closed, so that the kernel turns clients away.
func TestUnusedPortChangesHands(t *testing.T) {
	p := newPlace(t, Options{}, lb.UDP, 1)
	p.set()
	p.echo(0)
	if _, err := p.ask("hello"); err != nil {
		t.Fatal(err)
	}
	p.state(lb.Draining)
	r := p.table.Routes[p.front]
	r.Owner.UID = "another"
	p.table.Routes = map[lb.Frontend]lb.Route{p.front: r}
	p.set()
	if fe := p.engine.frontends[p.front]; fe.ln != nil {
		t.Errorf("a port without members and sessions: got it open still, ended: %v", fe.ln.ended())
	}
	p.state(lb.Active)
	if _, err := p.ask("hello"); err != nil {
		t.Errorf("after a member has come: %v", err)
	}
}
