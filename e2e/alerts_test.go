package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/eclusa-lb/eclusa/lab"
	"github.com/eclusa-lb/eclusa/monitoring"
)

// A real Prometheus scrapes the real programs and judges them by the chart's
// alerts. None fires as long as all is well, each failure fires its own, and all
// are silent when it is over.
//
// One alert is not made to fire here: EclusaMetricsTruncated wants 200,000 series,
// which take an edge and Prometheus longer to make than the rest of the test.
func TestFailuresFireAlerts(t *testing.T) {
	c := inLab(t)
	w := c.watch(t) // it takes some seconds until it looks at anything
	ns := c.namespace(t)
	c.withoutSpares(t, "default")
	c.deploy(t, ns, "web", 2)
	at := netip.AddrPortFrom(c.serve(t, lab.Service(ns, "web"))[0], 80)
	answers(t, c.client, at)
	c.condition(t, ns, "web", "BackendsHealthy", metav1.ConditionTrue)
	spares := map[string]*spare{}
	for i, name := range spareNames {
		spares[name] = c.spare(t, name, i)
	}
	if err := w.Up(t.Context(), 1+lab.ManagerReplicas+len(spares)); err != nil {
		t.Fatal(err)
	}
	w.quiet(t, 10*time.Second)

	// None of them gets in the way of another, but for those that stand together:
	// their alerts only count Services.
	together := [][]mishap{
		{{"addresses run out", func(t *testing.T) { w.runOut(t, ns) }}, {"statuses are not accepted", w.denied}},
		{{"a pool is of no use", w.unusable}},
		{{"node ports run out", func(t *testing.T) { w.fillNodePorts(t, ns) }}},
		{{"a port is taken", func(t *testing.T) { w.taken(t, ns) }}},
		{{"a certificate expires", w.expires}},
		{{"nodes are down", func(t *testing.T) { w.nodesDown(t, ns) }}},
		{{"a disk is full", func(t *testing.T) { w.diskFull(t, ns, spares["unsaved"]) }}},
		{{"a disk hangs", func(t *testing.T) { w.diskHangs(t, ns, spares["hanging"]) }}},
		{{"an edge is too small", func(t *testing.T) { w.tooSmall(t, ns, spares["small"]) }}},
		{{"much is removed", func(t *testing.T) { w.muchRemoved(t, ns, spares["guarded"]) }}},
		{{"an edge forgets", func(t *testing.T) { w.forgets(t, ns, spares["forgetful"]) }}},
	}
	var all sync.WaitGroup
	for _, row := range together {
		all.Go(func() {
			for _, f := range row {
				t.Run(f.name, f.run)
			}
		})
	}
	all.Wait()
	w.quiet(t, 30*time.Second)
	t.Run("a Service wants too much", func(t *testing.T) { w.refused(t, ns) })
	t.Run("the edge is down", w.edgeDown)
	t.Run("nobody leads", w.nobodyLeads)
	if err := w.RuleErrors(t.Context()); err != nil {
		t.Error(err)
	}
}

// A mishap is a failure that is made, fires its alerts, and is put right.
type mishap struct {
	name string
	run  func(*testing.T)
}

// A watch is a Prometheus beside the edge.
type watch struct {
	*monitoring.Prometheus
	c *cluster
}

