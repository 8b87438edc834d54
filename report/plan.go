package report

// PlanRequest asks what a change would do.
type PlanRequest struct {
	// Objects are Services, AddressPools and Edges as they are to be.
	Objects Objects `json:"objects,omitempty"`
	// Drain takes an edge or a node out.
	Drain *Drain `json:"drain,omitempty"`
}

// Drain names an edge or a node that is to be taken out.
type Drain struct {
	Edge string `json:"edge,omitempty"`
	Node string `json:"node,omitempty"`
}

// What would become of an object.
const (
	ActionCreate = "create" // it is new
	ActionChange = "change" // it is served otherwise than before
	ActionKeep   = "keep"   // it is served as before
	ActionIgnore = "ignore" // eclusa has nothing to do with it
	ActionRemove = "remove" // it is served no longer
)

// Plan is what a change would do.
type Plan struct {
	Origin `json:"origin"`
	// Services are those of the request.
	Services []PlannedService `json:"services,omitempty"`
	// Objects are the pools and edges of the request.
	Objects []PlannedObject `json:"objects,omitempty"`
	// Others are Services that are not in the request and are served otherwise
	// after it.
	Others []PlannedService `json:"others,omitempty"`
	// Drain is what draining would do.
	Drain *DrainPlan `json:"drain,omitempty"`
	// Assumptions are what only the API server knows for certain.
	Assumptions []string `json:"assumptions,omitempty"`
}

// Level returns how bad the plan is.
func (p Plan) Level() Level {
	worst := OK
	see := func(findings []Finding) {
		if l := Worst(findings); l.Compare(worst) < 0 {
			worst = l
		}
	}
	for _, s := range p.Services {
		see(s.Findings)
	}
	for _, o := range p.Objects {
		see(o.Findings)
	}
	for _, s := range p.Others {
		see(s.Findings)
	}
	if p.Drain != nil && len(p.Drain.Without()) > 0 {
		worst = Problem
	}
	return worst
}

// PlannedService is what would become of a Service.
type PlannedService struct {
	Namespace string           `json:"namespace"`
	Name      string           `json:"name"`
	Action    string           `json:"action"`
	Addresses []PlannedAddress `json:"addresses,omitempty"`
	Edges     []string         `json:"edges,omitempty"`
	Listeners []Listener       `json:"listeners,omitempty"`
	Findings  []Finding        `json:"findings,omitempty"`
	// Changes are the difference to what edges serve now.
	Changes []Change `json:"changes,omitempty"`
}

// PlannedAddress is an address that a Service would have.
type PlannedAddress struct {
	Address string `json:"address"`
	Pool    string `json:"pool,omitempty"`
	// New says that it has it not now.
	New bool `json:"new,omitempty"`
}

// PlannedObject is what would become of a pool or an edge.
type PlannedObject struct {
	Kind     string    `json:"kind"`
	Name     string    `json:"name"`
	Action   string    `json:"action"`
	Findings []Finding `json:"findings,omitempty"`
	// Changes are the difference to the object in the cluster.
	Changes []Change `json:"changes,omitempty"`
}

// Change is one difference: Before or After is empty where there is nothing.
type Change struct {
	Path   string `json:"path"`
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
}

// DrainPlan is what taking out an edge or a node would do.
type DrainPlan struct {
	// Kind is Edge or Node.
	Kind string `json:"kind"`
	Name string `json:"name"`
	// Already says that it is out.
	Already bool `json:"already,omitempty"`
	// HealthKnown says that edges have told which nodes are up and what they serve.
	HealthKnown bool `json:"healthKnown"`
	// Losses are the Services that lose something, the worst first.
	Losses []Loss `json:"losses"`
}

// Without returns the Services that would be left without any edge or node.
func (d DrainPlan) Without() []Loss {
	var without []Loss
	for _, l := range d.Losses {
		if l.After == 0 && l.Before > 0 {
			without = append(without, l)
		}
	}
	return without
}

// Loss is what a Service would lose: edges that are reached and serve it, counted
// for the address that is worst off, or nodes that are up, or may take traffic if
// health is not known. The edge to be drained counts though it is not reached: it
// goes on serving.
type Loss struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Before    int    `json:"before"`
	After     int    `json:"after"`
}

// Lose notes what a Service would have left, if that is less than before.
func (d *DrainPlan) Lose(namespace, name string, before, after int) {
	if after < before {
		d.Losses = append(d.Losses, Loss{Namespace: namespace, Name: name, Before: before, After: after})
	}
}
