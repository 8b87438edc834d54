package proxy

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	// batch is the number of events taken from the kernel at once.
	batch = 256
	// scratchSize is the size of a loop's buffer, and so of the largest read.
	scratchSize = 64 << 10
	// yieldEvery is how often a loop calls the scheduler of the runtime. That takes
	// a goroutine that has not done so for 10 ms for one that keeps others waiting,
	// and then interrupts it and takes its processor every 20 us.
	yieldEvery = int64(8 * time.Millisecond)
)

// handler is something with a descriptor in a loop.
type handler interface {
	// ready is called in the loop when the descriptor is.
	ready(l *loop, events uint32)
	// abandon closes everything at once, without regard to peers.
	abandon(l *loop)
}

// slot is a place for one handler. The generation tells an event of the present
// handler from one of a former.
type slot struct {
	h   handler
	gen int32
}

// loop is an event loop. Fields and methods are of its own goroutine, but for
// post and what stands under mu.
type loop struct {
	e     *Engine
	index int

	epfd   int
	wakefd int
	wakeAt int32 // slot of wakefd

	now    int64 // since the engine's start, as of the present batch
	yield  int64 // when to call the scheduler next
	events [batch]unix.EpollEvent
	got    int
	slots  []slot
	free   []int32
	timers timers
	runq   []*conn
	spare  []*conn

	scratch []byte
	grams   *datagrams
	pipes   []*pipe
	icmp    icmp
	sa4     unix.SockaddrInet4
	sa6     unix.SockaddrInet6

	// load is the number of connections and sessions.
	load atomic.Int64
	idle chan struct{} // closed when load falls to zero; nil: nobody waits
	quit bool

	mu     sync.Mutex
	inbox  []func(*loop)
	posted atomic.Bool // the inbox is not empty
	asleep atomic.Bool // and posts must wake the loop
}

// newLoop makes the descriptors of a loop.
func newLoop(e *Engine, index int) (*loop, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll descriptor: %w", err)
	}
	wakefd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		closeFD(epfd)
		return nil, fmt.Errorf("create event descriptor: %w", err)
	}
	l := &loop{e: e, index: index, epfd: epfd, wakefd: wakefd, scratch: make([]byte, scratchSize)}
	if l.wakeAt, err = l.add(l.wakefd, waker{}, unix.EPOLLIN); err != nil {
		closeFD(wakefd)
		closeFD(epfd)
		return nil, err
	}
	return l, nil
}

// waker is the handler of the descriptor that tells of posts.
type waker struct{}

func (waker) ready(l *loop, _ uint32) {
	var b [8]byte
	_, _ = unix.Read(l.wakefd, b[:])
}

func (waker) abandon(*loop) {}

// post makes the loop call f soon. It may be called from any goroutine.
func (l *loop) post(f func(*loop)) {
	l.mu.Lock()
	l.inbox = append(l.inbox, f)
	l.posted.Store(true)
	l.mu.Unlock()
	if l.asleep.CompareAndSwap(true, false) {
		one := [8]byte{1}
		_, _ = unix.Write(l.wakefd, one[:])
	}
}

func (l *loop) runPosts() {
	l.mu.Lock()
	posts := l.inbox
	l.inbox = nil
	l.posted.Store(false)
	l.mu.Unlock()
	for _, f := range posts {
		l.guard(waker{}, func() { f(l) })
	}
}

// run is the goroutine of the loop. It ends after quit was set.
func (l *loop) run() {
	defer l.e.running.Done()
	for !l.quit {
		if err := l.wait(); err != nil {
			// Without its descriptor the loop cannot go on, and it cannot lose it.
			l.e.opts.Log.DPanic("event loop of the proxy stopped", zap.Int("loop", l.index), zap.Error(err))
			return
		}
		l.now = l.e.clock()
		for i := range l.got {
			l.dispatch(&l.events[i])
		}
		if l.posted.Load() {
			l.runPosts()
		}
		l.runQueue()
		for t := l.timers.pop(l.now); t != nil; t = l.timers.pop(l.now) {
			l.guard(t, func() { t.expire(l) })
		}
		if l.idle != nil && l.load.Load() == 0 {
			close(l.idle)
			l.idle = nil
		}
		if l.now >= l.yield {
			l.yield = l.now + yieldEvery
			runtime.Gosched()
		}
	}
}

