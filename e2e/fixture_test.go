package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/eclusa-lb/eclusa/lab"
)

// A cluster is a lab, with what tests need to talk to it. A test has it to itself
// and leaves it whole.
type cluster struct {
	*lab.Lab
	kube    kubernetes.Interface
	dynamic dynamic.Interface
	client  *lab.Host // outside the cluster, on another subnet
	edge    *lab.Edge
}

const (
	// nodeGrace is how long Kubernetes waits for a silent kubelet here: less than
	// usual, and more than a node is cut off in a test that is not about that.
	nodeGrace = 16 * time.Second

	// lease is for how long a manager leads here that is not heard of any more: less
	// than usual, since many tests wait for it.
	lease = 6 * time.Second

	// manyNodePorts are all node ports: many for Services, one with 1,200 ports among
	// them, and few enough to be used up.
	manyNodePorts = 1700
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("needs root to bring up a cluster in network namespaces")
	}
	t.Skip("needs root to bring up a cluster in network namespaces")
}

// logDir is where the logs of all programs go when E2E_LOGS names a folder, to
// folders by lab; otherwise they go with the labs.
func logDir() string { return os.Getenv("E2E_LOGS") }

func start(ctx context.Context, o lab.Options) (*cluster, error) {
	l, err := lab.Up(ctx, o)
	if err != nil {
		return nil, err
	}
	c, err := attach(l)
	if err != nil {
		return nil, errors.Join(err, l.Down())
	}
	return c, nil
}

func attach(l *lab.Lab) (*cluster, error) {
	c := &cluster{Lab: l, client: l.Clients[0], edge: l.Edges[0]}
	var err error
	if c.kube, err = l.Clientset(); err != nil {
		return nil, err
	}
	c.dynamic, err = l.Dynamic()
	return c, err
}

// namespace makes a namespace for the test and deletes it afterwards, its
// Services first and waiting for that, so that the next test finds free
// addresses.
func (c *cluster) namespace(t *testing.T) string {
	t.Helper()
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-", ".", "-").Replace(t.Name()))
	if len(name) > 50 {
		name = name[:50]
	}
	if err := c.Namespace(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if t.Failed() {
			c.tell(ctx, t, name)
		}
		if err := poll(ctx, time.Minute, func() error { return c.withoutServices(ctx, name) }); err != nil {
			t.Errorf("namespace %q: %v", name, err)
		}
		if err := c.kube.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Errorf("delete namespace %q: %v", name, err)
		}
	})
	return name
}

