package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/eclusa-lb/eclusa/bench/contender"
	"github.com/eclusa-lb/eclusa/bench/figure"
)

// report is the page that is written.
type report struct {
	strings.Builder
	samples figure.Samples
	engines []contender.Contender
}

func (r *report) add(format string, args ...any) { fmt.Fprintf(&r.Builder, format+"\n", args...) }

// row writes a line of a table.
func (r *report) row(cells ...string) { r.add("| %s |", strings.Join(cells, " | ")) }

func (r *report) head(cells ...string) {
	r.row(cells...)
	r.row(strings.Split(strings.Repeat("---,", len(cells)-1)+"---", ",")...)
}

// columns are a first cell and the titles of the contenders.
func (r *report) columns(first string) []string {
	cells := []string{first}
	for _, c := range r.engines {
		cells = append(cells, c.Title())
	}
	return cells
}

// write writes the page and its plots into a folder.
func (r *report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	r.add("# Report of the benchmarks\n")
	r.add("Written by `make bench`; [README.md](README.md) tells what is measured and how. Ratios are those of figures of the same round, minutes apart at most; given are their median and the interval that has the true median with a probability of 95 %% (sign test).\n")
	r.machine()
	r.targets()
	r.ratios()
	r.figures()
	r.costs()
	r.latency()
	r.idle()
	r.changes()
	r.sizes()
	r.health()
	r.configurations()
	plots := map[string]string{"ratios.svg": r.ratioPlot(), "sizes.svg": r.sizePlot()}
	for name, text := range plots {
		if text == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "report.md"), []byte(r.String()), 0o644)
}

// number writes a figure with as many digits as anybody can use.
func number(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v):
		return "–"
	case a >= 100_000:
		return fmt.Sprintf("%.0fk", v/1000)
	case a >= 10_000:
		return fmt.Sprintf("%.1fk", v/1000)
	case a >= 100 || v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a < .001 && a > 0:
		return fmt.Sprintf("%.5f", v)
	case a < .1 && a > 0:
		return fmt.Sprintf("%.3f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func interval(e figure.Estimate) string {
	if e.N == 0 || math.IsNaN(e.Median) {
		return "–"
	}
	return fmt.Sprintf("%s (%s–%s)", number(e.Median), number(e.Low), number(e.High))
}

func spread(e figure.Estimate) string {
	if e.N == 0 || math.IsNaN(e.Median) {
		return "–"
	}
	return fmt.Sprintf("%s ± %.0f %%", number(e.Median), e.Spread()*100)
}

func (r *report) targets() {
	r.add("\n## Targets\n\nA target is met when the interval includes or exceeds it; where no error is allowed, when no round had one. With fewer than six rounds the interval is all that was measured.\n")
	r.head("engine", "target", "wanted", "measured", "rounds", "verdict")
	for _, t := range targets() {
		e := t.of(r.samples)
		measured := interval(e)
		if t.every && e.N > 0 {
			measured = fmt.Sprintf("%s (%s–%s)", number(e.Median), number(e.Smallest), number(e.Most))
		}
		r.row(t.engine, t.text, t.wanted(), measured, fmt.Sprint(e.N), t.verdict(e))
	}
}

// reference is what the others are compared with: HAProxy, which carries no UDP,
// else nginx.
func reference(metric string) string {
	if metric == "echo" || metric == "flood" {
		return "nginx"
	}
	return "haproxy"
}

func (r *report) ratios() {
	r.add("\n## Ratios\n\n![ratios](ratios.svg)\n")
	r.add("To HAProxy with its defaults, for UDP to nginx. More is better, except for latencies.\n")
	r.head(r.columns("")...)
	for _, m := range primary {
		cells := []string{m.title}
		for _, c := range r.engines {
			cells = append(cells, interval(figure.Of(r.samples.Ratios(c.Name(), reference(m.metric), m.metric))))
		}
		r.row(cells...)
	}
	r.add("\nTo no load balancer at all:\n")
	r.head(r.columns("")...)
	for _, m := range primary {
		cells := []string{m.title}
		for _, c := range r.engines {
			cells = append(cells, interval(figure.Of(r.samples.Ratios(c.Name(), "direct", m.metric))))
		}
		r.row(cells...)
	}
}

func (r *report) ratioPlot() string {
	var groups []figure.Group
	for _, m := range primary[:7] {
		g := figure.Group{Label: m.title}
		for _, c := range r.engines {
			if e := figure.Of(r.samples.Ratios(c.Name(), reference(m.metric), m.metric)); e.N > 0 {
				g.Bars = append(g.Bars, figure.Bar{Label: c.Title(), Value: e.Median, Low: e.Low, High: e.High})
			}
		}
		if len(g.Bars) > 0 {
			groups = append(groups, g)
		}
	}
	if len(groups) == 0 {
		return ""
	}
	return figure.Bars("Throughput on two processors for all, against HAProxy (UDP: nginx)", "ratio within a round: median and 95 % interval; more is better", groups)
}

func (r *report) figures() {
	r.add("\n## Figures\n\nMedians, with half the distance of the quartiles as a share of them.\n")
	r.table(primary)
}

// table has a row for each metric and a column for each contender.
func (r *report) table(rows []figureRow) {
	r.head(r.columns("")...)
	for _, m := range rows {
		cells := []string{m.title + strings.TrimSuffix(" ("+strings.TrimSpace(m.unit)+")", " ()")}
		for _, c := range r.engines {
			cells = append(cells, spread(figure.Of(r.samples.Values(c.Name(), m.metric))))
		}
		r.row(cells...)
	}
}

func (r *report) costs() {
	r.add("\n## Processor time\n\nOf one operation, in microseconds (streams: seconds for a gigabyte). *Path* is all that took part: client, load balancer, nodes, the kernel's threads. *Edge* is the load balancer's processes alone; engines in the kernel have none, and work at the cost of whoever sends.\n")
	var rows []figureRow
	for _, m := range primary[:6] {
		if m.metric == "timewait.sustained" {
			continue
		}
		rows = append(rows, figureRow{metric: m.metric + ".cpu", title: m.title + ", path"}, figureRow{metric: m.metric + ".edge-cpu", title: m.title + ", edge"})
	}
	for i := range rows {
		rows[i].title = strings.ReplaceAll(rows[i].title, "/s,", ",")
	}
	r.table(rows)
}

func (r *report) latency() {
	r.add("\n## Latency added\n\nAgainst the direct way in the same round, in microseconds, at %d requests/s on 16 kept connections and %d new connections/s.\n", steadyRequests, steadyConnections)
	r.head(r.columns("")...)
	for _, m := range primary[7:] {
		cells := []string{m.title}
		for _, c := range r.engines {
			cells = append(cells, interval(figure.Of(r.samples.Differences(c.Name(), "direct", m.metric))))
		}
		r.row(cells...)
	}
}
