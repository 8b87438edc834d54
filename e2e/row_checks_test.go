package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/eclusa-lb/eclusa/healthcheck"
)

var checkEntries = []entry{
	{section: "Health checks", name: "of every protocol", run: checks},
	{section: "Health checks", name: "that fail are told and fail open", run: failingCheck},
	{section: "Health checks", name: "none asks nobody", run: noCheck},
	{section: "Health checks", name: "out of bounds are refused one by one", run: badChecks},
}

// checks lets the edge ask the pods themselves.
func checks(t *testing.T, s *stage) {
	for _, c := range []struct {
		name        string
		annotations []string
		port        string
		check       string // %d is the node port
	}{
		{"tcp", []string{"health-check-protocol", "tcp"}, "web 80/TCP http", "tcp:%d"},
		{"http", []string{"health-check-port", "traffic-port", "health-check-path", "/status?code=204"}, "web 80/TCP http", "http:%d/status?code=204"},
		{"https", []string{"health-check-protocol", "https", "health-check-port", "traffic-port"}, "web 443/TCP https", "https:%d/healthz"},
		{"grpc", []string{"health-check-protocol", "grpc", "health-check-port", "traffic-port"}, "web 80/TCP http", "grpc:%d"},
		{"slow", []string{
			"health-check-interval", "2s", "health-check-timeout", "250ms", "health-check-unhealthy-threshold", "5", "health-check-healthy-threshold", "1",
		}, "web 80/TCP http", "http:10256/healthz every 2s timeout 250ms down 5 up 1"},
	} {
		o := s.serve(t, c.name, annotated(c.annotations...), ports(c.port))
		want := c.check
		if strings.Contains(want, "%d") {
			want = fmt.Sprintf(want, o.get(t).Spec.Ports[0].NodePort)
		}
		eventually(t, 15*time.Second, func() error {
			check, on := o.probed(t)
			if string(check) != want || len(on) != len(s.Nodes) {
				return fmt.Errorf("%s: the check is %q on %v, want %q on all nodes", c.name, check, on, want)
			}
			for node, state := range on {
				if state != healthcheck.Up {
					return fmt.Errorf("%s: check %q finds %s %s, want it up", c.name, check, node, state)
				}
			}
			return nil
		})
		o.is(t, "BackendsHealthy", metav1.ConditionTrue)
		o.is(t, "Programmed", metav1.ConditionTrue)
	}
}

// A check that nobody passes must not empty the Service, but with
// externalTrafficPolicy Local it does.
func failingCheck(t *testing.T, s *stage) {
	bad := annotated("health-check-port", "traffic-port", "health-check-path", "/status?code=500")
	open := s.serve(t, "cluster", bad)
	open.is(t, "BackendsHealthy", metav1.ConditionFalse, "500")
	fromOutside.of(s).answers(t, "tcp", open.at(80))
	closed := s.serve(t, "local", bad, local)
	closed.is(t, "BackendsHealthy", metav1.ConditionFalse)
	fromOutside.of(s).refused(t, "tcp", closed.at(80))
	fromPod.of(s).refused(t, "tcp", closed.at(80))
}

func noCheck(t *testing.T, s *stage) {
	o := s.serve(t, "", annotated("health-check-protocol", "none"))
	fromOutside.of(s).answers(t, "tcp", o.at(80))
	if check, on := o.probed(t); len(on) > 0 && check != "" && string(check) != "none" {
		t.Errorf("check %q on %v, want none", check, on)
	}
	if m := o.shown(t).Members; m.Total != len(s.Nodes) || m.Down+m.Draining > 0 {
		t.Errorf("members %+v, want %d, none of them down or draining", m, len(s.Nodes))
	}
	o.explained(t, "none")
}

