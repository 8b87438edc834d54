// Package monitoring proves that what is said about metrics is true: that the
// reference lists those that exist, that alerts and dashboards ask for nothing
// else, and that alerts fire. Programs do not use it, tests do.
//
// Each program's own tests write down what it exposes, with [Inspect] and
// [Golden]. From these files the reference is made, and a real Prometheus, see
// [Start], evaluates every expression on them.
package monitoring

//go:generate go test -run ^TestExposition$ ../edge ../provider ../cmd/eclusa-edge ../cmd/eclusa-cloud-controller-manager -args -update
//go:generate go test -run ^TestReference$ . -args -update

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
)

// Inspect returns what a collector exposes, with every value replaced by 1, and
// everything that is wrong with it: promlint's complaints, series that a pedantic
// registry does not take, and descriptions of which there is no series. The
// caller sees to it that there is something to tell of every metric.
func Inspect(c prometheus.Collector) (text string, faults []error) {
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(c); err != nil {
		return "", []error{err}
	}
	families, err := registry.Gather()
	if err != nil {
		faults = append(faults, err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		faults = append(faults, err)
	}
	for _, p := range problems {
		faults = append(faults, fmt.Errorf("%s: %s", p.Metric, p.Text))
	}
	told := make(map[string]bool)
	var b strings.Builder
	encoder := expfmt.NewEncoder(&b, expfmt.NewFormat(expfmt.TypeTextPlain))
	for _, f := range families {
		told[f.GetName()] = true
		for _, m := range f.GetMetric() {
			flatten(m)
		}
		if err := encoder.Encode(f); err != nil {
			faults = append(faults, err)
		}
	}
	for _, name := range describedBy(c) {
		if !told[name] {
			faults = append(faults, fmt.Errorf("%s: is described, and there is no series of it", name))
		}
	}
	return b.String(), faults
}

// flatten replaces what differs from run to run.
func flatten(m *dto.Metric) {
	for _, l := range m.Label {
		if name := l.GetName(); name == "version" || name == "revision" || name == "goversion" {
			l.Value = &name
		}
	}
	one, once := 1.0, uint64(1)
	switch {
	case m.Gauge != nil:
		m.Gauge.Value = &one
	case m.Counter != nil:
		m.Counter.Value, m.Counter.CreatedTimestamp = &one, nil
	case m.Histogram != nil:
		m.Histogram.SampleCount, m.Histogram.SampleSum, m.Histogram.CreatedTimestamp = &once, &one, nil
		for _, b := range m.Histogram.Bucket {
			b.CumulativeCount = &once
		}
	}
}

var fqName = regexp.MustCompile(`fqName: "([^"]+)"`)

func describedBy(c prometheus.Collector) []string {
	ch := make(chan *prometheus.Desc)
	go func() {
		defer close(ch)
		c.Describe(ch)
	}()
	var names []string
	for d := range ch {
		if m := fqName.FindStringSubmatch(d.String()); m != nil {
			names = append(names, m[1])
		}
	}
	return names
}

// Golden compares text with a file, or replaces the file if update is set.
func Golden(path, text string, update bool) error {
	if update {
		return os.WriteFile(path, []byte(text), 0o600)
	}
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if string(data) == text {
		return nil
	}
	was, is := strings.Split(string(data), "\n"), strings.Split(text, "\n")
	for i := range max(len(was), len(is)) {
		a, b := lineOf(was, i), lineOf(is, i)
		if a != b {
			return fmt.Errorf("%s:%d: is %q and should be %q: run `make generate`", path, i+1, a, b)
		}
	}
	return nil
}

func lineOf(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return ""
}
