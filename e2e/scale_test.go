package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"golang.org/x/sync/errgroup"

	"github.com/eclusa-lb/eclusa/lab"
)

var (
	scaleServices = scale()
	scaleNodes    = max(scaleServices/10, 20)
)

// scale is the number of Services: few enough for every run, as many as E2E_SCALE
// says (5000 at most) for the figures.
func scale() int {
	if n, err := strconv.Atoi(os.Getenv("E2E_SCALE")); err == nil {
		return min(max(n, 100), 5000)
	}
	return 500
}

const (
	scaleNamespace = "scale"
	// nodeRange holds the addresses of the nodes that exist as objects only; one
	// host of the lab has them all and answers for kube-proxy's health port.
	nodeRange = "172.31.16.0/20"
	// scaleRange holds the addresses that their Services get.
	scaleRange = "172.28.0.0/17"
)

// Many Services and nodes against a real API server: what a start, a node event
// and a sick node cost. The nodes have no kubelets; their
// health port is real.
func TestScale(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes")
	}
	takeTurn(t, false)
	c, err := start(t.Context(), lab.Options{
		Name: "scale", Nodes: -1, Clients: 2, SingleStack: true, Log: os.Stderr, LogDir: logDir(),
		ServiceCIDR: "10.96.0.0/12", NodePortRange: "10000-32767",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			c.tell(ctx, t, scaleNamespace)
		}
		if err := c.Down(); err != nil {
			t.Error(err)
		}
	})
	if err := c.Manager.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	farm := c.widen(t)
	begun := time.Now()
	c.populate(t)
	t.Logf("%d Services and %d nodes created in %.1f s", scaleServices, scaleNodes, time.Since(begun).Seconds())

	c.coldStart(t)
	c.nodeEvent(t)
	c.sickNode(t, farm)
	c.memory(t)
}

// coldStart starts the manager and waits until the edge serves every Service.
func (c *cluster) coldStart(t *testing.T) {
	begun := time.Now()
	if err := c.Manager.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	seldom(t, 3*time.Minute, func() error {
		if n := c.metric(t, "eclusa_edge_load_balancers", "applied", "true"); n != float64(scaleServices) {
			return fmt.Errorf("the edge serves %g of %d load balancers", n, scaleServices)
		}
		return nil
	})
	applied := time.Since(begun)
	seldom(t, 3*time.Minute, func() error {
		services, err := c.kube.CoreV1().Services(scaleNamespace).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		written := 0
		for _, s := range services.Items {
			if len(s.Status.LoadBalancer.Ingress) > 0 {
				written++
			}
		}
		if written != scaleServices {
			return fmt.Errorf("%d of %d Services have their address in the status", written, scaleServices)
		}
		return nil
	})
	t.Logf("cold start with %d Services: applied on the edge after %.1f s, all statuses written after %.1f s",
		scaleServices, applied.Seconds(), time.Since(begun).Seconds())
	if limit := coldStartLimit(t); applied > limit {
		t.Errorf("applied after %s, want %s at most", applied, limit)
	}
}

// seldom is eventually for what is dear to ask: with thousands of load balancers
// a scrape takes a processor for a while, and those who are measured have two.
func seldom(t *testing.T, limit time.Duration, f func() error) {
	t.Helper()
	eventually(t, limit, func() error {
		err := f()
		if err != nil {
			pause(t.Context(), time.Second)
		}
		return err
	})
}

// coldStartLimit is how long the edge may take to serve everything. The aim is
// 30 s for 5,000 Services on two quiet cores, most of which the API server needs to record 5,000
// addresses; E2E_COLD_START=30s demands it. Without that only what cannot be
// noise is an error.
func coldStartLimit(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("E2E_COLD_START")
	if text == "" {
		return 2 * time.Minute
	}
	limit, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("E2E_COLD_START: %v", err)
	}
	return limit
}

