package nftables

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// value is what an element has beside its key. Equal ones are equal as Go values.
type value struct {
	keyEnd  string // of a range
	data    string
	verdict int32 // with chain, of a verdict map
	chain   string
	comment string
	timeout time.Duration // of what is remembered; zero is for ever
}

// element is an entry of one of the table's sets that the engine fills.
type element struct {
	set string
	key string
	value
}

const (
	// maxElements and maxElementBytes keep a list of elements below the 64 kB that
	// a netlink attribute holds.
	maxElements     = 500
	maxElementBytes = 60 << 10
	// maxComment is the longest comment that nft reads.
	maxComment = 120
)

// elements adds one message, or several, that add or delete elements of a set.
func (w *batch) elements(kind uint16, set string, all []element) {
	verb, flags := "add to", uint16(unix.NLM_F_CREATE)
	if kind == unix.NFT_MSG_DELSETELEM {
		verb, flags = "delete from", 0
	}
	for len(all) > 0 {
		n := min(len(all), maxElements)
		w.message(kind, flags, fmt.Sprintf("%s %q", verb, set), func() {
			w.text(unix.NFTA_SET_ELEM_LIST_TABLE, TableName)
			w.text(unix.NFTA_SET_ELEM_LIST_SET, set)
			at := w.open(unix.NFTA_SET_ELEM_LIST_ELEMENTS | nested)
			for i := range n {
				w.element(&all[i], kind == unix.NFT_MSG_NEWSETELEM)
				if len(w.b)-at > maxElementBytes {
					n = i + 1
					break
				}
			}
			w.close(at)
		})
		all = all[n:]
	}
}

func (w *batch) element(e *element, whole bool) {
	const keyEnd = 10
	w.nest(unix.NFTA_LIST_ELEM, func() {
		w.nest(unix.NFTA_SET_ELEM_KEY, func() { w.bytes(unix.NFTA_DATA_VALUE, []byte(e.key)) })
		if e.keyEnd != "" {
			w.nest(keyEnd, func() { w.bytes(unix.NFTA_DATA_VALUE, []byte(e.keyEnd)) })
		}
		if !whole {
			return
		}
		switch {
		case e.chain != "":
			w.nest(unix.NFTA_SET_ELEM_DATA, func() { w.verdictData(e.verdict, e.chain) })
		case e.data != "":
			w.nest(unix.NFTA_SET_ELEM_DATA, func() { w.bytes(unix.NFTA_DATA_VALUE, []byte(e.data)) })
		}
		if e.timeout > 0 {
			w.u64(unix.NFTA_SET_ELEM_TIMEOUT, uint64(e.timeout.Milliseconds()))
		}
		if e.comment != "" {
			w.bytes(unix.NFTA_SET_ELEM_USERDATA, commentData(e.comment))
		}
	})
}

// commentData is a comment as nft keeps it.
func commentData(s string) []byte {
	s = s[:min(len(s), maxComment)]
	const comment = 0
	b := append([]byte{comment, byte(len(s) + 1)}, s...)
	return append(b, 0)
}

// commentOf reads it again.
func commentOf(b []byte) string {
	for len(b) >= 2 {
		n := int(b[1])
		if 2+n > len(b) {
			return ""
		}
		if b[0] == 0 && n > 0 {
			return string(b[2 : 2+n-1])
		}
		b = b[2+n:]
	}
	return ""
}

// found is an element as the kernel has it.
type found struct {
	key string
	value
	packets, bytes uint64
}

// read calls f for each element of a set. A table or set that does not exist has
// none.
func (s *socket) read(set string, f func(found)) error {
	err := s.dump(s.elementsOf(set), func(body []byte) { eachFound(body, f) })
	if err != nil && !isNotFound(err) {
		return fmt.Errorf("read set %q: %w", set, err)
	}
	return nil
}

// elementsOf asks for the elements of a set.
func (s *socket) elementsOf(set string) *buffer {
	w := &buffer{}
	at := w.begin(nftablesKind|unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, s.next(), family, 0)
	w.text(unix.NFTA_SET_ELEM_LIST_TABLE, TableName)
	w.text(unix.NFTA_SET_ELEM_LIST_SET, set)
	w.end(at)
	return w
}

// element returns the element with a key, if the set has one.
func (s *socket) element(set, key string) (f found, there bool, err error) {
	w := &buffer{}
	at := w.begin(nftablesKind|unix.NFT_MSG_GETSETELEM, unix.NLM_F_ACK, s.next(), family, 0)
	w.text(unix.NFTA_SET_ELEM_LIST_TABLE, TableName)
	w.text(unix.NFTA_SET_ELEM_LIST_SET, set)
	w.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
		w.nest(unix.NFTA_LIST_ELEM, func() {
			w.nest(unix.NFTA_SET_ELEM_KEY, func() { w.bytes(unix.NFTA_DATA_VALUE, []byte(key)) })
		})
	})
	w.end(at)
	if err := s.send(w.b); err != nil {
		return f, false, err
	}
	var fault error
	err = s.until(s.seq, func(_ uint8, body []byte) {
		eachFound(body, func(e found) { f, there = e, true })
	}, func(err error) {
		if !isNotFound(err) {
			fault = fmt.Errorf("read of set %q: %w", set, err)
		}
	})
	return f, there, errors.Join(err, fault)
}

func eachFound(body []byte, f func(found)) {
	attributes(attribute(body, unix.NFTA_SET_ELEM_LIST_ELEMENTS), func(_ uint16, b []byte) { f(readElement(b)) })
}

func readElement(b []byte) found {
	const keyEnd = 10
	var e found
	attributes(b, func(kind uint16, v []byte) {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			e.key = string(attribute(v, unix.NFTA_DATA_VALUE))
		case keyEnd:
			e.keyEnd = string(attribute(v, unix.NFTA_DATA_VALUE))
		case unix.NFTA_SET_ELEM_DATA:
			e.data = string(attribute(v, unix.NFTA_DATA_VALUE))
			if verdict := attribute(v, unix.NFTA_DATA_VERDICT); verdict != nil {
				e.verdict = int32(be32(attribute(verdict, unix.NFTA_VERDICT_CODE)))
				e.chain = text(attribute(verdict, unix.NFTA_VERDICT_CHAIN))
			}
		case unix.NFTA_SET_ELEM_USERDATA:
			e.comment = commentOf(v)
		case unix.NFTA_SET_ELEM_EXPR:
			counter := attribute(v, unix.NFTA_EXPR_DATA)
			e.packets = be64(attribute(counter, unix.NFTA_COUNTER_PACKETS))
			e.bytes = be64(attribute(counter, unix.NFTA_COUNTER_BYTES))
		}
	})
	return e
}

// text is a string as netlink has it.
func text(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
