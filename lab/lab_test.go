package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/eclusa-lb/eclusa/lab/ledger"
)

// needRoot skips on a laptop and fails in CI, where nothing may be left out.
func needRoot(t *testing.T) {
	t.Helper()
	if err := privileged(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// testLog narrates into the test's output.
type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

// TestLab brings a cluster up, uses it from outside, and looks for what it
// leaves behind.
func TestLab(t *testing.T) {
	needRoot(t)
	ctx := t.Context()
	before := traces(t)
	l, err := Up(ctx, Options{NoEclusa: true, Log: testLog{t}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Down() })
	addr := nodePort(t, l)
	fetch(t, l, addr, true)

	n := l.Nodes[0]
	if err := n.LinkDown(); err != nil {
		t.Fatal(err)
	}
	fetch(t, l, addr, false)
	if err := n.LinkUp(); err != nil {
		t.Fatal(err)
	}
	fetch(t, l, addr, true)

	if err := l.Down(); err != nil {
		t.Fatal(err)
	}
	if err := l.Down(); err != nil {
		t.Errorf("a second Down: %v", err)
	}
	if diff := lost(traces(t), before); len(diff) > 0 {
		t.Errorf("the lab left behind:\n%s", strings.Join(diff, "\n"))
	}
	if _, err := os.Stat(l.Options.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("directory %q is still there: %v", l.Options.Dir, err)
	}
}

// nodePort runs the workload on both nodes and returns the first node's address
// and node port.
func nodePort(t *testing.T, l *Lab) netip.AddrPort {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := l.Deploy(ctx, Deployment("default", "web", 2)); err != nil {
		t.Fatal(err)
	}
	clients, err := l.Clientset()
	if err != nil {
		t.Fatal(err)
	}
	s := Service("default", "web")
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	s, err = clients.CoreV1().Services("default").Create(ctx, s, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(l.Nodes[0].Addr4, uint16(NodePort(s, 80)))
}

// fetch waits until a request from the client is answered, or until it is not.
func fetch(t *testing.T, l *Lab, addr netip.AddrPort, want bool) {
	t.Helper()
	client := l.Client().HTTPClient()
	client.Timeout = time.Second
	err := until(t.Context(), 10*time.Second, func(ctx context.Context) error {
		body, err := get(ctx, client, fmt.Sprintf("http://%s/", addr))
		if (err == nil) != want {
			return fmt.Errorf("got %q, %v", body, err)
		}
		if want && !strings.Contains(body, l.Client().Addr4.String()) {
			return fmt.Errorf("got %q, want the client's address %s in it", body, l.Client().Addr4)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("request to %s, answer wanted: %v: %v", addr, want, err)
	}
}

func get(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// traces are the things that a lab could leave on the machine: processes that
// are not this test's nor the kernel's, mounts, named network namespaces,
// network devices, control groups and the settings that kubelet changes.
func traces(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if cmd, err := os.ReadFile(f); err == nil && ours(string(cmd)) {
			all["process "+f+" "+strings.ReplaceAll(string(cmd), "\x00", " ")] = true
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		all["mount "+line] = true
	}
	links, _ := filepath.Glob("/sys/class/net/*")
	spaces, _ := filepath.Glob("/run/netns/*")
	for _, f := range append(links, spaces...) {
		all[f] = true
	}
	hs, err := ledger.Hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hs {
		groups, _ := filepath.Glob(h.Root + "/*")
		for _, g := range groups {
			all["control group "+g] = true
		}
	}
	for name := range kubeletSysctls {
		value, _ := os.ReadFile("/proc/sys/" + name)
		all["setting "+name+" = "+string(value)] = true
	}
	return all
}

// ours tells the programs of a lab from everything else on the machine.
func ours(cmdline string) bool {
	for _, name := range []string{"kube", "etcd", "containerd", "anchor", "workload", "pause"} {
		if strings.HasPrefix(filepath.Base(strings.SplitN(cmdline, "\x00", 2)[0]), name) {
			return true
		}
	}
	return false
}

// lost lists what is in one set and not in the other, either way.
func lost(after, before map[string]bool) []string {
	var diff []string
	for k := range after {
		if !before[k] {
			diff = append(diff, "+ "+k)
		}
	}
	for k := range before {
		if !after[k] {
			diff = append(diff, "- "+k)
		}
	}
	return diff
}
