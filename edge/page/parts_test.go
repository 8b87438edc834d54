package page

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/edge"
	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

func stringOf(v any) string { return fmt.Sprint(v) }

func TestEvents(t *testing.T) {
	e := NewEvents()
	log := e.Watch(zap.NewNop()).With(zap.String("cluster", "prod"))
	log.Debug("of no interest")
	log.Warn("node is down", zap.String("node", "n1"), zap.String("reason", ""), zap.Error(fmt.Errorf("dial: %w", errors.New("refused"))))
	log.Info(strings.Repeat("ä", maxText), zap.Int("n", 3))
	for i := range 3 * maxEvents {
		log.Info("chatter", zap.Int("i", i))
	}
	all := e.Last(10 * maxEvents)
	if len(all) != maxEvents+1 {
		t.Fatalf("got %d events; want %d of good news and the bad", len(all), maxEvents)
	}
	want := Event{Level: "warn", Text: "node is down", Fields: []Field{{"cluster", "prod"}, {"node", "n1"}, {"error", "dial: refused"}}}
	got := all[len(all)-1]
	got.At = time.Time{}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the bad news (-want +got):\n%s", d)
	}
	if got := all[0].Fields[1].Value; got != fmt.Sprint(3*maxEvents-1) {
		t.Errorf("the newest: got %s; want the last", got)
	}
	if s := cut(strings.Repeat("ä", maxText)); len(s) > maxText || !utf8.ValidString(s) {
		t.Errorf("cut: got %d bytes, valid %t", len(s), utf8.ValidString(s))
	}
}

// counter is what an engine has counted of a load balancer.
func counter(uid lb.UID, active int64, accepted, in uint64) lb.RouteCounters {
	return lb.RouteCounters{
		Owner: lb.Owner{Cluster: "prod", UID: uid}, Active: active, Accepted: accepted, Refused: map[lb.RefusedCause]uint64{lb.RefusedLimit: accepted / 10},
		Members: []lb.MemberCounters{{Node: "n1", BytesIn: in, BytesOut: 2 * in}},
	}
}

func TestHistory(t *testing.T) {
	h := newHistory()
	at := func(i int) time.Time { return noon.Add(time.Duration(i) * sampleInterval) }
	// What was counted before anybody looked is no rate.
	h.add(at(0), []lb.RouteCounters{counter("a", 1, 1000, 5000)})
	h.add(at(1), []lb.RouteCounters{counter("a", 2, 1020, 5000)})
	h.add(at(2), []lb.RouteCounters{counter("a", 3, 1020, 9000), counter("idle", 0, 0, 0)})
	h.add(at(3), []lb.RouteCounters{counter("a", 3, 1060, 9000), counter("new", 1, 60, 0)})
	total := h.totals(at(3))
	want := []point{{2, 10, 1, 0, 0}, {3, 0, 0, 2000, 4000}, {4, 50, 5, 0, 0}}
	if d := cmp.Diff(want, total.points, cmp.AllowUnexported(point{})); d != "" {
		t.Errorf("all (-want +got):\n%s", d)
	}
	if d := cmp.Diff(point{4, 20, 2, 2000. / 3, 4000. / 3}, total.now(3), cmp.AllowUnexported(point{}), cmp.Comparer(near)); d != "" {
		t.Errorf("now (-want +got):\n%s", d)
	}
	a := h.of(lb.Owner{Cluster: "prod", UID: "a"}, at(3))
	if d := cmp.Diff([]point{{1, 0, 0, 0, 0}, {3, 10, 1, 4000. / 6, 8000. / 6}}, a.points, cmp.AllowUnexported(point{}), cmp.Comparer(near)); d != "" {
		t.Errorf("one (-want +got):\n%s", d)
	}
	if got := h.rates()[lb.Owner{Cluster: "prod", UID: "new"}].accepted; got != 10 {
		t.Errorf("a new one: got %v connections per second; want 10", got)
	}
	if got := len(h.series); got != 2 {
		t.Errorf("got a memory for %d load balancers; want none for the idle one", got)
	}
	// A load balancer that goes takes its memory along, and is no negative traffic.
	for i := range 3 {
		h.add(at(4+i), []lb.RouteCounters{counter("new", 0, 60, 0)})
	}
	if p := h.totals(at(4)).points; p[3].accepted != 0 {
		t.Errorf("when one has gone: got %v per second; want 0", p[3].accepted)
	}
	if _, ok := h.series[lb.Owner{Cluster: "prod", UID: "a"}]; ok {
		t.Error("a load balancer that is gone is remembered")
	}
	// After a pause only what lies within the window is shown.
	h.add(at(1000), nil)
	if got := len(h.totals(at(1000)).points); got != 1 {
		t.Errorf("after a pause: got %d points; want 1", got)
	}
	for i := range 1000 {
		h.add(at(1001+i), nil)
	}
	if got := len(h.totals(at(2000)).points); got != totalPoints {
		t.Errorf("got %d points; want %d", got, totalPoints)
	}
}

