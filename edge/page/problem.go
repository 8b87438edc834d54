package page

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// findProblems gathers everything that somebody should look at. A node that is
// down is told once, however many load balancers it serves; those are told
// themselves when they fail, or for reasons of their own.
func (s *snapshot) findProblems() {
	for _, text := range s.NotReady {
		s.Problems = append(s.Problems, Problem{State: Failing, Kind: "edge", Name: s.Edge.Name, Text: text})
	}
	if f := s.Probes.Stretched; f > maxStretch {
		s.Problems = append(s.Problems, Problem{State: Degraded, Kind: "edge", Name: s.Edge.Name, Text: fmt.Sprintf(
			"%d members are checked %.1f times slower than asked for, because health.probesPerSecond allows no more", s.Probes.Targets, f)})
	}
	for _, c := range s.Clusters {
		s.clusterProblems(c)
	}
	s.loadBalancerProblems()
	s.nodeProblems()
	slices.SortStableFunc(s.Problems, func(a, b Problem) int { return cmp.Compare(a.State.rank(), b.State.rank()) })
}

func (s *snapshot) clusterProblems(c Cluster) {
	add := func(p Problem) {
		p.Kind, p.Cluster, p.Name = "cluster", c.Name, string(c.Name)
		s.Problems = append(s.Problems, p)
	}
	if s.late(c) {
		add(Problem{State: Failing, Text: fmt.Sprintf("revision %d is not in force, revision %d is", c.Revision, c.AppliedRevision), Since: c.WrittenAt})
	}
	// What readiness tells already is not told twice.
	if h := c.HeldRemovals; h != nil {
		config := s.cluster(c.Name).Config
		var names []string
		for _, key := range h.Keys[:min(3, len(h.Keys))] {
			names = append(names, removalName(config, key))
		}
		if h.Waiting > 3 {
			names = append(names, fmt.Sprintf("and %d more", h.Waiting-3))
		}
		add(Problem{State: Degraded, Text: "removals are held until the cluster confirms them: " + strings.Join(names, ", "), Since: h.At})
	}
}

// removalName returns a name for people of what a removal would remove.
func removalName(c lb.Config, key string) string {
	kind, name, _ := strings.Cut(key, "/")
	if kind == "nodes" {
		return fmt.Sprintf("node %q", name)
	}
	if l := c.LoadBalancers[lb.UID(name)]; l.Name != "" {
		name = l.Name
	}
	return fmt.Sprintf("load balancer %q", name)
}

func (s *snapshot) loadBalancerProblems() {
	told, more := 0, 0
	for _, l := range s.LoadBalancers {
		if l.State != Failing && (l.State != Degraded || len(l.Problems) == 0) {
			continue
		}
		if told++; told > maxPerKind {
			more++
			continue
		}
		s.Problems = append(s.Problems, Problem{State: l.State, Kind: "load-balancer", Cluster: l.Cluster, UID: l.UID, Name: l.Name, Text: l.Reason})
	}
	if more > 0 {
		s.Problems = append(s.Problems, Problem{State: Degraded, Kind: "load-balancer", Text: fmt.Sprintf("%d more load balancers have problems", more)})
	}
}

func (s *snapshot) nodeProblems() {
	told, more := 0, 0
	for _, n := range s.Nodes {
		if n.State != Failing && n.State != Degraded {
			continue
		}
		if told++; told > maxPerKind {
			more++
			continue
		}
		first := n.Checks[0]
		text := "takes no new connections: " + failureText(first)
		state := Degraded
		if down := n.down(); down < len(n.Checks) {
			text = fmt.Sprintf("fails %d of %d checks: %s: %s", down, len(n.Checks), first.ID, failureText(first))
		}
		s.Problems = append(s.Problems, Problem{State: state, Kind: "node", Cluster: n.Cluster, Name: string(n.Name), Text: text, Since: n.since()})
	}
	if more > 0 {
		s.Problems = append(s.Problems, Problem{State: Degraded, Kind: "node", Text: fmt.Sprintf("%d more nodes fail", more)})
	}
}

// down counts the checks in which the node is down.
func (n Node) down() int {
	down := 0
	for _, c := range n.Checks {
		if c.Health == healthcheck.Down {
			down++
		}
	}
	return down
}

// since returns when the oldest of the present failures began.
func (n Node) since() (since time.Time) {
	for _, c := range n.Checks {
		if c.Health == healthcheck.Down && (since.IsZero() || c.Since.Before(since)) {
			since = c.Since
		}
	}
	return since
}

// failureText says what a probe found.
func failureText(c NodeCheck) string {
	switch {
	case c.Error != "" && c.Reason != "" && !strings.Contains(c.Error, string(c.Reason)):
		return string(c.Reason) + ", " + c.Error
	case c.Error != "":
		return c.Error
	case c.Reason != "":
		return string(c.Reason)
	}
	return c.Health.String()
}

// matches tells whether a load balancer is asked for by a text: a part of its
// name, cluster, UID, or of one of its addresses or ports.
func (l LoadBalancer) matches(q string) bool {
	for _, word := range strings.Fields(strings.ToLower(q)) {
		if !l.contains(word) {
			return false
		}
	}
	return true
}

func (l LoadBalancer) contains(word string) bool {
	if strings.Contains(strings.ToLower(l.Name), word) || strings.Contains(string(l.Cluster), word) || strings.Contains(strings.ToLower(string(l.UID)), word) {
		return true
	}
	for _, a := range l.Addresses {
		if strings.Contains(a.String(), word) {
			return true
		}
	}
	for _, li := range l.Listeners {
		if fmt.Sprint(li.Port) == word || fmt.Sprint(li.TargetPort) == word || li.Name != "" && strings.EqualFold(li.Name, word) {
			return true
		}
	}
	return false
}

// wanted tells whether a load balancer is among those with problems, or any.
func (l LoadBalancer) wanted(problemsOnly bool) bool { return !problemsOnly || l.State != OK }
