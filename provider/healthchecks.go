package provider

import (
	"cmp"
	"fmt"

	v1 "k8s.io/api/core/v1"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// KubeProxyHealthPort is where kube-proxy of every node tells its health. It
// fails early on nodes that are about to be deleted.
const KubeProxyHealthPort = 10256

// healthCheckOf returns how the nodes of a Service are checked: with policy
// Local where kube-proxy tells whether the node has endpoints of the Service,
// else where it tells its own health, which is one probe per node for all
// Services. Annotations override parts of it.
func healthCheckOf(svc *v1.Service, w Wishes) (lb.HealthCheck, []Complaint) {
	spec := w.Check
	if spec.Protocol == healthcheck.None {
		return lb.HealthCheck{Spec: spec}, nil
	}
	check := lb.HealthCheck{Port: KubeProxyHealthPort, Spec: healthcheck.Spec{Protocol: healthcheck.HTTP, Path: healthcheck.DefaultPath}}
	nodePort := firstTCPNodePort(svc)
	if local(svc) {
		switch {
		case svc.Spec.HealthCheckNodePort != 0:
			check.Port = uint16(svc.Spec.HealthCheckNodePort) //nolint:gosec // the API server bounds ports
		case nodePort != 0 && w.CheckPort == 0:
			spec.Protocol = cmp.Or(spec.Protocol, healthcheck.TCP)
		}
	}
	spec.Protocol = cmp.Or(spec.Protocol, check.Protocol)
	speaksTo := spec.Protocol == healthcheck.TCP || spec.Protocol == healthcheck.GRPC // what serves there
	if w.CheckTrafficPort || speaksTo && w.CheckPort == 0 {
		if nodePort == 0 {
			return check, []Complaint{noTrafficPort(svc, w)}
		}
		check.Port = nodePort
	}
	switch spec.Protocol {
	case healthcheck.HTTP, healthcheck.HTTPS:
		spec.Path = cmp.Or(spec.Path, healthcheck.DefaultPath)
	case healthcheck.TCP:
		spec.Path = ""
	case healthcheck.GRPC, healthcheck.None:
	}
	check.Port = cmp.Or(w.CheckPort, check.Port)
	check.Spec = spec
	return check, nil
}

// noTrafficPort complains about a check of a port that the Service does not have.
func noTrafficPort(svc *v1.Service, w Wishes) Complaint {
	c := Complaint{Instead: "the default check is used"}
	if w.CheckTrafficPort {
		c.Field, c.Value = string(AnnotationHealthCheckPort), svc.Annotations[string(AnnotationHealthCheckPort)]
		c.Want = "needs a TCP port with a node port, and the Service has none: it must be a number"
		return c
	}
	c.Field, c.Value = string(AnnotationHealthCheckProtocol), string(w.Check.Protocol)
	c.Want = fmt.Sprintf("needs %s on a Service without TCP ports", AnnotationHealthCheckPort)
	return c
}

// ownCheck says whether an annotation makes the nodes be asked something else
// than what Kubernetes provides for.
func ownCheck(w Wishes) bool {
	return w.CheckPort != 0 || w.CheckTrafficPort || w.Check.Path != "" || w.Check.Protocol != ""
}

// local says whether only nodes with endpoints of the Service take its traffic.
func local(svc *v1.Service) bool {
	return svc.Spec.ExternalTrafficPolicy == v1.ServiceExternalTrafficPolicyLocal
}

// firstTCPNodePort returns a node port that accepts TCP connections, or zero.
func firstTCPNodePort(svc *v1.Service) uint16 {
	for _, p := range svc.Spec.Ports {
		if (p.Protocol == v1.ProtocolTCP || p.Protocol == "") && p.NodePort != 0 {
			return uint16(p.NodePort) //nolint:gosec // the API server bounds ports
		}
	}
	return 0
}
