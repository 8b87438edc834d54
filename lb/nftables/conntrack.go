package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// The attributes of conntrack's messages.
const (
	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaStatus     = 3
	ctaProtoInfo  = 4
	ctaTimeout    = 7
	ctaMark       = 8
	ctaID         = 12
	ctaMarkMask   = 21
	ctaFilter     = 25

	ctaTupleIP    = 1
	ctaTupleProto = 2
	ctaProtoNum   = 1
	ctaProtoSrc   = 2
	ctaProtoDst   = 3

	ctaProtoInfoTCP = 1
	ctaTCPState     = 1

	conntrackKind = unix.NFNL_SUBSYS_CTNETLINK << 8
	messageGet    = 1
	messageDelete = 2

	statusSeenReply = 1 << 1
)

// The states of TCP connections that matter here.
const (
	tcpSynSent     = 1
	tcpSynReceived = 2
	tcpEstablished = 3
	tcpCloseWait   = 5
)

// flow is a connection or session that conntrack knows.
type flow struct {
	version  *version
	protocol uint8
	mark     mark
	id       uint32
	status   uint32
	state    uint8  // of TCP
	left     uint32 // seconds until it is forgotten
	// client and frontend are what the client sees, source and member what the
	// member sees.
	client, frontend, source, member netip.AddrPort
}

// replied tells whether the member has ever answered.
func (f *flow) replied() bool { return f.status&statusSeenReply != 0 }

// open tells whether the connection is one that the two ends have open.
func (f *flow) open() bool {
	if f.protocol == unix.IPPROTO_UDP {
		return true
	}
	return f.state >= tcpSynReceived && f.state <= tcpCloseWait
}

// ourMarks selects routes, pools and owners: 0xec, 0xed and 0xee.
const ourMarks = 0xfc000000

// selector picks the flows of a member or of a frontend's address, perhaps of one
// protocol. The zero value picks all.
type selector struct {
	protocol         uint8
	member, frontend netip.Addr
}

// flows calls f for every connection with a mark of ours.
func (s *socket) flows(f func(*flow)) error { return s.selected(selector{}, f) }

// selected calls f for the connections with a mark of ours that are picked, and
// perhaps for others. The kernel leaves the rest out, which costs a small part of
// telling about them.
func (s *socket) selected(which selector, f func(*flow)) error {
	err := s.dumpFlows(which, f)
	if which != (selector{}) && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)) {
		err = s.dumpFlows(selector{}, f)
	}
	if err != nil {
		return fmt.Errorf("read connection tracking: %w", err)
	}
	return nil
}

func (s *socket) dumpFlows(which selector, f func(*flow)) error {
	w := &buffer{}
	at := w.begin(conntrackKind|messageGet, unix.NLM_F_DUMP, s.next(), which.af(), 0)
	w.u32(ctaMark, uint32(ofRoute))
	w.u32(ctaMarkMask, ourMarks)
	which.encode(w)
	w.end(at)
	var one flow
	return s.stream(w, func(af uint8, body []byte) {
		if one.read(af, body) {
			f(&one)
		}
	})
}

func (w selector) af() uint8 {
	switch {
	case w.member.IsValid():
		return versionOf(w.member).af
	case w.frontend.IsValid():
		return versionOf(w.frontend).af
	}
	return unix.AF_UNSPEC
}

// encode writes what the kernel compares with each flow: what the member sees for
// the member, what the client sees for the frontend. Of IPv6 only the protocol is
// compared, since Linux (6.18 still does) takes addresses for different that are
// equal, and the other way round.
func (w selector) encode(b *buffer) {
	const (
		bySource, byDestination, byProtocol = 1 << 0, 1 << 1, 1 << 3
		original, reply                     = 1, 2
	)
	if w.af() == unix.AF_UNSPEC {
		return
	}
	direction, kind, source, destination := uint16(reply), uint16(ctaTupleReply), w.member, netip.IPv4Unspecified()
	if w.frontend.IsValid() {
		direction, kind, source, destination = original, ctaTupleOrig, netip.IPv4Unspecified(), w.frontend
	}
	flags := uint32(0)
	if w.protocol != 0 {
		flags |= byProtocol
	}
	b.nest(kind, func() {
		if w.af() == unix.AF_INET {
			flags |= byDestination
			if direction == reply {
				flags ^= byDestination | bySource
			}
			b.nest(ctaTupleIP, func() {
				b.bytes(1, source.AsSlice())
				b.bytes(2, destination.AsSlice())
			})
		}
		b.nest(ctaTupleProto, func() { b.u8(ctaProtoNum, w.protocol) })
	})
	b.nest(ctaFilter, func() { b.bytes(direction, binary.NativeEndian.AppendUint32(nil, flags)) })
}

