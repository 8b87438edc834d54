package provider

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	servicecontroller "k8s.io/cloud-provider/controllers/service"
	controllersmetrics "k8s.io/component-base/metrics/prometheus/controllers"
	"sigs.k8s.io/yaml"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// apiServer is a real kube-apiserver with its etcd, on loopback.
type apiServer struct {
	config  *rest.Config
	kube    kubernetes.Interface
	dynamic dynamic.Interface
	pid     int
}

// startAPIServer starts an API server of the programs in the folder that
// ECLUSA_KUBERNETES names, which `make lab-binaries` builds, and installs our
// definitions.
func startAPIServer(t *testing.T) *apiServer {
	t.Helper()
	bin := os.Getenv("ECLUSA_KUBERNETES")
	if bin == "" && os.Getenv("CI") == "true" {
		t.Fatal("ECLUSA_KUBERNETES is not set: `make test` does")
	}
	if bin == "" {
		t.Skip("needs kube-apiserver and etcd: build them with `make lab-binaries` and set ECLUSA_KUBERNETES to their folder")
	}
	dir := t.TempDir()
	etcdURL, peerURL, port := "http://"+freePort(t), "http://"+freePort(t), freePort(t)
	run(t, filepath.Join(bin, "etcd"), "--data-dir="+dir+"/etcd", "--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL,
		"--listen-peer-urls="+peerURL, "--initial-advertise-peer-urls="+peerURL, "--initial-cluster=default="+peerURL)
	key := serviceAccountKey(t, dir)
	tokens := filepath.Join(dir, "tokens.csv")
	if err := os.WriteFile(tokens, []byte("secret,admin,admin,system:masters\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	host, number, _ := net.SplitHostPort(port)
	s := &apiServer{}
	s.pid = run(t, filepath.Join(bin, "kube-apiserver"), "--etcd-servers="+etcdURL, "--bind-address="+host, "--secure-port="+number,
		"--cert-dir="+dir+"/certs", "--token-auth-file="+tokens, "--service-account-key-file="+key, "--service-account-signing-key-file="+key,
		"--service-account-issuer=https://kubernetes.default.svc", "--service-cluster-ip-range=10.96.0.0/12",
		"--service-node-port-range=10000-60000", "--disable-admission-plugins=ServiceAccount", "--authorization-mode=AlwaysAllow")
	s.config = &rest.Config{Host: "https://" + port, BearerToken: "secret", QPS: -1, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	var err error
	if s.kube, err = kubernetes.NewForConfig(s.config); err != nil {
		t.Fatal(err)
	}
	if s.dynamic, err = dynamic.NewForConfig(s.config); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "API server is ready", func() bool {
		_, err := s.kube.CoreV1().Namespaces().Get(t.Context(), "default", metav1.GetOptions{})
		return err == nil
	})
	s.install(t)
	return s
}

// install creates the definitions of our types.
func (s *apiServer) install(t *testing.T) {
	t.Helper()
	client, err := apiextensions.NewForConfig(s.config)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"addresspools", "edges"} {
		text, err := os.ReadFile("../charts/eclusa/crds/eclusa.io_" + name + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		var d apiextensionsv1.CustomResourceDefinition
		if err := yaml.UnmarshalStrict(text, &d); err != nil {
			t.Fatal(err)
		}
		if _, err := client.ApiextensionsV1().CustomResourceDefinitions().Create(t.Context(), &d, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := checkResources(t.Context(), s.dynamic, zap.NewNop()); err != nil && !strings.Contains(err.Error(), "install the definitions") {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "definitions are served", func() bool {
		return checkResources(t.Context(), s.dynamic, zap.NewNop()) == nil
	})
}

func serviceAccountKey(t *testing.T, dir string) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "sa.key")
	block := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	if err := os.WriteFile(path, block, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// run starts a program, ends it with the test, and returns its process id.
func run(t *testing.T, program string, args ...string) int {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), filepath.Base(program)+".log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("%s said last: %s", program, text[max(0, len(text)-2000):])
		}
	})
	return cmd.Process.Pid
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// eventually waits until something is true.
func eventually(t *testing.T, most time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > most {
			t.Fatalf("not true after %v: %s", most, what)
		}
		time.Sleep(20 * time.Millisecond) // poll
	}
	return time.Since(began)
}

// serve runs a Provider and the stock controller against the API server.
func (s *apiServer) serve(t *testing.T, edges map[string]*lbtest.FakeBalancer) (p *Provider, stop func()) {
	t.Helper()
	p = New(Options{
		Dial: func(e EdgeSpec) (lb.Balancer, error) { return edges[e.Name], nil },
		Claim: func(context.Context) (lb.Claim, error) {
			return lb.Claim{ClusterUID: "cluster", LeaseUID: "lease", LeaseTransitions: 1, Holder: "me"}, nil
		},
		Log: zap.NewNop(),
	})
	limited := rest.CopyConfig(s.config)
	limited.QPS, limited.Burst = 200, 400
	stock, err := kubernetes.NewForConfig(limited)
	if err != nil {
		t.Fatal(err)
	}
	p.clients = clients{events: stock, write: s.kube, dynamic: s.dynamic}
	shared := informers.NewSharedInformerFactory(s.kube, 0)
	p.SetInformers(shared)
	for _, name := range []string{StockController, ClassController} {
		if err := p.Enable(name); err != nil {
			t.Fatal(err)
		}
	}
	sc, err := servicecontroller.New(p, stock, shared.Core().V1().Services(), shared.Core().V1().Nodes(), "test", nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	shared.Start(ctx.Done())
	var wg sync.WaitGroup
	wg.Go(func() { sc.Run(ctx, 10, controllersmetrics.NewControllerManagerMetrics("test")) })
	wg.Go(func() {
		if err := p.Run(ctx); err != nil {
			t.Errorf("Run returned %v, want nil", err)
		}
	})
	return p, func() { cancel(); wg.Wait(); shared.Shutdown() }
}

func createOwn(t *testing.T, s *apiServer, objects ...metav1.Object) {
	t.Helper()
	for _, o := range objects {
		u, gvr := toUnstructured(t, o)
		if _, err := s.dynamic.Resource(gvr).Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}
