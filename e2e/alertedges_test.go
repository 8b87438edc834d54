package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lab"
)

// A spare is one edge more, beside the lab's on the same host, with a pool of the
// same name of which nobody needs the addresses: what it suffers disturbs nobody.
type spare struct {
	c    *cluster
	name string
	dir  string // its configuration, state and log
	// limits are more lines of its configuration, those of its cluster apart.
	limits, clusterLimits string
	addresses             netip.Prefix
	api, management       netip.AddrPort
	process               *exec.Cmd
	ended                 chan struct{}
}

// spareNames are the spares of the test: Prometheus has to know early where they
// will be.
var spareNames = []string{"unsaved", "hanging", "small", "guarded", "forgetful"}

// spareLabel marks spares, and noSpare selects the other edges.
const spareLabel = "spare"

var noSpare = map[string]any{"matchExpressions": []any{map[string]any{"key": spareLabel, "operator": "DoesNotExist"}}}

func spareManagement(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(9990+i))
}

// withoutSpares keeps a pool to the edges that are no spares.
func (c *cluster) withoutSpares(t *testing.T, pool string) {
	t.Helper()
	c.reshape(t, pool, map[string]any{"edgeSelector": noSpare})
	t.Cleanup(func() { c.reshape(t, pool, map[string]any{"edgeSelector": nil}) })
}

// spare starts the spare of that number and tells the cluster of it and its pool.
func (c *cluster) spare(t *testing.T, name string, i int) *spare {
	t.Helper()
	s := &spare{
		c: c, name: name, dir: t.TempDir(), addresses: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 30, 9, byte(16 * i)}), 28),
		api: netip.AddrPortFrom(c.edge.Addr4, uint16(7450+i)), management: spareManagement(i),
	}
	c.certify(t, name)
	s.start(t)
	t.Cleanup(s.kill)
	o := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": v1alpha1.GroupVersion.String(), "kind": v1alpha1.EdgeKind,
		"metadata": map[string]any{"name": name, "labels": map[string]any{spareLabel: name}},
		"spec":     map[string]any{"endpoint": "https://" + s.api.String()},
	}}
	edges := c.dynamic.Resource(v1alpha1.EdgeResource)
	if _, err := edges.Create(t.Context(), o, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := edges.Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	c.makePool(t, name, s.addresses.String(), s.selector())
	return s
}

func (s *spare) selector() map[string]any {
	return map[string]any{"matchLabels": map[string]any{spareLabel: s.name}}
}

// certify has a certificate made for the name on the edge's host.
func (c *cluster) certify(t *testing.T, name string, more ...string) {
	t.Helper()
	args := append([]string{c.edge.Process.Args[0], "pki", "edge", "--dir", c.EdgePKI(), "--name", name,
		"--host", c.edge.Addr4.String(), "--host", c.edge.Addr6.String()}, more...)
	if out, err := c.edge.Command(t.Context(), args...).CombinedOutput(); err != nil {
		t.Fatalf("make a certificate: %v\n%s", err, out)
	}
}

func (s *spare) stateDir() string { return filepath.Join(s.dir, "state") }

// stateFile is where it saves what the cluster wants of it.
func (s *spare) stateFile() string {
	return filepath.Join(s.stateDir(), "clusters", lab.ClusterName, "config.json")
}

