package main

import (
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/provider"
	"github.com/eclusa-lb/eclusa/report"
)

var update = flag.Bool("update", false, "rewrite the transcripts and the reference")

// testNow is when everything in the transcripts happens.
var testNow = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const testToken = "token-of-jane"

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"kubectl-eclusa": func() {
			p := newProgram()
			p.now = func() time.Time { return testNow }
			err := newCommand(p).Execute()
			if err != nil && !errors.Is(err, errProblem) {
				fmt.Fprintln(os.Stderr, "kubectl eclusa:", err)
			}
			os.Exit(exitCode(err))
		},
	})
}

// TestTranscripts runs the program as a process against an API server and a
// leader. Each file in testdata/script is one scenario: cluster.yaml adds to
// testdata/base.yaml, and fleet.yaml says how the edges are. -update rewrites what
// it prints; read the difference.
func TestTranscripts(t *testing.T) {
	var mu sync.Mutex
	worlds := map[string]*testWorld{}
	worldOf := func(ts *testscript.TestScript) *testWorld {
		mu.Lock()
		defer mu.Unlock()
		return worlds[ts.Getenv("WORK")]
	}
	t.Cleanup(func() { // the scripts run in parallel
		rules := roles(t)
		seen := map[string]bool{}
		for _, w := range worlds {
			for _, r := range w.api.requests {
				if !seen[r] {
					checkAllowed(t, rules, r)
				}
				seen[r] = true
			}
		}
		if len(seen) < 20 {
			t.Errorf("the API server saw %d different requests, want more", len(seen))
		}
	})
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", UpdateScripts: *update,
		Setup: func(env *testscript.Env) error {
			w, err := newTestWorld(env)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			worlds[env.WorkDir] = w
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// exits CODE COMMAND...: the command exits with exactly this code.
			"exits": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) < 2 {
					ts.Fatalf("usage: exits CODE COMMAND...")
				}
				err := ts.Exec(args[1], args[2:]...)
				code := 0
				var exit *exec.ExitError
				if errors.As(err, &exit) {
					code = exit.ExitCode()
				} else if err != nil {
					ts.Fatalf("%v", err)
				}
				if strconv.Itoa(code) != args[0] {
					ts.Fatalf("exits with %d, want %s", code, args[0])
				}
			},
			// asked N: the leader was asked N times so far.
			"asked": func(ts *testscript.TestScript, _ bool, args []string) {
				w := worldOf(ts)
				w.mu.Lock()
				defer w.mu.Unlock()
				if got := strconv.Itoa(len(w.asked)); got != args[0] {
					ts.Fatalf("the leader was asked %s times, want %s: %v", got, args[0], w.asked)
				}
			},
			// object PATH FIELD...: prints a field of an object of the API server.
			"object": func(ts *testscript.TestScript, _ bool, args []string) {
				w := worldOf(ts)
				w.api.mu.Lock()
				defer w.api.mu.Unlock()
				value, _, err := unstructured.NestedFieldNoCopy(w.api.objects[args[0]].Object, args[1:len(args)-1]...)
				if err != nil {
					ts.Fatalf("%v", err)
				}
				if got := fmt.Sprint(value); got != args[len(args)-1] {
					ts.Fatalf("%v is %s, want %s", args[:len(args)-1], got, args[len(args)-1])
				}
			},
		},
	})
}

// testWorld is an API server and a leader.
type testWorld struct {
	api *apiServer

	mu    sync.Mutex
	asked []string // requests that reached the leader, with their credentials
}

// fleetFile says how the edges of a scenario are.
type fleetFile struct {
	// Down are nodes that fail their check, with the error.
	Down map[string]string `json:"down"`
	// Unreachable are edges that are not reached, with the problem.
	Unreachable map[string]string `json:"unreachable"`
	// Lacks are capabilities that edges lack.
	Lacks map[string][]lb.Capability `json:"lacks"`
	// Deny are requests that the API server refuses.
	Deny []string `json:"deny"`
	// LeaderRefuses is the status code with which the leader refuses everything.
	LeaderRefuses int `json:"leaderRefuses"`
	// Standby says that the process that is asked does not lead.
	Standby bool `json:"standby"`
	// WrongCertificate lets the Lease tell another certificate.
	WrongCertificate bool `json:"wrongCertificate"`
}

