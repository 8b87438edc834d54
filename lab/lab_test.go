package lab

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
	t.Parallel()
	ctx := t.Context()
	before := settings(t)
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

	prints := footprints(t, l)
	if err := l.Down(); err != nil {
		t.Fatal(err)
	}
	if err := l.Down(); err != nil {
		t.Errorf("a second Down: %v", err)
	}
	prints.gone(t)
	if diff := cmp.Diff(before, settings(t)); diff != "" {
		t.Errorf("settings of the machine (-before +after):\n%s", diff)
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
			return fmt.Errorf("got %q, %v", body, err) //nolint:errorlint // it may be nil
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
