package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/eclusa-lb/eclusa/edge"
	"github.com/eclusa-lb/eclusa/edge/page"
	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/rest"
	"github.com/eclusa-lb/eclusa/version"
)

// serverTimeout is how long the listeners for people and controllers may take to
// finish what they are doing when the program stops.
const serverTimeout = 5 * time.Second

// run serves until the first signal, then drains; the second signal ends the
// program as if there was no handler. After a hand-over to another process it
// returns when the last connections have ended, and only the first SIGTERM counts.
func run(ctx context.Context, c Config) error {
	// 1. Everything below logs, so the logger comes first.
	log, level, err := newLogger(c.Log)
	if err != nil {
		return err
	}
	defer log.Sync() //nolint:errcheck // standard error has nothing to sync
	log = log.With(zap.String("edge", c.Name))
	// What the parts log from here on is shown on the status page.
	events := page.NewEvents()
	log.Info("starting", zap.String("version", version.Number()), zap.String("revision", version.Revision()),
		zap.String("go", version.Go()), zap.String("engine", c.Engine), zap.Int("clusters", len(c.Clusters)))

	systemd, err := newSupervisor(os.Getenv, log)
	if err != nil {
		return err
	}

	if c, err = chooseEngine(c, log); err != nil {
		return err
	}

	// An upgrade may be asked for at any time, and must not end the program.
	u := newUpgrades(c, systemd, log)

	// 2. The engine takes its share of the file limit when it is made.
	raiseFileLimit(log)

	// 3. The parts: none of them does anything yet.
	// If an edge runs with the same state directory, it waits for this one from here
	// on.
	parts, err := assemble(ctx, c, systemd, level, events, events.Watch(log))
	if err != nil {
		return err
	}
	defer parts.close()
	u.edge, u.engine = parts.edge, parts.engine
	u.gates = map[string]*gate{listenerFile("api", c.API.Listen): parts.apiListener, listenerFile("management", c.Management.Listen): parts.managementListener}

	// 4. From here on the first signal ends ctx. Once it has, the handler is
	// taken away, so that the second one kills.
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, func() {
		u.stopsPatiently()
		stop()
	})()
	defer context.AfterFunc(ctx, func() { systemd.stopping(c.DrainTimeout.D()) })()

	// 5. Run until somebody fails or ctx ends. The edge serves from its own state
	// at once; the API comes beside it, not before it, and what another process has
	// to leave to this one first comes after that. After a hand-over only the edge
	// goes on.
	owned := make(chan struct{})
	own := func() { _ = u.listen(); close(owned) }
	if parts.predecessor == nil {
		own()
	} else {
		parts.predecessor.begun = own
	}
	asked := ctx
	g, ctx := errgroup.WithContext(ctx)
	work, stopWork := context.WithCancel(ctx)
	defer stopWork()
	g.Go(func() error { return parts.checker.Run(work) })
	g.Go(func() error { return parts.edge.Run(ctx) })
	g.Go(func() error { return serve(work, owned, parts.api, parts.apiListener, true) })
	g.Go(func() error { return parts.page.Run(work) })
	g.Go(func() error {
		return serve(work, owned, parts.management, parts.managementListener, parts.management.TLSConfig != nil)
	})
	g.Go(func() error {
		defer stopWork()
		return u.run(ctx, owned)
	})
	err = g.Wait()
	if u.isReleased() && err == nil {
		waitIfFirst(asked, os.Getpid(), log)
	}
	log.Info("stopped", zap.Error(err))
	return err
}

// waitIfFirst waits for the signal to stop if this process, whose work is done, is
// the first of a container: whoever runs that would start it again, and it would
// take the place of its successor.
func waitIfFirst(asked context.Context, pid int, log *zap.Logger) {
	if pid != 1 || asked.Err() != nil {
		return
	}
	log.Info("all connections have ended; waiting to be asked to stop, since the end of a container's first process starts it anew")
	<-asked.Done()
}

// parts are what the program is made of.
type parts struct {
	checker                         *healthcheck.Checker
	edge                            *edge.Edge
	engine                          lb.Engine
	predecessor                     *predecessor // nil if there is none
	page                            *page.Page
	api, management                 *http.Server
	apiListener, managementListener *gate
}

func (p *parts) close() {
	for _, l := range []*gate{p.apiListener, p.managementListener} {
		if l != nil {
			_ = l.Close() // a server may have closed it already
		}
	}
	if p.edge != nil {
		_ = p.edge.Close() // the lock ends with the process
	}
}

func assemble(ctx context.Context, c Config, systemd *supervisor, level zap.AtomicLevel, events *page.Events, log *zap.Logger) (*parts, error) {
	// What is wrong with the configuration is found before a running edge is asked
	// to wait.
	id, err := newIdentity("api", c.API.CertFile, c.API.KeyFile, c.API.ClientCAFile, log)
	if err != nil {
		return nil, err
	}
	if _, err := newAnnouncer(c, log); err != nil {
		return nil, err
	}
	before, err := findPredecessor(ctx, c, log)
	if err != nil {
		return nil, err
	}
	p, err := join(c, before, id, systemd, level, events, log) //nolint:contextcheck // a server's life ends with Shutdown, not with a context
	if err != nil {
		before.fail(err)
		return nil, err
	}
	return p, nil
}

