package nftables

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// provokeAfter is when the ends of a cut connection are provoked: at once, and twice
// more, since the first packet or its answer may be lost, and an end does not answer
// twice within half a second.
var provokeAfter = [...]time.Duration{0, 700 * time.Millisecond, 2500 * time.Millisecond}

// cut is a connection that was cut a moment ago.
type cut[C any] struct {
	what  C
	at    time.Time
	tries int // how often its ends were provoked
}

// cuts are connections whose ends have to be provoked, by how often that was done.
// Each list is in order of time.
type cuts[C any] [len(provokeAfter)][]cut[C]

func (q *cuts[C]) add(c cut[C]) {
	if c.tries < len(q) {
		q[c.tries] = append(q[c.tries], c)
	}
}

// due returns up to so many of those whose turn it is, and counts it as done.
func (q *cuts[C]) due(now time.Time, most int) []cut[C] {
	var all []cut[C]
	for tries := range q {
		list := q[tries]
		for len(list) > 0 && len(all) < most && now.Sub(list[0].at) >= provokeAfter[tries] {
			all, list = append(all, list[0]), list[1:]
		}
		q[tries] = list
	}
	for _, c := range all {
		c.tries++
		q.add(c)
	}
	return all
}

// all returns all of them.
func (q *cuts[C]) all() []cut[C] { return slices.Concat(q[:]...) }

func (q *cuts[C]) empty() bool {
	return !slices.ContainsFunc(q[:], func(list []cut[C]) bool { return len(list) > 0 })
}

// maxCutsAtOnce bounds how many are provoked in one turn.
const maxCutsAtOnce = 256

// provoke has the ends of connections that were cut send a segment, unless a new
// connection has the same ends by now. It is the keeper's, whose socket it looks with:
// there may be very many, so mu is free meanwhile. It leaves the rest for later when
// some flows have to be looked at.
func (e *Engine) provoke() {
	for begun := false; ; begun = true {
		e.mend()
		e.mu.Lock()
		if e.idle() || begun && len(e.soon) > 0 {
			e.mu.Unlock()
			return
		}
		now, socket, raw := time.Now(), e.watch, e.raw
		flows, direct := e.cuts.due(now, maxCutsAtOnce), e.direct.cuts.due(now, maxCutsAtOnce)
		e.mu.Unlock()
		if len(flows)+len(direct) == 0 {
			return
		}
		for i := range flows {
			c := &flows[i]
			if c.tries > 0 {
				if known, err := socket.known(&c.what); err != nil || known {
					continue
				}
			}
			// What is not forgotten yet would be reset by itself, which is as good.
			raw.provoke(&c.what, true)
		}
		for _, c := range direct {
			if c.tries > 0 {
				if known, err := socket.connected(c.what); err != nil || known {
					continue
				}
			}
			raw.provokeClient(c.what)
		}
	}
}

// raw sends packets with headers of its own.
type raw struct{ fd map[*version]int }

// openRaw opens the sockets to provoke with.
func openRaw() (*raw, error) {
	r := &raw{fd: make(map[*version]int)}
	for _, v := range versions {
		fd, err := unix.Socket(int(v.af), unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err == nil {
			r.fd[v] = fd
			// So that connection tracking does not take them for connections.
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, bypassMark)
		}
		if err != nil {
			r.close()
			return nil, os.NewSyscallError("raw socket", err)
		}
	}
	return r, nil
}

func (r *raw) close() {
	for _, fd := range r.fd {
		_ = unix.Close(fd)
	}
}

// provoke makes both ends of a TCP connection that connection tracking has
// forgotten send a segment, which the table answers with a reset: only the segment
// tells the sequence number without which an end does not believe a reset. A SYN
// is what an end always answers (RFC 5961, section 4).
func (r *raw) provoke(f *flow, member bool) {
	r.send(f.version, f.frontend, f.client)
	if member {
		r.send(f.version, f.source, f.member)
	}
}

// provokeClient is provoke for a flow whose packets were routed as they were.
func (r *raw) provokeClient(e ends) {
	r.send(versionOf(e.frontend.Addr), netip.AddrPortFrom(e.frontend.Addr, e.frontend.Port), e.client)
}

// send sends a SYN. Errors are of no use: whoever is not reached learns with its
// next segment.
func (r *raw) send(v *version, from, to netip.AddrPort) {
	fd, ok := r.fd[v]
	if !ok {
		return
	}
	var sa unix.Sockaddr
	if v == v4 {
		sa = &unix.SockaddrInet4{Addr: to.Addr().As4()}
	} else {
		sa = &unix.SockaddrInet6{Addr: to.Addr().As16()}
	}
	_ = unix.Sendto(fd, synPacket(from, to, rand.Uint32()), 0, sa) //nolint:gosec // nobody gains from guessing it
}

const (
	ip4Len = 20
	ip6Len = 40
	tcpLen = 20
	hops   = 64
)

// synPacket returns an IP packet with a SYN and nothing else.
func synPacket(from, to netip.AddrPort, seq uint32) []byte {
	t := make([]byte, tcpLen)
	binary.BigEndian.PutUint16(t, from.Port())
	binary.BigEndian.PutUint16(t[2:], to.Port())
	binary.BigEndian.PutUint32(t[4:], seq)
	t[12] = tcpLen / 4 << 4
	t[13] = 0x02 // SYN
	binary.BigEndian.PutUint16(t[14:], 1024)
	pseudo := append(from.Addr().AsSlice(), to.Addr().AsSlice()...)
	pseudo = append(pseudo, 0, unix.IPPROTO_TCP, 0, tcpLen)
	binary.BigEndian.PutUint16(t[16:], checksum(pseudo, t))
	if to.Addr().Is4() {
		h := make([]byte, ip4Len)
		h[0] = 4<<4 | ip4Len/4
		binary.BigEndian.PutUint16(h[2:], ip4Len+tcpLen)
		h[8], h[9] = hops, unix.IPPROTO_TCP
		copy(h[12:], from.Addr().AsSlice())
		copy(h[16:], to.Addr().AsSlice())
		binary.BigEndian.PutUint16(h[10:], checksum(h))
		return append(h, t...)
	}
	h := make([]byte, ip6Len)
	h[0] = 6 << 4
	binary.BigEndian.PutUint16(h[4:], tcpLen)
	h[6], h[7] = unix.IPPROTO_TCP, hops
	copy(h[8:], from.Addr().AsSlice())
	copy(h[24:], to.Addr().AsSlice())
	return append(h, t...)
}

// checksum is that of IP and TCP, over parts of even length.
func checksum(parts ...[]byte) uint16 {
	sum := uint32(0)
	for _, p := range parts {
		for i := 0; i+1 < len(p); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(p[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
