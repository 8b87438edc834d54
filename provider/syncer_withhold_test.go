package provider

import (
	"errors"
	"maps"
	"slices"
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
		l.Listeners = []lb.Listener{{Protocol: lb.SCTP, Port: 1, TargetPort: 2}}
		c.LoadBalancers[uid(1)] = l
		// The edge itself leaves out what it lacks of this one.
		l = c.LoadBalancers[uid(2)]
		l.Listeners = append(slices.Clone(l.Listeners), lb.Listener{Protocol: lb.SCTP, Port: 1, TargetPort: 2})
		c.LoadBalancers[uid(2)] = l
		r.set("a", c)
		st := r.settle(0)
		want := c
		want.LoadBalancers = maps.Clone(c.LoadBalancers)
		delete(want.LoadBalancers, uid(1))
		r.holds("a", want)
		p := st.Withheld[uid(1)]
		if len(st.Withheld) != 1 || p.Type != "unsupported" || p.Field != "listeners[0].protocol" || !strings.Contains(p.Detail, `"edge-1" with engine "tiny" and version "v0" cannot do: sctp`) {
			t.Errorf("withheld is %+v, want the one with sctp and why", st.Withheld)
		}
		if len(c.LoadBalancers) != 3 {
			t.Error("the wanted configuration was changed")
		}
		// The edge is updated.
		info.Capabilities = append(info.Capabilities, lb.CapSCTP)
		r.edges["a"].Down(errors.New("restarting"))
		r.settle(time.Second)
		r.edges["a"].SetInfo(info)
		r.edges["a"].Down(nil)
		st = r.settle(soon)
		r.holds("a", c)
		if len(st.Withheld) != 0 || st.DriftRepaired != 0 {
			t.Errorf("state is %+v, want nothing withheld", st)
		}
	})
}
