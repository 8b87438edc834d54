package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/eclusa-lb/eclusa/lab"
)

var limitEntries = append(both(entry{section: "Timeouts and limits", name: "connect-timeout"}, connectTimeout), []entry{
	{section: "Timeouts and limits", name: "idle-timeout ends what is silent", run: idleTimeout},
	{section: "Timeouts and limits", name: "udp-idle-timeout ends what is silent", run: udpIdleTimeout},
	{section: "Timeouts and limits", name: "drain-timeout lets a removed port's connections go on for so long", run: drainTimeout},
	{section: "Timeouts and limits", name: "max-connections refuses what is beyond", run: maxConnectionsEntry},
	{section: "Timeouts and limits", name: "on-unhealthy resets or keeps what is open to a dead node", alone: true, run: deadNode},
	{section: "Timeouts and limits", name: "are explained with their origin", run: explainedLimits},
	{section: "Timeouts and limits", name: "out of bounds are refused one by one", run: badLimits},
}...)

// ended waits until the connection ends, and returns how long that took.
func ended(t *testing.T, r io.Reader) time.Duration {
	t.Helper()
	begun := time.Now()
	_, err := io.Copy(io.Discard, r)
	if timeout := (net.Error)(nil); errors.As(err, &timeout) && timeout.Timeout() {
		t.Fatalf("the connection is still there after %s", time.Since(begun))
	}
	return time.Since(begun)
}

func idleTimeout(t *testing.T, s *stage) {
	o := s.serve(t, "", ports("echo 7/TCP tcp-echo"), annotated("idle-timeout", "1s"))
	busy := o.startTalk(t)
	_, r, _ := fromOutside.of(s).quiet(t, o.at(7))
	took := ended(t, r)
	if took < 800*time.Millisecond || took > 3*time.Second {
		t.Errorf("a silent connection ended after %s, want a second", took)
	}
	if err := busy.end(); err != nil {
		t.Errorf("a connection with a word every 50 ms ended: %v", err)
	}
}

// udpIdleTimeout sees another session in another port of the edge.
func udpIdleTimeout(t *testing.T, s *stage) {
	o := s.serve(t, "", local, ports("dns 53/UDP udp-echo"), annotated("udp-idle-timeout", "1s"))
	session := fromOutside.of(s).session(t, o.at(53))
	for range 8 {
		pause(t.Context(), 250*time.Millisecond)
		session.same(t)
	}
	pause(t.Context(), 2500*time.Millisecond)
	eventually(t, 10*time.Second, func() error {
		a, err := session.ask()
		if err == nil && a.client == session.first.client {
			err = fmt.Errorf("still the session %s after the timeout", a.client)
		}
		return err
	})
}

func drainTimeout(t *testing.T, s *stage) {
	o := s.serve(t, "", ports("web 80/TCP http", "echo 7/TCP tcp-echo"), annotated("drain-timeout", "2s"))
	talk := o.startTalk(t)
	fromOutside.of(s).answers(t, "tcp", o.at(80))
	o.change(t, ports("web 80/TCP http"))
	fromOutside.of(s).refused(t, "tcp", o.at(7))
	begun := time.Now()
	select {
	case err := <-talk.done:
		if err == nil {
			t.Error("the connection ended without an error before anybody ended it")
		}
	case <-time.After(10 * time.Second):
		t.Error("the connection to the removed port goes on beyond its drain timeout")
	}
	if took := time.Since(begun); took < time.Second {
		t.Errorf("the connection to the removed port ended after %s, want it to go on for two seconds", took)
	}
	fromOutside.of(s).answers(t, "tcp", o.at(80))
}

func maxConnectionsEntry(t *testing.T, s *stage) {
	o := s.serve(t, "", ports("web 80/TCP http", "echo 7/TCP tcp-echo"), annotated("max-connections", "3"))
	from := fromOutside.of(s)
	from.answers(t, "tcp", o.at(80))
	var talks []*talk
	for range 3 {
		talks = append(talks, from.talk(t, o.at(7)))
	}
	from.shutOut(t, "tcp", o.at(80))
	for _, talk := range talks {
		if err := talk.end(); err != nil {
			t.Errorf("a connection within the limit broke: %v", err)
		}
	}
	from.answers(t, "tcp", o.at(80))
}

// connectTimeout has endpoints of both families that nobody answers at: the edge gives
// up each attempt after the timeout, and the client soon learns that there is nobody.
func connectTimeout(t *testing.T, s *stage, from caller) {
	last := 99
	if from.host == s.inside {
		last = 98
	}
	o := s.make(t, "", dualStack, func(svc *corev1.Service) { svc.Spec.Selector = nil }, annotated("connect-timeout", "100ms"))
	for _, nobody := range []string{"172.30.0.%d", "fd00:30::%d"} {
		o.endpoint(t, netip.MustParseAddr(fmt.Sprintf(nobody, last)), s.Nodes[0], 80)
	}
	o.wait(t)
	o.explained(t, "connect timeout 100ms", "eclusa.io/connect-timeout")
	for _, six := range []bool{false, true} {
		at := o.of(t, six, 80)
		eventually(t, 10*time.Second, func() error {
			begun := time.Now()
			_, err := from.get(t.Context(), at)
			took := time.Since(begun)
			switch {
			case err == nil:
				return errors.New("an endpoint that does not exist answers")
			case took < 100*time.Millisecond:
				return fmt.Errorf("%s fails after %s already: %w", at, took, err)
			case took > time.Second:
				return fmt.Errorf("%s fails only after %s: %w", at, took, err)
			}
			return nil
		})
	}
}

