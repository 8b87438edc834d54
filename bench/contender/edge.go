package contender

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/eclusa-lb/eclusa/bench/traffic"
	"github.com/eclusa-lb/eclusa/edge"
	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// RunEdge is the process of a whole edge around an engine: checks decide about
// members, as they do for users. It ends with its input.
func RunEdge(argument json.RawMessage) error {
	var o order
	if err := json.Unmarshal(argument, &o); err != nil {
		return err
	}
	engine, err := NewEngine(o.Engine)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "eclusa-bench-edge-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	checker := healthcheck.New(healthcheck.Options{})
	const cluster = lb.Cluster("bench")
	e, err := edge.New(edge.Options{
		Name: "edge", Version: "bench", StateDir: dir, Engine: engine, Checker: checker, Log: zap.NewNop(),
		Clusters: map[lb.Cluster]lb.Policy{cluster: {AddressRanges: []netip.Prefix{vipRange}, NodeRanges: []netip.Prefix{netip.MustParsePrefix("10.72.0.0/16")}}},
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var all errgroup.Group
	all.Go(func() error { return checker.Run(ctx) })
	all.Go(func() error { return e.Run(ctx) })
	if err := publish(ctx, e.Cluster(cluster), o.Setup.config()); err != nil {
		cancel()
		return errors.Join(err, all.Wait())
	}
	if err := json.NewEncoder(os.Stdout).Encode(report{}); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, bufio.NewReader(os.Stdin))
	cancel()
	return all.Wait()
}

// publish writes a cluster's configuration for the first time.
func publish(ctx context.Context, b lb.Balancer, c lb.Config) error {
	epoch, err := b.Claim(ctx, lb.Claim{ClusterUID: "bench", LeaseUID: "bench", LeaseTransitions: 1, Holder: "bench"})
	if err != nil {
		return err
	}
	_, err = b.Set(ctx, lb.Write{Epoch: epoch, Config: c})
	return err
}

// config is the setup as clusters write it.
func (s Setup) config() lb.Config {
	c := lb.Config{Revision: 1, Nodes: map[lb.NodeName]lb.Node{}, Pools: map[lb.PoolName]lb.Pool{"nodes": {}}, LoadBalancers: map[lb.UID]lb.LoadBalancer{}}
	for i, m := range s.Members {
		name := lb.NodeName(fmt.Sprintf("n%d", i+1))
		c.Nodes[name] = lb.Node{Addresses: []netip.Addr{m}}
		c.Pools["nodes"][name] = lb.Member{}
	}
	l := lb.LoadBalancer{
		Name: "bench/web", ClaimTime: time.Unix(1, 0).UTC(), Addresses: []netip.Addr{VIP(0)}, Pool: "nodes", FailOpen: true,
		HealthCheck: lb.HealthCheck{Spec: healthcheck.Spec{Protocol: healthcheck.TCP}, Port: traffic.RequestPort},
		OnUnhealthy: lb.OnUnhealthyReset,
	}
	for _, f := range Frontends {
		l.Listeners = append(l.Listeners, lb.Listener{Protocol: f.Protocol, Port: f.Port, TargetPort: f.TargetPort})
	}
	c.LoadBalancers["bench"] = l
	return c
}
