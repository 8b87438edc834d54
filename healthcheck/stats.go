package healthcheck

import (
	"slices"
	"time"
)

// Stats are a Checker's own figures.
type Stats struct {
	Targets   int           // in the present set
	Rate      float64       // probes per second, over the last five seconds
	Stretched float64       // factor by which the budget lengthens regular intervals; 1: not at all
	LagP99    time.Duration // how late probes start, 99th percentile of the last 1024
	Flying    int           // probes under way
	Workers   int           // the most that can be
	Probes    uint64        // completed, in total
	OwnErrors uint64        // of them not counted because this machine was at fault
	OwnError  string        // the last of those faults, such as "too many open files"; empty: none yet
}

// Stats returns the checker's own figures.
func (c *Checker) Stats() Stats {
	c.mu.Lock()
	s := Stats{
		Targets:   c.entries.len,
		Rate:      c.count.rate(c.now()),
		Stretched: c.plan.stretch,
		Flying:    c.plan.flying,
		Workers:   c.plan.workers,
		Probes:    c.count.probes,
		OwnErrors: c.count.own,
		OwnError:  c.count.ownText,
	}
	lags := c.count.lags
	n := min(c.count.probes, uint64(len(lags)))
	c.mu.Unlock()

	if n > 0 {
		slices.Sort(lags[:n])
		s.LagP99 = lags[(n*99-1)/100]
	}
	return s
}

// rateSeconds is over how many past seconds the rate is measured.
const rateSeconds = 5

// counters are what Stats are made of; Checker.mu guards them.
type counters struct {
	probes, own uint64
	ownText     string
	lags        [1024]time.Duration // of the last probes, a ring
	seconds     [rateSeconds + 1]struct {
		second time.Duration // since Run began, in whole seconds
		probes int
	}
}

// probe counts a completed probe.
func (c *counters) probe(end, lag time.Duration, f *Failure) {
	c.lags[c.probes%uint64(len(c.lags))] = lag
	c.probes++
	if f != nil && f.Own {
		c.own++
		c.ownText = trimmed(f).Text
	}
	second := end.Truncate(time.Second)
	b := &c.seconds[int(end/time.Second)%len(c.seconds)]
	if b.second != second {
		b.second, b.probes = second, 0
	}
	b.probes++
}

// rate returns the probes per second over the last whole seconds, or since Run
// began if that was just now.
func (c *counters) rate(now time.Duration) float64 {
	present := now.Truncate(time.Second)
	if present == 0 {
		return float64(c.seconds[0].probes) / max(now, time.Second/10).Seconds()
	}
	span := min(present, rateSeconds*time.Second)
	sum := 0
	for _, b := range c.seconds {
		if b.second < present && b.second >= present-span {
			sum += b.probes
		}
	}
	return float64(sum) / span.Seconds()
}
