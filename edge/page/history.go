package page

import (
	"sync"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// What is remembered. A load balancer costs memory once something has passed
// through it: 1.2 kB, 6 MB for 5,000 of them, and never more than 24 MB.
const (
	sampleInterval = 2 * time.Second
	// window is how far back plots go.
	window = 5 * time.Minute
	// totalPoints and seriesPoints fill the window at one sample each, and at
	// one of every seriesEvery.
	totalPoints  = int(window / sampleInterval)
	seriesEvery  = 3
	seriesPoints = totalPoints / seriesEvery
	// maxSeries is how many load balancers have a memory.
	maxSeries = 20_000
)

// A point is what passed since the point before, per second, but for active.
type point struct {
	active, accepted, refused, in, out float32
}

// counts are what an engine has counted in all, but for active.
type counts struct {
	active                     int64
	accepted, refused, in, out uint64
}

func (c *counts) add(r lb.RouteCounters) {
	c.active += r.Active
	c.accepted += r.Accepted
	for _, n := range r.Refused {
		c.refused += n
	}
	for _, m := range r.Members {
		c.in += m.BytesIn
		c.out += m.BytesOut
	}
}

// since returns the rates between two counts. A frontend that is gone takes its
// counts along, so that sums may fall; that is not negative traffic.
func (c counts) since(before counts, d time.Duration) point {
	rate := func(now, then uint64) float32 {
		if now <= then {
			return 0
		}
		return float32(float64(now-then) / d.Seconds())
	}
	return point{
		active: float32(c.active), accepted: rate(c.accepted, before.accepted), refused: rate(c.refused, before.refused),
		in: rate(c.in, before.in), out: rate(c.out, before.out),
	}
}

// series is the memory of one load balancer. Its points stand at the places of
// history.times.
type series struct {
	last   counts
	points [seriesPoints]point
}

// history remembers samples of everything, and fewer of each load balancer.
type history struct {
	mu     sync.Mutex // guards what follows
	total  timeline
	sum    counts
	points [totalPoints]point
	times  timeline // of the load balancers
	series map[lb.Owner]*series
	ticks  int
}

// timeline are the times of the points of a ring.
type timeline struct {
	at   []time.Time
	next int
	last time.Time
}

// put makes a time the newest and returns its place.
func (t *timeline) put(now time.Time) int {
	i := t.next
	t.at[i], t.last = now, now
	t.next = (i + 1) % len(t.at)
	return i
}

func newHistory() *history {
	return &history{
		total: timeline{at: make([]time.Time, totalPoints)}, times: timeline{at: make([]time.Time, seriesPoints)},
		series: make(map[lb.Owner]*series),
	}
}

// add takes a sample.
func (h *history) add(now time.Time, counters []lb.RouteCounters) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var sum counts
	for _, r := range counters {
		sum.add(r)
	}
	if d := now.Sub(h.total.last); d > 0 && !h.total.last.IsZero() {
		h.points[h.total.put(now)] = sum.since(h.sum, d)
	}
	h.sum, h.total.last = sum, now
	if h.ticks%seriesEvery == 0 {
		h.addSeries(now, counters)
	}
	h.ticks++
}

// addSeries takes a sample of each load balancer.
func (h *history) addSeries(now time.Time, counters []lb.RouteCounters) {
	first := h.times.last.IsZero()
	d := now.Sub(h.times.last)
	if !first && d <= 0 {
		return
	}
	place := h.times.put(now)
	sums := make(map[lb.Owner]counts, len(h.series))
	for _, r := range counters {
		c := sums[r.Owner]
		c.add(r)
		if c != (counts{}) {
			sums[r.Owner] = c
		}
	}
	for owner, s := range h.series {
		if _, ok := sums[owner]; !ok {
			delete(h.series, owner)
			continue
		}
		s.points[place] = point{}
	}
	for owner, c := range sums {
		s := h.series[owner]
		if s == nil {
			if len(h.series) >= maxSeries {
				continue
			}
			s = new(series)
			h.series[owner] = s
			if first {
				s.last = c // what passed before anybody watched is no rate
			}
		}
		if !first {
			s.points[place] = c.since(s.last, d)
		} else {
			s.points[place].active = float32(c.active)
		}
		s.last = c
	}
}

// A line is a row of points, oldest first.
type line struct {
	at     []time.Time
	points []point
}

// now returns the rates over the last seconds: the mean of the newest n points.
func (l line) now(n int) point {
	n = min(n, len(l.points))
	if n == 0 {
		return point{}
	}
	var sum point
	for _, p := range l.points[len(l.points)-n:] {
		sum.accepted += p.accepted
		sum.refused += p.refused
		sum.in += p.in
		sum.out += p.out
	}
	f := float32(n)
	return point{
		active: l.points[len(l.points)-1].active, accepted: sum.accepted / f, refused: sum.refused / f, in: sum.in / f, out: sum.out / f,
	}
}

// totals returns the points of everything within the window before now.
func (h *history) totals(now time.Time) line {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.total.line(now, h.points[:])
}

// of returns the points of a load balancer; none if nothing ever passed.
func (h *history) of(owner lb.Owner, now time.Time) line {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.series[owner]
	if s == nil {
		return line{}
	}
	return h.times.line(now, s.points[:])
}

// rates returns what passes through each load balancer that has a memory.
func (h *history) rates() map[lb.Owner]point {
	h.mu.Lock()
	defer h.mu.Unlock()
	newest := (h.times.next + seriesPoints - 1) % seriesPoints
	rates := make(map[lb.Owner]point, len(h.series))
	for owner, s := range h.series {
		rates[owner] = s.points[newest]
	}
	return rates
}

func (t *timeline) line(now time.Time, points []point) line {
	var l line
	for i := range t.at {
		j := (t.next + i) % len(t.at)
		if at := t.at[j]; !at.IsZero() && now.Sub(at) <= window {
			l.at = append(l.at, at)
			l.points = append(l.points, points[j])
		}
	}
	return l
}
