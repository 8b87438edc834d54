package edge

import (
	"maps"
	"slices"
	"strings"

	"github.com/eclusa-lb/eclusa/lb"
)

// The metrics of load balancers' health. Many load balancers share a check, and
// a series for each of their members would be load balancers x nodes. So the
// state and reason of a node is told once per check, and a load balancer says
// which check is its own, and how many of its members are up.
var (
	descServiceInfo     = desc("load_balancer_info", "Always 1; the labels tell which health check and pool of nodes a load balancer has. Joined on cluster and check with eclusa_edge_check_state it tells the health of each backend.", "cluster", "load_balancer", "check", "pool")
	descServiceMembers  = desc("load_balancer_members", "Nodes that may serve the load balancer, well or not.", "cluster", "load_balancer")
	descServiceUp       = desc("load_balancer_members_up", "Nodes that pass the load balancer's health check, or are not checked, and are not being drained. When it is 0 an edge sends connections to all members; if the Service is of Local policy, to those that have asked for none for less than 30 seconds, or else refuses them.", "cluster", "load_balancer")
	descServiceProblems = desc("load_balancer_problems", "What keeps the edge from serving the load balancer wholly, by kind; there is no series when all is well.", "cluster", "load_balancer", "type")
)

// collectServices sends how the load balancers of a cluster are: from what the
// cluster wants, and what is known of its nodes by check.
func (c *cluster) collectServices(s *sink, checks map[lb.CheckID]map[lb.NodeName]lb.MemberStatus) {
	config := c.held.Load().config
	problems := c.status.problems()
	name := string(c.name)
	shared := make(map[poolCheck]headcount)
	for _, uid := range byName(config.LoadBalancers) {
		l := config.LoadBalancers[uid]
		id := l.HealthCheck.ID()
		key := poolCheck{l.Pool, id}
		n, known := shared[key]
		switch {
		case l.Members != nil:
			n = countMembers(config, l.Pool, l.Members, checks[id])
		case !known:
			n = countMembers(config, l.Pool, config.Pools[l.Pool], checks[id])
			shared[key] = n
		}
		if !s.room(3 + len(problems[uid])) {
			return
		}
		s.gauge(descServiceInfo, 1, name, l.Name, string(id), string(l.Pool))
		s.gauge(descServiceMembers, float64(n.all), name, l.Name)
		s.gauge(descServiceUp, float64(n.up), name, l.Name)
		for kind, count := range problems[uid] {
			s.gauge(descServiceProblems, float64(count), name, l.Name, kind)
		}
	}
}

// poolCheck names a count that many load balancers share.
type poolCheck struct {
	pool  lb.PoolName
	check lb.CheckID
}

// headcount is how many members there are, and how many of them are up.
type headcount struct{ all, up int }

// countMembers counts those nodes that are in the pool and in members.
func countMembers[M ~map[lb.NodeName]lb.Member](config lb.Config, pool lb.PoolName, members M, health map[lb.NodeName]lb.MemberStatus) headcount {
	var n headcount
	for node := range members {
		_, pooled := config.Pools[pool][node]
		about, known := config.Nodes[node]
		if !pooled || !known {
			continue
		}
		n.all++
		if health[node].State.Serves() && !about.Draining {
			n.up++
		}
	}
	return n
}

// byName returns the load balancers in the order of their names, which is always
// the same, so that the same series are left out when there are too many. Of two
// with one name the older is told of.
func byName(all map[lb.UID]lb.LoadBalancer) []lb.UID {
	uids := slices.SortedFunc(maps.Keys(all), func(a, b lb.UID) int {
		if c := strings.Compare(all[a].Name, all[b].Name); c != 0 {
			return c
		}
		if c := all[a].ClaimTime.Compare(all[b].ClaimTime); c != 0 {
			return c
		}
		return strings.Compare(string(a), string(b))
	})
	return slices.CompactFunc(uids, func(a, b lb.UID) bool { return all[a].Name == all[b].Name })
}

// problems returns how many problems of each kind load balancers have.
func (s *statusLog) problems() map[lb.UID]map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out map[lb.UID]map[string]int
	for uid, e := range s.lbs {
		if e.gone || len(e.value.Problems) == 0 {
			continue
		}
		kinds := make(map[string]int)
		for _, p := range e.value.Problems {
			kinds[p.Type]++
		}
		if out == nil {
			out = make(map[lb.UID]map[string]int)
		}
		out[uid] = kinds
	}
	return out
}
