package lbtest

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/eclusa-lb/eclusa/lb"
)

// Cases about the PROXY protocol, and about members of the other family.

// headed makes a handler of one that comes after the PROXY header, which is
// reported. A connection that begins with anything else is reported as such.
func headed(h handler) handler {
	return func(m *node, c net.Conn) {
		b := bufio.NewReader(c)
		header, err := proxyproto.Read(b)
		if err != nil {
			m.seen <- "no header: " + err.Error()
			return
		}
		m.seen <- fmt.Sprintf("v%d %c %s to %s", header.Version, header.TransportProtocol, header.SourceAddr, header.DestinationAddr)
		h(m, &buffered{c.(*net.TCPConn), b})
	}
}

// buffered is a connection of which something was read already.
type buffered struct {
	*net.TCPConn
	from *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.from.Read(p) }

// wantHeader checks what a member reports of the header of a client's connection.
func (r *rig) wantHeader(m *node, version lb.ProxyProtocol, s *service, client net.Addr) {
	r.Helper()
	kind := proxyproto.TCPv4
	if r.family == lb.IPv6 {
		kind = proxyproto.TCPv6
	}
	want := fmt.Sprintf("%s %c %s to %s", version, kind, client, netip.AddrPortFrom(s.Addr, s.Port))
	select {
	case got := <-m.seen:
		if got != want {
			r.Errorf("header: got %q; want %q", got, want)
		}
	case <-time.After(patience):
		r.Errorf("header: got none within %s; want %q", patience, want)
	}
}

// speaksProxy: the member learns the client's address and port and the
// frontend's, though the client waits for the member to speak first. Another
// listener of the same member does without.
func speaksProxy(version lb.ProxyProtocol) func(*rig) {
	return func(r *rig) {
		m := r.members(1, headed(greet))
		s := r.service(m...)
		s.route.ProxyProtocol = version
		r.set()
		for range 5 {
			c := r.connect(s)
			r.wantHeader(m[0], version, s, c.LocalAddr())
			c.mustAsk("the header comes once")
		}
		if got := r.counters(s).Members[0].BytesIn; got != 5*uint64(len("the header comes once")) {
			r.Errorf("bytes from clients: got %d; want them without the headers", got)
		}
		without := r.service(m...)
		r.set()
		c := r.raw(without)
		_, _ = io.WriteString(c, "HELLO, this is no header\r\n")
		_ = c.CloseWrite()
		_, _ = io.ReadAll(c)
		if got := <-m[0].seen; got != "no header: "+proxyproto.ErrNoProxyProtocol.Error() {
			r.Errorf("a listener without the PROXY protocol: the member got %q; want no header", got)
		}
	}
}

// proxyStreams: behind the header are the client's bytes, few or many, all of
// them, and its end.
func proxyStreams(r *rig) {
	sums := make(chan [sha256.Size]byte, 1)
	m := r.members(1, headed(func(_ *node, c net.Conn) {
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _ = io.Copy(struct{ io.Writer }{c}, io.LimitReader(rand.NewChaCha8([32]byte{2}), 1<<20))
			_ = c.(*buffered).CloseWrite()
		})
		sums <- sum(struct{ io.Reader }{c})
		wg.Wait()
	}))
	s := r.service(m...)
	for _, version := range []lb.ProxyProtocol{lb.ProxyV1, lb.ProxyV2} {
		s.route.ProxyProtocol = version
		r.set()
		for _, size := range []int64{0, 1, 100, 65_535, 65_536, 200_000, 8 << 20} {
			stream := func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{1}), size) }
			c := r.raw(s)
			var wg sync.WaitGroup
			wg.Go(func() {
				_, _ = io.Copy(struct{ io.Writer }{c}, stream())
				_ = c.CloseWrite()
			})
			if sum(c) != sum(io.LimitReader(rand.NewChaCha8([32]byte{2}), 1<<20)) {
				r.Errorf("%s, %d bytes: the client received other bytes than the member sent", version, size)
			}
			wg.Wait()
			r.wantHeader(m[0], version, s, c.LocalAddr())
			if <-sums != sum(stream()) {
				r.Errorf("%s, %d bytes: the member received other bytes than the client sent", version, size)
			}
		}
	}
}

// proxyRetries: however many members were tried, the one that answers gets one
// header.
func proxyRetries(r *rig) {
	if r.net.Addresses(r.family) < 3 {
		r.Skip("three addresses are needed")
	}
	m := r.members(1, headed(greet))
	s := r.service(append(m, r.idleMember("x"), r.idleMember("y"))...)
	s.route.ProxyProtocol = lb.ProxyV2
	r.set()
	for range 20 {
		c := r.connect(s)
		r.wantHeader(m[0], lb.ProxyV2, s, c.LocalAddr())
		c.mustAsk("the header comes once")
	}
}

