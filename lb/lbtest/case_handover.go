package lbtest

import (
	"context"
	"io"
	"net/netip"
	"syscall"

	"github.com/eclusa-lb/eclusa/lb"
)

// handOverKeeps: connections and sessions go on while another engine takes over,
// and whoever comes meanwhile waits for that one and is served.
func handOverKeeps(r *rig) {
	members := r.members(3, greet)
	s := r.service(members...)
	r.set()
	var before []*client
	for range 6 {
		before = append(before, r.connect(s))
	}
	ports := r.portsSeen(before, members)
	first, second := r.engine, r.spare()
	r.Cleanup(func() { shutdownNow(r, first); shutdownNow(r, second) })
	meanwhile := make(chan error)
	r.pass(first, second, func() {
		go func() {
			c, err := r.tryConnect(s, netip.Addr{})
			if err == nil {
				err = c.ask("meanwhile")
			}
			meanwhile <- err
		}()
	})
	if _, err := first.Set(r.context(), r.table()); err == nil {
		r.Error("Set after HandOver: got nil; want an error, since somebody else serves")
	}
	r.engine = second
	r.set()
	shut := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { shut <- first.Shutdown(ctx) }()
	if err := <-meanwhile; err != nil {
		r.Errorf("a client that came during the hand-over: %v", err)
	}
	for _, c := range before {
		node := c.node
		c.mustAsk("after the hand-over")
		if c.node != node {
			r.Errorf("a session from before: got member %s; want %s as before", c.node, node)
		}
	}
	if r.proto == lb.UDP {
		for i, port := range r.portsSeen(before, members) {
			if port != ports[i] {
				r.Errorf("session %d: member sees it from %s; want %s as before", i, port, ports[i])
			}
		}
	}
	for node, n := range r.spread(s, 6) {
		if n != 2 && r.has(ExactTurns) {
			r.Errorf("new clients: %s got %d; want 2", node, n)
		}
	}
	for _, c := range before {
		c.Close()
	}
	if err := <-shut; err != nil { // early, since nobody is left
		r.Errorf("Shutdown of the first engine: %v", err)
	}
}

// handOverTwice: the second engine hands over to a third while the first drains.
func handOverTwice(r *rig) {
	s := r.service(r.members(2, greet)...)
	r.set()
	var clients []*client
	engines := []lb.Engine{r.engine}
	r.Cleanup(func() {
		for _, e := range engines {
			shutdownNow(r, e)
		}
	})
	shut := make(chan error, 3)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for range 3 {
		clients = append(clients, r.connect(s), r.connect(s))
		old, next := r.engine, r.spare()
		engines = append(engines, next)
		r.pass(old, next, func() {})
		r.engine = next
		r.set()
		go func() { shut <- old.Shutdown(ctx) }()
		for _, c := range clients {
			node := c.node
			c.mustAsk("one more hand-over")
			if c.node != node {
				r.Errorf("after a hand-over: got member %s; want %s as before", c.node, node)
			}
		}
	}
	cancel()
	for range 3 {
		if err := <-shut; err != nil {
			r.Errorf("Shutdown: %v", err)
		}
	}
}

// handOverResumes: an engine whose successor never came goes on as if nothing had
// happened, and one whose successor served and died too.
func handOverResumes(r *rig) {
	s := r.service(r.members(2, greet)...)
	r.set()
	c := r.connect(s)
	goesOn := func(why string) {
		node := c.node
		c.mustAsk(why)
		if c.node != node {
			r.Errorf("%s: got member %s; want %s as before", why, c.node, node)
		}
		r.set()
		r.spread(s, 4)
	}
	if err := r.engine.HandOver(r.context(), func(lb.Parcel) error { return io.ErrClosedPipe }); err == nil {
		r.Error("HandOver with a send that fails: got nil; want its error")
	}
	resume(r)
	goesOn("nobody took it")

	next := r.spare()
	r.pass(r.engine, next, func() {})
	shutdownNow(r, next)
	resume(r)
	goesOn("who took it ended before it served")

	next = r.spare()
	r.pass(r.engine, next, func() {})
	without := r.table()
	for id := range without.Groups { // the successor saw all members go
		without.Groups[id] = lb.Group{}
	}
	if _, err := next.Set(r.context(), without); err != nil {
		r.Errorf("Set of the successor: %v", err)
	}
	shutdownNow(r, next)
	resume(r)
	if r.proto == lb.TCP {
		goesOn("who took it served and ended")
	} else {
		r.set()
		r.spread(s, 4)
	}
}

