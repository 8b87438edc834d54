package lb

import (
	"context"
	"net/netip"
	"time"

	"github.com/eclusa-lb/eclusa/healthcheck"
)

// Balancer is an edge as one cluster sees it. The edge itself, the client of
// lb/rest and the fake of lb/lbtest implement it, and callers cannot tell them
// apart. All methods may be called concurrently and end when ctx does.
type Balancer interface {
	// Info says what the edge is and can do.
	Info(ctx context.Context) (Info, error)

	// Claim makes the caller the only writer of its cluster on this edge: every
	// later Set must carry the returned epoch, and epochs given out before are
	// stale. It is durable when Claim returns. A claim from an older leader, or
	// from another cluster than the one pinned at the first claim, is refused
	// with ErrConflict.
	Claim(ctx context.Context, c Claim) (Epoch, error)

	// Config returns what the edge holds for the cluster, and its digest. A
	// cluster that has never written gets the zero Config and no digest.
	Config(ctx context.Context) (Config, Digest, error)

	// Set replaces the whole configuration of the cluster. When it returns nil
	// the configuration is saved (see Receipt.Durable) and will be applied; what
	// became of each load balancer is told by Status. An equal Set changes
	// nothing. On error nothing has changed.
	Set(ctx context.Context, w Write) (Receipt, error)

	// Status returns what changed after the cursor, waiting for a change as long
	// as the implementation sees fit (up to 30 s); an empty or unknown cursor
	// gets everything at once. An empty delta with the same cursor means that
	// nothing changed.
	Status(ctx context.Context, after Cursor) (StatusDelta, error)
}

// Epoch is the right to write, given out by Claim. It names the edge's state
// (which has another instance after it was lost) and a counter.
type Epoch string

// Digest identifies the content of a configuration on an edge. Only equality
// has a meaning.
type Digest string

// Cursor is a position in the changes of an edge's status. Only equality has a
// meaning; every start of an edge makes all older ones unknown.
type Cursor string

// Claim is a leader's proof that it leads.
type Claim struct {
	// ClusterUID is the UID of the namespace kube-system: the identity of the
	// cluster beyond its name.
	ClusterUID string `json:"clusterUID"`
	// LeaseUID, LeaseTransitions and Holder are read back from the Kubernetes
	// Lease directly before the claim.
	LeaseUID         string `json:"leaseUID"`
	LeaseTransitions int64  `json:"leaseTransitions"`
	Holder           string `json:"holder"`
}

// Write is one replacement of a cluster's configuration.
type Write struct {
	// Epoch is the writer's right, from Claim.
	Epoch Epoch
	// Base, unless empty, is the digest of the configuration that is replaced;
	// if the edge holds another one the write is refused with ErrBaseDiffers.
	// Clients over the network fill it in themselves.
	Base Digest
	// Config is the whole new configuration.
	Config Config
	// ConfirmedRemovals lists the removals, as in [RemovalHeldError.Keys], that
	// the writer has confirmed against the API server.
	ConfirmedRemovals []string
}

// Receipt is what an edge answers to a Set.
type Receipt struct {
	// Digest identifies what the edge holds now.
	Digest Digest
	// Durable is false when the configuration is served but could not be saved.
	Durable bool
}

// Info describes an edge.
type Info struct {
	// Name is the edge's own name from its configuration.
	Name string `json:"name"`
	// Version is the version of the edge's program.
	Version string `json:"version"`
	// Engine is the name of the data plane, such as "proxy".
	Engine string `json:"engine"`
	// Schema is the version of the Config that the edge reads.
	Schema string `json:"schema"`
	// Capabilities are what the edge can do, sorted. See [LoadBalancer.Needs].
	Capabilities []Capability `json:"capabilities"`
}

// Schema is the version of [Config] in this source.
const Schema = "v1"

// A StatusDelta is what changed in an edge's status since a cursor. A nil
// pointer in a map means that the entry is gone. As JSON it is a merge patch of
// a [Status].
type StatusDelta struct {
	// Cursor is the position after this delta.
	Cursor Cursor `json:"cursor"`
	// Full says that the delta starts from nothing: entries not in it are gone.
	Full bool `json:"full,omitempty"`
	// Revision is the newest revision that is applied to the data plane.
	Revision uint64 `json:"revision"`
	// Digest identifies the configuration that the edge holds, empty if none.
	Digest Digest `json:"digest,omitempty"`
	// Epoch is the current epoch, so that a leader learns that it is not any more.
	Epoch Epoch `json:"epoch,omitempty"`
	// Durable is false while the held configuration could not be saved.
	Durable bool `json:"durable"`
	// LoadBalancers tells for each load balancer whether it is served.
	LoadBalancers map[UID]*LoadBalancerStatus `json:"loadBalancers,omitempty"`
	// Checks tells the health of each node by check.
	Checks map[CheckID]*CheckDelta `json:"checks,omitempty"`
}

