package healthcheck

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// Run probes until ctx ends, and returns nil after everything that it started
// has ended. A second call is an error.
//
// Workers are started as they are needed, never more than Options.Workers, and
// stay.
func (c *Checker) Run(ctx context.Context) error {
	if err := c.begin(); err != nil {
		return err
	}
	jobs := make(chan job, c.plan.workers) // never full, since no more can be flying
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(jobs)

	timer := time.NewTimer(never)
	defer timer.Stop()
	started := 0
	for {
		sleep, flying := c.dispatch(jobs)
		for ; started < flying; started++ {
			wg.Go(func() { c.work(ctx, jobs) })
		}
		timer.Reset(sleep)
		select {
		case <-timer.C:
		case <-c.kick:
		case <-ctx.Done():
			return nil
		}
	}
}

var errRunTwice = errors.New("checker: Run was called before")

// begin lets the schedule's clock run.
func (c *Checker) begin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.epoch.IsZero() {
		return errRunTwice
	}
	c.epoch = time.Now()
	return nil
}

// dispatch hands out all probes that are due. It returns the time until the next
// one, and how many are under way.
func (c *Checker) dispatch(jobs chan<- job) (sleep time.Duration, flying int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		now := c.now()
		j, ok := c.plan.next(now)
		if !ok {
			return c.plan.wake - now, c.plan.flying
		}
		jobs <- j
	}
}

// work makes probes until jobs is closed.
func (c *Checker) work(ctx context.Context, jobs <-chan job) {
	for j := range jobs {
		start := c.now()
		failure := ask(ctx, j.e.addr(), j.e.kind)
		end := c.now()
		if ctx.Err() != nil {
			continue // the probe was cut short, and nobody wants to know
		}
		if failure != nil && failure.Reason == Timeout {
			failure = excuse(failure, start-j.at, end-start, j.e.kind.spec.Timeout.D())
		}
		c.finish(j, start, end, failure)
	}
}

// ask makes one probe, which ends with its timeout.
func ask(ctx context.Context, addr netip.AddrPort, k *kind) *Failure {
	ctx, cancel := context.WithTimeout(ctx, k.spec.Timeout.D())
	defer cancel()
	if err := k.prober.Probe(ctx, addr, k.spec); err != nil {
		return classify(err)
	}
	return nil
}

// excuse does not hold a timeout against the member if this machine, short of
// processor time or suspended, can have missed the answer: the probe started
// late, or its end was noticed late.
func excuse(f *Failure, late, took, timeout time.Duration) *Failure {
	allowance := max(timeout/2, 50*time.Millisecond)
	late = max(late, took-timeout)
	if late <= allowance {
		return f
	}
	return &Failure{Own: true, Text: fmt.Sprintf("probe was %v late", late.Round(time.Millisecond))}
}

// finish takes in the outcome of a probe and schedules the next one.
func (c *Checker) finish(j job, start, end time.Duration, f *Failure) {
	c.mu.Lock()
	defer c.mu.Unlock()
	again := c.plan.landed(j, end)
	c.count.probe(end, start-j.due, f)
	if e := j.e; !e.gone() {
		if c.take(e, start, end, f) {
			wake(c.changed)
		}
		again = c.plan.requeue(e, start, end, c.rand) || again
	}
	if again {
		wake(c.kick)
	}
}

// take brings a target's record up to date and reports whether users should look.
func (c *Checker) take(e *entry, start, end time.Duration, f *Failure) (changed bool) {
	if f != nil && f.Own {
		e.owns = min(e.owns, 254) + 1
		return false
	}
	e.owns = 0
	if e.hinted > 0 {
		e.hinted--
	}
	c.settle(e)
	return e.judge(evidence{at: time.Now(), latency: end - start, failure: f}, e.kind.spec)
}
