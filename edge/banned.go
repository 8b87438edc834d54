package edge

import (
	"maps"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// ban works out what to tell of nodes that the edge will not connect to. They
// are told as members that are down, once in each check, since a load balancer
// that lacks one of its nodes is served all the same.
func (l *loop) ban(configs map[lb.Cluster]lb.Config) {
	l.banned = make(map[lb.Cluster]map[lb.CheckID]map[lb.NodeName]lb.MemberStatus)
	for name, refused := range l.out.Nodes {
		if len(refused) > 0 {
			l.banned[name] = bannedMembers(configs[name], refused)
		}
	}
	for name, c := range l.clusters {
		c.logNodes(l.out.Nodes[name], l.out.NodeWarnings[name])
	}
}

func bannedMembers(c lb.Config, refused map[lb.NodeName]lb.Problem) map[lb.CheckID]map[lb.NodeName]lb.MemberStatus {
	// Thousands of load balancers have few checks and pools between them.
	type use struct {
		check lb.HealthCheck
		pool  lb.PoolName
	}
	uses := make(map[use]bool)
	for _, l := range c.LoadBalancers {
		uses[use{l.HealthCheck, l.Pool}] = true
	}
	now := time.Now()
	out := make(map[lb.CheckID]map[lb.NodeName]lb.MemberStatus)
	for u := range uses {
		id := u.check.ID()
		for node, problem := range refused {
			if _, ok := c.Pools[u.pool][node]; !ok {
				continue
			}
			if out[id] == nil {
				out[id] = make(map[lb.NodeName]lb.MemberStatus)
			}
			out[id][node] = lb.MemberStatus{State: healthcheck.Down, Since: now, Error: "not used: " + problemText(problem)}
		}
	}
	return out
}

func problemText(p lb.Problem) string { return strings.TrimPrefix(p.Field+": "+p.Detail, ": ") }

// withBanned returns members with those that must not be used.
func withBanned(members, banned map[lb.CheckID]map[lb.NodeName]lb.MemberStatus) map[lb.CheckID]map[lb.NodeName]lb.MemberStatus {
	out := maps.Clone(members)
	if out == nil {
		out = make(map[lb.CheckID]map[lb.NodeName]lb.MemberStatus)
	}
	for id, nodes := range banned {
		all := maps.Clone(out[id])
		if all == nil {
			all = make(map[lb.NodeName]lb.MemberStatus)
		}
		maps.Copy(all, nodes)
		out[id] = all
	}
	return out
}

// logNodes logs nodes that are not used, or not wholly, and were not told of.
func (c *cluster) logNodes(refused, warned map[lb.NodeName]lb.Problem) {
	told := make(map[lb.NodeName]string)
	lines := 0
	for _, kind := range []struct {
		message string
		nodes   map[lb.NodeName]lb.Problem
	}{{"a node is not used", refused}, {"a node is used without some of its addresses", warned}} {
		for node, problem := range kind.nodes {
			told[node] = problemText(problem)
			if c.nodeFaults[node] == told[node] {
				continue
			}
			if lines++; lines <= maxLines {
				c.log.Warn(kind.message, zap.String("node", string(node)), zap.String("reason", told[node]))
			}
		}
	}
	if lines > maxLines {
		c.log.Warn("more nodes are not used wholly", zap.Int("more", lines-maxLines))
	}
	c.nodeFaults = told
}
