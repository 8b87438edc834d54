package provider

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/eclusa-lb/eclusa/lb"
)

// MaxPorts is the largest number of ports of one Service.
const MaxPorts = 4096

// UnservedPort is a port of a Service that is not served, while others are.
type UnservedPort struct {
	Protocol v1.Protocol
	Port     int32
	// Error is what the Service's status says of the port: a name in CamelCase.
	Error string
	// Why says it to people.
	Why string
}

// same says whether both are the same port.
func (u UnservedPort) same(o UnservedPort) bool { return u.Protocol == o.Protocol && u.Port == o.Port }

// The errors of single ports in a Service's status, without our prefix.
const (
	portWithoutNodePort = "NoNodePort"
	portInUse           = "PortInUse"
)

// allocate says what to do about ports without a node port.
const allocate = "set spec.allocateLoadBalancerNodePorts to true, so that the API server allocates them, or write some into spec.ports; or have edges that can do direct, those with engine nftables and nftables.direct in their configuration, serve its address"

func (t *Translation) listeners(svc *v1.Service) {
	ports := svc.Spec.Ports
	switch {
	case len(ports) == 0:
		t.refuse("spec.ports", "", "must have at least one port")
	case len(ports) > MaxPorts:
		t.refuse("spec.ports", fmt.Sprintf("%d ports", len(ports)), fmt.Sprintf("must not be more than %d: divide them among several Services, which can share an address with %s", MaxPorts, AnnotationSharingKey))
		return
	}
	proxied := map[string]bool{}
	first := make(map[lb.Listener]int, len(ports))
	var without []string
	for i, p := range ports {
		field := fmt.Sprintf("spec.ports[%d]", i)
		l, ok := t.listener(field, p)
		if !ok {
			continue
		}
		key := lb.Listener{Protocol: l.Protocol, Port: l.Port}
		if at, twice := first[key]; twice {
			t.refuse(field, portText(p), fmt.Sprintf("must differ from spec.ports[%d] in port or protocol", at))
			continue
		}
		first[key] = i
		t.proxy(&l, proxied)
		if t.Direct {
			l.TargetPort = l.Port
		} else if p.NodePort == 0 {
			without = append(without, portText(p))
			t.Unserved = append(t.Unserved, UnservedPort{Protocol: protocolOf(p), Port: p.Port, Error: portWithoutNodePort, Why: "without a node port; " + allocate})
			continue
		}
		t.LoadBalancer.Listeners = append(t.LoadBalancer.Listeners, l)
	}
	if len(without) > 0 && len(t.LoadBalancer.Listeners) == 0 {
		t.Unserved = nil
		t.refuse("spec.ports[0].nodePort", "0", "must be a node port, and no port has one, while no edge that could serve the Service can do without: "+allocate)
	}
	t.unusedProxies(svc, proxied)
}

// listener reads one port. The API server bounds numbers, and a plan does not.
func (t *Translation) listener(field string, p v1.ServicePort) (lb.Listener, bool) {
	const most = 65535
	if p.Port < 1 || p.Port > most {
		t.refuse(field+".port", strconv.Itoa(int(p.Port)), fmt.Sprintf("must be from 1 to %d", most))
		return lb.Listener{}, false
	}
	if p.NodePort < 0 || p.NodePort > most {
		t.refuse(field+".nodePort", strconv.Itoa(int(p.NodePort)), fmt.Sprintf("must be from 1 to %d", most))
		return lb.Listener{}, false
	}
	l := lb.Listener{Name: p.Name, Port: uint16(p.Port), TargetPort: uint16(p.NodePort)}
	switch protocolOf(p) {
	case v1.ProtocolTCP:
		l.Protocol = lb.TCP
	case v1.ProtocolUDP:
		l.Protocol = lb.UDP
	case v1.ProtocolSCTP:
		l.Protocol = lb.SCTP
	default:
		t.refuse(field+".protocol", string(p.Protocol), "must be TCP, UDP or SCTP")
		return l, false
	}
	return l, true
}

// protocolOf returns the protocol of a port; TCP is the default.
func protocolOf(p v1.ServicePort) v1.Protocol {
	if p.Protocol == "" {
		return v1.ProtocolTCP
	}
	return p.Protocol
}

// portText writes a port as people do: 80/tcp.
func portText(p v1.ServicePort) string {
	return fmt.Sprintf("%d/%s", p.Port, strings.ToLower(string(protocolOf(p))))
}

// proxy sets the listener's PROXY protocol, which is spoken over TCP only, and
// notes which entries of the annotation were of use.
func (t *Translation) proxy(l *lb.Listener, used map[string]bool) {
	if l.Protocol != lb.TCP {
		return
	}
	l.ProxyProtocol = t.Wishes.Proxy
	used[""] = true
	for _, key := range []string{strconv.Itoa(int(l.Port)), l.Name} {
		if p, ok := t.Wishes.ProxyPorts[key]; ok && key != "" {
			l.ProxyProtocol = p
			used[key] = true
		}
	}
}

// unusedProxies complains about what is said of the PROXY protocol of ports that
// do not speak it.
func (t *Translation) unusedProxies(svc *v1.Service, used map[string]bool) {
	complain := func(value, want string) {
		t.Complaints = append(t.Complaints, Complaint{Field: string(AnnotationProxyProtocol), Value: value, Want: want, Instead: "it is not looked at"})
	}
	for port := range t.Wishes.ProxyPorts {
		if used[port] {
			continue
		}
		i := slices.IndexFunc(svc.Spec.Ports, func(p v1.ServicePort) bool { return p.Name == port || strconv.Itoa(int(p.Port)) == port })
		if i < 0 {
			complain(port, "must be the name or number of a TCP port of the Service")
			continue
		}
		complain(port, fmt.Sprintf("is port %s: the PROXY protocol is spoken over TCP only", portText(svc.Spec.Ports[i])))
	}
	if t.Wishes.Proxy != lb.ProxyOff && !used[""] {
		complain(string(t.Wishes.Proxy), "is spoken over TCP only, and the Service has no TCP port")
	}
}

// withoutUse complains about timeouts of a protocol that no port has.
func (t *Translation) withoutUse(svc *v1.Service) {
	has := map[v1.Protocol]bool{}
	for _, p := range svc.Spec.Ports {
		has[protocolOf(p)] = true
	}
	for _, x := range []struct {
		name     Annotation
		given    bool
		protocol v1.Protocol
	}{
		{AnnotationConnectTimeout, t.Wishes.ConnectTimeout != 0, v1.ProtocolTCP},
		{AnnotationIdleTimeout, t.Wishes.IdleTimeout != 0, v1.ProtocolTCP},
		{AnnotationUDPIdleTimeout, t.Wishes.UDPIdleTimeout != 0, v1.ProtocolUDP},
	} {
		if !x.given || has[x.protocol] {
			continue
		}
		t.Complaints = append(t.Complaints, Complaint{
			Field: string(x.name), Value: svc.Annotations[string(x.name)],
			Want: fmt.Sprintf("is for %s ports, and the Service has none", x.protocol), Instead: "it is of no use",
		})
		switch x.name {
		case AnnotationConnectTimeout:
			t.LoadBalancer.ConnectTimeout = 0 // it must not need an edge that can do it
		case AnnotationIdleTimeout:
			t.LoadBalancer.IdleTimeout = 0
		default:
			t.LoadBalancer.UDPIdleTimeout = 0
		}
	}
}
