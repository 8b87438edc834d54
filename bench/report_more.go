package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/bench/contender"
	"github.com/eclusa-lb/eclusa/bench/figure"
)

// machine says where the figures are from.
func (r *report) machine() {
	r.add("## Machine\n")
	r.head("", "")
	r.row("date", time.Now().UTC().Format(time.DateOnly))
	r.row("processor", fmt.Sprintf("%s, %d processors", word("/proc/cpuinfo", "model name"), runtime.NumCPU()))
	r.row("memory", fmt.Sprintf("%.0f GB", float64(field("/proc/meminfo", "MemTotal:"))/(1<<20)))
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		r.row("kernel", "Linux "+unix.ByteSliceToString(u.Release[:]))
	}
	r.row("system", strings.Trim(word("/etc/os-release", "PRETTY_NAME"), `"`))
	r.row("Go", runtime.Version())
	commit, err := exec.Command("git", "describe", "--always", "--dirty", "--abbrev=12").Output()
	if err == nil {
		r.row("commit", strings.TrimSpace(string(commit)))
	}
	for _, c := range r.engines {
		version, err := c.Version()
		if err != nil {
			version = err.Error()
		}
		r.row(c.Title(), version)
	}
	foreign := figure.Of(r.foreign())
	r.add("\nOthers had %.0f %% of the processors during half of the samples, and %.0f %% at most.", foreign.Median*100, foreign.Most*100)
}

func (r *report) foreign() (shares []float64) {
	for _, s := range r.samples {
		if s.Metric == "requests" || s.Metric == "connections" {
			shares = append(shares, s.Foreign)
		}
	}
	return shares
}