// nodeEvent changes one node and expects one request at the edge within a second.
func (c *cluster) nodeEvent(t *testing.T) {
	var writes float64
	eventually(t, time.Minute, func() error {
		before := c.metric(t, "eclusa_edge_writes_total", "", "")
		pause(t.Context(), time.Second)
		if writes = c.metric(t, "eclusa_edge_writes_total", "", ""); writes != before {
			return fmt.Errorf("%g requests at the edge in the last second", writes-before)
		}
		return nil
	})
	n, err := c.kube.CoreV1().Nodes().Get(t.Context(), nodeName(7), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n.Status.Addresses[0].Address = nodeAddress(scaleNodes + 7).String()
	begun := time.Now()
	if _, err := c.kube.CoreV1().Nodes().UpdateStatus(t.Context(), n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() error {
		if c.metric(t, "eclusa_edge_writes_total", "", "") == writes {
			pause(t.Context(), 100*time.Millisecond) // a scrape is dear
			return fmt.Errorf("the node's new address has not reached the edge")
		}
		return nil
	})
	took := time.Since(begun)
	pause(t.Context(), 3*time.Second)
	requests := c.metric(t, "eclusa_edge_writes_total", "", "") - writes
	t.Logf("a node event reached the edge after %s in %g requests", took.Round(time.Millisecond), requests)
	if took > time.Second || requests != 1 {
		t.Errorf("node event: %s and %g requests, want one request within a second", took, requests)
	}
}

// sickNode lets one node fail its check and counts what that costs.
func (c *cluster) sickNode(t *testing.T, farm *farm) {
	c.settle(t)
	writes, bytes := c.apiWrites(t), c.apiBytes(t)
	farm.dead.Store(ptr(nodeAddress(11)))
	c.untilDown(t, nodeName(11), time.Now())
	// Statuses may be written up to five seconds later.
	pause(t.Context(), 8*time.Second)
	writes, bytes = c.apiWrites(t)-writes, c.apiBytes(t)-bytes
	t.Logf("a sick node under %d Services cost %d API writes and %d bytes between edge and manager", scaleServices, writes, bytes)
	if writes > 10 {
		t.Errorf("a sick node cost %d API writes, want 10 at most", writes)
	}
	if bytes > 10_000 {
		t.Errorf("a sick node moved %d bytes, want less than 10 kB", bytes)
	}
}

// settle waits until nobody writes any more.
func (c *cluster) settle(t *testing.T) {
	t.Helper()
	eventually(t, 2*time.Minute, func() error {
		before := c.apiWrites(t)
		pause(t.Context(), 6*time.Second)
		if n := c.apiWrites(t) - before; n > 0 {
			return fmt.Errorf("%d API writes in the last six seconds", n)
		}
		return nil
	})
}

func (c *cluster) memory(t *testing.T) {
	t.Helper()
	var line []string
	add := func(name string, rss int64, err error) {
		if err != nil {
			t.Error(err)
		}
		line = append(line, fmt.Sprintf("%s %d MB", name, rss>>20))
	}
	for _, p := range append(c.ControlPlane.Processes(), c.edge.Process) {
		rss, err := p.RSS()
		add(p.Name, rss, err)
	}
	leader := c.leader(t)
	rss, err := leader.RSS()
	add(leader.Name, rss, err)
	t.Logf("memory: %s", strings.Join(line, ", "))
}

// apiWrites counts the writes to the objects that eclusa writes to.
func (c *cluster) apiWrites(t *testing.T) int {
	t.Helper()
	config, err := c.RESTConfig()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := c.kube.Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	if err != nil {
		t.Fatalf("metrics of %s: %v", config.Host, err)
	}
	total := 0
	for line := range strings.Lines(string(raw)) {
		if !strings.HasPrefix(line, "apiserver_request_total{") || !writesOurs.MatchString(line) || !writeVerb.MatchString(line) {
			continue
		}
		fields := strings.Fields(line)
		n, err := strconv.ParseFloat(fields[len(fields)-1], 64)
		if err != nil {
			t.Fatal(err)
		}
		total += int(n)
	}
	return total
}

var (
	writesOurs = regexp.MustCompile(`resource="(services|edges|addresspools|events)"`)
	writeVerb  = regexp.MustCompile(`verb="(APPLY|PATCH|PUT|POST|DELETE)"`)
)

// apiBytes counts what went over the connections to the edge's API, both ways.
func (c *cluster) apiBytes(t *testing.T) int {
	t.Helper()
	out, err := c.edge.Command(t.Context(), "ss", "-Htin", "state", "established", "sport", "=", fmt.Sprintf(":%d", c.edge.API().Port())).CombinedOutput()
	if err != nil {
		t.Fatalf("ss: %v: %s", err, out)
	}
	total := 0
	for _, m := range transferred.FindAllStringSubmatch(string(out), -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		total += n
	}
	if total == 0 {
		t.Fatalf("no connection to the edge's API: %s", out)
	}
	return total
}

var transferred = regexp.MustCompile(`bytes_(?:acked|received):(\d+)`)

// A farm is a host that has the addresses of all nodes.
type farm struct {
	dead atomic.Pointer[netip.Addr] // fails its health check
}

// widen prepares the lab for many nodes and addresses: routes, the edge's
// ranges, a pool, and a host that answers the health checks of all nodes.
func (c *cluster) widen(t *testing.T) *farm {
	t.Helper()
	host := c.Clients[1]
	command(t, host, "ip", "route", "add", "local", nodeRange, "dev", "lo")
	command(t, c.Fabric, "ip", "route", "add", nodeRange, "via", host.Addr4.String())

	config, err := os.ReadFile(c.edge.ConfigPath())
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(config), "addressRanges: [", "addressRanges: ["+scaleRange+", ", 1)
	text = strings.Replace(text, "nodeRanges: [", "nodeRanges: ["+nodeRange+", ", 1)
	if err := os.WriteFile(c.edge.ConfigPath(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.edge.Process.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.edge.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	pool := fmt.Sprintf("apiVersion: eclusa.io/v1alpha1\nkind: AddressPool\nmetadata: {name: default}\nspec: {addresses: [%q]}\n", scaleRange)
	if err := c.Apply(t.Context(), []byte(pool)); err != nil {
		t.Fatal(err)
	}
	f := &farm{}
	f.serve(t, host)
	return f
}

// serve answers on kube-proxy's health port for all nodes.
func (f *farm) serve(t *testing.T, host *lab.Host) {
	t.Helper()
	l, err := host.Listen(t.Context(), "tcp4", "0.0.0.0:10256")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		local := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		at := netip.MustParseAddrPort(local.String()).Addr().Unmap()
		if dead := f.dead.Load(); dead != nil && *dead == at {
			panic(http.ErrAbortHandler)
		}
	})}
	var done sync.WaitGroup
	done.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() { server.Close(); done.Wait() })
}

