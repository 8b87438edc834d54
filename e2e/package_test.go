package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lab"
)

// An edge's life on a machine of its own: installed from the package, started by
// systemd, upgraded under load, removed. New connections, one that is long, and UDP
// from one port see nothing of the upgrade.
func TestEdgePackageIsInstalledUpgradedAndRemoved(t *testing.T) {
	c := inLab(t)
	needSystemd(t)
	ns := c.namespace(t)
	c.deploy(t, ns, "web", 2)
	begun := time.Now()
	m := c.addMachine(t)
	t.Logf("the machine serves %s after it was switched on", time.Since(begun).Round(time.Millisecond))
	m.join(t)
	t.Cleanup(func() { // before the pool goes
		if err := poll(context.Background(), 20*time.Second, func() error { return c.withoutServices(context.Background(), ns) }); err != nil {
			t.Error(err)
		}
	})
	address := c.serve(t, inPool(lab.Service(ns, "web"), "on-machines"))[0]
	answers(t, c.client, netip.AddrPortFrom(address, 80))
	deb := m.nextVersion(t, "v9.9.9")
	m.is(t, lab.Version)
	m.lives(t)

	load := startLoad(t.Context(), c.client, netip.AddrPortFrom(address, 80), 50)
	talk := startTalk(t, c.client, netip.AddrPortFrom(address, 7000))
	ask := startAsking(t, c.client, netip.AddrPortFrom(address, 53), 20001)
	said := m.run(t, "dpkg", "-i", deb)
	wantWords(t, "dpkg", said, []string{"a process of the new version has taken over"})
	m.is(t, "v9.9.9")
	pause(t.Context(), time.Second) // of load on the new one alone
	if err := errors.Join(talk.end(), ask.end()); err != nil {
		t.Errorf("what was open during the upgrade: %v", err)
	}
	load.stop(t)
	m.lives(t)

	m.removed(t, address)
}

// needSystemd skips on a laptop without it and fails in CI.
func needSystemd(t *testing.T) {
	t.Helper()
	for _, program := range []string{"/lib/systemd/systemd", "dpkg"} {
		if _, err := exec.LookPath(program); err == nil {
			continue
		}
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is missing: the Debian packages systemd and dpkg are needed", program)
		}
		t.Skipf("%s is missing: the Debian packages systemd and dpkg are needed", program)
	}
}

// inPool asks for an address of the pool, and for ports of TCP and UDP beside that
// of HTTP.
func inPool(s *corev1.Service, pool string) *corev1.Service {
	s.Annotations = map[string]string{"eclusa.io/address-pool": pool}
	s.Spec.Ports = append(s.Spec.Ports,
		corev1.ServicePort{Name: "echo", Port: 7000, TargetPort: intstr.FromString("tcp-echo")},
		corev1.ServicePort{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53, TargetPort: intstr.FromString("udp-echo")})
	return s
}

// A machine is one that an edge is installed on.
type machine struct {
	c *cluster
	*lab.Edge
}

