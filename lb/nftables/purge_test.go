package nftables

import (
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// homes tells where the kernel sends the clients that it remembers.
func (b *bench) homes() map[string]netip.Addr {
	b.Helper()
	s, err := dial()
	if err != nil {
		b.Fatal(err)
	}
	defer s.close()
	all := make(map[string]netip.Addr)
	if err := s.read("clients"+b.version().suffix, func(f found) {
		all[f.key], _ = netip.AddrFromSlice([]byte(f.data))
	}); err != nil {
		b.Fatal(err)
	}
	return all
}

// remember adds what a packet would have the table remember.
func (b *bench) remember(key string, member netip.Addr) {
	b.Helper()
	s, err := dial()
	if err != nil {
		b.Fatal(err)
	}
	defer s.close()
	set := "clients" + b.version().suffix
	w := newBatch()
	w.elements(unix.NFT_MSG_NEWSETELEM, set, []element{{set, key, value{data: string(member.AsSlice()), timeout: time.Hour}}})
	if err := s.commit(w); err != nil {
		b.Fatal(err)
	}
}

// homed is a route with affinity and a client that is at home at the member of the
// index.
func (b *bench) homed() (f lb.Frontend, key string, at int) {
	b.Helper()
	members := []netip.Addr{b.member(), b.member()}
	f = b.add(lb.TCP, members...)
	b.change(f, func(r *lb.Route) { r.AffinityFor = time.Hour })
	b.set()
	b.dial(f)
	for k, a := range b.homes() {
		for i, m := range members {
			if a == m {
				return f, k, i
			}
		}
	}
	b.Fatalf("after a connection: got homes %v; want one at %v", b.homes(), members)
	return f, "", 0
}

// moves checks that the client comes to the other member.
func (b *bench) moves(f lb.Frontend, key string, from int, why string) {
	b.Helper()
	members := b.table.Groups[b.table.Routes[f].Group].Backends
	was := members[from].Addr
	if a, there := b.homes()[key]; there && a == was {
		b.Fatalf("%s: the client is still sent to %s", why, a)
	}
	b.dial(f)
	if a := b.homes()[key]; !a.IsValid() || a == was {
		b.Errorf("%s: got the client at home at %s; want the other member", why, a)
	}
}

// homesAfterRestart: who was at home at a member that has died while nobody ran is
// not sent there.
func homesAfterRestart(b *bench) {
	f, key, at := b.homed()
	b.begin(Options{})
	b.state(f, at, lb.Dead)
	b.set()
	b.moves(f, key, at, "its member has died while nobody ran")

	f, key, at = b.homed()
	b.begin(Options{})
	b.set()
	if a, there := b.homes()[key]; !there || a != b.table.Groups[b.table.Routes[f].Group].Backends[at].Addr {
		b.Errorf("its member is well after a restart: got it at home at %v; want it as before", a)
	}
}

// homesInAnotherPool: the pool that a route gets has not all members of the one
// before.
func homesInAnotherPool(b *bench) {
	f, key, at := b.homed()
	all := b.table.Groups[b.table.Routes[f].Group].Backends
	narrow := lb.GroupID{Cluster: "c", Name: "narrow", Family: b.family}
	b.table.Groups[narrow] = lb.Group{Backends: []lb.Backend{all[1-at]}}
	b.change(f, func(r *lb.Route) { r.Group = narrow })
	b.set()
	if a, there := b.homes()[key]; there {
		b.Fatalf("its member is not in the route's pool any more: the client is still sent to %s", a)
	}
	b.dial(f)
	if a := b.homes()[key]; a != all[1-at].Addr {
		b.Errorf("after the change of the pool: got the client at home at %s; want %s", a, all[1-at].Addr)
	}
}

// homesComeBack: a packet that was on its way has the dead member remembered after
// all was forgotten.
func homesComeBack(b *bench) {
	f, key, at := b.homed()
	dead := b.table.Groups[b.table.Routes[f].Group].Backends[at].Addr
	b.state(f, at, lb.Dead)
	b.set()
	b.remember(key, dead)
	b.eventually("the client is forgotten again", func() bool { return b.homes()[key] != dead })
	b.moves(f, key, at, "a late packet had it remembered")
}

// homesUnread: what could not be read or deleted is tried again.
func homesUnread(b *bench) {
	f, key, at := b.homed()
	dead := b.table.Groups[b.table.Routes[f].Group].Backends[at].Addr
	b.state(f, at, lb.Dead)
	b.set()
	b.eventually("the second look", func() bool {
		b.engine.mu.Lock()
		defer b.engine.mu.Unlock()
		return b.engine.purgeAt.IsZero()
	})
	b.remember(key, dead)
	b.engine.mu.Lock()
	good := b.engine.rules.fd
	b.engine.rules.fd = -1
	b.engine.purgeClients(time.Now())
	b.engine.rules.fd = good
	b.engine.mu.Unlock()
	b.eventually("the client is forgotten", func() bool { return b.homes()[key] != dead })
}

// homesOfMany: with very many clients the keeper looks through them.
func homesOfMany(b *bench) {
	f, key, at := b.homed()
	b.engine.mu.Lock()
	b.engine.clients = maxClientsAtOnce + 1
	b.engine.mu.Unlock()
	b.state(f, at, lb.Draining)
	b.set()
	b.eventually("the client is forgotten", func() bool { _, there := b.homes()[key]; return !there })
	b.moves(f, key, at, "its member drains")
}

// homesOfManyComeBack: with very many clients the keeper looks through them twice too,
// though it has found nothing at first.
func homesOfManyComeBack(b *bench) {
	f, key, at := b.homed()
	dead := b.table.Groups[b.table.Routes[f].Group].Backends[at].Addr
	set := "clients" + b.version().suffix
	b.engine.mu.Lock()
	b.engine.deleteQuietly(set, []element{{set: set, key: key}})
	b.engine.clients = maxClientsAtOnce + 1
	b.engine.mu.Unlock()
	b.state(f, at, lb.Dead)
	b.set()
	b.eventually("the first look", func() bool {
		b.engine.mu.Lock()
		defer b.engine.mu.Unlock()
		return b.engine.clients <= maxClientsAtOnce
	})
	b.remember(key, dead)
	b.eventually("the client is forgotten again", func() bool { return b.homes()[key] != dead })
}

// forgetsQuietly: what has ended by itself among much else costs few transactions.
func forgetsQuietly(b *bench) {
	b.homed()
	set := "clients" + b.version().suffix
	all, member := make([]element, 2*maxElements), string(b.member().AsSlice())
	for i := range all {
		client := netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})
		if b.family == lb.IPv6 {
			client = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: byte(i >> 8), 15: byte(i)})
		}
		all[i] = element{set, string(markAddr(ofRoute|1, client)), value{data: member, timeout: time.Hour}}
	}
	b.engine.mu.Lock()
	defer b.engine.mu.Unlock()
	w := newBatch()
	w.elements(unix.NFT_MSG_NEWSETELEM, set, slices.Delete(slices.Clone(all), 700, 701))
	if err := b.engine.rules.commit(w); err != nil {
		b.Fatal(err)
	}
	before := b.engine.rules.seq
	if !b.engine.deleteQuietly(set, all) {
		b.Fatal("some are left")
	}
	if asked := b.engine.rules.seq - before; asked > 40 {
		b.Errorf("after a thousand elements of which one had ended: got %d transactions; want tens", asked)
	}
	if left := b.homes(); len(left) > 1 {
		b.Errorf("%d are left; want none but the client of before", len(left)-1)
	}
}
