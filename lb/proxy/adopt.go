package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// netipAddr is short for the type of addresses in records.
type netipAddr = netip.Addr

// The operations on a loop's set of descriptors.
const (
	epollAdd = unix.EPOLL_CTL_ADD
	epollDel = unix.EPOLL_CTL_DEL
	epollIn  = unix.EPOLLIN
)

// inheritance is the socket of a frontend that comes from another process.
type inheritance struct {
	fd       int
	owner    lb.Owner
	serving  bool
	sessions []inheritedSession
	clients  []bequest
}

type inheritedSession struct {
	sessionRecord
	memberKey
	fd int
}

// Adopt takes the sockets of another process's proxy. The first Set serves them.
func (e *Engine) Adopt(ctx context.Context, receive func() (lb.Parcel, error)) error {
	h := heir{frontends: make(map[lb.Frontend]*inheritance)}
	for parcels := 0; ; parcels++ {
		p, err := receive()
		if errors.Is(err, io.EOF) && parcels > 0 {
			break
		}
		if err = errors.Join(err, ctx.Err()); err == nil {
			err = h.take(p)
		} else {
			closeAll(p.Files)
		}
		if err != nil {
			h.close()
			return fmt.Errorf("adopt: parcel %d: %w", parcels, err)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || e.handed || e.inherited != nil || len(e.loops) > 0 {
		h.close()
		return errors.New("adopt: the proxy has served already")
	}
	e.inherited = h.frontends
	return nil
}

// heir puts together what comes in parcels.
type heir struct {
	frontends map[lb.Frontend]*inheritance
	order     []lb.Frontend
	members   []memberRecord
}

func (h *heir) close() {
	for _, in := range h.frontends {
		in.close()
	}
}

// take takes a parcel. Its files are closed if something is wrong with it.
func (h *heir) take(p lb.Parcel) error {
	x, err := decodeEstate(p.Data, len(p.Files))
	if err == nil {
		err = h.check(x)
	}
	if err == nil {
		err = h.verify(x, p.Files)
	}
	if err != nil {
		closeAll(p.Files)
		return err
	}
	for i, f := range x.Frontends {
		h.order = append(h.order, f.Frontend)
		h.frontends[f.Frontend] = &inheritance{fd: p.Files[i], owner: f.Owner, serving: f.Serving}
	}
	h.members = append(h.members, x.Members...)
	for i, s := range x.Sessions {
		m := h.members[s.Member]
		in := h.frontends[h.order[m.Frontend]]
		in.sessions = append(in.sessions, inheritedSession{s, memberKey{m.Node, m.Addr}, p.Files[len(x.Frontends)+i]})
	}
	for _, r := range x.Clients {
		in := h.frontends[h.order[r.Frontend]]
		in.clients = append(in.clients, r.bequests()...)
	}
	return nil
}

// decodeEstate reads the data of a parcel with a number of files.
func decodeEstate(data []byte, files int) (estate, error) {
	var x estate
	if err := json.Unmarshal(data, &x); err != nil {
		return estate{}, err
	}
	if x.Format != estateFormat {
		return estate{}, fmt.Errorf("has the format %d; this program knows format %d only", x.Format, estateFormat)
	}
	if n := len(x.Frontends) + len(x.Sessions); n != files {
		return estate{}, fmt.Errorf("tells of %d sockets and has %d", n, files)
	}
	return x, nil
}

// check says what is wrong with a parcel in itself, or with what came before.
func (h *heir) check(x estate) error {
	order := h.order
	seen := make(map[lb.Frontend]bool, len(x.Frontends))
	for _, f := range x.Frontends {
		switch {
		case f.Protocol != lb.TCP && f.Protocol != lb.UDP || !f.Addr.IsValid() || f.Port == 0:
			return fmt.Errorf("frontend %s: is none that the proxy could have", f.Frontend)
		case h.frontends[f.Frontend] != nil || seen[f.Frontend]:
			return fmt.Errorf("frontend %s: comes twice", f.Frontend)
		}
		seen[f.Frontend] = true
		order = append(order, f.Frontend)
	}
	for _, r := range x.Clients {
		if r.Frontend < 0 || r.Frontend >= len(order) {
			return fmt.Errorf("clients: their frontend has number %d of %d", r.Frontend, len(order))
		}
		if len(r.Data)%bequestSize != 0 {
			return fmt.Errorf("clients of %s: %d bytes are no multiple of %d", order[r.Frontend], len(r.Data), bequestSize)
		}
	}
	members := h.members
	for _, m := range x.Members {
		switch {
		case m.Frontend < 0 || m.Frontend >= len(order):
			return fmt.Errorf("member %q: its frontend has number %d of %d", m.Node, m.Frontend, len(order))
		case order[m.Frontend].Protocol != lb.UDP || m.Node == "" || !m.Addr.IsValid():
			return fmt.Errorf("member %q at %s: cannot have sessions of %s", m.Node, m.Addr, order[m.Frontend])
		}
		members = append(members, m)
	}
	for _, s := range x.Sessions {
		if s.Member < 0 || s.Member >= len(members) {
			return fmt.Errorf("session of %s: its member has number %d of %d", s.Client, s.Member, len(members))
		}
		if !s.Client.IsValid() || s.Idle < 0 {
			return fmt.Errorf("session of %s, idle for %s: cannot be", s.Client, s.Idle)
		}
	}
	return nil
}

// verify compares the sockets with what is told of them: traffic to a wrong one
// would go to a stranger.
func (h *heir) verify(x estate, files []int) error {
	order := append(h.order[:len(h.order):len(h.order)], nil...)
	for i, f := range x.Frontends {
		order = append(order, f.Frontend)
		sa, err := unix.Getsockname(files[i])
		if err != nil {
			return fmt.Errorf("socket of %s: %w", f.Frontend, err)
		}
		if got, want := addrPortOf(sa), netip.AddrPortFrom(f.Addr.Unmap(), f.Port); got != want {
			return fmt.Errorf("socket of %s: is bound to %s", f.Frontend, got)
		}
		kind, want := unix.SOCK_STREAM, "stream"
		if f.Protocol == lb.UDP {
			kind, want = unix.SOCK_DGRAM, "datagram"
		}
		if got, err := unix.GetsockoptInt(files[i], unix.SOL_SOCKET, unix.SO_TYPE); err != nil || got != kind {
			return fmt.Errorf("socket of %s: is no %s socket", f.Frontend, want)
		}
	}
	members := append(h.members[:len(h.members):len(h.members)], x.Members...)
	for i, s := range x.Sessions {
		m := members[s.Member]
		sa, err := unix.Getpeername(files[len(x.Frontends)+i])
		if err != nil {
			return fmt.Errorf("session of %s: %w", s.Client, err)
		}
		if got := addrPortOf(sa); got.Addr() != m.Addr {
			return fmt.Errorf("session of %s: its socket leads to %s, not to %s", s.Client, got, m.Addr)
		}
	}
	return nil
}

// close gives the sockets back unused.
func (in *inheritance) close() {
	closeFD(in.fd)
	in.forget()
}

func (in *inheritance) forget() {
	for _, s := range in.sessions {
		closeFD(s.fd)
	}
	in.sessions = nil
}

func closeAll(files []int) {
	for _, fd := range files {
		closeFD(fd)
	}
}

// closeInherited gives back what no Set has served. Callers hold mu.
func (e *Engine) closeInherited() {
	for _, in := range e.inherited {
		in.close()
	}
	e.inherited = nil
}

// inherit gives inherited sockets to the frontends of the table, and the sessions
// too if the owner is the same. The others are closed.
func (c *change) inherit() {
	e := c.e
	if e.inherited == nil {
		return
	}
	var took []*frontend
	for id, in := range e.inherited {
		fe := e.frontends[id]
		if fe == nil || fe.ln != nil || !e.files.take(1) {
			in.close()
			continue
		}
		home := e.loops[e.homes%len(e.loops)]
		e.homes++
		took = append(took, fe)
		if fe.owner.id == in.owner {
			fe.inheritHomes(c.now, in.clients)
		}
		if id.Protocol == lb.TCP {
			ln := &tcpListener{fd: in.fd, fe: fe, index: home.index, slot: -1, serving: in.serving}
			fe.ln, fe.serving = ln, in.serving
			c.in(home.index, func(l *loop) { fe.trouble = ln.adopt(l) })
			continue
		}
		ln := newUDPListener(in.fd, fe, home)
		// Refusing only once the sessions are there, or it would be closed.
		fe.ln, fe.serving = ln, true
		if fe.owner.id != in.owner {
			in.forget()
		}
		links := fe.linksOf(in)
		c.in(home.index, func(l *loop) { fe.trouble = ln.adopt(l, in, links) })
	}
	e.inherited = nil
	c.do()
	for _, fe := range took {
		if fe.trouble != nil {
			c.fail(fe, fe.trouble)
		}
	}
}

// linksOf returns the links to the members of inherited sessions, nil for those
// that have left the group. Only Set calls it.
func (fe *frontend) linksOf(in *inheritance) map[memberKey]*link {
	fe.mu.Lock()
	defer fe.mu.Unlock()
	g := fe.spec.Load().group
	links := make(map[memberKey]*link)
	for _, s := range in.sessions {
		if _, ok := links[s.memberKey]; ok {
			continue
		}
		links[s.memberKey] = nil
		m := g.members[s.memberKey]
		if m == nil {
			continue
		}
		k := fe.links[s.memberKey]
		if k == nil {
			k = &link{memberKey: s.memberKey, fe: fe, tracked: make([]*tracked, fe.loops)}
			fe.links[s.memberKey] = k
		}
		k.member.Store(m)
		for i := range g.backends {
			if b := &g.backends[i]; b.Node == s.node && b.Addr.Unmap() == s.addr {
				k.check.Store(&b.Check)
			}
		}
		links[s.memberKey] = k
	}
	return links
}

// adopt watches a socket that comes from another process, with its sessions.
func (u *udpListener) adopt(l *loop, in *inheritance, links map[memberKey]*link) error {
	if err := u.attach(l); err != nil {
		in.forget()
		return err
	}
	joinDatagrams(u.fd)
	for _, s := range in.sessions {
		u.restore(l, s, links[s.memberKey])
	}
	u.arm(l)
	return nil
}

// restore goes on with a session. One that cannot be goes: its client's next
// datagram begins another.
func (u *udpListener) restore(l *loop, in inheritedSession, k *link) {
	if k == nil || u.sessions[in.Client] != nil || !l.e.admit(l.now, 1) {
		closeFD(in.fd)
		return
	}
	spec := u.fe.spec.Load()
	if !spec.allows(in.Client.Addr()) { // any more
		closeFD(in.fd)
		l.e.release(1)
		return
	}
	s := &session{
		u: u, client: in.Client, name: rawSockaddr(in.Client), spec: spec, link: k, fd: in.fd, slot: -1,
		replied: in.Replied,
	}
	var err error
	if s.slot, err = l.add(s.fd, s, unix.EPOLLIN); err != nil {
		closeFD(in.fd)
		l.e.release(1)
		return
	}
	k.active.Add(1)
	k.track(l, &s.tracked, s)
	u.fe.owner.active.Add(1)
	u.list(l, s)
	s.settle(l)
	s.moved = l.now - int64(in.Idle)
}
