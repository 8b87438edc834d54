package provider

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// TestSyncerSeesAnUpgrade has another process of the edge take over without a broken
// connection: nobody was ever refused, and yet the edge can do more than before.
func TestSyncerSeesAnUpgrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a")
		info := lb.Info{Name: "a", Engine: "tiny", Version: "v0", Schema: lb.Schema, Capabilities: []lb.Capability{lb.CapIPv4, lb.CapRoundRobin}}
		r.edges["a"].SetInfo(info)
		c := config(1, 1, 1)
		r.set("a", c)
		if st := r.settle(time.Minute); st.Info.Version != "v0" || len(st.Withheld) != 1 {
			t.Fatalf("state is %+v, want version v0 and the one withheld", st)
		}
		// Of the same version.
		r.edges["a"].Restart()
		r.settle(time.Minute)
		if n := r.edges["a"].Calls(lbtest.CallConfig); n != 1 {
			t.Errorf("edge was read back %d times, want once: it is what it was", n)
		}
		info.Version, info.Capabilities = "v1", append(info.Capabilities, lb.CapTCP)
		r.edges["a"].SetInfo(info)
		r.edges["a"].Restart()
		st := r.settle(time.Minute)
		if st.Info.Version != "v1" || len(st.Withheld) != 0 || st.DriftRepaired != 0 {
			t.Errorf("state is %+v, want version v1, nothing withheld, no drift", st)
		}
		r.holds("a", c)
		if lost := r.happened("Disconnected"); len(lost) != 0 {
			t.Errorf("events %q, want none of a lost edge", lost)
		}
	})
}
