package edge

import (
	"sync"
	"time"
)

// figures are what the loop counts.
type figures struct {
	lastBeat      time.Time
	applies       uint64
	applyTime     time.Duration // of the last one
	applyErrors   uint64
	engineErr     error // of the last table
	announceCount int
	announceErr   error // of the last set of addresses
	announceFails uint64
}

// stats are the figures of the loop, for metrics and readiness.
type stats struct {
	mu sync.Mutex
	figures
}

// beat notes that the loop is alive.
func (s *stats) beat() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastBeat = time.Now()
}

// applied notes how long a round of compiling and applying took.
func (s *stats) applied(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applies++
	s.applyTime = d
}

// failed notes what the engine said to the last table; nil is success.
func (s *stats) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.engineErr = err
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
