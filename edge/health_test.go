package edge

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

const theCheck = lb.CheckID("http:10256/healthz")

// up brings up an edge with one load balancer on node port 30000 and n nodes.
func up(t *testing.T, n int) (*rig, lb.Epoch) {
	t.Helper()
	b := newRig(t)
	b.run()
	epoch := b.claim("prod")
	b.set("prod", epoch, testConfig(1, 1, n))
	b.status("prod", "all up", func(s lb.Status) bool {
		for _, m := range s.Checks[theCheck] {
			if m.State != healthcheck.Up {
				return false
			}
		}
		return len(s.Checks[theCheck]) == n
	})
	return b, epoch
}

// A node that is gone takes no new connections after the worst case of the
// schedule, and its connections are reset after a TCP witness failed too.
func TestDeadNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := up(t, 2)
		defer b.stop()
		start := time.Now()
		b.probes.say("10.0.0.2:10256", errRefused)
		b.probes.say("10.0.0.2:30000", errRefused)
		b.table("n2 takes nothing new", is(map[lb.NodeName]lb.BackendState{"n2": lb.Draining, "n1": lb.Active}))
		if took := time.Since(start); took > 2500*time.Millisecond {
			t.Errorf("n2 was down after %s; want at most 2.5s", took)
		}
		b.table("n2 is dead", is(map[lb.NodeName]lb.BackendState{"n2": lb.Dead, "n1": lb.Active}))
		if took := time.Since(start); took > 4*time.Second {
			t.Errorf("n2 was dead after %s; want at most 4s", took)
		}
		s := b.status("prod", "told", func(s lb.Status) bool { return s.Checks[theCheck]["n2"].Dead })
		if m := s.Checks[theCheck]["n2"]; m.State != healthcheck.Down || m.Reason != healthcheck.Refused || m.Error == "" || m.Substitute {
			t.Errorf("status of n2: got %+v; want down, refused, with the text", m)
		}
		b.probes.say("10.0.0.2:10256", nil)
		b.probes.say("10.0.0.2:30000", nil)
		b.table("n2 is back", is(map[lb.NodeName]lb.BackendState{"n2": lb.Active}))
		synctest.Wait()
		if b.checker.Stats().Targets != 2 {
			t.Errorf("targets: got %d; want two, the witness is not needed any more", b.checker.Stats().Targets)
		}
	})
}

// A closed health port with a node port that answers is a restart of kube-proxy.
func TestClosedCheckPortOnlyDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := up(t, 2)
		defer b.stop()
		b.probes.say("10.0.0.2:10256", errRefused)
		b.table("n2 drains", is(map[lb.NodeName]lb.BackendState{"n2": lb.Draining}))
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := states(b.engine.Table())["n2"]; got != lb.Draining {
			t.Errorf("after a minute: got %s; want draining", got)
		}
	})
}

// Where a check has never answered, a node port is asked instead.
func TestSubstitute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t)
		b.probes.say("10.0.0.1:10256", errRefused)
		b.probes.say("10.0.0.2:10256", errUnavailable) // this one answers, though wrongly
		b.run()
		defer b.stop()
		epoch := b.claim("prod")
		b.set("prod", epoch, testConfig(1, 2, 3))
		b.table("n1 by its node port", is(map[lb.NodeName]lb.BackendState{"n1": lb.Active, "n2": lb.Draining, "n3": lb.Active}))
		s := b.status("prod", "told", func(s lb.Status) bool { return s.Checks[theCheck]["n1"].State == healthcheck.Up })
		if !s.Checks[theCheck]["n1"].Substitute || s.Checks[theCheck]["n2"].Substitute || s.Checks[theCheck]["n3"].Substitute {
			t.Errorf("members: got %+v; want n1 alone by a substitute", s.Checks[theCheck])
		}

		// The Service whose port stood in goes; the next port takes over without
		// the node being out for a moment.
		tables := len(b.engine.Tables())
		config := testConfig(2, 2, 3)
		delete(config.LoadBalancers, "u1")
		b.set("prod", epoch, config)
		b.status("prod", "applied", func(s lb.Status) bool { return s.Revision == 2 })
		time.Sleep(10 * time.Second)
		synctest.Wait()
		for _, table := range b.engine.Tables()[tables:] {
			if got := states(table)["n1"]; got != lb.Active {
				t.Errorf("while the substitute moved: n1 is %s; want active", got)
			}
		}
		if b.probes.count("10.0.0.1:30001") == 0 {
			t.Error("the other node port was never asked")
		}

		// A failing substitute is like a failing check.
		b.probes.say("10.0.0.1:30001", errRefused)
		b.table("n1 is dead", is(map[lb.NodeName]lb.BackendState{"n1": lb.Dead}))
		// Once the check has answered, it is the check that counts.
		b.probes.say("10.0.0.1:10256", nil)
		b.table("n1 is up by its check", is(map[lb.NodeName]lb.BackendState{"n1": lb.Active}))
		b.status("prod", "no substitute", func(s lb.Status) bool { return !s.Checks[theCheck]["n1"].Substitute })
	})
}

