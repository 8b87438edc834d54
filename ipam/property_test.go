package ipam_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eclusa-lb/eclusa/ipam"
	"github.com/eclusa-lb/eclusa/lb"
)

var addrsEqual = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// checkProperties shows what must be true of every assignment.
func checkProperties(t *testing.T, pools []ipam.Pool, claims []ipam.Claim, quarantined map[netip.Addr]ipam.Quarantine, reserved map[netip.Addr]ipam.Reserved) {
	t.Helper()
	results := ipam.Assign(pools, claims, quarantined, reserved)
	for _, c := range claims {
		checkClaim(t, pools, c, results[c.Owner], quarantined)
	}
	checkTenants(t, pools, claims, results)
	checkPorts(t, claims, reserved, results)

	shuffled, shuffledPools := slices.Clone(claims), slices.Clone(pools)
	slices.Reverse(shuffled)
	slices.Reverse(shuffledPools)
	for i := range shuffled {
		shuffled[i].EligiblePools = slices.Clone(shuffled[i].EligiblePools)
		slices.Reverse(shuffled[i].EligiblePools)
	}
	if diff := cmp.Diff(results, ipam.Assign(shuffledPools, shuffled, quarantined, reserved), addrsEqual); diff != "" {
		t.Errorf("the order of the input matters (-one +other):\n%s", diff)
	}
	checkStable(t, pools, claims, quarantined, reserved, results)
}

// checkStable takes the results as what is held, and what was left as freed, and
// shows that assigning again moves nobody.
func checkStable(t *testing.T, pools []ipam.Pool, claims []ipam.Claim, quarantined map[netip.Addr]ipam.Quarantine, reserved map[netip.Addr]ipam.Reserved, results map[string]ipam.Result) {
	t.Helper()
	freed := map[netip.Addr]ipam.Quarantine{}
	for a, q := range quarantined {
		freed[a] = q
	}
	next := slices.Clone(claims)
	for i, c := range next {
		next[i].Held, next[i].HeldPorts = results[c.Owner].Addresses, map[netip.Addr][]ipam.PortKey{}
		for _, a := range next[i].Held {
			next[i].HeldPorts[a] = results[c.Owner].Ports
		}
		for _, a := range c.Held {
			if !slices.Contains(next[i].Held, a) {
				freed[a] = ipam.Quarantine{Since: c.Time}
			}
		}
	}
	again := ipam.Assign(pools, next, freed, reserved)
	checkTenants(t, pools, next, again)
	for _, c := range next {
		before, after := results[c.Owner], again[c.Owner]
		if !slices.Equal(before.Addresses, after.Addresses) || before.Pool != after.Pool || (before.Refusal == nil) != (after.Refusal == nil) {
			t.Errorf("%s: assigning again changes %q to %q", c.Owner, text(before), text(after))
		}
	}
}

func checkClaim(t *testing.T, pools []ipam.Pool, c ipam.Claim, r ipam.Result, quarantined map[netip.Addr]ipam.Quarantine) {
	t.Helper()
	if len(r.Addresses) == 0 && r.Refusal == nil {
		t.Errorf("%s: has neither an address nor a refusal", c.Owner)
	}
	if r.Refusal == nil && c.RequireAll && len(r.Addresses) != len(c.Families) {
		t.Errorf("%s: has %d addresses of %d", c.Owner, len(r.Addresses), len(c.Families))
	}
	if r.Refusal == nil && r.Missing == nil && len(r.Addresses) != len(c.Families) {
		t.Errorf("%s: lacks addresses without a reason", c.Owner)
	}
	for _, f := range []*ipam.Refusal{r.Refusal, r.Missing} {
		if f != nil && (f.Reason == "" || f.Detail == "" || len(f.Detail) > 2000) {
			t.Errorf("%s: has the refusal %+v", c.Owner, f)
		}
	}
	var of []lb.Family
	for _, a := range r.Addresses {
		of = append(of, lb.FamilyOf(a))
		held := slices.Contains(c.Held, a)
		inPool := slices.ContainsFunc(pools, func(p ipam.Pool) bool {
			return slices.ContainsFunc(p.Ranges, func(r ipam.Range) bool { return r.Contains(a) }) &&
				(held || slices.Contains(c.EligiblePools, p.Name) && (c.Pool == "" || c.Pool == p.Name) && (p.AutoAssign || c.Pool != "" || slices.Contains(c.Requested, a)))
		})
		if !inPool && !held || slices.Contains(r.Orphaned, a) && inPool {
			t.Errorf("%s: has %s, which no pool gives it", c.Owner, a)
		}
		if q, ok := quarantined[a]; ok && !held && q.Owner != c.Owner {
			t.Errorf("%s: has %s, which is in quarantine", c.Owner, a)
		}
	}
	if len(slices.Compact(of)) != len(r.Addresses) || !subsequence(of, c.Families) {
		t.Errorf("%s: has addresses of the families %v; wants %v", c.Owner, of, c.Families)
	}
	if r.Refusal == nil {
		for _, a := range c.Requested {
			if !slices.Contains(r.Addresses, a) {
				t.Errorf("%s: has not the requested %s, and no refusal", c.Owner, a)
			}
		}
	}
}

