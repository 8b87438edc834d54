package nftables

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// TableName is the name of the engine's table, of the family inet. Everything in
// it is the engine's; it never touches another table.
const TableName = "eclusa"

// nft's numbers of types; those of a concatenation take six bits each.
const (
	typeInteger = 4
	typeProto   = 12
	typePort    = 13
	typeMark    = 19
	typeVerdict = 0xffffff00
)

// What the flags of sets are called.
const (
	setInterval = unix.NFT_SET_INTERVAL
	setMap      = unix.NFT_SET_MAP
	setTimeout  = unix.NFT_SET_TIMEOUT
	setDynamic  = unix.NFT_SET_EVAL
	setConcat   = 0x80
)

// The bounds of what packets fill.
const (
	maxClients  = 1 << 20 // remembered for affinity
	maxCounters = 1 << 20 // pairs of route and member
	maxOwners   = 1 << 16 // with the same connection limit
)

// set is a set or map of the table.
type set struct {
	name              string
	flags             uint32
	keyType, keyLen   uint32
	dataType, dataLen uint32
	parts             []uint32 // lengths in the key; of intervals only
	size              uint32   // of sets that packets fill
	counter           bool     // each element has one
	userData          []byte   // tells nft how to write keys and values
}

// filledByPackets tells that packets fill the set, not the engine.
func (s *set) filledByPackets() bool { return s.flags&setDynamic != 0 }

// concat makes one type of several.
func concat(types ...uint32) uint32 {
	var all uint32
	for _, t := range types {
		all = all<<6 | t
	}
	return all
}

// typeOf is what nft says of a map whose key has a number that numgen or jhash
// makes: "typeof ct mark . numgen inc mod 65536 : ip daddr". Without it nft 1.0
// fails an assertion when it lists the map.
func typeOf(text string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		panic(err) // a constant of this file
	}
	return b
}

var typeOfBuckets = map[*version][]byte{
	v4: typeOf("00040000 00000104 02000000 033a0004 0d000000 01320014 00040c00 0000010c 00040300 00000104 ffffffff 011a0004 17000000 01120004 00000000 01040000 01000204 00000000 04140004 07000000 010c0004 0c000000 01040c00 00000604 00000000"),
	v6: typeOf("00040000 00000104 02000000 033a0004 0d000000 01320014 00040c00 0000010c 00040300 00000104 ffffffff 011a0004 17000000 01120004 00000000 01040000 01000204 00000000 04140004 07000000 010c0004 0d000000 01040900 00000604 00000000"),
}

var typeOfSources = map[*version][]byte{
	v4: typeOf("00040100 00000104 02000000 031a0004 17000000 01120004 01000000 01040000 01000204 00000000 04140004 07000000 010c0004 0c000000 01040b00 00000604 00000000"),
	v6: typeOf("00040100 00000104 02000000 031a0004 17000000 01120004 01000000 01040000 01000204 00000000 04140004 07000000 010c0004 0d000000 01040800 00000604 00000000"),
}

// marks returns a set of marks.
func marks(name string, flags uint32) *set {
	return &set{name: name, flags: flags, keyType: typeMark, keyLen: 4, userData: byteOrders(hostOrder, hostOrder)}
}

const (
	anyOrder  = 0
	hostOrder = 1
)

// byteOrders tells nft how to print keys and values.
func byteOrders(keys, values uint32) []byte {
	const keyOrder, dataOrder = 0, 1
	b := append([]byte{keyOrder, 4}, binary.NativeEndian.AppendUint32(nil, keys)...)
	return append(append(b, dataOrder, 4), binary.NativeEndian.AppendUint32(nil, values)...)
}

// jumps returns a verdict map of marks.
func jumps(name string) *set {
	s := marks(name, setMap)
	s.dataType, s.userData = typeVerdict, byteOrders(hostOrder, anyOrder)
	return s
}

// counted returns a set with a counter for each route that packets have met.
func counted(name string) *set {
	s := marks(name, setDynamic)
	s.size, s.counter = maxCounters, true
	return s
}

// countedSets count what happened to connections of each route.
var countedSets = []string{"accepted", "refused_memberless", "refused_source", "refused_limit"}

