package edge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/lb"
)

// lingerInterval is how often addresses are looked at that wait for the end of
// their connections.
const lingerInterval = time.Second

// announcing is what the loop knows about addresses.
type announcing struct {
	announced []netip.Addr             // by the last Set without an error
	unheard   map[netip.Addr]error     // those that could not be announced
	served    map[netip.Addr]departure // those of the table in force
	leaving   map[netip.Addr]departure // those that are not served any more
}

// A departure is what an address needs that nobody wants any more: without it
// the connections that may still end in peace would hang.
type departure struct {
	owner lb.Owner
	name  string
	drain time.Duration
	until time.Time
	blind bool // the connections are another process's: nobody knows when they have ended
}

// leave notes which addresses have left the table that is in force.
func (l *loop) leave() {
	if l.announcer == nil {
		return
	}
	served := make(map[netip.Addr]departure)
	for f, r := range l.out.Table.Routes {
		d := served[f.Addr]
		if r.DrainTimeout >= d.drain {
			served[f.Addr] = departure{owner: r.Owner, name: r.Name, drain: r.DrainTimeout}
		}
	}
	if l.leaving == nil {
		l.leaving = make(map[netip.Addr]departure)
	}
	now := time.Now()
	for a, d := range l.served {
		if _, ok := served[a]; !ok {
			d.until = now.Add(d.drain)
			l.leaving[a] = d
		}
	}
	for a := range served {
		delete(l.leaving, a)
	}
	l.served = served
	l.dropLeft()
}

// dropLeft forgets addresses whose connections have ended or had their time, and
// reports whether there were any.
func (l *loop) dropLeft() bool {
	if len(l.leaving) == 0 {
		return false
	}
	active := make(map[netip.Addr]int64)
	for _, r := range l.engine.Counters() {
		active[r.Frontend.Addr] += r.Active
	}
	before, now := len(l.leaving), time.Now()
	maps.DeleteFunc(l.leaving, func(a netip.Addr, d departure) bool {
		return !d.blind && active[a] == 0 || now.After(d.until)
	})
	return len(l.leaving) < before
}

// listLeaving returns what a successor has to know about leaving addresses.
func (l *loop) listLeaving() []Leaving {
	l.dropLeft()
	var list []Leaving
	for _, a := range slices.SortedFunc(maps.Keys(l.leaving), netip.Addr.Compare) {
		d := l.leaving[a]
		list = append(list, Leaving{Address: a, Cluster: d.owner.Cluster, UID: d.owner.UID, Name: d.name, Until: d.until})
	}
	return list
}

// inheritLeaving holds the addresses that the predecessor held, for as long as
// that one would have at most.
func (l *loop) inheritLeaving(list []Leaving) {
	if l.announcer == nil {
		return
	}
	l.leaving = make(map[netip.Addr]departure, len(list))
	for _, v := range list {
		if !l.policies[v.Cluster].AllowsAddress(v.Address) {
			continue // the configuration has changed
		}
		l.leaving[v.Address] = departure{owner: lb.Owner{Cluster: v.Cluster, UID: v.UID}, name: v.Name, until: v.Until, blind: true}
	}
}

// release takes away the addresses whose last connections have ended.
func (l *loop) release(ctx context.Context) {
	if l.dropLeft() {
		l.announce(ctx, false)
		l.tell()
	}
}

// tellLeaving tells in a cluster's status which addresses are still here that
// their load balancers have no more, also of load balancers that are gone.
func (l *loop) tellLeaving(name lb.Cluster, statuses map[lb.UID]lb.LoadBalancerStatus) {
	for _, a := range slices.SortedFunc(maps.Keys(l.leaving), netip.Addr.Compare) {
		d := l.leaving[a]
		if d.owner.Cluster != name {
			continue
		}
		s, there := statuses[d.owner.UID]
		if _, held := l.held[name].config.LoadBalancers[d.owner.UID]; !there || !held {
			s.Problems = append(s.Problems, lb.Problem{
				Type: "address-held", Field: "addresses",
				Detail: fmt.Sprintf("%s: is held until the last connections of %q have ended, until %s at most", a, d.name, d.until.UTC().Format(time.RFC3339)),
			})
		}
		s.Leaving = append(s.Leaving, a)
		statuses[d.owner.UID] = s
	}
}

// announce lets the addresses that are served arrive here. Without force it
// trusts that the addresses of the last time are still in place.
func (l *loop) announce(ctx context.Context, force bool) {
	if l.announcer == nil {
		return
	}
	addrs := l.addresses()
	if !force && l.announced != nil && slices.Equal(addrs, l.announced) {
		return
	}
	l.announced, l.unheard = nil, nil
	err := l.announcer.Set(ctx, addrs)
	if err == nil {
		l.announced = addrs
	} else {
		l.trouble = true
		l.log.Error("addresses of load balancers cannot be announced; it is tried again", zap.Error(err))
		l.unheard = unheardOf(err, addrs)
	}
	l.stats.announced(len(addrs)-len(l.unheard), err)
}

// unheardOf returns the addresses that an announcer's error is about: all, if it
// does not say.
func unheardOf(err error, addrs []netip.Addr) map[netip.Addr]error {
	var partial interface {
		error
		FailedAddresses() map[netip.Addr]error
	}
	if errors.As(err, &partial) {
		return partial.FailedAddresses()
	}
	all := make(map[netip.Addr]error, len(addrs))
	for _, a := range addrs {
		all[a] = err
	}
	return all
}

// addresses returns what has to be announced: every address with a frontend that
// takes traffic, but those that the machine has anyway.
func (l *loop) addresses() []netip.Addr {
	set := make(map[netip.Addr]bool)
	for f := range l.out.Table.Routes {
		if l.refused[f] == nil {
			set[f.Addr] = true
		}
	}
	for _, a := range l.announcer.Held() {
		if l.orphaned(a) {
			set[a] = true
		}
	}
	for a := range l.leaving {
		set[a] = true
	}
	for _, a := range l.own {
		delete(set, a)
	}
	return slices.SortedFunc(maps.Keys(set), netip.Addr.Compare)
}

// orphaned tells whether an address may belong to a cluster whose state was
// lost: nothing is taken away before the cluster has written again.
func (l *loop) orphaned(a netip.Addr) bool {
	for name, h := range l.held {
		if h.digest == "" && l.policies[name].AllowsAddress(a) {
			return true
		}
	}
	return false
}
