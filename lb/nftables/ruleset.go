package nftables

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// picker is a chain that chooses a member by a number below size.
type picker struct {
	version *version
	// bySource makes the number of the client's address; without it the numbers
	// come in turn.
	bySource bool
	size     int
}

func (p picker) chain() string {
	if p.bySource {
		return fmt.Sprintf("source_%d_%s", p.size, p.version.suffix)
	}
	return fmt.Sprintf("turn_%d_%s", p.size, p.version.suffix)
}

// limit is a chain that refuses more connections than this.
type limit struct {
	version *version
	most    int
}

func (l limit) chain() string { return fmt.Sprintf("limit_%d_%s", l.most, l.version.suffix) }

// affinity is a chain that remembers who served a client.
type affinity struct {
	version *version
	seconds int
}

func (a affinity) chain() string { return fmt.Sprintf("remember_%ds_%s", a.seconds, a.version.suffix) }

// shape is what decides which chains there are: what routes have in common, and
// never a single route or member.
type shape struct {
	pickers    map[picker]bool
	limits     map[limit]bool
	affinities map[affinity]bool
	timeouts   map[timeouts]bool
	sources    map[*version]int // how many source addresses; none: masquerade
	untouched  bool             // connections keep the source that they have
	// holders and choosers are for routes whose packets are routed as they are.
	holders  map[holder]bool
	choosers map[chooser]bool
}

func newShape() *shape {
	return &shape{
		pickers: make(map[picker]bool), limits: make(map[limit]bool), affinities: make(map[affinity]bool),
		timeouts: make(map[timeouts]bool), sources: make(map[*version]int),
		holders: make(map[holder]bool), choosers: make(map[chooser]bool),
	}
}

// chains returns all chains: those that others go to come first.
func (s *shape) chains() []*chain {
	var all []*chain
	for _, v := range versions {
		all = append(all, refuseSource(v), refuseLimit(v), memberless(v), restricted(v), known(v))
	}
	for _, l := range sorted(s.limits, limit.chain) {
		all = append(all, l.make())
	}
	for _, a := range sorted(s.affinities, affinity.chain) {
		all = append(all, a.make())
	}
	for _, t := range sorted(s.timeouts, timeouts.chain) {
		c := &chain{name: t.chain()}
		c.add(newRule().idleAfter(t.name()))
		all = append(all, c)
	}
	for _, p := range sorted(s.pickers, picker.chain) {
		all = append(all, p.make())
	}
	for _, v := range versions {
		all = append(all, admit(v), begin(v), s.depart(v), stray(v))
	}
	all = append(all, unserved(), invalid())
	all = append(all, s.directChains()...)
	return append(all, hooked()...)
}

func sorted[T comparable](set map[T]bool, name func(T) string) []T {
	return slices.SortedFunc(maps.Keys(set), func(a, b T) int { return cmp.Compare(name(a), name(b)) })
}

// hooked returns the chains that the kernel enters.
func hooked() []*chain {
	prerouting := &chain{name: "prerouting", hook: &hook{ofNAT, hookPrerouting, priorityDstNAT}}
	output := &chain{name: "output", hook: &hook{ofNAT, hookOutput, priorityDstNAT}}
	for _, c := range []*chain{prerouting, output} {
		for _, v := range versions {
			c.add(v.identify(v.only()))
		}
		for _, v := range versions {
			// A refusal has the mark of the connection that it ends, and the other
			// direction.
			c.add(v.only().direction(0).marked(ofRoute, kindMask).goTo("admit" + v.suffix))
		}
		for _, v := range versions {
			c.add(v.only().direction(0).payload(unix.NFT_PAYLOAD_NETWORK_HEADER, v.destination, v.length, first).in("vips"+v.suffix, first).goTo("unserved"))
		}
	}
	postrouting := &chain{name: "postrouting", hook: &hook{ofNAT, hookPostrouting, prioritySrcNAT}}
	for _, v := range versions {
		postrouting.add(v.only().direction(0).marked(ofRoute, routeOrPool).goTo("depart" + v.suffix))
	}
	counting := accounting("accounting", hookPrerouting)
	counting.add(newRule().invalid().goTo("invalid"))
	own := &chain{name: "own", hook: &hook{ofFilter, hookOutput, priorityRaw}}
	own.add(newRule().meta(unix.NFT_META_MARK, first).equal(first, mark(bypassMark).host()).untracked())
	return []*chain{own, prerouting, counting, output, accounting("accounting_own", hookOutput), postrouting}
}

