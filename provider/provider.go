// Package provider turns Kubernetes objects into what load balancers are to do,
// and what load balancers do into the status of these objects.
//
// A [Provider] is a Kubernetes cloud provider that offers nothing but load
// balancers. Kubernetes' own service controller calls it for Services without a
// class and gets no work done: one goroutine of ours decides for all Services
// ([Provider.Run]), a [Fleet] brings each edge to its wanted configuration, and
// one writer tells the API server. Decisions are pure functions of a [World].
package provider

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	cloudprovider "k8s.io/cloud-provider"

	"github.com/eclusa-lb/eclusa/lb"
)

// Name is the provider's name, for --cloud-provider.
const Name = "eclusa"

// deleteWait is how long the deletion of a Service waits at most until its
// addresses are known to be in quarantine.
const deleteWait = 5 * time.Second

// Options are what a Provider needs from its surroundings.
type Options struct {
	// Dial makes clients of edges.
	Dial Dial
	// Claim reads back that we lead. See [FleetOptions].
	Claim func(ctx context.Context) (lb.Claim, error)
	// Settings are the operator's choices.
	Settings Settings
	// Log is where the provider tells what it does.
	Log *zap.Logger
	// WriteRate and WriteBurst bound the writes of statuses per second, and
	// WriteWorkers those at once. Zero is 1000, 200 and 16.
	WriteRate    float64
	WriteBurst   int
	WriteWorkers int
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.WriteRate <= 0 {
		o.WriteRate = 1000
	}
	if o.WriteBurst <= 0 {
		o.WriteBurst = 200
	}
	if o.WriteWorkers <= 0 {
		o.WriteWorkers = 16
	}
	return o
}

// Provider is the cloud provider. Its methods may be called concurrently.
type Provider struct {
	options Options
	kick    chan struct{}
	ready   chan struct{} // closed when eyes and clients are there
	settled chan struct{} // see Settled
	once    sync.Once
	metrics *metrics
	waiters *waiters
	stock   atomic.Bool
	class   atomic.Bool
	// snapshot is replaced in every round.
	snapshot atomic.Pointer[Snapshot]

	// Set before ready is closed.
	clients clients
	eyes    *eyes
	failed  error

	speaker speaker
}

var _ cloudprovider.Interface = (*Provider)(nil)
var _ cloudprovider.InformerUser = (*Provider)(nil)
var _ cloudprovider.LoadBalancer = (*Provider)(nil)

// clients are the clients of the API server.
type clients struct {
	// read lists and watches, write writes statuses at our own rate, and events
	// writes events at its own.
	events  kubernetes.Interface
	write   kubernetes.Interface
	dynamic dynamic.Interface
}

// New returns a Provider that does nothing until Run.
func New(o Options) *Provider {
	return &Provider{
		options: o.withDefaults(),
		kick:    make(chan struct{}, 1),
		ready:   make(chan struct{}),
		settled: make(chan struct{}),
		metrics: newMetrics(),
		waiters: &waiters{},
	}
}

// Enable says that a controller runs: StockController or ClassController. Both
// must be enabled before the informers have listed everything, which is when
// the controller manager starts its controllers.
func (p *Provider) Enable(controller string) error {
	switch controller {
	case StockController:
		p.stock.Store(true)
	case ClassController:
		p.class.Store(true)
	default:
		return fmt.Errorf("controller %q: must be %s or %s", controller, StockController, ClassController)
	}
	signal(p.kick)
	return nil
}

// Settled returns a channel that is closed once every Service that was there at
// the start has its addresses recorded, as far as there are any. What can wait for
// that should: the API server has enough to do until then.
func (p *Provider) Settled() <-chan struct{} { return p.settled }

func (p *Provider) controllers() Controllers {
	return Controllers{Stock: p.stock.Load(), Class: p.class.Load()}
}

// Initialize makes the clients. It is called by the controller manager once we
// lead. What goes wrong is told by Run.
func (p *Provider) Initialize(builder cloudprovider.ControllerClientBuilder, _ <-chan struct{}) {
	var errs [3]error
	p.clients.events, errs[0] = builder.Client("eclusa-events")
	unlimited := func(name string) (*rest.Config, error) {
		c, err := builder.Config(name)
		if err != nil {
			return nil, err
		}
		c = rest.CopyConfig(c)
		c.QPS, c.RateLimiter = -1, nil // the writer has its own
		return c, nil
	}
	if c, err := unlimited("eclusa-writer"); err != nil {
		errs[1] = err
	} else if p.clients.write, errs[1] = kubernetes.NewForConfig(c); errs[1] == nil {
		p.clients.dynamic, errs[2] = dynamic.NewForConfig(c)
	}
	if err := errors.Join(errs[:]...); err != nil {
		p.failed = fmt.Errorf("make clients of the API server: %w", err)
	}
}

// SetInformers requests the informers that we need, before the factory is
// started, and lets Run begin.
func (p *Provider) SetInformers(factory informers.SharedInformerFactory) {
	p.once.Do(func() {
		if p.failed == nil {
			p.eyes, p.failed = openEyes(factory, p.clients.dynamic, func() { signal(p.kick) })
		}
		close(p.ready)
	})
}

