package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/rest"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// The tests of the whole program need a network that is theirs alone: members
// and load balancers must not have addresses of the edge's machine. So the test
// binary starts itself again in a network namespace.
const (
	envIsolated = "ECLUSA_TEST_ISOLATED" // set in the namespace
	envProgram  = "ECLUSA_TEST_PROGRAM"  // set when the binary is to be eclusa-edge
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(envTaker) != "":
		takeUntil(os.Getenv(envTaker))
		return
	case os.Getenv(envProgram) != "":
		main()
		return
	case os.Getenv(envIsolated) != "":
		// Tests without a world use it too, whichever comes first.
		if lo, err := netlink.LinkByName("lo"); err == nil {
			_ = netlink.LinkSetUp(lo)
		}
		os.Exit(m.Run())
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), envIsolated+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		c.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		c.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		c.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	// The namespace ends with the thread that made it for the child's sake.
	runtime.LockOSThread()
	err := c.Run()
	exit, ran := errors.AsType[*exec.ExitError](err)
	switch {
	case err == nil:
		os.Exit(0)
	case ran:
		os.Exit(exit.ExitCode())
	}
	fmt.Fprintln(os.Stderr, "no network namespace for the tests:", err)
	os.Exit(m.Run())
}

// A world is an edge's machine with a network: the namespace of this process is
// the edge's machine, "eth0" leads to another one that is both the nodes and the
// clients.
type world struct {
	t     *testing.T
	dir   string
	yaml  string   // of the edge; DIR stands for dir
	log   *os.File // where programs write, nil is the test's output
	nodes netns.NsHandle
	home  netns.NsHandle
}

// Addresses in the world.
const (
	edgeAddr  = "10.0.0.1"
	edgeAddr6 = "fd00::1"
	apiAddr   = edgeAddr + ":7443"
	mgmtAddr  = "127.0.0.1:9980"
)

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Getenv(envIsolated) == "" {
		if os.Getenv("CI") == "true" {
			t.Fatal("no network namespace: it needs root, or user namespaces")
		}
		t.Skip("no network namespace: it needs root, or user namespaces")
	}
	w := &world{t: t, dir: t.TempDir(), yaml: edgeYAML}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var err error
	if w.home, err = netns.Get(); err != nil {
		t.Fatal(err)
	}
	w.nodes, err = netns.New() // and enters it
	if err := errors.Join(err, netns.Set(w.home)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if l, err := netlink.LinkByName("eth0"); err == nil {
			_ = netlink.LinkDel(l)
		}
		w.nodes.Close()
		w.home.Close()
	})
	w.wire()
	return w
}

func (w *world) wire() {
	w.t.Helper()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth1"}
	w.must(netlink.LinkAdd(veth))
	peer, err := netlink.LinkByName("eth1")
	w.must(err)
	w.must(netlink.LinkSetNsFd(peer, int(w.nodes)))
	w.up("lo")
	w.up("eth0", edgeAddr+"/24", edgeAddr6+"/64")
	w.inNodes(func() {
		w.up("lo")
		w.up("eth1", "10.0.0.11/24", "10.0.0.12/24", "10.0.0.13/24", "10.0.0.200/24", "fd00::11/64")
	})
}

func (w *world) up(name string, addrs ...string) {
	w.t.Helper()
	l, err := netlink.LinkByName(name)
	w.must(err)
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		w.must(err)
		addr.Flags = syscall.IFA_F_NODAD
		w.must(netlink.AddrAdd(l, addr))
	}
	w.must(netlink.LinkSetUp(l))
}

// route lets nodes and clients reach a range through the edge.
func route(w *world, to string) {
	w.t.Helper()
	dst, err := netlink.ParseIPNet(to)
	w.must(err)
	w.inNodes(func() {
		l, err := netlink.LinkByName("eth1")
		w.must(err)
		w.must(netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Gw: net.ParseIP(edgeAddr)}))
	})
}