func newTestWorld(env *testscript.Env) (*testWorld, error) {
	w := &testWorld{api: &apiServer{token: testToken, objects: map[string]*unstructured.Unstructured{}, logs: map[string]string{}}}
	base, err := os.ReadFile("testdata/base.yaml")
	if err == nil {
		err = w.api.load(base)
	}
	if err != nil {
		return nil, err
	}
	if more, err := os.ReadFile(filepath.Join(env.WorkDir, "cluster.yaml")); err == nil {
		if err := w.api.load(more); err != nil {
			return nil, err
		}
	}
	var fleet fleetFile
	if data, err := os.ReadFile(filepath.Join(env.WorkDir, "fleet.yaml")); err == nil {
		if err := yaml.UnmarshalStrict(data, &fleet); err != nil {
			return nil, err
		}
	}
	w.api.deny = fleet.Deny
	snapshot, err := leaderSnapshot(w.api, fleet)
	if err != nil {
		return nil, err
	}
	leader := w.serveLeader(snapshot, fleet)
	env.Defer(leader.Close)
	w.advertise(leader, fleet)
	server := httptest.NewTLSServer(w.api)
	env.Defer(server.Close)
	env.Setenv("LEADER", leader.URL)
	env.Setenv("KUBECONFIG", filepath.Join(env.WorkDir, "kubeconfig"))
	env.Setenv("HOME", env.WorkDir)
	return w, writeKubeconfig(filepath.Join(env.WorkDir, "kubeconfig"), server)
}

