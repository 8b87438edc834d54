package page

import (
	"fmt"
	"math"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/eclusa-lb/eclusa/edge"
	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// noon is when everything in the tests of this package happens.
var noon = time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)

const kubeProxy = lb.CheckID("http:10256/healthz")

// fakeSource shows what a test has made up.
type fakeSource struct {
	view     edge.View
	counters []lb.RouteCounters
}

func (s *fakeSource) View() edge.View             { return s.view }
func (s *fakeSource) Traffic() []lb.RouteCounters { return s.counters }

// service is one load balancer of a made-up edge.
type service struct {
	name      string
	addresses []string
	listeners []lb.Listener
	base      float64 // connections per second
	members   []lb.NodeName
}

// demo returns an edge with several load balancers of two clusters, one node
// down, and traffic like that of a working day.
func demo() *fakeSource {
	s := &fakeSource{view: edge.View{
		Started: noon.Add(-9 * 24 * time.Hour), Probes: healthcheck.Stats{Targets: 6, Rate: 6.2, Stretched: 1, LagP99: 400 * time.Microsecond},
		Info: lb.Info{Name: "edge-1", Version: "v0.3.0", Engine: "proxy", Schema: lb.Schema},
	}}
	tcp := func(port, target uint16) lb.Listener {
		return lb.Listener{Protocol: lb.TCP, Port: port, TargetPort: target}
	}
	udp := func(port, target uint16) lb.Listener {
		return lb.Listener{Protocol: lb.UDP, Port: port, TargetPort: target}
	}
	s.add("prod", 3, 4812, []service{
		{"shop/web", []string{"203.0.113.10", "2001:db8:1::10"}, []lb.Listener{tcp(80, 31080), tcp(443, 31443)}, 180, nil},
		{"shop/api", []string{"203.0.113.11"}, []lb.Listener{tcp(443, 30711)}, 96, nil},
		{"identity/login", []string{"203.0.113.12"}, []lb.Listener{tcp(443, 32018)}, 22, nil},
		{"mail/smtp", []string{"203.0.113.13"}, []lb.Listener{tcp(25, 30025), tcp(465, 30465), tcp(587, 30587)}, 4, nil},
		{"dns/resolver", []string{"203.0.113.53", "2001:db8:1::53"}, []lb.Listener{tcp(53, 30053), udp(53, 30053)}, 310, nil},
		{"media/stream", []string{"203.0.113.20"}, []lb.Listener{tcp(443, 32222)}, 9, []lb.NodeName{"worker-1", "worker-3"}},
	})
	s.add("staging", 2, 233, []service{
		{"shop/web", []string{"203.0.113.80"}, []lb.Listener{tcp(80, 30080), tcp(443, 30443)}, 2.5, nil},
		{"observability/grafana", []string{"203.0.113.81"}, []lb.Listener{tcp(443, 31800)}, 0.3, nil},
	})
	down := s.view.Clusters[0].Status.Checks[kubeProxy]["worker-2"]
	down.State, down.Dead, down.Since = healthcheck.Down, true, noon.Add(-3*time.Minute-12*time.Second)
	down.Reason, down.Error = healthcheck.Timeout, "no answer within 500ms"
	s.view.Clusters[0].Status.Checks[kubeProxy]["worker-2"] = down
	return s
}

