package lab

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"text/template"

	"golang.org/x/sys/unix"
)

// The configuration files of a node's programs, as templates over nodeConfig.
//
//go:embed node/containerd.toml.tmpl
var containerdTemplate string

//go:embed node/kubelet.yaml.tmpl
var kubeletTemplate string

//go:embed node/kube-proxy.yaml.tmpl
var proxyTemplate string

//go:embed node/cni.conflist.tmpl
var cniTemplate string

// nodeConfig is what the templates need to know.
type nodeConfig struct {
	Name        string
	Cgroup      string // of the node, below each hierarchy's root
	PKI         string // directory
	Certificate string // of the kubelet's server, without its ending
	Kubeconfig  string // of kube-proxy
	CNI         string // directory of the network's configuration
	Plugins     string // directory of the network plugins
	Snapshotter string
	PauseImage  string
	ResolvConf  string
	PodCIDRs    []netip.Prefix
	ClusterCIDR string
}

// kubeletSysctls are the settings of the whole machine that kubelet wants and
// otherwise makes by itself. On a node they seem to be made already.
var kubeletSysctls = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

func (l *Lab) nodeFile(n *Node, name string) string { return l.path("config", n.Name, name) }

// configureNode issues the node's certificates and writes its files.
func (l *Lab) configureNode(ca *authority, n *Node) error {
	number := n.Name[len("node-"):]
	kubelet := "kubelet-" + number
	err := errors.Join(
		l.user(ca, identity{name: kubelet, user: "system:node:" + n.Name, groups: []string{"system:nodes"}}),
		ca.issue(identity{name: kubelet + "-server", user: n.Name, names: []string{n.Name}, addrs: l.addrs(n.Host)}))
	if err != nil {
		return err
	}
	c := nodeConfig{
		Name:        n.Name,
		Cgroup:      "/" + l.Options.cgroup() + "/" + n.Name,
		PKI:         l.path("pki"),
		Certificate: l.pki(kubelet + "-server"),
		Kubeconfig:  l.kubeconfig("kube-proxy"),
		CNI:         l.nodeFile(n, "cni"),
		Plugins:     l.programs,
		Snapshotter: snapshotter(l.Options.Dir),
		PauseImage:  PauseImage,
		ResolvConf:  l.nodeFile(n, "resolv.conf"),
		PodCIDRs:    n.PodCIDRs,
		ClusterCIDR: l.Options.podCIDRs(),
	}
	for name, text := range map[string]string{
		"containerd.toml":     containerdTemplate,
		"kubelet.yaml":        kubeletTemplate,
		"kube-proxy.yaml":     proxyTemplate,
		"cni/10-ptp.conflist": cniTemplate,
		"resolv.conf":         "# the lab has no name servers\n",
	} {
		data, err := render(name, text, c)
		if err != nil {
			return err
		}
		file := l.nodeFile(n, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func render(name, text string, c nodeConfig) ([]byte, error) {
	t, err := template.New(name).Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, c); err != nil {
		return nil, fmt.Errorf("file %q: %w", name, err)
	}
	return b.Bytes(), nil
}

// snapshotter is the containerd snapshotter that works on the file system of
// dir: overlayfs cannot be stacked on itself, as in a container.
func snapshotter(dir string) string {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err == nil && fs.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return "native"
	}
	return "overlayfs"
}
