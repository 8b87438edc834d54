package ipam_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eclusa-lb/eclusa/ipam"
	"github.com/eclusa-lb/eclusa/lb"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func addrs(texts ...string) []netip.Addr {
	var all []netip.Addr
	for _, text := range texts {
		all = append(all, netip.MustParseAddr(text))
	}
	return all
}

// The pools of the tests. "named" gives addresses only to those who ask for it.
func testPools() []ipam.Pool {
	named := pool("named", "203.0.113.0/30", "2001:db8:3::/64")
	named.AutoAssign = false
	common := pool("common", "198.51.100.9", "2001:db8:9::1-2001:db8:9::2")
	common.AutoAssign, common.Shared = false, true
	return []ipam.Pool{
		common,
		pool("main", "192.0.2.1-192.0.2.3", "2001:db8::/64"),
		pool("other", "198.51.100.1-198.51.100.2"),
		named,
	}
}

// A part changes a claim that is otherwise like all others of the tests.
type part func(*ipam.Claim)

// claim returns a claim on one IPv4 address from pool "main". Claims are as old
// as their owners are small.
func claim(owner string, parts ...part) ipam.Claim {
	c := ipam.Claim{
		Owner: owner, Name: "default/" + owner, Time: start,
		Families: []lb.Family{lb.IPv4}, EligiblePools: []string{"main"},
		Ports: []ipam.PortKey{{Protocol: lb.TCP, Port: 80}},
	}
	for _, p := range parts {
		p(&c)
	}
	return c
}

func holds(texts ...string) part { return func(c *ipam.Claim) { c.Held = addrs(texts...) } }

func wants(texts ...string) part { return func(c *ipam.Claim) { c.Requested = addrs(texts...) } }

func from(name string) part { return func(c *ipam.Claim) { c.Pool = name } }

func eligible(names ...string) part { return func(c *ipam.Claim) { c.EligiblePools = names } }

func families(f ...lb.Family) part { return func(c *ipam.Claim) { c.Families = f } }

func requireAll(c *ipam.Claim) { c.RequireAll = true }

func late(c *ipam.Claim) { c.Time = start.Add(time.Hour) }

func shares(key string, ports ...uint16) part {
	return func(c *ipam.Claim) {
		c.SharingKey, c.Ports = key, nil
		for _, p := range ports {
			c.Ports = append(c.Ports, ipam.PortKey{Protocol: lb.TCP, Port: p})
		}
	}
}

// An assignTest is one assignment. want is as text writes it.
type assignTest struct {
	name        string
	claims      []ipam.Claim
	quarantined map[string]ipam.Quarantine
	want        map[string]string
}

