package edge

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// A view has what the edge holds, what became of it and when.
func TestView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, epoch := up(t, 2)
		before := b.edge.View()
		if len(before.Clusters) != 2 || before.Clusters[0].Name != "dev" || before.Clusters[1].Name != "prod" {
			t.Fatalf("got %+v; want dev and prod", before.Clusters)
		}
		if before.Info.Name != "edge-1" || before.Started.IsZero() || before.Probes.Targets != 2 || len(before.Unready) > 0 {
			t.Errorf("got %+v; want an edge that is ready", before.Info)
		}
		if dev := before.Clusters[0]; !dev.Applied.IsZero() || !dev.Written.IsZero() || dev.Held != nil {
			t.Errorf("a cluster that has not written: got %+v; want no times", dev)
		}
		time.Sleep(time.Minute)
		written := time.Now()
		b.set("prod", epoch, testConfig(2, 6, 2))
		b.probes.say("10.0.0.2:10256", errRefused)
		b.status("prod", "n2 down", func(s lb.Status) bool {
			return s.Revision == 2 && s.Checks[theCheck]["n2"].State == healthcheck.Down
		})
		prod := b.edge.View().Clusters[1]
		if prod.Config.Revision != 2 || prod.Status.Revision != 2 || len(prod.Config.LoadBalancers) != 6 || !prod.Status.LoadBalancers["u6"].Applied {
			t.Errorf("got %+v; want six load balancers of revision 2 applied", prod.Status)
		}
		if !prod.Written.Equal(written) || prod.Applied.Before(written) || prod.Applied.Sub(written) > time.Second {
			t.Errorf("got written %s and applied %s; want about %s", prod.Written, prod.Applied, written)
		}
		if m := prod.Status.Checks[theCheck]["n2"]; m.State != healthcheck.Down || m.Reason != healthcheck.Refused || !m.Since.After(written) {
			t.Errorf("got %+v; want n2 down since a moment ago", m)
		}

		_, err := b.edge.Cluster("prod").Set(t.Context(), lb.Write{Epoch: epoch, Config: testConfig(3, 1, 2)})
		held := b.edge.View().Clusters[1].Held
		if err == nil || held == nil || len(held.Keys) != 5 || held.Largest != 6 || !held.At.Equal(time.Now()) {
			t.Errorf("removing five of six: got %v, %+v; want it held, and told", err, held)
		}
		b.engine.SetCounters([]lb.RouteCounters{counted("192.0.0.1", "n1")})
		if got := fmt.Sprint(b.edge.Traffic()[0].Accepted); got != "10" {
			t.Errorf("got %s connections; want what the engine says", got)
		}
	})
}
