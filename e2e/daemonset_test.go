package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lab"
)

const (
	edgeDaemonSet  = "eclusa-edge"
	edgeRepository = "eclusa.local/eclusa-edge"
)

// An edge on a Node, from the chart's DaemonSet, serves the Services of its pool.
// Its pod is replaced under load: new connections, one that is long, and UDP from
// one port see nothing of it.
func TestEdgeDaemonSetIsUpgraded(t *testing.T) {
	c := inLab(t)
	ns := c.namespace(t)
	node := c.Nodes[0]
	d := c.installDaemonSet(t, node, "proxy")
	c.deploy(t, ns, "web", 2)
	c.makePool(t, "on-nodes", "172.30.0.192/32", map[string]any{"matchLabels": map[string]any{"where": "node"}})
	t.Cleanup(func() { // before the pool and its edge go
		if err := poll(context.Background(), 20*time.Second, func() error { return c.withoutServices(context.Background(), ns) }); err != nil {
			t.Error(err)
		}
	})

	s := lab.Service(ns, "web")
	s.Annotations = map[string]string{"eclusa.io/address-pool": "on-nodes"}
	s.Spec.Ports = append(s.Spec.Ports,
		corev1.ServicePort{Name: "echo", Port: 7000, TargetPort: intstr.FromString("tcp-echo")},
		corev1.ServicePort{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53, TargetPort: intstr.FromString("udp-echo")})
	address := c.serve(t, s)[0]
	answers(t, c.client, netip.AddrPortFrom(address, 80))
	if n := d.serving(t); n != 1 {
		t.Errorf("the edge on %s serves %d Services, want 1", node.Name, n)
	}

	load := startLoad(t.Context(), c.client, netip.AddrPortFrom(address, 80), 50)
	talk := startTalk(t, c.client, netip.AddrPortFrom(address, 7000))
	ask := startAsking(t, c.client, netip.AddrPortFrom(address, 53), 20000)
	before := d.pods(t)
	// Kubernetes forgets to look at the new pod again if the old one gets through
	// its minReadySeconds meanwhile.
	eventually(t, 20*time.Second, func() error { return d.available(t) })
	d.apply(t, "second")
	eventually(t, 30*time.Second, func() error { return d.taken(t, before) })
	pause(t.Context(), time.Second) // of load on the new one alone
	if err := talk.end(); err != nil {
		t.Errorf("the long connection: %v", err)
	}
	eventually(t, 40*time.Second, func() error { return d.replaced(t, before) })
	if err := ask.end(); err != nil {
		t.Errorf("UDP: %v", err)
	}
	load.stop(t)
}

// An edge on a Node whose kernel carries the traffic, beside kube-proxy, whose
// settings of the kernel it leaves alone.
func TestEdgeDaemonSetInKernel(t *testing.T) {
	c := inLab(t)
	ns := c.namespace(t)
	node := c.Nodes[0]
	c.installDaemonSet(t, node, "nftables")
	c.deploy(t, ns, "web", 2)
	c.makePool(t, "on-nodes", "172.30.0.192/32", map[string]any{"matchLabels": map[string]any{"where": "node"}})
	t.Cleanup(func() { // before the pool and its edge go
		if err := poll(context.Background(), 20*time.Second, func() error { return c.withoutServices(context.Background(), ns) }); err != nil {
			t.Error(err)
		}
		// The kernel would serve on without the pod.
		if out, err := node.Command(context.Background(), "nft", "delete", "table", "inet", "eclusa").CombinedOutput(); err != nil {
			t.Errorf("delete the table: %v: %s", err, out)
		}
	})
	const setting = "net.netfilter.nf_conntrack_tcp_loose"
	if out, err := node.Command(t.Context(), "cat", "/proc/sys/"+strings.ReplaceAll(setting, ".", "/")).CombinedOutput(); err != nil || string(out) != "1\n" {
		t.Errorf("%s on the Node: got %q, %v; want it left alone", setting, out, err)
	}

	s := lab.Service(ns, "web")
	s.Annotations = map[string]string{"eclusa.io/address-pool": "on-nodes"}
	s.Spec.Ports = append(s.Spec.Ports,
		corev1.ServicePort{Name: "echo", Port: 7000, TargetPort: intstr.FromString("tcp-echo")},
		corev1.ServicePort{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53, TargetPort: intstr.FromString("udp-echo")})
	address := c.serve(t, s)[0]
	for _, from := range []*lab.Host{c.client, c.podOn(t, ns, "web", c.Nodes[1])} {
		answers(t, from, netip.AddrPortFrom(address, 80))
		eventually(t, 10*time.Second, func() error {
			_, err := askUDP(t.Context(), from, netip.AddrPortFrom(address, 53), "question")
			return err
		})
	}
	load := startLoad(t.Context(), c.client, netip.AddrPortFrom(address, 80), 50)
	talk := startTalk(t, c.client, netip.AddrPortFrom(address, 7000))
	pause(t.Context(), 2*time.Second)
	if err := talk.end(); err != nil {
		t.Errorf("the long connection: %v", err)
	}
	load.stop(t)
}

