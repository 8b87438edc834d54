package edge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// randomStatus returns some load balancers and members.
func randomStatus(r *rand.Rand) (map[lb.UID]lb.LoadBalancerStatus, map[lb.CheckID]map[lb.NodeName]lb.MemberStatus) {
	lbs := make(map[lb.UID]lb.LoadBalancerStatus)
	for i := range 6 {
		if r.IntN(3) > 0 {
			s := lb.LoadBalancerStatus{Applied: r.IntN(2) == 0}
			if !s.Applied {
				s.Problems = []lb.Problem{{Type: "invalid", Detail: fmt.Sprint(r.IntN(2))}}
			}
			lbs[lb.UID(fmt.Sprint("u", i))] = s
		}
	}
	checks := make(map[lb.CheckID]map[lb.NodeName]lb.MemberStatus)
	for c := range 3 {
		if r.IntN(4) == 0 {
			continue
		}
		members := make(map[lb.NodeName]lb.MemberStatus)
		for n := range 4 {
			if r.IntN(3) > 0 {
				members[lb.NodeName(fmt.Sprint("n", n))] = lb.MemberStatus{State: healthcheck.State(r.IntN(4))}
			}
		}
		checks[lb.CheckID(fmt.Sprint("c", c))] = members
	}
	return lbs, checks
}

// Whoever follows the deltas, however slowly, knows the whole truth.
func TestDeltasAddUp(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	s := newStatusLog("i")
	readers := make([]lb.Status, 4)
	for round := range 400 {
		lbs, checks := randomStatus(r)
		s.setLoadBalancers(uint64(round), lbs)
		s.setMembers(checks)
		s.setHead(func(h *head) { h.digest = lb.Digest(fmt.Sprint(round / 3)) })
		if r.IntN(50) == 0 {
			s.mu.Lock()
			s.forget()
			s.mu.Unlock()
		}
		for i := range readers {
			if r.IntN(i+1) > 0 {
				continue // this one is slow
			}
			d, _ := s.delta(readers[i].Cursor)
			readers[i].Apply(d)
			want := lb.Status{Cursor: d.Cursor, Revision: uint64(round), Digest: lb.Digest(fmt.Sprint(round / 3)), Durable: true, LoadBalancers: lbs, Checks: checks}
			for id, members := range checks {
				if len(members) == 0 {
					delete(want.Checks, id)
				}
			}
			if diff := cmp.Diff(want, readers[i], cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("round %d, reader %d (-want +got):\n%s", round, i, diff)
			}
		}
	}
}

func TestTombstonesAreBounded(t *testing.T) {
	s := newStatusLog("i")
	first, _ := s.delta("")
	const at = 1000
	for i := range 4 * maxTombstones / at {
		now := make(map[lb.UID]lb.LoadBalancerStatus)
		for j := range at {
			now[lb.UID(fmt.Sprint(i, " ", j))] = lb.LoadBalancerStatus{Applied: true}
		}
		s.setLoadBalancers(1, now)
	}
	if n := len(s.lbs); n > maxTombstones+2*at {
		t.Errorf("the log remembers %d entries; want at most %d", n, maxTombstones+2*at)
	}
	if d, _ := s.delta(first.Cursor); !d.Full || len(d.LoadBalancers) != at {
		t.Errorf("delta for a cursor from before: got full %v with %d entries; want everything", d.Full, len(d.LoadBalancers))
	}
}

func TestCursors(t *testing.T) {
	s := newStatusLog("i")
	s.setLoadBalancers(1, map[lb.UID]lb.LoadBalancerStatus{"u": {Applied: true}})
	d, _ := s.delta("")
	for _, c := range []lb.Cursor{"", "j.2", "i.", "i.x", "i.99", "i.0", "2", "i.-1"} {
		if d, _ := s.delta(c); !d.Full {
			t.Errorf("cursor %q: got a delta; want everything", c)
		}
	}
	if d, _ := s.delta(d.Cursor); d.Full || len(d.LoadBalancers) > 0 {
		t.Errorf("current cursor: got %+v; want an empty delta", d)
	}
}

func TestStatusWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStatusLog("i")
		d, err := s.wait(t.Context(), "")
		if err != nil || !d.Full {
			t.Fatalf("unknown cursor: got %+v, %v; want everything at once", d, err)
		}
		start := time.Now()
		if again, err := s.wait(t.Context(), d.Cursor); err != nil || again.Cursor != d.Cursor || time.Since(start) != statusWait {
			t.Errorf("no change: got %+v, %v after %s; want the same cursor after %s", again, err, time.Since(start), statusWait)
		}
		time.AfterFunc(time.Second, func() { s.setHead(func(h *head) { h.epoch = "e" }) })
		start = time.Now()
		if again, err := s.wait(t.Context(), d.Cursor); err != nil || again.Epoch != "e" || time.Since(start) != time.Second+statusGather {
			t.Errorf("a change: got %+v, %v after %s; want it after 1s and what comes with it", again, err, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		d, _ = s.delta("")
		if _, err := s.wait(ctx, d.Cursor); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("context ended: got %v; want DeadlineExceeded", err)
		}
	})
}

// The texts of errors change from probe to probe, and that alone is no news.
func TestErrorTextsAreNoNews(t *testing.T) {
	s := newStatusLog("i")
	say := func(text string, state healthcheck.State) lb.Cursor {
		s.setMembers(map[lb.CheckID]map[lb.NodeName]lb.MemberStatus{"c": {"n": {State: state, Reason: healthcheck.Refused, Error: text}}})
		d, _ := s.delta("")
		return d.Cursor
	}
	first := say("from port 1", healthcheck.Down)
	if got := say("from port 2", healthcheck.Down); got != first {
		t.Error("another text alone made a new version")
	}
	if got := say("from port 2", healthcheck.Unknown); got == first {
		t.Error("another state made no new version")
	}
}
