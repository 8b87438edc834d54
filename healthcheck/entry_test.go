package healthcheck

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"unsafe"
)

// TestEntrySize guards what 100,000 targets take: Go allocates 96 bytes or 112.
func TestEntrySize(t *testing.T) {
	const want = 96
	if got := unsafe.Sizeof(entry{}); unsafe.Sizeof(uintptr(0)) == 8 && got > want {
		t.Errorf("got %d bytes; want at most %d", got, want)
	}
}

// TestTargetsKeepTheirAddress has every kind of address come back as it was given.
func TestTargetsKeepTheirAddress(t *testing.T) {
	addrs := []netip.AddrPort{
		{},
		netip.MustParseAddrPort("0.0.0.0:0"),
		netip.MustParseAddrPort("[::]:0"),
		netip.MustParseAddrPort("192.0.2.1:80"),
		netip.MustParseAddrPort("192.0.2.1:81"),
		netip.MustParseAddrPort("[::ffff:192.0.2.1]:80"),
		netip.MustParseAddrPort("[::ffff:192.0.2.1%eth0]:80"),
		netip.MustParseAddrPort("[2001:db8::1]:80"),
		netip.MustParseAddrPort("[fe80::1%eth0]:80"),
		netip.MustParseAddrPort("[fe80::1%eth1]:80"),
		netip.MustParseAddrPort("[fe80::1]:80"),
	}
	set := map[Target]Result{}
	for i, a := range addrs {
		set[Target{Addr: a}] = Result{Failures: i + 1}
	}
	c := New(Options{})
	c.Set(set)
	all := c.Results()
	if len(all) != len(addrs) {
		t.Errorf("got %d targets; want %d", len(all), len(addrs))
	}
	for want, seed := range set {
		if got, ok := all[want]; !ok || got.Failures != seed.Failures {
			t.Errorf("results of %v: got %+v, %v; want %d failures", want, got, ok, seed.Failures)
		}
		if got, ok := c.Result(want); !ok || got.Failures != seed.Failures {
			t.Errorf("result of %v: got %+v, %v; want %d failures", want, got, ok, seed.Failures)
		}
	}
	first := c.find(Target{Addr: addrs[3]})
	c.Set(set)
	if c.find(Target{Addr: addrs[3]}) != first {
		t.Error("the same set again has replaced an entry")
	}
	c.Set(nil)
	if len(c.kinds) != 0 || c.entries.len != 0 {
		t.Errorf("without targets: got %d kinds and %d entries", len(c.kinds), c.entries.len)
	}
}

// TestIndex compares the index with a map over random additions and removals.
func TestIndex(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	kinds := []*kind{{as: class{bits: 32}}, {as: class{bits: 32}}}
	x, model := newIndex(), map[key]*entry{}
	for range 20_000 {
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(8)), byte(r.IntN(256))}), uint16(80+r.IntN(2)))
		k := keyOf(addr, kinds[r.IntN(2)])
		e := model[k]
		if got := x.find(k); got != e {
			t.Fatalf("find %v: got %p; want %p", addr, got, e)
		}
		switch {
		case e == nil:
			e = newEntry(addr, k.kind, record{})
			model[k] = e
			x.add(e)
		case r.IntN(3) > 0:
			delete(model, k)
			x.remove(e)
		}
		if x.len != len(model) {
			t.Fatalf("got %d entries; want %d", x.len, len(model))
		}
	}
	seen := map[*entry]bool{}
	for e := range x.all {
		if seen[e] || model[e.key()] != e {
			t.Fatalf("all: got %v, seen before: %v", e.addr(), seen[e])
		}
		seen[e] = true
	}
	if len(seen) != len(model) {
		t.Errorf("all: got %d entries; want %d", len(seen), len(model))
	}
}
