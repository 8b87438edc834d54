package lbtest

import (
	"bytes"
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// context returns a context for one dial.
func (r *rig) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	r.Cleanup(cancel)
	return ctx
}

// unanswered checks that a client's datagrams bring no answer.
func (r *rig) unanswered(s *service, from netip.Addr) {
	r.Helper()
	c, err := r.net.Dial(r.context(), from, s.Frontend)
	if err != nil {
		r.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write([]byte("hello"))
	_ = c.SetReadDeadline(time.Now().Add(soon))
	b := make([]byte, 100)
	if n, err := c.Read(b); err == nil {
		r.Errorf("client %s of %s: got the answer %q; want none", c.LocalAddr(), s.Frontend, b[:n])
	}
}

// idleTimeoutUDP: a session lives while datagrams flow and is another one after
// the timeout.
func idleTimeoutUDP(r *rig) {
	m := r.members(1, nil)
	s := r.service(m...)
	s.route.IdleTimeout = soon
	r.set()
	c := r.connect(s)
	first := <-m[0].seen
	for start := time.Now(); time.Since(start) < 2*soon; {
		c.mustAsk("it is not idle")
		if got := <-m[0].seen; got != first {
			r.Errorf("the member sees the session from %s; want %s as before", got, first)
		}
		pause(soon / 8)
	}
	r.eventually("the idle session is forgotten", func() bool { return r.counters(s).Active == 0 })
	c.mustAsk("a new session begins")
	if got := r.counters(s).Accepted; got != 2 {
		r.Errorf("sessions: got %d; want 2", got)
	}
}

func datagramSizes(r *rig) {
	s := r.service(r.members(1, nil)...)
	r.set()
	c := r.connect(s)
	answer := make([]byte, 1<<16)
	for _, size := range []int{0, 1, 1000, 1472, 1473, 9000, 65507 - 20*boolInt(r.family == lb.IPv6)} {
		sent := bytes.Repeat([]byte{'x'}, size)
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write(sent); err != nil {
			r.Errorf("send %d bytes: %v", size, err)
			continue
		}
		n, err := c.Read(answer)
		want := sent
		if size < 1000 {
			want = append([]byte(c.node+" "), sent...)
		}
		if err != nil || !bytes.Equal(answer[:n], want) {
			r.Errorf("datagram of %d bytes: got %d bytes, %v; want %d", size, n, err, len(want))
		}
	}
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// sessionsApart: many clients at once each get their own answers.
func sessionsApart(r *rig) {
	s := r.service(r.members(min(3, r.net.Addresses(r.family)), nil)...)
	r.set()
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			c, err := r.tryConnect(s, netip.Addr{})
			if err != nil {
				r.Errorf("client %d: %v", w, err)
				return
			}
			home := c.node
			for i := range 200 {
				text := string(rune('a'+w)) + time.Duration(i).String()
				if err := c.ask(text); err != nil {
					r.Errorf("client %d: %v", w, err)
					return
				}
				if c.node != home {
					r.Errorf("client %d: got an answer of %s; want %s as before", w, c.node, home)
				}
			}
		})
	}
	wg.Wait()
	if got := r.counters(s).Accepted; got != 8 {
		r.Errorf("sessions: got %d; want 8", got)
	}
}

// ownerChangeForgets: sessions of an address and port that goes to another load
// balancer do not go with it.
func ownerChangeForgets(r *rig) {
	m := r.members(2, nil)
	s := r.service(m[0])
	r.set()
	c := r.connect(s)
	r.remove(s)
	other := r.serviceAt(s.Frontend, m[1])
	other.route.Owner.UID = "other"
	other.route.Group.Name = "other"
	r.set()
	if c.movesFrom(m[0], "it has a new owner"); c.node != m[1].node {
		r.Errorf("the client after the change: got %s; want %s of the new owner", c.node, m[1].node)
	}
	if got := r.counters(other); got.Accepted != 1 || got.Active != 1 {
		r.Errorf("counters of the new owner: got %d accepted, %d active; want its own 1 and 1", got.Accepted, got.Active)
	}
}

// movesFrom waits until datagrams go to another member, which is soon after Set.
func (c *client) movesFrom(n *node, why string) {
	c.r.Helper()
	// An answer is lost if the session ends just then.
	c.r.eventually("another member has the session: "+why, func() bool { return c.askWithin(prompt, why) == nil && c.node != n.node })
}

// deadForgets: a session of a member that is dead or gone ends, and the next datagram
// goes to another one.
func deadForgets(r *rig) {
	m := r.members(3, nil)
	s := r.service(m...)
	r.set()
	c := r.connect(s)
	home := func() *node {
		for _, m := range m {
			if m.node == c.node {
				return m
			}
		}
		return nil
	}
	first := home()
	s.backend(first).State = lb.Dead
	r.set()
	c.movesFrom(first, "there are other members")
	second := home()
	s.without(second)
	r.set()
	c.movesFrom(second, "there is another member")
	if third := home(); third == first || third == second {
		r.Errorf("after %s is gone: got %s; want the third", second.node, third.node)
	}
}
