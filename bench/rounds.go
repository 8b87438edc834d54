package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/eclusa-lb/eclusa/bench/contender"
	"github.com/eclusa-lb/eclusa/bench/figure"
)

func (o *options) bench(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "eclusa-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	samples, err := figure.Read(o.data)
	if err != nil {
		return err
	}
	var beds []*bed
	defer func() {
		for _, b := range beds {
			b.close()
		}
	}()
	for _, c := range o.engines {
		if o.rounds == 0 || len(o.measures) == 0 {
			break
		}
		b, err := newBed(ctx, c, contender.AllMembers(), dir)
		if err != nil {
			return err
		}
		beds = append(beds, b)
	}
	run := time.Now().UTC().Format("20060102T150405")
	for round := range o.rounds {
		taken, err := o.round(ctx, beds, fmt.Sprintf("%s-%d", run, round+1))
		if err != nil {
			return err
		}
		samples = append(samples, taken...)
		if o.data != "" {
			if err := figure.Append(o.data, taken); err != nil {
				return err
			}
		}
	}
	if err := o.print(samples); err != nil || o.report == "" {
		return err
	}
	r := &report{samples: samples, engines: o.engines}
	return r.write(o.report)
}

// round takes every measure of every contender once.
func (o *options) round(ctx context.Context, beds []*bed, name string) (taken figure.Samples, err error) {
	beds = slices.Clone(beds)
	if o.probing {
		v, err := measureProbing(probing{Targets: 100_000, Interval: 10 * time.Second, Time: 20 * o.time})
		if err != nil {
			return nil, fmt.Errorf("health checks: %w", err)
		}
		for metric, value := range v {
			taken = append(taken, figure.Sample{Round: name, Engine: checker, Metric: metric, Value: value})
		}
	}
	for _, m := range o.measures {
		rand.Shuffle(len(beds), func(i, j int) { beds[i], beds[j] = beds[j], beds[i] })
		for _, b := range beds {
			if !b.Carries(m.protocol) {
				continue
			}
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			v, out, err := m.run(ctx, b, o.time)
			if errors.Is(err, errNothing) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("%s of %s: %w", m.title, b.Title(), err)
			}
			for metric, value := range v {
				taken = append(taken, figure.Sample{Round: name, Engine: b.Name(), Metric: metric, Value: value, Foreign: out.Foreign})
			}
			fmt.Fprintf(os.Stderr, "%s %-12s %-16s %10.6g  foreign %.0f %% %v\n", name, m.name, b.Name(), v[m.name], out.Foreign*100, slices.Sorted(maps.Keys(out.Failures)))
		}
	}
	return taken, nil
}

// print shows medians, and ratios to the first engine.
func (o *options) print(s figure.Samples) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	first := o.engines[0].Name()
	fmt.Fprintf(w, "metric\tengine\tmedian\tspread\tratio to %s\t95 %% interval\trounds\n", first)
	for _, metric := range s.Metrics() {
		for _, c := range o.engines {
			e := figure.Of(s.Values(c.Name(), metric))
			if e.N == 0 {
				continue
			}
			r := figure.Of(s.Ratios(c.Name(), first, metric))
			fmt.Fprintf(w, "%s\t%s\t%.5g\t%.0f %%\t%.3f\t%.3f-%.3f\t%d\n", metric, c.Name(), e.Median, e.Spread()*100, r.Median, r.Low, r.High, e.N)
		}
	}
	return w.Flush()
}
