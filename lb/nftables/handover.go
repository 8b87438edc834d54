package nftables

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// heritage is what the next process has to know and the kernel does not: what was
// removed, and when. Everything else it reads from the kernel.
type heritage struct {
	Routes  []heir         `json:"routes,omitempty"`
	Members []formerMember `json:"members,omitempty"`
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
}

// formerMember is a member that was removed from a group.
type formerMember struct {
	Group lb.GroupID  `json:"group"`
	Addr  netip.Addr  `json:"addr"`
	Node  lb.NodeName `json:"node"`
	At    time.Time   `json:"at"`
}

// HandOver leaves the kernel's table to another process. Traffic does not notice:
// there is nothing that would have to be passed on.
func (e *Engine) HandOver(_ context.Context, send func(lb.Parcel) error) error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return errors.New("hand over: the engine is shut down")
	}
	e.handed = true
	var h heritage
	for _, r := range e.retired {
		h.Routes = append(h.Routes, heir{r.Frontend, r.spec.Owner, r.spec.Name, r.spec.Group, r.id, r.spec.DrainTimeout, r.deadline})
	}
	for id, p := range e.state.pools {
		for a, d := range p.gone {
			h.Members = append(h.Members, formerMember{id, a, d.node, d.at})
		}
	}
	e.mu.Unlock()
	data, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	return send(lb.Parcel{Data: data})
}

// Resume goes on. The next Set compares everything with what the kernel has by
// then.
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
	// The other one may have given out numbers.
	if err := e.numbers.learn(e.rules); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	return nil
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
	}
	return ctx.Err()
}

func (e *Engine) inherit(h heritage) {
	for _, r := range h.Routes {
		old := &route{
			Frontend: r.Frontend, id: r.Mark, deadline: r.Deadline,
			spec: lb.Route{Owner: r.Owner, Name: r.Name, Group: r.Group, DrainTimeout: r.Drain},
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
}
