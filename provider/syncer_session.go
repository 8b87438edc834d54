package provider

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// session is one conversation with an edge that answers: what is wanted goes
// out as soon as it changes, while a long poll brings back what became of it.
type session struct {
	*syncer
	polls   chan lb.Cursor
	answers chan answer
	// recent are the digests that the edge had, as far as we know, at some time
	// since the poll under way began: its answer may be older than our last write.
	recent map[lb.Digest]bool
	// sent is what was last brought to the edge, to tell wake-ups without news.
	sent    *Wanted
	refused int // failures in a row of an edge that answers
	// unproven is when the edge acknowledged what its status does not show yet,
	// zero if there is no such thing.
	unproven time.Time
	confirm  time.Time // when held removals are to be looked up next
}

// maxUnproven is how long an edge may take to show what it has acknowledged.
const maxUnproven = 3 * time.Second

// answer is what came of one long poll.
type answer struct {
	delta lb.StatusDelta
	err   error
}

func newSession(s *syncer) *session {
	return &session{
		syncer:  s,
		polls:   make(chan lb.Cursor, 1),
		answers: make(chan answer, 1),
	}
}

// Run leads the session until ctx ends or it breaks. It never returns nil
// before ctx has ended.
func (c *session) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { c.poll(ctx) })
	c.ask()
	for {
		again, err := c.push(ctx)
		if err != nil {
			return err
		}
		if err := c.listen(ctx, again); err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// listen takes answers of the edge until there is something to push, which is
// when the syncer is woken or again has passed, unless that is zero.
func (c *session) listen(ctx context.Context, again time.Duration) error {
	var retry <-chan time.Time
	if again > 0 {
		timer := time.NewTimer(again)
		defer timer.Stop()
		retry = timer.C
	}
	for {
		var proof <-chan time.Time
		if !c.unproven.IsZero() {
			proof = time.After(maxUnproven - time.Since(c.unproven))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-proof:
			return fmt.Errorf("edge %q does not show what it has acknowledged: %w", c.spec.Name, errRestart)
		case <-c.kick:
			return nil
		case <-retry:
			return nil
		case a := <-c.answers:
			known := c.state.Status.Cursor != ""
			if err := c.take(a); err != nil {
				return err
			}
			if known && a.delta.Full {
				if err := c.sameEdge(ctx); err != nil {
					return err
				}
			}
			c.ask()
		}
	}
}

// sameEdge returns an error if the edge is not what it was when the session began. An
// upgrade breaks no connection: that another process answers, which may be of
// another version and can do other things, shows only in that it knows nothing of
// what was told before.
func (c *session) sameEdge(ctx context.Context) error {
	info, err := c.info(ctx)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(info, c.state.Info) {
		return fmt.Errorf("edge %q was of version %q and is of version %q now: %w", c.spec.Name, c.state.Info.Version, info.Version, errRestart)
	}
	return nil
}

// poll asks for the status whenever told to.
func (c *session) poll(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case cursor := <-c.polls:
			d, err := within(ctx, statusTimeout, func(ctx context.Context) (lb.StatusDelta, error) {
				return c.balancer.Status(ctx, cursor)
			})
			c.answers <- answer{d, err}
		}
	}
}

// ask begins the next poll.
func (c *session) ask() {
	c.recent = map[lb.Digest]bool{c.digest: true}
	c.polls <- c.state.Status.Cursor
}

// take learns what the edge says, and returns an error if the session cannot go
// on.
func (c *session) take(a answer) error {
	if a.err != nil {
		return fmt.Errorf("reading the status of edge %q: %w", c.spec.Name, a.err)
	}
	was := c.state.Status.Cursor
	c.state.Status.Apply(a.delta)
	c.state.LastContact = time.Now()
	c.fleet.publish(c.spec, c.state, a.delta.Cursor != was || a.delta.Full)
	drifted := !c.recent[a.delta.Digest]
	if c.epoch != "" && a.delta.Epoch != c.epoch && (a.delta.Epoch != "" || drifted) {
		c.epoch = ""
		return fmt.Errorf("edge %q has given our right to write to another, or has lost its state: %w", c.spec.Name, errRestart)
	}
	if drifted {
		return fmt.Errorf("edge %q holds something else than it was given: %w", c.spec.Name, errRestart)
	}
	if a.delta.Digest == c.digest {
		c.unproven = time.Time{}
	}
	return nil
}