// A daemonSet is the chart's DaemonSet with an edge on one Node.
type daemonSet struct {
	c    *cluster
	helm string
	node *lab.Node
	dir  string

	engine string
}

// installDaemonSet prepares the Node as an administrator does, upgrades the release
// and waits until the edge is ready.
func (c *cluster) installDaemonSet(t *testing.T, node *lab.Node, engine string) daemonSet {
	t.Helper()
	d := daemonSet{c: c, helm: c.helms(t)["helm4"], node: node, dir: t.TempDir(), engine: engine}
	program := c.edge.Process.Args[0]
	image := filepath.Join(d.dir, "edge.tar")
	if err := lab.WriteImage(image, edgeRepository+":lab", program); err != nil {
		t.Fatal(err)
	}
	if err := node.Import(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	out, err := c.edge.Command(t.Context(), program, "pki", "edge", "--dir", c.EdgePKI(), "--name", node.Name, "--host", node.Addr4.String()).CombinedOutput()
	if err != nil {
		t.Fatalf("make a certificate: %v\n%s", err, out)
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: edgeDaemonSet}, Data: map[string][]byte{}}
	for _, name := range []string{"ca.crt", node.Name + ".crt", node.Name + ".key"} {
		if secret.Data[name], err = os.ReadFile(filepath.Join(c.EdgePKI(), name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { d.remove(t) })
	if _, err := c.kube.CoreV1().Secrets(lab.ReleaseNamespace).Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	d.label(t, `"true"`)
	d.apply(t, "first")
	eventually(t, 30*time.Second, func() error {
		for _, p := range d.pods(t) {
			if podReady(p) {
				return nil
			}
		}
		return errors.New("no pod of the edge is ready")
	})
	return d
}

func (d daemonSet) label(t *testing.T, value string) {
	t.Helper()
	patch := fmt.Appendf(nil, `{"metadata":{"labels":{"eclusa.io/edge":%s}}}`, value)
	if _, err := d.c.kube.CoreV1().Nodes().Patch(context.Background(), d.node.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Error(err)
	}
}

// apply upgrades the release; the pods get the annotation.
func (d daemonSet) apply(t *testing.T, annotation string) {
	t.Helper()
	values := fmt.Sprintf(`
edge:
  enabled: true
  keepOnUninstall: false
  image: {repository: %s, tag: lab, pullPolicy: Never}
  nodes: {%s: {address: %s, labels: {where: node}}}
  # The lab's hosts share /var/lib.
  stateDir: %s
  drainSeconds: 10
  podAnnotations: {version: %s}
  config:
    engine: %s
    announce: {mode: interface, interface: eth0}
    clusters:
      - {name: %s, addressRanges: [172.30.0.192/26], nodeRanges: [172.30.0.0/25]}
`, edgeRepository, d.node.Name, d.node.Addr4, filepath.Join(filepath.Dir(d.c.edge.StateDir()), d.node.Name+".state"), annotation, d.engine, lab.ClusterName)
	file := filepath.Join(d.dir, annotation+".yaml")
	if err := os.WriteFile(file, []byte(values), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.c.helm(t.Context(), d.helm, "upgrade", lab.Release, "../charts/eclusa", "--values", d.c.Values(), "--values", file); err != nil {
		t.Fatal(err)
	}
}

// remove takes everything away that installDaemonSet made.
func (d daemonSet) remove(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if t.Failed() {
		t.Log(d.c.kubectl(ctx, "describe", "pods", "-n", lab.ReleaseNamespace, "-l", "app.kubernetes.io/component=edge"))
		t.Log(d.c.kubectl(ctx, "logs", "-n", lab.ReleaseNamespace, "-l", "app.kubernetes.io/component=edge", "--tail=60", "--prefix"))
	}
	if err := d.c.helm(ctx, d.helm, "upgrade", lab.Release, "../charts/eclusa", "--values", d.c.Values()); err != nil {
		t.Error(err)
	}
	// The chart keeps Edges.
	if err := d.c.dynamic.Resource(v1alpha1.EdgeResource).Delete(ctx, d.node.Name, metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	if err := d.c.kube.CoreV1().Secrets(lab.ReleaseNamespace).Delete(ctx, edgeDaemonSet, metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	d.label(t, "null")
	err := poll(ctx, 40*time.Second, func() error {
		pods, err := d.list(ctx)
		if err == nil && len(pods) > 0 {
			err = fmt.Errorf("pod %q is still there", pods[0].Name)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func (d daemonSet) available(t *testing.T) error {
	t.Helper()
	o, err := d.c.kube.AppsV1().DaemonSets(lab.ReleaseNamespace).Get(t.Context(), edgeDaemonSet, metav1.GetOptions{})
	if err == nil && o.Status.NumberAvailable != 1 {
		err = fmt.Errorf("DaemonSet %q: %d pods are available, want 1", edgeDaemonSet, o.Status.NumberAvailable)
	}
	return err
}

func (d daemonSet) list(ctx context.Context) ([]corev1.Pod, error) {
	list, err := d.c.kube.CoreV1().Pods(lab.ReleaseNamespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=edge"})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

func (d daemonSet) pods(t *testing.T) []corev1.Pod {
	t.Helper()
	pods, err := d.list(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return pods
}

// taken returns an error until another pod is ready than those of before.
func (d daemonSet) taken(t *testing.T, before []corev1.Pod) error {
	for _, p := range d.pods(t) {
		if p.Name != before[0].Name && podReady(p) {
			return nil
		}
	}
	return errors.New("the new pod of the edge is not ready")
}

// replaced returns an error until nothing is left of the pods of before.
func (d daemonSet) replaced(t *testing.T, before []corev1.Pod) error {
	for _, p := range d.pods(t) {
		if p.Name == before[0].Name {
			return fmt.Errorf("pod %q is still there", p.Name)
		}
	}
	return d.taken(t, before)
}

// serving is for how many Services the edge answers, as the manager knows.
func (d daemonSet) serving(t *testing.T) (n int64) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		o, err := d.c.dynamic.Resource(v1alpha1.EdgeResource).Get(t.Context(), d.node.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		status, _ := o.Object["status"].(map[string]any)
		n, _ = status["loadBalancersApplied"].(int64)
		if n == 0 {
			return fmt.Errorf("the edge serves nothing: %v", status)
		}
		return nil
	})
	return n
}

func podReady(p corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue && p.DeletionTimestamp == nil
		}
	}
	return false
}

// An asking is a stream of datagrams from one port, each with its answer.
type asking struct {
	conn net.Conn
	stop context.CancelFunc
	wait sync.WaitGroup
	n    int
	err  error
}

// startAsking asks every 20 ms until end is called.
func startAsking(t *testing.T, from *lab.Host, at netip.AddrPort, port uint16) *asking {
	t.Helper()
	local := net.UDPAddrFromAddrPort(netip.AddrPortFrom(from.Addr4, port))
	conn, err := from.DialWith(t.Context(), &net.Dialer{LocalAddr: local}, "udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	a := &asking{conn: conn, stop: cancel}
	a.wait.Go(func() { a.run(ctx) })
	t.Cleanup(func() { cancel(); conn.Close() })
	return a
}

func (a *asking) run(ctx context.Context) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	buf := make([]byte, 2048)
	for ; a.err == nil; a.n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if a.err = a.conn.SetDeadline(time.Now().Add(2 * time.Second)); a.err != nil {
			return
		}
		if _, a.err = fmt.Fprintf(a.conn, "question %d", a.n); a.err != nil {
			return
		}
		_, a.err = a.conn.Read(buf)
	}
}

// end ends it and returns what went wrong.
func (a *asking) end() error {
	a.stop()
	a.wait.Wait()
	switch {
	case a.err != nil:
		return fmt.Errorf("question %d: %w", a.n, a.err)
	case a.n == 0:
		return errors.New("nothing was asked")
	}
	return nil
}
