package nftables

import (
	"golang.org/x/sys/unix"
)

// rule is a rule in the making: the expressions that the kernel runs one after
// the other until one does not match.
type rule struct{ buffer }

// reg is a register of 32 bits; longer values take several.
type reg uint32

// The registers that rules begin a key, and a second key, in.
const (
	first  reg = unix.NFT_REG32_00
	second reg = unix.NFT_REG32_00 + 8
)

const verdictReg = unix.NFT_REG_VERDICT

func newRule() *rule { return &rule{} }

// expr adds an expression.
func (r *rule) expr(name string, fill func()) *rule {
	r.nest(unix.NFTA_LIST_ELEM, func() {
		r.text(unix.NFTA_EXPR_NAME, name)
		if fill != nil {
			r.nest(unix.NFTA_EXPR_DATA, fill)
		}
	})
	return r
}

func (r *rule) meta(key uint32, to reg) *rule {
	return r.expr("meta", func() {
		r.u32(unix.NFTA_META_KEY, key)
		r.u32(unix.NFTA_META_DREG, uint32(to))
	})
}

func (r *rule) payload(base, offset, length uint32, to reg) *rule {
	return r.expr("payload", func() {
		r.u32(unix.NFTA_PAYLOAD_DREG, uint32(to))
		r.u32(unix.NFTA_PAYLOAD_BASE, base)
		r.u32(unix.NFTA_PAYLOAD_OFFSET, offset)
		r.u32(unix.NFTA_PAYLOAD_LEN, length)
	})
}

func (r *rule) compare(op uint32, from reg, v []byte) *rule {
	return r.expr("cmp", func() {
		r.u32(unix.NFTA_CMP_SREG, uint32(from))
		r.u32(unix.NFTA_CMP_OP, op)
		r.nest(unix.NFTA_CMP_DATA, func() { r.bytes(unix.NFTA_DATA_VALUE, v) })
	})
}

func (r *rule) equal(from reg, v []byte) *rule { return r.compare(unix.NFT_CMP_EQ, from, v) }

// between matches a byte from one to another.
func (r *rule) between(at reg, from, to byte) *rule {
	if from == to {
		return r.equal(at, []byte{from})
	}
	return r.compare(unix.NFT_CMP_GTE, at, []byte{from}).compare(unix.NFT_CMP_LTE, at, []byte{to})
}

// masked leaves the bits of mask.
func (r *rule) masked(at reg, mask []byte) *rule {
	return r.expr("bitwise", func() {
		r.u32(unix.NFTA_BITWISE_SREG, uint32(at))
		r.u32(unix.NFTA_BITWISE_DREG, uint32(at))
		r.u32(unix.NFTA_BITWISE_LEN, uint32(len(mask)))
		r.nest(unix.NFTA_BITWISE_MASK, func() { r.bytes(unix.NFTA_DATA_VALUE, mask) })
		r.nest(unix.NFTA_BITWISE_XOR, func() { r.bytes(unix.NFTA_DATA_VALUE, make([]byte, len(mask))) })
	})
}

// bigEndian turns a value of the host's byte order round, since only so ranges
// are in order.
func (r *rule) bigEndian(at reg) *rule {
	const hton = 1
	return r.expr("byteorder", func() {
		r.u32(unix.NFTA_BYTEORDER_SREG, uint32(at))
		r.u32(unix.NFTA_BYTEORDER_DREG, uint32(at))
		r.u32(unix.NFTA_BYTEORDER_OP, hton)
		r.u32(unix.NFTA_BYTEORDER_LEN, 4)
		r.u32(unix.NFTA_BYTEORDER_SIZE, 4)
	})
}

func (r *rule) ct(key uint32, to reg) *rule {
	return r.expr("ct", func() {
		r.u32(unix.NFTA_CT_KEY, key)
		r.u32(unix.NFTA_CT_DREG, uint32(to))
	})
}

