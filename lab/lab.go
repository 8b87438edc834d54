// Package lab brings up a real Kubernetes cluster on one machine, for the
// demonstration, the end-to-end tests and the benchmarks.
//
// Hosts are sets of namespaces: a control plane (etcd, kube-apiserver,
// kube-controller-manager, kube-scheduler), nodes (containerd, kubelet,
// kube-proxy), edges (eclusa-edge) and clients. Control plane, nodes and edges
// share the subnet lan, clients are on the subnet wan, and a host named fabric
// routes between the two. Nothing has a link to the network of the machine, so
// labs neither disturb it nor each other, and all use the same addresses:
//
//	control-plane  172.30.0.10      fd00:30::10
//	node-N         172.30.0.(20+N)  fd00:30::(20+N)
//	edge-N         172.30.0.(100+N) fd00:30::(100+N)
//	client-N       172.31.0.(9+N)   fd00:31::(9+N)
//	addresses of load balancers: PoolRange4, PoolRange6, in lan
//
// eclusa is installed as users do it: the chart with Helm, its image under kubelet
// with the rights of the chart's ServiceAccount, edges as programs on hosts of
// their own. A lab without nodes can run no pods; there the manager is a process
// on the control plane's host, with a token of the same account.
//
// The programs are built from their Go modules once, see Build. Root is needed
// for the namespaces, and a few Debian packages, which are installed if absent.
//
// A lab leaves nothing behind. Everything outside its directory is recorded in
// a ledger before it is made, and a watcher process cleans up when the process
// that called Up dies without having called Down, even if it was killed.
package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/eclusa-lb/eclusa/lab/ledger"
)

// Lab is a running lab. Its fields are set when Up or Open returns and do not
// change.
type Lab struct {
	// Options are those that it was brought up with, defaults filled in.
	Options Options
	// Fabric is the router between the two subnets.
	Fabric *Host
	// ControlPlane is always there.
	ControlPlane *ControlPlane
	// Nodes, Edges and Clients are numbered from 1 in their names.
	Nodes   []*Node
	Edges   []*Edge
	Clients []*Host
	// Manager is eclusa's cloud controller manager.
	Manager *Manager

	programs string // the directory of the Kubernetes programs
	helms    string // the directory of Helm
	say      func(format string, args ...any)
	guard    *guard

	mu     sync.Mutex
	ledger *ledger.Ledger
	down   bool
	all    []*Process // every process, for the state file
	added  int        // edges, beside those of the plan
}

// Up brings a lab up. When it returns an error, or ctx ends meanwhile,
// everything has been taken down again. The lab lives until Down is called or
// this process ends; see Detach.
func Up(ctx context.Context, o Options) (*Lab, error) {
	if err := privileged(); err != nil {
		return nil, err
	}
	o, err := o.defaulted()
	if err != nil {
		return nil, err
	}
	if !hasIPv6() {
		o.SingleStack = true
	}
	n := narrate(o.Log)
	if err := installPackages(ctx, n); err != nil {
		return nil, err
	}
	programs, err := build(ctx, n, kubernetesBundle)
	if err != nil {
		return nil, err
	}
	helms := ""
	if !o.NoEclusa {
		if helms, err = build(ctx, n, helmBundle, "helm4"); err != nil {
			return nil, err
		}
	}
	l, err := prepare(ctx, o, n, programs)
	if err != nil {
		return nil, err
	}
	l.helms = helms
	if err := l.up(ctx); err != nil {
		return nil, errors.Join(err, l.Down())
	}
	return l, nil
}

