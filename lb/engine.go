package lb

import "context"

// Engine is a data plane. An edge has one, and one goroutine of it calls Set.
type Engine interface {
	// Name is the engine's name in configuration, metrics and Info.
	Name() string

	// Capabilities says what the engine can do, sorted.
	Capabilities() []Capability

	// Set replaces the whole table. It is all or nothing but for single
	// frontends that cannot be served (an address in use by another process):
	// those are returned with their reasons, and tried again at the next Set. It
	// is idempotent. Connections through routes that stay are never cut;
	// connections of a frontend or member that is gone drain for the route's
	// DrainTimeout; those of a Dead member are reset if the route says so. On
	// error the table before goes on. ctx bounds the call, not what it set.
	Set(ctx context.Context, t Table) (map[Frontend]error, error)

	// Counters returns what passed through the engine since it was made. It may
	// be called concurrently with Set.
	Counters() []RouteCounters

	// Shutdown stops taking new connections at once, lets the established ones
	// go on until ctx ends, then cuts them and gives everything back. The engine
	// is of no use afterwards. It returns an error only if something is left
	// behind.
	Shutdown(ctx context.Context) error
}

// RouteCounters is what passed through one frontend.
type RouteCounters struct {
	Frontend Frontend
	Owner    Owner
	// Name is the load balancer's name for people.
	Name string
	// Active is the number of connections or sessions open now.
	Active int64
	// Accepted counts connections or sessions taken, Refused those turned away,
	// by cause.
	Accepted uint64
	Refused  map[RefusedCause]uint64
	// Members holds only members that were ever dialled.
	Members []MemberCounters
}

// RefusedCause says why a connection was turned away.
type RefusedCause string

// The causes.
const (
	RefusedNoMember RefusedCause = "no-member" // no member can serve, or all that were tried failed
	RefusedSource   RefusedCause = "source"    // source address not allowed
	RefusedLimit    RefusedCause = "limit"     // a connection limit is reached
)

// MemberCounters is what went to one member of a frontend.
type MemberCounters struct {
	Node NodeName
	// Active is the number of connections or sessions open now.
	Active int64
	// Connections counts connections or sessions made, DialErrors attempts that
	// failed and were tried elsewhere.
	Connections, DialErrors uint64
	// BytesIn came from clients, BytesOut went to clients.
	BytesIn, BytesOut uint64
}