// start starts it with the limits that it has now.
func (s *spare) start(t *testing.T) {
	t.Helper()
	pki := s.c.EdgePKI()
	text := fmt.Sprintf(`name: %[1]s
stateDir: %[2]s
api: {listen: "%[3]s", certFile: %[4]s/%[1]s.crt, keyFile: %[4]s/%[1]s.key, clientCAFile: %[4]s/ca.crt}
management: {listen: "%[5]s"}
clusters:
  - {name: %[6]s, addressRanges: [%[7]s], nodeRanges: [172.30.0.0/25, "fd00:30::/119"]%[8]s}
%[9]s`, s.name, s.stateDir(), s.api, pki, s.management, lab.ClusterName, s.addresses, s.clusterLimits, s.limits)
	file := filepath.Join(s.dir, "edge.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s.process = s.c.edge.Command(context.Background(), s.c.edge.Process.Args[0], "--config", file)
	s.process.Stdout, s.process.Stderr = log, log
	if err := s.process.Start(); err != nil {
		t.Fatal(err)
	}
	s.ended = make(chan struct{})
	go s.reap(s.process, s.ended)
}

func (s *spare) reap(process *exec.Cmd, ended chan<- struct{}) {
	_ = process.Wait() // it is killed
	close(ended)
}

// kill ends it at once.
func (s *spare) kill() {
	_ = s.process.Process.Kill() // or it has ended by itself
	<-s.ended
}

// serve makes a Service of its pool and waits until it is applied.
func (s *spare) serve(t *testing.T, ns string, n int) {
	t.Helper()
	s.create(t, ns, n)
	s.applied(t, n)
}

// create makes its nth Service.
func (s *spare) create(t *testing.T, ns string, n int) {
	t.Helper()
	o := lab.Service(ns, fmt.Sprintf("%s-%d", s.name, n))
	o.Spec.Selector = map[string]string{"app": "web"}
	o.Annotations = map[string]string{"eclusa.io/address-pool": s.name}
	s.c.create(t, o)
}

// applied waits until it serves n load balancers.
func (s *spare) applied(t *testing.T, n int) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		families, err := s.scrape()
		if err != nil {
			return fmt.Errorf("edge %q: %w; its log:\n%s", s.name, err, s.log())
		}
		if got := sum(families["eclusa_edge_load_balancers"], "applied", "true"); got != float64(n) {
			return fmt.Errorf("edge %q serves %g load balancers, want %d; its log:\n%s", s.name, got, n, s.log())
		}
		return nil
	})
}

func (s *spare) scrape() (map[string]*dto.MetricFamily, error) {
	return scrape(s.c.edge.Host, fmt.Sprintf("http://%s/metrics", s.management))
}

func (s *spare) metric(t *testing.T, name string) float64 {
	t.Helper()
	families, err := s.scrape()
	if err != nil {
		t.Error(err)
	}
	return sum(families[name], "", "")
}

// readyz is what it says to who asks whether it is ready.
func (s *spare) readyz() string { return s.c.readyz(s.management) }

