package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/eclusa-lb/eclusa/bench/contender"
	"github.com/eclusa-lb/eclusa/bench/traffic"
	"github.com/eclusa-lb/eclusa/lb"
)

// values are figures by metric.
type values map[string]float64

// measure is one thing that is measured of every contender.
type measure struct {
	name     string
	title    string
	protocol lb.Protocol
	run      func(ctx context.Context, b *bed, t time.Duration) (values, *outcome, error)
}

// The measures, in the order of the report.
var measures = []measure{
	{"requests", "requests on kept connections", lb.TCP, measureRequests},
	{"connections", "new connections", lb.TCP, measureConnections},
	{"bulk", "throughput of one stream", lb.TCP, func(_ context.Context, b *bed, t time.Duration) (values, *outcome, error) {
		return measureBulk(b, "bulk", 1, t)
	}},
	{"bulk8", "throughput of eight streams", lb.TCP, func(_ context.Context, b *bed, t time.Duration) (values, *outcome, error) {
		return measureBulk(b, "bulk8", 8, t)
	}},
	{"latency", "latency at a fixed load", lb.TCP, measureLatency},
	{"echo", "UDP round trips", lb.UDP, measureEcho},
	{"flood", "UDP one way", lb.UDP, measureFlood},
	{"timewait", "new connections to nodes full of TIME_WAIT", lb.TCP, measureTimeWait},
	{"idle", "idle connections", lb.TCP, measureIdle},
	{"swap", "exchange of a member", lb.TCP, measureSwap},
	{"death", "death of a member", lb.TCP, measureDeath},
	{"size", "cost against the number of load balancers", lb.TCP, measureSize},
}

func findMeasures(names []string) (found []measure, err error) {
	for _, name := range names {
		i := slices.IndexFunc(measures, func(m measure) bool { return m.name == name })
		if i < 0 {
			var all []string
			for _, m := range measures {
				all = append(all, m.name)
			}
			return nil, fmt.Errorf("measure %q: there is none of that name; there are %q", name, all)
		}
		found = append(found, measures[i])
	}
	return found, nil
}

// warm is how much goes before what is measured: congestion windows and buffers
// grow, caches fill.
func warm(t time.Duration) time.Duration { return min(t/4, 500*time.Millisecond) }

// short tells whether there is only time to see that everything works.
func short(t time.Duration) bool { return t < time.Second }

// per is a cost of one operation in microseconds.
func per(cost time.Duration, operations int64) float64 {
	return float64(cost.Nanoseconds()) / 1000 / float64(max(operations, 1))
}

func measureRequests(_ context.Context, b *bed, t time.Duration) (values, *outcome, error) {
	o, err := b.load(traffic.Spec{Kind: traffic.Requests, Width: 64, Warm: warm(t), Time: t}, contender.RequestFrontend)
	if err != nil {
		return nil, nil, err
	}
	if o.Failed > 0 {
		return nil, nil, fmt.Errorf("%d connections were lost: %v", o.Failed, o.Failures)
	}
	return values{"requests": float64(o.Done) / o.Seconds, "requests.cpu": per(o.CPU, o.All), "requests.edge-cpu": per(o.EdgeCPU, o.All)}, o, nil
}

// Connections end by the nodes, which are left with the sockets in TIME_WAIT.
func measureConnections(_ context.Context, b *bed, t time.Duration) (values, *outcome, error) {
	o, err := b.load(traffic.Spec{Kind: traffic.Connections, Width: 64, Warm: warm(t), Time: t}, contender.CloseFrontend)
	if err != nil {
		return nil, nil, err
	}
	return values{
		"connections": float64(o.Done) / o.Seconds, "connections.cpu": per(o.CPU, o.All), "connections.edge-cpu": per(o.EdgeCPU, o.All),
		"connections.failed": float64(o.Failed), "connections.resent": float64(o.Resent) / float64(max(o.All, 1)),
	}, o, nil
}

func measureBulk(b *bed, name string, streams int, t time.Duration) (values, *outcome, error) {
	o, err := b.load(traffic.Spec{Kind: traffic.Bulk, Width: streams, Warm: warm(t), Time: t}, contender.BulkFrontend)
	if err != nil {
		return nil, nil, err
	}
	if o.Failed > 0 {
		return nil, nil, fmt.Errorf("%d streams were lost: %v", o.Failed, o.Failures)
	}
	gigabytes := float64(o.AllBytes) / 1e9
	return values{
		name: float64(o.Bytes) * 8 / 1e9 / o.Seconds, name + ".cpu": o.CPU.Seconds() / gigabytes, name + ".edge-cpu": o.EdgeCPU.Seconds() / gigabytes,
	}, o, nil
}

// The fixed loads are moderate: nobody is busy, so what is seen is the way and not
// the queue.
const (
	steadyRequests    = 2000
	steadyConnections = 800
)

func measureLatency(_ context.Context, b *bed, t time.Duration) (values, *outcome, error) {
	r, err := b.load(traffic.Spec{Kind: traffic.SteadyRequests, Width: 16, Rate: steadyRequests, Warm: warm(t), Time: t}, contender.RequestFrontend)
	if err != nil {
		return nil, nil, err
	}
	c, err := b.load(traffic.Spec{Kind: traffic.SteadyConnections, Width: 1, Rate: steadyConnections, Warm: warm(t), Time: t}, contender.CloseFrontend)
	if err != nil {
		return nil, nil, err
	}
	if r.Latency == nil || c.Latency == nil {
		return nil, nil, fmt.Errorf("no request was answered: %v, %v", r.Failures, c.Failures)
	}
	return values{
		"latency.request-p50": r.Latency.P50, "latency.request-p99": r.Latency.P99,
		"latency.connection-p50": c.Latency.P50, "latency.connection-p99": c.Latency.P99,
	}, c, nil
}

func measureEcho(_ context.Context, b *bed, t time.Duration) (values, *outcome, error) {
	o, err := b.load(traffic.Spec{Kind: traffic.Echo, Width: 16, Window: 32, Warm: warm(t), Time: t}, contender.EchoFrontend)
	if err != nil {
		return nil, nil, err
	}
	return values{"echo": float64(o.Done) / o.Seconds, "echo.cpu": per(o.CPU, o.All), "echo.edge-cpu": per(o.EdgeCPU, o.All)}, o, nil
}

func measureFlood(_ context.Context, b *bed, t time.Duration) (values, *outcome, error) {
	o, err := b.load(traffic.Spec{Kind: traffic.Flood, Width: 16, Window: 32, Warm: warm(t), Time: t}, contender.SinkFrontend)
	if err != nil {
		return nil, nil, err
	}
	// Datagrams are counted from the first to the last, with the warm-up.
	return values{"flood": float64(o.Arrived) / (warm(t).Seconds() + o.Seconds), "flood.arrived": float64(o.Arrived) / float64(max(o.All, 1))}, o, nil
}
