package figure

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// The ranks are those of tables of the sign test.
func TestOf(t *testing.T) {
	for _, c := range []struct {
		n         int
		low, high float64
	}{{1, 1, 1}, {5, 1, 5}, {6, 1, 6}, {8, 1, 8}, {9, 2, 8}, {12, 3, 10}, {20, 6, 15}, {25, 8, 18}} {
		var v []float64
		for i := range c.n {
			v = append(v, float64((i*7)%c.n+1)) // in any order
		}
		if c.n%7 == 0 {
			t.Fatal("7 has to be no factor")
		}
		e := Of(v)
		if e.Low != c.low || e.High != c.high || e.Certain != (c.n >= 6) {
			t.Errorf("of %d: got %g to %g, certain %t; want %g to %g", c.n, e.Low, e.High, e.Certain, c.low, c.high)
		}
		if want := float64(c.n+1) / 2; e.Median != want {
			t.Errorf("of %d: got the median %g; want %g", c.n, e.Median, want)
		}
	}
	if e := Of(nil); e.N != 0 || !math.IsNaN(e.Median) {
		t.Errorf("of nothing: got %+v", e)
	}
	if got := Of([]float64{10, 10, 20, 30, 30}).Spread(); got != .5 {
		t.Errorf("spread: got %g; want 0.5", got)
	}
}

// Only figures of the same round are compared.
func TestRatios(t *testing.T) {
	s := Samples{
		{Round: "1", Engine: "a", Metric: "m", Value: 6}, {Round: "1", Engine: "b", Metric: "m", Value: 3},
		{Round: "2", Engine: "b", Metric: "m", Value: 5}, {Round: "2", Engine: "a", Metric: "m", Value: 5}, {Round: "2", Engine: "a", Metric: "other", Value: 9},
		{Round: "3", Engine: "a", Metric: "m", Value: 7}, {Round: "4", Engine: "b", Metric: "m", Value: 7},
		{Round: "5", Engine: "a", Metric: "m", Value: 7}, {Round: "5", Engine: "b", Metric: "m", Value: 0},
	}
	if got, want := s.Ratios("a", "b", "m"), []float64{2, 1}; !reflect.DeepEqual(got, want) {
		t.Errorf("ratios: got %v; want %v", got, want)
	}
	if got, want := s.Differences("a", "b", "m"), []float64{3, 0, 7}; !reflect.DeepEqual(got, want) {
		t.Errorf("differences: got %v; want %v", got, want)
	}
	if got, want := s.Across("a", "other", "a", "m"), []float64{9. / 5}; !reflect.DeepEqual(got, want) {
		t.Errorf("across: got %v; want %v", got, want)
	}
	file := filepath.Join(t.TempDir(), "samples")
	for range 2 {
		if err := Append(file, s); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Read(file)
	if err != nil || !reflect.DeepEqual(got, append(append(Samples{}, s...), s...)) {
		t.Errorf("read again: got %v, %v", got, err)
	}
	if got, err := Read(filepath.Join(t.TempDir(), "none")); got != nil || err != nil {
		t.Errorf("a file that is not there: got %v, %v; want nothing", got, err)
	}
}

// Plots are XML with every label and figure in them.
func TestPlots(t *testing.T) {
	bars := Bars("<title>", "axis", []Group{
		{"requests", []Bar{{"we & they", 1.25, 1.1, 1.4}, {"others", .5, .4, .6}}},
		{"nothing", []Bar{{"others", math.NaN(), math.NaN(), math.NaN()}}},
	})
	curves := Curves("cost", "size", "µs", []Curve{{"we", []Point{{10, 5, 4, 6}, {1000, 5, 5, 5}}}, {"one", []Point{{10, 80, 0, 0}}}})
	for plot, want := range map[string][]string{bars: {"<title>", "axis", "requests", "we & they", "1.25", "0.50"}, curves: {"cost", "size", "µs", "we", "1000"}} {
		words, err := text(plot)
		if err != nil {
			t.Errorf("%v in:\n%s", err, plot)
		}
		for _, w := range want {
			if !strings.Contains(words, w) {
				t.Errorf("%q is not in the plot:\n%s", w, words)
			}
		}
		if strings.Contains(plot, "NaN") || strings.Contains(plot, "Inf") {
			t.Errorf("a place that is none:\n%s", plot)
		}
	}
	if got := Curves("none", "x", "y", nil); got != "" {
		t.Errorf("no curves: got %s", got)
	}
}

func text(plot string) (words string, err error) {
	d := xml.NewDecoder(strings.NewReader(plot))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return words, nil
		}
		if err != nil {
			return "", err
		}
		if c, ok := token.(xml.CharData); ok {
			words += string(c)
		}
	}
}
