package report

import "time"

// Explanation is everything about one Service: the way of a connection from the
// client to the node port, and what is in its way.
type Explanation struct {
	Origin    `json:"origin"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Class is the Service's load balancer class, empty if it has none.
	Class string `json:"class,omitempty"`
	// Policy is the Service's external traffic policy.
	Policy string `json:"policy,omitempty"`
	// Findings are everything that is wrong, the worst first.
	Findings []Finding `json:"findings"`
	// Addresses are the Service's addresses.
	Addresses []Address `json:"addresses"`
	// Listeners are the ports that edges serve on every address.
	Listeners []Listener `json:"listeners"`
	// Edges are those that should serve the Service.
	Edges []EdgeView `json:"edges"`
	// Members are the nodes that may take the Service's traffic.
	Members []Member `json:"members"`
	// Endpoints says where the Service's pods are.
	Endpoints *Endpoints `json:"endpoints,omitempty"`
	// Limits are all timeouts and limits in force.
	Limits []Limit `json:"limits"`
	// Conditions are eclusa's conditions on the Service.
	Conditions []Condition `json:"conditions,omitempty"`
}

// Address is one address of a Service.
type Address struct {
	Address string `json:"address"`
	// Pool is the AddressPool that it is of, empty if that is gone.
	Pool string `json:"pool,omitempty"`
	// Edges are those that should serve it.
	Edges []string `json:"edges,omitempty"`
	// Published says that the Service's status tells the address.
	Published bool `json:"published"`
}

// Listener is one port of a Service.
type Listener struct {
	Name     string `json:"name,omitempty"`
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port"`
	// NodePort is where nodes take the connections, zero if it is not allocated.
	NodePort uint16 `json:"nodePort"`
	// Direct says that packets reach nodes as they are, without a node port.
	Direct bool `json:"direct,omitempty"`
	// Proxy is the version of the PROXY protocol that nodes are told the client's
	// address with, empty if none is.
	Proxy string `json:"proxyProtocol,omitempty"`
}

// EdgeView is how a Service stands on one edge.
type EdgeView struct {
	Name    string `json:"name"`
	Reached bool   `json:"reached"`
	// Confirmed says that the edge has told about the newest version of the
	// Service, and Serving that it serves that.
	Confirmed bool `json:"confirmed"`
	Serving   bool `json:"serving"`
	// Problems are what the edge says is wrong.
	Problems []string `json:"problems,omitempty"`
}

// Member is a node that may take traffic of a Service.
type Member struct {
	Node      string   `json:"node"`
	Addresses []string `json:"addresses"`
	Draining  bool     `json:"draining,omitempty"`
	// Weight is the node's share of new connections, zero for the common one.
	Weight int `json:"weight,omitempty"`
	// Health is what each edge says of the node, by the edge's name.
	Health map[string]Health `json:"health,omitempty"`
}

// Health is the health of a node as one edge sees it.
type Health struct {
	// State is up, down, draining or unknown.
	State string     `json:"state"`
	Since *time.Time `json:"since,omitempty"`
	// Error is what the last failed probe said.
	Error string `json:"error,omitempty"`
	// Dead says that the node port does not answer either.
	Dead bool `json:"dead,omitempty"`
	// Substitute says that a node port is probed in place of the check.
	Substitute bool `json:"substitute,omitempty"`
}

// Endpoints says where the pods of a Service are.
type Endpoints struct {
	Ready bool `json:"ready"`
	// Nodes are the nodes with endpoints that can serve.
	Nodes []string `json:"nodes,omitempty"`
}

// Limit is a timeout or limit in force.
type Limit struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	// From is where it was set: the name of an annotation or field, or "default".
	From string `json:"from"`
}

// Condition is a condition on the Service.
type Condition struct {
	Type    string    `json:"type"`
	Status  string    `json:"status"`
	Reason  string    `json:"reason"`
	Message string    `json:"message"`
	Since   time.Time `json:"since"`
}