// deadNode cuts a node off that has an open connection of each Service.
func deadNode(t *testing.T, s *stage) {
	victim := s.Nodes[1]
	nodes := s.nodesOfPods(t, s.ns)
	open := func(word string) (net.Conn, *bufio.Reader) {
		o := s.serve(t, word, local, ports("echo 7/TCP tcp-echo"), annotated("on-unhealthy", word))
		o.untilAll(t)
		for range 10 {
			conn, r, pod := fromOutside.of(s).quiet(t, o.at(7))
			if nodes[pod] == victim.Name {
				return conn, r
			}
		}
		t.Fatalf("none of ten connections went to %s", victim.Name)
		return nil, nil
	}
	_, reset := open("reset")
	kept, echo := open("drain")
	died := s.cut(t, victim)
	took := ended(t, reset)
	t.Logf("reset %s after the node died", time.Since(died).Round(time.Millisecond))
	if took > 8*time.Second {
		t.Errorf("the connection to a dead node was reset after %s, want that within a few seconds", took)
	}
	s.heal(t, victim)
	if err := kept.SetDeadline(time.Now().Add(15 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(kept, "still here\n"); err != nil {
		t.Errorf("the connection that was to be kept: %v", err)
	}
	if text, err := echo.ReadString('\n'); err != nil || text != "still here\n" {
		t.Errorf("the connection that was to be kept: got %q, %v", text, err)
	}
}

func explainedLimits(t *testing.T, s *stage) {
	o := s.serve(t, "", ports("web 80/TCP http", "dns 80/UDP udp-echo"), affinity(77), ranges("172.16.0.0/12"), annotated(
		"idle-timeout", "71s", "udp-idle-timeout", "72s", "drain-timeout", "73s", "max-connections", "74", "on-unhealthy", "drain",
		"algorithm", "least-connections", "health-check-interval", "7500ms"))
	o.explained(t, "1m11s", "eclusa.io/idle-timeout", "1m12s", "eclusa.io/udp-idle-timeout", "1m13s", "eclusa.io/drain-timeout",
		"74 on each edge", "eclusa.io/max-connections", "drain", "eclusa.io/on-unhealthy", "least-connections", "eclusa.io/algorithm",
		"1m17s", "spec.sessionAffinity", "172.16.0.0/12", "spec.loadBalancerSourceRanges", "7.5s", "eclusa.io/health-check-interval")
}

// All that is wrong with a Service is told at once.
func badLimits(t *testing.T, s *stage) {
	o := s.make(t, "", annotated("idle-timeout", "1ms", "udp-idle-timeout", "forever", "drain-timeout", "200h", "max-connections", "0",
		"on-unhealthy", "panic"), ports("web 80/TCP http", "dns 80/UDP udp-echo"))
	words := []string{"idle-timeout", "1ms", "udp-idle-timeout", "forever", "drain-timeout", "200h", "max-connections", "on-unhealthy", "panic", "10ms", "168h"}
	o.warns(t, words...)
	o.is(t, "Programmed", metav1.ConditionTrue, words...)
	o.wait(t)
	fromOutside.of(s).answers(t, "tcp", o.at(80))
}

var refusalEntries = []entry{
	{section: "Annotations", name: "an unknown one is told with the nearest known", run: unknownAnnotation},
	{section: "Annotations", name: "a plan tells the same before anything is applied", run: planned},
}

func unknownAnnotation(t *testing.T, s *stage) {
	o := s.make(t, "", annotated("idle-timout", "5m", "nothing-of-the-kind", "x"))
	o.warns(t, "eclusa.io/idle-timout", "did you mean eclusa.io/idle-timeout?", "eclusa.io/nothing-of-the-kind")
	o.wait(t)
	fromOutside.of(s).answers(t, "tcp", o.at(80))
	o.change(t, func(svc *corev1.Service) {
		delete(svc.Annotations, "eclusa.io/idle-timout")
		delete(svc.Annotations, "eclusa.io/nothing-of-the-kind")
	})
	eventually(t, 10*time.Second, func() error {
		if cond := o.is(t, "Programmed", metav1.ConditionTrue); cond.Reason != "Programmed" {
			return fmt.Errorf("reason %q, want Programmed once the annotations are gone", cond.Reason)
		}
		return nil
	})
}

// planned asks what would become of a Service, and then looks.
func planned(t *testing.T, s *stage) {
	svc := lab.Service(s.ns, s.title)
	svc.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}
	svc.Spec.Selector = map[string]string{"app": "web"}
	annotated("drain-timout", "1m", "idle-timeout", "1ms", "health-check-interval", "soon")(svc)
	manifest, err := yaml.Marshal(svc)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "service.yaml")
	if err := os.WriteFile(file, manifest, 0o600); err != nil {
		t.Fatal(err)
	}
	words := []string{"eclusa.io/drain-timout", "did you mean eclusa.io/drain-timeout?", "eclusa.io/idle-timeout", "1ms", "eclusa.io/health-check-interval", "soon"}
	stdout, stderr, _ := s.plugin.run(t, "plan", "-f", file)
	wantWords(t, "the plan", stdout+stderr, words)
	o := s.make(t, "", func(o *corev1.Service) { o.Annotations = svc.Annotations })
	o.warns(t, words...)
	o.is(t, "Programmed", metav1.ConditionTrue, words...)
}
