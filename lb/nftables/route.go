package nftables

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// route is a frontend with what becomes of its traffic, as the kernel knows it.
// It is not changed after it is in force; a change makes another one with the
// same id.
type route struct {
	lb.Frontend
	spec  lb.Route
	id    mark // of the frontend with this owner
	pool  mark
	size  int  // of the pool: how many buckets
	owner mark // what its connections are counted as; 0 without a limit
	// elements are what the sets have for it.
	elements []element
	// allowed are the source ranges of its family, disjoint and in order.
	allowed []netip.Prefix

	// since is when the route got its pool, for members that it had in another one.
	since time.Time
	// deadline is when connections of a removed route are cut; zero while it is
	// served.
	deadline time.Time
}

func (r *route) version() *version { return versionOf(r.Addr) }

// sameSpec tells whether nothing of a route has changed.
func sameSpec(a, b *lb.Route) bool {
	x, y := *a, *b
	x.SourceRanges, y.SourceRanges = nil, nil
	return equalSpecs(x, y) && slices.Equal(a.SourceRanges, b.SourceRanges)
}

// equalSpecs compares all but the ranges, which are a slice.
func equalSpecs(a, b lb.Route) bool {
	return a.Owner == b.Owner && a.Name == b.Name && a.Group == b.Group && a.TargetPort == b.TargetPort &&
		a.Algorithm == b.Algorithm && a.ProxyProtocol == b.ProxyProtocol && a.AffinityFor == b.AffinityFor &&
		a.ConnectTimeout == b.ConnectTimeout && a.IdleTimeout == b.IdleTimeout && a.DrainTimeout == b.DrainTimeout &&
		a.MaxConnections == b.MaxConnections && a.ResetDead == b.ResetDead && a.Direct == b.Direct
}

// unsupported says why a route cannot be served, whatever the machine is like.
func unsupported(f lb.Frontend, r lb.Route) error {
	switch {
	case f.Protocol != lb.TCP && f.Protocol != lb.UDP:
		return fmt.Errorf("serve %s: protocol %q: %w by the engine %q", f, f.Protocol, lb.ErrUnsupported, Name)
	case r.ProxyProtocol != lb.ProxyOff:
		return fmt.Errorf("serve %s: PROXY protocol %q: %w by the engine %q, which sees no bytes of a connection", f, r.ProxyProtocol, lb.ErrUnsupported, Name)
	case !slices.Contains([]lb.Algorithm{"", lb.RoundRobin, lb.SourceHash}, r.Algorithm):
		return fmt.Errorf("serve %s: algorithm %q: %w by the engine %q", f, r.Algorithm, lb.ErrUnsupported, Name)
	case r.ConnectTimeout != 0:
		return fmt.Errorf("serve %s: connect timeout %s: %w by the engine %q, where clients connect to members themselves", f, r.ConnectTimeout, lb.ErrUnsupported, Name)
	case r.Group.Family != "" && r.Group.Family != lb.FamilyOf(f.Addr):
		return fmt.Errorf("serve %s: members of the family %s: %w by the engine %q", f, r.Group.Family, lb.ErrUnsupported, Name)
	case r.Direct && (r.TargetPort != f.Port || r.MaxConnections != 0):
		return fmt.Errorf("serve %s at port %d of members, at most %d connections: forwarding direct changes no port and sees no end of a connection: %w", f, r.TargetPort, r.MaxConnections, lb.ErrUnsupported)
	case !f.Addr.IsValid() || f.Addr.Zone() != "" || f.Addr.Is4In6() || f.Port == 0 || r.TargetPort == 0:
		return fmt.Errorf("serve %s at port %d of members: address and ports must be set, without a zone: %w", f, r.TargetPort, lb.ErrInvalid)
	case f.Addr.IsUnspecified() || f.Addr.IsMulticast() || f.Addr.IsLoopback():
		return fmt.Errorf("serve %s: must be an address of one machine that others can reach: %w", f, lb.ErrInvalid)
	}
	return nil
}

// picker is the chain that chooses the member.
func (r *route) picker() picker {
	bySource := r.spec.AffinityFor > 0 || r.spec.Algorithm == lb.SourceHash
	return picker{version: r.version(), bySource: bySource, size: r.size}
}

func (r *route) timeouts() timeouts {
	idle := seconds(r.spec.IdleTimeout)
	if r.Protocol == lb.TCP {
		idle += slackOf(idle)
	}
	return timeouts{version: r.version(), protocol: protocolNumber(r.Protocol), seconds: idle}
}

// slackOf is how long the kernel knows a TCP connection after it was idle for its
// time, within which the engine resets it.
func slackOf(idle int) int {
	if idle >= 60 {
		return 30
	}
	return shortSlack
}

// shortSlack is the slack of connections that are idle for less than a minute.
const shortSlack = 3

func (r *route) limit() limit { return limit{r.version(), r.spec.MaxConnections} }

func (r *route) affinity() affinity { return affinity{r.version(), seconds(r.spec.AffinityFor)} }