// addMachine adds one to the lab until the test ends.
func (c *cluster) addMachine(t *testing.T) machine {
	t.Helper()
	e, err := c.AddEdge(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := machine{c, e}
	t.Cleanup(func() {
		if t.Failed() {
			out, err := e.Command(context.Background(), "journalctl", "--no-pager", "--lines=200", "--output=cat").CombinedOutput()
			t.Logf("the journal of %s, %v:\n%s", e.Name, err, out)
		}
		if err := e.Remove(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// join makes the edge part of the fleet, with a pool that is its own.
func (m machine) join(t *testing.T) {
	t.Helper()
	o := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": v1alpha1.GroupVersion.String(), "kind": v1alpha1.EdgeKind,
		"metadata": map[string]any{"name": m.Name, "labels": map[string]any{"where": "machine"}},
		"spec":     map[string]any{"endpoint": "https://" + m.API().String()},
	}}
	if _, err := m.c.dynamic.Resource(v1alpha1.EdgeResource).Create(t.Context(), o, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // unless the test got that far itself
		err := m.c.dynamic.Resource(v1alpha1.EdgeResource).Delete(context.Background(), m.Name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
	m.c.makePool(t, "on-machines", "172.30.0.193/32", map[string]any{"matchLabels": map[string]any{"where": "machine"}})
}

// run runs a command on the machine.
func (m machine) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := m.Command(t.Context(), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s on %s: %v\n%s", strings.Join(args, " "), m.Name, err, out)
	}
	return string(out)
}

// is waits until the cluster says that the edge is ready and of that version.
func (m machine) is(t *testing.T, version string) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		got := m.c.kubectl(t.Context(), "get", "edge", m.Name, "--no-headers",
			"-o", `custom-columns=R:.status.conditions[?(@.type=="Ready")].status,S:.status.loadBalancersApplied,V:.status.version`)
		if f := strings.Fields(got); len(f) != 3 || f[0] != "True" || f[1] != "1" || f[2] != version {
			return fmt.Errorf("edge %q: got %q, want it ready, with one Service, and of version %q", m.Name, got, version)
		}
		return nil
	})
}

// lives looks at how systemd runs the edge.
func (m machine) lives(t *testing.T) {
	t.Helper()
	got := m.run(t, "systemctl", "show", "eclusa-edge", "--property=ActiveState,StatusText,NRestarts,User,ProtectSystem,AmbientCapabilities")
	for _, want := range []string{
		"ActiveState=active", "StatusText=Serving", "NRestarts=0", "User=eclusa-edge", "ProtectSystem=strict",
		"AmbientCapabilities=cap_net_bind_service cap_net_admin cap_net_raw",
	} {
		if !strings.Contains("\n"+got, "\n"+want+"\n") {
			t.Errorf("the unit: got\n%s\nwant %q in it", got, want)
		}
	}
	if owner := m.run(t, "sh", "-c", `stat -c %U "/proc/$(systemctl show -P MainPID eclusa-edge)"`); owner != "eclusa-edge\n" {
		t.Errorf("the edge runs as %q", owner)
	}
}

// nextVersion makes a package of that version.
func (m machine) nextVersion(t *testing.T, version string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "eclusa-edge")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-ldflags", "-s -w -X github.com/eclusa-lb/eclusa/version.number="+version, "-o", program, "../cmd/eclusa-edge")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the edge: %v\n%s", err, out)
	}
	deb, err := m.c.PackageEdge(t.Context(), program, version)
	if err != nil {
		t.Fatal(err)
	}
	return deb
}

// removed takes the package off the machine and the edge out of the fleet, and looks
// for what they leave behind.
func (m machine) removed(t *testing.T, address netip.Addr) {
	t.Helper()
	if before := m.run(t, "ip", "-o", "address", "show", "dev", "eth0"); !strings.Contains(before, address.String()+"/") {
		t.Errorf("eth0 while the edge serves: got\n%s\nwant %s", before, address)
	}
	m.run(t, "dpkg", "-r", "eclusa-edge")
	if after := m.run(t, "ip", "-o", "address", "show", "dev", "eth0"); strings.Contains(after, address.String()+"/") {
		t.Errorf("eth0 after the removal still has %s:\n%s", address, after)
	}
	m.run(t, "dpkg", "-P", "eclusa-edge")
	if left := m.run(t, "sh", "-c", "{ ls -d /var/lib/eclusa-edge /etc/eclusa/edge.yaml /usr/bin/eclusa-edge; pidof eclusa-edge; } 2>/dev/null || true"); left != "" {
		t.Errorf("left behind on the machine:\n%s", left)
	}
	out := m.c.kubectl(t.Context(), "delete", "edge", m.Name, "--timeout=20s")
	wantWords(t, "kubectl", out, []string{"deleted"})
	if out := m.c.kubectl(t.Context(), "get", "edges", "-o", "name"); strings.Contains(out, m.Name) {
		t.Errorf("edges after the deletion: %s", out)
	}
}
