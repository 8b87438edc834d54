package nftables

import (
	"fmt"
	"strings"

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

// heldFor returns the seconds of a holder's chain.
func heldFor(chain string) (seconds int, ok bool) {
	var kind string
	// The kind ends with the blank: Sscanf reads words.
	n, err := fmt.Sscanf(strings.ReplaceAll(chain, "_", " "), "hold %s %ds", &kind, &seconds)
	return seconds, n == 2 && err == nil
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
	// closing is how long a TCP flow is known after its client has ended it, halfClosed
	// after the last segment of such a client, which may be reading on. It is no longer
	// than that since the last segment of most flows is the one that nothing follows.
	closing    = 60
	halfClosed = 300
	// maxFlows bounds the flows that are known. Those beyond go where their hash says,
	// which is the same member as long as members stay.
	maxFlows = 1 << 20

	// firstDirectID begins the numbers of these sets within a transaction.
	firstDirectID = 500
)

// typeOfSlots is "typeof ct mark . numgen inc mod 65536 : ct mark"; see typeOf.
var typeOfSlots = typeOf("00040000 00000104 01000000 033a0004 0d000000 01320014 00040c00 0000010c 00040300 00000104 ffffffff 011a0004 17000000 01120004 00000000 01040000 01000204 00000000 04140004 0c000000 010c0004 03000000 0104ffff ffff")

// directSets are the sets that only routes of this kind need.
func directSets() []*set {
	all := []*set{
		marks("members", 0), marks("takers", 0), settingsSetOf(),
		{name: "slots", flags: setMap, keyType: concat(typeMark, typeInteger), keyLen: 8, dataType: typeMark, dataLen: 4, userData: typeOfSlots},
	}
	for _, v := range versions {
		tuple, tupleLen := concat(v.kind, typeProto, typePort), v.length+8
		byTuple := func(name string) *set {
			return &set{name: name + v.suffix, flags: setMap, keyType: tuple, keyLen: tupleLen, dataType: typeVerdict}
		}
		byMember := func(name string) *set {
			return &set{name: name + v.suffix, flags: setDynamic, keyType: concat(v.kind, typeProto, typePort, typeMark), keyLen: tupleLen + 4, size: maxCounters, counter: true}
		}
		remembers := func(name string, size uint32, types ...uint32) *set {
			length := uint32(0)
			for _, t := range types {
				length += 4
				if t == v.kind {
					length += v.length - 4
				}
			}
			return &set{
				name: name + v.suffix, flags: setDynamic | setTimeout | setMap, keyType: concat(types...), keyLen: length,
				dataType: typeMark, dataLen: 4, size: size, userData: byteOrders(anyOrder, hostOrder),
			}
		}
		all = append(all,
			&set{name: "fronts" + v.suffix, keyType: tuple, keyLen: tupleLen},
			byTuple("holders"), byTuple("choosers"),
			&set{name: "gateways" + v.suffix, flags: setMap, keyType: v.kind, keyLen: v.length, dataType: typeMark, dataLen: 4, userData: byteOrders(anyOrder, hostOrder)},
			remembers("flows", maxFlows, v.kind, typePort, v.kind, typeProto, typePort),
			remembers("closing", maxFlows, v.kind, typePort, v.kind, typeProto, typePort),
			remembers("homes", maxClients, v.kind, typeProto, typePort, v.kind),
			byMember("begun"), byMember("steered"),
		)
	}
	return all
}

// words is how many registers an address takes.
func (v *version) words() reg { return reg(v.length / 4) }

// ends loads source, its port, destination, protocol and its port.
func (v *version) ends(r *rule) *rule {
	w := v.words()
	return r.payload(unix.NFT_PAYLOAD_NETWORK_HEADER, v.source, v.length, first).
		payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 2, first+w).
		payload(unix.NFT_PAYLOAD_NETWORK_HEADER, v.destination, v.length, first+w+1).
		meta(unix.NFT_META_L4PROTO, first+2*w+1).
		payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, first+2*w+2)
}

// behindEnds is the register behind the ends.
func (v *version) behindEnds() reg { return first + 2*v.words() + 3 }

// home loads destination, protocol, port and source.
func (v *version) home(r *rule) *rule {
	return v.tuple(r, first).payload(unix.NFT_PAYLOAD_NETWORK_HEADER, v.source, v.length, first+v.words()+2)
}

// routed gives the packet the mark of the route of its destination.
func (v *version) routed(r *rule) *rule {
	return v.tuple(r, first).mapped("routes"+v.suffix, first, first).setMark(first)
}

// counted counts the packet for its frontend and member.
func (v *version) counted(r *rule, set string) *rule {
	return v.tuple(r, first).meta(unix.NFT_META_MARK, first+v.words()+2).update(set+v.suffix, first)
}

