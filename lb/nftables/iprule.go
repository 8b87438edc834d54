package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The engine's ip rules. Whoever adds a rule without a priority gets the one before
// the second rule of all, so of the engine's only the first may come before the rules
// of others for all packets: that for this machine's own addresses, which spares those
// for members what the kernel's takes. These meet the jump next, which comes before
// the first rule of others, wherever that is, and is nothing to anybody else.
const (
	// memberPriority is that of one rule for each member, behind all rules of others.
	memberPriority = 40000
	// lostPriority drops packets for members to which there is no way at present, so
	// that they do not get to programs of this machine.
	lostPriority = 40001
	// mainPriority is that of the rule for the main table.
	mainPriority = 32766
	// leastRoom is how many priorities there must be before the first rule of others,
	// or the jump takes the very first, before which nothing can be put.
	leastRoom = 16
)

// ipRule is one of the kernel's routing rules, of anybody.
type ipRule struct {
	priority, table, mark, mask, target uint32
	action, protocol                    uint8
	invert                              bool
	selectors                           []string // but for the mark, as the program ip has them
	from                                string
}

// String returns the rule much as the program ip shows it.
func (r *ipRule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d: ", r.priority)
	if r.invert {
		b.WriteString("not ")
	}
	b.WriteString("from " + r.from)
	for _, s := range r.selectors {
		b.WriteString(" " + s)
	}
	if r.mask != 0 {
		fmt.Fprintf(&b, " fwmark %#x/%#x", r.mark, r.mask)
	}
	switch {
	case r.action == nl.FR_ACT_GOTO:
		fmt.Fprintf(&b, " goto %d", r.target)
	case r.action == nl.FR_ACT_BLACKHOLE:
		b.WriteString(" blackhole")
	case r.table == unix.RT_TABLE_LOCAL:
		b.WriteString(" lookup local")
	case r.table == unix.RT_TABLE_MAIN:
		b.WriteString(" lookup main")
	case r.action == nl.FR_ACT_TO_TBL:
		fmt.Fprintf(&b, " lookup %d", r.table)
	}
	return b.String()
}

// everything tells whether the rule is for all packets.
func (r *ipRule) everything() bool {
	return !r.invert && r.from == "all" && len(r.selectors) == 0 && r.mask == 0
}

// local tells whether it leads to this machine's own addresses.
func (r *ipRule) local() bool {
	return r.action == nl.FR_ACT_TO_TBL && r.table == unix.RT_TABLE_LOCAL
}

// first tells whether it is the one that the kernel begins with.
func (r *ipRule) first() bool { return r.priority == 0 && r.local() && r.everything() }

// spares tells whether it is the engine's in place of the first.
func (r *ipRule) spares() bool {
	return r.priority == 0 && r.local() && r.invert && r.ofMembers()
}

// ofMembers tells whether it is for packets to members, or for all others.
func (r *ipRule) ofMembers() bool {
	return r.mark == uint32(ofGateway) && r.mask == uint32(kindMask) && r.from == "all" && len(r.selectors) == 0
}

// member returns the mark of the member that it is for; 0 if it is another.
func (r *ipRule) member() mark {
	m := mark(r.mark)
	if r.priority != memberPriority || r.action != nl.FR_ACT_TO_TBL || r.mask != ^uint32(0) || r.invert || r.from != "all" || len(r.selectors) > 0 ||
		m.kind() != ofGateway || r.table != uint32(tableOf(m)) {
		return 0
	}
	return m
}

// jumps tells whether it leads packets to members to their rules.
func (r *ipRule) jumps() bool {
	return r.action == nl.FR_ACT_GOTO && r.target == memberPriority && !r.invert && r.ofMembers()
}

func (r *ipRule) loses() bool {
	return r.priority == lostPriority && r.action == nl.FR_ACT_BLACKHOLE && !r.invert && r.ofMembers()
}

// ipRules are the rules of a family.
type ipRules struct {
	first         []uint8 // the protocol of each that is the kernel's, or as that
	spares, loses bool
	jumps         []uint32 // their priorities
	members       map[mark]bool
	others        []ipRule
	ahead         int // of others, how many come before the first jump
}

// own tells whether any of the engine's are there.
func (p *ipRules) own() bool { return p.spares || p.loses || len(p.jumps)+len(p.members) > 0 }

