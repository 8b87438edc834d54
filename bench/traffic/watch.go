package traffic

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"
)

// untilInput tells when the standard input has ended.
func untilInput() *atomic.Bool {
	var ended atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		ended.Store(true)
	}()
	return &ended
}

// runIdle opens connections and keeps them.
func runIdle(s Spec) (*Result, error) {
	ended := untilInput()
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	r := &Result{}
	k, err := newKept(s, p, r)
	if err != nil {
		return nil, err
	}
	k.clock = startClock(s)
	for _, fd := range append([]int(nil), k.idle...) {
		k.ask(fd, time.Now())
	}
	k.idle = nil
	told := false
	for !ended.Load() {
		events, err := p.wait(20 * time.Millisecond)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			k.event(int(e.Fd), time.Now())
		}
		if !told && k.result.All >= int64(s.Width) {
			told = true
			fmt.Println("ready")
		}
	}
	r.finish(k.clock)
	k.close()
	return r, nil
}

// runWatch keeps Width connections, on which Rate requests a second go in turn,
// and keeps Window short connections going beside them, or begins Brief a second. The first half of To is for
// the former, the second for the latter. A kept connection that is lost stays so.
func runWatch(s Spec) (*Result, error) {
	ended := untilInput()
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	half := len(s.To) / 2
	long, brief := s, s
	long.To, brief.To = s.To[:half], s.To[half:]
	r := &Result{}
	k, err := newKept(long, p, r)
	if err != nil {
		return nil, err
	}
	b := newShorts(brief, p, r)
	k.clock = startClock(s)
	b.clock = k.clock
	pace, looked := newPace(k.clock.start, s.Rate), k.clock.start
	briefPace := newPace(k.clock.start, s.Brief)
	fmt.Println("ready")
	for now := k.clock.start; !ended.Load() || b.open > 0; now = time.Now() {
		for range pace.due(now) {
			if len(k.idle) > 0 {
				fd := k.idle[0]
				k.idle = k.idle[1:]
				k.ask(fd, now)
			}
		}
		for n := briefPace.due(now); s.Brief > 0 && n > 0 && !ended.Load(); n-- {
			b.begin(now)
		}
		for !ended.Load() && s.Brief == 0 && b.open < s.Window {
			failed := r.Failed
			if b.begin(now); r.Failed > failed {
				break
			}
		}
		b.expire(now)
		if now.Sub(looked) > 50*time.Millisecond {
			looked = now
			k.expire(now)
		}
		events, err := p.wait(min(max(pace.until(time.Now()), 0), time.Millisecond))
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			if fd := int(e.Fd); e.Pad == tagShort {
				b.event(fd, e.Events, time.Now())
			} else if k.event(fd, time.Now()) {
				k.idle = append(k.idle, fd)
			}
		}
	}
	r.finish(k.clock)
	k.close()
	return r, nil
}