var assignTests = []assignTest{
	{"first come, first served", []ipam.Claim{claim("b", late), claim("a", late), claim("c")}, nil, map[string]string{
		"c": "192.0.2.1 from main", "a": "192.0.2.2 from main", "b": "192.0.2.3 from main",
	}},
	{"what is held stays", []ipam.Claim{claim("a"), claim("b", holds("192.0.2.1"))}, nil, map[string]string{
		"a": "192.0.2.2 from main", "b": "192.0.2.1 from main",
	}},
	{"held in a pool that is not eligible any more", []ipam.Claim{claim("a", holds("198.51.100.1"))}, nil, map[string]string{
		"a": "198.51.100.1 from other",
	}},
	{"held, and no pool has it any more", []ipam.Claim{claim("a", holds("10.0.0.1")), claim("b", holds("10.0.0.2"), wants("10.0.0.2"))}, nil, map[string]string{
		"a": "10.0.0.1 orphaned", "b": "10.0.0.2 orphaned",
	}},
	{"held by two, the older keeps it", []ipam.Claim{claim("b", holds("192.0.2.1")), claim("a", holds("192.0.2.1"))}, nil, map[string]string{
		"a": "192.0.2.1 from main", "b": "192.0.2.2 from main",
	}},
	{"held twice, and more than is wanted", []ipam.Claim{claim("a", holds("192.0.2.2", "192.0.2.2", "192.0.2.1", "2001:db8::1")), claim("b"), claim("c", wants("192.0.2.1"))}, nil, map[string]string{
		"a": "192.0.2.2 from main", "b": "192.0.2.3 from main",
		"c": `refused AddressInUse: requested address 192.0.2.1 is being given up by "default/a", and is free when every edge has let go of it`,
	}},
	{"held and unusable", []ipam.Claim{{Owner: "a", Families: []lb.Family{lb.IPv4}, EligiblePools: []string{"main"}, Held: []netip.Addr{{}, netip.MustParseAddr("::ffff:192.0.2.3"), netip.MustParseAddr("fe80::1%a")}}}, nil, map[string]string{
		"a": "192.0.2.1 from main",
	}},
	{"requests", []ipam.Claim{
		claim("a", wants("192.0.2.3")), claim("b", wants("192.0.2.3")), claim("c", wants("10.0.0.1")), claim("d", wants("198.51.100.1")),
		claim("e", wants("2001:db8::1")), claim("f", wants("192.0.2.1", "192.0.2.2")), claim("g", wants("203.0.113.1"), eligible("named")),
		claim("h", wants("192.0.2.1"), from("other"), eligible("main", "other")), claim("i", families()), claim("j", wants("::ffff:192.0.2.1")),
	}, nil, map[string]string{
		"a": "192.0.2.3 from main",
		"b": `refused AddressInUse: requested address 192.0.2.3 is in use by "default/a": ask for another address, or let both share it`,
		"c": "refused AddressOutsidePools: requested address 10.0.0.1 is outside every pool: ask for an address of one, or add it to one; the pools are common, main, named, other",
		"d": "refused PoolNotEligible: requested address 198.51.100.1 is in pool other, whose selectors do not select this Service: ask for an address of another pool, or change the selectors",
		"e": "refused AddressFamilyMismatch: requested address 2001:db8::1 is of family ipv6, but the Service is ipv4 only",
		"f": "refused InvalidAddressRequest: requested addresses 192.0.2.1, 192.0.2.2: at most one of each family can be had",
		"g": "203.0.113.1 from named",
		"h": `refused PoolNotEligible: requested address 192.0.2.1 is in pool main, but pool "other" is asked for: leave one of them out`,
		"i": "refused InvalidAddressRequest: no address family is wanted: at least one of ipv4 and ipv6 is needed",
		"j": `refused InvalidAddressRequest: requested address "::ffff:192.0.2.1" is not usable: it must be an IPv4 or IPv6 address without zone`,
	}},
	{"a request never takes from a holder", []ipam.Claim{claim("a", wants("192.0.2.1")), claim("b", late, holds("192.0.2.1"))}, nil, map[string]string{
		"a": `refused AddressInUse: requested address 192.0.2.1 is in use by "default/b": ask for another address, or let both share it`, "b": "192.0.2.1 from main",
	}},
	{"a request that changed moves", []ipam.Claim{claim("a", holds("192.0.2.1"), wants("192.0.2.3")), claim("b"), claim("c", wants("192.0.2.1"))}, nil, map[string]string{
		"a": "192.0.2.3 from main", "b": "192.0.2.2 from main",
		"c": `refused AddressInUse: requested address 192.0.2.1 is being given up by "default/a", and is free when every edge has let go of it`,
	}},
	{"a request that changed in vain", []ipam.Claim{claim("a", holds("192.0.2.1"), wants("192.0.2.2")), claim("b", holds("192.0.2.2"), wants("192.0.2.1")), claim("c", holds("192.0.2.3"), wants("10.0.0.1"))}, nil, map[string]string{
		"a": `192.0.2.1 from main; refused AddressInUse: requested address 192.0.2.2 is in use by "default/b": ask for another address, or let both share it`,
		"b": `192.0.2.2 from main; refused AddressInUse: requested address 192.0.2.1 is in use by "default/a": ask for another address, or let both share it`,
		"c": "192.0.2.3 from main; refused AddressOutsidePools: requested address 10.0.0.1 is outside every pool: ask for an address of one, or add it to one; the pools are common, main, named, other",
	}},
	{"another pool is asked for", []ipam.Claim{
		claim("a", holds("192.0.2.1"), from("named"), eligible("named")), claim("b", from("nowhere"), holds("192.0.2.2")), claim("c", from("other")),
		claim("d", from("named"), eligible("named"), holds("203.0.113.2")), claim("e", from("other"), eligible("other"), families(lb.IPv6)),
		claim("f", from("named"), eligible("named"), holds("192.0.2.3")),
	}, nil, map[string]string{
		"a": "203.0.113.1 from named",
		"b": `192.0.2.2 from main; refused PoolNotFound: pool "nowhere" does not exist: create it, or name another one; the pools are common, main, named, other`,
		"c": `refused PoolNotEligible: pool "other" may not be used: its selectors do not select this Service: name another pool, or change the selectors`,
		"d": "203.0.113.2 from named",
		"e": `refused NoEligiblePool: pool "other" has no ipv6 addresses; add some, or ask for another family`,
		"f": `192.0.2.3 from main; refused PoolExhausted: pool "named" has no free ipv4 address: 2 of 2 are in use, 0 in quarantine; add addresses to the pool, or delete what is not needed`,
	}},
	{"pools by name, as far as they are open", []ipam.Claim{
		claim("a", eligible("other", "main")), claim("b", eligible("other", "main", "named"), families(lb.IPv6)), claim("c", eligible("named")), claim("d", eligible()), claim("e", eligible("gone")),
	}, nil, map[string]string{
		"a": "192.0.2.1 from main",
		"b": "2001:db8::1 from main",
		"c": "refused NoEligiblePool: none of the pools that select this Service has ipv4 addresses and assigns them unasked: add some, or ask for a pool or an address by name; they are named",
		"d": "refused NoEligiblePool: no pool selects this Service: create one, or change the selectors of one; the pools are common, main, named, other",
		"e": "refused NoEligiblePool: none of the pools that select this Service has ipv4 addresses and assigns them unasked: add some, or ask for a pool or an address by name; they are gone",
	}},
	{"exhausted", []ipam.Claim{
		claim("a", eligible("other", "main")), claim("b", eligible("other", "main")), claim("c", eligible("other", "main")), claim("d", eligible("other", "main")), claim("e", eligible("other", "main")),
	}, map[string]ipam.Quarantine{"192.0.2.1": {Since: start}}, map[string]string{
		"a": "192.0.2.2 from main", "b": "192.0.2.3 from main", "c": "198.51.100.1 from other", "d": "198.51.100.2 from other",
		"e": `refused PoolExhausted: pool "main" has no free ipv4 address: 2 of 3 are in use, 1 in quarantine, pool "other" has no free ipv4 address: 2 of 2 are in use, 0 in quarantine; add addresses to the pool, or delete what is not needed`,
	}},
	{"quarantine", []ipam.Claim{claim("a", wants("192.0.2.1")), claim("b", wants("192.0.2.2")), claim("c", holds("192.0.2.3"))}, map[string]ipam.Quarantine{
		"192.0.2.1": {Since: start, Owner: "x"}, "192.0.2.2": {Since: start, Owner: "b"}, "192.0.2.3": {Since: start, Owner: "x"},
	}, map[string]string{
		"a": "refused AddressQuarantined: requested address 192.0.2.1 was freed at 2026-01-02T03:04:05Z, and is in quarantine until every edge has let go of it: wait, or bring back the edges that are not reached",
		"b": "192.0.2.2 from main", "c": "192.0.2.3 from main",
	}},
	{"two families", []ipam.Claim{
		claim("a", families(lb.IPv6, lb.IPv4)),
		claim("b", families(lb.IPv4, lb.IPv6), requireAll, holds("192.0.2.3")),
		claim("c", families(lb.IPv4, lb.IPv6), eligible("other")),
		claim("d", families(lb.IPv4, lb.IPv6), eligible("other"), requireAll),
		claim("e", families(lb.IPv4, lb.IPv6), eligible("other"), requireAll, holds("198.51.100.2")),
		claim("f", families(lb.IPv4, lb.IPv6), wants("2001:db8::5")),
		claim("g", families(lb.IPv4, lb.IPv6), wants("2001:db8::5")),
	}, nil, map[string]string{
		"a": "2001:db8::1 192.0.2.1 from main",
		"b": "192.0.2.3 2001:db8::2 from main",
		"c": "198.51.100.1 from other; missing NoEligiblePool: none of the pools that select this Service has ipv6 addresses and assigns them unasked: add some, or ask for a pool or an address by name; they are other",
		"d": `refused PoolExhausted: pool "other" has no free ipv4 address: 2 of 2 are in use, 0 in quarantine; add addresses to the pool, or delete what is not needed`,
		"e": "198.51.100.2 from other; refused NoEligiblePool: none of the pools that select this Service has ipv6 addresses and assigns them unasked: add some, or ask for a pool or an address by name; they are other",
		"f": "192.0.2.2 2001:db8::5 from main",
		"g": `refused AddressInUse: requested address 2001:db8::5 is in use by "default/f": ask for another address, or let both share it`,
	}},
	{"what a refused claim would have had stays free", []ipam.Claim{claim("a", families(lb.IPv4, lb.IPv6), requireAll, eligible("other")), claim("b", eligible("other"))}, nil, map[string]string{
		"a": "refused NoEligiblePool: none of the pools that select this Service has ipv6 addresses and assigns them unasked: add some, or ask for a pool or an address by name; they are other",
		"b": "198.51.100.1 from other",
	}},
	{"sharing", []ipam.Claim{
		claim("a", shares("k", 80)), claim("b", shares("k", 443)), claim("c", shares("k", 443)), claim("d", shares("l", 1000)),
		claim("e", shares("k", 8080), wants("192.0.2.1")), claim("f", shares("k", 80, 81), wants("192.0.2.1")),
		claim("g", shares("l", 1001), wants("192.0.2.1")), claim("h", wants("192.0.2.1")), claim("i", shares("m", 1), eligible("other")),
	}, nil, map[string]string{
		"a": "192.0.2.1 from main", "b": "192.0.2.1 from main", "c": "192.0.2.2 from main", "d": "192.0.2.3 from main",
		"e": "192.0.2.1 from main",
		"f": `refused AddressInUse: requested address 192.0.2.1 is shared with "default/a", which uses tcp port 80 as well: use another port or another address`,
		"g": `refused AddressInUse: requested address 192.0.2.1 is in use by "default/a", which does not have the sharing key "l": ask for another address, or give both the same key`,
		"h": `refused AddressInUse: requested address 192.0.2.1 is in use by "default/a": ask for another address, or let both share it`,
		"i": "198.51.100.1 from other",
	}},
	{"an address without sharing conflicts on other ports too", []ipam.Claim{claim("a", wants("192.0.2.1")), claim("b", shares("", 443), wants("192.0.2.1")), claim("c", shares("k", 444), wants("192.0.2.1"))}, nil, map[string]string{
		"a": "192.0.2.1 from main",
		"b": `refused AddressInUse: requested address 192.0.2.1 is in use by "default/a": ask for another address, or let both share it`,
		"c": `refused AddressInUse: requested address 192.0.2.1 is in use by "default/a", which does not have the sharing key "k": ask for another address, or give both the same key`,
	}},
	{"sharing what is held", []ipam.Claim{
		claim("a", shares("k", 80), holds("192.0.2.2")), claim("b", shares("k", 443), holds("192.0.2.2")), claim("c", shares("k", 8443), late), claim("d", shares("x", 99), holds("192.0.2.2")),
	}, nil, map[string]string{
		"a": "192.0.2.2 from main", "b": "192.0.2.2 from main", "c": "192.0.2.2 from main", "d": "192.0.2.1 from main",
	}},
	{"nobody joins what is in quarantine or being left", []ipam.Claim{
		claim("a", shares("k", 80), holds("192.0.2.1")), claim("b", shares("k", 443), holds("192.0.2.1"), wants("192.0.2.3")), claim("c", shares("k", 81)), claim("d", shares("k", 82), wants("192.0.2.1")),
	}, nil, map[string]string{
		"a": "192.0.2.1 from main", "b": "192.0.2.3 from main", "c": "192.0.2.3 from main",
		"d": `refused AddressInUse: requested address 192.0.2.1 is being given up by "default/b", and is free when every edge has let go of it`,
	}},
	{"no ports of a shared address in quarantine", []ipam.Claim{claim("a", shares("k", 80), holds("192.0.2.1")), claim("c", shares("k", 81))}, map[string]ipam.Quarantine{"192.0.2.1": {Since: start}}, map[string]string{
		"a": "192.0.2.1 from main", "c": "192.0.2.2 from main",
	}},
}

