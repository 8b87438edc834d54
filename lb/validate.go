package lb

// Complaint is one thing that is wrong with a configuration by itself. It
// concerns one load balancer, one node or one pool, and only that one is
// refused; everything else of the configuration is served.
type Complaint struct {
	// Exactly one of the three says what is refused.
	LoadBalancer UID
	Node         NodeName
	Pool         PoolName
	// Problem has the field's path below the refused object and the reason.
	Problem Problem
}

// Path returns the complaint's whole path in the Config, such as
// `loadBalancers["4f…"].listeners[1].protocol`.
func (c Complaint) Path() string { return "" }

// Validate returns everything that is wrong with the configuration by itself,
// in a stable order. What an edge allows is checked by Compile.
func (c Config) Validate() []Complaint { return nil }
