package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/eclusa-lb/eclusa/lab"
	"github.com/eclusa-lb/eclusa/lb"
	lbrest "github.com/eclusa-lb/eclusa/lb/rest"
)

// Every cloud-controller-manager is killed, and started again later: addresses stay, and
// what happened meanwhile comes through.
func TestCCMRestarts(t *testing.T) {
	c := inLab(t)
	ns := c.namespace(t)
	c.deploy(t, ns, "web", 2)
	before := map[string]netip.Addr{}
	for i := range 5 {
		s := lab.Service(ns, fmt.Sprintf("web-%d", i))
		s.Spec.Selector = map[string]string{"app": "web"}
		before[s.Name] = c.serve(t, s)[0]
	}
	answers(t, c.client, netip.AddrPortFrom(before["web-0"], 80))
	load := startLoad(t.Context(), c.client, netip.AddrPortFrom(before["web-0"], 80), 50)
	t.Cleanup(func() { c.ensureCCM(t) })
	if err := c.Manager.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	// A node is replaced under the same name, one Service goes and one comes.
	c.replaceNode(t, c.Nodes[1])
	c.delete(t, ns, "web-4")
	s := lab.Service(ns, "web-5")
	s.Spec.Selector = map[string]string{"app": "web"}
	c.create(t, s)
	c.ensureCCM(t)

	fresh := c.addresses(t, ns, "web-5")[0]
	answers(t, c.client, netip.AddrPortFrom(fresh, 80))
	delete(before, "web-4")
	c.sameAddresses(t, ns, before)
	for name, a := range before {
		if a == fresh {
			t.Errorf("web-5 got %s, which %s has", fresh, name)
		}
	}
	load.stop(t)
}

// Two managers believe to lead: the one that does is frozen past its lease and
// woken when the other leads. No address changes, no load balancer disappears, the
// older one's writes are refused and it exits.
func TestTwoLeaders(t *testing.T) {
	c := inLab(t)
	ns := c.namespace(t)
	c.deploy(t, ns, "web", 2)
	before := map[string]netip.Addr{}
	for _, name := range []string{"web-a", "web-b"} {
		s := lab.Service(ns, name)
		s.Spec.Selector = map[string]string{"app": "web"}
		before[name] = c.serve(t, s)[0]
	}
	answers(t, c.client, netip.AddrPortFrom(before["web-a"], 80))
	load := startLoad(t.Context(), c.client, netip.AddrPortFrom(before["web-a"], 80), 50)
	c.twoLeaders(t, ns, before, func() {})
	load.stop(t)
}

// twoLeaders has two managers believe to lead, and meanwhile run while none does.
// The Services that were there before, and one more, have to keep their addresses.
func (c *cluster) twoLeaders(t *testing.T, ns string, before map[string]netip.Addr, meanwhile func()) {
	t.Helper()
	old := c.leader(t)
	epoch := c.epoch(t)
	t.Cleanup(func() {
		_ = old.Thaw() // it may be gone
		c.ensureCCM(t)
	})
	if err := old.Freeze(); err != nil {
		t.Fatal(err)
	}
	// The second leads when it serves what the first never saw.
	s := lab.Service(ns, "web-c")
	s.Spec.Selector = map[string]string{"app": "web"}
	c.create(t, s)
	meanwhile()
	eventually(t, 90*time.Second, func() error {
		if len(c.service(t, ns, "web-c").Status.LoadBalancer.Ingress) == 0 {
			return fmt.Errorf("web-c has no address: nobody leads")
		}
		return nil
	})
	before["web-c"] = c.addresses(t, ns, "web-c")[0]
	if second := c.leader(t); second.Name == old.Name {
		t.Fatalf("%s is frozen, and leads", old.Name)
	}
	if got := c.removeAll(t, epoch); !strings.Contains(got, "urn:eclusa:problem:stale-epoch") {
		t.Errorf("write with the epoch of the older leader: got %s; want it refused as stale-epoch", got)
	}
	if !old.Running() {
		t.Fatalf("%s has ended before it was woken", old.Name)
	}
	if err := old.Thaw(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error {
		if old.Running() {
			return fmt.Errorf("%s still runs, though another leads", old.Name)
		}
		return nil
	})
	// Whatever the old one wrote last has had its time to do harm.
	pause(t.Context(), 2*time.Second)
	c.sameAddresses(t, ns, before)
	for _, a := range before {
		answers(t, c.client, netip.AddrPortFrom(a, 80))
	}
}

// epoch is the right to write that the edge has given out last.
func (c *cluster) epoch(t *testing.T) string {
	t.Helper()
	_, body := c.askEdge(t, http.MethodGet, "status", nil, "")
	var status lb.StatusDelta
	if err := json.Unmarshal([]byte(body), &status); err != nil || status.Epoch == "" {
		t.Fatalf("status of the edge: %v: %s", err, body)
	}
	return string(status.Epoch)
}