// unaddress takes an address away: whoever had it is gone without a word.
func (w *world) unaddress(name, addr string) {
	w.t.Helper()
	l, err := netlink.LinkByName(name)
	w.must(err)
	a, err := netlink.ParseAddr(addr)
	w.must(err)
	w.must(netlink.AddrDel(l, a))
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// inNodes calls f in the namespace of nodes and clients. Sockets that f opens
// stay there.
func (w *world) inNodes(f func()) {
	w.t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	w.must(netns.Set(w.nodes))
	defer func() { w.must(netns.Set(w.home)) }()
	f()
}

// node serves HTTP on a node port, and kube-proxy's health check, and answers
// with its name.
func (w *world) node(addr, name string) (stop func()) {
	w.t.Helper()
	var servers []*http.Server
	for _, port := range []string{"30080", "10256"} {
		var l net.Listener
		var err error
		w.inNodes(func() { l, err = net.Listen("tcp", net.JoinHostPort(addr, port)) })
		w.must(err)
		s := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(rw, name)
		})}
		go s.Serve(l)
		servers = append(servers, s)
	}
	stop = func() {
		for _, s := range servers {
			s.Close()
		}
	}
	w.t.Cleanup(stop)
	return stop
}

// get fetches a page through the load balancer, from outside.
func (w *world) get(addr string) (string, error) {
	var conn net.Conn
	var err error
	w.inNodes(func() { conn, err = net.DialTimeout("tcp", addr, 2*time.Second) })
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return "", err
	}
	page, err := io.ReadAll(conn)
	if err != nil {
		return "", err
	}
	_, body, ok := strings.Cut(string(page), "\r\n\r\n")
	if !ok {
		return "", fmt.Errorf("answer %q", page)
	}
	return body, nil
}

// eventually calls f until it returns nil.
func (w *world) eventually(within time.Duration, f func() error) time.Duration {
	w.t.Helper()
	start := time.Now()
	for {
		err := f()
		if err == nil {
			return time.Since(start)
		}
		if time.Since(start) > within {
			w.t.Fatalf("not within %s: %v", within, err)
		}
		time.Sleep(5 * time.Millisecond) // poll
	}
}

// pki makes the certificates of an edge and two clusters with the program's own
// commands.
func (w *world) pki() {
	w.t.Helper()
	for _, args := range [][]string{
		{"pki", "init", "--dir", w.dir},
		{"pki", "edge", "--dir", w.dir, "--name", "edge-1", "--host", edgeAddr},
		{"pki", "cluster", "--dir", w.dir, "--name", "prod"},
		{"pki", "cluster", "--dir", w.dir, "--name", "dev"},
		{"pki", "cluster", "--dir", w.dir, "--name", "stranger"},
	} {
		if err := execute(args...); err != nil {
			w.t.Fatalf("eclusa-edge %s: %v", strings.Join(args, " "), err)
		}
	}
}

// execute runs a command of the program within this process.
func execute(args ...string) error {
	c := newCommand()
	c.SetArgs(args)
	c.SetOut(io.Discard)
	c.SetErr(io.Discard)
	return c.Execute()
}

const edgeYAML = `
name: edge-1
stateDir: DIR/state
api: {listen: "10.0.0.1:7443", certFile: DIR/edge-1.crt, keyFile: DIR/edge-1.key, clientCAFile: DIR/ca.crt}
announce: {mode: interface, interface: eth0}
clusters:
- {name: prod, addressRanges: [10.0.0.128/26, "fd00::80/121"], nodeRanges: [10.0.0.0/25, "fd00::/122"]}
- {name: dev, addressRanges: [10.0.0.192/29], nodeRanges: [10.0.0.0/25], maxLoadBalancers: 3}
drainTimeout: 2s
`

func (w *world) config() string {
	w.t.Helper()
	path := filepath.Join(w.dir, "edge.yaml")
	w.must(os.WriteFile(path, []byte(strings.ReplaceAll(w.yaml, "DIR", w.dir)), 0o600))
	return path
}

// program is a running eclusa-edge.
type program struct {
	*exec.Cmd
	ended chan struct{}
	err   error // how it ended
}

