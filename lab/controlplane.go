package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
)

// ControlPlane is the host of etcd, the API server, the controller manager and
// the scheduler.
type ControlPlane struct {
	*Host
	Etcd, APIServer, ControllerManager, Scheduler *Process
}

// APIServerAddr is where the API server listens.
func (c *ControlPlane) APIServerAddr() netip.AddrPort { return netip.AddrPortFrom(c.Addr4, 6443) }

// Processes are all programs of the control plane, in the order in which they
// start.
func (c *ControlPlane) Processes() []*Process {
	return []*Process{c.Etcd, c.APIServer, c.ControllerManager, c.Scheduler}
}

// Stop kills the whole control plane at once. Cloud controller managers go on.
func (c *ControlPlane) Stop() error {
	var g errgroup.Group
	for _, p := range c.Processes() {
		g.Go(p.Kill)
	}
	return g.Wait()
}

// Start starts the control plane again and waits until it answers. The
// controllers come last: they end when the API server does not let them in yet.
func (c *ControlPlane) Start(ctx context.Context) error {
	for _, p := range []*Process{c.Etcd, c.APIServer} {
		if err := p.Start(); err != nil {
			return err
		}
	}
	if err := c.Ready(ctx); err != nil {
		return err
	}
	for _, p := range []*Process{c.ControllerManager, c.Scheduler} {
		if err := p.Start(); err != nil {
			return err
		}
	}
	return nil
}

