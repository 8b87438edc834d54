package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/bench/contender"
	"github.com/eclusa-lb/eclusa/bench/figure"
)

// TestMain plays the roles for which the benchmark starts its own program again.
func TestMain(m *testing.M) {
	if played, err := play(); played {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// needs skips the test, or fails it in continuous integration.
func needs(t *testing.T, ok bool, what string) {
	t.Helper()
	switch {
	case ok:
	case os.Getenv("CI") == "true":
		t.Fatalf("needs %s", what)
	default:
		t.Skipf("needs %s", what)
	}
}

// shortForm are the measures that the short form takes of each engine: every engine has
// to carry traffic, and every measure to come to a figure.
var shortForm = map[string][]string{
	"direct":          {"requests", "flood"},
	"haproxy":         {"requests", "connections", "swap", "size"},
	"haproxy-buffers": {"bulk"},
	"nginx":           {"connections", "echo", "idle"},
	"rules":           {"requests", "timewait", "swap"},
	"rules-pool":      {"connections", "flood"},
	"proxy":           {"requests", "connections", "bulk8", "latency", "echo", "idle", "swap", "death", "size"},
	"nftables":        {"requests", "connections", "bulk", "echo", "idle", "swap", "death", "size"},
}

// The short form of the benchmark, which says nothing about speed.
func TestShort(t *testing.T) {
	needs(t, os.Geteuid() == 0, "root, for network namespaces")
	for _, tool := range []string{"haproxy", "nginx", "nft"} {
		_, err := exec.LookPath(tool)
		needs(t, err == nil, tool)
	}
	var samples figure.Samples
	measured := make(map[string]bool)
	for _, c := range contender.All {
		names, ok := shortForm[c.Name()]
		if !ok {
			t.Errorf("%s: the short form measures nothing of it", c.Name())
		}
		kinds, err := findMeasures(names)
		if err != nil {
			t.Fatal(err)
		}
		b, err := newBed(t.Context(), c, contender.AllMembers(), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range kinds {
			measured[m.name] = true
			v, _, err := m.run(t.Context(), b, 100*time.Millisecond)
			if err != nil {
				t.Errorf("%s of %s: %v", m.name, c.Name(), err)
				continue
			}
			checkValues(t, c.Name(), m.name, v)
			for metric, value := range v {
				samples = append(samples, figure.Sample{Round: "1", Engine: c.Name(), Metric: metric, Value: value})
			}
		}
		b.close()
	}
	for _, m := range measures {
		if !measured[m.name] {
			t.Errorf("measure %s: the short form takes it of no engine", m.name)
		}
	}
	v, err := measureProbing(probing{Targets: 500, Interval: time.Second, Time: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	checkValues(t, checker, "probing", v)
	checkReport(t, samples)
}

// checkValues wants a figure of what was measured, and none that is no number.
func checkValues(t *testing.T, engine, measure string, v values) {
	t.Helper()
	if len(v) == 0 {
		t.Errorf("%s of %s: no figure", measure, engine)
	}
	for metric, value := range v {
		if !strings.HasPrefix(metric, measure) || value != value || value < 0 && measure != "idle" {
			t.Errorf("%s of %s: %s is %v", measure, engine, metric, value)
		}
	}
	switch measure {
	case "requests", "connections", "bulk", "bulk8", "echo", "flood", "timewait", "probing":
		if v[measure] <= 0 {
			t.Errorf("%s of %s: got %v; want traffic", measure, engine, v)
		}
	case "swap":
		if v["swap.count"] < 1 || v["swap.answered"] < 1 {
			t.Errorf("swaps of %s: got %v; want some under traffic", engine, v)
		}
	}
}

// checkReport wants all figures in a report that can be read.
func checkReport(t *testing.T, s figure.Samples) {
	t.Helper()
	dir := t.TempDir()
	r := &report{samples: s, engines: contender.All}
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"report.md", "ratios.svg", "sizes.svg"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			continue
		}
		if strings.Contains(string(text), "NaN") || strings.Contains(string(text), "%!") {
			t.Errorf("%s: has what is no figure:\n%s", name, text)
		}
	}
}

// Targets name engines and metrics that exist.
func TestTargets(t *testing.T) {
	var s figure.Samples
	for _, engine := range append([]string{checker}, names()...) {
		for _, metric := range everyMetric() {
			s = append(s, figure.Sample{Round: "1", Engine: engine, Metric: metric, Value: 1})
		}
	}
	for _, target := range targets() {
		if e := target.of(s); e.N != 1 {
			t.Errorf("%s: %s: got %d figures of one round of everything; want one", target.engine, target.text, e.N)
		}
	}
}

func names() (all []string) {
	for _, c := range contender.All {
		all = append(all, c.Name())
	}
	return all
}

func everyMetric() (all []string) {
	for _, m := range primary {
		all = append(all, m.metric)
	}
	for _, n := range sizes {
		all = append(all, sized("requests.cpu", n), sized("connections.cpu", n))
	}
	return append(all, "idle", "idle.files", "timewait", "timewait.resent", "swap", "swap.effect", "death.failed", "death.hung",
		"probing", "probing.memory", "probing.growth", "probing.lag")
}
