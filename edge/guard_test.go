package edge

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// sized is a configuration with so many load balancers and nodes.
func sized(lbs, nodes int) lb.Config {
	c := lb.Config{LoadBalancers: map[lb.UID]lb.LoadBalancer{}, Nodes: map[lb.NodeName]lb.Node{}}
	for i := range lbs {
		c.LoadBalancers[lb.UID(fmt.Sprintf("u%03d", i))] = lb.LoadBalancer{}
	}
	for i := range nodes {
		c.Nodes[lb.NodeName(fmt.Sprintf("n%03d", i))] = lb.Node{}
	}
	return c
}

func TestGuard(t *testing.T) {
	start := time.Unix(1000, 0)
	for _, c := range []struct {
		name          string
		before, after lb.Config
		held          int
	}{
		{"half", sized(10, 10), sized(5, 10), 0},
		{"more than half", sized(10, 10), sized(4, 10), 6},
		{"three of three", sized(3, 3), sized(0, 0), 0},
		{"four of four", sized(4, 3), sized(0, 3), 4},
		{"all nodes, few of many objects", sized(100, 5), sized(100, 0), 5},
		{"both", sized(10, 10), sized(0, 0), 20},
		{"growth", sized(10, 10), sized(20, 20), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var g guard
			g.note(c.before, start)
			err := g.check(c.before, c.after, nil, start.Add(time.Minute))
			held, _ := errors.AsType[*lb.RemovalHeldError](err)
			if c.held == 0 {
				if err != nil {
					t.Fatalf("got %v; want nothing held", err)
				}
				return
			}
			if held == nil || len(held.Keys) != c.held || !slices.IsSorted(held.Keys) {
				t.Fatalf("got %v; want %d sorted keys held", err, c.held)
			}
			if err := g.check(c.before, c.after, held.Keys[1:], start.Add(time.Minute)); !errors.Is(err, lb.ErrRemovalHeld) {
				t.Errorf("with one key missing: got %v; want ErrRemovalHeld", err)
			}
			if err := g.check(c.before, c.after, append([]string{"nodes/other"}, held.Keys...), start.Add(time.Minute)); !errors.Is(err, lb.ErrRemovalHeld) {
				t.Errorf("with one key too many: got %v; want ErrRemovalHeld", err)
			}
			slices.Reverse(held.Keys)
			if err := g.check(c.before, c.after, held.Keys, start.Add(time.Minute)); err != nil {
				t.Errorf("confirmed: got %v; want nil", err)
			}
		})
	}
}

func TestGuardAddsUpSmallRemovals(t *testing.T) {
	var g guard
	now := time.Unix(1000, 0)
	g.note(sized(10, 0), now)
	step := func(from, to int) error {
		now = now.Add(time.Minute)
		err := g.check(sized(from, 0), sized(to, 0), nil, now)
		if err == nil {
			g.note(sized(to, 0), now)
		}
		return err
	}
	for n := 10; n > 5; n-- {
		if err := step(n, n-1); err != nil {
			t.Fatalf("from %d: %v", n, err)
		}
	}
	if err := step(5, 4); !errors.Is(err, lb.ErrRemovalHeld) {
		t.Errorf("the sixth of ten within ten minutes: got %v; want ErrRemovalHeld", err)
	}
	now = now.Add(guardWindow)
	if err := step(5, 4); err != nil {
		t.Errorf("after ten quiet minutes: got %v; want nil", err)
	}
}

// Short-lived entries that come and go are no loss.
func TestGuardLetsChurnPass(t *testing.T) {
	var g guard
	now := time.Unix(1000, 0)
	g.note(sized(5, 0), now)
	for range 50 {
		for _, change := range [][2]int{{5, 7}, {7, 5}} {
			now = now.Add(time.Second)
			if err := g.check(sized(change[0], 0), sized(change[1], 0), nil, now); err != nil {
				t.Fatal(err)
			}
			g.note(sized(change[1], 0), now)
		}
	}
	if n := len(g.loadBalancers); n > 3 {
		t.Errorf("the guard remembers %d sizes; want it to be bounded", n)
	}
}

func TestGuardForgetsWhatWasConfirmed(t *testing.T) {
	var g guard
	now := time.Unix(1000, 0)
	before, after := sized(100, 0), sized(10, 0)
	g.note(before, now)
	held, _ := errors.AsType[*lb.RemovalHeldError](g.check(before, after, nil, now))
	if held == nil {
		t.Fatal("want the removal held")
	}
	if err := g.check(before, after, held.Keys, now); err != nil {
		t.Fatal(err)
	}
	g.note(after, now)
	if err := g.check(after, sized(9, 0), nil, now.Add(time.Second)); err != nil {
		t.Errorf("one more of the ten that are left: got %v; want nil", err)
	}
}