// accounting returns a chain that counts bytes. It sees every packet, behind NAT, so
// the first rule is the only one for those of others, and as few as can be for ours:
// a lookup, which counts too, is cheaper than an update, and it fails for the first
// packet from a route to a member only.
func accounting(name string, hookNumber uint32) *chain {
	c := &chain{name: name, hook: &hook{ofFilter, hookNumber, afterDstNAT}}
	c.add(newRule().ct(unix.NFT_CT_MARK, first).masked(first, routeOrPool.host()).compare(unix.NFT_CMP_NEQ, first, ofRoute.host()).accept())
	each := func(count func(r *rule, set string) *rule) {
		for _, v := range versions {
			for direction, set := range []string{"in", "out"} {
				r := v.only().direction(uint8(direction)).ct(unix.NFT_CT_MARK, first).ctOf(replyDirection, v.ctSource, first+1)
				c.add(count(r, set+v.suffix).accept())
			}
		}
	}
	each(func(r *rule, set string) *rule { return r.in(set, first) })
	for _, v := range versions {
		c.add(v.only().marked(ofPool, kindMask).jump("begin" + v.suffix))
	}
	each(func(r *rule, set string) *rule { return r.update(set, first) })
	return c
}

// begin gives the connection the mark of its route again.
func begin(v *version) *chain {
	c := &chain{name: "begin" + v.suffix}
	words := reg(v.length / 4)
	for _, p := range protocols {
		c.add(newRule().protocol(p.number).ctOf(0, v.ctDest, first).meta(unix.NFT_META_L4PROTO, first+words).ctOf(0, unix.NFT_CT_PROTO_DST, first+words+1).
			mapped("routes"+v.suffix, first, first).setCtMark(first))
	}
	return c
}

// routeOrPool selects both kinds of marks: they are 0xec and 0xed.
const routeOrPool = kindMask &^ 0x01000000

const replyDirection = 1

// only matches packets of one address family.
func (v *version) only() *rule {
	return newRule().meta(unix.NFT_META_NFPROTO, first).equal(first, []byte{byte(v.proto)})
}

func (r *rule) protocol(number uint8) *rule {
	return r.meta(unix.NFT_META_L4PROTO, first).equal(first, []byte{number})
}

func (r *rule) marked(m, mask mark) *rule {
	return r.ct(unix.NFT_CT_MARK, first).masked(first, mask.host()).equal(first, (m & mask).host())
}

func (r *rule) direction(d uint8) *rule {
	return r.ct(unix.NFT_CT_DIRECTION, first).equal(first, []byte{d})
}

func (r *rule) invalid() *rule {
	const state = 1
	bit := binary.NativeEndian.AppendUint32(nil, state)
	return r.ct(unix.NFT_CT_STATE, first).masked(first, bit).compare(unix.NFT_CMP_NEQ, first, make([]byte, 4))
}

// notOpening matches TCP segments that begin no connection.
func (r *rule) notOpening() *rule {
	const (
		flags   = 13
		relevan = 0x17 // FIN, SYN, RST, ACK
		syn     = 0x02
	)
	return r.payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, flags, 1, first).masked(first, []byte{relevan}).compare(unix.NFT_CMP_NEQ, first, []byte{syn})
}

// tuple loads the packet's destination: address, protocol and port.
func (v *version) tuple(r *rule, at reg) *rule {
	words := reg(v.length / 4)
	return r.payload(unix.NFT_PAYLOAD_NETWORK_HEADER, v.destination, v.length, at).
		meta(unix.NFT_META_L4PROTO, at+words).
		payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, at+words+1)
}

// identify marks the connection with the route of the packet's destination.
func (v *version) identify(r *rule) *rule {
	return v.tuple(r, first).mapped("routes"+v.suffix, first, first).setCtMark(first)
}

// client loads the connection's mark and the packet's source address.
func (v *version) client(r *rule, at reg) *rule {
	return r.ct(unix.NFT_CT_MARK, at).payload(unix.NFT_PAYLOAD_NETWORK_HEADER, v.source, v.length, at+1)
}

// admit decides about a connection to a route.
func admit(v *version) *chain {
	c := &chain{name: "admit" + v.suffix}
	c.add(newRule().protocol(unix.IPPROTO_TCP).notOpening().reset())
	c.add(newRule().ct(unix.NFT_CT_MARK, first).in("restricted", first).jump("restricted" + v.suffix))
	for _, set := range []string{"limits", "idle", "known", "pickers"} {
		c.add(newRule().ct(unix.NFT_CT_MARK, first).dispatched(set, first))
	}
	return c
}

func restricted(v *version) *chain {
	c := &chain{name: "restricted" + v.suffix}
	r := v.only().ct(unix.NFT_CT_MARK, first).bigEndian(first).payload(unix.NFT_PAYLOAD_NETWORK_HEADER, v.source, v.length, first+1)
	c.add(r.in("ranges"+v.suffix, first).leave())
	c.add(newRule().goTo("refuse_source" + v.suffix))
	return c
}

func refuseSource(v *version) *chain {
	c := &chain{name: "refuse_source" + v.suffix}
	c.add(newRule().ct(unix.NFT_CT_MARK, first).update("refused_source", first))
	c.add(newRule().protocol(unix.IPPROTO_TCP).reset())
	c.add(newRule().drop())
	return c
}

