package edge

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// figures are what the loop counts.
type figures struct {
	lastBeat      time.Time
	applyErrors   uint64
	refused       int   // frontends, by the engine
	engineErr     error // of the last table
	announceCount int
	announceErr   error // of the last set of addresses
	announceFails uint64
}

// stats are the figures of the loop, for metrics and readiness.
type stats struct {
	apply prometheus.Histogram

	mu sync.Mutex // guards what follows
	figures
}

func newStats() stats {
	return stats{apply: prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "eclusa_edge_apply_seconds",
		Help:    "Time from a change to the table being in force: compiling, engine, announcing.",
		Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8),
	})}
}

// beat notes that the loop is alive.
func (s *stats) beat() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastBeat = time.Now()
}

// applied notes how long a round of compiling and applying took.
func (s *stats) applied(d time.Duration) { s.apply.Observe(d.Seconds()) }

// engineSaid notes what the engine said to the last table.
func (s *stats) engineSaid(refused int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused, s.engineErr = refused, err
	if err != nil {
		s.applyErrors++
	}
}

func (s *stats) engineFailed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.engineErr != nil
}

// announced notes what became of the addresses.
func (s *stats) announced(n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.announceCount, s.announceErr = n, err
	if err != nil {
		s.announceFails++
	}
}

// snapshot returns a copy of the figures.
func (s *stats) snapshot() figures {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.figures
}
