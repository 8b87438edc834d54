package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/eclusa-lb/eclusa/bench/contender"
	"github.com/eclusa-lb/eclusa/bench/traffic"
)

const (
	// swaps is how often a member is exchanged, ownSwaps how often by eclusa.
	swaps    = 100
	ownSwaps = 1000
	// effects is how often it is looked at when an exchange comes to effect.
	effects = 20
)

// only is the setup with a single node, i from 0.
func only(i int) contender.Setup {
	return contender.Setup{Members: []netip.Addr{contender.NodeAddr(i % contender.Nodes)}}
}

// measureSwap exchanges the only member for another again and again, under users who
// count what breaks: 100 connections with 2,000 requests a second, and eight that
// open one connection after the other.
func measureSwap(ctx context.Context, b *bed, t time.Duration) (v values, o *outcome, err error) {
	if b.Name() == "direct" {
		return nil, nil, errNothing
	}
	if err := b.restart(ctx, only(0)); err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, b.restart(ctx, contender.AllMembers())) }()
	p, err := b.client(traffic.Spec{
		Kind: traffic.Watch, Width: 100, Rate: 2000, Window: 8, Patience: 3 * time.Second,
		To: slices.Concat(b.targets(contender.RequestFrontend), b.targets(contender.CloseFrontend)),
	})
	if err != nil {
		return nil, nil, err
	}
	defer p.Stop()
	if err := p.Ready(); err != nil {
		return nil, nil, err
	}
	n, pause := swaps, 20*time.Millisecond
	timer, own := b.running.(interface{ Took() []time.Duration })
	if own {
		n, pause = ownSwaps, 2*time.Millisecond
	}
	if short(t) {
		n = 20
	}
	var asked []time.Duration
	var failed error
	o, err = b.watch(p, func() {
		for i := range n {
			begun := time.Now()
			if failed = b.running.Set(ctx, only(i+1)); failed != nil {
				break
			}
			asked = append(asked, time.Since(begun))
			time.Sleep(pause)
		}
		p.EndInput()
	})
	if err = errors.Join(failed, err); err != nil {
		return nil, nil, err
	}
	if own {
		asked = timer.Took()[1:]
	}
	effect, err := b.effects(ctx, n)
	if err != nil {
		return nil, nil, err
	}
	slices.Sort(asked)
	return values{
		"swap": float64(o.Failed), "swap.count": float64(n), "swap.answered": float64(o.All), "swap.effect": middle(effect), "swap.effect-most": milliseconds(effect[len(effect)-1]),
		"swap.call": middle(asked), "swap.call-p99": milliseconds(asked[len(asked)*99/100]),
	}, o, nil
}

// errNothing says that there is nothing to measure of a contender.
var errNothing = errors.New("nothing to measure")

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func middle(sorted []time.Duration) float64 { return milliseconds(sorted[len(sorted)/2]) }

// effects are the times from the call until a new connection goes to the new member,
// sorted.
func (b *bed) effects(ctx context.Context, from int) (all []time.Duration, err error) {
	for i := range effects {
		want := byte((from+1+i)%contender.Nodes) + 1
		// Set may return later than it is in force.
		begun, set := time.Now(), make(chan error, 1)
		go func() { set <- b.running.Set(ctx, only(from+1+i)) }()
		took, err := b.until(want, begun)
		if err := errors.Join(err, <-set); err != nil {
			return nil, err
		}
		all = append(all, took)
	}
	slices.Sort(all)
	return all, nil
}

// until opens connections until one is answered by the node, and returns how long after
// the given time that one was opened.
func (b *bed) until(want byte, begun time.Time) (time.Duration, error) {
	for {
		asked := time.Now()
		node, err := b.ask()
		if err != nil || node == want {
			return asked.Sub(begun), err
		}
		if time.Since(begun) > 10*time.Second {
			return 0, fmt.Errorf("after ten seconds node %d still answers; want node %d", node, want)
		}
	}
}

