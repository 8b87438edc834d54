package provider

import (
	"net/netip"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	servicehelper "k8s.io/cloud-provider/service/helpers"

	"github.com/eclusa-lb/eclusa/lb"
)

// Class is the spec.loadBalancerClass of Services that eclusa serves beside
// another implementation of load balancers.
const Class = "eclusa.io/edge"

// Finalizer keeps a Service with our class until its addresses are in
// quarantine.
const Finalizer = "eclusa.io/load-balancer"

// stockFinalizer is that of Kubernetes' own service controller, which keeps
// Services without a class.
const stockFinalizer = servicehelper.LoadBalancerCleanupFinalizer

// The names of the controllers, as --controllers knows them.
const (
	StockController = "service-lb-controller"
	ClassController = "eclusa-class-controller"
)

// Controllers says which Services are ours.
type Controllers struct {
	// Stock serves Services without a class, together with Kubernetes' own
	// service controller.
	Stock bool
	// Class serves Services with our class.
	Class bool
}

// Path says who looks after a Service.
type Path uint8

// The paths of a Service.
const (
	Nobody   Path = iota // not a load balancer, about to be deleted, or somebody else's
	ByStock              // no class: Kubernetes' own controller sees to the finalizer
	ByClass              // our class: we see to the finalizer
	foreigns             // no class, but somebody else has given it an address
)

// PathOf says who looks after a Service. A Service has one path at a time, so
// that it has one owner whatever happens to its type and class.
func (c Controllers) PathOf(svc *v1.Service) Path {
	if svc.Spec.Type != v1.ServiceTypeLoadBalancer || svc.DeletionTimestamp != nil {
		return Nobody
	}
	switch class := svc.Spec.LoadBalancerClass; {
	case class == nil && c.Stock:
		return ByStock
	case class != nil && *class == Class && c.Class:
		return ByClass
	}
	return Nobody
}

// finalizer returns the finalizer that a Service on this path must carry before
// it is served.
func (p Path) finalizer() string {
	switch p {
	case ByStock:
		return stockFinalizer
	case ByClass:
		return Finalizer
	case Nobody, foreigns:
	}
	return ""
}

// staleFinalizers returns those finalizers of the Service that nobody else would
// take away. Our own is stale on every other path. The stock one is stale where
// the stock controller does not run, on Services that we once served, and on
// Services that have our class by now: the stock controller does not look at
// those.
func (c Controllers) staleFinalizers(svc *v1.Service, path Path) []string {
	var stale []string
	if path != ByClass && slices.Contains(svc.Finalizers, Finalizer) {
		stale = append(stale, Finalizer)
	}
	stockRuns := c.Stock && svc.Spec.LoadBalancerClass == nil
	if path != ByStock && !stockRuns && onceOurs(svc) && slices.Contains(svc.Finalizers, stockFinalizer) {
		stale = append(stale, stockFinalizer)
	}
	return stale
}

// onceOurs says whether the Service carries something that only we write.
func onceOurs(svc *v1.Service) bool {
	if _, ok := svc.Annotations[string(AnnotationAssignedAddresses)]; ok {
		return true
	}
	if slices.Contains(svc.Finalizers, Finalizer) {
		return true
	}
	for _, c := range svc.Status.Conditions {
		if ourCondition(c.Type) {
			return true
		}
	}
	return false
}

// ingressAddresses returns the addresses in the Service's status, and whether
// there is anything else than addresses.
func ingressAddresses(svc *v1.Service) (addrs []netip.Addr, strange bool) {
	for _, in := range svc.Status.LoadBalancer.Ingress {
		a, err := netip.ParseAddr(in.IP)
		if err != nil || a.Zone() != "" {
			strange = true
			continue
		}
		if a = a.Unmap(); !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	return addrs, strange
}

// formatAddresses writes addresses as recordedAddresses reads them.
func formatAddresses(addrs []netip.Addr) string {
	texts := make([]string, len(addrs))
	for i, a := range addrs {
		texts[i] = a.String()
	}
	return strings.Join(texts, ",")
}

// uidOf returns the UID that edges know the Service by.
func uidOf(svc *v1.Service) lb.UID { return lb.UID(svc.UID) }
