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

// The annotations that users write. What follows the first paragraph of each
// comment is made into docs/reference/annotations.md, and a test reads examples and
// bounds. The keys are Type, Accepts, Default, Example, and where there is
// something to say, Needs and Costs.
const (
	// AnnotationAddressPool names the AddressPool that the Service's addresses
	// come from.
	//
	// Type: name of an AddressPool.
	// Accepts: a pool whose selectors admit the Service, also one with autoAssign false.
	// Default: any pool that assigns automatically and admits the Service.
	// Example: public.
	AnnotationAddressPool Annotation = Prefix + "address-pool"

	// AnnotationAddresses asks for certain addresses and no others. A Service that
	// cannot have them stays without, and its Conditions say why.
	//
	// Type: list of addresses, separated by commas.
	// Accepts: at most one IPv4 and one IPv6 address, each of a pool that admits the Service. An address of a family that a single-stack Service is not of needs edges that can do family-translation.
	// Default: what spec.loadBalancerIP asks for, else free addresses of a pool.
	// Example: 192.0.2.140,2001:db8:1::8c.
	AnnotationAddresses Annotation = Prefix + "addresses"

	// AnnotationSharingKey lets Services with the same key in the same namespace
	// share an address.
	//
	// Type: text.
	// Accepts: 1 to 253 bytes.
	// Default: the address is not shared.
	// Example: dns.
	// Needs: a different protocol or port for each of the Services; nothing else of them must fit together, externalTrafficPolicy included. Across namespaces only an AddressPool with sharing Always shares.
	AnnotationSharingKey Annotation = Prefix + "sharing-key"

	// AnnotationProxyProtocol announces the client's address to the application
	// with HAProxy's PROXY protocol: one word for all TCP ports, or a list of
	// port=word with the name or number of a port of the Service.
	//
	// Type: word, or list of port=word.
	// Accepts: off, v1 or v2; at most 128 ports.
	// Default: off.
	// Example: v2.
	// Example: http=v2,8443=v1.
	// Needs: TCP ports: over UDP it is not spoken. An application that expects the header from the edges' addresses; any other takes it for rubbish.
	AnnotationProxyProtocol Annotation = Prefix + "proxy-protocol"

	// AnnotationHealthCheckProtocol says how nodes are checked.
	//
	// Type: word.
	// Accepts: tcp, http, https, grpc or none.
	// Default: http, the health check of kube-proxy.
	// Example: tcp.
	// Needs: health-check-port for tcp and grpc on a Service without TCP ports. With none no node is asked, and nothing else may be said about the check.
	// Costs: a check of its own, instead of the one that Services share: one more probe per node and interval from each edge.
	AnnotationHealthCheckProtocol Annotation = Prefix + "health-check-protocol"

	// AnnotationHealthCheckPort says on which port of the nodes they are checked.
	//
	// Type: port number, or traffic-port.
	// Accepts: from 1 to 65535, or traffic-port for the node port of the Service's first TCP port; not with protocol none.
	// Default: 10256, or healthCheckNodePort with externalTrafficPolicy Local; traffic-port for protocols tcp and grpc.
	// Example: 30100.
	// Example: traffic-port.
	// Costs: a check of its own, as health-check-protocol. With externalTrafficPolicy Local, a node whose last endpoint goes is known by failed probes only, where kube-proxy would have told at once.
	AnnotationHealthCheckPort Annotation = Prefix + "health-check-port"

	// AnnotationHealthCheckPath is the request target of protocols http and https,
	// and the name of the gRPC service that protocol grpc asks for.
	//
	// Type: path, or name of a gRPC service.
	// Accepts: what begins with "/", or for grpc any name; not with protocols tcp and none.
	// Default: /healthz, and for grpc the server as a whole.
	// Example: /ready.
	// Costs: a check of its own, as health-check-protocol.
	AnnotationHealthCheckPath Annotation = Prefix + "health-check-path"

	// AnnotationHealthCheckInterval is the time from one probe of a node to the
	// next.
	//
	// Type: duration.
	// Accepts: from 100ms to 10m, and no shorter than the timeout; not with protocol none.
	// Default: 1s.
	// Example: 5s.
	// Costs: a check of its own, as health-check-protocol. A longer interval finds a dead node later, a shorter one takes more of the edge's probesPerSecond.
	AnnotationHealthCheckInterval Annotation = Prefix + "health-check-interval"

	// AnnotationHealthCheckTimeout is how long the answer to a probe may take.
	//
	// Type: duration.
	// Accepts: from 10ms to 30s, and no longer than the interval; not with protocol none.
	// Default: 500ms.
	// Example: 250ms.
	// Costs: a check of its own, as health-check-protocol.
	AnnotationHealthCheckTimeout Annotation = Prefix + "health-check-timeout"

	// AnnotationHealthCheckUnhealthyThreshold is the number of probes that must
	// fail in a row before a node gets no new connections.
	//
	// Type: number.
	// Accepts: from 1 to 100; not with protocol none.
	// Default: 3.
	// Example: 5.
	// Costs: a check of its own, as health-check-protocol.
	AnnotationHealthCheckUnhealthyThreshold Annotation = Prefix + "health-check-unhealthy-threshold"

	// AnnotationHealthCheckHealthyThreshold is the number of probes that must
	// succeed in a row before a node gets new connections again.
	//
	// Type: number.
	// Accepts: from 1 to 100; not with protocol none.
	// Default: 2.
	// Example: 1.
	// Costs: a check of its own, as health-check-protocol.
	AnnotationHealthCheckHealthyThreshold Annotation = Prefix + "health-check-healthy-threshold"

	// AnnotationNodeSelector narrows the nodes that connections are sent to.
	//
	// Type: label selector.
	// Accepts: 1 to 32 clauses, as kubectl get --selector understands them.
	// Default: all nodes that are not excluded from load balancers.
	// Example: role=web,zone in (a,b).
	AnnotationNodeSelector Annotation = Prefix + "node-selector"

	// AnnotationAlgorithm chooses the node of a new connection. All of them honour
	// the weights of nodes, and with sessionAffinity ClientIP they choose for clients
	// that are new.
	//
	// Type: word.
	// Accepts: round-robin, least-connections, random-two-choices or source-hash.
	// Default: round-robin.
	// Example: least-connections.
	// Needs: an edge that can do it: see status.capabilities of the Edge.
	AnnotationAlgorithm Annotation = Prefix + "algorithm"

	// AnnotationConnectTimeout is how long one attempt to connect to a node may
	// take before another node is tried.
	//
	// Type: duration.
	// Accepts: from 10ms to 30s.
	// Default: the edge's own, 500ms.
	// Example: 2s.
	// Needs: a TCP port, and an edge that can do it: see status.capabilities of the Edge.
	// Costs: a client waits longer for the second node when the first is silent.
	AnnotationConnectTimeout Annotation = Prefix + "connect-timeout"

	// AnnotationIdleTimeout ends a TCP connection on which nothing moved for so
	// long.
	//
	// Type: duration.
	// Accepts: from 10ms to 168h.
	// Default: 1h.
	// Example: 10m.
	// Needs: a TCP port.
	AnnotationIdleTimeout Annotation = Prefix + "idle-timeout"

	// AnnotationUDPIdleTimeout ends a UDP session on which nothing moved for so
	// long.
	//
	// Type: duration.
	// Accepts: from 10ms to 168h.
	// Default: 30s.
	// Example: 2m.
	// Needs: a UDP port.
	// Costs: a longer one keeps more sessions at once, of which an edge has a limit for each address and port.
	AnnotationUDPIdleTimeout Annotation = Prefix + "udp-idle-timeout"

	// AnnotationDrainTimeout is how long established connections may go on after
	// their node, their port, or the load balancer on an edge was removed.
	//
	// Type: duration.
	// Accepts: from 10ms to 168h.
	// Default: 30s.
	// Example: 5m.
	// Costs: an edge that is drained waits so long, and a freed address stays in quarantine.
	AnnotationDrainTimeout Annotation = Prefix + "drain-timeout"

	// AnnotationMaxConnections limits the connections open at once over all ports
	// of the Service, on each edge. What is beyond it is refused.
	//
	// Type: number.
	// Accepts: from 1 to 100000000.
	// Default: no limit but the edge's own.
	// Example: 20000.
	// Needs: an edge that can do it: see status.capabilities of the Edge.
	AnnotationMaxConnections Annotation = Prefix + "max-connections"

	// AnnotationOnUnhealthy says what happens to established connections of a node
	// that is dead: one that fails its check and does not take connections to its
	// node ports either.
	//
	// Type: word.
	// Accepts: reset or drain.
	// Default: reset.
	// Example: drain.
	// Costs: with drain, clients of a node that is silent wait for time-outs of their own.
	AnnotationOnUnhealthy Annotation = Prefix + "on-unhealthy"
)

