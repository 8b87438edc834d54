package provider

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

func TestSyncerWithholds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a")
		info := lb.Info{Name: "edge-1", Engine: "tiny", Version: "v0", Schema: lb.Schema,
			Capabilities: []lb.Capability{lb.CapIPv4, lb.CapRoundRobin, lb.CapTCP}}
		r.edges["a"].SetInfo(info)
		c := config(1, 3, 1)
		l := c.LoadBalancers[uid(1)]
		l.Listeners = append(l.Listeners, lb.Listener{Protocol: lb.SCTP, Port: 1, TargetPort: 2})
		c.LoadBalancers[uid(1)] = l
		l = c.LoadBalancers[uid(2)]
		l.MaxConnections = 5
		c.LoadBalancers[uid(2)] = l
		r.set("a", c)
		st := r.settle(0)
		want := config(1, 3, 1)
		delete(want.LoadBalancers, uid(2)) // of the other only the port is left out
		r.holds("a", want)
		p := st.Withheld[uid(2)]
		if len(st.Withheld) != 1 || p.Type != "unsupported" || p.Field != "maxConnections" || !strings.Contains(p.Detail, `"edge-1" with engine "tiny" and version "v0" cannot do: max-connections`) {
			t.Errorf("withheld is %+v, want the one with a limit and why", st.Withheld)
		}
		p = st.Trimmed[uid(1)].Problems[1]
		if len(st.Trimmed) != 1 || p.Type != "unsupported" || p.Field != "listeners[1].protocol" || !strings.HasPrefix(p.Detail, `port 1/sctp: edge "edge-1" with engine "tiny" and version "v0" cannot do: sctp`) {
			t.Errorf("trimmed is %+v, want the one with sctp and why", st.Trimmed)
		}
		if len(c.LoadBalancers) != 3 {
			t.Error("the wanted configuration was changed")
		}
		// The edge is updated.
		info.Capabilities = append(info.Capabilities, lb.CapSCTP, lb.CapMaxConnections)
		r.edges["a"].Down(errors.New("restarting"))
		r.settle(time.Second)
		r.edges["a"].SetInfo(info)
		r.edges["a"].Down(nil)
		st = r.settle(soon)
		r.holds("a", c)
		if len(st.Withheld)+len(st.Trimmed) != 0 || st.DriftRepaired != 0 {
			t.Errorf("state is %+v, want nothing withheld", st)
		}
	})
}

// TestSyncerKeepsTrimmed asks for more than an edge can do of a load balancer that
// it serves without one of its addresses: it goes on serving the others.
func TestSyncerKeepsTrimmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a")
		r.edges["a"].SetInfo(lb.Info{Name: "edge-1", Engine: "tiny", Version: "v0", Schema: lb.Schema,
			Capabilities: []lb.Capability{lb.CapIPv4, lb.CapIPv6, lb.CapRoundRobin, lb.CapTCP}})
		six := netip.MustParseAddr("2001:db8::1")
		wanted := func(revision uint64, algorithm lb.Algorithm, addrs ...netip.Addr) lb.Config {
			c := config(revision, 3, 1)
			l := c.LoadBalancers[uid(1)]
			l.Algorithm, l.MemberFamilies = algorithm, []lb.Family{lb.IPv4}
			if addrs != nil {
				l.Addresses = addrs
			}
			l.Addresses = append(l.Addresses, six)
			c.LoadBalancers[uid(1)] = l
			return c
		}
		r.set("a", wanted(1, ""))
		st := r.settle(0)
		r.holds("a", config(1, 3, 1))
		if len(st.Trimmed[uid(1)].Addresses) != 1 {
			t.Fatalf("trimmed is %+v, want the address of the other family", st.Trimmed)
		}
		r.set("a", wanted(2, lb.SourceHash))
		st = r.settle(soon)
		r.holds("a", config(2, 3, 1))
		if len(st.Withheld) != 1 {
			t.Errorf("withheld is %+v, want the newest version", st.Withheld)
		}
		// The Service has another address: the old one is not its own any more.
		r.set("a", wanted(3, lb.SourceHash, netip.MustParseAddr("192.0.2.200")))
		r.settle(soon)
		want := config(3, 3, 1)
		delete(want.LoadBalancers, uid(1))
		r.holds("a", want)
	})
}

// TestSyncerWithholdsChecks keeps load balancers back from an edge that knows
// nothing of their kind of health check and would refuse them.
func TestSyncerWithholdsChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a")
		r.edges["a"].SetInfo(lb.Info{Name: "edge-1", Engine: "tiny", Version: "v0", Schema: lb.Schema,
			Capabilities: []lb.Capability{lb.CapIPv4, lb.CapRoundRobin, lb.CapTCP}})
		c := config(1, 3, 1)
		for i, p := range []healthcheck.Protocol{healthcheck.TCP, healthcheck.GRPC, healthcheck.None} {
			l := c.LoadBalancers[uid(i)]
			l.HealthCheck.Protocol = p
			c.LoadBalancers[uid(i)] = l
		}
		r.set("a", c)
		st := r.settle(0)
		if holds := r.edges["a"].Held(); len(holds.LoadBalancers) != 1 || len(st.Withheld) != 2 {
			t.Errorf("the edge holds %d and %v are withheld, want one and those with other checks", len(holds.LoadBalancers), st.Withheld)
		}
		for i, can := range []string{"health-check-grpc", "health-check-none"} {
			if p := st.Withheld[uid(i+1)]; p.Type != "unsupported" || p.Field != "healthCheck.protocol" || !strings.HasSuffix(p.Detail, "cannot do: "+can) {
				t.Errorf("withheld is %+v, want it for %s", p, can)
			}
		}
	})
}
