package report

// Advice returns what to do about a kind of trouble, by its reason; empty if
// there is nothing to do or the reason is not known.
func Advice(reason string) string { return advice[reason] }

// advice has an entry for each reason of a Condition that tells of trouble, and
// for each type of an edge's problem.
var advice = map[string]string{
	// AddressAssigned
	"NoEligiblePool":        "create an AddressPool that admits the Service, or change the selectors of one: kubectl get addresspools",
	"PoolExhausted":         "add addresses to spec.addresses of the pool, or delete Services that need none any more",
	"PoolNotFound":          "create the AddressPool, or correct the annotation eclusa.io/address-pool",
	"PoolNotEligible":       "change namespaceSelector or serviceSelector of the pool, or name another pool",
	"AddressInUse":          "ask for another address; to share it, give both Services the same eclusa.io/sharing-key and different ports",
	"AddressQuarantined":    "wait until every edge of the pool has let go of the address: bring back the edges that cannot be reached, or delete their Edge objects",
	"AddressOutsidePools":   "ask for an address of a pool, or add the address to one",
	"AddressFamilyMismatch": "ask for addresses of the families in spec.ipFamilies",
	"InvalidAddressRequest": "correct the annotation eclusa.io/addresses",
	"InvalidAnnotation":     "correct the annotation or field that the message names",
	"AssignedPartly":        "add addresses of the missing family to a pool, if the Service is to have both",
	"PoolGone":              "restore the AddressPool, or name another one in the annotation eclusa.io/address-pool",
	"AnnotationRestored":    "leave the annotation to eclusa; ask for an address with eclusa.io/addresses",
	"ForeignAddress":        "decide who serves the Service: give it spec.loadBalancerClass of its owner, or remove the other load balancer and its address",
	"NotServable":           "correct the field that the message names",
	// Programmed
	"NoEdge":             "create an Edge whose labels the edgeSelector of the pool matches: kubectl get edges --show-labels",
	"NoAddress":          "see to the address first",
	"EdgeDraining":       "end a drain (kubectl eclusa undrain NAME), or give the pool another edge",
	"AddressMoving":      "wait for the drain timeout; if it stays, kubectl describe edge of the one that the message names: its removals may be held, it may be paused, and if its machine is gone, delete the Edge",
	"EdgeUnreachable":    "bring back the edges that the message names: see whether eclusa-edge runs there, and whether the manager reaches their endpoints; what runs goes on serving",
	"Pending":            "wait a few seconds; if it stays, see why no edge of the pool is reached: kubectl eclusa status",
	"Refused":            "do what the edge's reason says",
	"Unsupported":        "use an edge that can do it, or do without: kubectl get edge NAME -o yaml lists status.capabilities",
	"PortsNotServed":     "do what the message says of each port; the others are served",
	"Degraded":           "do what the edge's reason says; what it does not touch is served",
	"AnnotationsIgnored": "correct or remove the annotations that the message names",
	// BackendsHealthy
	"NoEndpoints":       "see why no pod is ready: the Service's selector and the pods' readiness probes",
	"NoNodes":           "see which nodes may take traffic: eclusa.io/node-selector, the label node.kubernetes.io/exclude-from-external-load-balancers, and with externalTrafficPolicy Local where the pods are",
	"NoneHealthy":       "see what the probes say of each node; if the check itself is wrong, correct the annotations eclusa.io/health-check-*",
	"FewHealthy":        "see what the probes say of the nodes that are not up",
	"HealthySubstitute": "let edges reach the health check of kube-proxy if you want nodes to be drained early",
	// Edges
	"Unreachable":  "see whether eclusa-edge runs there, and whether the manager reaches its endpoint; it goes on serving what it has",
	"Rejected":     "do what the message says; the edge goes on serving what it had",
	"Paused":       "set spec.paused of the Edge to false when the edge is to follow the cluster again",
	"Draining":     "wait until the established connections have ended, at most for the drain timeout",
	"Drained":      "kubectl eclusa undrain NAME when it is to take part again",
	"NotDurable":   "look at the disk of the edge: after a restart it would serve something older",
	"SameEndpoint": "delete one of the two Edge objects",
	"Unconfirmed":  "if the removals are meant, release them with the command that the condition RemovalHeld of the Edge has",
	"Behind":       "wait; if it stays, see the log of the edge",
	// Pools
	"Unusable":    "correct spec of the AddressPool",
	"Terminating": "move or delete the Services that use it; a new AddressPool with the same addresses takes them over",
	"NearlyFull":  "add addresses to the pool before it is exhausted",
	// Nodes
	"NoUsableAddress":  "see status.addresses of the Node and nodeAddressTypes of the manager's configuration",
	"InvalidNodeValue": "correct the annotation or label of the Node",
	"NotUp":            "see whether kube-proxy runs on the node, and whether edges reach the node",
	// What edges say of one load balancer
	"address-held": "another cluster, or the edge's machine, has the address and port: use another address, or free it there",
	"invalid":      "correct what the message names",
	"unsupported":  "use an edge that can do it, or do without",
	"exhausted":    "raise the limit on the edge, or use fewer",
	"not-found":    "see the log of the edge",
}
