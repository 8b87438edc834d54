package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

const (
	// estateFormat is the version of what HandOver sends. An engine adopts only
	// its own: whoever changes the meaning of a field counts it up.
	estateFormat = 1
	// bequestsPerParcel is how many sockets or members a parcel is about.
	bequestsPerParcel = lb.MaxParcelFiles
)

// estate is the data of a parcel. Its files are those of the frontends that are
// bound, in their order, and then those of the sessions. Frontends and members
// are numbered from zero over all parcels.
type estate struct {
	Format    int              `json:"format"`
	Frontends []frontendRecord `json:"frontends,omitempty"`
	Members   []memberRecord   `json:"members,omitempty"`
	Sessions  []sessionRecord  `json:"sessions,omitempty"`
	Clients   []clientsRecord  `json:"clients,omitempty"` // those that are remembered; may be missing
}

// frontendRecord is the socket of a frontend.
type frontendRecord struct {
	lb.Frontend
	Owner   lb.Owner `json:"owner"`
	Serving bool     `json:"serving"`
}

// memberRecord is a member of a frontend that has sessions.
type memberRecord struct {
	Frontend int         `json:"frontend"`
	Node     lb.NodeName `json:"node"`
	Addr     netipAddr   `json:"addr"`
}

// sessionRecord is a UDP session. Those of a frontend come in the order of their
// last datagrams, oldest first.
type sessionRecord struct {
	Member  int           `json:"member"`
	Client  addrPort      `json:"client"`
	Idle    time.Duration `json:"idle"`
	Replied bool          `json:"replied,omitempty"`
}

// HandOver stops reading the sockets of all frontends and UDP sessions, and sends
// them. Established TCP connections go on here.
func (e *Engine) HandOver(ctx context.Context, send func(lb.Parcel) error) error {
	parcels, err := e.bequeath(ctx)
	if err != nil {
		return err
	}
	for _, p := range parcels {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := send(p); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// bequeath pauses everything and tells what is there.
func (e *Engine) bequeath(ctx context.Context) ([]lb.Parcel, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.closed:
		return nil, errors.New("hand over: the proxy is shut down")
	case e.handed:
		return nil, errors.New("hand over: the proxy was handed over already")
	case e.inherited != nil:
		return nil, errors.New("hand over: the proxy has not served yet what it was given itself")
	}
	clients, err := e.remembered(ctx) // first, since traffic goes on meanwhile
	if err != nil {
		return nil, err
	}
	e.handed = true
	e.doListeners(func(ln acceptor) func(*loop) { return ln.pause })
	var w will
	for _, fe := range e.frontends {
		if fe.ln != nil && !fe.ln.ended() {
			w.clients(clients[fe], w.frontends)
			w.frontend(e, fe)
		}
	}
	w.flush()
	for _, r := range w.later {
		w.now.Clients, w.things = []clientsRecord{r}, 1
		w.flush()
	}
	return w.parcels, w.err
}

// doListeners calls what f returns for each open socket in its loop. Callers hold
// mu.
func (e *Engine) doListeners(f func(ln acceptor) func(*loop)) {
	work := make([][]func(*loop), len(e.loops))
	for _, fe := range e.frontends {
		if ln := fe.ln; ln != nil && !ln.ended() {
			work[ln.home()] = append(work[ln.home()], f(ln))
		}
	}
	e.do(work)
}

// Restrict ends the connections that are left here of clients that are not allowed
// any more.
func (e *Engine) Restrict(allowed map[lb.Owner][]netip.Prefix) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.handed || e.stopped || len(e.loops) == 0 {
		return
	}
	c := &change{e: e, ranges: make(map[rangesKey]ranges)}
	c.reset()
	for _, fe := range e.frontends {
		c.restrict(fe, allowed[fe.owner.id])
	}
	for _, fe := range e.retired {
		c.restrict(fe, allowed[fe.owner.id])
	}
	c.do()
}