// Without any TCP port, further failures of the check itself make a member dead.
func TestDeadWithoutWitness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t)
		b.run()
		defer b.stop()
		config := testConfig(1, 1, 2)
		l := config.LoadBalancers["u1"]
		l.Listeners = []lb.Listener{{Protocol: lb.UDP, Port: 53, TargetPort: 30053}}
		config.LoadBalancers["u1"] = l
		b.set("prod", b.claim("prod"), config)
		b.table("up", is(map[lb.NodeName]lb.BackendState{"n1": lb.Active, "n2": lb.Active}))
		b.probes.say("10.0.0.2:10256", errRefused)
		b.table("down", is(map[lb.NodeName]lb.BackendState{"n2": lb.Draining}))
		start := time.Now()
		b.table("dead", is(map[lb.NodeName]lb.BackendState{"n2": lb.Dead}))
		if took := time.Since(start); took < 500*time.Millisecond || took > 5*time.Second {
			t.Errorf("dead %s after down; want three further failures", took)
		}
	})
}

// A node to which packets are routed as they are has no port that tells whether it
// is dead: only silence does, since a restart of kube-proxy closes its health port.
func TestDeadWithDirectForwarding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &rig{t: t, dir: t.TempDir(), log: zaptest.NewLogger(t), able: []lb.Capability{lb.CapDirect, lb.CapIPv4, lb.CapRoundRobin, lb.CapTCP}}
		b.open()
		b.run()
		defer b.stop()
		config := testConfig(1, 1, 2)
		l := config.LoadBalancers["u1"]
		l.Forwarding, l.Listeners = lb.ForwardDirect, []lb.Listener{{Protocol: lb.TCP, Port: 80, TargetPort: 80}}
		config.LoadBalancers["u1"] = l
		b.set("prod", b.claim("prod"), config)
		b.table("up", is(map[lb.NodeName]lb.BackendState{"n1": lb.Active, "n2": lb.Active}))
		b.probes.say("10.0.0.2:10256", errRefused)
		b.table("down", is(map[lb.NodeName]lb.BackendState{"n2": lb.Draining}))
		time.Sleep(time.Minute)
		if s := b.status("prod", "told", func(lb.Status) bool { return true }); s.Checks[theCheck]["n2"].Dead {
			t.Error("a node that refuses is told as dead")
		}
		b.probes.say("10.0.0.2:10256", &healthcheck.Failure{Reason: healthcheck.Timeout, Text: "no answer in time"})
		b.table("dead", is(map[lb.NodeName]lb.BackendState{"n2": lb.Dead}))
	})
}

func TestDialErrorsHastenTheCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := up(t, 2)
		defer b.stop()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		b.probes.say("10.0.0.2:10256", errRefused)
		before, start := b.probes.count("10.0.0.2:10256"), time.Now()
		b.edge.DialFailed("prod", theCheck, "n2", unix.ECONNREFUSED)
		b.edge.DialFailed("prod", theCheck, "nobody", unix.ECONNREFUSED)
		b.edge.DialFailed("stranger", "x", "n2", unix.ECONNREFUSED)
		b.table("n2 is down", is(map[lb.NodeName]lb.BackendState{"n2": lb.Draining}))
		if took := time.Since(start); took > 600*time.Millisecond {
			t.Errorf("down %s after a hint; want at most 600ms", took)
		}
		if got := b.probes.count("10.0.0.2:10256") - before; got < 3 {
			t.Errorf("probes until the verdict: got %d; want three", got)
		}
	})
}

// All members down: everything is served by everyone rather than by no one.
func TestFailsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := up(t, 2)
		defer b.stop()
		for _, a := range []string{"10.0.0.1:10256", "10.0.0.2:10256", "10.0.0.1:30000", "10.0.0.2:30000"} {
			b.probes.say(a, errRefused)
		}
		b.table("failing open", func(t lb.Table) bool {
			for _, g := range t.Groups {
				if !g.FailingOpen {
					return false
				}
			}
			return len(t.Groups) > 0
		})
		if got := states(b.engine.Table()); got["n1"] != lb.Active || got["n2"] != lb.Active {
			t.Errorf("members: got %v; want all active", got)
		}
	})
}

// What was known survives a restart, also that a check has never answered.
func TestKnownHealthSurvives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t)
		b.probes.say("10.0.0.1:10256", errRefused)
		b.run()
		b.set("prod", b.claim("prod"), testConfig(1, 1, 2))
		b.status("prod", "by a substitute", func(s lb.Status) bool { return s.Checks[theCheck]["n1"].Substitute })
		b.stop()
		b.open()
		b.run()
		defer b.stop()
		table := b.table("the first table", func(lb.Table) bool { return true })
		if got := states(table); got["n1"] != lb.Active || got["n2"] != lb.Active {
			t.Errorf("members of the first table: got %v; want all active", got)
		}
		s := b.status("prod", "told", func(s lb.Status) bool { return len(s.Checks) > 0 })
		if !s.Checks[theCheck]["n1"].Substitute {
			t.Errorf("n1: got %+v; want it by a substitute from the start", s.Checks[theCheck]["n1"])
		}
	})
}

