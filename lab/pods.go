package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Pod is the network of a running pod, for connections from inside the cluster:
// what dials there dials as the pod does. It waits, half a minute at most, until
// the pod runs. The link of a pod cannot be switched.
func (l *Lab) Pod(ctx context.Context, namespace, name string) (*Host, error) {
	clients, err := l.Clientset()
	if err != nil {
		return nil, err
	}
	var h *Host
	err = until(ctx, 30*time.Second, func(ctx context.Context) error {
		p, err := clients.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
		if err == nil {
			h, err = l.podHost(p)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("pod %q: %w", namespace+"/"+name, err)
	}
	return h, nil
}

func (l *Lab) podHost(p *corev1.Pod) (*Host, error) {
	if len(p.Status.ContainerStatuses) == 0 || p.Status.ContainerStatuses[0].State.Running == nil {
		return nil, errors.New("does not run")
	}
	run, err := inContainer(p.Status.ContainerStatuses[0].ContainerID)
	if err != nil {
		return nil, err
	}
	h := &Host{Name: p.Name, lab: l, holder: run}
	for _, ip := range p.Status.PodIPs {
		a, err := netip.ParseAddr(ip.IP)
		switch {
		case err != nil:
			return nil, err
		case a.Is4():
			h.Addr4 = a
		default:
			h.Addr6 = a
		}
	}
	return h, nil
}
