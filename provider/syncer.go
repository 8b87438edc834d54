package provider

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/lb"
)

// How long a syncer waits for an answer. An edge that comes back must be right
// again within five seconds, so an attempt to reach a silent one must be short.
const (
	infoTimeout    = 2 * time.Second
	claimTimeout   = 5 * time.Second
	configTimeout  = 10 * time.Second
	setTimeout     = 10 * time.Second
	statusTimeout  = 45 * time.Second // edges wait up to 30 s for a change
	confirmTimeout = 10 * time.Second

	// maxPatience is by how much the timeouts of calls that move a whole
	// configuration may grow, so that a slow line gets there in the end.
	maxPatience = 8
)

// How long a syncer waits before it tries again.
const (
	minBackoff = 250 * time.Millisecond
	maxBackoff = 2 * time.Second
	// maxRefusedBackoff is for edges that answer and refuse.
	maxRefusedBackoff = 5 * time.Second
	// minRetry is the least time from one attempt to the next, even when there is
	// something new to send.
	minRetry = 100 * time.Millisecond
	// settled is how long a session must last to count as a success.
	settled = 5 * time.Second
)

// errRestart ends a session that has to be opened anew although the edge
// answers: what we believed about it is wrong.
var errRestart = errors.New("the edge has to be read back")

// syncer keeps one edge at its wanted configuration. What stands below the blank
// line belongs to the goroutine of Run.
type syncer struct {
	fleet *Fleet
	spec  EdgeSpec
	log   *zap.Logger
	kick  chan struct{}   // something new to do
	end   func()          // makes Run return
	ended chan struct{}   // closed when Run has returned
	after <-chan struct{} // ended of the syncer that had the edge's name before

	balancer lb.Balancer
	state    EdgeState
	epoch    lb.Epoch
	// digest is that of what the edge holds, as far as we know.
	digest lb.Digest
	// given is what the edge last acknowledged, nil before the first time and
	// while the answer to a write is lost.
	given *lb.Config
	// drift is what was found different at the edge and is not yet repaired.
	drift *difference
	// held are the removals that the edge's guard holds and nobody has confirmed.
	held      map[string]bool
	heldSince time.Time // when the first of them was
	// patience is the factor on the timeouts of large calls.
	patience time.Duration
}

func newSyncer(f *Fleet, spec EdgeSpec) *syncer {
	return &syncer{
		fleet:    f,
		spec:     spec,
		log:      f.options.Log.With(zap.String("edge", spec.Name)),
		kick:     make(chan struct{}, 1),
		ended:    make(chan struct{}),
		state:    EdgeState{Name: spec.Name, Since: time.Now()},
		held:     make(map[string]bool),
		patience: 1,
	}
}

// wake tells the syncer that there may be something new to do.
func (s *syncer) wake() { signal(s.kick) }

// Run keeps the edge at what is wanted of it until ctx ends, and returns nil
// then. It returns ErrNotLeader when another leads.
func (s *syncer) Run(ctx context.Context) error {
	if s.after != nil {
		<-s.after
	}
	defer s.hangUp()
	for failures, restarts := 0, 0; ; {
		began := time.Now()
		err := s.converse(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, ErrNotLeader) {
			s.log.Error("writing to edges ends: this program does not lead", zap.Error(err))
			return err
		}
		if time.Since(began) >= settled {
			failures, restarts = 0, 0
		}
		pause := backoff(failures+restarts, maxBackoff)
		if errors.Is(err, errRestart) {
			// The first time at once: usually that is all it takes.
			if restarts == 0 {
				pause = 0
			}
			restarts++
			s.log.Info("edge is read back", zap.Duration("in", pause), zap.Error(err))
		} else {
			failures, restarts = failures+1, 0
			s.lost(err, pause)
		}
		if !s.rest(ctx, began, pause) {
			return nil
		}
	}
}

// converse opens a session with the edge and leads it until it fails.
func (s *syncer) converse(ctx context.Context) error {
	if err := s.open(ctx); err != nil {
		return err
	}
	return newSession(s).Run(ctx)
}

// open learns what the edge is and what it holds, and claims the right to write
// unless we have it already: an epoch outlives broken connections and restarts
// of the edge.
func (s *syncer) open(ctx context.Context) error {
	if s.balancer == nil {
		b, err := s.fleet.options.Dial(s.spec)
		if err != nil {
			return fmt.Errorf("dialling edge %q at %q: %w", s.spec.Name, s.spec.Endpoint, err)
		}
		s.balancer = b
	}
	info, err := s.info(ctx)
	if err != nil {
		return err
	}
	s.state.Info = info
	s.state.LastContact = time.Now()
	if info.Schema != lb.Schema {
		return fmt.Errorf("edge %q of version %q reads schema %q and this program writes %q, one of them has to be updated: %w",
			s.spec.Name, info.Version, info.Schema, lb.Schema, lb.ErrUnsupported)
	}
	if w, ok := s.fleet.newest(s.spec); ok && !w.Paused && s.epoch == "" {
		if err := s.claim(ctx); err != nil {
			return err
		}
	}
	return s.readBack(ctx)
}

