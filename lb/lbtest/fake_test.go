package lbtest

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

func TestFakeEngineRecordsAndRefuses(t *testing.T) {
	e := NewFakeEngine()
	f := lb.Frontend{Port: 80, Protocol: lb.TCP}
	e.Refuse(f, lb.ErrAddressHeld)
	boom := errors.New("boom")
	e.FailNext(boom)
	table := lb.Table{Routes: map[lb.Frontend]lb.Route{f: {Name: "a/b"}}}
	if _, err := e.Set(t.Context(), table); !errors.Is(err, boom) {
		t.Fatalf("first Set: got %v; want %v", err, boom)
	}
	refused, err := e.Set(t.Context(), table)
	if err != nil || !errors.Is(refused[f], lb.ErrAddressHeld) {
		t.Fatalf("Set: got %v, %v; want %v refused", refused, err, f)
	}
	if got := len(e.Tables()); got != 1 {
		t.Errorf("tables: got %d; want 1", got)
	}
	if got := len(e.Served()); got != 0 {
		t.Errorf("served: got %d; want none", got)
	}
	e.Refuse(f, nil)
	if refused, err = e.Set(t.Context(), table); len(refused) != 0 || err != nil {
		t.Errorf("Set again: got %v, %v; want nothing refused", refused, err)
	}
	if err := e.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Set(t.Context(), table); err == nil {
		t.Error("Set after Shutdown: got nil; want an error")
	}
}

func TestFakeBalancerEpochs(t *testing.T) {
	b := NewFakeBalancer("e1")
	if _, err := b.Set(t.Context(), lb.Write{}); !errors.Is(err, lb.ErrStaleEpoch) {
		t.Errorf("Set without a claim: got %v; want ErrStaleEpoch", err)
	}
	first, err := b.Claim(t.Context(), lb.Claim{ClusterUID: "u", LeaseUID: "l", LeaseTransitions: 2})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []lb.Claim{{ClusterUID: "other"}, {ClusterUID: "u", LeaseUID: "l", LeaseTransitions: 1}} {
		if _, err := b.Claim(t.Context(), c); !errors.Is(err, lb.ErrConflict) {
			t.Errorf("Claim %+v: got %v; want ErrConflict", c, err)
		}
	}
	b.Steal()
	if _, err := b.Set(t.Context(), lb.Write{Epoch: first}); !errors.Is(err, lb.ErrStaleEpoch) {
		t.Errorf("Set with a stolen epoch: got %v; want ErrStaleEpoch", err)
	}
	second, err := b.Claim(t.Context(), lb.Claim{ClusterUID: "u", LeaseUID: "l", LeaseTransitions: 3})
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.Set(t.Context(), lb.Write{Epoch: second, Config: lb.Config{Revision: 5}})
	if err != nil || !r.Durable || r.Digest == "" {
		t.Fatalf("Set: got %+v, %v; want a durable receipt", r, err)
	}
	if _, err := b.Set(t.Context(), lb.Write{Epoch: second, Base: "other", Config: lb.Config{Revision: 6}}); !errors.Is(err, lb.ErrBaseDiffers) {
		t.Errorf("Set on another base: got %v; want ErrBaseDiffers", err)
	}
	if _, err := b.Set(t.Context(), lb.Write{Epoch: second, Config: lb.Config{Revision: 4}}); !errors.Is(err, lb.ErrConflict) {
		t.Errorf("Set of an older revision: got %v; want ErrConflict", err)
	}
	b.LoseState()
	if c, d, err := b.Config(t.Context()); err != nil || d != "" || c.Revision != 0 {
		t.Errorf("Config after the loss: got %+v, %q, %v; want nothing", c, d, err)
	}
}

func TestFakeBalancerRemovalGuard(t *testing.T) {
	b := NewFakeBalancer("e1")
	b.GuardRemovals()
	epoch, err := b.Claim(t.Context(), lb.Claim{ClusterUID: "u"})
	if err != nil {
		t.Fatal(err)
	}
	nodes := map[lb.NodeName]lb.Node{"a": {}, "b": {}, "c": {}, "d": {}, "e": {}}
	if _, err := b.Set(t.Context(), lb.Write{Epoch: epoch, Config: lb.Config{Nodes: nodes}}); err != nil {
		t.Fatal(err)
	}
	w := lb.Write{Epoch: epoch, Config: lb.Config{Nodes: map[lb.NodeName]lb.Node{"a": {}}}}
	_, err = b.Set(t.Context(), w)
	held, ok := errors.AsType[*lb.RemovalHeldError](err)
	if !ok {
		t.Fatalf("Set: got %v; want a RemovalHeldError", err)
	}
	if diff := cmp.Diff([]string{"nodes/b", "nodes/c", "nodes/d", "nodes/e"}, held.Keys); diff != "" {
		t.Errorf("held keys (-want +got):\n%s", diff)
	}
	w.ConfirmedRemovals = held.Keys
	if _, err := b.Set(t.Context(), w); err != nil {
		t.Errorf("confirmed Set: %v", err)
	}
}