// The annotations that eclusa writes. Users may read them.
const (
	// AnnotationAssignedAddresses records the addresses of the Service. It is
	// written before any edge learns of them, and with the addresses in the
	// Service's status it is the only memory of who has which address.
	//
	// Type: list of addresses, separated by commas.
	// Example: 192.0.2.140,2001:db8:1::8c.
	AnnotationAssignedAddresses Annotation = Prefix + "assigned-addresses"

	// AnnotationAssignedAt records when the newest of these addresses was assigned.
	// Of two clusters that want the same address the earlier one gets it.
	//
	// Type: time, as in RFC 3339.
	// Example: 2026-01-02T03:04:05Z.
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
		AnnotationNodeSelector, AnnotationAlgorithm, AnnotationConnectTimeout, AnnotationIdleTimeout, AnnotationUDPIdleTimeout,
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
	// Check overrides parts of the health check, and CheckPort its port;
	// CheckTrafficPort stands for the node port of the first TCP port.
	Check            healthcheck.Spec
	CheckPort        uint16
	CheckTrafficPort bool
	// NodeSelector narrows the nodes; nil is all.
	NodeSelector labels.Selector
	// Algorithm, timeouts, limit and OnUnhealthy are as in [lb.LoadBalancer].
	Algorithm      lb.Algorithm
	ConnectTimeout healthcheck.Duration
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
