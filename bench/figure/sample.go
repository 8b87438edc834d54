package figure

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
)

// Sample is one figure of one engine in one round.
type Sample struct {
	// Round is the same for samples that were taken directly one after another, and
	// so may be compared.
	Round  string
	Engine string
	// Metric is what was measured.
	Metric string
	Value  float64
	// Foreign is the share of the machine's processors that others used meanwhile.
	Foreign float64 `json:",omitempty"`
}

// Samples are all that is known.
type Samples []Sample

// Read reads samples from a file, one in a line. A file that is not there has none.
func Read(file string) (Samples, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all Samples
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		var s Sample
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", file, n, err)
		}
		all = append(all, s)
	}
	return all, lines.Err()
}

// Append adds samples to a file.
func Append(file string, s Samples) error {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	e := json.NewEncoder(f)
	for _, one := range s {
		if err := e.Encode(one); err != nil {
			f.Close()
			return err
		}
	}
	return f.Close()
}

// Values are those of one engine and metric, in the order of the rounds.
func (s Samples) Values(engine, metric string) (values []float64) {
	for _, one := range s {
		if one.Engine == engine && one.Metric == metric {
			values = append(values, one.Value)
		}
	}
	return values
}

// Ratios are those of two engines within each round that has both.
func (s Samples) Ratios(engine, reference, metric string) (ratios []float64) {
	return s.Across(engine, metric, reference, metric)
}

// Across is the same for two metrics.
func (s Samples) Across(engine, metric, reference, other string) (ratios []float64) {
	below := make(map[string]float64)
	for _, one := range s {
		if one.Engine == reference && one.Metric == other {
			below[one.Round] = one.Value
		}
	}
	for _, one := range s {
		if d := below[one.Round]; one.Engine == engine && one.Metric == metric && d > 0 {
			ratios = append(ratios, one.Value/d)
		}
	}
	return ratios
}

// Differences are those of two engines within each round that has both.
func (s Samples) Differences(engine, reference, metric string) (differences []float64) {
	from := make(map[string]float64)
	has := make(map[string]bool)
	for _, one := range s {
		if one.Engine == reference && one.Metric == metric {
			from[one.Round], has[one.Round] = one.Value, true
		}
	}
	for _, one := range s {
		if one.Engine == engine && one.Metric == metric && has[one.Round] {
			differences = append(differences, one.Value-from[one.Round])
		}
	}
	return differences
}

// Rounds is the number of rounds that have the metric of the engine.
func (s Samples) Rounds(engine, metric string) int { return len(s.Values(engine, metric)) }

// Metrics are all that there are, sorted.
func (s Samples) Metrics() (all []string) {
	for _, one := range s {
		if !slices.Contains(all, one.Metric) {
			all = append(all, one.Metric)
		}
	}
	slices.Sort(all)
	return all
}
