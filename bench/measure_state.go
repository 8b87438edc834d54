package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/bench/contender"
	"github.com/eclusa-lb/eclusa/bench/traffic"
)

// waiting is how many sockets in TIME_WAIT the nodes are to have.
const waiting = 45_000

// measureTimeWait opens connections, first at a moderate rate and then as many as can
// be, when the nodes remember many that came the same way.
func measureTimeWait(ctx context.Context, b *bed, t time.Duration) (values, *outcome, error) {
	// One who cannot bring that many about is measured with those that there are.
	for begun := time.Now(); b.timeWaits() < waiting && time.Since(begun) < 10*t && ctx.Err() == nil; {
		if _, err := b.load(traffic.Spec{Kind: traffic.Connections, Width: 64, Time: t / 2}, contender.CloseFrontend); err != nil {
			return nil, nil, err
		}
	}
	before := b.timeWaits()
	o, err := b.load(traffic.Spec{Kind: traffic.SteadyConnections, Width: 1, Rate: steadyConnections, Time: 2 * t}, contender.CloseFrontend)
	if err != nil {
		return nil, nil, err
	}
	if o.Latency == nil {
		return nil, nil, fmt.Errorf("no connection was answered: %v", o.Failures)
	}
	begun := max(o.All+o.Failed, 1)
	full, err := b.load(traffic.Spec{Kind: traffic.Connections, Width: 64, Warm: warm(t), Time: t}, contender.CloseFrontend)
	if err != nil {
		return nil, nil, err
	}
	return values{
		"timewait.sustained": float64(full.Done) / full.Seconds,
		"timewait":           o.Latency.P99, "timewait.p50": o.Latency.P50, "timewait.sockets": float64(before),
		"timewait.resent": float64(o.Resent) / float64(begun), "timewait.failed": float64(o.Failed) / float64(begun),
	}, o, nil
}

// timeWaits is how many sockets in TIME_WAIT the nodes have.
func (b *bed) timeWaits() (n int64) {
	for _, h := range b.network.Nodes {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/sockstat", h.PID))
		fields := strings.Fields(string(text))
		for i, f := range fields {
			if f == "tw" && i+1 < len(fields) {
				have, _ := strconv.ParseInt(fields[i+1], 10, 64)
				n += have
			}
		}
	}
	return n
}

// idleConnections is how many idle connections fit: a proxy has two descriptors for
// each, and some of its own.
func idleConnections() int {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return 400
	}
	return min(10_000, int(min(r.Max, 1<<20))*9/20)
}

// measureIdle holds connections on which nothing moves. The contender is a fresh one
// in a fresh network: what a process once had it keeps, and what the kernel still
// has of former connections goes when it likes.
func measureIdle(ctx context.Context, b *bed, t time.Duration) (v values, o *outcome, err error) {
	n := idleConnections()
	if short(t) {
		n = min(n, 500)
	}
	account, err := newAccount(fmt.Sprintf("eclusa-bench-%d", os.Getpid()))
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, account.close()) }()
	fresh, err := newBed(ctx, b.Contender, contender.AllMembers(), filepath.Join(b.dir, "idle"))
	if err != nil {
		return nil, nil, err
	}
	defer fresh.close()
	for _, pid := range fresh.running.PIDs() {
		for _, one := range family(pid) {
			if err := account.add(one); err != nil {
				return nil, nil, err
			}
		}
	}
	before := fresh.holdings(account)
	p, err := fresh.client(traffic.Spec{Kind: traffic.Idle, Width: n, To: fresh.targets(contender.RequestFrontend), Patience: 10 * time.Second})
	if err != nil {
		return nil, nil, err
	}
	defer p.Stop()
	if err := p.Ready(); err != nil {
		return nil, nil, err
	}
	after := fresh.settled(account)
	p.EndInput()
	o = &outcome{Result: &traffic.Result{}}
	if err := p.Hear(o.Result); err != nil {
		return nil, nil, err
	}
	if o.Failed > 0 {
		return nil, nil, fmt.Errorf("%d of %d connections were lost: %v", o.Failed, n, o.Failures)
	}
	each := func(before, after int64) float64 { return float64(after-before) / float64(n) }
	user, kernel := each(before.user, after.user), each(before.kernel, after.kernel)
	return values{
		"idle": user + kernel, "idle.user": user, "idle.kernel": kernel, "idle.files": each(before.files, after.files), "idle.connections": float64(n),
	}, o, nil
}

// holdings is what a load balancer has of the machine.
type holdings struct{ user, kernel, files int64 }

// settled are the holdings when they do not grow any more.
func (b *bed) settled(a *account) holdings {
	last := b.holdings(a)
	for range 20 {
		time.Sleep(100 * time.Millisecond)
		now := b.holdings(a)
		if now.kernel-last.kernel < 64<<10 && now.user-last.user < 64<<10 {
			return now
		}
		last = now
	}
	return last
}

func (b *bed) holdings(a *account) holdings {
	h := holdings{kernel: a.kernel() + b.tracked()}
	for _, pid := range b.running.PIDs() {
		for _, one := range family(pid) {
			h.user += field(fmt.Sprintf("/proc/%d/status", one), "RssAnon:") << 10
			entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", one))
			h.files += int64(len(entries))
		}
	}
	return h
}

// tracked is what the kernel has for the connections that the edge tracks, without
// what it may attach to them. It is nobody's account.
func (b *bed) tracked() (size int64) {
	_ = b.network.Edge.Net(func() error {
		size = field("/proc/sys/net/netfilter/nf_conntrack_count", "")
		return nil
	})
	text, _ := os.ReadFile("/proc/slabinfo")
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 3 && f[0] == "nf_conntrack" {
			each, _ := strconv.ParseInt(f[3], 10, 64)
			return size * each
		}
	}
	return 0
}

// field is a number behind a name in a file of /proc.
func field(file, name string) int64 {
	text, _ := os.ReadFile(file)
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			for f := range strings.FieldsSeq(rest) {
				n, _ := strconv.ParseInt(f, 10, 64)
				return n
			}
		}
	}
	return 0
}