// start starts the program; it does not wait until it serves.
func (w *world) start() *program {
	w.t.Helper()
	c := exec.Command("/proc/self/exe", "--config", w.config())
	c.Env = append(os.Environ(), envProgram+"=1")
	c.Stderr = w.t.Output()
	if w.log != nil { // a pipe would break with the first of several processes
		c.Stderr = w.log
	}
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p := &program{Cmd: c, ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		// Pdeathsig is about the thread that started the program.
		runtime.LockOSThread()
		err := c.Start()
		started <- err
		if err == nil {
			p.err = c.Wait()
			close(p.ended)
		}
	}()
	w.must(<-started)
	w.t.Cleanup(func() {
		_ = c.Process.Kill()
		<-p.ended
	})
	return p
}

func (p *program) wait(t *testing.T, within time.Duration) error {
	t.Helper()
	select {
	case <-p.ended:
		return p.err
	case <-time.After(within):
		t.Fatalf("the program has not ended within %s", within)
		return nil
	}
}

func (w *world) ready() {
	w.t.Helper()
	w.eventually(10*time.Second, func() error {
		r, err := http.Get("http://" + mgmtAddr + "/readyz")
		if err != nil {
			return err
		}
		defer r.Body.Close()
		if r.StatusCode != http.StatusOK {
			body, _ := io.ReadAll(r.Body)
			return fmt.Errorf("%s: %s", r.Status, body)
		}
		return nil
	})
}

// client returns a client with the certificate of holder that speaks for a
// cluster.
func (w *world) client(holder string, cluster lb.Cluster) *rest.Client {
	w.t.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(w.dir, holder+".crt"), filepath.Join(w.dir, holder+".key"))
	w.must(err)
	roots := w.roots()
	c, err := rest.NewClient(rest.ClientOptions{
		Endpoint: "https://" + apiAddr, ServerName: "edge-1", Cluster: cluster, Timeout: 5 * time.Second,
		Certificate: func() (*tls.Certificate, error) { return &cert, nil },
		RootCAs:     func() (*x509.CertPool, error) { return roots, nil },
	})
	w.must(err)
	w.t.Cleanup(c.Close)
	return c
}

// raw returns an HTTP client with the certificate of holder, for requests that
// the real client would not send.
func (w *world) raw(holder string) *http.Client {
	w.t.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(w.dir, holder+".crt"), filepath.Join(w.dir, holder+".key"))
	w.must(err)
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		Certificates: []tls.Certificate{cert}, RootCAs: w.roots(), ServerName: "edge-1",
	}}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

func (w *world) roots() *x509.CertPool {
	w.t.Helper()
	ca, err := os.ReadFile(filepath.Join(w.dir, "ca.crt"))
	w.must(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return roots
}

func (w *world) claim(c lb.Balancer, transitions int64) lb.Epoch {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	epoch, err := c.Claim(ctx, lb.Claim{ClusterUID: "cluster-uid", LeaseUID: "lease-uid", LeaseTransitions: transitions, Holder: "ccm-0"})
	w.must(err)
	return epoch
}

// service is a configuration with one load balancer in front of three nodes.
func service(revision uint64, changes ...func(*lb.LoadBalancer)) lb.Config {
	node := func(a string) lb.Node { return lb.Node{Addresses: []netip.Addr{netip.MustParseAddr(a)}} }
	c := lb.Config{
		Revision: revision,
		Nodes:    map[lb.NodeName]lb.Node{"n1": node("10.0.0.11"), "n2": node("10.0.0.12"), "n3": node("10.0.0.13")},
		Pools:    map[lb.PoolName]lb.Pool{"all": {"n1": {}, "n2": {}, "n3": {}}},
		LoadBalancers: map[lb.UID]lb.LoadBalancer{"u1": {
			Name: "default/web", ClaimTime: time.Unix(1, 0), Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.129")}, Pool: "all", FailOpen: true,
			Listeners: []lb.Listener{{Protocol: lb.TCP, Port: 80, TargetPort: 30080}},
		}},
	}
	l := c.LoadBalancers["u1"]
	l.HealthCheck.Protocol, l.HealthCheck.Port = "http", 10256
	for _, change := range changes {
		change(&l)
	}
	c.LoadBalancers["u1"] = l
	return c
}
