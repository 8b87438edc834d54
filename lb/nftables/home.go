package nftables

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// home names a client of a route.
type home struct {
	route  mark
	client netip.Addr
}

// bringHome makes the table remember, for routes whose affinity is switched on, the
// clients that have open connections, before the first new one is taken.
func (e *Engine) bringHome(p *plan) error {
	if len(p.homes) == 0 {
		return nil
	}
	now := make(map[home]netip.Addr)
	if err := e.tracking.flows(func(f *flow) {
		r := p.homes[f.mark]
		if r == nil || !f.open() || !f.replied() {
			return
		}
		a := f.member.Addr()
		if b, ok := p.next.pools[r.spec.Group].members[a]; ok && b.State == lb.Active {
			now[home{f.mark, f.client.Addr()}] = a
		}
	}); err != nil {
		return err
	}
	for _, v := range versions {
		set := "clients" + v.suffix
		var before, after []element
		if err := e.rules.read(set, func(f found) {
			if m, _, ok := fromMarkAddr([]byte(f.key)); ok && p.homes[m] != nil {
				before = append(before, element{set: set, key: f.key})
			}
		}); err != nil {
			return err
		}
		for h, a := range now {
			if versionOf(h.client) == v {
				after = append(after, element{set, string(markAddr(h.route, h.client)), value{data: string(a.AsSlice()), timeout: p.homes[h.route].spec.AffinityFor}})
			}
		}
		e.deleteQuietly(set, before)
		if len(after) == 0 {
			continue
		}
		w := newBatch()
		w.elements(unix.NFT_MSG_NEWSETELEM, set, after)
		switch err := e.rules.commit(w); {
		case isNotFound(err): // somebody has deleted the table, and who was at home with it
		case err != nil:
			return err
		default:
			e.committed(false)
		}
	}
	return nil
}