// make works out the route's elements.
func (r *route) make() {
	if r.spec.Direct {
		r.makeDirect()
		return
	}
	v := r.version()
	key, id := string(tupleKey(r.Frontend)), string(r.id.host())
	port := binary.BigEndian.AppendUint16(nil, r.spec.TargetPort)
	jump := func(set, chain string) element {
		return element{set, id, value{verdict: unix.NFT_JUMP, chain: chain}}
	}
	all := []element{
		{"routes" + v.suffix, key, value{data: id, comment: ownerComment(r.spec.Owner, r.spec.Name)}},
		{"ports" + v.suffix, key, value{data: string(port)}},
		{"pools", id, value{data: string(r.pool.host())}},
		{"pickers", id, value{verdict: unix.NFT_GOTO, chain: r.picker().chain()}},
		jump("idle", r.timeouts().chain()),
	}
	if len(r.spec.SourceRanges) > 0 {
		all = append(all, element{set: "restricted", key: id})
		r.allowed = disjoint(r.spec.SourceRanges, v.family)
		for _, p := range r.allowed {
			all = append(all, rangeElement(r.id, p))
		}
	}
	if r.spec.AffinityFor > 0 {
		all = append(all, jump("known", "known"+v.suffix), jump("remember", r.affinity().chain()))
	}
	if r.owner != 0 {
		all = append(all, jump("limits", r.limit().chain()), element{"owners", id, value{data: string(r.owner.host())}})
	}
	r.elements = all
}

// restricted returns the route with other source ranges.
func (r *route) restricted(ranges []netip.Prefix) *route {
	n := *r
	n.spec.SourceRanges, n.allowed = ranges, disjoint(ranges, n.version().family)
	return &n
}

// forbids tells whether the source ranges have no place for a client.
func (r *route) forbids(client netip.Addr) bool {
	if len(r.spec.SourceRanges) == 0 {
		return false
	}
	after, _ := slices.BinarySearchFunc(r.allowed, client, func(p netip.Prefix, a netip.Addr) int {
		if p.Addr().Compare(a) <= 0 {
			return -1
		}
		return 1
	})
	return after == 0 || !r.allowed[after-1].Contains(client)
}

// disjoint returns the ranges of a family without those that lie within others.
func disjoint(ranges []netip.Prefix, f lb.Family) []netip.Prefix {
	var own []netip.Prefix
	for _, p := range ranges {
		if lb.FamilyOf(p.Addr()) == f {
			own = append(own, p.Masked())
		}
	}
	slices.SortFunc(own, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	var out []netip.Prefix
	for _, p := range own {
		if n := len(out); n == 0 || !out[n-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

func rangeElement(m mark, p netip.Prefix) element {
	id := binary.BigEndian.AppendUint32(nil, uint32(m))
	from := p.Addr().AsSlice()
	to := slices.Clone(from)
	for i := p.Bits(); i < len(to)*8; i++ {
		to[i/8] |= 0x80 >> (i % 8)
	}
	set := "ranges" + versionOf(p.Addr()).suffix
	return element{set, string(id) + string(from), value{keyEnd: string(id) + string(to)}}
}

// ownerComment tells in `nft list ruleset`, and to the next process, whose route
// an element is.
func ownerComment(o lb.Owner, name string) string {
	clean := func(r rune) rune {
		if r < ' ' || r == '"' || r == '\\' || r == 0x7f {
			return '?'
		}
		return r
	}
	s := strings.Map(clean, fmt.Sprintf("%s/%s %s", o.Cluster, o.UID, name))
	return s[:min(len(s), maxComment)]
}

// ownerOf reads such a comment.
func ownerOf(comment string) (lb.Owner, string) {
	cluster, rest, _ := strings.Cut(comment, "/")
	uid, name, _ := strings.Cut(rest, " ")
	return lb.Owner{Cluster: lb.Cluster(cluster), UID: lb.UID(uid)}, name
}

// pool is a group of backends as the kernel knows it. Like a route it is not
// changed after it is in force.
type pool struct {
	id      mark
	version *version
	size    int // number of buckets
	// backends is the group as it was set.
	backends []lb.Backend
	members  map[netip.Addr]lb.Backend
	buckets  []netip.Addr // who has which; the zero Addr where nobody is
	// gone are members of before, with when they went and who they were.
	gone map[netip.Addr]departed
	// numbers are those of members that packets are routed to as they are, nil if
	// these are not.
	numbers map[netip.Addr]mark
}

type departed struct {
	node lb.NodeName
	at   time.Time
}

// succeed returns the pool after a change of its backends. was is nil for a new
// one.
func succeed(was *pool, id mark, v *version, backends []lb.Backend, now time.Time) *pool {
	p := &pool{id: id, version: v, backends: backends, members: make(map[netip.Addr]lb.Backend, len(backends)), gone: make(map[netip.Addr]departed)}
	var own []lb.Backend
	for _, b := range backends {
		if lb.FamilyOf(b.Addr) == v.family {
			own = append(own, b)
			p.members[b.Addr] = b
		}
	}
	p.size = bucketCount(own)
	p.buckets = fill(own, p.size)
	if was == nil {
		return p
	}
	for a, d := range was.gone {
		if _, back := p.members[a]; !back {
			p.gone[a] = d
		}
	}
	for a, b := range was.members {
		if _, stays := p.members[a]; !stays {
			p.gone[a] = departed{b.Node, now}
		}
	}
	return p
}

// bucket returns the element of one bucket.
func (p *pool) bucket(i int) element {
	key := binary.NativeEndian.AppendUint32(p.id.host(), uint32(i))
	if p.numbers != nil {
		return element{"slots", string(key), value{data: string(p.numbers[p.buckets[i]].host())}}
	}
	return element{"buckets" + p.version.suffix, string(key), value{data: string(p.buckets[i].AsSlice())}}
}

// forgets tells whether some of the members that are gone went too long ago.
func (p *pool) forgets(now time.Time) bool {
	for _, d := range p.gone {
		if now.Sub(d.at) > rememberGone {
			return true
		}
	}
	return false
}

// without returns the pool without those.
func (p *pool) without(now time.Time) *pool {
	q := *p
	q.gone = make(map[netip.Addr]departed)
	for a, d := range p.gone {
		if now.Sub(d.at) <= rememberGone {
			q.gone[a] = d
		}
	}
	return &q
}
