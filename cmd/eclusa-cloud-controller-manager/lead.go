package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"k8s.io/apiserver/pkg/server/healthz"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/cloud-provider/app"
	appconfig "k8s.io/cloud-provider/app/config"
	genericapp "k8s.io/controller-manager/app"
	"k8s.io/controller-manager/pkg/clientbuilder"
	controllerhealthz "k8s.io/controller-manager/pkg/healthz"

	"github.com/eclusa-lb/eclusa/lb"
	edgerest "github.com/eclusa-lb/eclusa/lb/rest"
	"github.com/eclusa-lb/eclusa/provider"
	"github.com/eclusa-lb/eclusa/report"
	"github.com/eclusa-lb/eclusa/version"
)

// leader is what this program does while it leads.
type leader struct {
	config   *appconfig.CompletedConfig
	creds    *credentials
	identity string
	watchdog *leaderelection.HealthzAdaptor
	health   *controllerhealthz.MutableHealthzHandler
	provider *provider.Provider
	log      *zap.Logger
	leading  atomic.Bool
	holder   atomic.Pointer[string] // who holds the Lease, as far as we have seen
}

func newLeader(c *appconfig.CompletedConfig, own Config, creds *credentials, identity string, log *zap.Logger) (*leader, error) {
	// A client of its own: claims wait for nobody.
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(c.Kubeconfig), "eclusa-claim"))
	if err != nil {
		return nil, fmt.Errorf("making the client of the API server that reads the Lease: %w", err)
	}
	lease := c.ComponentConfig.Generic.LeaderElection
	return &leader{
		config: c, creds: creds, identity: identity, log: log,
		watchdog: leaderelection.NewLeaderHealthzAdaptor(watchdogTolerance),
		provider: provider.New(provider.Options{
			Dial:     func(e provider.EdgeSpec) (lb.Balancer, error) { return dial(e, creds, log) },
			Claim:    provider.LeaseClaim(client, lease.ResourceNamespace, lease.ResourceName, identity),
			Settings: provider.Settings{NodeAddressTypes: own.nodeAddressTypes(), DrainCordoned: own.DrainCordonedNodes},
			Log:      log,
		}),
	}, nil
}

// reports serves what the leader knows to those who may ask.
func (l *leader) reports() http.Handler {
	return report.Handler(report.HandlerOptions{
		Source: func() report.Source {
			if s := l.provider.Snapshot(); s != nil && l.leading.Load() {
				return s
			}
			return nil
		},
		Identity: l.identity,
		Leader: func() string {
			if holder := l.holder.Load(); holder != nil {
				return *holder
			}
			return ""
		},
		Version: version.Number(),
	})
}

// dial makes the client of an edge.
func dial(e provider.EdgeSpec, creds *credentials, log *zap.Logger) (lb.Balancer, error) {
	return edgerest.NewClient(edgerest.ClientOptions{
		Endpoint: e.Endpoint, ServerName: e.ServerName, Cluster: creds.cluster,
		Certificate: creds.Certificate, RootCAs: creds.RootCAs,
		Log: log.Named("rest").With(zap.String("edge", e.Name)),
	})
}

// lead runs everything that only one may run, until ctx ends or something of it
// fails.
func (l *leader) lead(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.log.Info("leading")
	l.leading.Store(true)
	defer l.leading.Store(false)
	c := l.config
	controllers, err := app.CreateControllerContext(c, clientbuilder.SimpleControllerClientBuilder{ClientConfig: c.Kubeconfig}, ctx.Done())
	if err != nil {
		return err
	}
	l.provider.Initialize(c.ClientBuilder, ctx.Done())
	l.provider.SetInformers(c.SharedInformers)
	stock, err := l.enableControllers()
	if err != nil {
		return err
	}
	// Only now that everybody has said what they want to see: informers that are
	// asked for later would never start.
	c.SharedInformers.Start(ctx.Done())
	controllers.InformerFactory.Start(ctx.Done())
	close(controllers.InformersStarted)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return l.provider.Run(ctx) })
	if stock {
		group.Go(func() error { return l.startStock(ctx, controllers) })
	}
	return group.Wait()
}

// stockPatience is how long Kubernetes' own service controller waits at most until
// we have recorded the addresses of the Services that are there already.
const stockPatience = 30 * time.Second

// startStock starts Kubernetes' own service controller once addresses are
// recorded. For each Service it sends an Event and, unless we did, writes the
// finalizer, and nobody waits for these: with thousands of new Services it would
// keep the API server from what people do wait for.
func (l *leader) startStock(ctx context.Context, controllers genericapp.ControllerContext) error {
	timer := time.NewTimer(stockPatience)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return nil
	case <-l.provider.Settled():
	case <-timer.C:
	}
	start := app.StartServiceControllerWrapper(app.ControllerInitContext{ClientName: "service-controller"}, l.config, l.provider)
	if _, started, err := start(ctx, controllers); err != nil || !started {
		return fmt.Errorf("controller %q of Kubernetes did not start: %w", provider.StockController, err)
	}
	l.log.Info("controller of Kubernetes started", zap.String("controller", provider.StockController))
	return nil
}

// enableControllers enables those controllers that --controllers asks for, and
// says whether that of Kubernetes is among them.
func (l *leader) enableControllers() (stock bool, _ error) {
	var checks []healthz.HealthChecker
	for _, name := range controllerNames() {
		if !genericapp.IsControllerEnabled(name, app.ControllersDisabledByDefault, l.config.ComponentConfig.Generic.Controllers) {
			l.log.Info("controller is disabled by --controllers", zap.String("controller", name))
			continue
		}
		if err := l.provider.Enable(name); err != nil {
			return false, err
		}
		stock = stock || name == provider.StockController
		checks = append(checks, controllerhealthz.NamedPingChecker(name))
		l.log.Info("controller enabled", zap.String("controller", name))
	}
	if len(checks) == 0 {
		return false, &usageError{errors.New("--controllers: all controllers are disabled, nothing is left to do")}
	}
	l.health.AddHealthChecker(checks...)
	return stock, nil
}
