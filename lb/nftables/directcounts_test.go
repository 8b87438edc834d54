package nftables

import (
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// counted returns the counters of a frontend.
func (r *directRig) counted(f lb.Frontend) lb.RouteCounters {
	r.Helper()
	for _, c := range r.engine.Counters() {
		if c.Frontend == f {
			return c
		}
	}
	r.Fatalf("%s has no counters", f)
	return lb.RouteCounters{}
}

// numberOf returns the number of a node.
func (r *directRig) numberOf(node int) mark {
	r.engine.mu.Lock()
	defer r.engine.mu.Unlock()
	return r.engine.direct.numbers[r.node(node)]
}

// begun counts the table's elements for connections of a frontend that began.
func (r *directRig) begun(f lb.Frontend) (n int) {
	r.Helper()
	s, err := dial()
	if err != nil {
		r.Fatal(err)
	}
	defer s.close()
	v := versionOf(f.Addr)
	if err := s.read("begun"+v.suffix, func(e found) {
		if front, _ := tupleAndNumber(v, []byte(e.key)); front == f {
			n++
		}
	}); err != nil {
		r.Fatal(err)
	}
	return n
}

// directCountsOfNumbers: when a node's number is taken back its route has accepted as
// much as before, and whoever gets the number begins at zero.
func directCountsOfNumbers(r *directRig) { r.countsOfNumbers(func() {}) }

// directCountsBeforeRestart: likewise if the program is started again meanwhile.
func directCountsBeforeRestart(r *directRig) { r.countsOfNumbers(r.begin) }

func (r *directRig) countsOfNumbers(meanwhile func()) {
	r.Helper()
	f := r.add(lb.TCP)
	r.mustSet()
	_, _ = r.on(0, f), r.on(1, f)
	accepted, was := r.counted(f).Accepted, r.numberOf(0)
	id := r.table.Routes[f].Group
	all := r.table.Groups[id].Backends
	r.table.Groups[id] = lb.Group{Backends: all[1:]}
	r.mustSet()
	e := r.engine
	e.mu.Lock()
	e.direct.leaving[r.node(0)] = time.Now()
	e.sweepAt(time.Now())
	e.mu.Unlock()
	r.eventually("the number is taken back", func() bool {
		r.mustSet()
		return r.numberOf(0) == 0
	})
	if now := r.counted(f).Accepted; now != accepted {
		r.Errorf("accepted after a number was taken back: got %d; want %d as before", now, accepted)
	}
	meanwhile()
	e = r.engine
	back := all[0]
	back.Node = "other"
	r.table.Groups[id] = lb.Group{Backends: []lb.Backend{back, all[1]}}
	r.mustSet()
	if r.numberOf(0) == was && r.begun(f) > 1 { // it may have been cleaned already
		r.Errorf("a new node has got the number %#x, of which there are counters", uint32(was))
	}
	eventuallyCleaned(e, r.eventually)
	now := r.counted(f)
	if now.Accepted != accepted || len(now.Members) != 1 || now.Members[0].Node != "n1" {
		r.Errorf("counters after what is gone was cleaned away: got %+v; want %d accepted, and n1", now, accepted)
	}
	if n := r.begun(f); n != 1 {
		r.Errorf("the table counts for %d numbers; want one", n)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.direct.freed) > 0 {
		r.Errorf("numbers that may not be given again: got %v; want none", e.direct.freed)
	}
}

// directCountsOfOwners: who gets a frontend of another owner begins at zero, and nothing
// is left of a removed route.
func directCountsOfOwners(r *directRig) {
	f, _ := r.add(lb.TCP), r.add(lb.TCP)
	r.mustSet()
	_ = r.on(0, f)
	r.change(f, func(route *lb.Route) { route.Owner.UID = "other" })
	r.mustSet()
	if c := r.counted(f); c.Accepted != 0 || len(c.Members) > 0 {
		r.Errorf("counters of another owner: got %+v; want none", c)
	}
	_ = r.on(0, f)
	delete(r.table.Routes, f)
	r.mustSet()
	r.drained()
	e := r.engine
	e.mu.Lock()
	e.cleaned = time.Time{}
	e.mu.Unlock()
	r.eventually("counters of the removed route are deleted", func() bool { return r.begun(f) == 0 })
}

// directCutPortsAgain: a client that was reset and has connected anew, with the same
// port, is left alone.
func directCutPortsAgain(r *directRig) {
	const unused = 9
	f := r.add(lb.TCP)
	r.mustSet()
	c := r.dial(f)
	r.mustAsk(c)
	port := c.LocalAddr().(*net.TCPAddr).AddrPort().Port()
	segments := r.rawSocket(r.client, unix.IPPROTO_TCP)
	r.engine.mu.Lock()
	for _, p := range []uint16{port, unused} { // in this order
		r.engine.direct.cuts.add(cut[ends]{ends{netip.AddrPortFrom(r.self(), p), f}, time.Now().Add(-provokeAfter[1]), 1})
	}
	r.engine.mu.Unlock()
	_ = segments.SetReadDeadline(time.Now().Add(patience))
	for b := make([]byte, 2000); ; {
		n, _, err := segments.ReadFrom(b)
		if err != nil {
			r.Fatalf("the client that is not connected was not provoked: %v", err)
		}
		const syn, ack = 0x02, 0x10
		if n < tcpLen || b[13]&(syn|ack) != syn || uint16(b[0])<<8|uint16(b[1]) != f.Port {
			continue
		}
		switch to := uint16(b[2])<<8 | uint16(b[3]); to {
		case port:
			r.Fatal("a SYN has come to the connection that is new")
		case unused:
			return
		}
	}
}

// directFlowsChanged: what was read of a flow holds no more when another has its ends,
// or none.
func directFlowsChanged(r *directRig) {
	f := r.add(lb.TCP)
	r.mustSet()
	r.mustAsk(r.dial(f))
	s, err := dial()
	if err != nil {
		r.Fatal(err)
	}
	defer s.close()
	n := 0
	r.eachFlow(func(d directFlow) {
		n++
		other, none := d, d
		other.member++
		none.key = ends{netip.AddrPortFrom(r.self(), 9), f}.key()
		for _, c := range []struct {
			flow directFlow
			want bool
		}{{d, false}, {other, true}, {none, true}} {
			if got := s.changed(c.flow); got != c.want {
				r.Errorf("%+v changed: got %v; want %v", c.flow, got, c.want)
			}
		}
	})
	if n != 1 {
		r.Errorf("got %d flows; want 1", n)
	}
}
