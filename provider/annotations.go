package provider

import (
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// Annotation is the name of an annotation on a Service.
type Annotation string

// Prefix is what the names of all our annotations and conditions begin with.
const Prefix = "eclusa.io/"

// The annotations that users write.
const (
	// AnnotationAddressPool names the AddressPool that the Service's addresses
	// come from.
	//
	// Type: name of an AddressPool.
	// Default: any pool that assigns automatically and admits the Service.
	AnnotationAddressPool Annotation = Prefix + "address-pool"

	// AnnotationAddresses asks for certain addresses, at most one of each address
	// family. They must be of a pool that admits the Service.
	//
	// Type: list of addresses, separated by commas.
	// Default: free addresses of a pool.
	AnnotationAddresses Annotation = Prefix + "addresses"

	// AnnotationSharingKey lets Services with the same key in the same namespace
	// share an address, as long as they use different ports of it.
	//
	// Type: text of at most 253 bytes.
	// Default: the address is not shared.
	AnnotationSharingKey Annotation = Prefix + "sharing-key"

	// AnnotationProxyProtocol announces the client's address to the application
	// with HAProxy's PROXY protocol: one word for all TCP ports, or a list of
	// port=word with the name or number of a port of the Service.
	//
	// Type: off, v1 or v2, or a list such as http=v2,8443=v1.
	// Default: off.
	AnnotationProxyProtocol Annotation = Prefix + "proxy-protocol"

	// AnnotationHealthCheckProtocol says how nodes are checked.
	//
	// Type: tcp, http or https.
	// Default: http, the health check of kube-proxy.
	AnnotationHealthCheckProtocol Annotation = Prefix + "health-check-protocol"

	// AnnotationHealthCheckPort says on which port of the nodes they are checked.
	//
	// Type: port number from 1 to 65535.
	// Default: 10256, or healthCheckNodePort with externalTrafficPolicy Local; the
	// first TCP node port of the Service for protocol tcp.
	AnnotationHealthCheckPort Annotation = Prefix + "health-check-port"

	// AnnotationHealthCheckPath is the request target of protocols http and https.
	//
	// Type: path beginning with "/".
	// Default: /healthz.
	AnnotationHealthCheckPath Annotation = Prefix + "health-check-path"

	// AnnotationHealthCheckInterval is the time from one probe of a node to the
	// next.
	//
	// Type: duration from 100ms to 10m.
	// Default: 1s.
	AnnotationHealthCheckInterval Annotation = Prefix + "health-check-interval"

	// AnnotationHealthCheckTimeout is how long the answer to a probe may take. It
	// must not be longer than the interval.
	//
	// Type: duration from 10ms to 30s.
	// Default: 500ms.
	AnnotationHealthCheckTimeout Annotation = Prefix + "health-check-timeout"

	// AnnotationHealthCheckUnhealthyThreshold is the number of probes that must
	// fail in a row before a node gets no new connections.
	//
	// Type: number from 1 to 100.
	// Default: 3.
	AnnotationHealthCheckUnhealthyThreshold Annotation = Prefix + "health-check-unhealthy-threshold"

	// AnnotationHealthCheckHealthyThreshold is the number of probes that must
	// succeed in a row before a node gets new connections again.
	//
	// Type: number from 1 to 100.
	// Default: 2.
	AnnotationHealthCheckHealthyThreshold Annotation = Prefix + "health-check-healthy-threshold"

	// AnnotationNodeSelector narrows the nodes that connections are sent to.
	//
	// Type: label selector such as role=web,zone in (a,b).
	// Default: all nodes that are not excluded from load balancers.
	AnnotationNodeSelector Annotation = Prefix + "node-selector"

	// AnnotationAlgorithm chooses the node of a new connection.
	//
	// Type: round-robin or least-connections.
	// Default: round-robin.
	AnnotationAlgorithm Annotation = Prefix + "algorithm"

	// AnnotationIdleTimeout ends a TCP connection on which nothing moved for so
	// long.
	//
	// Type: duration from 10ms to 168h.
	// Default: 1h.
	AnnotationIdleTimeout Annotation = Prefix + "idle-timeout"

	// AnnotationUDPIdleTimeout ends a UDP session on which nothing moved for so
	// long.
	//
	// Type: duration from 10ms to 168h.
	// Default: 30s.
	AnnotationUDPIdleTimeout Annotation = Prefix + "udp-idle-timeout"

	// AnnotationDrainTimeout is how long established connections may go on after
	// their node or port was removed.
	//
	// Type: duration from 10ms to 168h.
	// Default: 30s.
	AnnotationDrainTimeout Annotation = Prefix + "drain-timeout"

	// AnnotationMaxConnections limits the connections open at once over all ports
	// of the Service, on each edge.
	//
	// Type: number from 1 to 100000000.
	// Default: no limit but the edge's own.
	AnnotationMaxConnections Annotation = Prefix + "max-connections"

	// AnnotationOnUnhealthy says what happens to established connections of a node
	// that is dead.
	//
	// Type: reset or drain.
	// Default: reset.
	AnnotationOnUnhealthy Annotation = Prefix + "on-unhealthy"
)

// The annotations that eclusa writes. Users may read them.
const (
	// AnnotationAssignedAddresses records the addresses of the Service. It is
	// written before any edge learns of them, and with the addresses in the
	// Service's status it is the only memory of who has which address.
	AnnotationAssignedAddresses Annotation = Prefix + "assigned-addresses"

	// AnnotationAssignedAt records when the first of these addresses was assigned.
	// Of two clusters that want the same address the earlier one gets it.
	AnnotationAssignedAt Annotation = Prefix + "assigned-at"
)

// written are the annotations that users may write, and recordedAnnotations
// those that we do.
var (
	written = []Annotation{
		AnnotationAddressPool, AnnotationAddresses, AnnotationSharingKey, AnnotationProxyProtocol,
		AnnotationHealthCheckProtocol, AnnotationHealthCheckPort, AnnotationHealthCheckPath,
		AnnotationHealthCheckInterval, AnnotationHealthCheckTimeout,
		AnnotationHealthCheckUnhealthyThreshold, AnnotationHealthCheckHealthyThreshold,
		AnnotationNodeSelector, AnnotationAlgorithm, AnnotationIdleTimeout, AnnotationUDPIdleTimeout,
		AnnotationDrainTimeout, AnnotationMaxConnections, AnnotationOnUnhealthy,
	}
	recordedAnnotations = []Annotation{AnnotationAssignedAddresses, AnnotationAssignedAt}
)

// Annotations returns the names of all annotations that users may write.
func Annotations() []Annotation { return slices.Clone(written) }

// Wishes is what the annotations of a Service ask for. The zero value of each
// field stands for its default.
type Wishes struct {
	// Pool is the name of the AddressPool.
	Pool string
	// Addresses are the addresses asked for, at most one of each family.
	Addresses []netip.Addr
	// AddressesUnclear says that addresses were asked for in a way that cannot be
	// understood, so that no other must be given.
	AddressesUnclear bool
	// SharingKey lets the address be shared.
	SharingKey string
	// Proxy is the PROXY protocol of all TCP ports, and ProxyPorts that of single
	// ones by name or number.
	Proxy      lb.ProxyProtocol
	ProxyPorts map[string]lb.ProxyProtocol
	// Check overrides parts of the health check, and CheckPort its port.
	Check     healthcheck.Spec
	CheckPort uint16
	// NodeSelector narrows the nodes; nil is all.
	NodeSelector labels.Selector
	// Algorithm, timeouts, limit and OnUnhealthy are as in [lb.LoadBalancer].
	Algorithm      lb.Algorithm
	IdleTimeout    healthcheck.Duration
	UDPIdleTimeout healthcheck.Duration
	DrainTimeout   healthcheck.Duration
	MaxConnections int
	OnUnhealthy    lb.OnUnhealthy
}

// Complaint is an annotation or a field of a Service that cannot be honoured.
type Complaint struct {
	// Field is the annotation's name or the field's path.
	Field string
	// Value is what stands there, shortened if it is long.
	Value string
	// Want says what is accepted.
	Want string
	// Instead says what eclusa does now.
	Instead string
}

// String returns the complaint as one sentence.
func (c Complaint) String() string {
	s := c.Field + ": " + quoted(c.Value) + ": " + c.Want
	if c.Instead != "" {
		s += "; " + c.Instead
	}
	return s
}
