package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	appconfig "k8s.io/cloud-provider/app/config"
)

// errLeadershipLost ends the program: another may lead by now, and two must not.
var errLeadershipLost = errors.New("the Lease is lost")

// newIdentity returns the name under which this process holds the Lease. In a
// cluster it begins with the name of the Pod, by which the leader is found; what
// follows keeps two processes of one host apart.
func newIdentity() (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("asking for the host's name, which begins our name in the Lease: %w", err)
	}
	return host + "_" + string(uuid.NewUUID()), nil
}

// elect holds the Lease with the settings of the stock flags. It calls lead, with
// a context that ends with the leadership, as soon as it has the Lease. It
// returns nil when ctx has ended, after having given the Lease back so that the
// next leader need not wait for it to expire, and errLeadershipLost when the
// Lease could not be kept.
//
// It calls leads with whoever holds the Lease whenever that changes.
func elect(ctx context.Context, c *appconfig.CompletedConfig, identity string, watchdog *leaderelection.HealthzAdaptor, log *zap.Logger, leads func(holder string), lead func(context.Context)) error {
	s := c.ComponentConfig.Generic.LeaderElection
	lock, err := newLock(c, identity)
	if err != nil {
		return err
	}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:          lock,
		LeaseDuration: s.LeaseDuration.Duration,
		RenewDeadline: s.RenewDeadline.Duration,
		RetryPeriod:   s.RetryPeriod.Duration,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: lead,
			OnStoppedLeading: func() {},
			OnNewLeader: func(holder string) {
				leads(holder)
				if holder != identity {
					log.Info("another leads, standing by", zap.String("holder", holder))
				}
			},
		},
		WatchDog: watchdog,
		Name:     s.ResourceName,
	})
	if err != nil {
		return &usageError{fmt.Errorf("--leader-elect-...: %w", err)}
	}
	watchdog.SetLeaderElection(elector)
	elector.Run(ctx)
	if ctx.Err() == nil {
		return fmt.Errorf("%w: %q could not be renewed within %s", errLeadershipLost, s.ResourceNamespace+"/"+s.ResourceName, s.RenewDeadline.Duration)
	}
	release(context.WithoutCancel(ctx), lock, log)
	return nil
}

// newLock returns the lock of the Lease, as the stock app makes it, but for what
// the holder tells with it.
func newLock(c *appconfig.CompletedConfig, identity string) (resourcelock.Interface, error) {
	s := c.ComponentConfig.Generic.LeaderElection
	if s.ResourceLock != resourcelock.LeasesResourceLock {
		return nil, &usageError{fmt.Errorf("--leader-elect-resource-lock: %q: must be %q", s.ResourceLock, resourcelock.LeasesResourceLock)}
	}
	config := rest.AddUserAgent(rest.CopyConfig(c.Kubeconfig), "leader-election")
	// Half of the deadline, so that a request that hangs leaves time for another.
	config.Timeout = max(s.RenewDeadline.Duration/2, time.Second)
	client, err := coordinationclient.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making the client of Lease %q: %w", s.ResourceNamespace+"/"+s.ResourceName, err)
	}
	return &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: s.ResourceNamespace, Name: s.ResourceName},
		Client:     advertisedLeases{client, advertOf(c.SecureServing)},
		LockConfig: resourcelock.ResourceLockConfig{Identity: identity, EventRecorder: c.EventRecorder},
	}, nil
}

// release gives the Lease back if it is ours. The elector would do so as well,
// but also when it could not renew it, and then keep us leading while it tries.
func release(ctx context.Context, lock resourcelock.Interface, log *zap.Logger) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	record, _, err := lock.Get(ctx)
	if err == nil && record.HolderIdentity == lock.Identity() {
		now := metav1.Now()
		err = lock.Update(ctx, resourcelock.LeaderElectionRecord{
			LeaderTransitions: record.LeaderTransitions, LeaseDurationSeconds: 1, RenewTime: now, AcquireTime: now,
		})
	}
	if err != nil {
		log.Warn("Lease could not be given back, the next leader waits until it expires", zap.Error(err))
	}
}

// watchdogTolerance is how long after its end a Lease that we still believe to
// hold makes us unhealthy, as in the stock app.
const watchdogTolerance = 20 * time.Second
