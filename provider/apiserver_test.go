package provider

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	v1 "k8s.io/api/core/v1"
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

func (s *apiServer) create(t *testing.T, n int, from int, change ...func(*v1.Service)) {
	t.Helper()
	var wg sync.WaitGroup
	gate := make(chan struct{}, 16)
	for i := range n {
		wg.Go(func() {
			gate <- struct{}{}
			defer func() { <-gate }()
			svc := testService(fmt.Sprintf("s-%05d", from+i), 0, change...)
			if _, err := s.kube.CoreV1().Services("default").Create(t.Context(), svc, metav1.CreateOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// TestManyServices measures how long it takes to serve thousands of Services
// that are there when the program starts, and what one node costs then.
func TestManyServices(t *testing.T) {
	s := startAPIServer(t)
	n := 5000
	if testing.Short() {
		n = 500
	}
	edge := lbtest.NewFakeBalancer("e1")
	createOwn(t, s, testPool("default", "10.32.0.0/16"), testEdge("e1"))
	for i := range 500 {
		node := testNode(fmt.Sprintf("n%03d", i), fmt.Sprintf("10.0.%d.%d", i/250, i%250+1))
		if _, err := s.kube.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.kube.CoreV1().Nodes().UpdateStatus(t.Context(), &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.Name}, Status: node.Status}, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	s.create(t, n, 0)
	t.Logf("%d Services created in %v", n, time.Since(began))
	p, stop := s.serve(t, map[string]*lbtest.FakeBalancer{"e1": edge})
	defer func() { stop() }()
	for i := range 500 {
		edge.SetMember("http:10256/healthz", lb.NodeName(fmt.Sprintf("n%03d", i)), &lb.MemberStatus{State: 1})
	}
	t.Logf("all on the edge after %v", eventually(t, 2*time.Minute, "all on the edge", func() bool { return len(edge.Held().LoadBalancers) == n }))
	t.Logf("all written %v later", eventually(t, 2*time.Minute, "all written", func() bool { return s.programmed(t) == n }))
	t.Logf("edge was written %d times; writes to the API server: %s", len(edge.Writes()), countWrites(t, p))
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	t.Logf("heap is %d MB", m.HeapAlloc>>20)

	time.Sleep(6 * time.Second) // poll: let the status of the edge be written
	writes := len(edge.Writes())
	if err := s.kube.CoreV1().Nodes().Delete(t.Context(), "n007", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	took := eventually(t, 10*time.Second, "node is gone from the edge", func() bool { _, ok := edge.Held().Nodes["n007"]; return !ok })
	t.Logf("node is gone from the edge after %v, in %d writes", took, len(edge.Writes())-writes)
	if took > time.Second || len(edge.Writes())-writes != 1 {
		t.Errorf("want under a second and one write")
	}
	stop()
	before := s.versions(t)
	_, stop = s.serve(t, map[string]*lbtest.FakeBalancer{"e1": edge})
	time.Sleep(5 * time.Second) // poll: what a restart writes, it writes by now
	if changed := s.versions(t) - before; changed > 10 {
		t.Errorf("a restart wrote about %d times, want almost none", changed)
	}
}

// countWrites returns how often the Provider has written.
func countWrites(t *testing.T, p *Provider) string {
	registry := prometheus.NewRegistry()
	registry.MustRegister(p.Collector())
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range families {
		if f.GetName() != "eclusa_ccm_writes_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			out = append(out, fmt.Sprintf("%s %s %v", m.GetLabel()[0].GetValue(), m.GetLabel()[1].GetValue(), m.GetCounter().GetValue()))
		}
	}
	return strings.Join(out, ", ")
}

// versions returns the newest version of the Services.
func (s *apiServer) versions(t *testing.T) int {
	list, err := s.kube.CoreV1().Services("default").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	newest := 0
	for _, svc := range list.Items {
		var v int
		fmt.Sscan(svc.ResourceVersion, &v)
		newest = max(newest, v)
	}
	return newest
}

// programmed returns the number of Services that say they are served.
func (s *apiServer) programmed(t *testing.T) int {
	list, err := s.kube.CoreV1().Services("default").List(t.Context(), metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for i := range list.Items {
		if says(&list.Items[i], ConditionProgrammed) == "True Programmed" && told(&list.Items[i]) != "" {
			n++
		}
	}
	return n
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
