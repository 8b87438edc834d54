package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	kubefake "k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/eclusa-lb/eclusa/provider"
	"github.com/eclusa-lb/eclusa/report"
)

// serving makes what the secure port is served with, and its fingerprint.
func serving(t *testing.T, name string) (*server.SecureServingInfo, string) {
	t.Helper()
	pair := writePair(t, t.TempDir(), name, time.Now().Add(time.Hour))
	certificate, err := os.ReadFile(pair.CertFile)
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(pair.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	content, err := dynamiccertificates.NewStaticCertKeyContent(name, certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	block, _ := pem.Decode(certificate)
	sum := sha256.Sum256(block.Bytes)
	return &server.SecureServingInfo{Listener: listener, Cert: content}, hex.EncodeToString(sum[:])
}

// TestLeaseTellsTheCertificate follows the Lease from one leader to the next.
func TestLeaseTellsTheCertificate(t *testing.T) {
	kube := kubefake.NewClientset()
	ctx := t.Context()
	lock := func(identity string, s *server.SecureServingInfo) *resourcelock.LeaseLock {
		return &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: "kube-system", Name: programName},
			Client:     advertisedLeases{kube.CoordinationV1(), advertOf(s)},
			LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
		}
	}
	expect := func(when, certificate, port string) {
		t.Helper()
		lease, err := kube.CoordinationV1().Leases("kube-system").Get(ctx, programName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got := lease.Annotations[report.CertificateAnnotation]; got != certificate {
			t.Errorf("%s the Lease tells certificate %q, want %q", when, got, certificate)
		}
		if got := lease.Annotations[report.PortAnnotation]; got != port {
			t.Errorf("%s the Lease tells port %q, want %q", when, got, port)
		}
		if when != "at first" && lease.Annotations["other"] != "kept" {
			t.Errorf("%s annotations of others are %v", when, lease.Annotations)
		}
	}
	portOf := func(s *server.SecureServingInfo) string { return strconv.Itoa(s.Listener.Addr().(*net.TCPAddr).Port) }
	record := func(holder string) resourcelock.LeaderElectionRecord {
		return resourcelock.LeaderElectionRecord{HolderIdentity: holder, LeaseDurationSeconds: 15, RenewTime: metav1.Now()}
	}
	serveA, sumA := serving(t, "a")
	serveB, sumB := serving(t, "b")
	a, b := lock("a", serveA), lock("b", serveB)

	if err := a.Create(ctx, record("a")); err != nil {
		t.Fatal(err)
	}
	expect("at first", sumA, portOf(serveA))

	// Somebody annotates the Lease, and the holder renews it.
	lease, err := kube.CoordinationV1().Leases("kube-system").Get(ctx, programName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	lease.Annotations["other"] = "kept"
	if _, err := kube.CoordinationV1().Leases("kube-system").Update(ctx, lease, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Get(ctx); err != nil {
		t.Fatal(err)
	}
	if err := a.Update(ctx, record("a")); err != nil {
		t.Fatal(err)
	}
	expect("after a renewal", sumA, portOf(serveA))

	if _, _, err := b.Get(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.Update(ctx, record("b")); err != nil {
		t.Fatal(err)
	}
	expect("with another leader", sumB, portOf(serveB))

	release(ctx, b, zap.NewNop())
	expect("after it was given back", "", "")

	if _, _, err := a.Get(ctx); err != nil {
		t.Fatal(err)
	}
	if err := lock("c", nil).Update(ctx, record("c")); err == nil {
		t.Error("a lock that has never looked has updated the Lease")
	}
}

// TestStandbyNamesTheLeader asks a process that does not lead.
func TestStandbyNamesTheLeader(t *testing.T) {
	l := &leader{identity: "me_1", provider: provider.New(provider.Options{})}
	ask := func() (int, string) {
		w := httptest.NewRecorder()
		l.reports().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, report.StatusPath, nil))
		return w.Code, w.Body.String()
	}
	if code, body := ask(); code != http.StatusServiceUnavailable || !strings.Contains(body, "does not know who leads") {
		t.Errorf("without a leader it answers %d %s", code, body)
	}
	other := "other_2"
	l.holder.Store(&other)
	if code, body := ask(); code != http.StatusServiceUnavailable || !strings.Contains(body, `"leader":"other_2"`) {
		t.Errorf("standing by it answers %d %s, want 503 and the leader", code, body)
	}
	l.holder.Store(&l.identity)
	l.leading.Store(true)
	if code, body := ask(); code != http.StatusServiceUnavailable || !strings.Contains(body, "does not know everything yet") {
		t.Errorf("before everything is known it answers %d %s", code, body)
	}
}