// read decodes a message. It returns false for what the engine does not carry.
func (f *flow) read(af uint8, body []byte) bool {
	*f = flow{version: v4}
	if af == unix.AF_INET6 {
		f.version = v6
	}
	attributes(body, func(kind uint16, v []byte) {
		switch kind {
		case ctaTupleOrig:
			f.client, f.frontend = f.tuple(v)
		case ctaTupleReply:
			f.member, f.source = f.tuple(v)
		case ctaStatus:
			f.status = be32(v)
		case ctaTimeout:
			f.left = be32(v)
		case ctaMark:
			f.mark = mark(be32(v))
		case ctaID:
			f.id = be32(v)
		case ctaProtoInfo:
			if state := attribute(attribute(v, ctaProtoInfoTCP), ctaTCPState); len(state) > 0 {
				f.state = state[0]
			}
		}
	})
	return f.mark.kind()&ourMarks == ofRoute&ourMarks && (f.protocol == unix.IPPROTO_TCP || f.protocol == unix.IPPROTO_UDP)
}

// tuple decodes the two ends of one direction.
func (f *flow) tuple(b []byte) (from, to netip.AddrPort) {
	var src, dst netip.Addr
	attributes(attribute(b, ctaTupleIP), func(kind uint16, v []byte) {
		a, _ := netip.AddrFromSlice(v)
		if kind%2 == 1 { // sources are 1 and 3, destinations 2 and 4
			src = a
		} else {
			dst = a
		}
	})
	var srcPort, dstPort uint16
	attributes(attribute(b, ctaTupleProto), func(kind uint16, v []byte) {
		switch {
		case kind == ctaProtoNum && len(v) > 0:
			f.protocol = v[0]
		case kind == ctaProtoSrc && len(v) > 1:
			srcPort = binary.BigEndian.Uint16(v)
		case kind == ctaProtoDst && len(v) > 1:
			dstPort = binary.BigEndian.Uint16(v)
		}
	})
	return netip.AddrPortFrom(src, srcPort), netip.AddrPortFrom(dst, dstPort)
}

// encode writes what names the flow to the kernel.
func (f *flow) encode(w *buffer) {
	w.nest(ctaTupleOrig, func() {
		w.nest(ctaTupleIP, func() {
			base := uint16(0)
			if f.version == v6 {
				base = 2
			}
			w.bytes(base+1, f.client.Addr().AsSlice())
			w.bytes(base+2, f.frontend.Addr().AsSlice())
		})
		w.nest(ctaTupleProto, func() {
			w.u8(ctaProtoNum, f.protocol)
			w.u16(ctaProtoSrc, f.client.Port())
			w.u16(ctaProtoDst, f.frontend.Port())
		})
	})
}

// maxFlowsAtOnce bounds what is sent in one call, and the errors that come back.
const maxFlowsAtOnce = 256

// forget deletes flows. One that is gone already, or is another one by now, is
// left alone.
func (s *socket) forget(flows []flow) error {
	for len(flows) > 0 {
		n := min(len(flows), maxFlowsAtOnce)
		w := &buffer{}
		for i := range flows[:n] {
			flags := uint16(0)
			if i == n-1 {
				flags = unix.NLM_F_ACK
			}
			at := w.begin(conntrackKind|messageDelete, flags, s.next(), flows[i].version.af, 0)
			flows[i].encode(w)
			w.u32(ctaID, flows[i].id)
			w.end(at)
		}
		if err := s.send(w.b); err != nil {
			return err
		}
		var fault error
		last := s.seq
		if err := s.until(last, func(_ uint8, _ []byte) {}, func(err error) {
			if !errors.Is(err, unix.ENOENT) {
				fault = err
			}
		}); err != nil {
			return err
		}
		if fault != nil {
			return fmt.Errorf("delete from connection tracking: %w", fault)
		}
		flows = flows[n:]
	}
	return nil
}

// known tells whether connection tracking has a flow with the same ends.
func (s *socket) known(f *flow) (bool, error) {
	w := &buffer{}
	at := w.begin(conntrackKind|messageGet, unix.NLM_F_ACK, s.next(), f.version.af, 0)
	f.encode(w)
	w.end(at)
	if err := s.send(w.b); err != nil {
		return false, err
	}
	found := false
	var fault error
	err := s.until(s.seq, func(uint8, []byte) { found = true }, func(err error) {
		if !errors.Is(err, unix.ENOENT) {
			fault = err
		}
	})
	return found, errors.Join(err, fault)
}

// until receives until the message with the sequence number is acknowledged.
func (s *socket) until(last uint32, answer func(af uint8, body []byte), fault func(error)) error {
	for over := false; !over; {
		if _, err := s.receive(func(kind uint16, seq uint32, body []byte) error {
			if kind != unix.NLMSG_ERROR {
				if seq == last && len(body) >= nfgenLen {
					answer(body[0], body[nfgenLen:])
				}
				return nil
			}
			if err := answered(body); err != nil {
				fault(err)
			}
			over = over || seq == last
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}
