package nftables

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// version is what differs between the address families.
type version struct {
	family lb.Family
	suffix string // of the names of sets and chains
	proto  uint32 // NFPROTO_
	af     uint8
	length uint32 // of an address
	// source and destination are the offsets of addresses in the header.
	source, destination uint32
	kind                uint32 // nft's number of the type of addresses
	ctSource, ctDest    uint32 // what loads them from a connection
}

var (
	v4 = &version{
		family: lb.IPv4, suffix: "4", proto: unix.NFPROTO_IPV4, af: unix.AF_INET, length: 4, source: 12, destination: 16,
		kind: 7, ctSource: unix.NFT_CT_SRC_IP, ctDest: unix.NFT_CT_DST_IP,
	}
	v6 = &version{
		family: lb.IPv6, suffix: "6", proto: unix.NFPROTO_IPV6, af: unix.AF_INET6, length: 16, source: 8, destination: 24,
		kind: 8, ctSource: unix.NFT_CT_SRC_IP6, ctDest: unix.NFT_CT_DST_IP6,
	}
	versions = []*version{v4, v6}
)

func versionOf(a netip.Addr) *version {
	if a.Is4() {
		return v4
	}
	return v6
}

// protocols are what the engine carries.
var protocols = []struct {
	name   lb.Protocol
	number uint8
}{{lb.TCP, unix.IPPROTO_TCP}, {lb.UDP, unix.IPPROTO_UDP}}

func protocolNumber(p lb.Protocol) uint8 {
	if p == lb.UDP {
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_TCP
}

func protocolOf(number uint8) lb.Protocol {
	if number == unix.IPPROTO_UDP {
		return lb.UDP
	}
	return lb.TCP
}

// A mark is a number on connections (ct mark) and in maps: its first byte says of
// what, the others of which.
type mark uint32

// The kinds of marks.
const (
	ofRoute mark = 0xec000000
	ofPool  mark = 0xed000000
	ofOwner mark = 0xee000000
	// ofGateway is on packets, and in maps, of members that they are routed to.
	ofGateway mark = 0xef000000

	kindMask mark = 0xff000000
	maxID    mark = 0x00ffffff
)

func (m mark) kind() mark { return m & kindMask }

// host returns the mark as connections and plain maps have it.
func (m mark) host() []byte { return binary.NativeEndian.AppendUint32(nil, uint32(m)) }

func hostMark(b []byte) mark {
	if len(b) < 4 {
		return 0
	}
	return mark(binary.NativeEndian.Uint32(b))
}

// tupleKey is the key of a frontend.
func tupleKey(f lb.Frontend) []byte {
	k := append(make([]byte, 0, 24), f.Addr.AsSlice()...)
	k = append(k, protocolNumber(f.Protocol), 0, 0, 0)
	k = binary.BigEndian.AppendUint16(k, f.Port)
	return append(k, 0, 0)
}

// tuple is the frontend of a key.
func tuple(k []byte) (lb.Frontend, bool) {
	if len(k) < 12 {
		return lb.Frontend{}, false
	}
	a, ok := netip.AddrFromSlice(k[:len(k)-8])
	rest := k[len(k)-8:]
	return lb.Frontend{Addr: a, Protocol: protocolOf(rest[0]), Port: binary.BigEndian.Uint16(rest[4:])}, ok
}

// markAddr is the key of a connection's mark and an address.
func markAddr(m mark, a netip.Addr) []byte { return append(m.host(), a.AsSlice()...) }

func fromMarkAddr(k []byte) (mark, netip.Addr, bool) {
	if len(k) < 8 {
		return 0, netip.Addr{}, false
	}
	a, ok := netip.AddrFromSlice(k[4:])
	return hostMark(k), a, ok
}

// seconds rounds a timeout up to what the kernel counts in.
func seconds(d time.Duration) int {
	return max(int((d+time.Second-1)/time.Second), 1)
}