func TestFakeBalancerStatusDeltas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewFakeBalancer("e1")
		epoch, err := b.Claim(t.Context(), lb.Claim{ClusterUID: "u"})
		if err != nil {
			t.Fatal(err)
		}
		var s lb.Status
		next := func() lb.StatusDelta {
			t.Helper()
			d, err := b.Status(t.Context(), s.Cursor)
			if err != nil {
				t.Fatal(err)
			}
			s.Apply(d)
			return d
		}
		if d := next(); !d.Full || d.Epoch != epoch {
			t.Errorf("first delta: got %+v; want a full one of epoch %q", d, epoch)
		}
		set := func(revision uint64, lbs map[lb.UID]lb.LoadBalancer) {
			t.Helper()
			if _, err := b.Set(t.Context(), lb.Write{Epoch: epoch, Config: lb.Config{Revision: revision, LoadBalancers: lbs}}); err != nil {
				t.Fatal(err)
			}
		}
		time.AfterFunc(time.Second, func() { set(1, map[lb.UID]lb.LoadBalancer{"x": {}, "y": {}}) })
		if d := next(); d.Full || d.Revision != 1 || len(d.LoadBalancers) != 2 {
			t.Errorf("delta of the set: got %+v; want revision 1 with two load balancers", d)
		}
		b.SetMember("c", "n1", &lb.MemberStatus{State: healthcheck.Down})
		if d := next(); len(d.LoadBalancers) != 0 || d.Checks["c"].Members["n1"].State != healthcheck.Down {
			t.Errorf("delta of the member: got %+v; want n1 down and nothing else", d)
		}
		set(2, map[lb.UID]lb.LoadBalancer{"y": {}})
		if next(); len(s.LoadBalancers) != 1 {
			t.Errorf("after the removal: got %v; want y only", s.LoadBalancers)
		}
		start := time.Now()
		if d := next(); time.Since(start) != b.Wait || d.Full || len(d.LoadBalancers)+len(d.Checks) != 0 {
			t.Errorf("no change: got %+v after %s; want an empty delta after %s", d, time.Since(start), b.Wait)
		}
		b.Restart()
		if d := next(); !d.Full || len(d.LoadBalancers) != 1 {
			t.Errorf("after the restart: got %+v; want everything", d)
		}
		down := errors.New("down")
		time.AfterFunc(time.Second, func() { b.Down(down) })
		if _, err := b.Status(t.Context(), s.Cursor); !errors.Is(err, down) {
			t.Errorf("while down: got %v; want %v", err, down)
		}
		b.Down(nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.Status(ctx, s.Cursor); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cancelled: got %v; want DeadlineExceeded", err)
		}
	})
}

func TestFakeEngineHandsOver(t *testing.T) {
	first, second := NewFakeEngine(), NewFakeEngine()
	first.SetParcels(lb.Parcel{Data: []byte("a")}, lb.Parcel{Data: []byte("b")})
	var sent []lb.Parcel
	if err := first.HandOver(t.Context(), func(p lb.Parcel) error { sent = append(sent, p); return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Set(t.Context(), lb.Table{}); err == nil || !first.IsHandedOver() {
		t.Errorf("Set after HandOver: got %v; want an error", err)
	}
	if err := second.Adopt(t.Context(), func() (lb.Parcel, error) {
		if len(sent) == 0 {
			return lb.Parcel{}, io.EOF
		}
		p := sent[0]
		sent = sent[1:]
		return p, nil
	}); err != nil {
		t.Fatal(err)
	}
	if got := second.Adopted(); len(got) != 2 || string(got[1].Data) != "b" {
		t.Errorf("adopted: got %v; want both parcels in order", got)
	}
	if _, err := second.Set(t.Context(), lb.Table{}); err != nil {
		t.Errorf("Set after Adopt: %v", err)
	}
	if err := first.Resume(); err != nil {
		t.Errorf("Resume: %v", err)
	}
	if _, err := first.Set(t.Context(), lb.Table{}); err != nil {
		t.Errorf("Set after Resume: %v", err)
	}
}