// word is what stands behind a name in a file of lines.
func word(file, name string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
		if key, value, ok := strings.Cut(line, "="); ok && key == name {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// some tells whether anybody has the metric.
func (r *report) some(metric string) bool {
	for _, c := range r.engines {
		if r.samples.Rounds(c.Name(), metric) > 0 {
			return true
		}
	}
	return false
}

// cells are a row of a table, made of the contenders' own estimates.
func (r *report) cells(title string, of func(c contender.Contender) string) {
	cells := []string{title}
	for _, c := range r.engines {
		cells = append(cells, of(c))
	}
	r.row(cells...)
}

// most is the range over all rounds.
func most(e figure.Estimate) string {
	switch {
	case e.N == 0:
		return "–"
	case e.Smallest == e.Most:
		return number(e.Most)
	}
	return fmt.Sprintf("%s (%s–%s)", number(e.Median), number(e.Smallest), number(e.Most))
}

func (r *report) idle() {
	if !r.some("idle") {
		return
	}
	r.add("\n## Idle connections\n\nBytes for each of %d connections on which nothing moves. The kernel's part is what it has in the account of the load balancer's processes, and for each connection that is tracked one object, without what may be attached to it.\n", idleConnections())
	r.ranges(shown{"idle", "user and kernel"}, shown{"idle.user", "user"}, shown{"idle.kernel", "kernel"}, shown{"idle.files", "descriptors"})
}

// shown are rows of a table of medians with the range over all rounds.
type shown struct{ metric, title string }

func (r *report) ranges(rows ...shown) {
	r.head(r.columns("")...)
	for _, row := range rows {
		r.cells(row.title, func(c contender.Contender) string { return most(value(c.Name(), row.metric)(r.samples)) })
	}
}

func (r *report) changes() {
	if r.some("timewait") {
		r.add("\n## Nodes full of TIME_WAIT\n\n%d new connections/s, after each contender has left up to %d sockets in TIME_WAIT on its nodes. Medians, and the range over all rounds.\n", steadyConnections, waiting)
		r.ranges(shown{"timewait.sockets", "sockets in TIME_WAIT"}, shown{"timewait.p50", "p50 (µs)"}, shown{"timewait", "p99 (µs)"}, shown{"timewait.resent", "SYNs sent again (share)"}, shown{"timewait.failed", "failed (share)"}, shown{"timewait.sustained", "as many as can be, directly after (/s)"})
	}
	if r.some("swap") {
		r.add("\n## Exchange of a member\n\nThe only member is exchanged for another one again and again, under 100 connections with 2,000 requests/s and eight users who open one connection after the other. HAProxy changes through its runtime API, nginx reloads, plain nftables runs `nft -f`. *In effect* is the time from the call until a new connection goes to the new member.\n")
		r.ranges(shown{"swap.count", "exchanges"}, shown{"swap", "errors"}, shown{"swap.answered", "requests and connections meanwhile"}, shown{"swap.call", "the call, median (ms)"}, shown{"swap.call-p99", "the call, p99 (ms)"}, shown{"swap.effect", "in effect, median (ms)"}, shown{"swap.effect-most", "in effect, worst (ms)"})
	}
	if r.some("death") {
		r.add("\n## Death of a member\n\nOne of three nodes swallows everything from one moment on, under 1,000 kept connections with 2,000 requests/s and 200 new connections/s, for fourteen seconds. *Out* is when the last connection began that had to wait for more than 250 ms, or failed. *Reset* are kept connections that the load balancer ended, *hung* those whose users gave up after eight seconds. Plain rules have nobody who checks: a cluster takes a dead node out after 40 s by default.\n")
		r.ranges(shown{"death", "out after (s)"}, shown{"death.failed", "new connections failed"}, shown{"death.reset", "kept connections reset"}, shown{"death.hung", "kept connections hung"})
	}
}

func (r *report) sizes() {
	if !r.some(sized("requests", sizes[0])) {
		return
	}
	r.add("\n## Cost against the number of load balancers\n\nProcessor time of the whole path in microseconds, and the seconds until a load balancer serves after its start.\n\n![sizes](sizes.svg)\n")
	var rows []shown
	for _, m := range []shown{{"requests.cpu", "a request"}, {"connections.cpu", "a connection"}, {"start", "start (s)"}} {
		for _, n := range sizes {
			rows = append(rows, shown{sized(m.metric, n), fmt.Sprintf("%s, %d load balancers", m.title, n)})
		}
	}
	r.ranges(rows...)
}

func (r *report) sizePlot() string {
	var curves []figure.Curve
	for _, c := range r.engines {
		curve := figure.Curve{Label: c.Title()}
		for _, n := range sizes {
			if e := figure.Of(r.samples.Values(c.Name(), sized("connections.cpu", n))); e.N > 0 {
				curve.Points = append(curve.Points, figure.Point{X: float64(n), Y: e.Median, Low: e.Smallest, High: e.Most})
			}
		}
		if len(curve.Points) > 0 {
			curves = append(curves, curve)
		}
	}
	if len(curves) == 0 {
		return ""
	}
	return figure.Curves("Cost of a new connection", "load balancers", "processor time of the whole path, µs", curves)
}

func (r *report) health() {
	rate := value(checker, "probing")(r.samples)
	if rate.N == 0 {
		return
	}
	r.add("\n## Health checks\n\n100,000 targets on one node, probed over TCP every 9.9 seconds by one process with one processor, which has a network of its own.\n")
	r.head("", "")
	for _, row := range []shown{
		{"probing", "probes/s"}, {"probing.cpu", "processor time of a probe (µs)"}, {"probing.cores", "processors used"},
		{"probing.growth", "memory (MB)"}, {"probing.memory", "memory with the program itself (MB)"}, {"probing.lag", "p99 of how late probes start (ms)"}, {"probing.errors", "probes that did not count"},
	} {
		r.row(row.title, most(value(checker, row.metric)(r.samples)))
	}
}

func (r *report) configurations() {
	r.add("\n## Configurations\n\neclusa's engines have their defaults; the nftables engine has %d source addresses. The peers:", contender.PoolSize)
	for _, c := range r.engines {
		text, err := c.Configuration(contender.AllMembers(), "/run/bench")
		if err != nil || text == "" {
			continue
		}
		r.add("\n### %s\n\n```%s\n%s\n```", c.Title(), c.Name(), strings.TrimSpace(text))
	}
}
