package nftables

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"go.uber.org/zap/zaptest"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// withdrawing is an engine whose end is for good.
type withdrawing struct{ *Engine }

func (w withdrawing) Shutdown(ctx context.Context) error { return w.Withdraw(ctx) }

// oneFamily is a network without the other address family, so that the two can
// be tested side by side.
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

func TestEngineIPv4(t *testing.T) { testEngine(t, lb.IPv4) }

func TestEngineIPv6(t *testing.T) { testEngine(t, lb.IPv6) }

func testEngine(t *testing.T, f lb.Family) {
	if os.Getenv("ECLUSA_LBTEST_INSIDE") == "" {
		t.Parallel()
	}
	lbtest.InNamespaces(t, func(n lbtest.Network) {
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
			if strings.Contains(t.Name(), "/Shutdown") {
				return withdrawing{e}
			}
			return e
		}, oneFamily{n, f}, lbtest.DialRetry, lbtest.OwnSockets, lbtest.ExactTurns)
	})
}

func logRuleset(t *testing.T) {
	for _, c := range [][]string{{"nft", "list", "ruleset"}, {"conntrack", "-L"}} {
		out, err := exec.Command(c[0], c[1:]...).CombinedOutput()
		t.Logf("%s: %v\n%s", strings.Join(c, " "), err, out)
	}
}