// removeAll writes to the edge that nothing is wanted any more, with the right that
// the epoch gives, and returns what it answers.
func (c *cluster) removeAll(t *testing.T, epoch string) string {
	t.Helper()
	held, _ := c.askEdge(t, http.MethodGet, "config", nil, "")
	_, body := c.askEdge(t, http.MethodPut, "config", http.Header{
		"Content-Type": {lbrest.TypeJSON}, lbrest.HeaderEpoch: {epoch}, "If-Match": {held.Get("ETag")},
	}, `{"revision": 1000000}`)
	return body
}

// askEdge asks the edge's API with the cluster's certificate, as a manager does, and
// returns the header and the body of the answer.
func (c *cluster) askEdge(t *testing.T, method, noun string, header http.Header, body string) (http.Header, string) {
	t.Helper()
	file := filepath.Join(c.EdgePKI(), lab.ClusterName)
	cert, err := tls.LoadX509KeyPair(file+".crt", file+".key")
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(c.EdgePKI(), "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: c.ControlPlane.DialContext, DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}, ServerName: c.edge.Name, MinVersion: tls.VersionTLS13},
	}}
	url := fmt.Sprintf("https://%s/v1/clusters/%s/%s", c.edge.API(), lab.ClusterName, noun)
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if header != nil {
		req.Header = header
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Header, string(answer)
}

// A lab that another process has brought up shows the same managers.
func TestManagersAreFoundInAnOpenedLab(t *testing.T) {
	c := inLab(t)
	opened, err := lab.Open(c.Options.Dir)
	if err != nil {
		t.Fatal(err)
	}
	want := c.leader(t)
	got, err := opened.Manager.Leader(t.Context())
	if err != nil || got.Name != want.Name || got.PID() != want.PID() || got.Host.Name != want.Host.Name {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

func (c *cluster) sameAddresses(t *testing.T, ns string, want map[string]netip.Addr) {
	t.Helper()
	for name, a := range want {
		in := c.service(t, ns, name).Status.LoadBalancer.Ingress
		if len(in) == 0 || in[0].IP != a.String() {
			t.Errorf("service %q has %v now, had %s before", name, in, a)
		}
	}
}

// leader is the manager that leads.
func (c *cluster) leader(t *testing.T) *lab.Replica {
	t.Helper()
	r, err := c.Manager.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// ensureCCM starts the managers that do not run, and waits until one of them
// leads. With the node of a leader a leader may go: another takes over when the
// Lease has expired.
func (c *cluster) ensureCCM(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	if err := c.Manager.Start(ctx); err != nil {
		t.Error(err)
		return
	}
	err := poll(ctx, 90*time.Second, func() error {
		families, err := c.ccmMetrics(ctx)
		if err == nil && sum(families["eclusa_ccm_edge_connected"], "", "") == 0 {
			err = fmt.Errorf("the manager has not reached its edges")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// apart has the managers run on different nodes, where the scheduler puts them if it
// can: a test before may have left it no choice.
func (c *cluster) apart(t *testing.T) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		leader := c.leader(t)
		replicas, err := c.Manager.Replicas(t.Context())
		if err != nil {
			return err
		}
		for _, r := range replicas {
			if r.Name == leader.Name || r.Host != leader.Host {
				continue
			}
			if err := c.kube.CoreV1().Pods(lab.ReleaseNamespace).Delete(t.Context(), r.Name, metav1.DeleteOptions{}); err != nil {
				return err
			}
			if err := c.Manager.Start(t.Context()); err != nil {
				return err
			}
			return fmt.Errorf("%s was on %s as well as the leader", r.Name, r.Host.Name)
		}
		return nil
	})
}

// restartCCM ends all managers and starts others, which know nothing but what
// was recorded, and waits until one of them leads.
func (c *cluster) restartCCM(t *testing.T) {
	t.Helper()
	if err := c.Manager.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Manager.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s leads now", c.leader(t).Name)
}

// replaceNode deletes the Node object and makes another of the same name.
// kube-proxy ends itself when its Node goes, and is started again.
func (c *cluster) replaceNode(t *testing.T, n *lab.Node) {
	t.Helper()
	if err := n.Kubelet.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	old, err := c.kube.CoreV1().Nodes().Get(t.Context(), n.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.kube.CoreV1().Nodes().Delete(t.Context(), n.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	fresh := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: old.Labels}, Spec: old.Spec}
	if _, err := c.kube.CoreV1().Nodes().Create(t.Context(), fresh, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*lab.Process{n.Kubelet, n.KubeProxy} {
		if err := p.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// ccmMetrics scrapes the leader's secure port with the certificate of the
// lab's administrator, who may read metrics.
func (c *cluster) ccmMetrics(ctx context.Context) (map[string]*dto.MetricFamily, error) {
	leader, err := c.Manager.Leader(ctx)
	if err != nil {
		return nil, err
	}
	config, err := c.RESTConfig()
	if err != nil {
		return nil, err
	}
	config.Host = "https://" + leader.Address.String()
	// The manager's certificate is its own.
	config.Insecure, config.CAFile, config.CAData = true, "", nil
	config.Timeout = 5 * time.Second
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, config.Host+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("metrics of the manager: %s", resp.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(resp.Body)
}
