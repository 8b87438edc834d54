package edge

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/lb"
)

const (
	shortRound  = 5 * time.Millisecond
	longestRest = 200 * time.Millisecond
)

// Run serves until ctx ends. Then it takes no new connections, lets the
// established ones go on for the drain timeout, and returns. After a hand-over it
// returns when the last of them has ended. It may be called once.
func (e *Edge) Run(ctx context.Context) error {
	defer e.Close() //nolint:errcheck // the lock ends with the process at the latest
	s := newSaver(e)
	var saving sync.WaitGroup
	defer saving.Wait()
	defer close(s.health)
	saving.Go(func() { s.run(ctx) })

	l := &loop{Edge: e, saver: s, seeds: e.knownAtStart()}
	l.readOwnAddresses()
	l.compile(l.snapshot(), survey{})
	if l.predecessor == nil {
		l.waitFirst(ctx)
	} else if err := l.takeOver(ctx); err != nil {
		now, cancel := context.WithCancel(ctx)
		cancel()
		return errors.Join(err, l.engine.Shutdown(now))
	}
	if l.run(ctx) {
		return l.drain(ctx)
	}
	if err := mark(l.lock); err != nil {
		l.log.Warn("the end of this process will look like a crash to those that drain", zap.Error(err))
	}
	l.saveHealth()
	if e, ok := l.engine.(servesOn); ok && e.ServesOn() {
		l.log.Info("traffic goes on in the kernel as it was last; nobody checks members until the next start")
		return l.shutdown(context.WithoutCancel(ctx))
	}
	l.log.Info("no new connections are taken; open ones may end", zap.Duration("within", l.drainTimeout))
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.drainTimeout)
	defer cancel()
	return l.shutdown(within)
}

// servesOn is an engine that may leave others, the kernel, to serve after its
// Shutdown.
type servesOn interface{ ServesOn() bool }

// waitFirst waits for the first results, so that ignorance alone never takes a
// member out of a table that is in force already.
func (l *loop) waitFirst(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, firstWait)
	defer cancel()
	if err := l.checker.WaitFirst(ctx); err != nil && !errors.Is(err, context.Canceled) {
		l.log.Info("some members have not been probed yet; they count as what was known of them before")
	}
}

// run works whenever there is reason to, until ctx ends. It returns true at once
// when another process has taken over.
func (l *loop) run(ctx context.Context) (released bool) {
	defer close(l.over)
	resync := time.NewTimer(0)
	defer resync.Stop()
	look := time.NewTimer(0)
	defer look.Stop()
	look.Stop()
	for {
		force, troubled := false, l.trouble
		select {
		case <-ctx.Done():
			return false
		case p := <-l.pauses:
			if l.pause(ctx, p) {
				return true
			}
			if ctx.Err() != nil {
				return false
			}
			force = true
		case <-l.kicks:
		case <-l.checker.Changed():
			l.healthChanged = true
		case <-look.C:
		case <-resync.C:
			force = true
			l.readOwnAddresses()
		}
		l.turn(ctx, force)
		l.saveHealthNowAndThen()
		// Reset only when there is a reason: work that comes more often than the
		// timer's interval must not put it off for ever.
		switch {
		case l.trouble && (force || !troubled):
			resync.Reset(retryInterval)
		case force:
			resync.Reset(resyncInterval)
		}
		if within, ok := l.lookAgain(); ok {
			look.Reset(within)
		}
	}
}

// lookAgain says when something may have changed of which nobody will tell.
func (l *loop) lookAgain() (within time.Duration, ok bool) {
	if l.pending {
		return deadInterval, true
	}
	if len(l.leaving) > 0 {
		within, ok = lingerInterval, true
	}
	if !l.endsAt.IsZero() {
		if until := max(time.Until(l.endsAt), deadInterval); !ok || until < within {
			within, ok = until, true
		}
	}
	return within, ok
}

// turn does one round of work, and rests as long as it took: when changes come
// faster than a large table can follow, it takes several at once, and leaves
// the processors to the traffic.
func (l *loop) turn(ctx context.Context, force bool) {
	start := time.Now()
	l.work(ctx, force)
	l.stats.beat()
	l.first.Do(func() { close(l.begun) })
	if l.pulse != nil {
		l.pulse(l.ready.Load())
	}
	took := time.Since(start)
	if took < shortRound {
		return
	}
	rest := time.NewTimer(min(took, longestRest))
	defer rest.Stop()
	select {
	case <-rest.C:
	case <-ctx.Done():
	}
}

// readOwnAddresses learns the machine's addresses. What was learned before holds
// when that fails.
func (l *loop) readOwnAddresses() {
	if l.ownAddresses == nil {
		return
	}
	own, err := l.ownAddresses()
	if err != nil {
		l.log.Warn("the machine's addresses cannot be read; those of the last time are protected from being load balancers'", zap.Error(err))
		return
	}
	l.own = own
}

// shutdown drains the engine until ctx ends. The addresses stay: a client that
// connects is refused at once then, and the next start finds them in place.
func (l *loop) shutdown(ctx context.Context) error {
	start := time.Now()
	if err := l.engine.Shutdown(ctx); err != nil {
		return fmt.Errorf("shut down the engine %q: %w", l.engine.Name(), err)
	}
	if e, ok := l.engine.(servesOn); ok && e.ServesOn() {
		return nil
	}
	l.log.Info("all connections have ended or were cut", zap.Duration("after", time.Since(start).Round(time.Millisecond)))
	return nil
}

// problemType names the kind of an error, as a Problem does.
func problemType(err error) string {
	for _, k := range []struct {
		kind error
		name string
	}{
		{lb.ErrAddressHeld, "address-held"}, {lb.ErrUnsupported, "unsupported"},
		{lb.ErrExhausted, "exhausted"}, {lb.ErrInvalid, "invalid"}, {lb.ErrNotFound, "not-found"},
	} {
		if errors.Is(err, k.kind) {
			return k.name
		}
	}
	return "unsupported"
}
