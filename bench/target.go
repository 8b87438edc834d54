package main

import (
	"fmt"
	"math"

	"github.com/eclusa-lb/eclusa/bench/figure"
)

// target is what a figure is to be.
type target struct {
	engine, text string
	// of is what was measured, NaN if it was not.
	of func(s figure.Samples) figure.Estimate
	// want is the least, or the most, that meets the target.
	want   float64
	atMost bool
	// every says that no round may miss it.
	every bool
	unit  string
}

// met tells whether the interval includes what is wanted or is better.
func (t target) met(e figure.Estimate) bool {
	switch {
	case t.every && t.atMost:
		return e.Most <= t.want
	case t.every:
		return e.Smallest >= t.want
	case t.atMost:
		return e.Low <= t.want
	}
	return e.High >= t.want
}

// verdict is the word for it.
func (t target) verdict(e figure.Estimate) string {
	switch {
	case e.N == 0 || math.IsNaN(e.Median):
		return "not measured"
	case t.met(e):
		return "met"
	}
	return "**not met**"
}

func (t target) wanted() string {
	sign := "≥"
	if t.atMost {
		sign = "≤"
	}
	return fmt.Sprintf("%s %s%s", sign, number(t.want), t.unit)
}

func ratio(engine, reference, metric string) func(figure.Samples) figure.Estimate {
	return func(s figure.Samples) figure.Estimate { return figure.Of(s.Ratios(engine, reference, metric)) }
}

func value(engine, metric string) func(figure.Samples) figure.Estimate {
	return func(s figure.Samples) figure.Estimate { return figure.Of(s.Values(engine, metric)) }
}

// growth is the cost with the largest number of load balancers to that with the
// smallest.
func growth(engine, metric string) func(figure.Samples) figure.Estimate {
	return func(s figure.Samples) figure.Estimate {
		return figure.Of(s.Across(engine, sized(metric, sizes[len(sizes)-1]), engine, sized(metric, sizes[0])))
	}
}

func sized(metric string, n int) string { return fmt.Sprintf("size.%s-%d", metric, n) }

// targets are those that the project has set itself.
func targets() []target {
	all := []target{
		{engine: "proxy", text: "requests/s against HAProxy", of: ratio("proxy", "haproxy", "requests"), want: .95},
		{engine: "proxy", text: "new connections/s against HAProxy", of: ratio("proxy", "haproxy", "connections"), want: .95},
		{engine: "proxy", text: "sustained new connections/s against HAProxy", of: ratio("proxy", "haproxy", "timewait.sustained"), want: .95},
		{engine: "proxy", text: "one stream against HAProxy", of: ratio("proxy", "haproxy", "bulk"), want: 2},
		{engine: "proxy", text: "eight streams against HAProxy", of: ratio("proxy", "haproxy", "bulk8"), want: 2},
		{engine: "proxy", text: "one stream against HAProxy with buffers of 128 kB", of: ratio("proxy", "haproxy-buffers", "bulk"), want: 1},
		{engine: "proxy", text: "eight streams against HAProxy with buffers of 128 kB", of: ratio("proxy", "haproxy-buffers", "bulk8"), want: 1},
		{engine: "proxy", text: "p99 of requests at a fixed load against HAProxy", of: ratio("proxy", "haproxy", "latency.request-p99"), want: 1, atMost: true},
		{engine: "proxy", text: "p99 of new connections at a fixed load against HAProxy", of: ratio("proxy", "haproxy", "latency.connection-p99"), want: 1, atMost: true},
		{engine: "proxy", text: "UDP round trips/s against nginx", of: ratio("proxy", "nginx", "echo"), want: 1},
		{engine: "proxy", text: "UDP one way against nginx", of: ratio("proxy", "nginx", "flood"), want: 1},
		{engine: "proxy", text: "memory of an idle connection, user and kernel", of: value("proxy", "idle"), want: 12_000, atMost: true, unit: " B"},
		{engine: "proxy", text: "descriptors of an idle connection", of: value("proxy", "idle.files"), want: 2, atMost: true},
		{engine: "nftables", text: "requests/s against HAProxy", of: ratio("nftables", "haproxy", "requests"), want: 1.3},
		{engine: "nftables", text: "sustained new connections/s against HAProxy", of: ratio("nftables", "haproxy", "timewait.sustained"), want: 1.1},
		{engine: "nftables", text: "SYNs sent again, nodes full of TIME_WAIT", of: value("nftables", "timewait.resent"), want: .01, atMost: true},
		{engine: "nftables", text: "p99 of new connections, nodes full of TIME_WAIT", of: value("nftables", "timewait"), want: 2000, atMost: true, unit: " µs"},
		{engine: "nftables", text: "cost of a request with 10,000 load balancers against 10", of: growth("nftables", "requests.cpu"), want: 1.1, atMost: true},
		{engine: "nftables", text: "cost of a connection with 10,000 load balancers against 10", of: growth("nftables", "connections.cpu"), want: 1.1, atMost: true},
	}
	for _, rules := range []struct{ name, title string }{{"rules", "plain nftables"}, {"rules-pool", "plain nftables with a source pool"}} {
		for _, m := range primary {
			t := target{engine: "nftables", text: m.title + " against " + rules.title, of: ratio("nftables", rules.name, m.metric), want: .95}
			if m.less {
				t.want, t.atMost = 1/.95, true
			}
			all = append(all, t)
		}
	}
	for _, engine := range []string{"proxy", "nftables"} {
		all = append(all,
			target{engine: engine, text: "errors in 1,000 swaps", of: value(engine, "swap"), atMost: true, every: true},
			target{engine: engine, text: "a swap is in effect after", of: value(engine, "swap.effect"), want: 5, atMost: true, unit: " ms"},
			target{engine: engine, text: "new connections that fail when a member dies silently", of: value(engine, "death.failed"), want: 1, atMost: true, every: true},
			target{engine: engine, text: "connections that hang until the client gives up", of: value(engine, "death.hung"), atMost: true, every: true},
		)
	}
	return append(all,
		target{engine: "health checks", text: "probes/s of 100,000 targets on one core", of: value("healthcheck", "probing"), want: 10_000},
		target{engine: "health checks", text: "memory beside the program's own", of: value("healthcheck", "probing.growth"), want: 30, atMost: true, unit: " MB"},
		target{engine: "health checks", text: "p99 of how late probes start", of: value("healthcheck", "probing.lag"), want: 50, atMost: true, unit: " ms"},
	)
}

// figureRow is a metric that the report shows of all contenders.
type figureRow struct {
	metric, title, unit string
	// less says that less is better.
	less bool
}

// primary are what engines are compared by.
var primary = []figureRow{
	{"requests", "requests/s", "/s", false},
	{"connections", "new connections/s", "/s", false},
	{"timewait.sustained", "sustained new connections/s", "/s", false},
	{"bulk", "one stream", " Gb/s", false},
	{"bulk8", "eight streams", " Gb/s", false},
	{"echo", "UDP round trips/s", "/s", false},
	{"flood", "UDP one way", "/s", false},
	{"latency.request-p50", "p50 of requests", " µs", true},
	{"latency.request-p99", "p99 of requests", " µs", true},
	{"latency.connection-p50", "p50 of new connections", " µs", true},
	{"latency.connection-p99", "p99 of new connections", " µs", true},
}
