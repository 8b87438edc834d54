package provider

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/eclusa-lb/eclusa/ipam"
	"github.com/eclusa-lb/eclusa/lb"
)

// subject is a Service that is ours, with everything that one round of
// decisions finds out about it.
type subject struct {
	svc         *v1.Service
	uid         lb.UID
	path        Path
	translation *Translation
	// good is what is served: the translation or, if that is refused, the newest one
	// that was not; nil if that is not known.
	good      *Translation
	endpoints Endpoints

	// recorded are the addresses that are the Service's for all that is recorded, and
	// at is when the newest of them was assigned.
	recorded []netip.Addr
	at       time.Time
	// told are the addresses in the Service's status.
	told []netip.Addr
	// held are all addresses that must not be given to anybody else: recorded
	// ones, proposed ones, and those in the status.
	held []netip.Addr
	// heldPorts are those that it is known to use of each address that it shares; one
	// of which that is not known is missing.
	heldPorts map[netip.Addr][]ipam.PortKey
	// keptPorts are those with which it goes on while it is refused and good is nil.
	keptPorts []ipam.PortKey
	// families are those that it wants addresses of, and untranslated says why a
	// requested address of another family cannot be had.
	families     []lb.Family
	untranslated string
	// ways are the only pools that can serve it, if not all can that admit it.
	ways []string
	// grant is what the Service is to have.
	grant grant
	// served are the addresses that edges are told of.
	served []netip.Addr
	// built is the load balancer, nil if there is none.
	built *built
	// drained are the edges that would serve it, were they not to be drained, and
	// former are those that still have its addresses and are not of the pool any
	// more.
	drained, former []string
	// untold says that the Service is to be served directly, and that its status is
	// about to say so, or has only just begun to. Edges that can go on as before.
	untold bool
	// early are those of its addresses of which its status does not say so and is not
	// about to: no edge can do it, as far as is known.
	early []netip.Addr
	// homeless says that no node of the Service has an address of its families.
	homeless bool
	// kept says that some edge goes on with what the Service asked for before.
	kept bool
	// standings is how it stands on each edge, nil until it was looked up.
	standings []standing
}

// built is a load balancer as edges get it. A load balancer that did not change
// is the same pointer.
type built struct {
	lb.LoadBalancer
	// pools are the names of the address pools of the addresses, in their order.
	pools []string
	// of is what it was built of, besides addresses and members.
	of *Translation
}

// sameAs says whether edges could tell the two apart.
func (b *built) sameAs(o *built) bool {
	if b == nil || !slices.Equal(b.pools, o.pools) || !slices.Equal(b.Addresses, o.Addresses) || !b.ClaimTime.Equal(o.ClaimTime) {
		return false
	}
	if b.of == o.of {
		return b.Pool == o.Pool && slices.Equal(b.MemberFamilies, o.MemberFamilies) && slices.Equal(b.Listeners, o.Listeners) && (b.Members == nil) == (o.Members == nil) && maps.Equal(b.Members, o.Members)
	}
	return reflect.DeepEqual(b.LoadBalancer, o.LoadBalancer)
}

// grant is what the assignment of addresses says to one Service.
type grant struct {
	// addrs are what the Service is to have; if not ok, what it goes on with.
	addrs []netip.Addr
	// ok says that the Service has everything that it needs.
	ok bool
	// ports are those that it has of each of them, and unserved those that others have.
	ports    []ipam.PortKey
	unserved []UnservedPort
	// reason and message say why not, or what there is to say.
	reason, message string
}

// keepsLast says that edges are to go on with what the Service asked for before, as
// they hold it: it has its addresses, what it asks for now cannot be served, and we do
// not know what it asked for before.
func (s *subject) keepsLast() bool { return len(s.served) > 0 && s.good == nil }

// assigned says whether the Service has its addresses.
func (s *subject) assigned() condition {
	const t = ConditionAddressAssigned
	switch {
	case s.path == foreigns:
		return no(t, ReasonForeignAddress, "the status holds an address that is not of an AddressPool: another load balancer serves the Service, and eclusa leaves it alone; spec.loadBalancerClass says whose it is")
	case s.grant.ok:
		return yes(t, s.grant.reason, s.grant.message)
	}
	parts := []string{s.grant.message}
	if len(s.grant.addrs) > 0 {
		parts[0] += "; the Service keeps " + formatAddresses(s.grant.addrs)
	}
	if len(s.translation.Refusals) == 0 { // which Programmed tells together with these
		parts = append(parts, texts(about(s.translation.Complaints, false, string(AnnotationAddresses), loadBalancerIPField))...)
	}
	return no(t, s.grant.reason, joinBounded(parts))
}

// sameAddresses says whether both have the same addresses in any order.
func sameAddresses(a, b []netip.Addr) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(x netip.Addr) bool { return !slices.Contains(b, x) })
}
