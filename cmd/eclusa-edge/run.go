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
	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/rest"
)

// serverTimeout is how long the listeners for people and controllers may take to
// finish what they are doing when the program stops.
const serverTimeout = 5 * time.Second

// run serves until the first signal, then drains; the second signal ends the
// program as if there was no handler.
func run(ctx context.Context, c Config) error {
	// 1. Everything below logs, so the logger comes first.
	log, err := newLogger(c.Log)
	if err != nil {
		return err
	}
	defer log.Sync() //nolint:errcheck // standard error has nothing to sync
	log = log.With(zap.String("edge", c.Name))
	log.Info("starting", zap.String("version", version), zap.String("engine", c.Engine), zap.Int("clusters", len(c.Clusters)))

	// 2. The engine takes its share of the file limit when it is made.
	raiseFileLimit(log)

	// 3. The parts: none of them does anything yet.
	parts, err := assemble(c, log) //nolint:contextcheck // a server's life ends with Shutdown, not with a context
	if err != nil {
		return err
	}
	defer parts.close()

	// 4. From here on the first signal ends ctx. Once it has, the handler is
	// taken away, so that the second one kills.
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, stop)()

	// 5. Run until somebody fails or ctx ends. The edge serves from its own state
	// at once; the API comes beside it, not before it.
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return parts.checker.Run(ctx) })
	g.Go(func() error { return parts.edge.Run(ctx) })
	g.Go(func() error { return serve(ctx, parts.api, parts.apiListener, true) })
	g.Go(func() error { return serve(ctx, parts.management, parts.managementListener, false) })
	err = g.Wait()
	log.Info("stopped", zap.Error(err))
	return err
}

// parts are what the program is made of.
type parts struct {
	checker                         *healthcheck.Checker
	edge                            *edge.Edge
	api, management                 *http.Server
	apiListener, managementListener net.Listener
}

func (p *parts) close() {
	for _, l := range []net.Listener{p.apiListener, p.managementListener} {
		if l != nil {
			_ = l.Close() // a server may have closed it already
		}
	}
	if p.edge != nil {
		_ = p.edge.Close() // the lock ends with the process
	}
}

func assemble(c Config, log *zap.Logger) (*parts, error) {
	id, err := newIdentity(c.API, log)
	if err != nil {
		return nil, err
	}
	announcer, err := newAnnouncer(c, log)
	if err != nil {
		return nil, err
	}
	p := &parts{checker: healthcheck.New(healthcheck.Options{Budget: c.Health.ProbesPerSecond})}
	if p.edge, err = newEdge(c, p.checker, announcer, log); err != nil {
		return nil, err
	}
	if err := p.listen(c); err != nil {
		p.close()
		return nil, err
	}
	p.api = rest.NewServer(rest.ServerOptions{Handler: newAPI(c, p.edge, log), TLS: id.config(), Log: log})
	p.edge.Registry().MustRegister(id.expiry())
	p.management = &http.Server{
		Handler: p.edge.Management(), ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: zap.NewStdLog(log),
	}
	log.Info("listening", zap.Stringer("api", c.API.Listen), zap.Stringer("management", c.Management.Listen))
	return p, nil
}

func (p *parts) listen(c Config) error {
	var err error
	// A port that is taken is said at the start, not when the first cluster calls.
	if p.apiListener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(c.API.Listen)); err != nil {
		return fmt.Errorf("api.listen: %w", err)
	}
	if p.managementListener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(c.Management.Listen)); err != nil {
		return fmt.Errorf("management.listen: %w", err)
	}
	return nil
}

func newEdge(c Config, checker *healthcheck.Checker, announcer edge.Announcer, log *zap.Logger) (*edge.Edge, error) {
	// The engine tells the edge, which needs the engine to be made. No traffic
	// flows before Run, so nobody is told before e is set.
	var e *edge.Edge
	engine := newEngine(c, log, func(owner lb.Owner, check lb.CheckID, node lb.NodeName, _ error) {
		e.DialFailed(owner.Cluster, check, node)
	})
	policies := make(map[lb.Cluster]lb.Policy, len(c.Clusters))
	for _, cluster := range c.Clusters {
		policies[lb.Cluster(cluster.Name)] = cluster.policy()
	}
	var err error
	e, err = edge.New(edge.Options{
		Name: c.Name, Version: version, Clusters: policies, Engine: engine, Announcer: announcer, Checker: checker,
		StateDir: c.StateDir, Reserved: reserved(c), ShareHostAddress: c.ShareHostAddress,
		OwnAddresses: ownAddresses(announcer), DrainTimeout: c.DrainTimeout.D(), Log: log,
	})
	return e, err
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

// serve serves on the listener until ctx ends, and then finishes what is under
// way.
func serve(ctx context.Context, s *http.Server, l net.Listener, secure bool) error {
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
