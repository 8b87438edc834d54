package proxy

import (
	"errors"
	"net/netip"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// udpListener is the socket of a UDP frontend with its sessions. All of them
// belong to one loop. Nothing is ever sent to anybody who has not sent before.
type udpListener struct {
	fd    int
	index int
	slot  int32
	fe    *frontend
	over  atomic.Bool

	// refusing: new clients get no answer, and the socket is closed with the last
	// session.
	refusing bool
	// paused: another process may have the sockets too, and only one may read.
	paused   bool
	sessions map[netip.AddrPort]*session
	sources  map[netip.Addr]*source
	oldest   element[*session] // by the time of the last datagram
	timer    timer             // of the session that is idle longest
}

// source is what one client address has.
type source struct {
	sessions int
	oldest   element[*session]
}

func newUDPListener(fd int, fe *frontend, home *loop) *udpListener {
	return &udpListener{
		fd: fd, index: home.index, slot: -1, fe: fe,
		sessions: make(map[netip.AddrPort]*session),
		sources:  make(map[netip.Addr]*source),
	}
}

func (u *udpListener) home() int   { return u.index }
func (u *udpListener) ended() bool { return u.over.Load() }

func (u *udpListener) attach(l *loop) error {
	var err error
	if u.slot, err = l.add(u.fd, u, unix.EPOLLIN); err != nil {
		u.slot = -1
		u.close(l)
	}
	return err
}

// assign ends the sessions, which are the former frontend's.
func (u *udpListener) assign(l *loop, fe *frontend) {
	refusing := u.refusing
	u.refusing = false // or it would be closed
	u.forgetAll(l)
	u.fe, u.refusing = fe, refusing
	u.closeIfUnused(l)
}

// serve without members gives the port back, so that the kernel tells clients
// that nobody is there.
func (u *udpListener) serve(l *loop, on bool) error {
	if u.over.Load() {
		return errEnded
	}
	u.refusing = !on
	u.closeIfUnused(l)
	return nil
}

// retire ends sessions that another process has taken over.
func (u *udpListener) retire(l *loop) {
	if u.paused {
		u.close(l)
		return
	}
	_ = u.serve(l, false)
}

func (u *udpListener) abandon(l *loop) { u.close(l) }

func (u *udpListener) close(l *loop) {
	if u.over.Swap(true) {
		return
	}
	u.forgetAll(l)
	l.timers.stop(&u.timer)
	if u.slot >= 0 {
		l.drop(u.slot)
	}
	closeFD(u.fd)
	l.e.files.give(1)
}

func (u *udpListener) closeIfUnused(l *loop) {
	if u.refusing && len(u.sessions) == 0 {
		u.close(l)
	}
}

func (u *udpListener) forgetAll(l *loop) {
	for el := u.oldest.front(); el != nil; el = u.oldest.front() {
		u.forget(l, el.item)
	}
}

// ready passes on what clients have sent.
func (u *udpListener) ready(l *loop, _ uint32) {
	if u.paused {
		return // the event is from before
	}
	d := l.datagrams()
	n, err := d.receive(u.fd)
	if err != nil {
		return // nothing there; an unconnected socket has no other errors
	}
	for i := 0; i < n; {
		client := d.from(i)
		j := i + 1
		for j < n && d.from(j) == client {
			j++
		}
		u.forward(l, d, client, i, j)
		i = j
	}
}

// forward sends the client's datagrams from i to j to its member, to another one
// if that cannot be reached. What nobody takes is lost, as datagrams are.
func (u *udpListener) forward(l *loop, d *datagrams, client netip.AddrPort, i, j int) {
	s := u.sessions[client]
	var tried []*link
	if s == nil && u.refusing {
		l.unreachable(client, netip.AddrPortFrom(u.fe.id.Addr.Unmap(), u.fe.id.Port), d.size(i))
		return
	}
	for i < j {
		if s == nil {
			if s = u.open(l, client, tried); s == nil {
				return
			}
		}
		to := j
		if !s.replied {
			// One call for several swallows the error of the second, that tells that
			// nobody got the first.
			to = i + 1
		}
		n, err := d.send(s.fd, i, to, nil)
		switch {
		case err == nil:
			s.passed(l, d, i, i+n, &s.link.bytesIn)
			i += n
		case errors.Is(err, unix.EMSGSIZE):
			i++
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS):
			return
		default:
			tried = append(tried, s.link)
			s.fail(l, err)
			s = nil
		}
	}
}