// Run waits until the controller manager has called Initialize and SetInformers,
// and then serves Services until ctx ends. It returns an error when it cannot
// go on: a custom resource is not known, or another leads.
func (p *Provider) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-p.ready:
	}
	if p.failed != nil {
		return p.failed
	}
	if err := checkResources(ctx, p.clients.dynamic, p.options.Log); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	fleet := NewFleet(FleetOptions{
		Dial: p.options.Dial, Claim: p.options.Claim, ConfirmRemovals: p.ConfirmRemovals,
		Event: p.tellEdge, Log: p.options.Log.Named("fleet"),
	})
	return p.run(ctx, fleet)
}

// run serves Services with the given fleet.
func (p *Provider) run(ctx context.Context, f fleet) error {
	log := p.options.Log
	stop := p.speaker.start(p.clients.events)
	defer stop()
	group, ctx := errgroup.WithContext(ctx)
	p.eyes.own.Start(ctx.Done())
	defer p.eyes.own.Shutdown()
	log.Info("waiting until every Service, Node, EndpointSlice, AddressPool and Edge is known; no address is given out before")
	if !p.eyes.waitUntilOpen(ctx) {
		return nil
	}
	log.Info("everything is known; serving Services", zap.Any("controllers", p.controllers()))
	w := newWriter(writerOptions{
		patch: p.clients.patch, tell: p.speaker.tell,
		rate: p.options.WriteRate, burst: p.options.WriteBurst, workers: p.options.WriteWorkers,
		log: log.Named("writer"), observe: p.metrics.observeWrite,
	})
	r := &reconciler{
		eyes: p.eyes, controllers: p.controllers, settings: p.options.Settings, fleet: f, writer: w,
		kick: p.kick, settled: p.settled, log: log.Named("reconciler"), metrics: p.metrics, waiters: p.waiters, decider: newDecider(),
		tellNode: func(n *v1.Node, e Event) { p.speaker.tell(n, e) }, publish: p.snapshot.Store,
	}
	p.metrics.watch(f)
	group.Go(func() error { return f.Run(ctx) })
	group.Go(func() error { return w.Run(ctx) })
	group.Go(func() error { return r.Run(ctx) })
	return group.Wait()
}

// LoadBalancer returns the provider itself.
func (p *Provider) LoadBalancer() (cloudprovider.LoadBalancer, bool) { return p, true }

// Instances is not supported: nodes are the business of others.
func (p *Provider) Instances() (cloudprovider.Instances, bool) { return nil, false }

// InstancesV2 is not supported. With it, the node lifecycle controller would
// delete Node objects.
func (p *Provider) InstancesV2() (cloudprovider.InstancesV2, bool) { return nil, false }

// Zones is not supported.
func (p *Provider) Zones() (cloudprovider.Zones, bool) { return nil, false }

// Clusters is not supported.
func (p *Provider) Clusters() (cloudprovider.Clusters, bool) { return nil, false }

// Routes is not supported.
func (p *Provider) Routes() (cloudprovider.Routes, bool) { return nil, false }

// ProviderName returns the provider's name.
func (p *Provider) ProviderName() string { return Name }

// HasClusterID returns true: clusters are told apart by the UID of the namespace
// kube-system.
func (p *Provider) HasClusterID() bool { return true }

// GetLoadBalancer says whether a Service has anything of ours, from the Service
// itself. It never says so of a Service with a class, which the stock controller
// must leave alone.
func (p *Provider) GetLoadBalancer(_ context.Context, _ string, svc *v1.Service) (*v1.LoadBalancerStatus, bool, error) {
	if svc.Spec.LoadBalancerClass != nil || !onceOurs(svc) {
		return nil, false, nil
	}
	return svc.Status.LoadBalancer.DeepCopy(), true, nil
}

// GetLoadBalancerName returns what edges know the load balancer by.
func (p *Provider) GetLoadBalancerName(_ context.Context, _ string, svc *v1.Service) string {
	return string(svc.UID)
}

// EnsureLoadBalancer wakes the reconciler, which serves the Service, and says
// that the work is done elsewhere.
func (p *Provider) EnsureLoadBalancer(context.Context, string, *v1.Service, []*v1.Node) (*v1.LoadBalancerStatus, error) {
	signal(p.kick)
	return nil, cloudprovider.ImplementedElsewhere
}

// UpdateLoadBalancer wakes the reconciler, which has its own eyes on nodes.
func (p *Provider) UpdateLoadBalancer(context.Context, string, *v1.Service, []*v1.Node) error {
	signal(p.kick)
	return cloudprovider.ImplementedElsewhere
}

// EnsureLoadBalancerDeleted returns as soon as the Service's addresses are
// recorded to be in quarantine, so that they are not given away while an edge
// still serves them. It does not wait for edges, and for the record not longer
// than a few seconds.
func (p *Provider) EnsureLoadBalancerDeleted(ctx context.Context, _ string, svc *v1.Service) error {
	if svc.Spec.LoadBalancerClass != nil {
		return nil
	}
	number, done := p.waiters.add(uidOf(svc))
	defer p.waiters.drop(number)
	signal(p.kick)
	timer := time.NewTimer(deleteWait)
	defer timer.Stop()
	select {
	case <-done:
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		p.options.Log.Warn("the quarantine of a deleted Service's addresses could not be saved in time; letting the Service go. They are not given away while this process runs; see the errors of the writer",
			zap.String("service", nameOf(svc)), zap.Duration("waited", deleteWait))
	}
	return nil
}
