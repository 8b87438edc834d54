package nftables

import (
	"context"
	"flag"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap/zaptest"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// underTest is an engine of which the suite sees one protocol.
type underTest struct {
	*Engine
	protocol  lb.Protocol
	withdrawn bool // its end is for good
}

func (u underTest) Capabilities() []lb.Capability {
	return slices.DeleteFunc(u.Engine.Capabilities(), func(c lb.Capability) bool {
		return (c == lb.CapTCP || c == lb.CapUDP) && c != lb.Capability(u.protocol)
	})
}

func (u underTest) Shutdown(ctx context.Context) error {
	if u.withdrawn {
		return u.Withdraw(ctx)
	}
	return u.Engine.Shutdown(ctx)
}

// oneFamily is a network without the other address family.
type oneFamily struct {
	lbtest.Network
	family lb.Family
}

func (n oneFamily) Addresses(f lb.Family) int {
	if f != n.family {
		return 0
	}
	return n.Network.Addresses(f)
}

// TestMain lets all tests that wait in namespaces of their own wait side by side,
// whatever the number of processors.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "16"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// inNamespaces is lbtest.InNamespaces beside other tests.
func inNamespaces(t *testing.T, run func(n lbtest.Network)) {
	t.Helper()
	if os.Getenv("ECLUSA_LBTEST_INSIDE") == "" {
		t.Parallel()
	}
	lbtest.InNamespaces(t, run)
}

func TestEngine(t *testing.T) {
	t.Parallel()
	for _, f := range []lb.Family{lb.IPv4, lb.IPv6} {
		for _, p := range []lb.Protocol{lb.TCP, lb.UDP} {
			t.Run(string(f)+"-"+string(p), func(t *testing.T) {
				inNamespaces(t, func(n lbtest.Network) { testEngine(t, oneFamily{n, f}, p) })
			})
		}
	}
}

func testEngine(t *testing.T, n lbtest.Network, p lb.Protocol) {
	lbtest.TestEngine(t, func(t *testing.T) lb.Engine {
		e := New(Options{Log: zaptest.NewLogger(t)})
		t.Cleanup(func() {
			if t.Failed() {
				logRuleset(t)
			}
			if _, err := Cleanup(e.log); err != nil {
				t.Error(err)
			}
		})
		// The others end as a daemon does that is started again.
		return underTest{e, p, strings.Contains(t.Name(), "/Shutdown")}
	}, n, lbtest.DialRetry, lbtest.OwnSockets, lbtest.ExactTurns)
}

func logRuleset(t *testing.T) {
	for _, c := range [][]string{{"nft", "list", "ruleset"}, {"conntrack", "-L"}} {
		out, err := exec.Command(c[0], c[1:]...).CombinedOutput()
		t.Logf("%s: %v\n%s", strings.Join(c, " "), err, out)
	}
}
