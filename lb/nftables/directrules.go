package nftables

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// What follows is the part of the table for routes whose packets are routed to
// members as they are. Answers may pass this machine by, so connection tracking
// must not see them: it would take the flows for broken and forget their marks. The
// table remembers itself which flow goes to which member, and marks each packet of
// it with the number of that member, by which it is routed; see steering.

// holder is a chain for packets of such routes that goes on with flows that have a
// member, and lets others choose one.
type holder struct {
	version  *version
	protocol uint8
	seconds  int // until an idle flow is forgotten
}

func (h holder) chain() string {
	return fmt.Sprintf("hold_%s%s_%ds", protocolOf(h.protocol), h.version.suffix, h.seconds)
}

// chooser is a chain that gives a flow a member.
type chooser struct {
	version  *version
	protocol uint8
	seconds  int // until a flow with a single packet is forgotten
	bySource bool
	size     int
	affinity int // seconds that a client is remembered; 0 is not
}

func (c chooser) chain() string {
	by := "flow"
	if c.bySource {
		by = "source"
	}
	name := fmt.Sprintf("choose_%s%s_%ds_%s_%d", protocolOf(c.protocol), c.version.suffix, c.seconds, by, c.size)
	if c.affinity > 0 {
		name += fmt.Sprintf("_remember_%ds", c.affinity)
	}
	return name
}

const (
	// halfOpen is how long a flow is known of which only its first packet was seen, in
	// seconds, so that a flood of such does not push others out for long.
	halfOpen = 60
	// closing is how long a TCP flow is known after its client has ended it.
	closing = 60
	// maxFlows bounds the flows that are known. Those beyond go where their hash says,
	// which is the same member as long as members stay.
	maxFlows = 1 << 20

	// firstDirectID begins the numbers of these sets within a transaction.
	firstDirectID = 500
)

// directSets are the sets that only routes of this kind need.
func directSets() []*set {
	var all []*set
	for _, v := range versions {
		tuple, tupleLen := concat(v.kind, typeProto, typePort), v.length+8
		ends, endsLen := concat(v.kind, typePort, v.kind, typeProto, typePort), 2*v.length+12
		byTuple := func(name string) *set {
			return &set{name: name + v.suffix, flags: setMap, keyType: tuple, keyLen: tupleLen, dataType: typeVerdict}
		}
		flows := func(name string) *set {
			return &set{name: name + v.suffix, flags: setDynamic | setTimeout | setMap, keyType: ends, keyLen: endsLen, dataType: v.kind, dataLen: v.length, size: maxFlows}
		}
		all = append(all,
			byTuple("holders"), byTuple("choosers"),
			&set{name: "gateways" + v.suffix, flags: setMap, keyType: v.kind, keyLen: v.length, dataType: typeMark, dataLen: 4, userData: byteOrders(anyOrder, hostOrder)},
			flows("flows"), flows("closing"),
		)
	}
	return all
}

// The registers of these rules: the ends of a flow, behind them the member, and
// behind that the mark of packets to it.
func (v *version) words() reg   { return reg(v.length / 4) }
func (v *version) members() reg { return first + 2*v.words() + 3 }
func (v *version) marks() reg   { return v.members() + v.words() }

// ends loads source, its port, destination, protocol and its port.
func (v *version) ends(r *rule) *rule {
	w := v.words()
	return r.payload(unix.NFT_PAYLOAD_NETWORK_HEADER, v.source, v.length, first).
		payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 2, first+w).
		payload(unix.NFT_PAYLOAD_NETWORK_HEADER, v.destination, v.length, first+w+1).
		meta(unix.NFT_META_L4PROTO, first+2*w+1).
		payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, first+2*w+2)
}

// routed loads the mark of the route of the packet's destination.
func (v *version) routed(r *rule, to reg) *rule {
	return v.tuple(r, first).mapped("routes"+v.suffix, first, to)
}

// steer marks the packet with the number of the member that is loaded, and does not
// match if nobody must be sent there.
func (v *version) steer(r *rule) *rule {
	return r.mapped("gateways"+v.suffix, v.members(), v.marks()).setMark(v.marks())
}

// countIn counts the packet for its route and the member that is loaded.
func (v *version) countIn(r *rule) *rule {
	return v.routed(r, v.members()-1).update("in"+v.suffix, v.members()-1)
}