func TestDamagedHealthFileIsIgnored(t *testing.T) {
	b := newRig(t)
	if err := os.WriteFile(b.edge.healthPath, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := b.edge.loadHealth(); got == nil || len(got) > 0 {
		t.Errorf("got %v; want an empty map", got)
	}
}

// A node that must not be used is neither probed nor silently left out.
func TestUnhealthyNodesAreNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t)
		b.run()
		defer b.stop()
		config := testConfig(1, 1, 1)
		config.Nodes["bad"] = lb.Node{Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}
		config.Pools["all"]["bad"] = lb.Member{}
		b.set("prod", b.claim("prod"), config)
		s := b.status("prod", "applied", func(s lb.Status) bool { return s.Revision == 1 })
		if !s.LoadBalancers["u1"].Applied {
			t.Errorf("status: got %+v; want it applied without the bad node", s.LoadBalancers["u1"])
		}
		if got := s.Checks[theCheck]["bad"]; got.State != healthcheck.Down || !strings.Contains(got.Error, "127.0.0.1") {
			t.Errorf("the bad node: got %+v; want it down because of 127.0.0.1", got)
		}
		if b.probes.count("127.0.0.1:10256") > 0 {
			t.Error("a node on loopback was probed")
		}
	})
}

func TestProblemTypes(t *testing.T) {
	for err, want := range map[error]string{
		lb.ErrAddressHeld: "address-held", lb.ErrExhausted: "exhausted", lb.ErrUnsupported: "unsupported", errors.New("x"): "unsupported",
	} {
		if got := problemType(err); got != want {
			t.Errorf("type of %v: got %q; want %q", err, got, want)
		}
	}
}

// Nodes that ask for no new connections get some for a while when there is nobody
// else, unless they do not answer.
func TestLastResortEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t)
		b.run()
		defer b.stop()
		config := testConfig(1, 1, 2)
		l := config.LoadBalancers["u1"]
		l.FailOpen, l.Members = false, map[lb.NodeName]lb.Member{"n1": {}, "n2": {}}
		config.LoadBalancers["u1"] = l
		b.set("prod", b.claim("prod"), config)
		b.table("up", is(map[lb.NodeName]lb.BackendState{"n1": lb.Active, "n2": lb.Active}))
		resort := func(want bool, members map[lb.NodeName]lb.BackendState) func(lb.Table) bool {
			return func(t lb.Table) bool {
				for _, g := range t.Groups {
					if g.LastResort != want {
						return false
					}
				}
				return is(members)(t)
			}
		}
		said503 := &healthcheck.Failure{Reason: healthcheck.HTTPStatus, Text: "HTTP 503", Draining: true}
		b.probes.say("10.0.0.1:10256", said503)
		b.probes.say("10.0.0.2:10256", said503)
		b.table("last resort", resort(true, map[lb.NodeName]lb.BackendState{"n1": lb.Active, "n2": lb.Active}))
		start := time.Now()
		b.edge.DialFailed("prod", theCheck, "n1", unix.ECONNREFUSED)
		b.edge.DialFailed("prod", theCheck, "n2", os.NewSyscallError("connect", unix.ETIMEDOUT))
		b.table("n2 does not answer", resort(true, map[lb.NodeName]lb.BackendState{"n1": lb.Active, "n2": lb.Draining}))
		if took := time.Since(start); took > time.Second {
			t.Errorf("a last resort that does not answer: got it left alone after %s; want at once", took)
		}
		b.table("over", resort(false, map[lb.NodeName]lb.BackendState{"n1": lb.Draining, "n2": lb.Draining}))
		if took := time.Since(start); took < LastResortFor-5*time.Second || took > LastResortFor+time.Second {
			t.Errorf("the last resort: got it over after %s; want %s", took, LastResortFor)
		}
		b.probes.say("10.0.0.2:10256", nil)
		b.table("n2 is back", is(map[lb.NodeName]lb.BackendState{"n1": lb.Draining, "n2": lb.Active}))
		b.probes.say("10.0.0.2:10256", said503)
		b.table("n2 ends again", resort(true, map[lb.NodeName]lb.BackendState{"n1": lb.Draining, "n2": lb.Active}))
	})
}

// What a newer edge has saved of a member and this one does not know is left out.
func TestHealthOfANewerEdge(t *testing.T) {
	known, err := decodeHealth([]byte(`{"schema":"v9","results":[
		{"addr":"10.0.0.1:1","spec":{"protocol":"tcp"},"state":"up","since":"2026-01-01T00:00:00Z"},
		{"addr":"10.0.0.2:1","spec":{"protocol":"tcp"},"state":"resting","since":"2026-01-01T00:00:00Z"},
		{"addr":"10.0.0.3:1","spec":{"protocol":"dns","query":["a","b"],"interval":5},"state":"up","since":"2026-01-01T00:00:00Z"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	tcp := healthcheck.Target{Addr: netip.MustParseAddrPort("10.0.0.1:1"), Spec: healthcheck.Spec{Protocol: healthcheck.TCP}}
	if len(known) != 1 || known[tcp].State != healthcheck.Up {
		t.Errorf("got %v; want the first alone", known)
	}
}