func refuseLimit(v *version) *chain {
	c := &chain{name: "refuse_limit" + v.suffix}
	c.add(v.identify(v.only()))
	c.add(newRule().ct(unix.NFT_CT_MARK, first).update("refused_limit", first))
	c.add(newRule().protocol(unix.IPPROTO_TCP).reset())
	c.add(newRule().drop())
	return c
}

func memberless(v *version) *chain {
	c := &chain{name: "memberless" + v.suffix}
	c.add(v.identify(v.only()))
	c.add(newRule().ct(unix.NFT_CT_MARK, first).update("refused_memberless", first))
	c.add(newRule().protocol(unix.IPPROTO_TCP).reset())
	c.add(newRule().unreachable())
	return c
}

// make counts connections by owner, so the mark is the owner's meanwhile.
func (l limit) make() *chain {
	c := &chain{name: l.chain()}
	c.add(newRule().ct(unix.NFT_CT_MARK, first).mapped("owners", first, first).setCtMark(first))
	c.add(newRule().ct(unix.NFT_CT_MARK, first).over(limitSet(l.most).name, first, uint32(l.most)).goTo("refuse_limit" + l.version.suffix))
	c.add(l.version.identify(l.version.only()))
	return c
}

// forward sends the connection to the address in the first register, and the
// port of its route.
func (r *rule) forward(v *version) *rule {
	return v.tuple(r, second).mapped("ports"+v.suffix, second, second).dnat(v.proto, first, second)
}

// known sends a client to the member that served it before.
func known(v *version) *chain {
	c := &chain{name: "known" + v.suffix}
	for _, p := range protocols {
		c.add(v.client(v.only().protocol(p.number), first).mapped("clients"+v.suffix, first, first).forward(v))
	}
	return c
}

func (p picker) make() *chain {
	c := &chain{name: p.chain()}
	v := p.version
	c.add(newRule().ct(unix.NFT_CT_MARK, first).mapped("pools", first, first).setCtMark(first))
	for _, protocol := range protocols {
		r := v.only().protocol(protocol.number).ct(unix.NFT_CT_MARK, first)
		if p.bySource {
			r.payload(unix.NFT_PAYLOAD_NETWORK_HEADER, v.source, v.length, second).hash(second, v.length, uint32(p.size), hashSeed, first+1)
		} else {
			r.turn(unix.NFT_NG_INCREMENTAL, uint32(p.size), first+1)
		}
		c.add(r.mapped("buckets"+v.suffix, first, first).forward(v))
	}
	c.add(newRule().goTo("memberless" + v.suffix))
	return c
}

// depart counts a connection and gives it a source address.
func (s *shape) depart(v *version) *chain {
	c := &chain{name: "depart" + v.suffix}
	c.add(newRule().ct(unix.NFT_CT_MARK, first).update("accepted", first))
	member := v.only().ct(unix.NFT_CT_MARK, first).payload(unix.NFT_PAYLOAD_NETWORK_HEADER, v.destination, v.length, first+1)
	c.add(member.update("connections"+v.suffix, first))
	c.add(newRule().ct(unix.NFT_CT_MARK, first).dispatched("remember", first))
	switch sources := s.sources[v]; {
	case s.untouched:
	case sources == 0:
		c.add(newRule().masquerade())
	default:
		c.add(newRule().turn(unix.NFT_NG_RANDOM, uint32(sources), first).mapped("sources"+v.suffix, first, first).snat(v.proto, first))
	}
	return c
}

func (a affinity) make() *chain {
	c := &chain{name: a.chain()}
	v := a.version
	r := v.client(v.only(), first).payload(unix.NFT_PAYLOAD_NETWORK_HEADER, v.destination, v.length, second)
	c.add(r.remember("clients"+v.suffix, first, second, uint64(a.seconds)*1000))
	return c
}

// invalid picks the packets that should belong to a connection of ours and do not.
func invalid() *chain {
	c := &chain{name: "invalid"}
	for _, v := range versions {
		for _, set := range []string{"vips", "answers"} {
			c.add(v.only().payload(unix.NFT_PAYLOAD_NETWORK_HEADER, v.destination, v.length, first).in(set+v.suffix, first).goTo("stray" + v.suffix))
		}
	}
	return c
}

// stray answers segments of connections that nobody knows any more, so that both
// ends learn at once that it is over.
func stray(v *version) *chain {
	c := &chain{name: "stray" + v.suffix}
	c.add(newRule().protocol(unix.IPPROTO_TCP).reset())
	return c
}

// unserved answers what comes to an address of load balancers where nobody
// listens.
func unserved() *chain {
	c := &chain{name: "unserved"}
	for _, icmp := range []uint8{unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6} {
		c.add(newRule().protocol(icmp).leave())
	}
	c.add(newRule().protocol(unix.IPPROTO_TCP).reset())
	c.add(newRule().unreachable())
	return c
}
