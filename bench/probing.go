package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/eclusa-lb/eclusa/bench/contender"
	"github.com/eclusa-lb/eclusa/bench/traffic"
	"github.com/eclusa-lb/eclusa/healthcheck"
)

// checker is the name of the health checks among the engines of samples.
const checker = "healthcheck"

// probing is what the process of the checker is told.
type probing struct {
	Targets int
	// Interval is how often each is probed, Time how long that is measured.
	Interval, Time time.Duration
}

// probed is its answer.
type probed struct {
	Rate, CPU, Cores, Lag float64
	// Memory is what of the process is in memory, in MB, and Growth what of that has
	// come since it began, without anything to check.
	Memory, Growth float64
	Errors         uint64
	Error          string `json:",omitempty"`
}

// measureProbing has one process with one processor probe many targets.
func measureProbing(p probing) (values, error) {
	n, err := contender.NewNetwork()
	if err != nil {
		return nil, err
	}
	defer n.Close()
	if err := n.Multiply(); err != nil {
		return nil, err
	}
	argument, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	c, err := n.Edge.StartRole(contender.Role{Name: "probe", Argument: argument})
	if err != nil {
		return nil, err
	}
	defer c.Stop()
	var r probed
	if err := c.Hear(&r); err != nil {
		return nil, err
	}
	if r.Error != "" {
		return nil, errors.New(r.Error)
	}
	return values{"probing": r.Rate, "probing.cpu": r.CPU, "probing.cores": r.Cores, "probing.memory": r.Memory, "probing.growth": r.Growth, "probing.lag": r.Lag, "probing.errors": float64(r.Errors)}, nil
}

// probe is the process of the checker.
func probe(argument json.RawMessage) error {
	var p probing
	if err := json.Unmarshal(argument, &p); err != nil {
		return err
	}
	runtime.GOMAXPROCS(1)
	r, err := p.run()
	if err != nil {
		r.Error = err.Error()
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// targets returns what is probed.
func (p probing) targets() map[healthcheck.Target]healthcheck.Result {
	set := make(map[healthcheck.Target]healthcheck.Result, p.Targets)
	spec := healthcheck.Spec{Protocol: healthcheck.TCP, Interval: healthcheck.Duration(p.Interval)}.WithDefaults()
	for i := range p.Targets {
		set[healthcheck.Target{Addr: netip.AddrPortFrom(contender.ManyAddr(i), traffic.RequestPort), Spec: spec}] = healthcheck.Result{}
	}
	return set
}

// resident returns what of this process is in memory, in bytes.
func resident() int64 { return field("/proc/self/status", "VmRSS:") << 10 }

func (p probing) run() (r probed, err error) {
	debug.FreeOSMemory()
	empty := resident()
	c := healthcheck.New(healthcheck.Options{Budget: int(1.2 * float64(p.Targets) / p.Interval.Seconds()), Workers: 128})
	c.Set(p.targets())
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	defer func() {
		cancel()
		err = errors.Join(err, <-ended)
	}()
	up := func() (n int) {
		for _, one := range c.Results() {
			if one.State == healthcheck.Up {
				n++
			}
		}
		return n
	}
	deadline := time.Now().Add(6 * p.Interval)
	if err := c.WaitFirst(ctx); err != nil {
		return r, err
	}
	for ; up() < p.Targets; time.Sleep(p.Interval / 10) {
		if time.Now().After(deadline) {
			return r, fmt.Errorf("%d of %d targets are up after %s", up(), p.Targets, 6*p.Interval)
		}
	}
	debug.FreeOSMemory()   // what building the set and looking at all results took
	time.Sleep(p.Interval) // for the checks to catch up with what that has delayed
	cpu, before, begun := cpuOf(os.Getpid()), c.Stats(), time.Now()
	var memory int64
	for time.Since(begun) < p.Time {
		time.Sleep(p.Time / 10)
		memory = max(memory, resident())
	}
	took := time.Since(begun)
	cpu, after := cpuOf(os.Getpid())-cpu, c.Stats()
	n := after.Probes - before.Probes
	r = probed{
		Rate: float64(n) / took.Seconds(), CPU: per(cpu, int64(n)), Cores: cpu.Seconds() / took.Seconds(),
		Memory: float64(memory) / 1e6, Growth: float64(memory-empty) / 1e6, Lag: float64(after.LagP99.Microseconds()) / 1000, Errors: after.OwnErrors,
	}
	if now := up(); now != p.Targets {
		return r, fmt.Errorf("%d of %d targets are up", now, p.Targets)
	}
	return r, nil
}