func (r *rule) marks(at reg) *rule { return r.meta(unix.NFT_META_MARK, at) }

func (r *rule) setMark(from reg) *rule {
	return r.expr("meta", func() {
		r.u32(unix.NFTA_META_KEY, unix.NFT_META_MARK)
		r.u32(unix.NFTA_META_SREG, uint32(from))
	})
}

// takes matches packets with the mark of a member that takes new connections, of any
// pool.
func (r *rule) takes() *rule { return r.marks(first).in("takers", first) }

// alive matches packets with the mark of a member that may get some.
func (r *rule) alive() *rule { return r.marks(first).in("members", first) }

// steered matches packets with the mark of any member.
func (r *rule) steered() *rule {
	return r.marks(first).masked(first, kindMask.host()).equal(first, ofGateway.host())
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

// ending matches TCP segments that end a connection.
func (r *rule) ending() *rule {
	const (
		flags      = 13
		finOrReset = 0x01 | 0x04
	)
	return r.payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, flags, 1, first).masked(first, []byte{finOrReset}).compare(unix.NFT_CMP_NEQ, first, []byte{0})
}

// make is what a packet of a route meets first.
func (h holder) make() *chain {
	c := &chain{name: h.chain()}
	v := h.version
	flows, ended, member := "flows"+v.suffix, "closing"+v.suffix, v.behindEnds()
	of := func() *rule { return v.only().protocol(h.protocol) }
	// What is remembered for the dead, and tombstones, are not refreshed.
	known := func(r *rule, set string) *rule {
		return v.ends(r).mapped(set, first, member).setMark(member).marks(member).in("members", member)
	}
	through := func() { c.add(v.counted(of().alive(), "steered").untracked().accept()) }
	choose := func() *chain {
		c.add(v.tuple(of(), first).dispatched("choosers"+v.suffix, first))
		return c
	}
	if h.protocol != unix.IPPROTO_TCP {
		c.add(known(of(), flows).remember(flows, first, member, uint64(h.seconds)*1000))
		through()
		return choose()
	}
	// Its last segments still go where it went.
	c.add(known(of().ending(), flows).forgets(flows, first, member).remember(ended, first, member, closing*1000))
	c.add(known(of().notOpening(), flows).remember(flows, first, member, uint64(h.seconds)*1000))
	through()
	c.add(known(of().notOpening(), ended).remember(ended, first, member, uint64(min(h.seconds, halfClosed))*1000))
	through()
	// It has a member, and that is dead.
	c.add(of().notOpening().steered().reset())
	// Connection tracking may know it, from before the route was of this kind; see
	// stranded.
	c.add(of().notOpening().leave())
	return choose()
}

// make is what the first packet of a flow meets, and every one of a flow that
// nobody remembers.
func (c chooser) make() *chain {
	out := &chain{name: c.chain()}
	v := c.version
	number := v.behindEnds() // the pool, and behind it a number below its size
	out.add(v.routed(v.only()))
	out.add(newRule().marks(first).in("restricted", first).jump("permitted" + v.suffix))
	if c.protocol == unix.IPPROTO_TCP {
		// A client that repeats itself goes where it went. One that has the ports of a flow
		// of before is a new one, which a member that drains does not get.
		out.add(v.ends(v.only()).mapped("flows"+v.suffix, first, number).setMark(number))
		out.add(v.counted(v.only().takes(), "steered").untracked().accept())
		out.add(v.routed(v.only()))
	}
	if c.affinity > 0 {
		out.add(v.home(v.only()).mapped("homes"+v.suffix, first, first).setMark(first))
		out.add(newRule().takes().goTo(c.taker().chain()))
		out.add(v.routed(v.only()))
	}
	out.add(newRule().marks(first).mapped("pools", first, first).setMark(first))
	r := v.only().marks(number)
	if c.bySource {
		r.payload(unix.NFT_PAYLOAD_NETWORK_HEADER, v.source, v.length, first).hash(first, v.length, uint32(c.size), hashSeed, number+1)
	} else {
		v.ends(r).hash(first, 2*v.length+12, uint32(c.size), hashSeed, number+1)
	}
	out.add(r.mapped("slots", number, first).setMark(first))
	out.add(newRule().steered().goTo(c.taker().chain()))
	out.add(v.routed(v.only()))
	out.add(newRule().marks(first).update("refused_memberless", first))
	out.add(newRule().protocol(unix.IPPROTO_TCP).reset())
	out.add(newRule().unreachable())
	return out
}

// taker is a chain that has the member of a flow remembered.
type taker struct {
	version           *version
	seconds, affinity int
}

func (c chooser) taker() taker { return taker{c.version, c.seconds, c.affinity} }