func (r *rule) setMark(from reg) *rule {
	return r.expr("meta", func() {
		r.u32(unix.NFTA_META_KEY, unix.NFT_META_MARK)
		r.u32(unix.NFTA_META_SREG, uint32(from))
	})
}

// forgets deletes an element of a dynamic map, of whatever value.
func (r *rule) forgets(set string, key, value reg) *rule {
	const deleteOp = 2
	return r.expr("dynset", func() {
		r.text(unix.NFTA_DYNSET_SET_NAME, set)
		r.u32(unix.NFTA_DYNSET_OP, deleteOp)
		r.u32(unix.NFTA_DYNSET_SREG_KEY, uint32(key))
		r.u32(unix.NFTA_DYNSET_SREG_DATA, uint32(value))
	})
}

// tcpFlags matches TCP segments with any of the flags.
func (r *rule) tcpFlags(any byte) *rule {
	const flags = 13
	return r.payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, flags, 1, first).masked(first, []byte{any}).compare(unix.NFT_CMP_NEQ, first, []byte{0})
}

const finOrReset = 0x01 | 0x04

// make is what a packet of a route meets first.
func (h holder) make() *chain {
	c := &chain{name: h.chain()}
	v := h.version
	flows, ended := "flows"+v.suffix, "closing"+v.suffix
	a := v.members()
	if h.protocol == unix.IPPROTO_TCP {
		// Its last segments still go where it went.
		r := v.ends(newRule().tcpFlags(finOrReset)).mapped(flows, first, a)
		c.add(r.forgets(flows, first, a).remember(ended, first, a, closing*1000))
	}
	r := v.ends(newRule()).mapped(flows, first, a).remember(flows, first, a, uint64(h.seconds)*1000)
	c.add(v.steer(v.countIn(r)).untracked().accept())
	if h.protocol == unix.IPPROTO_TCP {
		r := v.ends(newRule().notOpening()).mapped(ended, first, a)
		c.add(v.steer(v.countIn(r)).untracked().accept())
		// It has a member, and that is dead.
		c.add(v.ends(newRule().notOpening()).mapped(flows, first, a).reset())
		c.add(v.ends(newRule().notOpening()).mapped(ended, first, a).reset())
		// Connection tracking may know it, from before the route was of this kind; see
		// stranded.
		c.add(newRule().notOpening().leave())
	}
	c.add(v.tuple(newRule(), first).dispatched("choosers"+v.suffix, first))
	return c
}

// make is what the first packet of a flow meets, and every one of a flow that
// nobody remembers.
func (c chooser) make() *chain {
	out := &chain{name: c.chain()}
	v := c.version
	out.add(v.routed(newRule(), first).in("restricted", first).jump("permitted" + v.suffix))
	if c.affinity > 0 {
		w := v.words()
		r := v.routed(newRule(), first+w+1).payload(unix.NFT_PAYLOAD_NETWORK_HEADER, v.source, v.length, first+w+2)
		c.assign(out, r.mapped("clients"+v.suffix, first+w+1, v.members()))
	}
	number := first + 2*v.words() + 3 // the pool, and behind it a number below its size
	r := v.ends(v.routed(newRule(), number).mapped("pools", number, number))
	if c.bySource {
		r.hash(first, v.length, uint32(c.size), hashSeed, number+1)
	} else {
		r.hash(first, 2*v.length+12, uint32(c.size), hashSeed, number+1)
	}
	c.assign(out, r.mapped("buckets"+v.suffix, number, v.members()))
	out.add(v.routed(newRule(), first).update("refused_memberless", first))
	out.add(newRule().protocol(unix.IPPROTO_TCP).reset())
	out.add(newRule().unreachable())
	return out
}

// assign sends the packet to the member that is loaded, and has the flow remembered.
// The last may fail when there are too many.
func (c chooser) assign(out *chain, r *rule) {
	v, a := c.version, c.version.members()
	v.steer(r)
	v.countIn(r)
	v.routed(r, a-1).update("accepted", a-1).update("connections"+v.suffix, a-1)
	if w := v.words(); c.affinity > 0 {
		v.routed(r, first+w+1).payload(unix.NFT_PAYLOAD_NETWORK_HEADER, v.source, v.length, first+w+2)
		r.remember("clients"+v.suffix, first+w+1, a, uint64(c.affinity)*1000)
	}
	flows := "flows" + v.suffix
	out.add(v.ends(r).forgets(flows, first, a).remember(flows, first, a, uint64(c.seconds)*1000))
	out.add(newRule().steered().untracked().accept())
}