func (c *cluster) readyz(management netip.AddrPort) string {
	resp, err := c.edge.HTTPClient().Get(fmt.Sprintf("http://%s/readyz", management))
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// log is the end of what it has logged.
func (s *spare) log() string {
	data, _ := os.ReadFile(filepath.Join(s.dir, "log")) // who reads it sees that it is empty
	return string(data[max(0, len(data)-4000):])
}

func (s *spare) labels() (asEdge, asInstance string) {
	return "edge=" + s.name, "instance=" + s.management.String()
}

// diskFull lets its disk be full when it has to save.
func (w watch) diskFull(t *testing.T, ns string, s *spare) {
	edge, instance := s.labels()
	s.kill()
	t.Cleanup(func() { s.start(t) })
	w.c.mountSmall(t, s.stateDir())
	t.Cleanup(s.kill)
	s.start(t)
	s.serve(t, ns, 1)
	makeRoom := w.c.fill(t, s.stateDir())
	s.serve(t, ns, 2) // it is served all the same
	w.fires(t, "EclusaStateNotSaved", edge)
	w.fires(t, "EclusaStateNotSaved", instance)
	w.fires(t, "EclusaEdgeNotReady", instance)
	shows(t, s.readyz, "is served but cannot be saved")
	shows(t, w.onEdge(t, "df", "-h", s.stateDir()), "100%")
	shows(t, s.log, "no space left on device")
	shows(t, w.kubectl(t, "describe", "edge", s.name), "NotDurable")
	makeRoom()
	w.resolves(t, "EclusaStateNotSaved", edge)
	w.resolves(t, "EclusaStateNotSaved", instance)
	w.resolves(t, "EclusaEdgeNotReady", instance)
}

// mountSmall puts a small disk there, on the edge's host, until the test ends.
func (c *cluster) mountSmall(t *testing.T, dir string) {
	t.Helper()
	command(t, c.edge.Host, "mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", dir)
	t.Cleanup(func() {
		// It was found busy once: somebody may look at it for a moment.
		err := poll(context.Background(), 5*time.Second, func() error {
			out, err := c.edge.Command(context.Background(), "umount", dir).CombinedOutput()
			if err != nil {
				err = fmt.Errorf("umount: %w: %s", err, out)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// fill leaves no room on that disk, until makeRoom is called.
func (c *cluster) fill(t *testing.T, dir string) (makeRoom func()) {
	t.Helper()
	filler := filepath.Join(dir, "filler")
	out, err := c.edge.Command(t.Context(), "sh", "-c", "cat /dev/zero >"+filler).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "No space left") {
		t.Fatalf("fill the disk: %v: %s", err, out)
	}
	return func() { command(t, c.edge.Host, "rm", filler) }
}

// diskHangs lets its disk neither take nor refuse what it saves: to open a pipe
// waits for a reader.
func (w watch) diskHangs(t *testing.T, ns string, s *spare) {
	edge, _ := s.labels()
	s.serve(t, ns, 1)
	pipe := s.stateFile() + ".new"
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	s.create(t, ns, 2)
	w.fires(t, "EclusaEdgeBehind", edge)
	if took := s.metric(t, "eclusa_edge_state_save_seconds"); took < 2 {
		t.Errorf("the edge says that a save takes %g seconds, while it hangs", took)
	}
	reader, err := os.OpenFile(pipe, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	eventually(t, 10*time.Second, func() error {
		if _, err := os.Lstat(pipe); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is still there: %w", pipe, err)
		}
		return nil
	})
	s.applied(t, 2)
	w.resolves(t, "EclusaEdgeBehind", edge)
}

// tooSmall gives it limits that it reaches.
func (w watch) tooSmall(t *testing.T, ns string, s *spare) {
	edge, instance := s.labels()
	s.kill()
	s.clusterLimits, s.limits = ", maxLoadBalancers: 1", "health: {probesPerSecond: 1}\n"
	s.start(t)
	s.serve(t, ns, 1)
	w.fires(t, "EclusaProbesStretched", instance)
	if n := s.metric(t, "eclusa_edge_probe_targets"); n != float64(len(w.c.Nodes)) {
		t.Errorf("the edge says that it probes %g targets, want %d", n, len(w.c.Nodes))
	}
	s.create(t, ns, 2)
	w.fires(t, "EclusaEdgeRejects", edge)
	shows(t, w.kubectl(t, "describe", "edge", s.name), "Rejected", "2 load balancers where the edge allows 1")
	s.kill()
	s.clusterLimits, s.limits = "", ""
	s.start(t)
	s.applied(t, 2)
	w.resolves(t, "EclusaProbesStretched", instance)
	w.resolves(t, "EclusaEdgeRejects", edge)
}

// muchRemoved takes the edge out of its pool, which removes all that it serves.
func (w watch) muchRemoved(t *testing.T, ns string, s *spare) {
	edge, _ := s.labels()
	for n := range 4 {
		s.serve(t, ns, 1+n)
	}
	w.c.reshape(t, s.name, map[string]any{"edgeSelector": map[string]any{"matchLabels": map[string]any{spareLabel: "nowhere"}}})
	w.fires(t, "EclusaRemovalsHeld", edge)
	s.applied(t, 4)
	shows(t, w.kubectl(t, "describe", "edge", s.name), "Held Removals", "eclusa.io/release-removals")
	w.runbook(t, "release-removals", s.name)
	s.applied(t, 0)
	w.resolves(t, "EclusaRemovalsHeld", edge)
	w.c.reshape(t, s.name, map[string]any{"edgeSelector": s.selector()})
	s.applied(t, 4)
}

// forgets has it lose its state until that is too often.
func (w watch) forgets(t *testing.T, ns string, s *spare) {
	edge, _ := s.labels()
	s.serve(t, ns, 1)
	for range 3 { // as often as it says
		s.kill()
		if err := os.RemoveAll(s.stateDir()); err != nil {
			t.Fatal(err)
		}
		s.start(t)
		s.applied(t, 1)
	}
	w.fires(t, "EclusaDriftRepeated", edge)
	shows(t, w.kubectl(t, "describe", "edge", s.name), "DriftRepaired", "load balancers: 1 missing")
	w.resolves(t, "EclusaDriftRepeated", edge)
}

// runbook runs the line of the operator's manual that has this in it, as somebody
// does who has the lab's kubectl, for this edge instead of the manual's.
func (w watch) runbook(t *testing.T, part, edge string) string {
	t.Helper()
	manual, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(manual)) {
		if strings.HasPrefix(line, "kubectl ") && strings.Contains(line, part) {
			found = append(found, strings.ReplaceAll(strings.TrimSpace(line), "edge-1", edge))
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d lines of the manual are kubectl with %q, want one: %q", len(found), part, found)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", found[0])
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(w.c.Kubectl())+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", found[0], err, out)
	}
	return string(out)
}