// ask opens a connection, and returns which node has answered.
func (b *bed) ask() (node byte, err error) {
	to := b.targets(contender.CloseFrontend)[0]
	err = b.network.Client.Net(func() error {
		c, err := net.DialTimeout("tcp", to.String(), 3*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
			return err
		}
		answer := make([]byte, 1)
		if _, err := c.Write(answer); err != nil {
			return err
		}
		_, err = c.Read(answer)
		node = answer[0]
		return err
	})
	return node, err
}

// deathPatience is how long users wait for an answer.
const deathPatience = 8 * time.Second

// measureDeath silences a node, as when it loses its power, under 1,000 connections
// with 2,000 requests a second and 200 new connections a second. The load balancer
// has to find out by itself.
func measureDeath(ctx context.Context, b *bed, t time.Duration) (v values, o *outcome, err error) {
	if b.Name() == "direct" {
		return nil, nil, errNothing
	}
	setup := contender.AllMembers()
	setup.Checked = true
	if err := b.restart(ctx, setup); err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, b.restart(ctx, contender.AllMembers())) }()
	long, look := 1000, 14*time.Second
	if short(t) {
		long, look = 50, 2*time.Second
	}
	p, err := b.client(traffic.Spec{
		Kind: traffic.Watch, Width: long, Rate: 2000, Brief: 200, Patience: deathPatience,
		To: slices.Concat(b.targets(contender.RequestFrontend), b.targets(contender.CloseFrontend)),
	})
	if err != nil {
		return nil, nil, err
	}
	defer p.Stop()
	if err := p.Ready(); err != nil {
		return nil, nil, err
	}
	var died time.Time
	var failed error
	o, err = b.watch(p, func() {
		defer p.EndInput()
		time.Sleep(max(t, time.Second)) // checks have had their turn
		var restore func() error
		died = time.Now()
		if restore, failed = b.network.Silence(0); failed == nil {
			time.Sleep(look)
			failed = restore()
		}
	})
	if err = errors.Join(failed, err); err != nil {
		return nil, nil, err
	}
	v = values{"death.failed": 0, "death.reset": 0, "death.hung": 0, "death": 0, "death.last-failed": 0}
	for why, n := range o.Failures {
		switch {
		case strings.HasPrefix(why, "short:"):
			v["death.failed"] += float64(n)
		case strings.Contains(why, "in time"):
			v["death.hung"] += float64(n)
		default:
			v["death.reset"] += float64(n)
		}
	}
	if o.LastSlow.After(died) {
		v["death"] = o.LastSlow.Sub(died).Seconds()
	}
	if o.LastLost.After(died) {
		v["death.last-failed"] = o.LastLost.Sub(died).Seconds()
	}
	v["death.never"] = 0
	if v["death"] > look.Seconds()-1 {
		v["death.never"] = 1
	}
	return v, o, nil
}

// sizes are the numbers of load balancers.
var sizes = []int{10, 1000, 10_000}

// measureSize measures the load balancer that is measured always among others.
func measureSize(ctx context.Context, b *bed, t time.Duration) (v values, o *outcome, err error) {
	if b.Name() == "direct" {
		return nil, nil, errNothing
	}
	defer func() { err = errors.Join(err, b.restart(ctx, contender.AllMembers())) }()
	v = values{}
	// In a new order each time: what one leaves in TIME_WAIT costs those that follow.
	all := slices.Clone(sizes)
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	if short(t) {
		all = sizes[:1]
	}
	for _, n := range all {
		setup := contender.AllMembers()
		setup.Others = n - 1
		begun := time.Now()
		if err := b.restart(ctx, setup); err != nil {
			return nil, nil, err
		}
		took := time.Since(begun)
		var r, c values
		if r, o, err = measureRequests(ctx, b, t); err != nil {
			return nil, nil, err
		}
		if c, o, err = measureConnections(ctx, b, t); err != nil {
			return nil, nil, err
		}
		name := func(s string) string { return fmt.Sprintf("size.%s-%d", s, n) }
		v[name("requests")], v[name("connections")], v[name("start")] = r["requests"], c["connections"], took.Seconds()
		v[name("requests.cpu")], v[name("connections.cpu")] = r["requests.cpu"], c["connections.cpu"]
	}
	return v, o, nil
}
