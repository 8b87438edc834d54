package provider

import (
	"maps"
	"net/netip"
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/eclusa-lb/eclusa/ipam"
	"github.com/eclusa-lb/eclusa/lb"
)

// Kept is what counts by now of a load balancer that goes on as the edge holds it.
type Kept struct {
	// Addresses are those that it still has there.
	Addresses []netip.Addr
	// Endpoints is where its endpoints are.
	Endpoints Endpoints
	// NodePorts are those that the Service has by now. Others may be another
	// Service's.
	NodePorts []uint16
	// Last is what to go on with if the edge holds nothing of it, or not all of its
	// addresses, as others hold it or did. It has no addresses if nothing is known.
	Last lb.LoadBalancer
}

// on returns what an edge goes on with that holds l: with the addresses that it does
// not hold yet, if it can, and no port of l is left to others.
func (k Kept) on(l lb.LoadBalancer, info lb.Info) lb.LoadBalancer {
	more := l
	more.Addresses = appendNew(slices.Clone(l.Addresses), k.Last.Addresses...)
	if len(more.MemberFamilies) == 0 && needsTranslation(k.Last.MemberFamilies, more.Addresses) {
		more.MemberFamilies = k.Last.MemberFamilies
	}
	left := slices.ContainsFunc(portKeys(l.Listeners), func(p ipam.PortKey) bool { return !slices.Contains(portKeys(k.Last.Listeners), p) })
	if len(more.Addresses) == len(l.Addresses) || left || l.Direct() != k.Last.Direct() || len(more.Shortfall(info.Capabilities).Lacking) > 0 {
		return l
	}
	return more
}

// nodePortsOf returns the node ports of a Service.
func nodePortsOf(svc *v1.Service) []uint16 {
	var all []uint16
	for _, p := range svc.Spec.Ports {
		if p.NodePort != 0 {
			all = append(all, uint16(p.NodePort)) //nolint:gosec // the API server bounds it
		}
	}
	return all
}

// withNodePorts returns the load balancer without the listeners that go on to node
// ports that are not the Service's any more: Kubernetes may have given them away.
func withNodePorts(l lb.LoadBalancer, ports []uint16) lb.LoadBalancer {
	if l.Direct() {
		return l
	}
	l.Listeners = slices.DeleteFunc(slices.Clone(l.Listeners), func(x lb.Listener) bool { return !slices.Contains(ports, x.TargetPort) })
	return l
}

// nodePorts returns the node ports of a load balancer in its newest version.
func (w Wanted) nodePorts(uid lb.UID) []uint16 {
	newest := w.Config.LoadBalancers[uid]
	if newest.Direct() {
		return w.NodePorts[uid]
	}
	var all []uint16
	for _, x := range newest.Listeners {
		all = append(all, x.TargetPort)
	}
	return all
}

// compose returns what an edge is to hold that is described by info: what is wanted
// but for what it cannot do, which is returned with the reasons, and where the newest
// version cannot be served the last good one, as it is known.
func compose(w Wanted, info lb.Info, known lb.Config) (lb.Config, map[lb.UID]lb.Problem, map[lb.UID]Trimmed) {
	config, withheld, trimmed := fit(w.told(info), info)
	if len(w.Keep)+len(withheld)+len(w.Untold) == 0 {
		return config, withheld, trimmed
	}
	config.LoadBalancers, config.Pools = maps.Clone(config.LoadBalancers), maps.Clone(config.Pools)
	var good lastGood = map[lb.UID]lb.LoadBalancer{}
	pool := func(name lb.PoolName) lb.Pool {
		if _, ok := config.Pools[name]; !ok {
			put(&config.Pools, name, onlyNodes(known.Pools[name], config.Nodes))
		}
		return config.Pools[name]
	}
	for uid, k := range w.Keep {
		l, ok := known.LoadBalancers[uid]
		if ok {
			l = k.on(l, info)
		} else {
			l = k.Last
		}
		if len(l.Addresses) > 0 {
			l.Members = k.Endpoints.among(pool(l.Pool), !l.FailOpen)
			good.add(uid, withNodePorts(l, k.NodePorts), k.Addresses, info)
		}
	}
	for _, uid := range slices.AppendSeq(slices.Clone(w.Untold), maps.Keys(withheld)) {
		_, served := config.LoadBalancers[uid]
		if l, ok := known.LoadBalancers[uid]; ok && !served {
			newest := w.Config.LoadBalancers[uid]
			l.Pool, l.Members = newest.Pool, newest.Members
			if l.Direct() == newest.Direct() { // only connections of the edge's own can be of another family
				l.MemberFamilies = newest.MemberFamilies
			}
			good.add(uid, withNodePorts(l, w.nodePorts(uid)), newest.Addresses, info)
		}
	}
	good.giveUp(w.Config.LoadBalancers)
	for uid, l := range good {
		put(&config.LoadBalancers, uid, l)
	}
	return config, withheld, trimmed
}

// lastGood are load balancers that go on as they were asked for before.
type lastGood map[lb.UID]lb.LoadBalancer

// add takes a load balancer with those of its addresses that are still its own, and
// with what the edge can do of it.
func (g lastGood) add(uid lb.UID, l lb.LoadBalancer, own []netip.Addr, info lb.Info) {
	l.Addresses = slices.DeleteFunc(slices.Clone(l.Addresses), func(a netip.Addr) bool { return !slices.Contains(own, a) })
	if !needsTranslation(l.MemberFamilies, l.Addresses) {
		l.MemberFamilies = nil
	}
	l, _ = trim(l, info)
	if len(l.Addresses) > 0 && len(l.Listeners) > 0 && len(l.Shortfall(info.Capabilities).Lacking) == 0 {
		g[uid] = l
	}
}

// giveUp takes the ports away that others have in their newest version on the same
// addresses, whether the edge can serve that or not: they got them since the newest
// version of this one does without, and clients of theirs must not get to it.
func (g lastGood) giveUp(newest map[lb.UID]lb.LoadBalancer) {
	sharing := map[netip.Addr][]lb.UID{}
	for uid, l := range g {
		for _, a := range l.Addresses {
			sharing[a] = append(sharing[a], uid)
		}
	}
	for owner, n := range newest {
		for _, a := range n.Addresses {
			for _, uid := range sharing[a] {
				l, ok := g[uid]
				if !ok || uid == owner {
					continue
				}
				l.Listeners = slices.DeleteFunc(slices.Clone(l.Listeners), func(x lb.Listener) bool {
					return slices.ContainsFunc(n.Listeners, func(y lb.Listener) bool { return x.Protocol == y.Protocol && x.Port == y.Port })
				})
				g[uid] = l
				if len(l.Listeners) == 0 {
					delete(g, uid)
				}
			}
		}
	}
}