// watch starts a Prometheus on the edge's host, where the edge's metrics are and
// from where pods are reached.
func (c *cluster) watch(t *testing.T) watch {
	t.Helper()
	if err := monitoring.Installed(); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	var managers []string
	replicas, err := c.Manager.Replicas(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range replicas {
		managers = append(managers, r.Address.String())
	}
	edges := []string{c.edge.Management().String()}
	for i := range spareNames {
		edges = append(edges, spareManagement(i).String())
	}
	p, err := monitoring.Start(t.Context(), monitoring.Options{
		Dir: t.TempDir(), Rules: []string{"../charts/eclusa/files/alerts.yaml"}, Hasten: time.Second,
		Shorten: map[string]monitoring.Replacement{
			"EclusaEdgeBehind":         {Old: "> 60", New: "> 2"},
			"EclusaDriftRepeated":      {Old: "[1h]", New: "[20s]"},
			"EclusaStatusesNotWritten": {Old: "[5m]", New: "[5s]"},
		},
		Targets: map[string][]string{"edge": edges, "manager": managers},
		Extra: map[string]map[string]any{"manager": {
			"scheme": "https", "tls_config": map[string]any{"insecure_skip_verify": true}, // the manager's certificate is its own
			"authorization": map[string]any{"credentials": c.scraper(t)},
		}},
		Listen: "127.0.0.1:9090", Command: c.beside, Client: c.edge.HTTPClient(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	return watch{p, c}
}

// beside is a command in the edge's network and nothing else of its host: under the
// host's name Prometheus looks for itself in the DNS first, for ten seconds.
func (c *cluster) beside(ctx context.Context, args ...string) *exec.Cmd {
	args = append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", c.edge.Process.PID())}, args...)
	return exec.CommandContext(ctx, "nsenter", args...)
}

// scraper returns a token of the account that the chart lets read metrics.
func (c *cluster) scraper(t *testing.T) string {
	t.Helper()
	accounts := c.kube.CoreV1().ServiceAccounts(lab.ReleaseNamespace)
	if _, err := accounts.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: lab.Scraper}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := accounts.Delete(context.Background(), lab.Scraper, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	token, err := accounts.CreateToken(t.Context(), lab.Scraper, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return token.Status.Token
}

// fires waits until the alert fires, with labels as LABEL=VALUE, and what it says
// to people has each of these values in it, but for those that route it.
func (w watch) fires(t *testing.T, alert string, labels ...string) {
	t.Helper()
	begun := time.Now()
	want := map[string]string{}
	for _, l := range labels {
		k, v, _ := strings.Cut(l, "=")
		want[k] = v
	}
	a, err := w.WaitAlert(t.Context(), 15*time.Second, alert, want)
	if err != nil {
		t.Error(err)
		return
	}
	t.Logf("%s after %s: %s", alert, time.Since(begun).Round(100*time.Millisecond), a.Annotations["summary"])
	delete(want, "severity")
	delete(want, "job")
	for _, v := range want {
		if !strings.Contains(a.Annotations["summary"]+a.Annotations["description"], v) {
			t.Errorf("%s says %q, %q; want %q in it", alert, a.Annotations["summary"], a.Annotations["description"], v)
		}
	}
}

// shows waits until every text is in what a command of a runbook prints. (What an
// Edge's status says is up to five seconds old.)
func shows(t *testing.T, command func() string, texts ...string) {
	t.Helper()
	var printed string
	err := poll(t.Context(), 10*time.Second, func() error {
		printed = command()
		if lacking := missing(printed, texts); len(lacking) > 0 {
			return fmt.Errorf("want %q", lacking)
		}
		return nil
	})
	if err != nil {
		t.Errorf("%v in:\n%s", err, printed)
	}
}

// kubectl is the lab's kubectl with these arguments.
func (w watch) kubectl(t *testing.T, args ...string) func() string {
	return func() string { return w.c.kubectl(t.Context(), args...) }
}

// onEdge is a command on the edges' host.
func (w watch) onEdge(t *testing.T, args ...string) func() string {
	return func() string {
		out, err := w.c.edge.Command(t.Context(), args...).CombinedOutput()
		if err != nil {
			return fmt.Sprintf("%s(%v)", out, err)
		}
		return string(out)
	}
}

// resolves waits until no alert of the name, with labels as LABEL=VALUE, fires or
// is about to.
func (w watch) resolves(t *testing.T, alert string, labels ...string) {
	t.Helper()
	begun := time.Now()
	eventually(t, 30*time.Second, func() error {
		alerts, err := w.Alerts(t.Context())
		if err != nil {
			return err
		}
		for _, a := range alerts {
			if a.Labels["alertname"] == alert && !slices.ContainsFunc(labels, func(l string) bool {
				k, v, _ := strings.Cut(l, "=")
				return a.Labels[k] != v
			}) {
				return fmt.Errorf("%s is %s: %v", alert, a.State, a.Labels)
			}
		}
		return nil
	})
	t.Logf("%s is over after %s", alert, time.Since(begun).Round(100*time.Millisecond))
}

// quiet waits until no alert fires or is about to.
func (w watch) quiet(t *testing.T, within time.Duration) {
	t.Helper()
	eventually(t, within, func() error {
		alerts, err := w.Alerts(t.Context())
		if err == nil && len(alerts) > 0 {
			err = fmt.Errorf("%s is %s: %v", alerts[0].Labels["alertname"], alerts[0].State, alerts[0].Labels)
		}
		return err
	})
}

// edgeDown ends the edge.
func (w watch) edgeDown(t *testing.T) {
	if err := w.c.edge.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.c.edge.Process.Start(); err != nil {
			t.Fatal(err)
		}
		if err := w.c.edge.Ready(t.Context()); err != nil {
			t.Error(err)
		}
		w.quiet(t, 15*time.Second)
	}()
	w.fires(t, "EclusaEdgeDown", "job=edge", "instance="+w.c.edge.Management().String())
	w.fires(t, "EclusaEdgeUnreachable", "edge="+w.c.edge.Name)
}

// nobodyLeads stops all managers. It comes last: others have other addresses.
func (w watch) nobodyLeads(t *testing.T) {
	defer w.c.ensureCCM(t)
	if err := w.c.Manager.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.fires(t, "EclusaNoLeader", "job=manager")
}