// Resume reads the sockets again.
func (e *Engine) Resume() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return errors.New("resume: the proxy is shut down")
	}
	if !e.handed {
		return nil
	}
	e.handed = false
	for _, fe := range e.frontends {
		fe.trouble = nil
	}
	byListener := make(map[acceptor]*frontend, len(e.frontends))
	for _, fe := range e.frontends {
		if fe.ln != nil {
			byListener[fe.ln] = fe
		}
	}
	e.doListeners(func(ln acceptor) func(*loop) {
		fe := byListener[ln]
		return func(l *loop) { fe.trouble = ln.resume(l) }
	})
	var errs []error
	for _, fe := range e.frontends {
		if fe.trouble != nil { // the next Set opens it again
			errs = append(errs, fmt.Errorf("resume %s: %w", fe.id, fe.trouble))
			fe.ln, fe.serving, fe.trouble = nil, false, nil
		}
	}
	return errors.Join(errs...)
}

// will is what is gathered for another process.
type will struct {
	parcels   []lb.Parcel
	err       error
	frontends int
	members   int
	now       estate
	files     []int
	sessions  []int // files too, which come after those of the frontends
	things    int
	later     []clientsRecord // which come after all frontends, each in a parcel
}

func (w *will) frontend(e *Engine, fe *frontend) {
	record := frontendRecord{Frontend: fe.id, Owner: fe.owner.id, Serving: fe.serving}
	number := w.frontends
	w.frontends++
	switch ln := fe.ln.(type) {
	case *tcpListener:
		w.room(1)
		w.now.Frontends, w.files = append(w.now.Frontends, record), append(w.files, ln.fd)
	case *udpListener:
		record.Serving = !ln.refusing
		w.room(1)
		w.now.Frontends, w.files = append(w.now.Frontends, record), append(w.files, ln.fd)
		w.udp(e, ln, number)
	}
}

// udp adds the sessions of a paused socket, which nobody touches now.
func (w *will) udp(e *Engine, u *udpListener, number int) {
	members := make(map[*link]int)
	now := e.clock()
	for el := u.oldest.front(); el != nil && el != &u.oldest; el = el.next {
		s := el.item
		m, ok := members[s.link]
		if !ok {
			m = w.members
			w.members++
			members[s.link] = m
			w.room(1)
			w.now.Members = append(w.now.Members, memberRecord{Frontend: number, Node: s.link.node, Addr: s.link.addr})
		}
		w.room(1)
		w.now.Sessions = append(w.now.Sessions, sessionRecord{Member: m, Client: s.client, Idle: time.Duration(max(now-s.moved, 0)), Replied: s.replied})
		w.sessions = append(w.sessions, s.fd)
	}
}

// room begins another parcel when the present one is full.
func (w *will) room(n int) {
	if w.things+n > bequestsPerParcel {
		w.flush()
	}
	w.things += n
}

// flush ends the present parcel; the first one goes even if it is empty, so that
// the format is always told.
func (w *will) flush() {
	if w.things == 0 && len(w.parcels) > 0 {
		return
	}
	w.now.Format = estateFormat
	data, err := json.Marshal(w.now)
	w.err = errors.Join(w.err, err)
	w.parcels = append(w.parcels, lb.Parcel{Data: data, Files: append(w.files, w.sessions...)})
	w.now, w.files, w.sessions, w.things = estate{}, nil, nil, 0
}

// pause leaves datagrams in the buffers of the sockets.
func (u *udpListener) pause(l *loop) {
	u.paused = true
	l.timers.stop(&u.timer)
	_ = u.watchAll(func(slot int32, fd int) error { return l.watch(slot, fd, epollDel, 0) })
}

func (u *udpListener) resume(l *loop) error {
	u.paused = false
	err := u.watchAll(func(slot int32, fd int) error { return l.watch(slot, fd, epollAdd, epollIn) })
	if err != nil {
		u.close(l)
		return err
	}
	u.arm(l)
	return nil
}

// watchAll calls f for the socket and those of its sessions.
func (u *udpListener) watchAll(f func(slot int32, fd int) error) error {
	err := f(u.slot, u.fd)
	for _, s := range u.sessions {
		err = errors.Join(err, f(s.slot, s.fd))
	}
	return err
}
