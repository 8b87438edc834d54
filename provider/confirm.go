package provider

import (
	"context"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ConfirmRemovals returns those of the keys, which are as in
// [lb.RemovalHeldError], that a fresh list of the API server shows to be right:
// there is no such Service that is ours, and no such Node that may take traffic.
// It trusts neither the informers nor the decisions. Removals that are meant
// although the object is there, such as by another edgeSelector, are left to the
// annotation on the Edge.
func (p *Provider) ConfirmRemovals(ctx context.Context, keys []string) ([]string, error) {
	there := map[string]bool{}
	wants := func(prefix string) bool {
		return slices.ContainsFunc(keys, func(k string) bool { return strings.HasPrefix(k, prefix) })
	}
	if wants(loadBalancerKey) {
		list, err := p.clients.write.CoreV1().Services("").List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, fmt.Errorf("list Services to confirm removals: %w", err)
		}
		for i := range list.Items {
			if p.controllers().PathOf(&list.Items[i]) != Nobody {
				there[loadBalancerKey+string(list.Items[i].UID)] = true
			}
		}
	}
	if wants(nodeKey) {
		list, err := p.clients.write.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, fmt.Errorf("list Nodes to confirm removals: %w", err)
		}
		for i := range list.Items {
			if !excluded(&list.Items[i]) {
				there[nodeKey+list.Items[i].Name] = true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return there[k] }), nil
}
