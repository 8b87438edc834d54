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
	check := lb.HealthCheck{Port: KubeProxyHealthPort, Spec: healthcheck.Spec{Protocol: healthcheck.HTTP}}
	if local(svc) && svc.Spec.HealthCheckNodePort != 0 {
		check.Port = uint16(svc.Spec.HealthCheckNodePort) //nolint:gosec // the API server bounds ports
	}
	nodePort := firstTCPNodePort(svc)
	if local(svc) && svc.Spec.HealthCheckNodePort == 0 && nodePort != 0 && w.CheckPort == 0 {
		w.Check.Protocol = cmp.Or(w.Check.Protocol, healthcheck.TCP)
	}
	spec := w.Check
	spec.Protocol = cmp.Or(spec.Protocol, check.Protocol)
	if spec.Protocol == healthcheck.TCP && w.CheckPort == 0 {
		if nodePort == 0 {
			return check, []Complaint{{
				Field: string(AnnotationHealthCheckProtocol), Value: string(healthcheck.TCP),
				Want:    fmt.Sprintf("needs %s on a Service without TCP ports", AnnotationHealthCheckPort),
				Instead: "the default check is used",
			}}
		}
		check.Port = nodePort
	}
	if spec.Protocol != healthcheck.TCP {
		spec.Path = cmp.Or(spec.Path, healthcheck.DefaultPath)
	}
	check.Port = cmp.Or(w.CheckPort, check.Port)
	check.Spec = spec
	return check, nil
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