// close gives back the loop's own descriptors after run has returned.
func (l *loop) close() {
	for _, p := range l.pipes {
		p.close()
		l.e.files.give(2)
	}
	l.icmp.close(&l.e.files)
	closeFD(l.wakefd)
	closeFD(l.epfd)
}

// wait waits for events or for the next timer. It blocks its thread, since that
// costs one system call and one switch where the poller of the runtime costs
// several of both; see processors.
func (l *loop) wait() error {
	timeout := -1
	if len(l.runq) > 0 {
		timeout = 0
	} else if next := l.timers.next(); next != never {
		// Rounded up, or it would wake just before the time.
		timeout = int(min(max(next-l.e.clock()+int64(time.Millisecond)-1, 0)/int64(time.Millisecond), math.MaxInt32))
	}
	l.asleep.Store(timeout != 0)
	if l.posted.Load() { // before it was said that posts must wake
		timeout = 0
	}
	n, err := unix.EpollWait(l.epfd, l.events[:], timeout)
	l.asleep.Store(false)
	l.got = max(n, 0)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return os.NewSyscallError("epoll_wait", err)
	}
	return nil
}

// add starts telling h of events of fd.
func (l *loop) add(fd int, h handler, events uint32) (int32, error) {
	var i int32
	if n := len(l.free); n > 0 {
		i, l.free = l.free[n-1], l.free[:n-1]
	} else {
		i = int32(len(l.slots)) //nolint:gosec // the limit on open files is lower
		l.slots = append(l.slots, slot{})
	}
	s := &l.slots[i]
	s.h = h
	ev := unix.EpollEvent{Events: events, Fd: i, Pad: s.gen}
	if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		l.drop(i)
		return -1, fmt.Errorf("watch descriptor: %w", err)
	}
	return i, nil
}

// watch changes the events that a handler is told of.
func (l *loop) watch(i int32, fd int, op int, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: i, Pad: l.slots[i].gen}
	return unix.EpollCtl(l.epfd, op, fd, &ev)
}

// drop frees a slot. The descriptor leaves the kernel's set when it is closed.
func (l *loop) drop(i int32) {
	l.slots[i].h = nil
	l.slots[i].gen++
	l.free = append(l.free, i)
}

func (l *loop) dispatch(ev *unix.EpollEvent) {
	s := &l.slots[ev.Fd]
	if s.h == nil || s.gen != ev.Pad {
		return
	}
	h := s.h
	defer l.recovered(h)
	h.ready(l, ev.Events)
}

// guard calls f on behalf of h.
func (l *loop) guard(h handler, f func()) {
	defer l.recovered(h)
	f()
}

// recovered ends a panic: it costs the one connection or listener that it came
// from, and is logged as the bug that it is.
func (l *loop) recovered(h handler) {
	p := recover()
	if p == nil {
		return
	}
	l.e.panics.Add(1)
	l.e.opts.Log.Error("bug in the proxy: the connection or listener is closed, all others go on; please report it",
		zap.String("handler", fmt.Sprintf("%T", h)), zap.Any("panic", p), zap.Stack("stack"))
	defer func() {
		if p := recover(); p != nil {
			l.e.opts.Log.Error("bug in the proxy: closing did not work either", zap.Any("panic", p), zap.Stack("stack"))
		}
	}()
	h.abandon(l)
}

// later makes the loop go on with c after it has looked at all others.
func (l *loop) later(c *conn) {
	if !c.queued {
		c.queued = true
		l.runq = append(l.runq, c)
	}
}

func (l *loop) runQueue() {
	if len(l.runq) == 0 {
		return
	}
	queue := l.runq
	l.runq = l.spare[:0]
	for i, c := range queue {
		queue[i] = nil
		c.queued = false
		if c.state == established {
			l.guard(&c.client, func() { c.pump(l) })
		}
	}
	l.spare = queue[:0]
}

// sockaddr returns the address in a form for system calls, valid until the next
// call.
func (l *loop) sockaddr(a addrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		l.sa4.Port, l.sa4.Addr = int(a.Port()), a.Addr().As4()
		return &l.sa4
	}
	l.sa6.Port, l.sa6.Addr = int(a.Port()), a.Addr().As16()
	return &l.sa6
}