// proxyChanges: a change of the version is for new connections.
func proxyChanges(r *rig) {
	m := r.members(1, headed(greet))
	s := r.service(m...)
	var open []*client
	for _, version := range []lb.ProxyProtocol{lb.ProxyV1, lb.ProxyV2, lb.ProxyV1} {
		s.route.ProxyProtocol = version
		r.set()
		c := r.connect(s)
		r.wantHeader(m[0], version, s, c.LocalAddr())
		for _, c := range append(open, c) {
			c.mustAsk("its header was sent")
		}
		open = append(open, c)
	}
}

// proxyHandOver: whoever waits for the next engine is announced by that.
func proxyHandOver(r *rig) {
	m := r.members(1, headed(greet))
	s := r.service(m...)
	s.route.ProxyProtocol = lb.ProxyV2
	r.set()
	before := r.connect(s)
	r.wantHeader(m[0], lb.ProxyV2, s, before.LocalAddr())
	first, second := r.engine, r.spare()
	r.Cleanup(func() { shutdownNow(r, first) })
	var waiting net.Conn
	r.pass(first, second, func() {
		c := r.raw(s)
		_, _ = io.WriteString(c, "early")
		waiting = c
	})
	r.engine = second
	r.set()
	r.wantHeader(m[0], lb.ProxyV2, s, waiting.LocalAddr())
	if line, err := readLine(waiting); err != nil || line != string(m[0].node) {
		r.Errorf("greeting after the hand-over: got %q, %v; want %q", line, err, m[0].node)
	}
	b := make([]byte, len("early"))
	if _, err := io.ReadFull(waiting, b); err != nil || string(b) != "early" {
		r.Errorf("echo of what was sent during the hand-over: got %q, %v", b, err)
	}
	before.mustAsk("it goes on in the first engine")
}

// other returns the family that is not the case's, which the network must have.
func (r *rig) other() lb.Family {
	r.Helper()
	f := lb.IPv6
	if r.family == lb.IPv6 {
		f = lb.IPv4
	}
	if r.net.Addresses(f) == 0 {
		r.Skipf("the network has no %s", f)
	}
	return f
}

// proxyTranslates: the header is of the client's family, whatever the member's is.
func proxyTranslates(r *rig) {
	m := r.membersOf(r.other(), 1, headed(greet))
	s := r.service(m...)
	s.route.Group.Family = r.other()
	for _, version := range []lb.ProxyProtocol{lb.ProxyV1, lb.ProxyV2} {
		s.route.ProxyProtocol = version
		r.set()
		c := r.connect(s)
		r.wantHeader(m[0], version, s, c.LocalAddr())
		c.mustAsk("the families differ")
	}
}

// familyTranslation: clients of one family are served by members of the other,
// also after a hand-over, and get the same answers when there are none.
func familyTranslation(r *rig) {
	n := min(2, r.net.Addresses(r.other()))
	m := r.membersOf(r.other(), n, greet)
	s := r.service(m...)
	s.route.Group.Family = r.other()
	r.set()
	if got := r.spread(s, 4*n); len(got) != n {
		r.Errorf("members of the other family: got connections %v; want all %d used", got, n)
	}
	before := r.connect(s)
	node := before.node
	before.mustAsk("the families differ")
	first, second := r.engine, r.spare()
	r.Cleanup(func() { shutdownNow(r, first) })
	r.pass(first, second, func() {})
	r.engine = second
	r.set()
	if before.mustAsk("after the hand-over"); before.node != node {
		r.Errorf("after the hand-over: got member %s; want %s as before", before.node, node)
	}
	r.connect(s).mustAsk("after the hand-over")
	shutdownNow(r, first) // which has the sockets too
	for i := range s.backends {
		s.backends[i].State = lb.Dead
	}
	r.set()
	r.unreachable(s, "all members of the other family are dead")
}

// connectTimeout: a route says itself how long one attempt may take.
func connectTimeout(r *rig) {
	if r.net.Addresses(r.family) < 2 {
		r.Skip("a member's address that nobody else has is needed")
	}
	silent := r.idleMember("silent")
	r.net.Silence(r, netip.AddrPortFrom(silent.addr, targetPort))
	s := r.service(silent)
	s.route.ConnectTimeout = soon / 8
	r.set()
	r.refused(s, netip.Addr{}, "its only member is silent")
	if n := r.counters(s).Members[0].DialErrors; n < 1 {
		r.Errorf("attempts: got %d; want some", n)
	}
}
