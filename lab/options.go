package lab

import (
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Options say what a lab consists of. The zero value is a useful lab: a control
// plane, two nodes, one edge and one client, dual-stack.
type Options struct {
	// Name is part of every name that the lab leaves visible on the machine,
	// so that several labs can run at once. A random one if empty.
	Name string

	// Nodes, Edges and Clients are the numbers of hosts of each kind: 2, 1
	// and 1 if zero, none if negative. A lab without nodes has a control
	// plane and nothing that runs pods.
	Nodes, Edges, Clients int

	// Dir holds the lab's files: configuration, keys, logs, images. A new
	// temporary directory if empty; Down removes it either way.
	Dir string

	// LogDir takes the logs of all programs, for those who want to keep
	// them. Dir/log if empty, which goes with the lab.
	LogDir string

	// Log receives the narration, a line with the elapsed time for each
	// step. Nothing is narrated if nil.
	Log io.Writer

	// ServiceCIDR and NodePortRange are for tests with more Services than
	// the defaults hold: 10.96.0.0/16 and 30000-32767.
	ServiceCIDR, NodePortRange string

	// SingleStack leaves IPv6 out of the cluster. The hosts have IPv6
	// addresses all the same.
	SingleStack bool

	// NoEclusa brings up the cluster alone, without edges and cloud
	// controller manager.
	NoEclusa bool

	// EdgePackages installs the edges from their Debian package, each on a
	// machine with a systemd of its own. Otherwise they are programs, which can
	// be ended and started one by one.
	EdgePackages bool

	// NodeGrace is how long Kubernetes waits for a silent kubelet before it
	// takes the node for dead: 50 s, Kubernetes' own default, if zero.
	NodeGrace time.Duration

	// Lease is for how long a manager leads that is not heard of any more:
	// 15 s, Kubernetes' own default, if zero. Whole seconds.
	Lease time.Duration

	// EdgeBinary and CCMBinary are run as eclusa-edge and
	// eclusa-cloud-controller-manager; built from this module if empty. The
	// latter must be static, since it is all that is in its image.
	EdgeBinary, CCMBinary string
}

const (
	defaultServiceCIDR   = "10.96.0.0/16"
	defaultNodePortRange = "30000-32767"
	defaultNodeGrace     = 50 * time.Second
	defaultLease         = 15 * time.Second
	podCIDR4             = "10.244.0.0/16"
	podCIDR6             = "fd00:244::/48"
	serviceCIDR6         = "fd00:96::/112"
)

var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,30}$`)

// defaulted returns o with every field filled in, its directory made.
func (o Options) defaulted() (Options, error) {
	if o.Name == "" {
		o.Name = strings.ToLower(rand.Text()[:6])
	}
	if !validName.MatchString(o.Name) {
		return o, fmt.Errorf("lab name %q: want lower case letters, digits and dashes", o.Name)
	}
	o.Nodes, o.Edges, o.Clients = number(o.Nodes, 2), number(o.Edges, 1), number(o.Clients, 1)
	if o.NoEclusa {
		o.Edges = 0
	}
	if o.Nodes > maxNodes || o.Edges > maxEdges || o.Clients > maxClients {
		return o, fmt.Errorf("lab %q: at most %d nodes, %d edges and %d clients", o.Name, maxNodes, maxEdges, maxClients)
	}
	if o.ServiceCIDR == "" {
		o.ServiceCIDR = defaultServiceCIDR
	}
	if o.NodePortRange == "" {
		o.NodePortRange = defaultNodePortRange
	}
	if o.NodeGrace == 0 {
		o.NodeGrace = defaultNodeGrace
	}
	if o.Lease == 0 {
		o.Lease = defaultLease
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	return o.withDir()
}

func (o Options) withDir() (Options, error) {
	if o.Dir == "" {
		dir, err := os.MkdirTemp("", "eclusa-lab-"+o.Name+"-")
		if err != nil {
			return o, err
		}
		o.Dir = dir
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return o, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return o, err
	}
	// Mount points are compared by their real names.
	if o.Dir, err = filepath.EvalSymlinks(dir); err != nil {
		return o, err
	}
	if o.LogDir == "" {
		o.LogDir = filepath.Join(o.Dir, "log")
	}
	if o.LogDir, err = filepath.Abs(o.LogDir); err != nil {
		return o, err
	}
	return o, os.MkdirAll(o.LogDir, 0o755)
}

// number applies the rule of Options: zero is the default, negative is none.
func number(n, byDefault int) int {
	switch {
	case n == 0:
		return byDefault
	case n < 0:
		return 0
	}
	return n
}

// serviceCIDRs is the value of the API server's flag.
func (o Options) serviceCIDRs() string {
	if o.SingleStack {
		return o.ServiceCIDR
	}
	return o.ServiceCIDR + "," + serviceCIDR6
}

// podCIDRs is the range of all pods of the cluster.
func (o Options) podCIDRs() string {
	if o.SingleStack {
		return podCIDR4
	}
	return podCIDR4 + "," + podCIDR6
}

// leaseFlags are those of the manager for a Lease that is not Kubernetes' own, in
// its proportions.
func (o Options) leaseFlags() []string {
	if o.Lease == defaultLease {
		return nil
	}
	return []string{
		"--leader-elect-lease-duration=" + o.Lease.String(),
		"--leader-elect-renew-deadline=" + (o.Lease * 2 / 3).String(),
		"--leader-elect-retry-period=" + (o.Lease * 2 / 15).String(),
	}
}
