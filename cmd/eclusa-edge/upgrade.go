package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/edge"
	"github.com/eclusa-lb/eclusa/handover"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/version"
)

// upgradeTimeout bounds an upgrade from the start of the new process. A hand-over
// that has begun has limits of its own, which are less.
const upgradeTimeout = 2*time.Minute + handover.ServingTimeout

// reopenInterval is how often the socket for upgrades is opened again that could
// not be.
const reopenInterval = 2 * time.Second

// upgrades gives this edge's place to another process, when that or an operator
// asks for it.
type upgrades struct {
	config  Config
	edge    *edge.Edge
	engine  lb.Engine
	gates   map[string]*gate // by the names that they have in an estate
	systemd *supervisor
	log     *zap.Logger
	program string // the executable file, which an upgrade has replaced
	first   bool   // of a container
	signals chan os.Signal

	busy     sync.Mutex // held while a hand-over is under way
	starting sync.Mutex // held while a new process is started
	failure  atomic.Pointer[string]
	released chan struct{} // closed when another process serves
	pid      int           // that one; before released is closed, and never again
	version  string        // of that one, likewise

	mu       sync.Mutex         // guards what follows
	listener *handover.Listener // opened, and not yet served
	served   *handover.Listener
	deaf     bool // the socket could not be opened the last time
}

// newUpgrades returns what waits for upgrades. From then on the signals that ask
// for one do not end the program any more.
func newUpgrades(c Config, systemd *supervisor, log *zap.Logger) *upgrades {
	u := &upgrades{config: c, systemd: systemd, log: log, released: make(chan struct{}), signals: make(chan os.Signal, 1), first: os.Getpid() == 1}
	var err error
	if u.program, err = ownProgram(os.Args[0]); err != nil {
		log.Warn("the program does not know its own file; upgrades have to start the new one themselves", zap.Error(err))
	}
	signal.Notify(u.signals, syscall.SIGUSR2, syscall.SIGHUP)
	return u
}

// ownProgram returns the path under which this program was started, which leads
// to a new one after that has been installed: a symbolic link has to be followed
// then, and not now. If that path leads elsewhere, it is the file that runs.
func ownProgram(arg string) (string, error) {
	path, err := exec.LookPath(arg)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err == nil {
		named, statErr := os.Stat(path) //nolint:gosec // it is the path of this very program
		runs, runsErr := os.Stat("/proc/self/exe")
		if statErr == nil && runsErr == nil && os.SameFile(named, runs) {
			return path, nil
		}
	}
	return os.Executable()
}

// listen waits for other processes on the socket in the state directory, and
// reports whether there is one now. Without it the edge serves all the same.
func (u *upgrades) listen() bool {
	l, err := handover.Listen(u.config.StateDir)
	u.mu.Lock()
	defer u.mu.Unlock()
	if err != nil {
		if !u.deaf {
			u.log.Warn("upgrades of the running edge are not possible; it is tried again", zap.Error(err))
		}
		u.deaf = true
		return false
	}
	if u.deaf {
		u.log.Info("upgrades of the running edge are possible again")
	}
	u.deaf, u.listener = false, l
	return true
}

func (u *upgrades) take() *handover.Listener {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.served, u.listener = u.listener, nil
	return u.served
}

// stopListening closes the socket, whose name another process takes.
func (u *upgrades) stopListening() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, l := range []*handover.Listener{u.listener, u.served} {
		if l != nil {
			_ = l.Close() // perhaps once more
		}
	}
}

// run serves those who ask, once owned is closed, until ctx ends or another
// process has taken over.
func (u *upgrades) run(ctx context.Context, owned <-chan struct{}) error {
	// Whoever asks too late must not end the connections that are left.
	defer signal.Ignore(syscall.SIGUSR2, syscall.SIGHUP)
	select {
	case <-owned:
	case <-ctx.Done():
		return nil
	}
	for {
		again := make(chan struct{}, 1)
		l := u.take()
		var serving sync.WaitGroup
		if l != nil {
			serving.Go(func() {
				l.Serve(ctx, func(ctx context.Context, c *handover.Conn, h handover.Hello) {
					if u.handle(ctx, c, h) {
						select {
						case again <- struct{}{}:
						default: // it is known already
						}
					}
				}, func(err error) { u.log.Warn("a request for an upgrade came to nothing", zap.Error(err)) })
			})
		}
		over := u.wait(ctx, again, l == nil)
		if l != nil {
			_ = l.Close()
		}
		serving.Wait()
		if over {
			return nil
		}
	}
}