// subsequence reports whether all of part are in whole, in the same order.
func subsequence[T comparable](part, whole []T) bool {
	for _, v := range whole {
		if len(part) > 0 && part[0] == v {
			part = part[1:]
		}
	}
	return len(part) == 0
}

// checkPorts shows that a port stays with the only claim that is known to use it,
// that nobody gets one that is reserved, and that a port is kept from others only by
// who has it.
func checkPorts(t *testing.T, claims []ipam.Claim, reserved map[netip.Addr]ipam.Reserved, results map[string]ipam.Result) {
	t.Helper()
	uses := func(c ipam.Claim, a netip.Addr, p ipam.PortKey) bool {
		return slices.Contains(c.Held, a) && slices.Contains(c.HeldPorts[a], p) && slices.Contains(c.Ports, p)
	}
	for _, c := range claims {
		r := results[c.Owner]
		for _, a := range r.Addresses {
			others := slices.ContainsFunc(claims, func(o ipam.Claim) bool { return o.Owner != c.Owner && slices.Contains(o.Held, a) })
			for _, p := range r.Ports {
				if i := slices.IndexFunc(claims, func(o ipam.Claim) bool { return uses(o, a, p) }); i >= 0 && claims[i].Owner != c.Owner &&
					!uses(c, a, p) && slices.Contains(results[claims[i].Owner].Addresses, a) && slices.Contains(results[claims[i].Owner].Ports, p) {
					t.Errorf("%s: has %v of %s, which %s uses", c.Owner, p, a, claims[i].Owner)
				}
				keep, kept := reserved[a].Ports[p]
				all := reserved[a].All != "" && (others || !slices.Contains(c.Held, a))
				shared := others || c.SharingKey != ""
				if shared && !uses(c, a, p) && (all || kept && keep.Owner != c.Owner) {
					t.Errorf("%s: has %v of %s, which is reserved", c.Owner, p, a)
				}
			}
		}
		for _, x := range r.Clashes {
			i := slices.IndexFunc(claims, func(o ipam.Claim) bool { return o.Name == x.Holder })
			switch {
			case (x.Holder == "") == (x.Why == ""):
				t.Errorf("%s: goes without %v of %s, and it says of %q and of %q why", c.Owner, x.Port, x.Address, x.Holder, x.Why)
			case i >= 0 && !slices.Contains(results[claims[i].Owner].Ports, x.Port):
				t.Errorf("%s: goes without %v of %s for %s, which does not have it either", c.Owner, x.Port, x.Address, x.Holder)
			}
			// Who lacks a port on another of his addresses gives it up on this one too.
			if len(c.Held) == 1 && uses(c, x.Address, x.Port) && (i < 0 || !uses(claims[i], x.Address, x.Port)) {
				t.Errorf("%s: loses %v of %s to %q", c.Owner, x.Port, x.Address, x.Holder)
			}
		}
	}
}

// checkTenants shows that no address, or no port of a shared one, is given twice.
func checkTenants(t *testing.T, pools []ipam.Pool, claims []ipam.Claim, results map[string]ipam.Result) {
	t.Helper()
	type frontend struct {
		addr netip.Addr
		port ipam.PortKey
	}
	common := func(a netip.Addr) bool {
		return slices.ContainsFunc(pools, func(p ipam.Pool) bool {
			return p.Shared && slices.ContainsFunc(p.Ranges, func(r ipam.Range) bool { return r.Contains(a) })
		})
	}
	keys, owners, ports := map[netip.Addr]string{}, map[netip.Addr]string{}, map[frontend]string{}
	together := map[netip.Addr]bool{} // all who have it held it before
	for _, c := range claims {
		for _, a := range results[c.Owner].Addresses {
			_, known := c.HeldPorts[a]
			before := slices.Contains(c.Held, a) && known
			if owner, taken := owners[a]; taken && !common(a) && (c.SharingKey == "" || keys[a] != c.SharingKey) && (!before || !together[a]) {
				t.Errorf("%s is given to %s and %s, which do not share", a, owner, c.Owner)
			}
			_, taken := owners[a]
			together[a] = before && (!taken || together[a])
			owners[a], keys[a] = c.Owner, c.SharingKey
			for _, p := range results[c.Owner].Ports {
				if owner, taken := ports[frontend{a, p}]; taken && owner != c.Owner {
					t.Errorf("%s %v is given to %s and %s", a, p, owner, c.Owner)
				}
				ports[frontend{a, p}] = c.Owner
			}
		}
	}
}

