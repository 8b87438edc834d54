package lab

import (
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestNodeFiles shows what the programs of a node are told.
func TestNodeFiles(t *testing.T) {
	c := nodeConfig{
		Name: "node-1", Cgroup: "/eclusa-lab-x/node-1", PKI: "/lab/pki", Certificate: "/lab/pki/kubelet-1-server",
		Kubeconfig: "/lab/pki/kube-proxy.kubeconfig", CNI: "/lab/config/node-1/cni", Plugins: "/programs",
		Snapshotter: "overlayfs", PauseImage: PauseImage, ResolvConf: "/lab/config/node-1/resolv.conf",
		PodCIDRs: podCIDRs(Options{}, 0), ClusterCIDR: Options{}.podCIDRs(),
	}
	for name, text := range map[string]string{
		"containerd.toml": containerdTemplate, "kubelet.yaml": kubeletTemplate,
		"kube-proxy.yaml": proxyTemplate, "cni.conflist": cniTemplate,
	} {
		got, err := render(name, text, c)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, got)
		if strings.HasSuffix(name, ".yaml") {
			var any map[string]any
			if err := yaml.UnmarshalStrict(got, &any); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if strings.HasSuffix(name, ".conflist") && !json.Valid(got) {
			t.Errorf("%s: not JSON:\n%s", name, got)
		}
	}
}

// TestEclusaFiles shows what the edges and the cluster are told.
func TestEclusaFiles(t *testing.T) {
	l := &Lab{Options: Options{Dir: "/lab", Nodes: 2, Edges: 2, Clients: 1, NodePortRange: defaultNodePortRange, Lease: 6 * time.Second}}
	l.layOut()
	edge, err := l.fill("edge.yaml", edgeTemplate, l.Edges[1])
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "edge.yaml", edge)
	cloud, err := l.fill("cloud.yaml", ccmTemplate, nil)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "cloud.yaml", cloud)
	values, err := l.fill("values.yaml", valuesTemplate, nil)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "values.yaml", values)
}

// TestRBAC keeps the manifest readable by the lab itself.
func TestRBAC(t *testing.T) {
	objects, err := decode(rbac)
	if err != nil || len(objects) == 0 {
		t.Errorf("got %d objects, %v", len(objects), err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	if _, err := decode([]byte("kind: [")); err == nil {
		t.Error("a broken manifest: no error")
	}
	objects, err := decode([]byte("---\n# nothing\n---\nkind: Namespace\napiVersion: v1\nmetadata: {name: a}\n"))
	if err != nil || len(objects) != 1 || objects[0].GetName() != "a" {
		t.Errorf("got %v, %v; want the one object", objects, err)
	}
}

func TestAuthority(t *testing.T) {
	a, err := newAuthority(filepath.Join(t.TempDir(), "pki"))
	if err != nil {
		t.Fatal(err)
	}
	file := a.file("user.kubeconfig")
	if err := a.kubeconfig(file, "https://192.0.2.1:6443", identity{name: "user", user: "u", addrs: []netip.Addr{netip.MustParseAddr("fd00::1")}}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"https://192.0.2.1:6443", a.file("ca.crt"), a.file("user.crt"), a.file("user.key")} {
		if !strings.Contains(string(text), want) {
			t.Errorf("kubeconfig: got\n%s\nwant %q in it", text, want)
		}
	}
	info, err := os.Stat(a.file("user.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key: got mode %v, %v; want 0600", info.Mode(), err)
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}
