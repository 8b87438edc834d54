package nftables

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// chain is a chain with its rules.
type chain struct {
	name string
	hook *hook // of a base chain
	// rules are the expressions of each, as the kernel takes them.
	rules [][]byte
}

// hook is where the kernel enters a base chain.
type hook struct {
	kind     string
	number   uint32
	priority int32
}

// The priorities of hooks, as nft names them.
const (
	priorityRaw    = -300
	priorityMangle = -150
	priorityDstNAT = -100
	prioritySrcNAT = 100
	afterDstNAT    = priorityDstNAT + 10

	hookPrerouting  = 0
	hookOutput      = 3
	hookPostrouting = 4

	ofNAT    = "nat"
	ofFilter = "filter"

	// bypassMark is on the engine's own packets. It is of no kind: others may copy a
	// connection's mark to its packets.
	bypassMark = 0xeb0000ff
	// hashSeed is the same everywhere, so that a client that comes through another
	// edge gets the same member.
	hashSeed = 0xec105a
)

func (c *chain) add(r *rule) { c.rules = append(c.rules, r.b) }

func (c *chain) equal(d *chain) bool {
	return c.name == d.name && slices.EqualFunc(c.rules, d.rules, func(a, b []byte) bool { return string(a) == string(b) })
}

func (w *batch) addChain(c *chain) {
	w.message(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, fmt.Sprintf("add chain %q", c.name), func() {
		w.text(unix.NFTA_CHAIN_TABLE, TableName)
		w.text(unix.NFTA_CHAIN_NAME, c.name)
		if c.hook == nil {
			return
		}
		w.nest(unix.NFTA_CHAIN_HOOK, func() {
			w.u32(unix.NFTA_HOOK_HOOKNUM, c.hook.number)
			w.u32(unix.NFTA_HOOK_PRIORITY, uint32(c.hook.priority))
		})
		w.u32(unix.NFTA_CHAIN_POLICY, verdictAccept)
		w.text(unix.NFTA_CHAIN_TYPE, c.hook.kind)
	})
}

func (w *batch) flushChain(name string) {
	w.message(unix.NFT_MSG_DELRULE, 0, fmt.Sprintf("flush chain %q", name), func() {
		w.text(unix.NFTA_RULE_TABLE, TableName)
		w.text(unix.NFTA_RULE_CHAIN, name)
	})
}

func (w *batch) deleteChain(name string) {
	w.message(unix.NFT_MSG_DELCHAIN, 0, fmt.Sprintf("delete chain %q", name), func() {
		w.text(unix.NFTA_CHAIN_TABLE, TableName)
		w.text(unix.NFTA_CHAIN_NAME, name)
	})
}

func (w *batch) addRules(c *chain) {
	for i, r := range c.rules {
		w.message(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, fmt.Sprintf("add rule %d of chain %q", i+1, c.name), func() {
			w.text(unix.NFTA_RULE_TABLE, TableName)
			w.text(unix.NFTA_RULE_CHAIN, c.name)
			at := w.open(unix.NFTA_RULE_EXPRESSIONS | nested)
			w.b = append(w.b, r...)
			w.close(at)
		})
	}
}

// timeouts is an object with the timeouts of connections of one protocol.
type timeouts struct {
	version  *version
	protocol uint8
	seconds  int // until an idle connection ends
}

func (t timeouts) name() string {
	return fmt.Sprintf("%s%s_%ds", protocolOf(t.protocol), t.version.suffix, t.seconds)
}

// chain is the name of the chain that gives them to a connection.
func (t timeouts) chain() string { return "idle_" + t.name() }

func (w *batch) addTimeouts(t timeouts) { w.timeouts(t, t.states()) }

func (w *batch) timeouts(t timeouts, states []int) {
	w.message(unix.NFT_MSG_NEWOBJ, unix.NLM_F_CREATE, fmt.Sprintf("add timeouts %q", t.name()), func() {
		w.text(unix.NFTA_OBJ_TABLE, TableName)
		w.text(unix.NFTA_OBJ_NAME, t.name())
		w.u32(unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_CT_TIMEOUT)
		w.nest(unix.NFTA_OBJ_DATA, func() {
			w.u16(timeoutsVersion, uint16(t.version.proto))
			w.u8(timeoutsProtocol, t.protocol)
			w.nest(timeoutsValues, func() {
				for i, s := range states {
					w.u32(uint16(i+1), uint32(s))
				}
			})
		})
	})
}

// The attributes of such an object.
const (
	timeoutsVersion  = 1
	timeoutsProtocol = 2
	timeoutsValues   = 3
)

// are tells whether the object that the kernel has is like this one. An engine of
// another version may have made it.
func (t timeouts) are(object []byte) bool {
	values := attribute(object, timeoutsValues)
	for i, s := range t.states() {
		if be32(attribute(values, uint16(i+1))) != uint32(s) {
			return false
		}
	}
	return true
}

func (w *batch) deleteTimeouts(name string) {
	w.message(unix.NFT_MSG_DELOBJ, 0, fmt.Sprintf("delete timeouts %q", name), func() {
		w.text(unix.NFTA_OBJ_TABLE, TableName)
		w.text(unix.NFTA_OBJ_NAME, name)
		w.u32(unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_CT_TIMEOUT)
	})
}

// states are the timeouts of the states that conntrack knows, in its order.
func (t timeouts) states() []int {
	if t.protocol == unix.IPPROTO_UDP {
		return []int{t.seconds, t.seconds} // unreplied, replied
	}
	// A connection that one side has ended may go on in the other direction as long
	// as it is not idle.
	half := min(t.seconds, 3600)
	const (
		synSent, synReceived                = 30, 60
		lastAck, timeWait, closed, synSent2 = 30, 120, 10, 60
		retransmitted, unacknowledged       = 300, 300
	)
	return []int{synSent, synReceived, t.seconds, half, half, lastAck, timeWait, closed, synSent2, retransmitted, unacknowledged}
}
