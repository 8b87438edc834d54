package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Node is a host that runs pods.
type Node struct {
	*Host
	// PodCIDRs are the ranges of its pods, IPv4 first.
	PodCIDRs                       []netip.Prefix
	Containerd, Kubelet, KubeProxy *Process
}

// Kill ends the node at once, with its pods and its network, as a power failure
// does.
func (n *Node) Kill() error { return n.kill() }

// Boot brings a killed node back with the disk that it had.
func (n *Node) Boot(ctx context.Context) error {
	if n.Alive() {
		return nil
	}
	l := n.lab
	for _, p := range plan(l.Options) {
		if p.name != n.Name {
			continue
		}
		if err := l.power(n.Host, p); err != nil {
			return err
		}
	}
	if err := l.routePods(); err != nil {
		return err
	}
	return n.start(ctx)
}

// start starts the node's programs. kubelet ends when there is no container
// runtime; for everything else the programs wait by themselves.
func (n *Node) start(ctx context.Context) error {
	if err := n.Containerd.Start(); err != nil {
		return err
	}
	if err := n.listening(ctx); err != nil {
		return err
	}
	return errors.Join(n.Kubelet.Start(), n.KubeProxy.Start())
}

// listening waits until the container runtime accepts connections.
func (n *Node) listening(ctx context.Context) error {
	socket := fmt.Sprintf("/proc/%d/root/run/containerd/containerd.sock", n.holder.PID)
	err := until(ctx, 2*time.Minute, func(ctx context.Context) error {
		if !n.Containerd.Running() {
			return fmt.Errorf("it has ended:\n%s", n.Containerd.tail())
		}
		c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err != nil {
			return err
		}
		return c.Close()
	})
	if err != nil {
		return fmt.Errorf("%s: %w", n.Containerd.Name, err)
	}
	return nil
}

// define sets up the node's programs.
func (n *Node) define(l *Lab) {
	config := func(name string) string { return l.nodeFile(n, name) }
	number := n.Name[len("node-"):]
	addrs := n.Addr4.String()
	if !l.Options.SingleStack {
		addrs += "," + n.Addr6.String()
	}
	n.Containerd = l.process(containerdRole, "containerd-"+number, n.Host,
		"containerd", "--config="+config("containerd.toml"))
	// Images are unpacked there, and /tmp is everybody's.
	n.Containerd.Env = []string{"TMPDIR=/var/tmp"}
	n.Kubelet = l.process(kubeletRole, "kubelet-"+number, n.Host, l.program("kubelet"),
		"--config="+config("kubelet.yaml"),
		"--kubeconfig="+l.kubeconfig("kubelet-"+number),
		"--hostname-override="+n.Name,
		"--node-ip="+addrs)
	n.KubeProxy = l.process(proxyRole, "kube-proxy-"+number, n.Host, l.program("kube-proxy"),
		"--config="+config("kube-proxy.yaml"))
}

// Ready waits until Kubernetes says that the node is.
func (n *Node) Ready(ctx context.Context) error {
	clients, err := n.lab.Clientset()
	if err != nil {
		return err
	}
	err = until(ctx, 2*time.Minute, func(ctx context.Context) error {
		for _, p := range []*Process{n.Containerd, n.Kubelet, n.KubeProxy} {
			if !p.Running() {
				return fmt.Errorf("%q has ended:\n%s", p.Name, p.tail())
			}
		}
		o, err := clients.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		return ready(o)
	})
	if err != nil {
		return fmt.Errorf("node %q: %w", n.Name, err)
	}
	return nil
}

// ready is nil when pods can be placed on the node. Kubernetes takes the taints
// away a moment after it has become ready.
func ready(n *corev1.Node) error {
	i := slices.IndexFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeReady })
	if i < 0 {
		return errors.New("has not reported yet")
	}
	if c := n.Status.Conditions[i]; c.Status != corev1.ConditionTrue {
		return fmt.Errorf("not ready: %s", c.Message)
	}
	for _, t := range n.Spec.Taints {
		if t.Key == corev1.TaintNodeNotReady || t.Key == corev1.TaintNodeUnreachable {
			return fmt.Errorf("has the taint %s", t.Key)
		}
	}
	return nil
}

// register makes the Node object before its kubelet does, with the pod ranges
// that the routes are made for.
func (l *Lab) register(ctx context.Context, n *Node) error {
	clients, err := l.Clientset()
	if err != nil {
		return err
	}
	o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: map[string]string{
		corev1.LabelHostname: n.Name,
	}}}
	for _, cidr := range n.PodCIDRs {
		o.Spec.PodCIDRs = append(o.Spec.PodCIDRs, cidr.String())
	}
	o.Spec.PodCIDR = o.Spec.PodCIDRs[0]
	for _, a := range l.addrs(n.Host) {
		o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	_, err = clients.CoreV1().Nodes().Create(ctx, o, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("register node %q: %w", n.Name, err)
	}
	return nil
}

// startCluster starts the control plane, and prepares the nodes meanwhile.
func (l *Lab) startCluster(ctx context.Context) error {
	for _, p := range []*Process{l.ControlPlane.Etcd, l.ControlPlane.APIServer} {
		if err := p.Start(); err != nil {
			return err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.prepareNodes(ctx) })
	g.Go(func() error { return l.prepareAPI(ctx) })
	return g.Wait()
}

// startNodes starts what is left of Kubernetes and waits until pods can run.
func (l *Lab) startNodes(ctx context.Context) error {
	for _, p := range []*Process{l.ControlPlane.ControllerManager, l.ControlPlane.Scheduler} {
		if err := p.Start(); err != nil {
			return err
		}
	}
	for _, n := range l.Nodes {
		if err := n.start(ctx); err != nil {
			return err
		}
	}
	for _, n := range l.Nodes {
		if err := n.Ready(ctx); err != nil {
			return err
		}
	}
	if err := l.defaultAccount(ctx); err != nil {
		return err
	}
	if len(l.Nodes) > 0 {
		l.say("%s Ready", count(len(l.Nodes), "node is", "nodes are"))
	}
	return nil
}

// prepareNodes starts the container runtimes and gives them the images, which
// needs no API server yet.
func (l *Lab) prepareNodes(ctx context.Context) error {
	if len(l.Nodes) == 0 {
		return nil
	}
	for _, n := range l.Nodes {
		if err := makeCgroup(l.Options.cgroup() + "/" + n.Name); err != nil {
			return err
		}
		if err := n.Containerd.Start(); err != nil {
			return err
		}
	}
	if err := l.importOwn(ctx); err != nil {
		return err
	}
	l.say("container runtimes and images are ready")
	return nil
}

func (l *Lab) prepareAPI(ctx context.Context) error {
	if err := l.ControlPlane.Ready(ctx); err != nil {
		return err
	}
	l.say("etcd and kube-apiserver are ready")
	if err := l.Apply(ctx, rbac); err != nil {
		return err
	}
	for _, n := range l.Nodes {
		if err := l.register(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// defaultAccount waits for the service account without which no pod is
// admitted.
func (l *Lab) defaultAccount(ctx context.Context) error {
	clients, err := l.Clientset()
	if err != nil {
		return err
	}
	err = until(ctx, 2*time.Minute, func(ctx context.Context) error {
		if p := l.ControlPlane.ControllerManager; !p.Running() {
			return fmt.Errorf("%q has ended:\n%s", p.Name, p.tail())
		}
		_, err := clients.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("service account %q: %w", "default", err)
	}
	return nil
}