// prepare makes the lab's directory ready and starts the watcher: from here on
// the lab will be cleaned up whatever happens.
func prepare(ctx context.Context, o Options, n *narrator, programs string) (*Lab, error) {
	if old, err := ledger.Read(o.Dir); err == nil {
		if old.Running() && (old.Detached || old.Owner.Running()) {
			return nil, fmt.Errorf("lab in %q: is up already; take it down first", o.Dir)
		}
		if err := ledger.Clean(o.Dir); err != nil {
			return nil, err
		}
		if err := os.MkdirAll(o.LogDir, 0o755); err != nil {
			return nil, err
		}
	}
	l := &Lab{Options: o, programs: programs, say: n.say}
	book, err := ledger.New(o.Dir)
	if err != nil {
		return nil, err
	}
	book.Cgroups = []string{o.cgroup()}
	for _, name := range contents {
		book.Paths = append(book.Paths, filepath.Join(o.Dir, name))
	}
	l.ledger = book
	if err := book.Write(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(l.path("bin"), 0o755); err != nil {
		return nil, errors.Join(err, l.Down())
	}
	if err := buildOwn(ctx, n, o, l.path("bin")); err != nil {
		return nil, errors.Join(err, l.Down())
	}
	if l.guard, err = startGuard(l.bin("anchor"), o.Dir); err != nil {
		return nil, errors.Join(err, l.Down())
	}
	if err := l.record(func(b *ledger.Ledger) { b.Watcher = l.guard.process }); err != nil {
		return nil, errors.Join(err, l.Down())
	}
	return l, nil
}

// contents are what a lab keeps in its directory.
var contents = []string{"bin", "etcd", "host", "image", "kubectl", "helm", "kubeconfig", "log", "pki", "config", "eclusa", "package", stateFile}

func (l *Lab) up(ctx context.Context) error {
	o := l.Options
	l.say("lab %q in %s: %s, %s, %s", o.Name, o.Dir,
		count(o.Nodes, "node", "nodes"), count(o.Edges, "edge", "edges"), count(o.Clients, "client", "clients"))
	if err := l.makeHosts(); err != nil {
		return err
	}
	if err := l.configure(); err != nil {
		return err
	}
	if err := l.startCluster(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.startNodes(ctx) })
	if !l.Options.NoEclusa {
		g.Go(func() error { return l.startEclusa(ctx) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return l.save()
}

// makeHosts makes the fabric and all hosts of the plan, connected.
func (l *Lab) makeHosts() error {
	l.layOut()
	if err := l.boot(l.Fabric, hostFiles{}); err != nil {
		return err
	}
	if err := l.makeFabric(); err != nil {
		return err
	}
	var g errgroup.Group
	for _, p := range plan(l.Options) {
		g.Go(func() error { return l.power(l.Host(p.name), p) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	l.say("their hosts and the network are there")
	return l.routePods()
}

// layOut fills in the hosts of the plan, none of them booted.
func (l *Lab) layOut() {
	l.Fabric = &Host{Name: "fabric", lab: l}
	l.Manager = &Manager{lab: l}
	for _, p := range plan(l.Options) {
		h := l.host(p)
		switch p.kind {
		case controlPlaneKind:
			l.ControlPlane = &ControlPlane{Host: h}
		case nodeKind:
			l.Nodes = append(l.Nodes, &Node{Host: h, PodCIDRs: podCIDRs(l.Options, len(l.Nodes))})
		case edgeKind:
			l.Edges = append(l.Edges, &Edge{Host: h})
		case clientKind:
			l.Clients = append(l.Clients, h)
		}
	}
}

// host is the one of a place, not booted.
func (l *Lab) host(p place) *Host {
	h := &Host{Name: p.name, lab: l, machine: p.kind == edgeKind && l.Options.EdgePackages}
	h.Addr4, h.Addr6 = p.subnet.addrs(p.number)
	return h
}

// Hosts are all hosts but the fabric.
func (l *Lab) Hosts() []*Host {
	hosts := []*Host{l.ControlPlane.Host}
	for _, n := range l.Nodes {
		hosts = append(hosts, n.Host)
	}
	for _, e := range l.Edges {
		hosts = append(hosts, e.Host)
	}
	return append(hosts, l.Clients...)
}

// Host finds a host by its name, the fabric included; nil if there is none.
func (l *Lab) Host(name string) *Host {
	for _, h := range append(l.Hosts(), l.Fabric) {
		if h.Name == name {
			return h
		}
	}
	return nil
}

// Client is the first client; nil in a lab without one.
func (l *Lab) Client() *Host {
	if len(l.Clients) == 0 {
		return nil
	}
	return l.Clients[0]
}

// Detach lets the lab go on when this process ends. Open and Down work from any
// process afterwards.
func (l *Lab) Detach() error {
	if err := l.record(func(b *ledger.Ledger) { b.Detached = true }); err != nil {
		return err
	}
	return l.guard.dismiss()
}

// Down takes the lab down completely: processes, mounts, namespaces, control
// groups and files. It may be repeated.
func (l *Lab) Down() error {
	start := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		return nil // the directory may be another lab's by now
	}
	err := ledger.Clean(l.Options.Dir)
	if l.guard != nil {
		err = errors.Join(err, l.guard.dismiss())
	}
	if err != nil {
		return fmt.Errorf("take lab %q down: %w", l.Options.Name, err)
	}
	l.down = true
	l.say("lab %q is down, in %.1f s", l.Options.Name, time.Since(start).Seconds())
	return nil
}

// record changes the ledger, before what it names is made or right after.
func (l *Lab) record(change func(*ledger.Ledger)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(l.ledger)
	return l.ledger.Write()
}

func (l *Lab) path(parts ...string) string {
	return filepath.Join(append([]string{l.Options.Dir}, parts...)...)
}

// bin is a program of this module, program one of Kubernetes.
func (l *Lab) bin(name string) string     { return l.path("bin", name) }
func (l *Lab) program(name string) string { return filepath.Join(l.programs, name) }

func (l *Lab) logPath(name string) string { return filepath.Join(l.Options.LogDir, name+".log") }

// addrs are the addresses of h that the cluster uses.
func (l *Lab) addrs(h *Host) []netip.Addr {
	if l.Options.SingleStack {
		return []netip.Addr{h.Addr4}
	}
	return []netip.Addr{h.Addr4, h.Addr6}
}

// Processes are all programs that the lab runs, in the order in which they were
// set up.
func (l *Lab) Processes() []*Process {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all)
}