// TestReserved reserves ports of addresses that everybody shares, as when an edge has
// not let go of them.
func TestReserved(t *testing.T) {
	const one, six = "198.51.100.9", "2001:db8:9::1"
	tcp := func(port uint16) ipam.PortKey { return ipam.PortKey{Protocol: lb.TCP, Port: port} }
	kept := func(owner string, port uint16) map[netip.Addr]ipam.Reserved {
		return map[netip.Addr]ipam.Reserved{netip.MustParseAddr(one): {Ports: map[ipam.PortKey]ipam.Reservation{tcp(port): {Owner: owner, Why: "x has it"}}}}
	}
	unheard := map[netip.Addr]ipam.Reserved{netip.MustParseAddr(one): {All: "wait for e1"}, netip.MustParseAddr(six): {All: "wait for e1"}}
	for _, test := range []struct {
		name     string
		claims   []ipam.Claim
		reserved map[netip.Addr]ipam.Reserved
		want     map[string]string
	}{
		{"a single port", []ipam.Claim{
			claim("a", asks(80, 443), holds(one), uses(80)), claim("b", asks(443), wants(one)), claim("c", asks(443)), claim("d", asks(81)),
		}, kept("x", 443), map[string]string{
			"a": one + " from common; without tcp 443, x has it",
			"b": "refused AddressInUse: requested address 198.51.100.9 is shared, and tcp port 443 of it is not free: x has it",
			"c": `refused PoolExhausted: pool "common" has no ipv4 address with room: tcp port 443 of 198.51.100.9 is not free: x has it; add addresses to the pool, or delete what is not needed`,
			"d": one + " from common",
		}},
		{"whose it was has it back, and who uses it keeps it", []ipam.Claim{
			claim("a", asks(80, 443), holds(one), uses(80)), claim("b", asks(81), holds(one), uses(81)),
		}, kept("a", 443), map[string]string{"a": one + " from common", "b": one + " from common"}},
		{"who uses it keeps it", []ipam.Claim{claim("b", asks(443), holds(one), uses(443))}, kept("x", 443), map[string]string{"b": one + " from common"}},
		{"an address that nobody was told of and that has no port for who holds it", []ipam.Claim{
			claim("a", shares("k", 80), holds("192.0.2.1"), uses(80)), claim("b", shares("k", 443), holds("192.0.2.1")),
		}, map[netip.Addr]ipam.Reserved{netip.MustParseAddr("192.0.2.1"): {Ports: map[ipam.PortKey]ipam.Reservation{tcp(443): {Why: "x has it"}}}}, map[string]string{
			"a": "192.0.2.1 from main", "b": "192.0.2.2 from main",
		}},
		{"nothing that is new", []ipam.Claim{
			claim("a", asks(80, 443), holds(one), uses(80)), claim("b", asks(81), holds(one)), claim("c", asks(82)),
			claim("d", asks(80, 443), families(lb.IPv6), holds(six)),
		}, unheard, map[string]string{
			"a": one + " from common; without tcp 443, wait for e1",
			"b": one + " from common; without tcp 81, wait for e1",
			"c": `refused PoolExhausted: pool "common" has no ipv4 address with room: tcp port 82 of 198.51.100.9 is not free: wait for e1; add addresses to the pool, or delete what is not needed`,
			"d": six + " from common",
		}},
		{"who lacks a port on one address keeps it from nobody on the other", []ipam.Claim{
			claim("a", asks(443), holds(one), uses(443)),
			claim("b", asks(80, 443), families(lb.IPv4, lb.IPv6), holds(one, six), uses(80)),
			claim("c", asks(443), families(lb.IPv6), wants(six), late),
		}, nil, map[string]string{
			"a": one + " from common", "b": one + " " + six + " from common; without tcp 443, which default/a has", "c": six + " from common",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := map[string]string{}
			for owner, r := range ipam.Assign(testPools(), test.claims, nil, test.reserved) {
				got[owner] = text(r)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("results differ (-want +got):\n%s", diff)
			}
			checkProperties(t, testPools(), test.claims, nil, test.reserved)
		})
	}
}

