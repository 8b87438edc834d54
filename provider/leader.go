package provider

import (
	"context"
	"errors"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/eclusa-lb/eclusa/lb"
)

// ErrNotLeader says that the Lease is held by another, or by nobody.
var ErrNotLeader = errors.New("not the leader")

// LeaseClaim returns a function that reads the Lease back from the API server
// and makes of it the claim with which identity becomes the writer of an edge.
// The function returns ErrNotLeader if another holds the Lease, nobody does, or
// identity has not renewed it in time. It may be called concurrently.
func LeaseClaim(client kubernetes.Interface, namespace, name, identity string) func(context.Context) (lb.Claim, error) {
	return func(ctx context.Context) (lb.Claim, error) {
		// The cluster first and the Lease last: what it says must be as new as can be.
		system, err := client.CoreV1().Namespaces().Get(ctx, metav1.NamespaceSystem, metav1.GetOptions{})
		if err != nil {
			return lb.Claim{}, fmt.Errorf("reading namespace %q, whose UID identifies the cluster: %w", metav1.NamespaceSystem, err)
		}
		lease, err := client.CoordinationV1().Leases(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return lb.Claim{}, fmt.Errorf("reading Lease %q: %w", namespace+"/"+name, err)
		}
		spec := lease.Spec
		switch {
		case spec.HolderIdentity == nil || *spec.HolderIdentity == "":
			return lb.Claim{}, fmt.Errorf("the Lease %q is held by nobody: %w", namespace+"/"+name, ErrNotLeader)
		case *spec.HolderIdentity != identity:
			return lb.Claim{}, fmt.Errorf("the Lease %q is held by %q: %w", namespace+"/"+name, *spec.HolderIdentity, ErrNotLeader)
		case spec.RenewTime == nil || spec.LeaseDurationSeconds == nil:
			return lb.Claim{}, fmt.Errorf("the Lease %q does not say until when it is held: %w", namespace+"/"+name, ErrNotLeader)
		}
		// The time of renewal is from our own clock, so that skew does not matter.
		ends := spec.RenewTime.Add(time.Duration(*spec.LeaseDurationSeconds) * time.Second)
		if late := time.Since(ends); late > 0 {
			return lb.Claim{}, fmt.Errorf("the Lease %q has expired %s ago: %w", namespace+"/"+name, late.Round(time.Millisecond), ErrNotLeader)
		}
		c := lb.Claim{ClusterUID: string(system.UID), LeaseUID: string(lease.UID), Holder: identity}
		if spec.LeaseTransitions != nil {
			c.LeaseTransitions = int64(*spec.LeaseTransitions)
		}
		return c, nil
	}
}
