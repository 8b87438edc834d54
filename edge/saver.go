package edge

import (
	"context"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/healthcheck"
)

// saver writes what nobody waits for. It is not the goroutine that decides: a
// disk that hangs must not stop traffic from following the nodes' health.
type saver struct {
	*Edge
	health  chan map[healthcheck.Target]healthcheck.Result // capacity 1; closed at the end
	resting chan chan struct{}                             // gets channels to close between two writes
}

func newSaver(e *Edge) *saver {
	return &saver{Edge: e, health: make(chan map[healthcheck.Target]healthcheck.Result, 1), resting: make(chan chan struct{})}
}

// offer hands over what is known of members, in place of what was not yet saved.
// Only the loop calls it.
func (s *saver) offer(known map[healthcheck.Target]healthcheck.Result) {
	select {
	case <-s.health:
	default:
	}
	s.health <- known
}

// run saves until the channel is closed.
func (s *saver) run(ctx context.Context) {
	again := time.NewTicker(retryInterval)
	defer again.Stop()
	for {
		select {
		case known, ok := <-s.health:
			if !ok {
				return
			}
			s.saveHealth(known)
		case done := <-s.resting:
			close(done)
		case <-again.C:
			for _, c := range s.clusters {
				c.saveAgain(ctx)
			}
		}
	}
}

func (s *saver) saveHealth(known map[healthcheck.Target]healthcheck.Result) {
	data, err := encodeHealth(known)
	if err == nil {
		temporary := s.healthPath + ".new"
		if err = os.WriteFile(temporary, data, 0o600); err == nil {
			err = os.Rename(temporary, s.healthPath)
		}
	}
	if err != nil {
		s.log.Debug("the members' health cannot be saved", zap.Error(err))
	}
}
