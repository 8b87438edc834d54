package provider

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// defaultAffinity is Kubernetes' own default of
// sessionAffinityConfig.clientIP.timeoutSeconds, and maxAffinity its largest value,
// in seconds.
const (
	defaultAffinity = 3 * time.Hour
	maxAffinity     = 86400
)

// loadBalancerIPField is the path of the old field for a requested address.
const loadBalancerIPField = "spec.loadBalancerIP"

// Translation is what one Service by itself asks of load balancers, without
// addresses, nodes and endpoints.
type Translation struct {
	// Wishes is what the annotations ask for.
	Wishes Wishes
	// Families are the address families that the Service wants, the first one
	// first.
	Families []lb.Family
	// OneFamilySuffices says that the Service takes what it can get of the
	// families.
	OneFamilySuffices bool
	// Local says that only nodes with endpoints take traffic.
	Local bool
	// Check names the health check.
	Check lb.CheckID
	// LoadBalancer lacks addresses, claim time, pool and members.
	LoadBalancer lb.LoadBalancer
	// Direct says that edges are to route packets to nodes as they are.
	Direct bool
	// Unserved are ports that cannot be served, while others are.
	Unserved []UnservedPort
	// Complaints are what cannot be honoured, while the Service is served.
	Complaints []Complaint
	// Remarks are sentences about what is honoured, and may not be meant.
	Remarks []string
	// Refusals are the reasons why the Service cannot be served at all.
	Refusals []Complaint
}

// Translate reads a Service that edges are to serve in this way.
func Translate(svc *v1.Service, way lb.Forwarding) Translation {
	t := Translation{Direct: way == lb.ForwardDirect}
	t.Wishes, t.Complaints = ReadAnnotations(svc.Annotations)
	t.loadBalancerIP(svc)
	w := t.Wishes
	t.Local = local(svc)
	t.OneFamilySuffices = svc.Spec.IPFamilyPolicy == nil || *svc.Spec.IPFamilyPolicy != v1.IPFamilyPolicyRequireDualStack
	t.families(svc)
	t.affinity(svc)
	check, complaints := healthCheckOf(svc, w)
	t.Complaints = append(t.Complaints, complaints...)
	t.LoadBalancer = lb.LoadBalancer{
		Name:           svc.Namespace + "/" + svc.Name,
		HealthCheck:    check,
		FailOpen:       !t.Local,
		Algorithm:      w.Algorithm,
		Affinity:       t.LoadBalancer.Affinity,
		ConnectTimeout: w.ConnectTimeout,
		IdleTimeout:    w.IdleTimeout,
		UDPIdleTimeout: w.UDPIdleTimeout,
		DrainTimeout:   w.DrainTimeout,
		MaxConnections: w.MaxConnections,
		OnUnhealthy:    w.OnUnhealthy,
	}
	t.Check = check.ID()
	t.listeners(svc)
	t.withoutUse(svc)
	if t.Direct {
		t.direct(svc)
	}
	t.sourceRanges(svc)
	if t.Local && ownCheck(w) {
		t.Remarks = append(t.Remarks, fmt.Sprintf("health check %s takes the place of healthCheckNodePort: with externalTrafficPolicy Local a node whose last endpoint goes is known by failed probes only", t.Check))
	}
	slices.SortStableFunc(t.Complaints, func(a, b Complaint) int { return strings.Compare(a.Field+a.Value, b.Field+b.Value) })
	return t
}

func (t *Translation) refuse(field, value, want string) {
	t.Refusals = append(t.Refusals, Complaint{Field: field, Value: value, Want: want, Instead: "the Service is not served like this"})
}

// loadBalancerIP honours the old field for a requested address where the
// annotation does not ask for any.
func (t *Translation) loadBalancerIP(svc *v1.Service) {
	value := svc.Spec.LoadBalancerIP
	if value == "" {
		return
	}
	complain := func(want, instead string) {
		t.Complaints = append(t.Complaints, Complaint{Field: loadBalancerIPField, Value: value, Want: want, Instead: instead})
	}
	a, err := netip.ParseAddr(value)
	switch {
	case t.Wishes.Addresses != nil || t.Wishes.AddressesUnclear:
		if err != nil || !slices.Contains(t.Wishes.Addresses, a.Unmap()) {
			complain(fmt.Sprintf("must not ask for anything else than the annotation %s", AnnotationAddresses), "it is not looked at")
		}
	case err != nil || a.Zone() != "":
		complain("must be an IPv4 or IPv6 address", "the Service gets no new address")
		t.Wishes.AddressesUnclear = true
	default:
		t.Wishes.Addresses = []netip.Addr{a.Unmap()}
	}
}

func (t *Translation) families(svc *v1.Service) {
	for _, f := range svc.Spec.IPFamilies {
		switch f {
		case v1.IPv4Protocol:
			t.Families = append(t.Families, lb.IPv4)
		case v1.IPv6Protocol:
			t.Families = append(t.Families, lb.IPv6)
		case v1.IPFamilyUnknown:
		}
	}
	if len(t.Families) == 0 {
		t.Families = []lb.Family{lb.IPv4}
	}
}

// affinity reads how long clients stay with their node.
func (t *Translation) affinity(svc *v1.Service) {
	if svc.Spec.SessionAffinity != v1.ServiceAffinityClientIP {
		return
	}
	timeout := defaultAffinity
	if c := svc.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		n := *c.ClientIP.TimeoutSeconds
		if n < 1 || n > maxAffinity {
			t.refuse("spec.sessionAffinityConfig.clientIP.timeoutSeconds", strconv.Itoa(int(n)), fmt.Sprintf("must be from 1 to %d", maxAffinity))
			return
		}
		timeout = time.Duration(n) * time.Second
	}
	t.LoadBalancer.Affinity = &lb.Affinity{Timeout: healthcheck.Duration(timeout)}
}
