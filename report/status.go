package report

import (
	"cmp"
	"slices"
)

// Status is the state of everything.
type Status struct {
	Origin `json:"origin"`
	Edges  []Edge `json:"edges"`
	Pools  []Pool `json:"pools"`
	// Nodes are those with findings.
	Nodes []Node `json:"nodes,omitempty"`
	// NodeCount is the number of nodes that may take traffic.
	NodeCount int `json:"nodeCount"`
	// Services are those with findings, the worst first; all of them if that was
	// asked for.
	Services []Service `json:"services"`
	// ServiceCounts are the numbers of Services of eclusa by level.
	ServiceCounts map[Level]int `json:"serviceCounts"`
}

// Level returns how bad it is altogether.
func (s Status) Level() Level {
	worst := OK
	see := func(l Level) {
		if l.Compare(worst) < 0 {
			worst = l
		}
	}
	for _, e := range s.Edges {
		see(Worst(e.Findings))
	}
	for _, p := range s.Pools {
		see(Worst(p.Findings))
	}
	for _, n := range s.Nodes {
		see(Worst(n.Findings))
	}
	for level, n := range s.ServiceCounts {
		if n > 0 {
			see(level)
		}
	}
	return worst
}

// Edge is the state of one edge.
type Edge struct {
	Name   string `json:"name"`
	Engine string `json:"engine,omitempty"`
	// Version is that of the edge's program.
	Version string `json:"version,omitempty"`
	// Reached says whether the edge answers.
	Reached bool `json:"reached"`
	// Desired and Applied are revisions of the configuration.
	Desired uint64 `json:"desired"`
	Applied uint64 `json:"applied"`
	// LoadBalancers is the number that the edge should serve, and Serving that of
	// those that it serves.
	LoadBalancers int `json:"loadBalancers"`
	Serving       int `json:"serving"`
	// Backends is the number of nodes that the edge checks, once for every check,
	// and Up that of those that are up.
	Backends int       `json:"backends"`
	Up       int       `json:"up"`
	Drain    bool      `json:"drain,omitempty"`
	Paused   bool      `json:"paused,omitempty"`
	Findings []Finding `json:"findings,omitempty"`
}

// Pool is the state of one AddressPool.
type Pool struct {
	Name        string    `json:"name"`
	Addresses   []string  `json:"addresses"`
	AutoAssign  bool      `json:"autoAssign"`
	Used        int64     `json:"used"`
	Quarantined int64     `json:"quarantined"`
	Total       int64     `json:"total"`
	Edges       []string  `json:"edges"`
	Findings    []Finding `json:"findings,omitempty"`
}

// Node is a node with findings.
type Node struct {
	Name     string    `json:"name"`
	Findings []Finding `json:"findings"`
}

// Service is the state of one Service.
type Service struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Addresses []string `json:"addresses,omitempty"`
	Pools     []string `json:"pools,omitempty"`
	Ports     []string `json:"ports,omitempty"`
	// Edges is the number of edges that should serve it, and Serving that of those
	// that do.
	Edges   int `json:"edges"`
	Serving int `json:"serving"`
	// Members is the number of nodes that may take its traffic, and Up that of those
	// that are up, as the edge sees it that sees most.
	Members  int       `json:"members"`
	Up       int       `json:"up"`
	Findings []Finding `json:"findings,omitempty"`
}

// Level returns how bad it is.
func (s Service) Level() Level { return Worst(s.Findings) }

// SortServices orders Services, the worst first, then by namespace and name.
func SortServices(services []Service) {
	slices.SortFunc(services, func(a, b Service) int {
		return cmp.Or(a.Level().Compare(b.Level()), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
}
