package edge

import (
	"strings"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// maxLines is how many lines of one kind one round of work may log: when a rack
// fails, the first of its nodes say enough.
const maxLines = 20

// logHealth logs whose state has changed.
func (l *loop) logHealth(s survey) {
	told := make(map[memberKey]healthcheck.State, len(s.health))
	lines, more := 0, 0
	for key, h := range s.health {
		told[key] = h.State
		before, known := l.told[key]
		if known && before == h.State || !known && h.State == healthcheck.Unknown {
			continue
		}
		if lines++; lines > maxLines {
			more++
			continue
		}
		id := l.plan[key].id
		status := s.status[key.cluster][id][key.node]
		fields := []zap.Field{
			zap.String("cluster", string(key.cluster)), zap.String("node", string(key.node)), zap.String("check", string(id)),
			zap.Stringer("was", before),
		}
		if h.State == healthcheck.Up {
			l.log.Info("node is up", append(fields, zap.Bool("substitute", status.Substitute))...)
			continue
		}
		l.log.Warn("node is "+h.State.String()+" and takes no new connections", append(fields, zap.String("reason", string(status.Reason)), zap.String("error", status.Error))...)
	}
	if more > 0 {
		l.log.Warn("more nodes have changed their state", zap.Int("more", more))
	}
	l.told = told
}

// logRefused logs frontends that the engine refuses and did not before.
func (l *loop) logRefused(refused map[lb.Frontend]error) {
	lines, more := 0, 0
	for f, err := range refused {
		if before := l.refused[f]; before != nil && before.Error() == err.Error() {
			continue
		}
		if lines++; lines > maxLines {
			more++
			continue
		}
		r := l.out.Table.Routes[f]
		l.log.Warn("the engine cannot serve an address and port; it is tried again", zap.Stringer("frontend", f),
			zap.String("cluster", string(r.Owner.Cluster)), zap.String("loadBalancer", r.Name), zap.Error(err))
	}
	if more > 0 {
		l.log.Warn("the engine cannot serve more addresses and ports", zap.Int("more", more))
	}
}

// logStatuses logs load balancers that are not served and were not told of.
func (c *cluster) logStatuses(now map[lb.UID]lb.LoadBalancerStatus) {
	faults := make(map[lb.UID]string)
	names := c.held.Load().config.LoadBalancers
	lines, more := 0, 0
	for uid, s := range now {
		if s.Applied && len(s.Problems) == 0 {
			continue
		}
		details := make([]string, len(s.Problems))
		for i, p := range s.Problems {
			details[i] = problemText(p)
		}
		faults[uid] = strings.Join(details, "; ")
		if c.faults[uid] == faults[uid] {
			continue
		}
		if lines++; lines > maxLines {
			more++
			continue
		}
		c.log.Warn("a load balancer is not served wholly", zap.String("loadBalancer", names[uid].Name), zap.String("uid", string(uid)), zap.String("reason", shortened(faults[uid])))
	}
	if more > 0 {
		c.log.Warn("more load balancers are not served wholly", zap.Int("more", more))
	}
	c.faults = faults
}

// shortened bounds a text for one line of the log: a load balancer may have
// thousands of listeners, and a problem with each.
func shortened(s string) string {
	const most = 2000
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

func byDetail(a, b lb.Problem) int { return strings.Compare(a.Detail, b.Detail) }