func join(c Config, before *predecessor, id *identity, systemd *supervisor, level zap.AtomicLevel, events *page.Events, log *zap.Logger) (*parts, error) {
	// Only now nobody else changes what it remembers.
	announcer, err := newAnnouncer(c, log)
	if err != nil {
		return nil, err
	}
	p := &parts{predecessor: before, checker: healthcheck.New(healthcheck.Options{Budget: c.Health.ProbesPerSecond})}
	if err := p.newEdge(c, announcer, systemd, log); err != nil {
		return nil, err
	}
	if p.page, p.management, err = newManagement(c.Management, p.edge, level, events, log); err != nil {
		p.close()
		return nil, err
	}
	if err := p.listen(c); err != nil {
		p.close()
		return nil, err
	}
	p.api = rest.NewServer(rest.ServerOptions{Handler: newAPI(c, p.edge, log), TLS: id.config(), Log: log})
	p.edge.Registry().MustRegister(expiry{id})
	log.Info("listening", zap.Stringer("api", c.API.Listen), zap.Stringer("management", c.Management.Listen))
	return p, nil
}

func (p *parts) listen(c Config) error {
	var err error
	// A port that is taken is said at the start, not when the first cluster calls.
	if p.apiListener, err = p.predecessor.listen("api", c.API.Listen); err != nil {
		return fmt.Errorf("api.listen: %w", err)
	}
	if p.managementListener, err = p.predecessor.listen("management", c.Management.Listen); err != nil {
		return fmt.Errorf("management.listen: %w", err)
	}
	return nil
}

func (p *parts) newEdge(c Config, announcer edge.Announcer, systemd *supervisor, log *zap.Logger) error {
	before, err := p.predecessor.forEdge()
	if err != nil {
		return err
	}
	// The engine tells the edge, which needs the engine to be made. No traffic
	// flows before Run, so nobody is told before e is set.
	var e *edge.Edge
	own := ownAddresses(announcer)
	p.engine, err = newEngine(c, log, own, func(owner lb.Owner, check lb.CheckID, node lb.NodeName, err error) {
		e.DialFailed(owner.Cluster, check, node, err)
	})
	if err != nil {
		return err
	}
	policies := make(map[lb.Cluster]lb.Policy, len(c.Clusters))
	for _, cluster := range c.Clusters {
		policies[lb.Cluster(cluster.Name)] = cluster.policy()
	}
	e, err = edge.New(edge.Options{
		Name: c.Name, Version: version.Number(), Revision: version.Revision(), Clusters: policies, Engine: p.engine, Announcer: announcer, Checker: p.checker, Predecessor: before,
		StateDir: c.StateDir, Reserved: reserved(c), ShareHostAddress: c.ShareHostAddress,
		OwnAddresses: own, DrainTimeout: c.DrainTimeout.D(), UpgradeDrainTimeout: c.UpgradeDrainTimeout.D(),
		// Other containers are started again by themselves.
		EndsWithSuccessor: os.Getpid() != 1, Pulse: systemd.pulse, Log: log,
	})
	p.edge = e
	if err == nil && c.Engine == engineNftables {
		if err := noteKernel(c); err != nil {
			log.Warn("it cannot be noted that the kernel serves; another engine without rights would not know", zap.Error(err))
		}
	}
	return err
}

// reserved returns the program's own listeners.
func reserved(c Config) map[lb.Frontend]string {
	frontend := func(a netip.AddrPort) lb.Frontend {
		return lb.Frontend{Addr: a.Addr().Unmap().WithZone(""), Port: a.Port(), Protocol: lb.TCP}
	}
	return map[lb.Frontend]string{
		frontend(c.API.Listen):        "the API of the edge",
		frontend(c.Management.Listen): "the management port of the edge",
	}
}

// ownAddresses returns a function that tells the machine's addresses, without
// those that the announcer has put there.
func ownAddresses(announcer edge.Announcer) func() ([]netip.Addr, error) {
	return func() ([]netip.Addr, error) {
		ifaddrs, err := net.InterfaceAddrs()
		if err != nil {
			return nil, err
		}
		held := make(map[netip.Addr]bool)
		if announcer != nil {
			for _, a := range announcer.Held() {
				held[a] = true
			}
		}
		var own []netip.Addr
		for _, a := range ifaddrs {
			p, err := netip.ParsePrefix(a.String())
			if err == nil && !held[p.Addr()] {
				own = append(own, p.Addr())
			}
		}
		return own, nil
	}
}

func newAPI(c Config, e *edge.Edge, log *zap.Logger) http.Handler {
	pins := make(map[lb.Cluster][][sha256.Size]byte)
	for _, cluster := range c.Clusters {
		for _, p := range cluster.KeyPins {
			pins[lb.Cluster(cluster.Name)] = append(pins[lb.Cluster(cluster.Name)], p)
		}
	}
	return rest.NewHandler(rest.HandlerOptions{
		Balancer: e.Cluster,
		Pins:     func(name lb.Cluster) [][sha256.Size]byte { return pins[name] },
		MaxBody:  c.API.MaxBodyBytes, RequestsPerSecond: float64(c.API.RequestsPerSecond), Burst: 2 * c.API.RequestsPerSecond,
		Log: log,
	})
}

// serve serves on the listener, once owned is closed, until ctx ends, and then
// finishes what is under way.
func serve(ctx context.Context, owned <-chan struct{}, s *http.Server, l net.Listener, secure bool) error {
	select {
	case <-owned:
	case <-ctx.Done():
		return nil
	}
	stopped := make(chan error, 1)
	undo := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), serverTimeout)
		defer cancel()
		err := s.Shutdown(ctx)
		if err != nil {
			err = s.Close()
		}
		stopped <- err
	})
	var err error
	if secure {
		err = s.ServeTLS(l, "", "")
	} else {
		err = s.Serve(l)
	}
	if undo() || !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	}
	return <-stopped
}