// wait reports whether there is nothing to wait for any more; false when the
// socket was opened again, which may take a few attempts. The one of before is of
// use meanwhile.
func (u *upgrades) wait(ctx context.Context, again <-chan struct{}, deaf bool) (over bool) {
	open := time.NewTimer(reopenInterval)
	defer open.Stop()
	if !deaf {
		open.Stop()
	}
	for {
		select {
		case <-ctx.Done():
			return true
		case <-u.released:
			return true
		case <-again: // whoever tried to take over may have taken the socket's name
			open.Reset(0)
		case <-open.C:
			if u.listen() {
				return false
			}
			open.Reset(reopenInterval)
		case <-u.signals:
			u.log.Info("asked for an upgrade by signal")
			go u.upgrade(ctx) // it logs what came of it
		}
	}
}

// handle serves one who asks. It returns true if the socket must be opened again.
func (u *upgrades) handle(ctx context.Context, c *handover.Conn, h handover.Hello) (again bool) {
	if h.Edge != u.config.Name {
		c.Refuse(fmt.Errorf("this is the edge %q and gives nothing to %q", u.config.Name, h.Edge))
		return false
	}
	switch h.Purpose {
	case handover.Upgrade:
		if err := c.Tell(u.upgrade(ctx)); err != nil {
			u.log.Info("whoever asked for the upgrade did not wait for its outcome", zap.Error(err))
		}
		return false
	case handover.TakeOver:
		return u.giveTo(ctx, c, h)
	}
	c.Refuse(fmt.Errorf("purpose %q: must be %q or %q", h.Purpose, handover.TakeOver, handover.Upgrade))
	return false
}

func (u *upgrades) giveTo(ctx context.Context, c *handover.Conn, h handover.Hello) (again bool) {
	log := u.log.With(zap.Int("successor", c.PID()), zap.String("versionOfSuccessor", h.Version))
	if !u.busy.TryLock() {
		c.Refuse(errors.New("it hands over to another process just now"))
		return false
	}
	defer u.busy.Unlock()
	toProxy := u.config.Engine == engineNftables && h.Engine == engineProxy
	if h.Engine != u.config.Engine && !toProxy {
		c.Refuse(fmt.Errorf("it has the engine %q and the new process %q: stop it and start the other", u.config.Engine, h.Engine))
		return false
	}
	log.Info("another process asks for the place of this one", zap.String("engine", h.Engine))
	start := time.Now()
	g := &giver{upgrades: u, log: log, start: start, successor: h.Version, toProxy: toProxy, duplicates: make(map[*gate]int)}
	if err := c.Give(ctx, g); err != nil {
		text := err.Error()
		u.failure.Store(&text)
		log.Error("the hand-over came to nothing; this process serves as before", zap.Duration("after", time.Since(start).Round(time.Millisecond)), zap.Error(err))
		return true
	}
	return false
}

// upgrade starts the program anew and waits until that has taken over.
func (u *upgrades) upgrade(ctx context.Context) handover.Outcome {
	start := time.Now()
	pid, err := u.startSuccessor(ctx)
	if err != nil {
		u.log.Error("the upgrade came to nothing; this process serves as before", zap.Error(err))
		return handover.Outcome{Error: err.Error()}
	}
	return handover.Outcome{PID: pid, Version: u.version, Took: time.Since(start)}
}

func (u *upgrades) startSuccessor(ctx context.Context) (int, error) {
	if !u.starting.TryLock() {
		return 0, errors.New("an upgrade is under way already")
	}
	defer u.starting.Unlock()
	if u.first {
		return 0, errors.New("this is the first process of its container, which would end with it: start a second container with the same stateDir instead, and stop this one when that has taken over")
	}
	if u.isReleased() {
		return 0, fmt.Errorf("process %d serves in place of this one already", u.pid)
	}
	u.failure.Store(nil)
	// The process must outlive this one, so no context may end it.
	c := exec.Command(u.program, os.Args[1:]...) //nolint:noctx,gosec // it is this program
	c.Args[0] = os.Args[0]
	c.Env = successorEnvironment(os.Environ())
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	if err := c.Start(); err != nil {
		return 0, fmt.Errorf("start the new process: %w", err)
	}
	u.log.Info("started a new process that is to take over", zap.Int("pid", c.Process.Pid), zap.String("program", u.program))
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	limit := time.NewTimer(upgradeTimeout)
	defer limit.Stop()
	select {
	case <-u.released:
		return u.pid, nil
	case err := <-ended:
		return 0, u.ended(c.Process.Pid, err)
	case <-ctx.Done():
		return 0, fmt.Errorf("this process was asked to stop: %w", ctx.Err())
	case <-limit.C:
		_ = c.Process.Kill() // then its connection ends, and with it the hand-over
		return 0, fmt.Errorf("process %d has not taken over within %s and was killed", c.Process.Pid, upgradeTimeout)
	}
}

// ended says why a new process ended early.
func (u *upgrades) ended(pid int, err error) error {
	how := "with success"
	if err != nil {
		how = err.Error()
	}
	if why := u.failure.Load(); why != nil {
		return fmt.Errorf("process %d ended (%s): %s", pid, how, *why)
	}
	return fmt.Errorf("process %d ended before it asked to take over (%s); its last line in the log says why", pid, how)
}