// add adds a cluster.
func (s *fakeSource) add(name lb.Cluster, nodes int, revision uint64, services []service) {
	c := edge.ClusterView{
		Name: name, Written: noon.Add(-41 * time.Minute), Applied: noon.Add(-41 * time.Minute),
		Config: lb.Config{
			Revision: revision, Nodes: map[lb.NodeName]lb.Node{}, Pools: map[lb.PoolName]lb.Pool{"all": {}},
			LoadBalancers: map[lb.UID]lb.LoadBalancer{},
		},
		Status: lb.Status{
			Revision: revision, Durable: true, LoadBalancers: map[lb.UID]lb.LoadBalancerStatus{},
			Checks: map[lb.CheckID]map[lb.NodeName]lb.MemberStatus{kubeProxy: {}},
		},
	}
	for i := range nodes {
		node := lb.NodeName(fmt.Sprintf("worker-%d", i+1))
		c.Config.Nodes[node] = lb.Node{
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(20 + len(s.view.Clusters)), 0, byte(11 + i)})}, Zone: fmt.Sprintf("rack-%d", i%3+1),
		}
		c.Config.Pools["all"][node] = lb.Member{}
		c.Status.Checks[kubeProxy][node] = lb.MemberStatus{State: healthcheck.Up, Since: noon.Add(-26 * time.Hour)}
	}
	for i, sv := range services {
		uid := lb.UID(fmt.Sprintf("%s-%d", name, i+1))
		l := lb.LoadBalancer{
			Name: sv.name, Pool: "all", FailOpen: true, Listeners: sv.listeners,
			HealthCheck: lb.HealthCheck{Spec: healthcheck.Spec{Protocol: healthcheck.HTTP}, Port: 10256},
		}
		for _, a := range sv.addresses {
			l.Addresses = append(l.Addresses, netip.MustParseAddr(a))
		}
		if sv.members != nil {
			l.Members = map[lb.NodeName]lb.Member{}
			for _, m := range sv.members {
				l.Members[m] = lb.Member{}
			}
		}
		c.Config.LoadBalancers[uid] = l
		c.Status.LoadBalancers[uid] = lb.LoadBalancerStatus{Applied: true}
		s.counters = append(s.counters, newCounters(name, uid, l)...)
	}
	s.view.Clusters = append(s.view.Clusters, c)
}

func newCounters(cluster lb.Cluster, uid lb.UID, l lb.LoadBalancer) (out []lb.RouteCounters) {
	for _, a := range l.Addresses {
		for _, li := range l.Listeners {
			out = append(out, lb.RouteCounters{
				Frontend: lb.Frontend{Addr: a, Port: li.Port, Protocol: li.Protocol}, Owner: lb.Owner{Cluster: cluster, UID: uid}, Name: l.Name,
				Refused: map[lb.RefusedCause]uint64{}, Members: []lb.MemberCounters{{Node: "worker-1"}, {Node: "worker-2"}, {Node: "worker-3"}},
			})
		}
	}
	return out
}

// pass lets seconds of traffic pass at a time: curves, with a burst, and nothing
// to the node that is down.
func (s *fakeSource) pass(at time.Time, seconds float64) {
	t := float64(at.Unix())
	next := make([]lb.RouteCounters, len(s.counters))
	for i, r := range s.counters {
		phase := float64(len(r.Name)) + float64(r.Frontend.Port)/40
		level := 30 + 20*math.Sin(phase) // connections per second
		level *= 1 + 0.35*math.Sin(t/47+phase) + 0.12*math.Sin(t/7+2*phase) + 0.8*math.Exp(-math.Pow((t-float64(noon.Unix())+95+phase)/9, 2))
		n := uint64(level * seconds)
		r.Active = int64(level * 4)
		r.Accepted += n
		members := append([]lb.MemberCounters(nil), r.Members...)
		for j := range members {
			if members[j].Node == "worker-2" && r.Owner.Cluster == "prod" && noon.Sub(at) < 192*time.Second {
				members[j].Active = 0
				continue
			}
			members[j].Active = r.Active / int64(len(members))
			members[j].Connections += n / uint64(len(members))
			members[j].BytesIn += n * 900
			members[j].BytesOut += n * uint64(17000+int(phase*1000)%9000)
		}
		r.Members = members
		next[i] = r
	}
	s.counters = next
}

// newPage returns a page of a source at noon, with five minutes of history if
// the source has traffic.
func newPage(t testing.TB, s Source, access Access) *Page {
	t.Helper()
	events := NewEvents()
	p, err := New(Options{Source: s, Events: events, Access: access, Log: zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel))})
	if err != nil {
		t.Fatal(err)
	}
	p.now = func() time.Time { return noon }
	return p
}

// remember samples five minutes of a made-up edge's traffic.
func (p *Page) remember(s *fakeSource) {
	for at := noon.Add(-window); !at.After(noon); at = at.Add(sampleInterval) {
		s.pass(at, sampleInterval.Seconds())
		p.history.add(at, s.counters)
	}
}

