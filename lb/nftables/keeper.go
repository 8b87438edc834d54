package nftables

import (
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	// lookInterval is how often the engine looks whether somebody else has changed
	// its table, which costs one message: without the table the kernel translates
	// nothing, and connections break with the next packet.
	lookInterval = 100 * time.Millisecond
	// cleanInterval is how often counters of what is gone are deleted at most.
	cleanInterval = time.Minute
	// sweepShare is the share of its time that the engine spends at most on looking
	// at connections without a special reason.
	sweepShare = 20
	// sweepGrain is within what time connections that end by and by are looked at
	// together.
	sweepGrain = 200 * time.Millisecond
)

// start opens what the engine works with, once, and learns what a process before
// has left in the kernel. Callers hold mu.
func (e *Engine) start() (err error) {
	if e.rules != nil {
		return nil
	}
	defer func() {
		if err != nil {
			e.closeSockets()
		}
	}()
	if e.rules, err = dial(); err != nil {
		return err
	}
	if e.tracking, err = dial(); err != nil {
		return err
	}
	if e.watch, err = dial(); err != nil {
		return err
	}
	e.watch.between = e.mend
	if e.raw, err = openRaw(); err != nil {
		return err
	}
	if err := e.numbers.learn(e.rules); err != nil {
		return err
	}
	if err := e.direct.learn(e.rules); err != nil {
		return err
	}
	if err := e.direct.learnCounted(e.rules); err != nil {
		return err
	}
	if err := e.tracking.flows(func(f *flow) { e.numbers.note(f.mark) }); err != nil {
		return err
	}
	// By now connection tracking is loaded, and has its settings.
	e.closedTo, err = e.applySettings()
	if err != nil {
		return err
	}
	e.keeper.Add(1)
	go e.keepWatch()
	return nil
}

func (e *Engine) closeSockets() {
	for _, s := range []**socket{&e.rules, &e.tracking, &e.watch} {
		if *s != nil {
			(*s).close()
			*s = nil
		}
	}
	if e.raw != nil {
		e.raw.close()
		e.raw = nil
	}
	e.direct.steering.close()
	e.direct.watch.close()
}

// keepWatch sees to what has to happen without a Set: connections that have
// drained or were idle for too long, the second try to reset one, and a table that
// somebody else has changed.
func (e *Engine) keepWatch() {
	defer e.keeper.Done()
	timer := time.NewTimer(lookInterval)
	defer timer.Stop()
	for _, i := range append(checkOthers(e.opts.Direct), checkMarks(e.opts.Direct)...) {
		e.log.Warn(i.Name + ": " + i.Detail)
	}
	for {
		select {
		case <-e.quit:
			return
		case <-e.wake:
		case <-timer.C:
		}
		timer.Reset(e.attend())
	}
}

// attend does what is due and returns when something will be next. Sessions that have
// to end wait for as little as can be.
func (e *Engine) attend() time.Duration {
	for _, do := range []func(){
		e.sweepDue, e.purgeDue, e.sweepDirect, func() { e.watchSteering(time.Now()) }, e.provoke, e.purgeHomes,
	} {
		e.mend()
		do()
	}
	e.clean()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.idle() {
		return lookInterval
	}
	return e.next(time.Now())
}

// mend restores the table, unless it was looked at a moment ago. It is the keeper's,
// who calls it in between whatever it does that may take long.
func (e *Engine) mend() {
	if time.Since(e.mended) < lookInterval/2 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mended = time.Now()
	if e.idle() {
		return
	}
	if err := e.restore(); err != nil {
		e.log.Error("the kernel's table cannot be restored; it is tried again", zap.Error(err))
	}
}

// idle tells whether the kernel's table is not this engine's to care for. Callers
// hold mu.
func (e *Engine) idle() bool { return e.closed || e.handed || e.state.chains == nil }

// restore repairs the table if somebody else has changed it.
func (e *Engine) restore() error {
	var err error
	if e.inForce {
		err = e.look()
	}
	if err == nil && !e.inForce {
		if err = e.replace(e.state); err == nil {
			e.inForce = true
		}
	}
	return err
}

// due tells which flows have to be looked at now, and forgets why. Callers hold mu.
func (e *Engine) due(now time.Time) []selector {
	n := 0
	for n < len(e.sweeps) && !e.sweeps[n].After(now) {
		n++
	}
	e.sweeps = slices.Delete(e.sweeps, 0, n)
	some := e.soon
	e.soon = nil
	if n > 0 || now.Sub(e.swept) >= e.idleSweep() {
		some = []selector{{}}
	}
	e.direct.due = e.direct.due || slices.ContainsFunc(some, e.direct.concerned(e.state))
	return some
}

// idleSweep is how often connections are looked at that may be idle: often enough to
// meet each of them while the kernel still knows it, and otherwise seldom.
func (e *Engine) idleSweep() time.Duration {
	least, most := time.Minute, time.Hour
	for t := range e.state.shape.timeouts {
		switch {
		case t.protocol != unix.IPPROTO_TCP:
		case slackOf(t.seconds-shortSlack) == shortSlack:
			least, most = min(least, time.Second), min(most, 2*time.Second)
		default:
			least, most = min(least, 20*time.Second), min(most, 28*time.Second)
		}
	}
	return min(max(least, sweepShare*(e.cost+e.direct.cost)), most)
}

// next is when there is something to do again.
func (e *Engine) next(now time.Time) time.Duration {
	wait := min(e.mended.Add(lookInterval).Sub(now), e.swept.Add(e.idleSweep()).Sub(now))
	if len(e.sweeps) > 0 {
		wait = min(wait, e.sweeps[0].Sub(now))
	}
	if !e.cuts.empty() || !e.direct.cuts.empty() {
		wait = min(wait, sweepGrain)
	}
	return max(wait, time.Millisecond)
}
