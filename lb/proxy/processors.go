package proxy

import (
	"runtime"
	"sync"
)

// A loop that waits holds a processor of the Go runtime (a P) until the runtime,
// which looks every few milliseconds, takes it away. So that the rest of the
// program does not wait for that, it gets one more for each loop.
// The runtime then follows changes of its cgroup's CPU limit no longer.
var lent struct {
	mu sync.Mutex
	n  int
}

// lendProcessors lets the program run n goroutines more at the same time, or fewer
// if n is negative.
func lendProcessors(n int) {
	lent.mu.Lock()
	defer lent.mu.Unlock()
	lent.n += n
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + n)
}

// processors returns how many the program may use by itself.
func processors() int {
	lent.mu.Lock()
	defer lent.mu.Unlock()
	return runtime.GOMAXPROCS(0) - lent.n
}
