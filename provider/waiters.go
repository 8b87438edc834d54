package provider

import (
	"sync"

	"github.com/eclusa-lb/eclusa/lb"
)

// waiters are the calls of the stock controller that wait until the addresses
// of a deleted Service are safe in quarantine. Its methods may be called
// concurrently.
type waiters struct {
	mu   sync.Mutex
	last int
	all  map[int]waiter
}

type waiter struct {
	uid  lb.UID
	done chan struct{}
}

// add registers a call and returns its number and the channel that is closed
// when it may go on.
func (w *waiters) add(uid lb.UID) (int, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == nil {
		w.all = map[int]waiter{}
	}
	w.last++
	done := make(chan struct{})
	w.all[w.last] = waiter{uid, done}
	return w.last, done
}

// drop forgets a call that waits no longer.
func (w *waiters) drop(number int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.all, number)
}

// asked returns the number of the newest call: those after it have not been
// seen by a round that begins now.
func (w *waiters) asked() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

// answer lets calls up to a number go on whose Service is safe.
func (w *waiters) answer(upTo int, safe func(lb.UID) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for number, one := range w.all {
		if number <= upTo && safe(one.uid) {
			close(one.done)
			delete(w.all, number)
		}
	}
}
