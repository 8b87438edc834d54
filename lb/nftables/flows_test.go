package nftables

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// makeFlows puts UDP sessions of a route into connection tracking, as if n clients
// had come to each of the members.
func makeFlows(t *testing.T, s *socket, r *route, members []lb.Backend, n int) {
	t.Helper()
	const confirmed, assured = 1 << 3, 1 << 2
	ends := func(w *buffer, kind uint16, from, to netip.AddrPort) {
		w.nest(kind, func() {
			w.nest(ctaTupleIP, func() {
				w.bytes(1, from.Addr().AsSlice())
				w.bytes(2, to.Addr().AsSlice())
			})
			w.nest(ctaTupleProto, func() {
				w.u8(ctaProtoNum, unix.IPPROTO_UDP)
				w.u16(ctaProtoSrc, from.Port())
				w.u16(ctaProtoDst, to.Port())
			})
		})
	}
	const create = 0
	front := netip.AddrPortFrom(r.Addr, r.Port)
	for i, m := range members {
		w := &buffer{}
		for j := range n {
			source := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, 1}), uint16(1024+j))
			at := w.begin(conntrackKind|create, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK, s.next(), v4.af, 0)
			ends(w, ctaTupleOrig, clientOf(i, j), front)
			ends(w, ctaTupleReply, netip.AddrPortFrom(m.Addr, r.spec.TargetPort), source)
			w.u32(ctaTimeout, 3600)
			w.u32(ctaMark, uint32(r.id))
			w.u32(ctaStatus, statusSeenReply|confirmed|assured)
			w.end(at)
		}
		if err := s.send(w.b); err != nil {
			t.Fatal(err)
		}
		if err := s.until(s.seq, func(uint8, []byte) {}, func(err error) { t.Fatalf("make a flow: %v", err) }); err != nil {
			t.Fatal(err)
		}
	}
}

// clientOf is the client number j of a member.
func clientOf(member, j int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(member >> 8), byte(member)}), uint16(1024+j))
}

// TestSetAmongFlows: Set does not wait for connection tracking to be searched,
// however many connections there are.
func TestSetAmongFlows(t *testing.T) {
	// Not beside others, which are held to how long they take.
	lbtest.InNamespaces(t, func(lbtest.Network) {
		const each = 100
		table := large(1000, 500)
		for f, r := range table.Routes {
			delete(table.Routes, f)
			f.Protocol = lb.UDP
			table.Routes[f] = r
			break
		}
		e := New(Options{KeepSources: true})
		t.Cleanup(func() {
			_ = e.Shutdown(context.Background())
			if _, err := Cleanup(e.log); err != nil {
				t.Error(err)
			}
		})
		if _, err := e.Set(t.Context(), table); err != nil {
			t.Fatal(err)
		}
		var r *route
		e.mu.Lock()
		for f := range e.state.routes {
			if f.Protocol == lb.UDP {
				r = e.state.routes[f]
			}
		}
		e.mu.Unlock()
		var nodes []lb.Backend
		for _, g := range table.Groups {
			nodes = g.Backends
		}
		tracking, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		defer tracking.close()
		makeFlows(t, tracking, r, nodes, each)
		var changes, cuts []time.Duration
		for i := range 30 {
			table = withMember(table, i, lb.Dead)
			start := time.Now()
			if _, err := e.Set(t.Context(), table); err != nil {
				t.Fatal(err)
			}
			changes = append(changes, time.Since(start))
			last := flow{version: v4, protocol: unix.IPPROTO_UDP, client: clientOf(i, each-1), frontend: netip.AddrPortFrom(r.Addr, r.Port)}
			for known := true; known; {
				if known, err = tracking.known(&last); err != nil {
					t.Fatal(err)
				}
				if time.Since(start) > patience {
					t.Fatalf("sessions of the dead member %d are known still after %s", i, patience)
				}
			}
			cuts = append(cuts, time.Since(start))
		}
		slices.Sort(changes)
		slices.Sort(cuts)
		set, cut := changes[len(changes)/2], cuts[len(cuts)/2]
		t.Logf("%d sessions: a member's death is set in %s (median; worst %s), its sessions are forgotten after %s (median; worst %s)",
			each*len(nodes), set, changes[len(changes)-1], cut, cuts[len(cuts)-1])
		if set > cut/2 {
			t.Errorf("a member's death: took %s; want half the %s at most that a search takes", set, cut)
		}
	})
}

// bytesExact: every byte of both directions is counted once, from the first packet
// on, also those of clients on the edge itself.
func bytesExact(b *bench) {
	const packets, size, bothHeaders4, bothHeaders6 = 7, 100, 28, 48
	m := b.net.Member(b.family)
	member, err := b.net.ListenPacket(netip.AddrPortFrom(m, targetPort))
	if err != nil {
		b.Fatal(err)
	}
	defer member.Close()
	f := b.add(lb.UDP, m)
	b.set()
	outside, err := b.net.Dial(b.Context(), netip.Addr{}, f)
	if err != nil {
		b.Fatal(err)
	}
	defer outside.Close()
	inside, err := net.Dial("udp", netip.AddrPortFrom(f.Addr, f.Port).String())
	if err != nil {
		b.Fatal(err)
	}
	defer inside.Close()
	clients := []net.Conn{outside, inside}
	for _, c := range clients {
		for range packets {
			buffer := make([]byte, 2*size)
			if err := errors.Join(c.SetDeadline(time.Now().Add(patience)), member.SetDeadline(time.Now().Add(patience))); err != nil {
				b.Fatal(err)
			}
			if _, err := c.Write(buffer[:size]); err != nil {
				b.Fatal(err)
			}
			n, from, err := member.ReadFrom(buffer)
			if err != nil || n != size {
				b.Fatalf("member: got %d bytes, error %v; want %d", n, err, size)
			}
			if _, err := member.WriteTo(buffer, from); err != nil {
				b.Fatal(err)
			}
			if n, err := c.Read(buffer); err != nil || n != 2*size {
				b.Fatalf("client: got %d bytes, error %v; want %d", n, err, 2*size)
			}
		}
	}
	header := uint64(bothHeaders4)
	if b.family == lb.IPv6 {
		header = bothHeaders6
	}
	n := uint64(packets * len(clients))
	in, out := n*(size+header), n*(2*size+header)
	got := b.counters(f)
	if len(got.Members) != 1 || got.Members[0].BytesIn != in || got.Members[0].BytesOut != out {
		b.Errorf("counters: got %+v; want one member with %d bytes in, %d out", got.Members, in, out)
	}
}