func near(a, b float32) bool { return a-b < 0.01 && b-a < 0.01 }

func TestHistoryIsBounded(t *testing.T) {
	h := newHistory()
	counters := make([]lb.RouteCounters, maxSeries+1000)
	for i := range counters {
		counters[i] = counter(lb.UID(fmt.Sprint(i)), 1, 1, 1)
	}
	h.add(noon, counters)
	if got := len(h.series); got != maxSeries {
		t.Errorf("got %d series; want %d", got, maxSeries)
	}
}

func TestJudge(t *testing.T) {
	applied := lb.LoadBalancerStatus{Applied: true}
	problem := []lb.Problem{{Type: "invalid", Field: "addresses[0]", Detail: "is held"}}
	for _, c := range []struct {
		name    string
		members Members
		status  lb.LoadBalancerStatus
		told    bool
		l       lb.LoadBalancer
		state   State
		reason  string
	}{
		{"fine", Members{Total: 3, Up: 3}, applied, true, lb.LoadBalancer{}, OK, ""},
		{"draining is no fault", Members{Total: 3, Up: 2, Draining: 1}, applied, true, lb.LoadBalancer{}, OK, ""},
		{"new", Members{Total: 3}, lb.LoadBalancerStatus{}, false, lb.LoadBalancer{}, Pending, "not in force"},
		{"not checked", Members{Total: 3}, applied, true, lb.LoadBalancer{}, Pending, "checked"},
		{"not checked, open", Members{Total: 3}, applied, true, lb.LoadBalancer{FailOpen: true}, Pending, "goes to all"},
		{"nobody asks", Members{Total: 3, Unchecked: 3}, applied, true, lb.LoadBalancer{}, OK, ""},
		{"refused", Members{Total: 3, Up: 3}, lb.LoadBalancerStatus{Problems: problem}, true, lb.LoadBalancer{}, Failing, "addresses[0]: is held"},
		{"served less well", Members{Total: 3, Up: 3}, lb.LoadBalancerStatus{Applied: true, Problems: problem}, true, lb.LoadBalancer{}, Degraded, "is held"},
		{"one down", Members{Total: 3, Up: 2, Down: 1}, applied, true, lb.LoadBalancer{}, Degraded, "1 of 3"},
		{"all down", Members{Total: 3, Down: 3}, applied, true, lb.LoadBalancer{}, Failing, "refused"},
		{"all down, open", Members{Total: 3, Down: 3, FailingOpen: true}, applied, true, lb.LoadBalancer{FailOpen: true}, Failing, "goes to all"},
		{"the last resort", Members{Total: 3, Down: 1, Draining: 2, LastResort: 2}, applied, true, lb.LoadBalancer{}, Failing, "goes to the 2 that answer"},
		{"no endpoints", Members{}, applied, true, lb.LoadBalancer{Members: map[lb.NodeName]lb.Member{}}, Failing, "ready endpoint"},
		{"no nodes", Members{}, applied, true, lb.LoadBalancer{}, Failing, "no member"},
	} {
		state, reason := judge(LoadBalancer{Members: c.members, Applied: c.status.Applied, Problems: c.status.Problems}, c.l, c.told)
		if state != c.state || !strings.Contains(reason, c.reason) {
			t.Errorf("%s: got %s %q; want %s %q", c.name, state, reason, c.state, c.reason)
		}
	}
}