// populate creates the nodes, the Services and an endpoint for each.
func (c *cluster) populate(t *testing.T) {
	t.Helper()
	if err := c.Namespace(t.Context(), scaleNamespace); err != nil {
		t.Fatal(err)
	}
	c.inParallel(t, scaleNodes, c.createNode)
	c.inParallel(t, scaleServices, c.createService)
}

func (c *cluster) inParallel(t *testing.T, n int, create func(context.Context, int) error) {
	t.Helper()
	g, ctx := errgroup.WithContext(t.Context())
	g.SetLimit(16)
	for i := range n {
		g.Go(func() error { return create(ctx, i) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

func nodeName(i int) string { return fmt.Sprintf("object-%03d", i) }

func nodeAddress(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{172, 31, byte(16 + i/250), byte(1 + i%250)})
}

func (c *cluster) createNode(ctx context.Context, i int) error {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName(i)},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: nodeAddress(i).String()},
		}},
	}
	_, err := c.kube.CoreV1().Nodes().Create(ctx, n, metav1.CreateOptions{})
	return err
}

func (c *cluster) createService(ctx context.Context, i int) error {
	name := fmt.Sprintf("service-%04d", i)
	s := lab.Service(scaleNamespace, name)
	s.Spec.Selector = nil
	if _, err := c.kube.CoreV1().Services(scaleNamespace).Create(ctx, s, metav1.CreateOptions{}); err != nil {
		return err
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr("http"), Port: ptr(int32(8080))}},
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{fmt.Sprintf("10.244.%d.%d", i/250, 1+i%250)}, NodeName: ptr(nodeName(i % scaleNodes)),
			Conditions: discoveryv1.EndpointConditions{Ready: ptr(true)},
		}},
	}
	_, err := c.kube.DiscoveryV1().EndpointSlices(scaleNamespace).Create(ctx, slice, metav1.CreateOptions{})
	return err
}

func command(t *testing.T, host *lab.Host, args ...string) {
	t.Helper()
	if out, err := host.Command(t.Context(), args...).CombinedOutput(); err != nil {
		t.Fatalf("%s on %s: %v: %s", strings.Join(args, " "), host.Name, err, out)
	}
}
