package page

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// detailPage shows one load balancer.
type detailPage struct {
	frame
	LB        LoadBalancer
	Tiles     []tile
	Listeners []listenerRow
	Members   []memberRow
	Facts     []Field
}

type listenerRow struct {
	Listener
	Active   int64
	Accepted uint64
	Refused  []Field // by cause
}

type memberRow struct {
	nodeRow
	lb.MemberCounters
	Share int // of the connections made, in percent
}

func (p *Page) detail(w http.ResponseWriter, r *http.Request) {
	s := p.snapshot()
	v := r.URL.Query()
	owner := lb.Owner{Cluster: lb.Cluster(v.Get("cluster")), UID: lb.UID(v.Get("uid"))}
	l := s.find(owner)
	d := detailPage{frame: p.frame(s, r)}
	if l == nil {
		render(w, r, http.StatusNotFound, "missing", d)
		return
	}
	d.LB, d.Title = *l, l.Name+" · "+d.Title
	points := p.history.of(owner, s.At)
	draw := func(q quantity) plot { return draw(points, q, s.At, plotW, plotH) }
	d.Tiles = []tile{
		{Name: "Open connections", Value: count(float64(l.ActiveConnections)), Plot: draw(active)},
		{Name: "New connections", Value: perSecond(l.ConnectionsPerSecond), Plot: draw(accepted)},
		{Name: "Refused", Value: perSecond(l.RefusedPerSecond), Plot: draw(refused)},
		{Name: "From clients", Value: bytesPerSecond(l.BytesInPerSecond), Plot: draw(bytesIn)},
		{Name: "To clients", Value: bytesPerSecond(l.BytesOutPerSecond), Plot: draw(bytesOut)},
	}
	sums, members := sumsOf(p.traffic(), owner)
	for _, li := range l.Listeners {
		row := listenerRow{Listener: li}
		if sum := sums[lb.Listener{Protocol: li.Protocol, Port: li.Port}]; sum != nil {
			row.Active, row.Accepted = sum.Active, sum.Accepted
			for _, cause := range slices.Sorted(maps.Keys(sum.Refused)) {
				if n := sum.Refused[cause]; n > 0 {
					row.Refused = append(row.Refused, Field{Key: string(cause), Value: count(float64(n))})
				}
			}
		}
		d.Listeners = append(d.Listeners, row)
	}
	d.Members = memberRows(s, owner, members)
	d.Facts = facts(s.cluster(owner.Cluster).Config.LoadBalancers[owner.UID])
	render(w, r, http.StatusOK, "detail", d)
}

// sumsOf adds up what the engine counted of a load balancer: by listener, over
// its addresses, and by member.
func sumsOf(all []lb.RouteCounters, owner lb.Owner) (map[lb.Listener]*lb.RouteCounters, map[lb.NodeName]lb.MemberCounters) {
	listeners := make(map[lb.Listener]*lb.RouteCounters)
	members := make(map[lb.NodeName]lb.MemberCounters)
	for _, r := range all {
		if r.Owner != owner {
			continue
		}
		key := lb.Listener{Protocol: r.Frontend.Protocol, Port: r.Frontend.Port}
		sum := listeners[key]
		if sum == nil {
			sum = &lb.RouteCounters{Refused: make(map[lb.RefusedCause]uint64)}
			listeners[key] = sum
		}
		sum.Active += r.Active
		sum.Accepted += r.Accepted
		for cause, n := range r.Refused {
			sum.Refused[cause] += n
		}
		for _, m := range r.Members {
			to := members[m.Node]
			to.Active += m.Active
			to.Connections += m.Connections
			to.DialErrors += m.DialErrors
			to.BytesIn += m.BytesIn
			to.BytesOut += m.BytesOut
			members[m.Node] = to
		}
	}
	return listeners, members
}

func memberRows(s *snapshot, owner lb.Owner, members map[lb.NodeName]lb.MemberCounters) []memberRow {
	var all uint64
	for _, m := range members {
		all += m.Connections
	}
	var rows []memberRow
	for _, n := range s.nodesOf(owner) {
		row := memberRow{nodeRow: newNodeRow(s, n), MemberCounters: members[n.Name]}
		row.ID = elementID("member", string(n.Name))
		if all > 0 {
			row.Share = int((row.Connections*100 + all/2) / all) //nolint:gosec // at most 100
		}
		rows = append(rows, row)
	}
	return rows
}

// checkText names a check for people.
func checkText(h lb.HealthCheck) string {
	if h.Protocol == healthcheck.None {
		return "none: every member counts as up"
	}
	return string(h.ID())
}

func join[T ~string](all []T) string {
	texts := make([]string, len(all))
	for i, v := range all {
		texts[i] = string(v)
	}
	return strings.Join(texts, ", ")
}

// facts are the settings of a load balancer that differ from the usual.
func facts(l lb.LoadBalancer) []Field {
	f := []Field{
		{"Pool", string(l.Pool)},
		{"Check", checkText(l.HealthCheck)},
		{"Algorithm", string(cmp.Or(l.Algorithm, lb.RoundRobin))},
	}
	add := func(key, format string, args ...any) { f = append(f, Field{key, fmt.Sprintf(format, args...)}) }
	if len(l.MemberFamilies) > 0 {
		add("Members are reached by", "%s", join(l.MemberFamilies))
	}
	if l.Affinity != nil {
		add("Affinity", "by client address, for %s", l.Affinity.Timeout)
	}
	if len(l.SourceRanges) > 0 {
		add("Sources", "%v", l.SourceRanges)
	}
	if l.MaxConnections > 0 {
		add("Most connections", "%d", l.MaxConnections)
	}
	for _, timeout := range []struct {
		name  string
		after healthcheck.Duration
	}{
		{"Connect timeout", l.ConnectTimeout}, {"Idle timeout", l.IdleTimeout}, {"UDP idle timeout", l.UDPIdleTimeout}, {"Drain timeout", l.DrainTimeout},
	} {
		if timeout.after > 0 {
			add(timeout.name, "%s", timeout.after)
		}
	}
	if l.OnUnhealthy == lb.OnUnhealthyDrain {
		add("When a member is dead", "its connections may go on")
	}
	if l.Members != nil {
		add("Members", "only nodes with ready endpoints")
	}
	if !l.FailOpen {
		add("When no member is up", "connections are refused")
	}
	return f
}