// successorEnvironment leaves out what is about this process alone.
func successorEnvironment(env []string) []string {
	var out []string
	for _, e := range env {
		if !strings.HasPrefix(e, "WATCHDOG_PID=") {
			out = append(out, e)
		}
	}
	return out
}

// stopsPatiently makes a process that another one has taken over from ignore
// every further SIGTERM: systemd sends a second one, to all that are left, when its
// main process has ended, and connections drain still. It waits until a hand-over
// that is under way has come to its end.
func (u *upgrades) stopsPatiently() {
	u.busy.Lock()
	defer u.busy.Unlock()
	if u.isReleased() {
		signal.Ignore(syscall.SIGTERM)
	}
}

// isReleased tells whether another process serves in place of this one.
func (u *upgrades) isReleased() bool {
	select {
	case <-u.released:
		return true
	default:
		return false
	}
}

// giver is one hand-over.
type giver struct {
	*upgrades
	log        *zap.Logger
	start      time.Time
	successor  string // its version
	toProxy    bool   // it is another engine, beside which the kernel serves until it does
	paused     *edge.Paused
	duplicates map[*gate]int // descriptors of the gates that are paused
	handedOver time.Time     // zero before the sockets were touched
	parcels    int
	files      int
}

// Pause stops writing, deciding, and taking connections for API and management.
func (g *giver) Pause(ctx context.Context) (handover.Estate, []int, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	paused, err := g.edge.Pause(ctx)
	if err != nil {
		return handover.Estate{}, nil, err
	}
	g.paused = paused
	leaving, err := json.Marshal(paused.Leaving)
	if err != nil {
		paused.Resume()
		return handover.Estate{}, nil, fmt.Errorf("addresses that are leaving: %w", err)
	}
	e := handover.Estate{Version: version.Number(), Health: paused.Health, Leaving: leaving, Digests: make(map[string]string), Epochs: make(map[string]string)}
	for name, d := range paused.Digests {
		e.Digests[string(name)] = string(d)
	}
	for name, epoch := range paused.Epochs {
		e.Epochs[string(name)] = string(epoch)
	}
	e.Files = []string{lockFile}
	files := []int{int(paused.Lock.Fd())}
	for name, gate := range g.gates {
		fd, err := gate.duplicate()
		if err != nil {
			g.Resume()
			return handover.Estate{}, nil, fmt.Errorf("listener %q: %w", name, err)
		}
		gate.pause()
		g.duplicates[gate] = fd
		e.Files = append(e.Files, name)
		files = append(files, fd)
	}
	return e, files, nil
}

// closeDuplicates closes what was made to be passed on, and returns of which gates.
func (g *giver) closeDuplicates() []*gate {
	var gates []*gate
	for gate, fd := range g.duplicates {
		_ = unix.Close(fd)
		gates = append(gates, gate)
	}
	clear(g.duplicates)
	return gates
}

// HandOver sends the engine's sockets.
func (g *giver) HandOver(ctx context.Context, send func([]byte, []int) error) error {
	g.handedOver = time.Now()
	return g.engine.HandOver(ctx, func(p lb.Parcel) error {
		if g.toProxy {
			return nil // of no use to it
		}
		g.parcels++
		g.files += len(p.Files)
		return send(p.Data, p.Files)
	})
}

// Resume goes on serving.
func (g *giver) Resume() {
	if !g.handedOver.IsZero() {
		if err := g.engine.Resume(); err != nil {
			g.log.Error("some sockets cannot be used any more; they are opened again", zap.Error(err))
		}
		if g.toProxy { // the other process may have removed the note
			if err := noteKernel(g.config); err != nil {
				g.log.Warn("it cannot be noted that the kernel serves", zap.Error(err))
			}
		}
	}
	for _, gate := range g.closeDuplicates() {
		gate.resume()
	}
	g.paused.Resume()
}

// Release leaves everything to the other process, of which systemd has to learn
// before this one may end.
func (g *giver) Release(pid int) {
	g.systemd.succeed(pid)
	g.closeDuplicates()
	g.log.Info("another process serves in place of this one", zap.Duration("handOver", time.Since(g.start).Round(time.Microsecond)),
		zap.Duration("withoutTraffic", time.Since(g.handedOver).Round(time.Microsecond)), zap.Int("sockets", g.files), zap.Int("parcels", g.parcels))
	if err := g.paused.Release(); err != nil {
		g.log.Error("the lock of the state directory cannot be given back; it ends with this process", zap.Error(err))
	}
	g.pid, g.version = pid, g.successor
	// Who learns of this and connects again must not come to this process.
	g.stopListening()
	close(g.released)
}