// CheckDelta is what changed in one check.
type CheckDelta struct {
	Members map[NodeName]*MemberStatus `json:"members,omitempty"`
}

// Status is the whole truth of an edge about one cluster, gathered from deltas
// with [Status.Apply].
type Status struct {
	Cursor        Cursor                                `json:"cursor"`
	Revision      uint64                                `json:"revision"`
	Digest        Digest                                `json:"digest,omitempty"`
	Epoch         Epoch                                 `json:"epoch,omitempty"`
	Durable       bool                                  `json:"durable"`
	LoadBalancers map[UID]LoadBalancerStatus            `json:"loadBalancers,omitempty"`
	Checks        map[CheckID]map[NodeName]MemberStatus `json:"checks,omitempty"`
}

// LoadBalancerStatus says whether a load balancer is served.
type LoadBalancerStatus struct {
	// Applied is true when all listeners of the load balancer take traffic on
	// all of its addresses, or refuse it as they should.
	Applied bool `json:"applied"`
	// Partial is true when it is not Applied, but some of its addresses and
	// listeners are served all the same; Problems tell which are not.
	Partial bool `json:"partial,omitempty"`
	// Problems are the reasons why it is not, or not wholly. Beside Applied they
	// tell what is served less well than it could be: a member that is left out,
	// an address whose family no node has.
	Problems []Problem `json:"problems,omitempty"`
	// Leaving are addresses that the load balancer has no more, and that the edge
	// holds until the last connections to them have ended, sorted. A load balancer
	// that is gone is told of as long as it has such.
	Leaving []netip.Addr `json:"leaving,omitempty"`
}

// Problem is one reason why something is not as the cluster wants it.
type Problem struct {
	// Type is the fixed name of the kind, as in lb/rest's problem documents:
	// "address-held", "invalid", "unsupported", "exhausted", "not-found".
	Type string `json:"type"`
	// Field is the path of the culprit below the load balancer, such as
	// "listeners[1].protocol", or empty.
	Field string `json:"field,omitempty"`
	// Detail is one sentence for people: the value and what would be right.
	Detail string `json:"detail"`
}

// MemberStatus is the health of one node in one check, as the edge sees it.
type MemberStatus struct {
	State healthcheck.State `json:"state"`
	// Dead says that connections to a node port fail too.
	Dead bool `json:"dead,omitempty"`
	// Since is when State was entered.
	Since time.Time `json:"since"`
	// Reason and Error tell the last failure, empty while the member is up.
	Reason healthcheck.Reason `json:"reason,omitempty"`
	Error  string             `json:"error,omitempty"`
	// Substitute says that the check itself never answered on this node, and a
	// TCP connection to a node port is probed in its place.
	Substitute bool `json:"substitute,omitempty"`
}

// Apply changes s by a delta. Maps of s are replaced, not changed, so that
// copies of s made before stay true.
func (s *Status) Apply(d StatusDelta) {
	s.Cursor, s.Revision, s.Digest, s.Epoch, s.Durable = d.Cursor, d.Revision, d.Digest, d.Epoch, d.Durable
	if d.Full {
		s.LoadBalancers, s.Checks = nil, nil
	}
	s.LoadBalancers = applied(s.LoadBalancers, d.LoadBalancers)
	if len(d.Checks) == 0 {
		return
	}
	checks := make(map[CheckID]map[NodeName]MemberStatus, len(s.Checks)+len(d.Checks))
	for id, members := range s.Checks {
		checks[id] = members
	}
	for id, c := range d.Checks {
		if c == nil {
			delete(checks, id)
			continue
		}
		checks[id] = applied(checks[id], c.Members)
	}
	s.Checks = checks
}

// applied returns base changed by delta, base itself when there is nothing to
// change.
func applied[K comparable, V any](base map[K]V, delta map[K]*V) map[K]V {
	if len(delta) == 0 {
		return base
	}
	out := make(map[K]V, len(base)+len(delta))
	for k, v := range base {
		out[k] = v
	}
	for k, v := range delta {
		if v == nil {
			delete(out, k)
			continue
		}
		out[k] = *v
	}
	return out
}