// asks changes a claim to one on the ports of the pool that everybody shares.
func asks(ports ...uint16) part {
	return func(c *ipam.Claim) {
		shares("", ports...)(c)
		c.Pool, c.EligiblePools = "common", []string{"common"}
	}
}

// uses makes a claim known to use ports already of all that it holds.
func uses(ports ...uint16) part {
	return func(c *ipam.Claim) { usesOn(addrsText(c.Held), ports...)(c) }
}

// usesOn makes a claim known to use ports already of some addresses.
func usesOn(at []string, ports ...uint16) part {
	return func(c *ipam.Claim) {
		if c.HeldPorts == nil {
			c.HeldPorts = map[netip.Addr][]ipam.PortKey{}
		}
		for _, a := range addrs(at...) {
			c.HeldPorts[a] = nil
			for _, p := range ports {
				c.HeldPorts[a] = append(c.HeldPorts[a], ipam.PortKey{Protocol: lb.TCP, Port: p})
			}
		}
	}
}

func addrsText(all []netip.Addr) []string {
	var out []string
	for _, a := range all {
		out = append(out, a.String())
	}
	return out
}

func init() {
	const one = "198.51.100.9"
	assignTests = append(assignTests, []assignTest{
		{"a pool that everybody shares", []ipam.Claim{
			claim("a", asks(80)), claim("b", asks(443), shares("k", 443)), claim("c", asks(80, 81)), claim("d", asks(81), wants(one)), claim("e", asks(443), wants(one)),
		}, nil, map[string]string{
			"a": one + " from common", "b": one + " from common",
			"c": `refused PoolExhausted: pool "common" has no ipv4 address with room: tcp port 80 of 198.51.100.9 is "default/a"'s; add addresses to the pool, or delete what is not needed`,
			"d": one + " from common",
			"e": `refused AddressInUse: requested address 198.51.100.9 is shared with "default/b", which uses tcp port 443 as well: use another port or another address`,
		}},
		{"free addresses come first", []ipam.Claim{claim("a", asks(80), families(lb.IPv6)), claim("b", asks(81), families(lb.IPv6)), claim("c", asks(82), families(lb.IPv6)), claim("d", asks(80), families(lb.IPv6))}, nil, map[string]string{
			"a": "2001:db8:9::1 from common", "b": "2001:db8:9::2 from common", "c": "2001:db8:9::1 from common", "d": "2001:db8:9::2 from common",
		}},
		{"whoever is older takes no port that another uses", []ipam.Claim{
			claim("a", asks(80, 443), holds(one), uses(80)), claim("b", asks(443), holds(one), uses(443)), claim("c", asks(80, 443), holds(one)),
		}, nil, map[string]string{
			"a": `198.51.100.9 from common; without tcp 443, which default/b has`,
			"b": one + " from common",
			"c": `refused PoolExhausted: pool "common" has no ipv4 address with room: tcp port 80 of 198.51.100.9 is "default/a"'s; add addresses to the pool, or delete what is not needed`,
		}},
		{"of two ports that are new the older claim has both", []ipam.Claim{
			claim("a", asks(80, 443), holds(one), uses(80)), claim("b", asks(81, 443), holds(one), uses(81)),
		}, nil, map[string]string{
			"a": one + " from common", "b": `198.51.100.9 from common; without tcp 443, which default/a has`,
		}},
		{"who shared goes on when the pool is not shared any more", []ipam.Claim{
			claim("a", holds("192.0.2.1"), shares("", 80), uses(80)), claim("b", holds("192.0.2.1"), shares("", 443), uses(443)),
			claim("c", holds("192.0.2.1"), shares("", 444)), claim("d", shares("", 445), wants("192.0.2.1")),
		}, nil, map[string]string{
			"a": "192.0.2.1 from main", "b": "192.0.2.1 from main", "c": "192.0.2.2 from main",
			"d": `refused AddressInUse: requested address 192.0.2.1 is in use by "default/a": ask for another address, or let both share it`,
		}},
		{"ports are known of one address and not of another", []ipam.Claim{
			claim("a", shares("", 443), holds("198.51.100.9", "192.0.2.1"), usesOn([]string{"192.0.2.1"}, 443)), claim("b", asks(443), late, holds(one), uses(443)),
		}, nil, map[string]string{
			"a": "192.0.2.1 from main", "b": one + " from common",
		}},
		{"whoever comes to want only what another has stays without", []ipam.Claim{
			claim("a", asks(443), holds(one), uses(443)), claim("b", asks(443), holds(one), uses(80)),
		}, nil, map[string]string{
			"a": one + " from common", "b": `198.51.100.9 from common; without tcp 443, which default/a has`,
		}},
		{"whose port it is is not known, and nobody moves", []ipam.Claim{
			claim("a", asks(80, 443), holds(one)), claim("b", asks(443), holds(one)),
		}, nil, map[string]string{
			"a": one + " from common", "b": `198.51.100.9 from common; without tcp 443, which default/a has`,
		}},
		{"who shared by a key goes on when one has another, and nobody joins them", []ipam.Claim{
			claim("a", holds("192.0.2.1"), shares("", 80), uses(80)), claim("b", holds("192.0.2.1"), shares("k", 443), uses(443)),
			claim("c", shares("k", 444)), claim("d", shares("k", 445), wants("192.0.2.1")),
		}, nil, map[string]string{
			"a": "192.0.2.1 from main", "b": "192.0.2.1 from main", "c": "192.0.2.2 from main",
			"d": `refused AddressInUse: requested address 192.0.2.1 is in use by "default/a", which does not have the sharing key "k": ask for another address, or give both the same key`,
		}},
		{"a key must be that of all who share", []ipam.Claim{
			claim("a", holds("192.0.2.1"), shares("k", 80), uses(80)), claim("b", holds("192.0.2.1"), shares("l", 443), uses(443)),
			claim("c", shares("k", 444)), claim("d", shares("k", 445), wants("192.0.2.1")),
		}, nil, map[string]string{
			"a": "192.0.2.1 from main", "b": "192.0.2.1 from main", "c": "192.0.2.2 from main",
			"d": `refused AddressInUse: requested address 192.0.2.1 is in use by "default/b", which does not have the sharing key "k": ask for another address, or give both the same key`,
		}},
		{"a port of a shared key", []ipam.Claim{
			claim("a", shares("k", 80, 443), holds("192.0.2.1"), uses(80)), claim("b", shares("k", 443), holds("192.0.2.1"), uses(443)),
		}, nil, map[string]string{
			"a": "192.0.2.1 from main; without tcp 443, which default/b has", "b": "192.0.2.1 from main",
		}},
	}...)
}