// Ready waits until the API server says that it is ready.
func (c *ControlPlane) Ready(ctx context.Context) error {
	clients, err := c.lab.Clientset()
	if err != nil {
		return err
	}
	err = until(ctx, 2*time.Minute, func(ctx context.Context) error {
		for _, p := range []*Process{c.Etcd, c.APIServer} {
			if !p.Running() {
				return fmt.Errorf("%q has ended:\n%s", p.Name, p.tail())
			}
		}
		return clients.CoreV1().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
	if err != nil {
		return fmt.Errorf("control plane: %w", err)
	}
	return nil
}

// define sets up the control plane's programs.
func (c *ControlPlane) define(l *Lab) {
	c.Etcd = l.process(etcdRole, "etcd", c.Host, l.program("etcd"),
		"--name=lab", "--data-dir="+l.path("etcd"), "--log-level=warn",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=lab=http://127.0.0.1:2380",
		// The disk is shared with everything else, and nobody here
		// wants their data back after a power cut.
		"--unsafe-no-fsync")
	c.APIServer = l.process(apiserverRole, "kube-apiserver", c.Host, l.apiserverArgs()...)
	c.ControllerManager = l.process(managerRole, "kube-controller-manager", c.Host, l.managerArgs()...)
	c.Scheduler = l.process(schedulerRole, "kube-scheduler", c.Host, l.program("kube-scheduler"),
		"--kubeconfig="+l.kubeconfig("kube-scheduler"),
		"--authentication-kubeconfig="+l.kubeconfig("kube-scheduler"),
		"--authorization-kubeconfig="+l.kubeconfig("kube-scheduler"),
		"--bind-address=127.0.0.1", "--leader-elect=false", "--profiling=false")
}

func (l *Lab) apiserverArgs() []string {
	return []string{l.program("kube-apiserver"),
		"--etcd-servers=http://127.0.0.1:2379",
		"--advertise-address=" + l.ControlPlane.Addr4.String(),
		"--authorization-mode=Node,RBAC",
		"--client-ca-file=" + l.pki("ca.crt"),
		"--tls-cert-file=" + l.pki("kube-apiserver.crt"),
		"--tls-private-key-file=" + l.pki("kube-apiserver.key"),
		"--kubelet-certificate-authority=" + l.pki("ca.crt"),
		"--kubelet-client-certificate=" + l.pki("kube-apiserver-kubelet.crt"),
		"--kubelet-client-key=" + l.pki("kube-apiserver-kubelet.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--requestheader-client-ca-file=" + l.pki("front-proxy/ca.crt"),
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-signing-key-file=" + l.pki("service-account.key"),
		"--service-account-key-file=" + l.pki("service-account.key"),
		"--service-cluster-ip-range=" + l.Options.serviceCIDRs(),
		"--service-node-port-range=" + l.Options.NodePortRange,
		"--allow-privileged=true",
		"--event-ttl=1h",
		"--profiling=false",
		"--audit-policy-file=" + l.path("config", "audit.yaml"),
		"--audit-log-path=" + l.AuditLog(),
		"--audit-log-maxsize=100", "--audit-log-maxbackup=1",
	}
}

func (l *Lab) managerArgs() []string {
	config := l.kubeconfig("kube-controller-manager")
	return []string{l.program("kube-controller-manager"),
		"--kubeconfig=" + config,
		"--authentication-kubeconfig=" + config,
		"--authorization-kubeconfig=" + config,
		"--root-ca-file=" + l.pki("ca.crt"),
		"--service-account-private-key-file=" + l.pki("service-account.key"),
		"--use-service-account-credentials=true",
		"--cluster-cidr=" + l.Options.podCIDRs(),
		"--allocate-node-cidrs=false",
		"--bind-address=127.0.0.1", "--leader-elect=false", "--profiling=false",
		"--node-monitor-grace-period=" + l.Options.NodeGrace.String(),
		"--node-monitor-period=1s",
		// The defaults make thousands of EndpointSlices a matter of
		// minutes.
		"--kube-api-qps=500", "--kube-api-burst=1000",
	}
}

// configure makes the cluster's keys and the configuration of all its programs.
func (l *Lab) configure() error {
	ca, err := newAuthority(l.path("pki"))
	if err != nil {
		return err
	}
	// The API server signs with it what service accounts identify themselves
	// with.
	if _, err := ca.newKey("service-account"); err != nil {
		return err
	}
	// Nobody has a certificate of it: no API server stands behind this one.
	// Those who ask for its name must find one all the same.
	if _, err := newAuthority(l.pki("front-proxy")); err != nil {
		return err
	}
	service, err := firstAddr(l.Options.ServiceCIDR)
	if err != nil {
		return err
	}
	cp := l.ControlPlane
	errs := []error{
		ca.issue(identity{name: "kube-apiserver", user: "kube-apiserver",
			names: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"},
			addrs: []netip.Addr{cp.Addr4, cp.Addr6, service, netip.MustParseAddr("127.0.0.1")}}),
		ca.issue(identity{name: "kube-apiserver-kubelet", user: apiserverUser}),
		l.user(ca, identity{name: "admin", user: "lab-admin", groups: []string{"system:masters"}}),
		l.user(ca, identity{name: "kube-controller-manager", user: "system:kube-controller-manager"}),
		l.user(ca, identity{name: "kube-scheduler", user: "system:kube-scheduler"}),
		l.user(ca, identity{name: "kube-proxy", user: "system:kube-proxy"}),
		l.writeKubectl(),
		l.writeAudit(),
	}
	cp.define(l)
	for _, n := range l.Nodes {
		errs = append(errs, l.configureNode(ca, n))
		n.define(l)
	}
	return errors.Join(errs...)
}

// user issues a client certificate with a kubeconfig of the same name.
func (l *Lab) user(ca *authority, id identity) error {
	return ca.kubeconfig(l.kubeconfig(id.name), "https://"+l.ControlPlane.APIServerAddr().String(), id)
}

func (l *Lab) writeAudit() error {
	if err := os.MkdirAll(l.path("config"), 0o755); err != nil {
		return err
	}
	return os.WriteFile(l.path("config", "audit.yaml"), audit, 0o644)
}

func (l *Lab) pki(name string) string { return l.path("pki", name) }

func (l *Lab) kubeconfig(user string) string { return l.path("pki", user+".kubeconfig") }

// firstAddr is the address that the API server takes from a range for the
// Service "kubernetes".
func firstAddr(cidr string) (netip.Addr, error) {
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("service range: %w", err)
	}
	return p.Masked().Addr().Next(), nil
}
