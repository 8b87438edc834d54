package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/eclusa-lb/eclusa/bench/contender"
	"github.com/eclusa-lb/eclusa/edge"
	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

const (
	cluster = lb.Cluster("scale")
	// changes is how often each change is made.
	changes = 9
)

// inside measures one size and prints the result.
func inside(ctx context.Context, s size) error {
	if err := contender.PrepareEdge(); err != nil {
		return err
	}
	r := result{size: s}
	if err := r.engine(ctx); err != nil {
		return err
	}
	if err := r.edge(ctx); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// median makes a change again and again.
func median(change func(i int) error) (float64, error) {
	var all []time.Duration
	for i := range changes {
		begun := time.Now()
		if err := change(i); err != nil {
			return 0, err
		}
		all = append(all, time.Since(begun))
	}
	slices.Sort(all)
	return milliseconds(all[len(all)/2]), nil
}

// config has Services with a port each, and nodes that all of them use.
func (s size) config(revision uint64) lb.Config {
	c := lb.Config{Revision: revision, Nodes: map[lb.NodeName]lb.Node{}, Pools: map[lb.PoolName]lb.Pool{"all": {}}, LoadBalancers: map[lb.UID]lb.LoadBalancer{}}
	for i := range s.Nodes {
		c.Nodes[nodeName(i)] = lb.Node{Addresses: []netip.Addr{contender.ManyAddr(i)}}
		c.Pools["all"][nodeName(i)] = lb.Member{}
	}
	for i := range s.Services {
		c.LoadBalancers[lb.UID(fmt.Sprintf("u%d", i))] = loadBalancer(i)
	}
	return c
}

func nodeName(i int) lb.NodeName { return lb.NodeName(fmt.Sprintf("n%d", i)) }

// loadBalancer is a Service with a port. Nobody probes: that has a benchmark of its
// own.
func loadBalancer(i int) lb.LoadBalancer {
	return lb.LoadBalancer{
		Name: fmt.Sprintf("default/s%d", i), ClaimTime: time.Unix(int64(i), 0).UTC(), Pool: "all", FailOpen: true,
		Addresses:   []netip.Addr{contender.VIP(i)},
		Listeners:   []lb.Listener{{Protocol: lb.TCP, Port: 80, TargetPort: uint16(10000 + i%50000)}},
		HealthCheck: lb.HealthCheck{Spec: healthcheck.Spec{Protocol: healthcheck.None}},
	}
}

func policies() map[lb.Cluster]lb.Policy {
	return map[lb.Cluster]lb.Policy{cluster: {
		AddressRanges: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/16")}, NodeRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
	}}
}

// engine measures the engine without an edge: what a change of health is.
func (r *result) engine(ctx context.Context) error {
	e, err := contender.NewEngine(r.Engine)
	if err != nil {
		return err
	}
	defer stop(e)
	c := r.config(1)
	for uid, l := range c.LoadBalancers {
		l.HealthCheck = lb.HealthCheck{Spec: healthcheck.Spec{Protocol: healthcheck.TCP}, Port: 10256}
		c.LoadBalancers[uid] = l
	}
	p := lb.Prepare(lb.Input{Host: lb.Host{Capabilities: e.Capabilities()}, Policies: policies(), Configs: map[lb.Cluster]lb.Config{cluster: c}})
	set := func(down lb.NodeName) error {
		o := p.Outcome(func(_ lb.Cluster, _ lb.HealthCheck, node lb.NodeName) lb.MemberHealth {
			h := lb.MemberHealth{State: healthcheck.Up}
			if node == down {
				h.State = healthcheck.Down
			}
			return h
		})
		if len(o.Table.Routes) != r.Services {
			return fmt.Errorf("the table has %d routes; want %d", len(o.Table.Routes), r.Services)
		}
		_, err := e.Set(ctx, o.Table)
		return err
	}
	begun := time.Now()
	if err := set(""); err != nil {
		return err
	}
	r.Load = milliseconds(time.Since(begun))
	r.Health, err = median(func(i int) error { return set(nodeName(i % r.Nodes)) })
	return err
}

func stop(e lb.Engine) {
	now, cancel := context.WithCancel(context.Background())
	cancel()
	_ = e.Shutdown(now)
}

// edge measures a whole edge, as a cluster sees it.
func (r *result) edge(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "eclusa-scale-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	engine, err := contender.NewEngine(r.Engine)
	if err != nil {
		return err
	}
	checker := healthcheck.New(healthcheck.Options{})
	e, err := edge.New(edge.Options{Name: "edge", Version: "scale", StateDir: dir, Engine: engine, Checker: checker, Log: zap.NewNop(), Clusters: policies()})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var all errgroup.Group
	all.Go(func() error { return checker.Run(ctx) })
	all.Go(func() error { return e.Run(ctx) })
	defer func() {
		cancel()
		err = errors.Join(err, all.Wait())
	}()
	w := &writer{balancer: e.Cluster(cluster)}
	if w.epoch, err = w.balancer.Claim(ctx, lb.Claim{ClusterUID: "scale", LeaseUID: "scale", LeaseTransitions: 1, Holder: "scale"}); err != nil {
		return err
	}
	c := r.config(1)
	begun := time.Now()
	if err := w.write(ctx, c); err != nil {
		return err
	}
	r.Start = milliseconds(time.Since(begun))
	r.Served = w.served
	r.Node, err = median(func(i int) error {
		c = with(c)
		n := c.Nodes[nodeName(i%r.Nodes)]
		n.Draining = !n.Draining
		c.Nodes[nodeName(i%r.Nodes)] = n
		return w.write(ctx, c)
	})
	if err != nil {
		return err
	}
	r.Service, err = median(func(i int) error {
		c = with(c)
		c.LoadBalancers[lb.UID(fmt.Sprintf("more%d", i))] = loadBalancer(r.Services + i)
		return w.write(ctx, c)
	})
	r.Memory = memory()
	return err
}

// with is a copy that may be changed, one revision on.
func with(c lb.Config) lb.Config {
	c.Revision++
	c.Nodes, c.LoadBalancers = maps.Clone(c.Nodes), maps.Clone(c.LoadBalancers)
	return c
}

// writer is the cluster.
type writer struct {
	balancer lb.Balancer
	epoch    lb.Epoch
	cursor   lb.Cursor
	served   int
}

// write writes a configuration and waits until it is applied.
func (w *writer) write(ctx context.Context, c lb.Config) error {
	if _, err := w.balancer.Set(ctx, lb.Write{Epoch: w.epoch, Config: c}); err != nil {
		return err
	}
	for {
		d, err := w.balancer.Status(ctx, w.cursor)
		if err != nil {
			return err
		}
		w.cursor = d.Cursor
		for _, l := range d.LoadBalancers {
			if l != nil && l.Applied {
				w.served++
			}
		}
		if d.Revision >= c.Revision {
			return nil
		}
	}
}

// memory is that of this process in megabytes.
func memory() float64 {
	text, _ := os.ReadFile("/proc/self/status")
	for line := range bytes.Lines(text) {
		if rest, ok := bytes.CutPrefix(line, []byte("VmRSS:")); ok {
			kilobytes, _ := strconv.Atoi(string(bytes.Fields(rest)[0]))
			return float64(kilobytes) / 1000
		}
	}
	return 0
}
