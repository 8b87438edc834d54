package lab

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/eclusa-lb/eclusa/lab/ledger"
)

// TestReopen leaves a lab running, attaches to it again, and ends and restarts
// every part of it.
func TestReopen(t *testing.T) {
	needRoot(t)
	t.Parallel()
	ctx := t.Context()
	before := settings(t)
	first, err := Up(ctx, Options{Nodes: 1, Clients: -1, NoEclusa: true, Log: testLog{t}})
	if err != nil {
		t.Fatal(err)
	}
	dir := first.Options.Dir
	t.Cleanup(func() { _ = Clean(dir) })
	if err := first.Detach(); err != nil {
		t.Fatal(err)
	}
	if _, err := Up(ctx, Options{Dir: dir, NoEclusa: true}); err == nil {
		t.Fatal("a second lab came up in the directory of a running one")
	}
	l, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(ctx, l.Kubectl(), "get", "nodes", "-o", "name").CombinedOutput()
	if got, want := strings.TrimSpace(string(out)), "node/node-1"; err != nil || got != want {
		t.Errorf("kubectl get nodes: got %q, %v; want %q", got, err, want)
	}
	restartParts(t, l)
	killNode(t, l)
	prints := footprints(t, l)
	if err := Clean(dir); err != nil {
		t.Fatal(err)
	}
	prints.gone(t)
	if diff := cmp.Diff(before, settings(t)); diff != "" {
		t.Errorf("settings of the machine (-before +after):\n%s", diff)
	}
}

func restartParts(t *testing.T, l *Lab) {
	t.Helper()
	ctx := t.Context()
	p := l.Nodes[0].KubeProxy
	pid := p.PID()
	if err := p.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if !p.Running() || p.PID() == pid {
		t.Errorf("%s: running %v with number %d, want a new one than %d", p.Name, p.Running(), p.PID(), pid)
	}
	if rss, err := p.RSS(); err != nil || rss < 1<<20 {
		t.Errorf("%s: memory %d, %v", p.Name, rss, err)
	}
	if err := l.ControlPlane.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, p := range l.ControlPlane.Processes() {
		if p.Running() {
			t.Errorf("%s runs with the control plane stopped", p.Name)
		}
	}
	if err := l.ControlPlane.Start(ctx); err != nil {
		t.Fatal(err)
	}
	// One that has long been running, and so handles SIGTERM by itself: the
	// kernel ends any other, frozen or not.
	frozen := l.Nodes[0].Kubelet
	if err := frozen.Freeze(); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if err := frozen.Stop(short); err == nil || frozen.Running() {
		t.Errorf("stop a frozen process: got %v, running %v; want an error and an end", err, frozen.Running())
	}
	if err := frozen.Start(); err != nil {
		t.Error(err)
	}
}

func killNode(t *testing.T, l *Lab) {
	t.Helper()
	n := l.Nodes[0]
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*Process{n.Containerd, n.Kubelet, n.KubeProxy} {
		if p.Running() {
			t.Errorf("%s outlives its node", p.Name)
		}
	}
	if err := n.Do(func() error { return nil }); err == nil {
		t.Error("something ran on a dead node")
	}
	killed := time.Now()
	if err := n.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	clients, err := l.Clientset()
	if err != nil {
		t.Fatal(err)
	}
	// Kubernetes may not have noticed yet, so its word must be a new one.
	err = until(t.Context(), time.Minute, func(ctx context.Context) error {
		lease, err := clients.CoordinationV1().Leases("kube-node-lease").Get(ctx, n.Name, metav1.GetOptions{})
		if err == nil && lease.Spec.RenewTime.Time.Before(killed) {
			return fmt.Errorf("lease of %s", lease.Spec.RenewTime)
		}
		return err
	})
	if err != nil {
		t.Errorf("node %q after Boot: %v", n.Name, err)
	}
	if err := n.Ready(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestKilledOwner kills the owner of one lab beside another: the watcher cleans
// up after it, and the other goes on.
func TestKilledOwner(t *testing.T) {
	if dir := os.Getenv("LAB_TEST_OWNER"); dir != "" {
		ownLab(t, dir)
		return
	}
	needRoot(t)
	t.Parallel()
	ctx := t.Context()
	dir := filepath.Join(t.TempDir(), "lab")
	owner := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestKilledOwner$", "-test.v")
	owner.Env = append(os.Environ(), "LAB_TEST_OWNER="+dir)
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = Clean(dir) })
	other, err := Up(ctx, Options{Nodes: -1, NoEclusa: true, Log: testLog{t}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Down() })
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "owner is up") {
		t.Log("owner: " + lines.Text())
	}
	killed, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	prints, others := footprints(t, killed), footprints(t, other)
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait()
	err = until(ctx, 20*time.Second, func(context.Context) error {
		if _, err := ledger.Read(dir); err == nil {
			return fmt.Errorf("the lab in %q is still in its ledger", dir)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	prints.gone(t)
	if err := other.ControlPlane.Ready(ctx); err != nil {
		t.Errorf("the other lab: %v", err)
	}
	if err := other.Down(); err != nil {
		t.Fatal(err)
	}
	others.gone(t)
}

// ownLab is the owner's side of TestKilledOwner, in a process of its own.
func ownLab(t *testing.T, dir string) {
	if _, err := Up(t.Context(), Options{Dir: dir, Nodes: 1, NoEclusa: true, Log: os.Stdout}); err != nil {
		t.Fatal(err)
	}
	fmt.Println("owner is up")
	<-t.Context().Done()
}