// open makes a session for a new client, nil if it cannot have one.
func (u *udpListener) open(l *loop, client netip.AddrPort, tried []*link) *session {
	fe, e := u.fe, l.e
	spec := fe.spec.Load()
	switch {
	case u.refusing:
		return nil
	case !spec.allows(client.Addr()):
		fe.refused[refusedSource].Add(1)
		return nil
	case len(tried) >= e.opts.DialAttempts:
		fe.refused[refusedNoMember].Add(1)
		return nil
	}
	u.makeRoom(l, client.Addr())
	if !fe.owner.take(spec.MaxConnections) {
		fe.refused[refusedLimit].Add(1)
		return nil
	}
	if !u.admit(l) {
		fe.owner.active.Add(-1)
		fe.refused[refusedLimit].Add(1)
		return nil
	}
	s := &session{u: u, client: client, name: rawSockaddr(client), spec: spec, fd: -1, slot: -1}
	if !s.dial(l, tried) {
		fe.owner.active.Add(-1)
		e.release(1)
		fe.refused[refusedNoMember].Add(1)
		return nil
	}
	u.insert(l, s)
	return s
}

// makeRoom forgets the session that is idle longest if the client's address, or
// the frontend, has as many as it may have.
func (u *udpListener) makeRoom(l *loop, client netip.Addr) {
	o := &l.e.opts
	src := u.sources[client]
	if src != nil && src.sessions >= o.UDPSessionsPerSource {
		u.evict(l, src.oldest.front().item)
	} else if len(u.sessions) >= o.UDPSessions {
		u.evict(l, u.oldest.front().item)
	}
}

func (u *udpListener) evict(l *loop, s *session) {
	u.fe.refused[refusedLimit].Add(1)
	u.forget(l, s)
}

// admit counts one more session of the engine; at the engine's limit one of this
// frontend makes room.
func (u *udpListener) admit(l *loop) bool {
	if l.e.admit(l.now, 1) {
		return true
	}
	el := u.oldest.front()
	if el == nil {
		return false
	}
	u.evict(l, el.item)
	return l.e.admit(l.now, 1)
}

// insert puts a session that has a member into all lists.
func (u *udpListener) insert(l *loop, s *session) {
	u.fe.accepted.Add(1)
	u.list(l, s)
	if u.timer.pos == 0 {
		u.arm(l)
	}
}

// list makes a session known that is counted by its owner and the engine.
func (u *udpListener) list(l *loop, s *session) {
	u.fe.active.Add(1)
	l.load.Add(1)
	u.sessions[s.client] = s
	s.source = u.sources[s.client.Addr()]
	if s.source == nil {
		s.source = &source{}
		u.sources[s.client.Addr()] = s.source
	}
	s.source.sessions++
	s.touch(l)
}

// forget ends a session: the client's next datagram begins another.
func (u *udpListener) forget(l *loop, s *session) {
	if u.sessions[s.client] != s {
		return
	}
	delete(u.sessions, s.client)
	s.byAge.remove()
	s.bySource.remove()
	if s.source.sessions--; s.source.sessions == 0 {
		delete(u.sources, s.client.Addr())
	}
	s.hangUp(l)
	u.fe.active.Add(-1)
	u.fe.owner.active.Add(-1)
	l.load.Add(-1)
	l.e.release(1)
	if !u.over.Load() {
		u.closeIfUnused(l)
	}
}

// arm sets the timer for the session that is idle longest.
func (u *udpListener) arm(l *loop) {
	if el := u.oldest.front(); el != nil {
		l.timers.set(&u.timer, min(el.item.moved+u.fe.spec.Load().idle, l.now+idleCheck), u)
	}
}

// expire forgets sessions that have been idle for too long.
func (u *udpListener) expire(l *loop) {
	idle := u.fe.spec.Load().idle
	for el := u.oldest.front(); el != nil && el.item.moved+idle <= l.now; el = u.oldest.front() {
		u.forget(l, el.item)
	}
	if !u.over.Load() {
		u.arm(l)
	}
}