// happened adds events of a working day.
func (p *Page) happened() {
	field := func(kv ...string) (f []Field) {
		for i := 0; i < len(kv); i += 2 {
			f = append(f, Field{kv[i], kv[i+1]})
		}
		return f
	}
	at := func(d time.Duration) time.Time { return noon.Add(-d) }
	for _, e := range []Event{
		{at(26 * time.Hour), "info", "node is up", field("cluster", "prod", "node", "worker-3", "check", string(kubeProxy), "was", "down")},
		{at(3 * time.Hour), "info", "the cluster has a new leader", field("cluster", "prod", "holder", "eclusa-ccm-7d9c5b-x2lqf", "epoch", "J3V7ZK2QXH4M.14")},
		{at(41 * time.Minute), "info", "the cluster has written", field("cluster", "prod", "revision", "4812", "loadBalancersAddedChangedRemoved", "[1 0 0]", "durable", "true")},
		{at(41*time.Minute - time.Second), "info", "the configuration is in force", field("cluster", "prod", "revision", "4812")},
		{at(3*time.Minute + 12*time.Second), "warn", "node is down and takes no new connections", field("cluster", "prod", "node", "worker-2", "check", string(kubeProxy), "was", "up", "reason", "timeout", "error", "no answer within 500ms")},
	} {
		p.events.add(e, e.Level != "info")
	}
}

// hostileName is what a name could be made of.
const hostileName = `x"'><script>window.pwned=1</script><img src=x onerror=window.pwned=1>{{.}}&amp;javascript:window.pwned=1` +
	"\u202e" + `averyveryveryveryveryveryveryveryveryveryveryveryveryverylongword`

// hostile returns an edge on which everything that can have a name has that one.
func hostile() *fakeSource {
	s := demo()
	s.add(hostileName, 1, 3, nil)
	c := &s.view.Clusters[len(s.view.Clusters)-1]
	c.Config.Nodes[hostileName] = lb.Node{Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.9")}, Zone: hostileName}
	c.Config.Pools["all"][hostileName] = lb.Member{}
	c.Status.Checks[kubeProxy][hostileName] = lb.MemberStatus{State: healthcheck.Down, Since: noon, Reason: hostileName, Error: hostileName}
	c.Config.LoadBalancers[hostileName] = lb.LoadBalancer{
		Name: hostileName, Pool: "all", Addresses: []netip.Addr{netip.MustParseAddr("2001:db8:1234:5678:9abc:def0:1234:5678")},
		Listeners:   []lb.Listener{{Name: hostileName, Protocol: hostileName, Port: 80, TargetPort: 30080}},
		HealthCheck: lb.HealthCheck{Spec: healthcheck.Spec{Protocol: healthcheck.HTTP}, Port: 10256},
	}
	c.Status.LoadBalancers[hostileName] = lb.LoadBalancerStatus{Problems: []lb.Problem{{Type: hostileName, Field: hostileName, Detail: hostileName}}}
	c.Held = &edge.HeldWrite{At: noon, Keys: []string{"loadBalancers/" + hostileName}, Largest: 4}
	s.view.Unready = []string{hostileName}
	s.view.Info.Name, s.view.Info.Version = hostileName, hostileName
	return s
}

// thousands returns an edge with many load balancers, all with traffic.
func thousands(n int) *fakeSource {
	s := demo()
	c := &s.view.Clusters[0]
	one := c.Config.LoadBalancers["prod-1"]
	one.Listeners = one.Listeners[:1]
	clear(c.Config.LoadBalancers)
	clear(c.Status.LoadBalancers)
	s.view.Clusters = s.view.Clusters[:1]
	s.counters = nil
	for i := range n {
		l := one
		l.Name = fmt.Sprintf("team-%d/svc-%d", i%20, i)
		l.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)})}
		uid := lb.UID(fmt.Sprintf("00000000-0000-4000-8000-%012d", i))
		c.Config.LoadBalancers[uid] = l
		c.Status.LoadBalancers[uid] = lb.LoadBalancerStatus{Applied: true}
		s.counters = append(s.counters, newCounters(c.Name, uid, l)...)
	}
	return s
}

// testToken opens pages of tests.
const testToken = "correct-horse-battery-staple"
