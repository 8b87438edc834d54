package provider

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

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