// session is a client address and port with the member that it was given. The
// socket to the member is connected, so that the kernel lets nobody else answer
// and tells when the member's port is closed.
type session struct {
	u      *udpListener
	source *source
	spec   *spec
	link   *link
	client netip.AddrPort
	name   unix.RawSockaddrInet6 // client
	fd     int
	slot   int32
	moved  int64

	tracked  tracked
	byAge    element[*session]
	bySource element[*session]
	replied  bool
	homeGen  uint16 // see link.settle
}

// dial connects the session to a member that was not tried before; false if there
// is none.
func (s *session) dial(l *loop, tried []*link) bool {
	tried = slices.Clip(tried)
	for len(tried) < l.e.opts.DialAttempts {
		k := s.u.fe.pick(l.now, s.client.Addr(), tried)
		if k == nil {
			return false
		}
		s.link = k
		err := s.connect(l)
		if err == nil {
			k.track(l, &s.tracked, s)
			k.connections.Add(1)
			return true
		}
		k.dialErrors.Add(1)
		l.e.blame(l.now, s.spec, k, err)
		s.hangUp(l)
		tried = append(tried, k)
	}
	return false
}

func (s *session) connect(l *loop) error {
	addr := netip.AddrPortFrom(s.link.addr, s.spec.TargetPort)
	fd, err := l.e.socket(addr, unix.SOCK_DGRAM, "udp")
	if err != nil {
		return err
	}
	s.fd = fd
	joinDatagrams(fd)
	if err = unix.Connect(fd, l.sockaddr(addr)); err != nil {
		return err
	}
	s.slot, err = l.add(fd, s, unix.EPOLLIN)
	return err
}

// hangUp closes the session's socket and leaves its member.
func (s *session) hangUp(l *loop) {
	s.tracked.remove()
	if s.link != nil {
		s.link.leave(l.now, s.client.Addr(), &s.homeGen)
		s.link.active.Add(-1)
	}
	if s.slot >= 0 {
		l.drop(s.slot)
	}
	if s.fd >= 0 {
		closeFD(s.fd)
	}
	s.link, s.fd, s.slot = nil, -1, -1
}

// ready passes the member's datagrams on to the client.
func (s *session) ready(l *loop, _ uint32) {
	if s.u.paused {
		return // the event is from before
	}
	d := l.datagrams()
	n, err := d.receive(s.fd)
	if errors.Is(err, unix.EAGAIN) {
		return
	}
	if err != nil {
		s.fail(l, err)
		return
	}
	if !s.replied {
		s.replied = true
		s.link.praise()
		s.settle(l)
	}
	s.passed(l, d, 0, n, &s.link.bytesOut)
	for i := 0; i < n; {
		sent, err := d.send(s.u.fd, i, n, &s.name)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS) {
			return // lost, since nobody waits for a datagram
		}
		i += max(sent, d.lengths[0]) // those that cannot be sent are skipped
	}
}

// passed counts the datagrams from i to j.
func (s *session) passed(l *loop, d *datagrams, i, j int, bytes *atomic.Uint64) {
	total := uint64(0)
	for ; i < j; i++ {
		total += uint64(d.size(i)) //nolint:gosec // a length
	}
	bytes.Add(total)
	s.touch(l)
}

// touch makes the session the youngest.
func (s *session) touch(l *loop) {
	s.moved = l.now
	s.byAge.remove()
	s.u.oldest.push(&s.byAge, s)
	s.bySource.remove()
	s.source.oldest.push(&s.bySource, s)
}

// fail forgets the session since its member cannot be reached, or refuses.
func (s *session) fail(l *loop, err error) {
	s.link.dialErrors.Add(1)
	l.e.blame(l.now, s.spec, s.link, err)
	s.u.forget(l, s)
}

func (s *session) cut(l *loop)            { s.u.forget(l, s) }
func (s *session) end(l *loop)            { s.u.forget(l, s) }
func (s *session) abandon(l *loop)        { s.u.forget(l, s) }
func (s *session) clientAddr() netip.Addr { return s.client.Addr() }

// settle remembers where the client has its home, once the member has said anything:
// the sources of datagrams that nobody answers may all be invented.
func (s *session) settle(l *loop) {
	if s.replied {
		s.link.settle(l.now, s.client.Addr(), &s.homeGen)
	}
}