// Who gets traffic when nobody is up is what the table says.
func TestMembersWhenNobodyIsUp(t *testing.T) {
	const (
		up     = healthcheck.Up
		down   = healthcheck.Down
		ending = healthcheck.Draining
	)
	now := time.Now()
	for _, c := range []struct {
		name   string
		states []healthcheck.State // the first is that of a drained node
		open   bool
		whole  bool          // the pool is not narrowed
		since  time.Duration // that they are in their states
		want   Members
	}{
		{"one is up", []healthcheck.State{down, ending, up}, false, false, 0, Members{Total: 3, Up: 1, Draining: 2}},
		{"two end", []healthcheck.State{ending, ending, ending}, false, false, 0, Members{Total: 3, Draining: 3, LastResort: 2}},
		{"two have ended", []healthcheck.State{ending, ending, ending}, false, false, edge.LastResortFor, Members{Total: 3, Draining: 3}},
		{"two of a whole pool", []healthcheck.State{ending, ending, ending}, false, true, 0, Members{Total: 3, Draining: 3}},
		{"all down", []healthcheck.State{down, down, down}, false, false, 0, Members{Total: 3, Draining: 1, Down: 2}},
		{"all end, open", []healthcheck.State{up, ending, ending}, true, false, 0, Members{Total: 3, Draining: 3, FailingOpen: true}},
		{"all down, open", []healthcheck.State{down, down, down}, true, false, 0, Members{Total: 3, Draining: 1, Down: 2, FailingOpen: true}},
		{"nobody is known yet", []healthcheck.State{up, healthcheck.Unknown}, true, false, 0, Members{Total: 2, Draining: 1, FailingOpen: true}},
	} {
		cluster := edge.ClusterView{
			Config: lb.Config{Nodes: map[lb.NodeName]lb.Node{"n0": {Draining: true}}, Pools: map[lb.PoolName]lb.Pool{"pool": {}}},
			Status: lb.Status{Checks: map[lb.CheckID]map[lb.NodeName]lb.MemberStatus{"tcp:1": {}}},
		}
		for i, state := range c.states {
			node := lb.NodeName(fmt.Sprint("n", i))
			cluster.Config.Pools["pool"][node] = lb.Member{}
			cluster.Status.Checks["tcp:1"][node] = lb.MemberStatus{State: state, Since: now.Add(-c.since)}
		}
		s := &snapshot{Status: Status{At: now}, members: map[scope]Members{}}
		l := lb.LoadBalancer{Pool: "pool", FailOpen: c.open, Members: cluster.Config.Pools["pool"]}
		if c.whole {
			l.Members = nil
		}
		if got := s.membersOf(cluster, l, "tcp:1"); got != c.want {
			t.Errorf("%s: got %+v; want %+v", c.name, got, c.want)
		}
	}
}

// A node under thousands of load balancers is one problem, and long lists end.
func TestProblemsAreFew(t *testing.T) {
	s := thousands(5000)
	c := &s.view.Clusters[0]
	p := newPage(t, s, Access{Open: true})
	if got := p.snapshot(); len(got.Problems) != 1 || got.Problems[0].Name != "worker-2" || got.Totals.LoadBalancers.Degraded != 5000 {
		t.Errorf("one node down: got %+v; want that alone", got.Problems)
	}
	for uid := range c.Status.LoadBalancers {
		c.Status.LoadBalancers[uid] = lb.LoadBalancerStatus{}
	}
	p = newPage(t, s, Access{Open: true})
	got := p.snapshot().Problems
	if len(got) != maxPerKind+2 {
		t.Errorf("nothing served: got %d problems; want %d, how many more, and the node", len(got), maxPerKind)
	}
	if got[0].Kind != "load-balancer" || got[0].State != Failing {
		t.Errorf("got %+v first; want what does not work at all", got[0])
	}
}

func TestClusterProblems(t *testing.T) {
	s := demo()
	c := &s.view.Clusters[0]
	c.Status.Revision--
	c.Status.Durable = false
	s.view.Clusters[1].Lost = true
	p := newPage(t, s, Access{Open: true})
	snap := p.snapshot()
	if snap.Clusters[0].State != Failing || snap.Clusters[1].State != Failing {
		t.Errorf("got %s and %s; want both failing", snap.Clusters[0].State, snap.Clusters[1].State)
	}
	if got := snap.Problems[0]; got.Kind != "cluster" || !strings.Contains(got.Text, "revision 4812 is not in force, revision 4811 is") {
		t.Errorf("got %+v; want the revision that lags behind", got)
	}
	s.view.Probes.Stretched = 1.4
	if got := newPage(t, s, Access{Open: true}).snapshot().Problems[1]; got.Kind != "edge" || got.State != Degraded || !strings.Contains(got.Text, "1.4 times slower") {
		t.Errorf("too many probes: got %+v; want that told", got)
	}
	c.Written = noon.Add(-time.Second)
	if got := newPage(t, s, Access{Open: true}).snapshot().Clusters[0].State; got != Degraded {
		t.Errorf("a revision that is a second old, not on the disk: got %s; want degraded", got)
	}
}

