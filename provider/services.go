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
// sessionAffinityConfig.clientIP.timeoutSeconds.
const defaultAffinity = 3 * time.Hour

// loadBalancerIPField is the path of the old field for a requested address.
const loadBalancerIPField = "spec.loadBalancerIP"

// maxSourceRanges bounds loadBalancerSourceRanges.
const maxSourceRanges = 1024

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
	// Complaints are what cannot be honoured, while the Service is served.
	Complaints []Complaint
	// Refusals are the reasons why the Service cannot be served at all.
	Refusals []Complaint
}

// Translate reads a Service.
func Translate(svc *v1.Service) Translation {
	var t Translation
	t.Wishes, t.Complaints = ReadAnnotations(svc.Annotations)
	t.loadBalancerIP(svc)
	w := t.Wishes
	t.Local = local(svc)
	t.OneFamilySuffices = svc.Spec.IPFamilyPolicy == nil || *svc.Spec.IPFamilyPolicy != v1.IPFamilyPolicyRequireDualStack
	t.families(svc)
	check, complaints := healthCheckOf(svc, w)
	t.Complaints = append(t.Complaints, complaints...)
	t.LoadBalancer = lb.LoadBalancer{
		Name:           svc.Namespace + "/" + svc.Name,
		HealthCheck:    check,
		FailOpen:       !t.Local,
		Algorithm:      w.Algorithm,
		Affinity:       affinityOf(svc),
		IdleTimeout:    w.IdleTimeout,
		UDPIdleTimeout: w.UDPIdleTimeout,
		DrainTimeout:   w.DrainTimeout,
		MaxConnections: w.MaxConnections,
		OnUnhealthy:    w.OnUnhealthy,
	}
	t.Check = check.ID()
	t.listeners(svc)
	t.sourceRanges(svc)
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

func (t *Translation) listeners(svc *v1.Service) {
	proxied := map[string]bool{}
	for i, p := range svc.Spec.Ports {
		field := fmt.Sprintf("spec.ports[%d]", i)
		if p.NodePort == 0 {
			t.refuse(field+".nodePort", "0", "must be a node port: edges reach pods through node ports only, so allocateLoadBalancerNodePorts must not be false")
			continue
		}
		l := lb.Listener{Name: p.Name, Port: uint16(p.Port), TargetPort: uint16(p.NodePort)} //nolint:gosec // the API server bounds ports
		switch p.Protocol {
		case v1.ProtocolTCP, "":
			l.Protocol = lb.TCP
		case v1.ProtocolUDP:
			l.Protocol = lb.UDP
		case v1.ProtocolSCTP:
			l.Protocol = lb.SCTP
		default:
			t.refuse(field+".protocol", string(p.Protocol), "must be TCP, UDP or SCTP")
			continue
		}
		t.proxy(&l, proxied)
		t.LoadBalancer.Listeners = append(t.LoadBalancer.Listeners, l)
	}
	if len(svc.Spec.Ports) == 0 {
		t.refuse("spec.ports", "", "must have at least one port")
	}
	for port := range t.Wishes.ProxyPorts {
		if !proxied[port] {
			t.Complaints = append(t.Complaints, Complaint{
				Field: string(AnnotationProxyProtocol), Value: port,
				Want: "must be the name or number of a TCP port of the Service", Instead: "it is not looked at",
			})
		}
	}
	slices.SortStableFunc(t.Complaints, func(a, b Complaint) int { return strings.Compare(a.Field+a.Value, b.Field+b.Value) })
}

// proxy sets the listener's PROXY protocol, which is spoken over TCP only, and
// notes which entries of the annotation were of use.
func (t *Translation) proxy(l *lb.Listener, used map[string]bool) {
	if l.Protocol != lb.TCP {
		return
	}
	l.ProxyProtocol = t.Wishes.Proxy
	for _, key := range []string{strconv.Itoa(int(l.Port)), l.Name} {
		if p, ok := t.Wishes.ProxyPorts[key]; ok && key != "" {
			l.ProxyProtocol = p
			used[key] = true
		}
	}
}

// affinityOf returns how long clients stay with their node, nil if they need not.
func affinityOf(svc *v1.Service) *lb.Affinity {
	if svc.Spec.SessionAffinity != v1.ServiceAffinityClientIP {
		return nil
	}
	timeout := defaultAffinity
	if c := svc.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		timeout = time.Duration(*c.ClientIP.TimeoutSeconds) * time.Second
	}
	return &lb.Affinity{Timeout: healthcheck.Duration(timeout)}
}

// sourceRanges reads who may connect. A range that cannot be read refuses the
// Service: leaving it out would lock somebody out, and leaving all out would let
// everybody in. Kubernetes' helper is not used since it stands 0.0.0.0/0 for
// everybody and so forgets IPv6.
func (t *Translation) sourceRanges(svc *v1.Service) {
	field, ranges := "spec.loadBalancerSourceRanges", svc.Spec.LoadBalancerSourceRanges
	if len(ranges) == 0 {
		field = v1.AnnotationLoadBalancerSourceRangesKey
		value := strings.TrimSpace(svc.Annotations[v1.AnnotationLoadBalancerSourceRangesKey])
		if value == "" {
			return
		}
		ranges = strings.SplitN(value, ",", maxSourceRanges+1)
	}
	if len(ranges) > maxSourceRanges {
		t.refuse(field, fmt.Sprintf("%d ranges", len(ranges)), fmt.Sprintf("must not be more than %d", maxSourceRanges))
		return
	}
	var prefixes []netip.Prefix
	for _, text := range ranges {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			t.refuse(field, text, "must be a range of addresses such as 192.0.2.0/24")
			continue
		}
		if p = p.Masked(); !slices.Contains(prefixes, p) {
			prefixes = append(prefixes, p)
		}
	}
	t.LoadBalancer.SourceRanges = prefixes
}
