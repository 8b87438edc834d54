package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// batch is a transaction: the kernel takes all of it or nothing.
type batch struct {
	buffer
	seq  uint32
	last int      // where the newest message begins
	what []string // each message in words, for its error
}

const nftablesKind = unix.NFNL_SUBSYS_NFTABLES << 8

// family is that of our table: both IPv4 and IPv6.
const family = unix.NFPROTO_INET

func newBatch() *batch {
	w := &batch{}
	at := w.begin(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	w.end(at)
	return w
}

func (w *batch) empty() bool { return len(w.what) == 0 }

// message adds a message about the engine's table.
func (w *batch) message(kind, flags uint16, what string, fill func()) {
	w.seq++
	w.what = append(w.what, what)
	at := w.begin(nftablesKind|kind, flags, w.seq, family, 0)
	fill()
	w.end(at)
	w.last = at
}

// commit sends the transaction, and returns the errors of its messages if it was
// refused: then nothing has changed.
func (s *socket) commit(w *batch) error {
	if w.empty() {
		return nil
	}
	w.acknowledgeLast()
	at := w.begin(unix.NFNL_MSG_BATCH_END, 0, w.seq+1, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	w.end(at)
	return s.exchange(w)
}

// try asks the kernel what it would say of the transaction, and changes nothing:
// without its end the kernel takes it back.
func (s *socket) try(w *batch) error {
	w.acknowledgeLast()
	return s.exchange(w)
}

func (w *batch) acknowledgeLast() {
	flags := w.b[w.last+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
}

// exchange sends a transaction and waits for what the kernel says of it.
func (s *socket) exchange(w *batch) error {
	if err := s.send(w.b); err != nil {
		return err
	}
	var faults []error
	for over := false; !over; {
		_, err := s.receive(func(kind uint16, seq uint32, body []byte) error {
			if kind != unix.NLMSG_ERROR {
				return nil
			}
			err := answered(body)
			if err != nil && seq >= 1 && int(seq) <= len(w.what) {
				err = fmt.Errorf("%s: %w", w.what[seq-1], err)
			}
			if err != nil && len(faults) < 3 {
				faults = append(faults, err)
			}
			// What is about the first message of all is about the whole, and those of
			// single messages may follow.
			s.stale = s.stale || seq == 0
			over = over || seq == w.seq || seq == 0
			return nil
		})
		if err != nil {
			return errors.Join(append(faults, err)...)
		}
	}
	return errors.Join(faults...)
}