// info asks the edge what it is.
func (s *syncer) info(ctx context.Context) (lb.Info, error) {
	info, err := within(ctx, infoTimeout, s.balancer.Info)
	if err != nil {
		return lb.Info{}, fmt.Errorf("asking edge %q what it is: %w", s.spec.Name, err)
	}
	return info, nil
}

// claim makes us the only writer on the edge.
func (s *syncer) claim(ctx context.Context) error {
	c, err := within(ctx, claimTimeout, s.fleet.options.Claim)
	if err != nil {
		return fmt.Errorf("reading back the Lease before claiming edge %q: %w", s.spec.Name, err)
	}
	epoch, err := within(ctx, claimTimeout, func(ctx context.Context) (lb.Epoch, error) {
		return s.balancer.Claim(ctx, c)
	})
	if err != nil {
		return fmt.Errorf("claiming edge %q: %w", s.spec.Name, err)
	}
	s.epoch = epoch
	s.log.Info("edge claimed", zap.String("epoch", string(epoch)), zap.String("holder", c.Holder), zap.Int64("leaseTransitions", c.LeaseTransitions))
	return nil
}

// readBack learns what the edge holds, and notes in drift what differs from what
// it was given.
func (s *syncer) readBack(ctx context.Context) error {
	var digest lb.Digest
	config, err := within(ctx, configTimeout*s.patience, func(ctx context.Context) (c lb.Config, err error) {
		c, digest, err = s.balancer.Config(ctx)
		return c, err
	})
	if err != nil {
		s.grow(err)
		return fmt.Errorf("reading back edge %q: %w", s.spec.Name, err)
	}
	if s.given != nil && digest != s.digest {
		if d := compare(*s.given, config); !d.empty() {
			s.drift = &d
			s.log.Warn("edge does not hold what it was given, it is put right", zap.Stringer("difference", d))
		}
	}
	s.digest = digest
	s.state.Holds, s.state.Known = config, true
	s.found()
	return nil
}

// found notes that the edge answers.
func (s *syncer) found() {
	now := time.Now()
	s.state.LastContact = now
	s.state.Problem = ""
	if !s.state.Connected {
		s.state.Connected, s.state.Since = true, now
		s.log.Info("edge reached", zap.String("endpoint", s.spec.Endpoint), zap.String("version", s.state.Info.Version), zap.String("engine", s.state.Info.Engine))
		s.fleet.options.Event(s.spec.Name, corev1.EventTypeNormal, "Connected", fmt.Sprintf("the edge at %s answers", s.spec.Endpoint))
	}
	s.publish()
}

// lost notes that a session could not be opened, or broke.
func (s *syncer) lost(err error, pause time.Duration) {
	first := s.state.Problem == "" || s.state.Connected
	s.hangUp()
	s.state.Problem = err.Error()
	if s.state.Connected {
		s.state.Connected, s.state.Since = false, time.Now()
	}
	level := zap.DebugLevel
	if first {
		level = zap.WarnLevel
		s.fleet.options.Event(s.spec.Name, corev1.EventTypeWarning, "Disconnected", s.state.Problem)
	}
	s.log.Log(level, "edge cannot be written to, it keeps what it holds; trying again", zap.Duration("in", pause), zap.Error(err))
	s.publish()
}

// rest waits for the pause, or less when there is something new to send. It
// returns false when ctx has ended.
func (s *syncer) rest(ctx context.Context, began time.Time, pause time.Duration) bool {
	for _, wait := range []struct {
		d    time.Duration
		kick <-chan struct{}
	}{{min(pause, minRetry-time.Since(began)), nil}, {pause, s.kick}} {
		if wait.d <= 0 {
			continue
		}
		timer := time.NewTimer(wait.d)
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
		case <-wait.kick:
		}
	}
	return ctx.Err() == nil
}

// hangUp closes the connections of the edge's client, if it has any, and forgets
// the client, so that the next attempt begins from nothing: on an old connection
// TCP may wait for long before it tries again, and what an old client remembers
// of the edge may not be so any more.
func (s *syncer) hangUp() {
	if c, ok := s.balancer.(interface{ Close() }); ok {
		c.Close()
	}
	s.balancer = nil
}

// grow makes us more patient with large calls if one ran out of time.
func (s *syncer) grow(err error) {
	if errors.Is(err, context.DeadlineExceeded) {
		s.patience = min(2*s.patience, maxPatience)
	}
}

// publish makes the state known as news.
func (s *syncer) publish() { s.fleet.publish(s.spec, s.state, true) }

// within calls with a deadline.
func within[T any](ctx context.Context, d time.Duration, call func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	v, err := call(ctx)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
		err = fmt.Errorf("no answer within %s: %w", d, err)
	}
	return v, err
}

// backoff returns how long to wait after so many failures in a row: twice as
// long each time, up to most, of which a random half keeps edges and leaders
// apart.
func backoff(failures int, most time.Duration) time.Duration {
	d := most
	if failures < 16 {
		d = min(most, minBackoff<<failures)
	}
	return d/2 + rand.N(d/2+1) //nolint:gosec // nobody gains by guessing it
}
