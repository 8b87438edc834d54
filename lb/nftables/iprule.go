package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The priorities of the engine's ip rules. Nobody fits between them or before: all
// rules of others come after them, in the order that they have.
const (
	// skipPriority lets packets that are routed to no member go on at localPriority.
	skipPriority = 1
	// memberPriority is that of one rule for each member.
	memberPriority = 2
	// lostPriority drops packets for members to which there is no way at present, so
	// that they do not get to programs of this machine.
	lostPriority = 3
	// localPriority is that of the rule for this machine's own addresses, which the
	// kernel has at 0.
	localPriority = 4
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

// moved tells whether it is the same in the engine's place.
func (r *ipRule) moved() bool {
	return r.priority == localPriority && r.local() && r.everything() && r.protocol == steeringProtocol
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

// ofKind tells whether it is a rule for packets to members, or for all others.
func (r *ipRule) ofKind(priority uint32, action uint8, invert bool) bool {
	return r.priority == priority && r.action == action && r.invert == invert && r.mark == uint32(ofGateway) && r.mask == uint32(kindMask) &&
		r.from == "all" && len(r.selectors) == 0
}

func (r *ipRule) skips() bool { return r.ofKind(skipPriority, nl.FR_ACT_GOTO, true) }
func (r *ipRule) loses() bool { return r.ofKind(lostPriority, nl.FR_ACT_BLACKHOLE, false) }

// ipRules are the rules of a family.
type ipRules struct {
	first, moved, skips, loses bool
	members                    map[mark]bool
	others                     []ipRule
}

// own tells whether any of the engine's are there.
func (p *ipRules) own() bool { return p.moved || p.skips || p.loses || len(p.members) > 0 }

// complete tells whether packets with these marks go where they should.
func (p *ipRules) complete(gateways []gateway) bool {
	for _, g := range gateways {
		if !p.members[g.mark] {
			return false
		}
	}
	return len(gateways) == 0 || !p.first && p.moved && p.skips && p.loses
}

// deaf tells whether nothing leads to this machine's own addresses.
func (p *ipRules) deaf() bool { return !p.first && !p.moved && !p.othersLocal(false) }

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
	for i := range p.others {
		if r := &p.others[i]; r.priority <= localPriority {
			return fmt.Sprintf("the ip rule %q comes before those of the engine, which take the priorities 1 to %d; give it a larger one, or leave nftables.direct off", r, localPriority)
		}
	}
	for i := range p.others {
		if r := &p.others[i]; r.local() && (r.everything() || !p.first && !p.moved) {
			return fmt.Sprintf("the ip rule %q is for this machine's own addresses, so that another program has moved the one of the kernel already, as Cilium does and as VRFs need it; the engine cannot move it as well: use another edge, or leave nftables.direct off", r)
		}
	}
	return ""
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
			p.first = true
		case r.moved():
			p.moved = true
		case r.skips():
			p.skips = true
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

// localRule is the one for this machine's own addresses, in its new place.
func localRule(v *version) *netlink.Rule {
	r := newRoutingRule(v, localPriority)
	r.Table = unix.RT_TABLE_LOCAL
	return r
}

// firstRule is the same in the place that the kernel gives it.
func firstRule(v *version) *netlink.Rule {
	r := newRoutingRule(v, 0)
	r.Table = unix.RT_TABLE_LOCAL
	return r
}

// skipRule spares other packets the rules of the members.
func skipRule(v *version) *netlink.Rule {
	r := newRoutingRule(v, skipPriority)
	mask := uint32(kindMask)
	r.Mark, r.Mask, r.Invert, r.Goto = uint32(ofGateway), &mask, true, localPriority
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