// ctOf loads what one direction of the connection has.
func (r *rule) ctOf(direction uint8, key uint32, to reg) *rule {
	return r.expr("ct", func() {
		r.u32(unix.NFTA_CT_KEY, key)
		r.u32(unix.NFTA_CT_DREG, uint32(to))
		r.u8(unix.NFTA_CT_DIRECTION, direction)
	})
}

// setCtMark sets the connection's mark from a register.
func (r *rule) setCtMark(from reg) *rule {
	return r.expr("ct", func() {
		r.u32(unix.NFTA_CT_KEY, unix.NFT_CT_MARK)
		r.u32(unix.NFTA_CT_SREG, uint32(from))
	})
}

// in matches if the key is in the set.
func (r *rule) in(set string, key reg) *rule {
	return r.expr("lookup", func() {
		r.text(unix.NFTA_LOOKUP_SET, set)
		r.u32(unix.NFTA_LOOKUP_SREG, uint32(key))
	})
}

// mapped loads what the map has for the key, and does not match without.
func (r *rule) mapped(set string, key, to reg) *rule {
	return r.expr("lookup", func() {
		r.text(unix.NFTA_LOOKUP_SET, set)
		r.u32(unix.NFTA_LOOKUP_SREG, uint32(key))
		r.u32(unix.NFTA_LOOKUP_DREG, uint32(to))
	})
}

// dispatched goes where the verdict map says.
func (r *rule) dispatched(set string, key reg) *rule { return r.mapped(set, key, verdictReg) }

// update makes or refreshes an element of a dynamic set, whose own expressions
// (a counter) run then.
func (r *rule) update(set string, key reg) *rule {
	return r.expr("dynset", func() {
		r.text(unix.NFTA_DYNSET_SET_NAME, set)
		r.u32(unix.NFTA_DYNSET_OP, unix.NFT_DYNSET_OP_UPDATE)
		r.u32(unix.NFTA_DYNSET_SREG_KEY, uint32(key))
	})
}

// remember makes or refreshes an element of a dynamic map.
func (r *rule) remember(set string, key, value reg, milliseconds uint64) *rule {
	return r.expr("dynset", func() {
		r.text(unix.NFTA_DYNSET_SET_NAME, set)
		r.u32(unix.NFTA_DYNSET_OP, unix.NFT_DYNSET_OP_UPDATE)
		r.u32(unix.NFTA_DYNSET_SREG_KEY, uint32(key))
		r.u32(unix.NFTA_DYNSET_SREG_DATA, uint32(value))
		r.u64(unix.NFTA_DYNSET_TIMEOUT, milliseconds)
	})
}

// over matches if more connections than the limit have this key.
func (r *rule) over(set string, key reg, limit uint32) *rule {
	const (
		connlimitCount = 1
		connlimitFlags = 2
		connlimitOver  = 1
	)
	return r.expr("dynset", func() {
		r.text(unix.NFTA_DYNSET_SET_NAME, set)
		r.u32(unix.NFTA_DYNSET_OP, unix.NFT_DYNSET_OP_ADD)
		r.u32(unix.NFTA_DYNSET_SREG_KEY, uint32(key))
		r.nest(unix.NFTA_DYNSET_EXPR, func() {
			r.text(unix.NFTA_EXPR_NAME, "connlimit")
			r.nest(unix.NFTA_EXPR_DATA, func() {
				r.u32(connlimitCount, limit)
				r.u32(connlimitFlags, connlimitOver)
			})
		})
	})
}

// turn loads the next number below n, in turn or at random.
func (r *rule) turn(kind, n uint32, to reg) *rule {
	return r.expr("numgen", func() {
		r.u32(unix.NFTA_NG_DREG, uint32(to))
		r.u32(unix.NFTA_NG_MODULUS, n)
		r.u32(unix.NFTA_NG_TYPE, kind)
	})
}