// handOverDrops: what the first table of the successor does not have is given
// back, and another owner does not get the sessions.
func handOverDrops(r *rig) {
	members := r.members(1, greet)
	gone, other := r.service(members...), r.service(members...)
	r.set()
	r.connect(gone)
	c := r.connect(other)
	first, second := r.engine, r.spare()
	r.Cleanup(func() { shutdownNow(r, first) })
	r.pass(first, second, func() {})
	shutdownNow(r, first)
	r.remove(gone)
	other.route.Owner.UID = "another"
	r.engine = second
	r.set()
	r.refused(gone, netip.Addr{}, "the new table does not have it")
	release, err := hold(gone.Frontend)
	if err != nil {
		r.Errorf("the address and port that nobody wants: %v; want it free", err)
	} else {
		release()
	}
	r.spread(other, 2)
	if r.proto == lb.UDP {
		if n := r.counters(other).Active; n != 2 {
			r.Errorf("sessions of the new owner: got %d; want only the 2 new ones", n)
		}
		// An answer is lost if the old session ends just then.
		r.eventually("a datagram begins another session", func() bool { return c.askWithin(prompt, "whose it is now") == nil })
	}
}

// pass hands first over to second as two processes would: each has descriptors of
// its own. meanwhile is called when nobody serves.
func (r *rig) pass(first, second lb.Engine, meanwhile func()) {
	r.Helper()
	var parcels []lb.Parcel
	err := first.HandOver(r.context(), func(p lb.Parcel) error {
		if len(p.Files) > lb.MaxParcelFiles {
			r.Errorf("a parcel has %d files; want at most %d", len(p.Files), lb.MaxParcelFiles)
		}
		q := lb.Parcel{Data: p.Data}
		for _, fd := range p.Files {
			own, err := syscall.Dup(fd)
			if err != nil {
				return err
			}
			syscall.CloseOnExec(own)
			q.Files = append(q.Files, own)
		}
		parcels = append(parcels, q)
		return nil
	})
	if err != nil {
		r.Fatalf("HandOver: %v", err)
	}
	meanwhile()
	if err := second.Adopt(r.context(), func() (lb.Parcel, error) {
		if len(parcels) == 0 {
			return lb.Parcel{}, io.EOF
		}
		p := parcels[0]
		parcels = parcels[1:]
		return p, nil
	}); err != nil {
		r.Fatalf("Adopt: %v", err)
	}
}

func resume(r *rig) {
	r.Helper()
	if err := r.engine.Resume(); err != nil {
		r.Errorf("Resume: %v", err)
	}
}

func shutdownNow(r *rig, e lb.Engine) {
	r.Helper()
	now, cancel := context.WithCancel(context.Background())
	cancel()
	if err := e.Shutdown(now); err != nil {
		r.Errorf("Shutdown: %v", err)
	}
}

// portsSeen asks through each client and returns from where the members saw it.
func (r *rig) portsSeen(clients []*client, members []*node) []string {
	r.Helper()
	if r.proto != lb.UDP {
		return nil
	}
	seen := make([]string, len(clients))
	for i, c := range clients {
		for _, m := range members {
			for len(m.seen) > 0 {
				<-m.seen
			}
		}
		c.mustAsk("from where?")
		for _, m := range members {
			if m.node == c.node {
				seen[i] = <-m.seen
			}
		}
	}
	return seen
}
