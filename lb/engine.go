package lb

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Engine is a data plane. An edge has one, and one goroutine of it calls Set.
type Engine interface {
	// Name is the engine's name in configuration, metrics and Info.
	Name() string

	// Capabilities says what the engine can do, sorted.
	Capabilities() []Capability

	// Set replaces the whole table. It is all or nothing but for single
	// frontends that cannot be served (an address in use by another process):
	// those are returned with their reasons, and tried again at the next Set. A
	// frontend whose reason is a [MembersError] is served all the same, by others. It
	// is idempotent. Connections through routes that stay are never cut, but for
	// those of clients that the route's SourceRanges do not allow any more, which
	// end at once; connections of a frontend or member that is gone drain for the route's
	// DrainTimeout; those of a Dead member are reset if the route says so. Sessions of
	// datagrams end with their frontend or member. What has to end at once may do so
	// just after the return, so that new connections do not wait for it. On
	// error the table before goes on. ctx bounds the call, not what it set.
	Set(ctx context.Context, t Table) (map[Frontend]error, error)

	// Counters returns what passed through the engine since it was made. It may
	// be called concurrently with Set.
	Counters() []RouteCounters

	// Shutdown stops taking new connections at once, lets the established ones
	// go on until ctx ends, then cuts them and gives everything back. The engine
	// is of no use afterwards. It returns an error only if something is left
	// behind.
	//
	// An engine whose work the kernel does may leave the kernel to it instead, so
	// that a restart is not noticed: then Shutdown returns at once, traffic goes on
	// as it was last, and the first Set of the next one takes over.
	Shutdown(ctx context.Context) error

	// HandOver gives what the engine takes traffic with to an engine of the same
	// name in another process: it stops taking new connections and datagrams, and
	// calls send until everything is told. Nothing is lost meanwhile: what
	// arrives waits in the kernel for whoever goes on. Established connections
	// that cannot be given go on here. Set fails from then on, until Resume.
	//
	// After HandOver, with or without an error, the caller calls either Resume or
	// Shutdown, which then lets end what goes on here and leaves alone what the
	// other engine has.
	HandOver(ctx context.Context, send func(Parcel) error) error

	// Resume takes back what HandOver gave, since nobody has taken it or whoever
	// did is gone.
	Resume() error

	// Adopt takes what another engine's HandOver sends: receive returns io.EOF
	// after the last parcel. It comes before the first Set and takes no traffic
	// yet; that Set does, with what belongs to its routes, and gives back the
	// rest. On error nothing is kept.
	Adopt(ctx context.Context, receive func() (Parcel, error)) error
}

// Restricter is an [Engine] whose connections may go on after HandOver.
type Restricter interface {
	// Restrict ends the connections of clients that their owner's source ranges do
	// not allow, while Shutdown waits for them after a HandOver. Owners that are not
	// named keep theirs. It may be called concurrently with Shutdown.
	Restrict(allowed map[Owner][]netip.Prefix)
}

// MembersError says that a frontend is served, though without some of its members,
// since the engine cannot reach them in the way that the route asks for.
type MembersError struct {
	// Without tells of each member why.
	Without map[NodeName]string
}

// Error says that the frontend is served without the members, and why.
func (e *MembersError) Error() string { return "is served without " + e.Why() }

// Why names a few of the members, once for all with the same reason.
func (e *MembersError) Why() string {
	const shown = 5
	nodes := make(map[string][]string)
	for _, n := range slices.Sorted(maps.Keys(e.Without)) {
		nodes[e.Without[n]] = append(nodes[e.Without[n]], quoted(string(n)))
	}
	var texts []string
	for _, why := range slices.Sorted(maps.Keys(nodes)) {
		names := nodes[why]
		text := strings.Join(names[:min(len(names), shown)], ", ")
		if more := len(names) - shown; more > 0 {
			text += fmt.Sprintf(" and %d more", more)
		}
		texts = append(texts, text+": "+why)
	}
	return strings.Join(texts, "; ")
}

// MaxParcelFiles is how many descriptors a Parcel may have; the kernel passes no
// more than 253 at once.
const MaxParcelFiles = 200

// Parcel is a part of what one engine gives to another one. What is in it is the
// engines' affair.
type Parcel struct {
	Data []byte
	// Files are descriptors. HandOver lends them for the time of the call; those
	// that Adopt receives are the engine's own, which closes them.
	Files []int
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
