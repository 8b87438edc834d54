package edge

import (
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// pulses notes when the edge told that it is alive.
type pulses struct {
	mu      sync.Mutex
	last    time.Time
	longest time.Duration
	n       int
	serving bool
}

func (p *pulses) pulse(serving bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); p.n > 0 {
		p.longest = max(p.longest, now.Sub(p.last))
	}
	p.n, p.last, p.serving = p.n+1, time.Now(), serving
}

func (p *pulses) get() (n int, longest time.Duration, serving bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n, p.longest, p.serving
}

// An edge that has nothing to do tells that it is alive often enough; one whose
// loop hangs does not.
func TestPulseStopsWhenTheLoopHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t)
		var p pulses
		b.edge.pulse = p.pulse
		hang := make(chan struct{})
		close(hang)
		var gate atomic.Pointer[chan struct{}]
		gate.Store(&hang)
		b.edge.ownAddresses = func() ([]netip.Addr, error) {
			<-*gate.Load()
			return nil, nil
		}
		b.run()
		defer b.stop()
		time.Sleep(time.Hour)
		n, longest, serving := p.get()
		if n < 2 || longest >= Patience/2 || !serving {
			t.Errorf("idle for an hour: got %d pulses at most %s apart, serving %v; want them well within %s", n, longest, serving, Patience)
		}
		forever := make(chan struct{})
		gate.Store(&forever)
		defer close(forever)
		time.Sleep(resyncInterval)
		n, _, _ = p.get()
		time.Sleep(time.Hour)
		if after, _, _ := p.get(); after != n {
			t.Errorf("the loop hangs: got %d more pulses; want none", after-n)
		}
	})
}

// An edge serves when its first table is in force, not before.
func TestPulseTellsWhetherItServes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t)
		var p pulses
		b.edge.pulse = p.pulse
		b.engine.FailNext(errors.New("no memory"))
		b.run()
		defer b.stop()
		time.Sleep(firstWait + time.Second)
		if n, _, serving := p.get(); n == 0 || serving {
			t.Errorf("without a table: got %d pulses, serving %v; want it alive and not serving", n, serving)
		}
		time.Sleep(retryInterval)
		if _, _, serving := p.get(); !serving {
			t.Error("with a table: it does not serve")
		}
	})
}