func badChecks(t *testing.T, s *stage) {
	for _, c := range []struct {
		name        string
		annotations []string
		words       []string
	}{
		{"protocol", []string{"health-check-protocol", "icmp"}, []string{"health-check-protocol", "icmp", "tcp", "http"}},
		{"port", []string{"health-check-port", "70000"}, []string{"health-check-port", "70000", "65535"}},
		{"path", []string{"health-check-path", "healthz"}, []string{"health-check-path", "healthz", "/"}},
		{"tcp-path", []string{"health-check-protocol", "tcp", "health-check-path", "/x"}, []string{"health-check-path", "tcp"}},
		{"interval", []string{"health-check-interval", "50ms"}, []string{"health-check-interval", "50ms", "100ms"}},
		{"timeout", []string{"health-check-interval", "1s", "health-check-timeout", "2s"}, []string{"health-check-timeout", "2s", "interval"}},
		{"thresholds", []string{"health-check-healthy-threshold", "0", "health-check-unhealthy-threshold", "101"},
			[]string{"health-check-healthy-threshold", "health-check-unhealthy-threshold", "1 to 100"}},
	} {
		o := s.make(t, c.name, annotated(c.annotations...))
		o.warns(t, c.words...)
		o.wait(t)
		cond := o.is(t, "Programmed", metav1.ConditionTrue, c.words...)
		if cond.Reason != "AnnotationsIgnored" {
			t.Errorf("%s: reason %q, want AnnotationsIgnored", c.name, cond.Reason)
		}
		fromOutside.of(s).answers(t, "tcp", o.at(80))
	}
}

var algorithmEntries = []entry{
	{section: "Algorithms", name: "spread connections", run: algorithms},
	{section: "Algorithms", name: "source-hash keeps a client with its node", run: sourceHash},
	{section: "Algorithms", name: "least-connections fills the emptier node", run: leastConnections},
}

func algorithms(t *testing.T, s *stage) {
	for _, c := range []struct {
		name        string
		least, most int // of 40
	}{{"round-robin", 18, 22}, {"least-connections", 4, 36}, {"random-two-choices", 8, 32}} {
		o := s.serve(t, c.name, local, annotated("algorithm", c.name))
		o.untilAll(t)
		o.is(t, "Programmed", metav1.ConditionTrue)
		counts := fromOutside.of(s).counted(t, o, 40)
		t.Logf("%s: %v", c.name, counts)
		for _, n := range s.Nodes {
			if got := counts[n.Name]; got < c.least || got > c.most {
				t.Errorf("%s: %v of 40 connections, want %d to %d on each node", c.name, counts, c.least, c.most)
			}
		}
	}
	bad := s.make(t, "bad", annotated("algorithm", "fastest"))
	bad.warns(t, "eclusa.io/algorithm", "fastest", "round-robin")
}

func sourceHash(t *testing.T, s *stage) {
	o := s.serve(t, "", local, annotated("algorithm", "source-hash"))
	o.untilAll(t)
	nodes := s.everyGuest(t, guest, "tcp", o.at(80), 3)
	for _, n := range s.Nodes {
		if !slices.Contains(nodes, n.Name) {
			t.Errorf("none of %d clients is served by %s", guestCount, n.Name)
		}
	}
}

// leastConnections holds connections open to one node only.
func leastConnections(t *testing.T, s *stage) {
	o := s.serve(t, "", local, ports("web 80/TCP http", "echo 7/TCP tcp-echo"), annotated("algorithm", "least-connections"))
	from := fromOutside.of(s)
	o.untilAll(t)
	byPod := map[string]int{}
	for range 8 {
		byPod[from.talk(t, o.at(7)).pod]++
	}
	if len(byPod) != len(s.Nodes) {
		t.Fatalf("8 connections went to %v, want them on all nodes", byPod)
	}
	for pod, n := range byPod {
		if n != 8/len(s.Nodes) {
			t.Errorf("8 open connections are spread as %v, want the same number with each; %s has %d", byPod, pod, n)
		}
	}
}
