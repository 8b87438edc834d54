package nftables

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// heritage is what the next process has to know and the kernel does not: what was
// removed, and when. Everything else it reads from the kernel.
type heritage struct {
	Routes  []heir         `json:"routes,omitempty"`
	Members []formerMember `json:"members,omitempty"`
	Cuts    []formerCut    `json:"cuts,omitempty"`
}

// heir is a removed route whose connections drain.
type heir struct {
	Frontend lb.Frontend   `json:"frontend"`
	Owner    lb.Owner      `json:"owner"`
	Name     string        `json:"name"`
	Group    lb.GroupID    `json:"group"`
	Mark     mark          `json:"mark"`
	Drain    time.Duration `json:"drain"`
	Deadline time.Time     `json:"deadline"`
	// Direct tells that packets were routed as they are, with flows that may be idle
	// for so long.
	Direct bool          `json:"direct,omitempty"`
	Idle   time.Duration `json:"idle,omitempty"`
}

// formerMember is a member that was removed from a group.
type formerMember struct {
	Group lb.GroupID  `json:"group"`
	Addr  netip.Addr  `json:"addr"`
	Node  lb.NodeName `json:"node"`
	At    time.Time   `json:"at"`
}

// formerCut is a connection that was cut a moment ago. Where packets were routed as
// they are it has neither source nor member.
type formerCut struct {
	Client   netip.AddrPort `json:"client"`
	Frontend netip.AddrPort `json:"frontend"`
	Source   netip.AddrPort `json:"source,omitzero"`
	Member   netip.AddrPort `json:"member,omitzero"`
	At       time.Time      `json:"at"`
	Tries    int            `json:"tries,omitempty"`
}

// maxCutsInParcel bounds the length of a parcel.
const maxCutsInParcel = 2000

// HandOver leaves the kernel's table to another process. Traffic does not notice:
// there is nothing that would have to be passed on.
func (e *Engine) HandOver(_ context.Context, send func(lb.Parcel) error) error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return errors.New("hand over: the engine is shut down")
	}
	e.handed = true
	all := []heritage{e.bequeath()}
	for part := range slices.Chunk(e.formerCuts(), maxCutsInParcel) {
		all = append(all, heritage{Cuts: part})
	}
	e.mu.Unlock()
	for _, h := range all {
		data, err := json.Marshal(h)
		if err != nil {
			return fmt.Errorf("hand over: %w", err)
		}
		if err := send(lb.Parcel{Data: data}); err != nil {
			return err
		}
	}
	return nil
}

// bequeath tells of what was removed. Callers hold mu.
func (e *Engine) bequeath() heritage {
	var h heritage
	removed := maps.Clone(e.retired)
	for f, r := range e.state.leaving {
		removed[retiredKey{f, r.spec.Owner}] = r
	}
	for _, r := range removed {
		h.Routes = append(h.Routes, heir{
			r.Frontend, r.spec.Owner, r.spec.Name, r.spec.Group, r.id, r.spec.DrainTimeout, r.deadline,
			r == e.state.leaving[r.Frontend], r.spec.IdleTimeout,
		})
	}
	for id, p := range e.state.pools {
		for a, d := range p.gone {
			h.Members = append(h.Members, formerMember{id, a, d.node, d.at})
		}
	}
	return h
}

// formerCuts tells of connections whose ends have to be provoked again. Callers hold
// mu.
func (e *Engine) formerCuts() []formerCut {
	var all []formerCut
	for _, c := range e.cuts.all() {
		all = append(all, formerCut{c.what.client, c.what.frontend, c.what.source, c.what.member, c.at, c.tries})
	}
	for _, c := range e.direct.cuts.all() {
		f := c.what.frontend
		all = append(all, formerCut{Client: c.what.client, Frontend: netip.AddrPortFrom(f.Addr, f.Port), At: c.at, Tries: c.tries})
	}
	return all
}

// Resume goes on, as a process that takes over from itself: the other one may have
// changed all that the kernel has. The next Set compares everything with that.
func (e *Engine) Resume() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || !e.handed {
		return errors.New("resume: nothing was handed over")
	}
	e.handed, e.inForce, e.purgeAt = false, false, time.Now()
	if e.rules == nil {
		return nil
	}
	if e.state.chains != nil {
		h := e.bequeath()
		e.state = newState()
		clear(e.retired)
		clear(e.byID)
		e.inherit(h)
	}
	if err := e.relearn(); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	return nil
}

// relearn learns which numbers the kernel has. Until it has succeeded no table is set,
// since connections would be taken for others'. Callers hold mu.
func (e *Engine) relearn() error {
	err := errors.Join(
		e.numbers.learn(e.rules), e.direct.learn(e.rules),
		e.tracking.flows(func(f *flow) { e.numbers.note(f.mark) }),
	)
	e.unlearned = err != nil
	return err
}

// Adopt takes what another engine knows beside what the kernel does.
func (e *Engine) Adopt(ctx context.Context, receive func() (lb.Parcel, error)) error {
	var all heritage
	for ctx.Err() == nil {
		p, err := receive()
		if errors.Is(err, io.EOF) {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.inherit(all)
			return nil
		}
		if err != nil {
			return fmt.Errorf("adopt: %w", err)
		}
		var h heritage
		if err := json.Unmarshal(p.Data, &h); err != nil {
			return fmt.Errorf("adopt: %w", err)
		}
		all.Routes, all.Members = append(all.Routes, h.Routes...), append(all.Members, h.Members...)
		all.Cuts = append(all.Cuts, h.Cuts...)
	}
	return ctx.Err()
}

func (e *Engine) inherit(h heritage) {
	e.direct.inherited = make(map[lb.Frontend]*route)
	for _, r := range h.Routes {
		old := &route{
			Frontend: r.Frontend, id: r.Mark, since: r.Deadline.Add(-r.Drain), deadline: r.Deadline,
			spec: lb.Route{
				Owner: r.Owner, Name: r.Name, Group: r.Group, DrainTimeout: r.Drain,
				Direct: r.Direct, IdleTimeout: r.Idle,
			},
		}
		if r.Direct {
			e.direct.inherited[r.Frontend] = old
		}
		e.retired[retiredKey{r.Frontend, r.Owner}] = old
		e.byID[r.Mark] = old
		e.sweepAt(r.Deadline)
	}
	e.former = make(map[lb.GroupID]map[netip.Addr]departed)
	for _, m := range h.Members {
		if e.former[m.Group] == nil {
			e.former[m.Group] = make(map[netip.Addr]departed)
		}
		e.former[m.Group][m.Addr] = departed{m.Node, m.At}
	}
	for _, c := range h.Cuts {
		if c.Member.IsValid() {
			e.cuts.add(cut[flow]{flow{
				version: versionOf(c.Client.Addr()), protocol: unix.IPPROTO_TCP,
				client: c.Client, frontend: c.Frontend, source: c.Source, member: c.Member,
			}, c.At, c.Tries})
			continue
		}
		f := lb.Frontend{Addr: c.Frontend.Addr(), Port: c.Frontend.Port(), Protocol: lb.TCP}
		e.direct.cuts.add(cut[ends]{ends{c.Client, f}, c.At, c.Tries})
	}
}