func writeKubeconfig(file string, server *httptest.Server) error {
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	return os.WriteFile(file, fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: lab
contexts: [{name: lab, context: {cluster: lab, user: jane, namespace: default}}]
clusters: [{name: lab, cluster: {server: %q, certificate-authority-data: %s}}]
users: [{name: jane, user: {token: %s}}]
`, server.URL, base64.StdEncoding.EncodeToString(ca), testToken), 0o600)
}

// serveLeader serves a snapshot as the manager does, but for who may ask.
func (w *testWorld) serveLeader(s *provider.Snapshot, fleet fleetFile) *httptest.Server {
	identity := "eclusa-7d9f_0b5e"
	inner := report.Handler(report.HandlerOptions{
		Source: func() report.Source {
			if fleet.Standby {
				return nil
			}
			return s
		},
		Identity: "eclusa-other_1", Leader: func() string { return identity }, Version: "v0.1.0",
	})
	if !fleet.Standby {
		inner = report.Handler(report.HandlerOptions{Source: func() report.Source { return s }, Identity: identity, Leader: func() string { return identity }, Version: "v0.1.0"})
	}
	return httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.asked = append(w.asked, r.Method+" "+r.URL.Path+" "+r.Header.Get("Authorization"))
		w.mu.Unlock()
		if r.Header.Get("Authorization") != "Bearer "+testToken {
			http.Error(rw, "Unauthorized", http.StatusUnauthorized)
			return
		}
		if fleet.LeaderRefuses != 0 {
			http.Error(rw, http.StatusText(fleet.LeaderRefuses), fleet.LeaderRefuses)
			return
		}
		inner.ServeHTTP(rw, r)
	}))
}

// advertise tells on the Lease how the leader is known, and lets the API server
// forward ports to it.
func (w *testWorld) advertise(leader *httptest.Server, fleet fleetFile) {
	sum := sha256.Sum256(leader.Certificate().Raw)
	if fleet.WrongCertificate {
		sum[0]++
	}
	u, err := url.Parse(leader.URL)
	if err != nil {
		panic(err)
	}
	lease := w.api.all("Lease")[0]
	lease.SetAnnotations(map[string]string{report.CertificateAnnotation: hex.EncodeToString(sum[:]), report.PortAnnotation: u.Port()})
	w.api.forward = func() (net.Conn, error) { return net.Dial("tcp", u.Host) }
}

// typedAll returns the objects of a kind in their Go type.
func typedAll[T any](api *apiServer, kind string) ([]*T, error) {
	var out []*T
	for _, u := range api.all(kind) {
		o := new(T)
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, o); err != nil {
			return nil, fmt.Errorf("%s %s: %w", kind, u.GetName(), err)
		}
		out = append(out, o)
	}
	return out, nil
}

// leaderSnapshot is what a leader knows of the objects, with edges that do what
// they are told and are as the scenario says.
func leaderSnapshot(api *apiServer, fleet fleetFile) (*provider.Snapshot, error) {
	w := provider.World{Now: testNow, Controllers: provider.Controllers{Class: true}, Namespaces: map[string]labels.Set{}, Fleet: map[string]provider.EdgeState{}}
	var errs [5]error
	w.Services, errs[0] = typedAll[v1.Service](api, "Service")
	w.Nodes, errs[1] = typedAll[v1.Node](api, "Node")
	w.Pools, errs[2] = typedAll[v1alpha1.AddressPool](api, "AddressPool")
	w.Edges, errs[3] = typedAll[v1alpha1.Edge](api, "Edge")
	slices, err := typedAll[discoveryv1.EndpointSlice](api, "EndpointSlice")
	errs[4] = err
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	for _, n := range api.all("Namespace") {
		w.Namespaces[n.GetName()] = n.GetLabels()
	}
	w.Endpoints = func(namespace, name string) provider.Endpoints {
		var parts []*discoveryv1.EndpointSlice
		for _, s := range slices {
			if s.Namespace == namespace && s.Labels[discoveryv1.LabelServiceName] == name {
				parts = append(parts, s)
			}
		}
		return provider.ReadEndpoints(parts)
	}
	first := provider.SnapshotOf(w)
	for name, wanted := range first.Wanted() {
		w.Fleet[name] = served(name, wanted, fleet)
	}
	return first.In(w), nil
}

// served is an edge that serves what is wanted.
func served(name string, w provider.Wanted, fleet fleetFile) provider.EdgeState {
	st := provider.EdgeState{
		Name: name, Connected: true, Since: testNow.Add(-time.Hour), Known: true, Holds: w.Config, Desired: w.Config.Revision,
		Info: lb.Info{Name: name, Version: "v0.1.0", Engine: "proxy", Schema: lb.Schema},
		Status: lb.Status{
			Cursor: "1", Revision: w.Config.Revision, Durable: true,
			LoadBalancers: map[lb.UID]lb.LoadBalancerStatus{}, Checks: map[lb.CheckID]map[lb.NodeName]lb.MemberStatus{},
		},
	}
	for _, c := range []lb.Capability{lb.CapTCP, lb.CapUDP, lb.CapIPv4, lb.CapIPv6, lb.CapRoundRobin, lb.CapLeastConnections, lb.CapSourceRanges, lb.CapAffinity, lb.CapMaxConnections, lb.CapProxyV1, lb.CapProxyV2, lb.CapCheckGRPC, lb.CapCheckNone} {
		lacks := false
		for _, l := range fleet.Lacks[name] {
			lacks = lacks || l == c
		}
		if !lacks {
			st.Info.Capabilities = append(st.Info.Capabilities, c)
		}
	}
	if problem, ok := fleet.Unreachable[name]; ok {
		st.Connected, st.Problem, st.Since = false, problem, testNow.Add(-2*time.Minute)
	}
	for uid, l := range w.Config.LoadBalancers {
		st.Status.LoadBalancers[uid] = lb.LoadBalancerStatus{Applied: true}
		check := l.HealthCheck.ID()
		if st.Status.Checks[check] == nil {
			st.Status.Checks[check] = map[lb.NodeName]lb.MemberStatus{}
		}
		members := l.Members
		if members == nil {
			members = w.Config.Pools[l.Pool]
		}
		for node := range members {
			m := lb.MemberStatus{State: healthcheck.Up, Since: testNow.Add(-24 * time.Hour)}
			if why, down := fleet.Down[string(node)]; down {
				m = lb.MemberStatus{State: healthcheck.Down, Since: testNow.Add(-3 * time.Minute), Error: cmp.Or(why, "connection refused")}
			}
			st.Status.Checks[check][node] = m
		}
	}
	return st
}

// TestTerminalGetsColour prints with and without colour.
func TestTerminalGetsColour(t *testing.T) {
	var plain, coloured strings.Builder
	s := report.Status{
		Edges:         []report.Edge{{Name: "e", Findings: []report.Finding{{Level: report.Problem, What: "bad\x1b[2Jthing"}}}},
		ServiceCounts: map[report.Level]int{}, Origin: report.Origin{Time: testNow},
	}
	(&printer{out: &plain}).status(s)
	(&printer{out: &coloured, colour: true}).status(s)
	if strings.Contains(plain.String(), "\x1b") {
		t.Errorf("without colour there are escapes in %q", plain.String())
	}
	if !strings.Contains(coloured.String(), "\x1b[31mproblem\x1b[0m") || strings.Contains(coloured.String(), "\x1b[2J") {
		t.Errorf("with colour it prints %q, want a red problem and no escape of others", coloured.String())
	}
}

// TestPinnedRefusesOthers sends nothing to a server with another certificate.
func TestPinnedRefusesOthers(t *testing.T) {
	var got []string
	server := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = append(got, r.Header.Get("Authorization")) }))
	defer server.Close()
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		server.TLS.MaxVersion = version
		c := &cluster{config: testConfig()}
		client, err := pinned(c.config, make([]byte, sha256.Size))
		if err != nil {
			t.Fatal(err)
		}
		l := &leader{client: client, base: u, identity: "x"}
		if err := l.ask(t.Context(), http.MethodGet, report.StatusPath, nil, nil, nil); !errors.Is(err, errWrongCertificate) {
			t.Errorf("asking returned %v, want %v", err, errWrongCertificate)
		}
	}
	if len(got) > 0 {
		t.Errorf("a server with another certificate got %q", got)
	}
	sum := sha256.Sum256(server.Certificate().Raw)
	client, err := pinned(testConfig(), sum[:])
	if err != nil {
		t.Fatal(err)
	}
	l := &leader{client: client, base: u, identity: "x"}
	_ = l.ask(t.Context(), http.MethodGet, report.StatusPath, nil, nil, nil) // its answer is no JSON
	if len(got) != 1 || got[0] != "Bearer "+testToken {
		t.Errorf("the right server got %q, want the token once", got)
	}
}

func testConfig() *rest.Config {
	return &rest.Config{Host: "https://api.invalid", BearerToken: testToken}
}