// place returns the priority that the jump is to have.
func (p *ipRules) place() uint32 {
	least := uint32(mainPriority)
	if len(p.others) > 0 {
		least = min(least, p.others[0].priority)
	}
	if least <= leastRoom {
		return 0
	}
	return least - 1
}

// complete tells whether packets with these marks go where they should.
func (p *ipRules) complete(gateways []gateway) bool {
	for _, g := range gateways {
		if !p.members[g.mark] {
			return false
		}
	}
	return len(gateways) == 0 || len(p.first) == 0 && (p.spares || p.othersLocal(true)) && p.loses && slices.Equal(p.jumps, []uint32{p.place()})
}

// deaf tells whether nothing leads to this machine's own addresses.
func (p *ipRules) deaf() bool { return len(p.first) == 0 && !p.spares && !p.othersLocal(false) }

// othersLocal tells whether rules of others lead to this machine's own addresses, or
// such that do so for all packets.
func (p *ipRules) othersLocal(forAll bool) bool {
	for i := range p.others {
		if p.others[i].local() && (!forAll || p.others[i].everything()) {
			return true
		}
	}
	return false
}

// obstacle says why the engine's rules cannot be among those of others; it is empty
// if they can.
func (p *ipRules) obstacle() string {
	jumpsFirst := len(p.jumps) > 0 && p.ahead == 0
	for i := range p.others {
		switch r := &p.others[i]; {
		case r.priority == 0 && !jumpsFirst:
			return fmt.Sprintf("the ip rule %q comes before that of the engine for packets to nodes; give it a priority, or leave nftables.direct off", r)
		case r.priority == memberPriority || r.priority == lostPriority:
			return fmt.Sprintf("the ip rule %q is among those of the engine for packets to nodes, which have the priorities %d and %d; give it another, or leave nftables.direct off", r, memberPriority, lostPriority)
		case r.local() && (r.everything() || len(p.first) == 0 && !p.spares):
			return fmt.Sprintf("the ip rule %q is for this machine's own addresses, so that another program has moved the one of the kernel already, as Cilium does and as VRFs need it; the engine cannot take its place as well: use another edge, or leave nftables.direct off", r)
		}
	}
	return ""
}

// stays tells whether the engine's rule for this machine's addresses has to stay: a
// rule of somebody else has the same priority, and would come before the kernel's.
func (p *ipRules) stays() bool { return len(p.others) > 0 && p.others[0].priority == 0 }

// without returns the rules of members that are not kept, and all of the engine's if
// no member of the family is.
func (p *ipRules) without(v *version, kept map[mark]bool, some bool) []*netlink.Rule {
	var all []*netlink.Rule
	if !some {
		for _, priority := range p.jumps {
			all = append(all, jumpRule(v, priority))
		}
	}
	for _, m := range slices.Sorted(maps.Keys(p.members)) {
		if !kept[m] {
			all = append(all, memberRule(v, m))
		}
	}
	if p.loses && !some {
		all = append(all, lostRule(v))
	}
	if p.spares && !some && !p.stays() {
		all = append(all, sparingRule(v))
	}
	return all
}

// rules reads the rules of a family.
func (s *steering) rules(v *version) (ipRules, error) {
	const attempts = 20
	var all []ipRule
	var err error
	for range attempts {
		if all, err = s.dumpRules(v); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return ipRules{}, fmt.Errorf("list ip rules: %w", err)
	}
	p := ipRules{members: make(map[mark]bool)}
	for _, r := range all {
		switch m := r.member(); {
		case m != 0:
			p.members[m] = true
		case r.first():
			p.first = append(p.first, r.protocol)
		case r.spares():
			p.spares = true
		case r.jumps():
			if len(p.jumps) == 0 {
				p.ahead = len(p.others)
			}
			p.jumps = append(p.jumps, r.priority)
		case r.loses():
			p.loses = true
		default:
			p.others = append(p.others, r)
		}
	}
	return p, nil
}

// dumpRules is what the library does without actions.
func (s *steering) dumpRules(v *version) ([]ipRule, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETRULE, unix.NLM_F_DUMP)
	req.Sockets = s.sockets
	req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: v.af}})
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWRULE)
	all := make([]ipRule, 0, len(msgs))
	for _, m := range msgs {
		if r, ok := readRule(m); ok {
			all = append(all, r)
		}
	}
	return all, err
}

