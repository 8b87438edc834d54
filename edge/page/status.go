package page

import (
	"net/netip"
	"time"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// Schema is the version of Status. Fields are added without a new one.
const Schema = "v1"

// Status is the document at /status.json. docs/status-page.md explains it.
type Status struct {
	Schema string    `json:"schema"`
	At     time.Time `json:"at"`
	Edge   EdgeInfo  `json:"edge"`
	// Ready is what /readyz tells, NotReady why it is not.
	Ready    bool     `json:"ready"`
	NotReady []string `json:"notReady,omitempty"`
	// Problems are everything that somebody should look at, worst first.
	Problems []Problem `json:"problems"`
	Totals   Totals    `json:"totals"`
	Probes   Probes    `json:"probes"`
	Clusters []Cluster `json:"clusters"`
	// LoadBalancers are those that the query asks for, problems first, and then
	// by cluster and name.
	LoadBalancers []LoadBalancer `json:"loadBalancers"`
	// Matched is how many load balancers the query asks for, of which offset and
	// limit may have left some out.
	Matched int `json:"matched"`
	// Nodes are all nodes, problems first, and then by cluster and name.
	Nodes []Node `json:"nodes"`
	// Events are the newest first.
	Events []Event `json:"events"`
}

// EdgeInfo says which edge it is.
type EdgeInfo struct {
	Name    string    `json:"name"`
	Version string    `json:"version"`
	Engine  string    `json:"engine"`
	Started time.Time `json:"started"`
}

// State is how well something does.
type State string

// The states, worst first.
const (
	Failing  State = "failing"  // does not do its work
	Degraded State = "degraded" // does it with less than it should have
	Pending  State = "pending"  // is not known yet, or about to change
	OK       State = "ok"
)

// rank orders states, worst first.
func (s State) rank() int {
	switch s {
	case Failing:
		return 0
	case Degraded:
		return 1
	case Pending:
		return 2
	case OK:
	}
	return 3
}

// Problem is something that somebody should look at.
type Problem struct {
	// State is Failing or Degraded.
	State State `json:"state"`
	// Kind is "edge", "cluster", "load-balancer" or "node".
	Kind    string     `json:"kind"`
	Cluster lb.Cluster `json:"cluster,omitempty"`
	// UID is that of a load balancer.
	UID lb.UID `json:"uid,omitempty"`
	// Name is that of the edge, the cluster, the load balancer or the node.
	Name string `json:"name"`
	// Text says what is wrong.
	Text  string    `json:"text"`
	Since time.Time `json:"since,omitzero"`
}

// Totals are the figures of the whole edge.
type Totals struct {
	LoadBalancers States `json:"loadBalancers"`
	Nodes         States `json:"nodes"`
	Listeners     int    `json:"listeners"`
	Addresses     int    `json:"addresses"`
	Traffic
}

// Probes are the figures of the health checks.
type Probes struct {
	Targets   int     `json:"targets"`
	PerSecond float64 `json:"perSecond"`
	// Stretched is the factor by which the budget of probes lengthens intervals;
	// 1 is not at all.
	Stretched float64 `json:"stretched"`
	// LagSeconds is how late probes start, 99th percentile.
	LagSeconds float64 `json:"lagSeconds"`
}

// States counts by state.
type States struct {
	Total    int `json:"total"`
	OK       int `json:"ok"`
	Pending  int `json:"pending"`
	Degraded int `json:"degraded"`
	Failing  int `json:"failing"`
}

func (s *States) count(state State) {
	s.Total++
	switch state {
	case OK:
		s.OK++
	case Pending:
		s.Pending++
	case Degraded:
		s.Degraded++
	case Failing:
		s.Failing++
	}
}

// Traffic is what passes at present: rates are means of the last seconds.
type Traffic struct {
	ActiveConnections    int64   `json:"activeConnections"`
	ConnectionsPerSecond float64 `json:"connectionsPerSecond"`
	RefusedPerSecond     float64 `json:"refusedPerSecond"`
	// Bytes in came from clients, bytes out went to clients.
	BytesInPerSecond  float64 `json:"bytesInPerSecond"`
	BytesOutPerSecond float64 `json:"bytesOutPerSecond"`
}

// Cluster is what the edge knows about a cluster.
type Cluster struct {
	Name  lb.Cluster `json:"name"`
	State State      `json:"state"`
	// Revision is what the cluster wants, and AppliedRevision what is in force.
	Revision        uint64    `json:"revision"`
	AppliedRevision uint64    `json:"appliedRevision"`
	WrittenAt       time.Time `json:"writtenAt,omitzero"`
	AppliedAt       time.Time `json:"appliedAt,omitzero"`
	// Durable is false while Revision is not on the disk.
	Durable bool `json:"durable"`
	// StateLost is true while no state of the cluster could be read.
	StateLost     bool `json:"stateLost,omitempty"`
	LoadBalancers int  `json:"loadBalancers"`
	Nodes         int  `json:"nodes"`
	// HeldRemovals are removals that the edge has not done, because they were too
	// many and not confirmed.
	HeldRemovals *HeldRemovals `json:"heldRemovals,omitempty"`
}

// HeldRemovals are removals that wait for being confirmed.
type HeldRemovals struct {
	At time.Time `json:"at"`
	// Count is how many were held, Waiting how many of them are still served.
	Count   int `json:"count"`
	Waiting int `json:"waiting"`
	// Keys are the first of those that are still served.
	Keys []string `json:"keys"`
}

// LoadBalancer is one load balancer.
type LoadBalancer struct {
	Cluster lb.Cluster `json:"cluster"`
	UID     lb.UID     `json:"uid"`
	Name    string     `json:"name"`
	State   State      `json:"state"`
	// Reason says in a few words why State is not OK.
	Reason string `json:"reason,omitempty"`
	// Applied, Partial and Problems are what the edge tells the cluster.
	Applied   bool         `json:"applied"`
	Partial   bool         `json:"partial,omitempty"`
	Problems  []lb.Problem `json:"problems,omitempty"`
	Addresses []netip.Addr `json:"addresses"`
	Listeners []Listener   `json:"listeners"`
	Check     lb.CheckID   `json:"check"`
	Members   Members      `json:"members"`
	Traffic
}

// shownListeners is how many listeners a line of the list names: some load
// balancers have thousands.
const shownListeners = 12

// FirstListeners returns the listeners that a line names, and MoreListeners how many
// there are besides.
func (l LoadBalancer) FirstListeners() []Listener {
	return l.Listeners[:min(shownListeners, len(l.Listeners))]
}

// MoreListeners is the number of listeners that FirstListeners leaves out.
func (l LoadBalancer) MoreListeners() int { return max(len(l.Listeners)-shownListeners, 0) }

// Listener is a port of a load balancer.
type Listener struct {
	Name       string      `json:"name,omitempty"`
	Protocol   lb.Protocol `json:"protocol"`
	Port       uint16      `json:"port"`
	TargetPort uint16      `json:"targetPort"`
}

// Members counts the nodes behind a load balancer.
type Members struct {
	Total int `json:"total"`
	// Up take new connections. Those that drain or are not known yet do not.
	Up       int `json:"up"`
	Down     int `json:"down"`
	Draining int `json:"draining"`
	// Unchecked take new connections, and nobody asks whether they are well.
	Unchecked int `json:"unchecked,omitempty"`
	// FailingOpen says that none is up, and that traffic goes to all of them.
	FailingOpen bool `json:"failingOpen,omitempty"`
	// LastResort counts those that answer and say that they should not get traffic,
	// and get it since none is up.
	LastResort int `json:"lastResort,omitempty"`
}

// Node is a node of a cluster.
type Node struct {
	Cluster   lb.Cluster   `json:"cluster"`
	Name      lb.NodeName  `json:"name"`
	State     State        `json:"state"`
	Addresses []netip.Addr `json:"addresses"`
	Zone      string       `json:"zone,omitempty"`
	// Draining says that the cluster asks for no new connections to the node.
	Draining bool `json:"draining,omitempty"`
	// Checks are all checks of the node, sorted, problems first.
	Checks []NodeCheck `json:"checks,omitempty"`
}

// NodeCheck is the health of a node in one check.
type NodeCheck struct {
	ID     lb.CheckID         `json:"id"`
	Health healthcheck.State  `json:"health"`
	Dead   bool               `json:"dead,omitempty"`
	Since  time.Time          `json:"since,omitzero"`
	Reason healthcheck.Reason `json:"reason,omitempty"`
	Error  string             `json:"error,omitempty"`
	// Substitute says that a TCP connection to a node port is probed in place of
	// the check, which never answered on this node.
	Substitute bool `json:"substitute,omitempty"`
}