func TestNodes(t *testing.T) {
	check := func(states ...healthcheck.State) (cs []NodeCheck) {
		for i, s := range states {
			cs = append(cs, NodeCheck{ID: lb.CheckID(fmt.Sprint("c", i)), Health: s, Since: noon.Add(-time.Duration(i) * time.Hour)})
		}
		return cs
	}
	for _, c := range []struct {
		node Node
		want State
	}{
		{Node{State: OK}, OK},
		{Node{State: OK, Draining: true}, Pending},
		{Node{State: OK, Checks: check(healthcheck.Up, healthcheck.Up)}, OK},
		{Node{State: OK, Checks: check(healthcheck.Up, healthcheck.Draining)}, Pending},
		{Node{State: OK, Checks: check(healthcheck.Up, healthcheck.Down)}, Degraded},
		{Node{State: OK, Checks: check(healthcheck.Down, healthcheck.Down)}, Failing},
	} {
		c.node.judge()
		if c.node.State != c.want {
			t.Errorf("%+v: got %s; want %s", c.node.Checks, c.node.State, c.want)
		}
	}
	if got := (Node{Checks: check(healthcheck.Down, healthcheck.Down)}).since(); !got.Equal(noon.Add(-time.Hour)) {
		t.Errorf("got %s; want the older of two failures", got)
	}
}

func TestFormats(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{count(0), "0"}, {count(999), "999"}, {count(10940), "10,940"}, {count(123456), "123k"}, {count(2.5e6), "2.50M"},
		{perSecond(0), "0/s"}, {perSecond(0.04), "<0.1/s"}, {perSecond(9.94), "9.9/s"}, {perSecond(1234), "1,234/s"},
		{bytesPerSecond(12), "12 B/s"}, {bytesPerSecond(29622640), "29.6 MB/s"}, {bytesPerSecond(5e12), "5000 GB/s"}, {amount(1536), "1.54 kB"},
		{ago(noon, noon.Add(-3*time.Second)), "just now"}, {ago(noon, noon.Add(-39*time.Second)), "30 s ago"},
		{ago(noon, noon.Add(-192*time.Second)), "3 min ago"}, {ago(noon, noon.Add(-47*time.Hour)), "47 h ago"}, {ago(noon, noon.Add(-72*time.Hour)), "3 days ago"}, {ago(noon, time.Time{}), ""},
		{clock(noon, noon.Add(-time.Hour)), "11:00:00"}, {clock(noon, noon.Add(-25*time.Hour)), "13 Mar 11:00"},
		{group("1"), "1"}, {group("1234567"), "1,234,567"},
	} {
		if c.got != c.want {
			t.Errorf("got %q; want %q", c.got, c.want)
		}
	}
}

func TestPager(t *testing.T) {
	link := func(n int) string { return fmt.Sprint("p", n) }
	for _, c := range []struct {
		page, all        int
		from, to         int
		previous, next   string
		wantPage, wantOf int
	}{
		{1, 0, 0, 0, "", "", 1, 1},
		{1, 120, 0, 50, "", "p2", 1, 3},
		{3, 120, 100, 120, "p2", "", 3, 3},
		{99, 120, 100, 120, "p2", "", 3, 3},
		{-5, 50, 0, 50, "", "", 1, 1},
	} {
		p := newPager("rows", c.page, c.all, 50, link)
		if p.from() != c.from || p.to() != c.to || p.Previous != c.previous || p.Next != c.next || p.Page != c.wantPage || p.Pages != c.wantOf {
			t.Errorf("page %d of %d: got %+v; want %d to %d", c.page, c.all, p, c.from, c.to)
		}
	}
}