// text writes a result for the tables above.
func text(r ipam.Result) string {
	var parts []string
	for _, a := range r.Addresses {
		parts = append(parts, a.String())
	}
	if r.Pool != "" {
		parts = append(parts, "from "+r.Pool)
	}
	if len(r.Orphaned) > 0 {
		parts = append(parts, "orphaned")
	}
	all := []string{}
	if len(parts) > 0 {
		all = append(all, strings.Join(parts, " "))
	}
	for _, x := range r.Clashes {
		why := "which " + x.Holder + " has"
		if x.Why != "" {
			why = x.Why
		}
		all = append(all, fmt.Sprintf("without %s %d, %s", x.Port.Protocol, x.Port.Port, why))
	}
	if r.Refusal != nil {
		all = append(all, fmt.Sprintf("refused %s: %s", r.Refusal.Reason, r.Refusal.Detail))
	}
	if r.Missing != nil {
		all = append(all, fmt.Sprintf("missing %s: %s", r.Missing.Reason, r.Missing.Detail))
	}
	return strings.Join(all, "; ")
}

func TestAssign(t *testing.T) {
	for _, test := range assignTests {
		t.Run(test.name, func(t *testing.T) {
			quarantined := map[netip.Addr]ipam.Quarantine{}
			for a, q := range test.quarantined {
				quarantined[netip.MustParseAddr(a)] = q
			}
			got := map[string]string{}
			results := ipam.Assign(testPools(), test.claims, quarantined, nil)
			for owner, r := range results {
				got[owner] = text(r)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("results differ (-want +got):\n%s", diff)
			}
			checkProperties(t, testPools(), test.claims, quarantined, nil)
		})
	}
}

func TestRefusalKinds(t *testing.T) {
	for reason, want := range map[ipam.Reason]error{
		ipam.InUse: lb.ErrAddressHeld, ipam.Quarantined: lb.ErrConflict, ipam.Exhausted: lb.ErrExhausted, ipam.NoPool: lb.ErrNotFound,
		ipam.PoolNotFound: lb.ErrNotFound, ipam.OutsidePools: lb.ErrInvalid, ipam.InvalidClaim: lb.ErrInvalid, "new": lb.ErrInvalid,
	} {
		var err error = &ipam.Refusal{Reason: reason, Detail: "detail"}
		if !errors.Is(err, want) || err.Error() != "detail" {
			t.Errorf("%s: got %v; want an error of kind %v", reason, err, want)
		}
	}
}