func readRule(b []byte) (ipRule, bool) {
	const fromLen, toLen, tos, table, action, invertFlag = 2, 1, 3, 4, 7, 2
	if len(b) < unix.SizeofRtMsg {
		return ipRule{}, false
	}
	native := binary.NativeEndian
	r := ipRule{table: uint32(b[table]), action: b[action], invert: native.Uint32(b[8:])&invertFlag != 0, from: "all"}
	selects := func(format string, args ...any) { r.selectors = append(r.selectors, fmt.Sprintf(format, args...)) }
	if b[tos] != 0 {
		selects("tos %#x", b[tos])
	}
	attributes(b[unix.SizeofRtMsg:], func(kind uint16, v []byte) {
		number := uint32(0)
		if len(v) >= 4 {
			number = native.Uint32(v)
		}
		switch kind {
		case nl.FRA_PRIORITY:
			r.priority = number
		case nl.FRA_TABLE:
			r.table = number
		case nl.FRA_FWMARK:
			r.mark = number
		case nl.FRA_FWMASK:
			r.mask = number
		case nl.FRA_GOTO:
			r.target = number
		case nl.FRA_PROTOCOL:
			r.protocol = v[0]
		case nl.FRA_SRC:
			r.from = prefix(v, b[fromLen])
		case nl.FRA_DST:
			selects("to %s", prefix(v, b[toLen]))
		case nl.FRA_IIFNAME:
			selects("iif %s", text(v))
		case nl.FRA_OIFNAME:
			selects("oif %s", text(v))
		case nl.FRA_SUPPRESS_PREFIXLEN, nl.FRA_SUPPRESS_IFGROUP:
			if number != ^uint32(0) {
				selects("suppress %d", number)
			}
		case nl.FRA_L3MDEV:
			if v[0] != 0 {
				selects("l3mdev")
			}
		case nl.FRA_TUN_ID, nl.FRA_IP_PROTO, nl.FRA_SPORT_RANGE, nl.FRA_DPORT_RANGE, nl.FRA_UID_RANGE:
			selects("%s %x", ruleAttributes[kind], v)
		}
	})
	return r, true
}

// ruleAttributes names those of which the values are seldom of interest.
var ruleAttributes = map[uint16]string{
	nl.FRA_TUN_ID: "tun_id", nl.FRA_IP_PROTO: "ipproto", nl.FRA_SPORT_RANGE: "sport", nl.FRA_DPORT_RANGE: "dport", nl.FRA_UID_RANGE: "uidrange",
}

func prefix(b []byte, bits byte) string {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return "?"
	}
	return netip.PrefixFrom(a, int(bits)).String()
}

// newRoutingRule returns a rule as the library wants it.
func newRoutingRule(v *version, priority int) *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Priority, r.Protocol = int(v.af), priority, steeringProtocol
	return r
}

// firstRule is the one for this machine's own addresses, as the kernel has it.
func firstRule(v *version) *netlink.Rule {
	r := newRoutingRule(v, 0)
	r.Table = unix.RT_TABLE_LOCAL
	return r
}

// sparingRule is the same for all packets but those for members.
func sparingRule(v *version) *netlink.Rule {
	r := firstRule(v)
	mask := uint32(kindMask)
	r.Mark, r.Mask, r.Invert = uint32(ofGateway), &mask, true
	return r
}

// jumpRule leads packets for members past the rules of others.
func jumpRule(v *version, priority uint32) *netlink.Rule {
	r := newRoutingRule(v, int(priority))
	mask := uint32(kindMask)
	r.Mark, r.Mask, r.Goto = uint32(ofGateway), &mask, memberPriority
	return r
}

// lostRule drops what no rule of a member has taken.
func lostRule(v *version) *netlink.Rule {
	r := newRoutingRule(v, lostPriority)
	mask := uint32(kindMask)
	r.Mark, r.Mask, r.Type = uint32(ofGateway), &mask, nl.FR_ACT_BLACKHOLE
	return r
}

// memberRule leads packets to a member to its table.
func memberRule(v *version, m mark) *netlink.Rule {
	r := newRoutingRule(v, memberPriority)
	mask := ^uint32(0)
	r.Mark, r.Mask, r.Table = uint32(m), &mask, tableOf(m)
	return r
}