// steered matches packets that have the mark of a member.
func (r *rule) steered() *rule {
	return r.meta(unix.NFT_META_MARK, first).masked(first, kindMask.host()).equal(first, ofGateway.host())
}

// permitted lets those on whom the source ranges look kindly go on.
func permitted(v *version) *chain {
	c := &chain{name: "permitted" + v.suffix}
	r := v.routed(v.only(), first).bigEndian(first).payload(unix.NFT_PAYLOAD_NETWORK_HEADER, v.source, v.length, first+1)
	c.add(r.in("ranges"+v.suffix, first).leave())
	c.add(v.routed(newRule(), first).update("refused_source", first))
	c.add(newRule().protocol(unix.IPPROTO_TCP).reset())
	c.add(newRule().drop())
	return c
}

// directChains returns the chains of such routes; none without any.
func (s *shape) directChains() []*chain {
	if !s.steers() {
		return nil
	}
	var all []*chain
	for _, v := range versions {
		all = append(all, permitted(v))
	}
	for _, c := range sorted(s.choosers, chooser.chain) {
		all = append(all, c.make())
	}
	for _, h := range sorted(s.holders, holder.chain) {
		all = append(all, h.make())
	}
	return append(all, directHooks()...)
}

// steers tells whether any packets are routed as they are.
func (s *shape) steers() bool { return len(s.holders) > 0 }

// directHooks returns the chains that the kernel enters for such routes.
func directHooks() []*chain {
	direct := &chain{name: "direct", hook: &hook{ofFilter, hookPrerouting, priorityRaw}}
	for _, v := range versions {
		direct.add(v.quoted(v.only()))
	}
	for _, v := range versions {
		direct.add(v.tuple(v.only(), first).dispatched("holders"+v.suffix, first))
	}
	for _, v := range versions {
		w := v.words()
		r := v.only().payload(unix.NFT_PAYLOAD_NETWORK_HEADER, v.source, v.length, first).
			meta(unix.NFT_META_L4PROTO, first+w).payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 2, first+w+1)
		// Answers that come by; those of other routes come from members' addresses.
		direct.add(r.mapped("routes"+v.suffix, first, first).untracked())
	}
	stranded := &chain{name: "stranded", hook: &hook{ofFilter, hookPrerouting, priorityMangle - 1}}
	for _, v := range versions {
		stranded.add(v.tuple(v.only().protocol(unix.IPPROTO_TCP).invalid(), first).dispatched("choosers"+v.suffix, first))
	}
	redirects := &chain{name: "redirects", hook: &hook{ofFilter, hookOutput, priorityFilter}}
	for _, v := range versions {
		redirects.add(v.redirect(v.only()))
	}
	return []*chain{direct, stranded, redirects}
}

const priorityFilter = 0

// What ICMP messages quote lies behind eight bytes, and begins with a header
// without options.
const quote = 8

// quoted sends ICMP errors about what members have sent to the member of the flow.
func (v *version) quoted(r *rule) *rule {
	w, header, next := v.words(), uint32(ip4Len), uint32(9)
	number := uint8(unix.IPPROTO_ICMP)
	if v == v6 {
		header, next, number = ip6Len, 6, unix.IPPROTO_ICMPV6
	}
	r.protocol(number)
	at := func(offset, length uint32, to reg) { r.payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, offset, length, to) }
	at(quote+v.destination, v.length, first)
	at(quote+header+2, 2, first+w)
	at(quote+v.source, v.length, first+w+1)
	at(quote+next, 1, first+2*w+1)
	at(quote+header, 2, first+2*w+2)
	return v.steer(r.mapped("flows"+v.suffix, first, v.members())).untracked().accept()
}

// redirect keeps this machine from telling clients on the members' link to send
// packets there by themselves.
func (v *version) redirect(r *rule) *rule {
	number, kind, destination := uint8(unix.IPPROTO_ICMP), byte(5), quote+v.destination
	if v == v6 {
		const behindTarget = quote + 16
		number, kind, destination = unix.IPPROTO_ICMPV6, 137, behindTarget
	}
	r.protocol(number).payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1, first).equal(first, []byte{kind})
	return r.payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, destination, v.length, first).in("vips"+v.suffix, first).drop()
}