func (t taker) chain() string {
	name := fmt.Sprintf("take%s_%ds", t.version.suffix, t.seconds)
	if t.affinity > 0 {
		name += fmt.Sprintf("_remember_%ds", t.affinity)
	}
	return name
}

// make has rules of their own for what fails when there is too much to remember.
func (t taker) make() *chain {
	c := &chain{name: t.chain()}
	v := t.version
	c.add(v.counted(v.only(), "begun"))
	c.add(v.counted(v.only(), "steered"))
	if value := first + 2*v.words() + 2; t.affinity > 0 {
		// What is there already is refreshed only, and may be of another member.
		homes := "homes" + v.suffix
		c.add(v.home(v.only()).marks(value).forgets(homes, first, value))
		c.add(v.home(v.only()).marks(value).remember(homes, first, value, uint64(t.affinity)*1000))
	}
	flows, value := "flows"+v.suffix, v.behindEnds()
	c.add(v.ends(v.only()).marks(value).forgets(flows, first, value))
	c.add(v.ends(v.only()).marks(value).remember(flows, first, value, uint64(t.seconds)*1000))
	c.add(newRule().untracked().accept())
	return c
}

// permitted lets those on whom the source ranges look kindly go on.
func permitted(v *version) *chain {
	c := &chain{name: "permitted" + v.suffix}
	r := v.only().marks(first).bigEndian(first).payload(unix.NFT_PAYLOAD_NETWORK_HEADER, v.source, v.length, first+1)
	c.add(r.in("ranges"+v.suffix, first).leave())
	c.add(newRule().marks(first).update("refused_source", first))
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
		all = append(all, permitted(v), v.quotes())
	}
	takers := make(map[taker]bool)
	for c := range s.choosers {
		takers[c.taker()] = true
	}
	for _, t := range sorted(takers, taker.chain) {
		all = append(all, t.make())
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
		for _, kinds := range v.errorKinds() {
			direct.add(v.icmp(v.only()).between(first, kinds[0], kinds[1]).jump("quotes" + v.suffix))
		}
	}
	for _, v := range versions {
		direct.add(v.tuple(v.only(), first).dispatched("holders"+v.suffix, first))
	}
	for _, v := range versions {
		w := v.words()
		r := v.only().payload(unix.NFT_PAYLOAD_NETWORK_HEADER, v.source, v.length, first).
			meta(unix.NFT_META_L4PROTO, first+w).payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 2, first+w+1)
		direct.add(r.in("fronts"+v.suffix, first).untracked()) // answers that come by
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

// icmp loads the type of ICMP messages, and matches no others.
func (v *version) icmp(r *rule) *rule {
	protocol := uint8(unix.IPPROTO_ICMP)
	if v == v6 {
		protocol = unix.IPPROTO_ICMPV6
	}
	return r.protocol(protocol).payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1, first)
}

// errorKinds are the types, from and to, of messages that quote a packet that did not
// arrive.
func (v *version) errorKinds() [][2]byte {
	if v == v6 {
		return [][2]byte{{1, 4}} // destination unreachable to parameter problem
	}
	return [][2]byte{{3, 3}, {11, 12}} // destination unreachable, time exceeded and parameter problem
}

// quotes takes ICMP errors about what members have sent to the member of the flow,
// also when its client only reads any more.
func (v *version) quotes() *chain {
	c := &chain{name: "quotes" + v.suffix}
	for _, set := range []string{"flows", "closing"} {
		c.add(v.quoted(v.only(), set+v.suffix))
		c.add(newRule().alive().untracked().accept())
	}
	return c
}

// quoted gives ICMP errors the mark of the member of the flow that they quote, if they
// come to the address that has sent the packet: whoever reports an error about a flow
// can reach nothing else by it.
func (v *version) quoted(r *rule, set string) *rule {
	w, header, next := v.words(), uint32(ip4Len), uint32(9)
	if v == v6 {
		header, next = ip6Len, 6
	}
	at := func(offset, length uint32, to reg) { r.payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, offset, length, to) }
	at(quote+v.destination, v.length, first)
	at(quote+header+2, 2, first+w)
	r.payload(unix.NFT_PAYLOAD_NETWORK_HEADER, v.destination, v.length, first+w+1)
	at(quote+next, 1, first+2*w+1)
	at(quote+header, 2, first+2*w+2)
	return r.mapped(set, first, first).setMark(first)
}

// redirect keeps this machine from telling clients on the members' link to send
// packets there by themselves.
func (v *version) redirect(r *rule) *rule {
	kind, destination := byte(5), quote+v.destination
	if v == v6 {
		const behindTarget = quote + 16
		kind, destination = 137, behindTarget
	}
	return v.icmp(r).equal(first, []byte{kind}).payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, destination, v.length, first).in("vips"+v.suffix, first).drop()
}
