package proxy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// TestRangesAsOneByOne compares the lookup with what each range says by itself.
func TestRangesAsOneByOne(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	addr := func() netip.Addr { // few bits differ, so that ranges lie in one another
		if rnd.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte{10, 0, byte(rnd.IntN(8)), byte(rnd.IntN(256))})
		}
		return netip.AddrFrom16([16]byte{0x20, 0x01, 14: byte(rnd.IntN(8)), 15: byte(rnd.IntN(256))})
	}
	for range 300 {
		prefixes := make([]netip.Prefix, rnd.IntN(20))
		for i := range prefixes {
			a := addr()
			prefixes[i] = netip.PrefixFrom(a, a.BitLen()-rnd.IntN(12)).Masked()
		}
		s := newSpec(lb.TCP, lb.Route{SourceRanges: prefixes}, nil, newRanges(prefixes))
		for range 50 {
			a := addr()
			want := len(prefixes) == 0
			for _, p := range prefixes {
				want = want || p.Contains(a)
			}
			if got := s.allows(a); got != want {
				t.Fatalf("%s in %v: got %v; want %v", a, prefixes, got, want)
			}
		}
	}
}

func TestRangesOfOneFamilyForbidTheOther(t *testing.T) {
	r := newRanges([]netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")})
	if !r.contain(netip.MustParseAddr("198.51.100.1")) || r.contain(netip.MustParseAddr("2001:db8::1")) {
		t.Error("0.0.0.0/0: want every IPv4 client allowed and no IPv6 client")
	}
	// A client of an IPv4 listener is an IPv4 client, however the kernel writes it.
	if !r.contain(addrPortOf(sockaddrOf(netip.MustParseAddrPort("[::ffff:198.51.100.1]:5"))).Addr()) {
		t.Error("0.0.0.0/0: want a 4-in-6 client allowed")
	}
}

// Routes of one load balancer share what is made of their ranges.
func TestRangesAreShared(t *testing.T) {
	p := newPlace(t, Options{}, lb.TCP, 1)
	prefixes := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	r := p.table.Routes[p.front]
	r.SourceRanges = prefixes
	second := p.front
	second.Port++
	p.table.Routes[p.front], p.table.Routes[second] = r, r
	p.set()
	a, b := p.engine.frontends[p.front].spec.Load(), p.engine.frontends[second].spec.Load()
	if &a.allowed[0] != &b.allowed[0] {
		t.Error("two routes with the same ranges: got two lookups; want one")
	}
}

func BenchmarkRanges(b *testing.B) {
	for _, n := range []int{1, 16, 1024} {
		prefixes := make([]netip.Prefix, n)
		for i := range prefixes {
			prefixes[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
		}
		client := netip.AddrFrom4([4]byte{10, byte((n - 1) >> 8), byte(n - 1), 7})
		b.Run(fmt.Sprint("lookup-", n), func(b *testing.B) {
			r := newRanges(prefixes)
			for b.Loop() {
				r.contain(client)
			}
		})
		b.Run(fmt.Sprint("scan-", n), func(b *testing.B) {
			for b.Loop() {
				for _, p := range prefixes {
					if p.Contains(client) {
						break
					}
				}
			}
		})
	}
}

// TestRangesReachWhatDrains: a frontend that is gone has connections that drain, and
// they obey the ranges of its load balancer.
func TestRangesReachWhatDrains(t *testing.T) {
	p := newPlace(t, Options{}, lb.TCP, 1)
	r := p.table.Routes[p.front]
	r.DrainTimeout = time.Hour
	p.table.Routes = map[lb.Frontend]lb.Route{p.front: r}
	p.set()
	p.echo(0)
	c, err := p.ask("hello")
	if err != nil {
		t.Fatal(err)
	}
	at := freePort(t, p.front.Addr)
	other := lb.Frontend{Addr: at.Addr(), Port: at.Port(), Protocol: lb.TCP}
	only := func(prefix string) {
		r.SourceRanges = []netip.Prefix{netip.MustParsePrefix(prefix)}
		p.table.Routes = map[lb.Frontend]lb.Route{other: r}
		p.set()
	}
	only("127.0.0.0/8")
	if err := again(c, "again"); err != nil {
		t.Fatalf("a connection that drains, of a client that is allowed: %v", err)
	}
	only("192.0.2.0/24")
	if err := again(c, "again"); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("a connection that drains, of a client that is not allowed any more: got %v; want a reset", err)
	}
}

// TestRangesReachWhatWasLeftBehind: connections that go on after a hand-over obey
// what their load balancer allows since.
func TestRangesReachWhatWasLeftBehind(t *testing.T) {
	p := newPlace(t, Options{}, lb.TCP, 1)
	p.set()
	p.echo(0)
	c, err := p.ask("hello")
	if err != nil {
		t.Fatal(err)
	}
	e, by := p.engine, p.table.Routes[p.front].Owner
	shutOut := map[lb.Owner][]netip.Prefix{by: {netip.MustParsePrefix("192.0.2.0/24")}}
	e.Restrict(shutOut) // without a hand-over the table says it
	if err := again(c, "still"); err != nil {
		t.Fatal(err)
	}
	if err := e.HandOver(t.Context(), func(lb.Parcel) error { return nil }); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- e.Shutdown(t.Context()) }()
	e.Restrict(map[lb.Owner][]netip.Prefix{by: {netip.MustParsePrefix("127.0.0.0/8")}, {Cluster: "another"}: shutOut[by]})
	if err := again(c, "allowed"); err != nil {
		t.Errorf("a client that is allowed: got %v", err)
	}
	e.Restrict(shutOut)
	if err := again(c, "forbidden"); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("a client that is not allowed any more: got %v; want a reset", err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	e.Restrict(shutOut) // of no consequence
}
