package healthcheck

import (
	"hash/maphash"
	"net/netip"
	"time"
)

// class is what Targets have in common that differ only in address and port.
type class struct {
	Spec        // as given: part of the target's identity
	zone string // of the addresses
	bits int    // of the addresses: 32, 128, or 0 of those that are none
}

func classOf(t Target) class {
	a := t.Addr.Addr()
	return class{t.Spec, a.Zone(), a.BitLen()}
}

// kind is a class in use, shared by its targets.
type kind struct {
	as     class
	spec   Spec // as probed: defaults filled in, within the limits
	prober Prober
	refs   int // guarded by Checker.setMu
}

// key is a Target in little memory: what else there is of its address is its kind's.
type key struct {
	ip   [16]byte
	port uint16
	kind *kind
}

func keyOf(addr netip.AddrPort, k *kind) key { return key{addr.Addr().As16(), addr.Port(), k} }

// entry is a target in the set. What its key is made of never changes; Checker.mu
// guards the rest. An edge may hold 100,000, so the fields stand where none of the
// 96 bytes is lost to alignment.
type entry struct {
	ip   [16]byte
	kind *kind
	next *entry // in the chain of the index
	record

	// The place in the schedule. Times are of the Checker's clock.
	due  time.Duration // when the next probe is to start, or the present one was
	deaf time.Duration // until when hints are ignored
	pos  int32         // in the queue, or one of the constants below

	port    uint16
	settled bool // has had a probe that counted
	spread  bool // has a random phase within its interval
}

// Where an entry is that is not in the queue.
const (
	unqueued int32 = -1 - iota // parked, or its probe is under way
	removed                    // not in the set any more
)

func newEntry(addr netip.AddrPort, k *kind, r record) *entry {
	return &entry{ip: addr.Addr().As16(), port: addr.Port(), kind: k, record: r, pos: unqueued}
}

func (e *entry) key() key { return key{e.ip, e.port, e.kind} }

// gone says whether the entry was removed from the set.
func (e *entry) gone() bool { return e.pos == removed }

func (e *entry) addr() netip.AddrPort {
	var a netip.Addr
	switch e.kind.as.bits {
	case 32:
		a = netip.AddrFrom16(e.ip).Unmap()
	case 128:
		a = netip.AddrFrom16(e.ip).WithZone(e.kind.as.zone)
	}
	return netip.AddrPortFrom(a, e.port)
}

func (e *entry) target() Target { return Target{e.addr(), e.kind.as.Spec} }

// index finds entries by key. A map would hold the key a second time and take more
// than half as much again as the entries.
type index struct {
	seed   maphash.Seed
	chains []*entry // by hash; a power of two of them
	len    int
}

func newIndex() index { return index{seed: maphash.MakeSeed(), chains: make([]*entry, 1)} }

// chain returns where the chain begins that a key belongs to.
func (x *index) chain(k key) **entry {
	return &x.chains[maphash.Comparable(x.seed, k)%uint64(len(x.chains))]
}

func (x *index) find(k key) *entry {
	e := *x.chain(k)
	for e != nil && e.key() != k {
		e = e.next
	}
	return e
}

// add enters an entry whose key has none.
func (x *index) add(e *entry) {
	const most = 4 // entries for each chain
	if x.len >= most*len(x.chains) {
		x.grow()
	}
	x.put(e)
	x.len++
}

func (x *index) put(e *entry) {
	first := x.chain(e.key())
	e.next, *first = *first, e
}

func (x *index) grow() {
	before := *x
	x.chains = make([]*entry, 2*len(before.chains))
	for _, e := range before.chains {
		for e != nil {
			next := e.next
			x.put(e)
			e = next
		}
	}
}

// remove takes an entry out that is there.
func (x *index) remove(e *entry) {
	at := x.chain(e.key())
	for *at != e {
		at = &(*at).next
	}
	*at, e.next = e.next, nil
	x.len--
}

// all yields every entry, in any order.
func (x *index) all(yield func(*entry) bool) {
	for _, e := range x.chains {
		for ; e != nil; e = e.next {
			if !yield(e) {
				return
			}
		}
	}
}