// withoutServices deletes the Services of the namespace, and returns an error
// as long as there are any.
func (c *cluster) withoutServices(ctx context.Context, namespace string) error {
	services, err := c.kube.CoreV1().Services(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, s := range services.Items {
		if s.DeletionTimestamp != nil {
			continue
		}
		err := c.kube.CoreV1().Services(namespace).Delete(ctx, s.Name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	if n := len(services.Items); n > 0 {
		return fmt.Errorf("%d Services are still there", n)
	}
	return nil
}

// tell logs what somebody who has to find the fault will want to see.
func (c *cluster) tell(ctx context.Context, t *testing.T, namespace string) {
	for _, args := range [][]string{
		{"get", "services,endpointslices,pods", "-n", namespace, "-o", "wide"},
		{"describe", "services", "-n", namespace},
		{"get", "edges,addresspools,nodes", "-o", "wide"},
		{"get", "pods,leases", "-n", lab.ReleaseNamespace, "-o", "wide"},
	} {
		t.Logf("kubectl %s:\n%s", strings.Join(args, " "), c.kubectl(ctx, args...))
	}
	if data, err := os.ReadFile(c.edge.Process.LogPath()); err == nil {
		t.Logf("the end of the log of %s:\n%s", c.edge.Name, data[max(0, len(data)-4000):])
	}
	for _, n := range c.Nodes {
		if data, err := os.ReadFile(n.KubeProxy.LogPath()); err == nil {
			t.Logf("the end of the log of kube-proxy on %s:\n%s", n.Name, data[max(0, len(data)-1500):])
		}
	}
	for _, h := range []*lab.Host{c.client, c.edge.Host, c.Nodes[0].Host} {
		out, err := h.Command(ctx, "sh", "-c", "ip neighbour; ip rule; ip -6 rule; ip route; ip -6 route; sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding").CombinedOutput()
		t.Logf("the network of %s: %v\n%s", h.Name, err, out)
	}
	replicas, err := c.Manager.Replicas(ctx)
	if err != nil {
		t.Logf("replicas of the manager: %v", err)
	}
	for _, r := range replicas {
		if text, err := r.Log(); err == nil {
			t.Logf("the end of the log of %s on %s:\n%s", r.Name, r.Host.Name, text[max(0, len(text)-4000):])
		}
	}
}

// deploy runs the workload with that many pods, spread over the nodes.
func (c *cluster) deploy(t *testing.T, namespace, name string, replicas int32) {
	t.Helper()
	if err := c.Deploy(t.Context(), lab.Deployment(namespace, name, replicas)); err != nil {
		t.Fatal(err)
	}
}

// create creates the Service.
func (c *cluster) create(t *testing.T, s *corev1.Service) {
	t.Helper()
	if _, err := c.kube.CoreV1().Services(s.Namespace).Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// serve creates the Service and waits until it has its addresses.
func (c *cluster) serve(t *testing.T, s *corev1.Service) []netip.Addr {
	t.Helper()
	c.create(t, s)
	return c.addresses(t, s.Namespace, s.Name)
}

func (c *cluster) addresses(t *testing.T, namespace, name string) []netip.Addr {
	t.Helper()
	addrs, err := c.WaitAddress(t.Context(), namespace, name)
	if err != nil {
		t.Fatal(err)
	}
	return addrs
}

func (c *cluster) service(t *testing.T, namespace, name string) *corev1.Service {
	t.Helper()
	s, err := c.kube.CoreV1().Services(namespace).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// update changes the Service, again if somebody else did meanwhile.
func (c *cluster) update(t *testing.T, namespace, name string, change func(*corev1.Service)) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		s, err := c.kube.CoreV1().Services(namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		change(s)
		_, err = c.kube.CoreV1().Services(namespace).Update(t.Context(), s, metav1.UpdateOptions{})
		return err
	})
}

func (c *cluster) delete(t *testing.T, namespace, name string) {
	t.Helper()
	err := c.kube.CoreV1().Services(namespace).Delete(t.Context(), name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
}

// condition waits until the Service's Condition has that status, and returns it.
func (c *cluster) condition(t *testing.T, namespace, name, kind string, status metav1.ConditionStatus) metav1.Condition {
	t.Helper()
	var found metav1.Condition
	eventually(t, 20*time.Second, func() error {
		s, err := c.kube.CoreV1().Services(namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		cond := meta.FindStatusCondition(s.Status.Conditions, "eclusa.io/"+kind)
		if cond == nil || cond.Status != status {
			return fmt.Errorf("service %q: condition %s is %+v, want %s; all: %+v", name, kind, cond, status, s.Status.Conditions)
		}
		found = *cond
		return nil
	})
	return found
}

// eventually polls until f returns nil, and fails the test if that takes longer
// than limit.
func eventually(t *testing.T, limit time.Duration, f func() error) {
	t.Helper()
	if err := poll(t.Context(), limit, f); err != nil {
		t.Fatal(err)
	}
}

func poll(ctx context.Context, limit time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %s: %w", limit, err)
		case <-tick.C:
		}
	}
}

// pause lets time pass that is itself what the test is about: load that runs, a
// node that stays dead.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// kubectl runs the real kubectl against the lab and returns what it prints.
func (c *cluster) kubectl(ctx context.Context, args ...string) string {
	out, err := exec.CommandContext(ctx, c.Kubectl(), args...).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%s(%v)", out, err)
	}
	return string(out)
}
