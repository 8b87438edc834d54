package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lab"
)

// rounds is how often a figure is taken: a few times in every run, as often as
// E2E_ROUNDS says for the figures that are reported.
func rounds(t *testing.T) int {
	t.Helper()
	text := os.Getenv("E2E_ROUNDS")
	if text == "" {
		return 3
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("E2E_ROUNDS is %q, want a number of rounds", text)
	}
	return n
}

// From the creation of a Service to the first request answered outside, its pods
// running already. Services come one at a time: kube-proxy takes note of changes
// once a second at most, and would else make each wait for the one before.
func TestFigureFirstRequest(t *testing.T) {
	c := inLabAlone(t)
	ns := c.namespace(t)
	c.deploy(t, ns, "web", 2)
	var took, told []time.Duration
	for i := range rounds(t) {
		s := lab.Service(ns, fmt.Sprintf("web-%d", i))
		s.Spec.Selector = map[string]string{"app": "web"}
		begun := time.Now()
		c.create(t, s)
		at := netip.AddrPortFrom(c.addresses(t, ns, s.Name)[0], 80)
		told = append(told, time.Since(begun))
		answers(t, c.client, at)
		took = append(took, time.Since(begun))
		pause(t.Context(), 1500*time.Millisecond)
	}
	t.Logf("from the Service to its address in the status: median %s, worst %s", median(told).Round(time.Millisecond), worst(told).Round(time.Millisecond))
	t.Logf("from the Service to the first request answered: median %s, worst %s of %d",
		median(took).Round(time.Millisecond), worst(took).Round(time.Millisecond), len(took))
	if limit := 3 * time.Second; median(took) > limit {
		t.Errorf("median %s, want less than %s even on a busy machine; the aim is a second", median(took), limit)
	}
}

// deadNodeLimit is the worst case by design, an interval and three time-outs of
// the probe, and what it takes to see that from here.
const deadNodeLimit = 2500*time.Millisecond + 500*time.Millisecond

// From the silent death of a node to the moment when it gets no new connection.
func TestFigureDeadNode(t *testing.T) {
	c := inLabAlone(t)
	ns := c.namespace(t)
	c.deploy(t, ns, "web", 2)
	at := netip.AddrPortFrom(c.serve(t, lab.Service(ns, "web"))[0], 80)
	answers(t, c.client, at)
	victim := c.Nodes[1]
	c.untilUp(t, victim.Name)
	var took []time.Duration
	for i := range rounds(t) {
		// Not always at the same moment of the second between two probes.
		pause(t.Context(), time.Duration(i%10)*97*time.Millisecond)
		took = append(took, c.untilDown(t, victim.Name, c.cut(t, victim)))
		if err := victim.LinkUp(); err != nil {
			t.Fatal(err)
		}
		c.untilUp(t, victim.Name)
	}
	c.ensureCCM(t) // the leader was on that node, perhaps
	t.Logf("from the death of a node to its last new connection: median %s, worst %s of %d",
		median(took).Round(time.Millisecond), worst(took).Round(time.Millisecond), len(took))
	if worst(took) > deadNodeLimit {
		t.Errorf("worst %s, want %s at most", worst(took), deadNodeLimit)
	}
}

// rolls is how many rolling updates are made: one in every run, as many as
// E2E_ROUNDS says for the figures that are reported.
func rolls(t *testing.T) int {
	t.Helper()
	if os.Getenv("E2E_ROUNDS") == "" {
		return 1
	}
	return rounds(t)
}