// hash loads a number below n that depends on the bytes from a register on.
func (r *rule) hash(from reg, length, n, seed uint32, to reg) *rule {
	return r.expr("hash", func() {
		r.u32(unix.NFTA_HASH_SREG, uint32(from))
		r.u32(unix.NFTA_HASH_DREG, uint32(to))
		r.u32(unix.NFTA_HASH_LEN, length)
		r.u32(unix.NFTA_HASH_MODULUS, n)
		r.u32(unix.NFTA_HASH_SEED, seed)
		r.u32(unix.NFTA_HASH_TYPE, unix.NFT_HASH_JENKINS)
	})
}

func (r *rule) dnat(proto uint32, addr, port reg) *rule {
	const portGiven = 2
	return r.expr("nat", func() {
		r.u32(unix.NFTA_NAT_TYPE, unix.NFT_NAT_DNAT)
		r.u32(unix.NFTA_NAT_FAMILY, proto)
		r.u32(unix.NFTA_NAT_REG_ADDR_MIN, uint32(addr))
		r.u32(unix.NFTA_NAT_REG_PROTO_MIN, uint32(port))
		r.u32(unix.NFTA_NAT_FLAGS, portGiven)
	})
}

func (r *rule) snat(proto uint32, addr reg) *rule {
	return r.expr("nat", func() {
		r.u32(unix.NFTA_NAT_TYPE, unix.NFT_NAT_SNAT)
		r.u32(unix.NFTA_NAT_FAMILY, proto)
		r.u32(unix.NFTA_NAT_REG_ADDR_MIN, uint32(addr))
	})
}

func (r *rule) masquerade() *rule { return r.expr("masq", func() {}) }

// idleAfter gives the connection the timeouts of an object.
func (r *rule) idleAfter(object string) *rule {
	return r.expr("objref", func() {
		r.u32(unix.NFTA_OBJREF_IMM_TYPE, unix.NFT_OBJECT_CT_TIMEOUT)
		r.text(unix.NFTA_OBJREF_IMM_NAME, object)
	})
}

func (r *rule) untracked() *rule { return r.expr("notrack", nil) }

func (r *rule) reset() *rule {
	return r.expr("reject", func() {
		r.u32(unix.NFTA_REJECT_TYPE, unix.NFT_REJECT_TCP_RST)
		r.u8(unix.NFTA_REJECT_ICMP_CODE, 0)
	})
}

// unreachable answers "port unreachable" in ICMP or ICMPv6.
func (r *rule) unreachable() *rule {
	return r.expr("reject", func() {
		r.u32(unix.NFTA_REJECT_TYPE, unix.NFT_REJECT_ICMPX_UNREACH)
		r.u8(unix.NFTA_REJECT_ICMP_CODE, unix.NFT_REJECT_ICMPX_PORT_UNREACH)
	})
}

func (r *rule) verdict(code int32, chain string) *rule {
	return r.expr("immediate", func() {
		r.u32(unix.NFTA_IMMEDIATE_DREG, verdictReg)
		r.nest(unix.NFTA_IMMEDIATE_DATA, func() { r.verdictData(code, chain) })
	})
}

func (w *buffer) verdictData(code int32, chain string) {
	w.nest(unix.NFTA_DATA_VERDICT, func() {
		w.u32(unix.NFTA_VERDICT_CODE, uint32(code))
		if chain != "" {
			w.text(unix.NFTA_VERDICT_CHAIN, chain)
		}
	})
}

const (
	verdictDrop   = 0
	verdictAccept = 1
)

func (r *rule) goTo(chain string) *rule { return r.verdict(unix.NFT_GOTO, chain) }
func (r *rule) jump(chain string) *rule { return r.verdict(unix.NFT_JUMP, chain) }
func (r *rule) leave() *rule            { return r.verdict(unix.NFT_RETURN, "") }
func (r *rule) accept() *rule           { return r.verdict(verdictAccept, "") }
func (r *rule) drop() *rule             { return r.verdict(verdictDrop, "") }
