package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lab"
	"github.com/eclusa-lb/eclusa/monitoring"
)

// A real Prometheus scrapes the real programs and judges them by the chart's
// alerts. None fires as long as all is well, each failure fires its own, and all
// are silent when it is over.
func TestFailuresFireAlerts(t *testing.T) {
	c := inLab(t)
	w := c.watch(t) // it takes some seconds until it looks at anything
	ns := c.namespace(t)
	c.deploy(t, ns, "web", 2)
	at := netip.AddrPortFrom(c.serve(t, lab.Service(ns, "web"))[0], 80)
	answers(t, c.client, at)
	c.condition(t, ns, "web", "BackendsHealthy", metav1.ConditionTrue)
	if err := w.Up(t.Context(), 1+lab.ManagerReplicas); err != nil {
		t.Fatal(err)
	}
	w.quiet(t, 10*time.Second)

	t.Run("addresses run out", func(t *testing.T) { w.runOut(t, ns) })
	t.Run("a port is taken", func(t *testing.T) { w.taken(t, ns) })
	t.Run("a certificate expires", w.expires)
	t.Run("nodes are down", func(t *testing.T) { w.nodesDown(t, ns) })
	w.quiet(t, 15*time.Second)
	t.Run("the edge is down", w.edgeDown)
	t.Run("nobody leads", w.nobodyLeads)
	if err := w.RuleErrors(t.Context()); err != nil {
		t.Error(err)
	}
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
	p, err := monitoring.Start(t.Context(), monitoring.Options{
		Dir: t.TempDir(), Rules: []string{"../charts/eclusa/files/alerts.yaml"}, Hasten: time.Second,
		Targets: map[string][]string{"edge": {c.edge.Management().String()}, "manager": managers},
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

// runOut uses up two pools, one wholly.
func (w watch) runOut(t *testing.T, ns string) {
	var names []string
	defer func() {
		for _, name := range names {
			w.c.delete(t, ns, name)
		}
	}()
	want := map[string]int{"full": 3, "near": 5}
	for pool, addresses := range map[string]string{"full": "172.30.0.192/31", "near": "172.30.0.194-172.30.0.199"} {
		w.c.makePool(t, pool, addresses, nil)
		for i := range want[pool] {
			s := lab.Service(ns, fmt.Sprintf("%s-%d", pool, i))
			s.Spec.Selector = map[string]string{"app": "web"}
			s.Annotations = map[string]string{"eclusa.io/address-pool": pool}
			w.c.create(t, s)
			names = append(names, s.Name)
		}
	}
	w.fires(t, "EclusaPoolExhausted", "pool=full", "severity=warning")
	w.fires(t, "EclusaPoolNearlyFull", "pool=near")
	w.fires(t, "EclusaServicesWaiting")
}

// makePool makes a pool, for the Services that name it only, until the test ends.
func (c *cluster) makePool(t *testing.T, name, addresses string, edges map[string]any) {
	t.Helper()
	spec := map[string]any{"addresses": []any{addresses}, "autoAssign": false}
	if edges != nil {
		spec["edgeSelector"] = edges
	}
	o := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": v1alpha1.GroupVersion.String(), "kind": v1alpha1.AddressPoolKind, "metadata": map[string]any{"name": name}, "spec": spec,
	}}
	if _, err := c.dynamic.Resource(v1alpha1.AddressPoolResource).Create(t.Context(), o, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.dynamic.Resource(v1alpha1.AddressPoolResource).Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// taken lets another program of the edge's machine listen where a Service wants.
func (w watch) taken(t *testing.T, ns string) {
	other, err := w.c.edge.Listen(t.Context(), "tcp4", "0.0.0.0:8099")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	s := lab.Service(ns, "taken")
	s.Spec.Selector = map[string]string{"app": "web"}
	s.Spec.Ports[0].Port = 8099
	w.c.create(t, s)
	defer w.c.delete(t, ns, s.Name)
	w.fires(t, "EclusaFrontendsRefused")
}

// expires gives the edge a certificate that is good for two days only.
func (w watch) expires(t *testing.T) {
	dir := w.c.EdgePKI()
	kept := map[string][]byte{}
	for _, kind := range []string{".crt", ".key"} {
		file := filepath.Join(dir, w.c.edge.Name+kind)
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		kept[file] = data
	}
	defer func() {
		for _, file := range slices.Sorted(maps.Keys(kept)) {
			if err := os.WriteFile(file, kept[file], 0o600); err != nil {
				t.Error(err)
			}
		}
	}()
	out, err := w.c.edge.Command(t.Context(), w.c.edge.Process.Args[0], "pki", "edge", "--dir", dir, "--name", w.c.edge.Name,
		"--host", w.c.edge.Addr4.String(), "--host", w.c.edge.Addr6.String(), "--valid-for", "48h", "--force").CombinedOutput()
	if err != nil {
		t.Fatalf("make a certificate: %v\n%s", err, out)
	}
	w.fires(t, "EclusaCertificateExpires", "severity=critical")
}

// nodesDown cuts a node off, and then takes the other from the Service as well.
func (w watch) nodesDown(t *testing.T, ns string) {
	leader := w.c.leader(t)
	n := slices.IndexFunc(w.c.Nodes, func(n *lab.Node) bool { return n.Host != leader.Host })
	cut, other := w.c.Nodes[n], w.c.Nodes[1-n]
	w.c.cut(t, cut)
	w.fires(t, "EclusaNodeDown", "node="+cut.Name, "cluster="+lab.ClusterName)
	if err := other.KubeProxy.Freeze(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := other.KubeProxy.Thaw(); err != nil {
			t.Error(err)
		}
		w.c.heal(t, cut)
		w.c.untilUp(t, other.Name)
	}()
	w.fires(t, "EclusaServiceDown", "cluster="+lab.ClusterName, "load_balancer="+ns+"/web", "severity=critical")
	w.fires(t, "EclusaServicesWithoutBackends")
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