// baseSets are the sets that are always there.
func baseSets() []*set {
	pools := marks("pools", setMap)
	pools.dataType, pools.dataLen = typeMark, 4
	owners := marks("owners", setMap)
	owners.dataType, owners.dataLen = typeMark, 4
	all := []*set{
		pools, owners, marks("restricted", 0),
		jumps("pickers"), jumps("idle"), jumps("limits"), jumps("known"), jumps("remember"),
	}
	for _, name := range countedSets {
		all = append(all, counted(name))
	}
	for _, v := range versions {
		tuple := concat(v.kind, typeProto, typePort)
		byMember := concat(typeMark, v.kind)
		counters := func(name string) *set {
			return &set{name: name + v.suffix, flags: setDynamic, keyType: byMember, keyLen: 4 + v.length, size: maxCounters, counter: true}
		}
		all = append(all,
			&set{name: "vips" + v.suffix, keyType: v.kind, keyLen: v.length},
			&set{name: "routes" + v.suffix, flags: setMap, keyType: tuple, keyLen: v.length + 8, dataType: typeMark, dataLen: 4, userData: byteOrders(anyOrder, hostOrder)},
			&set{name: "ports" + v.suffix, flags: setMap, keyType: tuple, keyLen: v.length + 8, dataType: typePort, dataLen: 2},
			&set{name: "buckets" + v.suffix, flags: setMap, keyType: concat(typeMark, typeInteger), keyLen: 8, dataType: v.kind, dataLen: v.length, userData: typeOfBuckets[v]},
			&set{name: "sources" + v.suffix, flags: setMap, keyType: typeInteger, keyLen: 4, dataType: v.kind, dataLen: v.length, userData: typeOfSources[v]},
			&set{name: "answers" + v.suffix, keyType: v.kind, keyLen: v.length},
			&set{name: "ranges" + v.suffix, flags: setInterval | setConcat, keyType: byMember, keyLen: 4 + v.length, parts: []uint32{4, v.length}},
			&set{name: "clients" + v.suffix, flags: setDynamic | setTimeout | setMap, keyType: byMember, keyLen: 4 + v.length, dataType: v.kind, dataLen: v.length, size: maxClients},
			counters("connections"), counters("in"), counters("out"),
		)
	}
	return all
}

// limitSet is the set with the connections of each owner that has this limit.
func limitSet(limit int) *set {
	s := marks(fmt.Sprintf("limit_%d", limit), setDynamic)
	s.size = maxOwners
	return s
}

func (w *batch) addSet(s *set, id uint32) {
	w.message(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, fmt.Sprintf("add set %q", s.name), func() {
		w.text(unix.NFTA_SET_TABLE, TableName)
		w.text(unix.NFTA_SET_NAME, s.name)
		w.u32(unix.NFTA_SET_FLAGS, s.flags)
		w.u32(unix.NFTA_SET_KEY_TYPE, s.keyType)
		w.u32(unix.NFTA_SET_KEY_LEN, s.keyLen)
		if s.flags&setMap != 0 {
			w.u32(unix.NFTA_SET_DATA_TYPE, s.dataType)
			w.u32(unix.NFTA_SET_DATA_LEN, s.dataLen)
		}
		w.u32(unix.NFTA_SET_ID, id)
		if s.size > 0 || s.parts != nil {
			w.nest(unix.NFTA_SET_DESC, func() { w.describe(s) })
		}
		if s.userData != nil {
			w.bytes(unix.NFTA_SET_USERDATA, s.userData)
		}
		if s.counter {
			const setExpr = 0x11
			w.nest(setExpr, func() {
				w.text(unix.NFTA_EXPR_NAME, "counter")
				w.nest(unix.NFTA_EXPR_DATA, func() {})
			})
		}
	})
}

func (w *batch) describe(s *set) {
	const (
		descConcat = 2
		fieldLen   = 1
	)
	if s.size > 0 {
		w.u32(unix.NFTA_SET_DESC_SIZE, s.size)
	}
	if s.parts == nil {
		return
	}
	w.nest(descConcat, func() {
		for _, n := range s.parts {
			w.nest(unix.NFTA_LIST_ELEM, func() { w.u32(fieldLen, n) })
		}
	})
}

func (w *batch) flushSet(name string) {
	w.message(unix.NFT_MSG_DELSETELEM, 0, fmt.Sprintf("flush set %q", name), func() {
		w.text(unix.NFTA_SET_ELEM_LIST_TABLE, TableName)
		w.text(unix.NFTA_SET_ELEM_LIST_SET, name)
	})
}

func (w *batch) deleteSet(name string) {
	w.message(unix.NFT_MSG_DELSET, 0, fmt.Sprintf("delete set %q", name), func() {
		w.text(unix.NFTA_SET_TABLE, TableName)
		w.text(unix.NFTA_SET_NAME, name)
	})
}

func (w *batch) addTable() {
	w.message(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, "add the table", func() {
		w.text(unix.NFTA_TABLE_NAME, TableName)
		w.u32(unix.NFTA_TABLE_FLAGS, 0)
	})
}

func (w *batch) deleteTable() {
	w.message(unix.NFT_MSG_DELTABLE, 0, "delete the table", func() { w.text(unix.NFTA_TABLE_NAME, TableName) })
}
