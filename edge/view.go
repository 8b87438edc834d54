package edge

import (
	"maps"
	"slices"
	"time"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// View is what the edge knows at one moment, for people to look at. Its maps and
// slices are shared and must not be changed.
type View struct {
	// Started is when the edge was made.
	Started time.Time
	Info    lb.Info
	// Unready are the reasons that /readyz tells, none while the edge is ready.
	Unready []string
	Probes  healthcheck.Stats
	// Clusters are sorted by name.
	Clusters []ClusterView
}

// ClusterView is what the edge knows about one cluster.
type ClusterView struct {
	Name lb.Cluster
	// Config is what the edge holds, Status what became of it.
	Config lb.Config
	Status lb.Status
	// Written is when the cluster wrote Config, zero if that was before the edge
	// started. Applied is when Status.Revision came into force.
	Written, Applied time.Time
	// Lost is true while no state of the cluster could be read.
	Lost bool
	// Held is the last write that the removal guard held, nil if there was none.
	Held *HeldWrite
}

// HeldWrite is a write that would have removed too much unconfirmed.
type HeldWrite struct {
	At time.Time
	// Keys are the removals, as in [lb.RemovalHeldError].
	Keys []string
	// Largest is the size of the set that they are counted against.
	Largest int
}

// View returns what the edge knows now. It costs a few milliseconds per thousand
// load balancers, and may be called concurrently.
func (e *Edge) View() View {
	v := View{Started: e.started, Info: e.info, Unready: e.unreadiness(), Probes: e.checker.Stats()}
	for _, name := range slices.Sorted(maps.Keys(e.clusters)) {
		v.Clusters = append(v.Clusters, e.clusters[name].view())
	}
	return v
}

func (c *cluster) view() ClusterView {
	h := c.held.Load()
	v := ClusterView{Name: c.name, Config: h.config, Written: h.written, Lost: c.lost.Load(), Held: c.heldWrite.Load()}
	v.Status, v.Applied = c.status.whole()
	return v
}

// Traffic returns what passed through the engine. It may be called concurrently.
func (e *Edge) Traffic() []lb.RouteCounters { return e.engine.Counters() }
