package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"go.uber.org/zap"
	v1core "k8s.io/client-go/kubernetes/typed/core/v1"
	appconfig "k8s.io/cloud-provider/app/config"
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // metrics of the API client

	"github.com/eclusa-lb/eclusa/provider"
	"github.com/eclusa-lb/eclusa/report"
	"github.com/eclusa-lb/eclusa/version"
)

// farewell is how long what we lead may take to end when the program is stopped.
const farewell = 10 * time.Second

// run does what the stock app's Run does, with its parts. The stock Run cannot be
// used: it makes up the identity with which it holds the Lease and tells it to
// nobody, while an edge lets only those write who name the Lease's holder; and it
// leaves no place for more handlers on the secure port. Everything else is the
// same: flags, health, metrics, the order of things.
//
// It returns nil after the first signal, once everything has ended; the second
// signal kills.
func run(ctx context.Context, c *appconfig.CompletedConfig, config Config, creds *credentials, levels *logLevels, log *zap.Logger) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, stop)()

	identity, err := newIdentity()
	if err != nil {
		return err
	}
	log.Info("starting", zap.String("version", version.Number()), zap.String("revision", version.Revision()),
		zap.String("go", version.Go()), zap.String("cluster", string(creds.cluster)), zap.String("identity", identity))

	// Health and metrics answer before we lead, so that those who stand by are
	// seen to be well.
	l, err := newLeader(c, config, creds, identity, log)
	if err != nil {
		return err
	}
	if err := registerMetrics(l, config); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	serving, stopServing := context.WithCancel(context.Background())
	defer stopServing()
	health, served, err := serve(c, serving.Done(), l.watchdog, levels.endpoint(log), endpoint{report.Prefix, l.reports()})
	if err != nil {
		return err
	}
	l.health = health

	c.EventBroadcaster.StartRecordingToSink(&v1core.EventSinkImpl{Interface: c.Client.CoreV1().Events("")})
	defer c.EventBroadcaster.Shutdown()

	err = l.campaign(ctx)
	if errors.Is(err, errLeadershipLost) {
		// Another may lead already. Nothing is waited for.
		return err
	}
	stopServing()
	<-served
	log.Info("stopped", zap.Error(err))
	return err
}

// campaign takes part in the election and leads when elected. It returns nil when
// ctx has ended and everything with it, and at once if we lost the Lease or what
// we lead has failed.
func (l *leader) campaign(ctx context.Context) error {
	electing, stopElecting := context.WithCancel(context.WithoutCancel(ctx))
	defer stopElecting()
	elected := make(chan struct{})
	led := make(chan error, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- elect(electing, l.config, l.identity, l.watchdog, l.log, func(holder string) { l.holder.Store(&holder) }, func(leading context.Context) {
			close(elected)
			leading, cancel := context.WithCancel(leading)
			defer cancel()
			defer context.AfterFunc(ctx, cancel)()
			led <- l.lead(leading)
		})
	}()
	select {
	case err := <-ended:
		return err
	case err := <-led:
		if ctx.Err() == nil {
			return leadError(err)
		}
	case <-ctx.Done():
		l.log.Info("stopping")
		select {
		case <-elected:
			select {
			case err := <-led:
				l.log.Debug("what was led has ended", zap.Error(err))
			case err := <-ended:
				return err
			case <-time.After(farewell):
				l.log.Warn("what was led did not end in time", zap.Duration("waited", farewell))
			}
		default:
		}
	}
	// Only now that nobody writes any more another may lead.
	stopElecting()
	return <-ended
}

// leadError says why leading has ended by itself, which it never should.
func leadError(err error) error {
	switch {
	case err == nil:
		return errors.New("leading has ended without a reason")
	case errors.Is(err, provider.ErrNotLeader):
		return fmt.Errorf("%w: %w", errLeadershipLost, err)
	}
	return err
}