func pick[T any](r *rand.Rand, values ...T) T { return values[r.IntN(len(values))] }

func randomAddr(r *rand.Rand) netip.Addr {
	return pick(r, addrs("192.0.2.1", "192.0.2.2", "192.0.2.3", "198.51.100.1", "198.51.100.2", "198.51.100.9", "2001:db8:9::1", "203.0.113.1", "10.0.0.1", "2001:db8::1", "2001:db8::2", "2001:db8:3::1", "fd00::1")...)
}

func randomClaims(r *rand.Rand) []ipam.Claim {
	var claims []ipam.Claim
	for i := range r.IntN(9) {
		c := ipam.Claim{
			Owner: fmt.Sprintf("u%d", i), Name: fmt.Sprintf("default/%d", i), Time: start.Add(time.Duration(r.IntN(3)) * time.Second),
			Families:   pick(r, []lb.Family{lb.IPv4}, []lb.Family{lb.IPv4}, []lb.Family{lb.IPv6}, []lb.Family{lb.IPv4, lb.IPv6}, []lb.Family{lb.IPv6, lb.IPv4}),
			RequireAll: r.IntN(2) == 0, Pool: pick(r, "", "", "", "main", "named", "common", "common", "gone"),
			EligiblePools: pick(r, []string{"main", "other"}, []string{"main"}, []string{"main", "named", "other", "common"}, []string{"common"}, nil),
			SharingKey:    pick(r, "", "", "k", "k", "l"),
		}
		for range r.IntN(3) {
			c.Ports = append(c.Ports, ipam.PortKey{Protocol: lb.TCP, Port: uint16(80 + r.IntN(3))})
		}
		if r.IntN(3) == 0 {
			c.Requested = append(c.Requested, randomAddr(r))
		}
		c.HeldPorts = map[netip.Addr][]ipam.PortKey{}
		for range r.IntN(3) {
			a := randomAddr(r)
			c.Held = append(c.Held, a)
			if r.IntN(2) == 0 {
				c.HeldPorts[a] = slices.Clone(c.Ports[:r.IntN(len(c.Ports)+1)])
			}
		}
		claims = append(claims, c)
	}
	return claims
}

// randomReserved reserves something of addresses that claims hold.
func randomReserved(r *rand.Rand, claims []ipam.Claim) map[netip.Addr]ipam.Reserved {
	reserved := map[netip.Addr]ipam.Reserved{}
	for _, c := range claims {
		for _, a := range c.Held {
			switch r.IntN(6) {
			case 0:
				reserved[a] = ipam.Reserved{All: "an edge has not told yet"}
			case 1:
				p := ipam.PortKey{Protocol: lb.TCP, Port: uint16(80 + r.IntN(3))}
				reserved[a] = ipam.Reserved{Ports: map[ipam.PortKey]ipam.Reservation{p: {Owner: pick(r, "", "u1", "gone"), Why: "an edge has not let go"}}}
			}
		}
	}
	return reserved
}

func TestAssignProperties(t *testing.T) {
	for seed := range uint64(5000) {
		r := rand.New(rand.NewPCG(seed, 0))
		quarantined := map[netip.Addr]ipam.Quarantine{}
		for range r.IntN(3) {
			quarantined[randomAddr(r)] = ipam.Quarantine{Since: start, Owner: pick(r, "", "u1", "u2")}
		}
		claims := randomClaims(r)
		checkProperties(t, testPools(), claims, quarantined, randomReserved(r, claims))
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// manyClaims returns so many claims; every second one holds its address if held
// is set.
func manyClaims(n int, held bool) []ipam.Claim {
	claims := make([]ipam.Claim, n)
	for i := range claims {
		claims[i] = claim(fmt.Sprintf("4f5a1f3e-0000-4000-8000-%012d", i), eligible("large"))
		claims[i].Time = start.Add(time.Duration(i%1000) * time.Second)
		if held && i%2 == 0 {
			claims[i].Held = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}
		}
	}
	return claims
}

func BenchmarkAssign(b *testing.B) {
	for _, bench := range []struct {
		name   string
		claims []ipam.Claim
		pools  []ipam.Pool
		served int
	}{
		{"5000 new", manyClaims(5000, false), []ipam.Pool{pool("large", "10.0.0.0/8")}, 5000},
		{"5000 half held", manyClaims(5000, true), []ipam.Pool{pool("large", "10.0.0.0-10.255.255.255")}, 5000},
		{"5000 of which 254 fit", manyClaims(5000, false), []ipam.Pool{pool("large", "192.0.2.0/24")}, 254},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				served := 0
				for _, r := range ipam.Assign(bench.pools, bench.claims, nil, nil) {
					served += len(r.Addresses)
				}
				if served != bench.served {
					b.Fatalf("%d claims have an address; want %d", served, bench.served)
				}
			}
		})
	}
}
