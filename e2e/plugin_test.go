package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/yaml"

	"github.com/eclusa-lb/eclusa/lab"
	"github.com/eclusa-lb/eclusa/report"
)

// People ask the leader with the plugin: an administrator with a certificate,
// others with tokens and exactly the roles that the chart has for them. Who lacks
// one is told so, and gets what Conditions say. The leader dies, and the next is
// found.
func TestPlugin(t *testing.T) {
	c := inLab(t)
	ns := c.namespace(t)
	c.deploy(t, ns, "web", 2)
	address := c.serve(t, lab.Service(ns, "web"))[0]
	answers(t, c.client, netip.AddrPortFrom(address, 80))
	c.condition(t, ns, "web", "BackendsHealthy", metav1.ConditionTrue)

	p := plugin{c: c, program: buildPlugin(t)}
	admin := c.Kubeconfig()
	viewer := c.person(t, ns, "viewer", "eclusa-viewer", "kube-system/eclusa-viewer", "kube-system/eclusa-leader-access")
	for name, who := range map[string]string{"administrator": admin, "viewer": viewer} {
		t.Run(name, func(t *testing.T) { p.as(who).asksLeader(t, ns, address) })
	}
	t.Run("viewer without the way to the leader", func(t *testing.T) {
		halfway := c.person(t, ns, "halfway", "eclusa-viewer", "kube-system/eclusa-viewer")
		p.as(halfway).fallsBack(t, ns, address, "pods", "forbidden")
		blind := c.person(t, ns, "blind", "eclusa-viewer")
		p.as(blind).fallsBack(t, ns, address, "its Lease kube-system/eclusa-cloud-controller-manager cannot be read", "forbidden")
	})
	t.Run("stranger", func(t *testing.T) { p.as(c.person(t, ns, "stranger")).isTurnedAway(t, ns) })
	t.Run("supporter", func(t *testing.T) {
		supporter := c.person(t, ns, "supporter", "eclusa-viewer", "eclusa-supporter", "kube-system/eclusa-supporter", "kube-system/eclusa-viewer", "kube-system/eclusa-leader-access")
		p.as(supporter).bundles(t, ns)
	})
	p.as(viewer).findsNextLeader(t, ns, address)
}

// buildPlugin builds kubectl-eclusa.
func buildPlugin(t *testing.T) string {
	t.Helper()
	file, err := builtPlugin()
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// builtPlugin is the plugin that all tests of a run share, in its folder.
var builtPlugin = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "e2e-plugin-")
	if err != nil {
		return "", err
	}
	atEnd(func() error { return os.RemoveAll(dir) })
	file := filepath.Join(dir, "kubectl-eclusa")
	cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", file, "../cmd/kubectl-eclusa")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the plugin: %w\n%s", err, out)
	}
	return file, nil
})

// person makes a ServiceAccount, binds it to roles of the chart, those with a
// namespace there and others in the whole cluster, and returns its kubeconfig.
func (c *cluster) person(t *testing.T, ns, name string, roles ...string) string {
	t.Helper()
	ctx := t.Context()
	if _, err := c.kube.CoreV1().ServiceAccounts(ns).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, role := range roles {
		c.bind(t, role, rbacv1.Subject{Kind: "ServiceAccount", Namespace: ns, Name: name})
	}
	token, err := c.kube.CoreV1().ServiceAccounts(ns).CreateToken(ctx, name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.LoadFromFile(c.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	config.AuthInfos = map[string]*clientcmdapi.AuthInfo{name: {Token: token.Status.Token}}
	for _, k := range config.Contexts {
		k.AuthInfo = name
	}
	file := filepath.Join(t.TempDir(), name)
	if err := clientcmd.WriteToFile(*config, file); err != nil {
		t.Fatal(err)
	}
	return file
}

// bind gives a role, ROLE or NAMESPACE/ROLE, until the test ends.
func (c *cluster) bind(t *testing.T, role string, to rbacv1.Subject) {
	t.Helper()
	namespace, name, local := strings.Cut(role, "/")
	if !local {
		name = role
	}
	meta := metav1.ObjectMeta{Name: "e2e-" + to.Name + "-" + name}
	ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}
	var err error
	remove := func(ctx context.Context) error {
		return c.kube.RbacV1().ClusterRoleBindings().Delete(ctx, meta.Name, metav1.DeleteOptions{})
	}
	if local {
		ref.Kind = "Role"
		_, err = c.kube.RbacV1().RoleBindings(namespace).Create(t.Context(), &rbacv1.RoleBinding{ObjectMeta: meta, RoleRef: ref, Subjects: []rbacv1.Subject{to}}, metav1.CreateOptions{})
		remove = func(ctx context.Context) error {
			return c.kube.RbacV1().RoleBindings(namespace).Delete(ctx, meta.Name, metav1.DeleteOptions{})
		}
	} else {
		_, err = c.kube.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{ObjectMeta: meta, RoleRef: ref, Subjects: []rbacv1.Subject{to}}, metav1.CreateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// A plugin is kubectl-eclusa in the hands of somebody.
type plugin struct {
	c                   *cluster
	program, kubeconfig string
}

func (p plugin) as(kubeconfig string) plugin {
	p.kubeconfig = kubeconfig
	return p
}

// run runs it on the control plane's host, and returns what it printed and with
// what it exited.
func (p plugin) run(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := p.c.ControlPlane.Command(ctx, append([]string{p.program, "--kubeconfig", p.kubeconfig}, args...)...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), complaint.String(), cmd.ProcessState.ExitCode()
}

// says runs it, wants it to exit with the code and print every text.
func (p plugin) says(t *testing.T, code int, args []string, texts ...string) (stdout, stderr string) {
	t.Helper()
	stdout, stderr, got := p.run(t, args...)
	if got != code {
		t.Errorf("%v: exit code %d, want %d; it printed:\n%s%s", args, got, code, stdout, stderr)
	}
	for _, text := range texts {
		if !strings.Contains(stdout, text) {
			t.Errorf("%v: want %q in:\n%s%s", args, text, stdout, stderr)
		}
	}
	return stdout, stderr
}

// status asks for JSON, as programs do.
func (p plugin) status(t *testing.T, ns string) (s report.Status, stderr string) {
	t.Helper()
	stdout, stderr, _ := p.run(t, "status", "--namespace", ns, "--all", "-o", "json")
	if err := json.Unmarshal([]byte(stdout), &s); err != nil {
		t.Fatalf("status: %v; it printed:\n%s%s", err, stdout, stderr)
	}
	return s, stderr
}

// asksLeader does everything that only the leader knows.
func (p plugin) asksLeader(t *testing.T, ns string, address netip.Addr) {
	s, stderr := p.status(t, ns)
	leader := p.c.leader(t)
	if stderr != "" || s.Remark != "" || !strings.HasPrefix(s.Leader, leader.Name+"_") {
		t.Errorf("status is from %q, want it from %s; stderr: %s", s.Leader, leader.Name, stderr)
	}
	if len(s.Services) != 1 || s.Services[0].Name != "web" || s.Services[0].Up != len(p.c.Nodes) {
		t.Errorf("status has the Services %+v, want web with %d nodes up", s.Services, len(p.c.Nodes))
	}
	p.says(t, 0, []string{"status", "--namespace", ns}, "all is well", p.c.edge.Name, "default", leader.Name)
	p.says(t, 0, []string{"explain", ns + "/web"}, "nothing is wrong", address.String(), p.c.edge.Name, p.c.Nodes[0].Name, p.c.Nodes[1].Name, "up")
	p.plans(t, ns)
	node := p.c.Nodes[0].Name
	p.says(t, 0, []string{"drain", node, "--simulate"}, "nothing was changed; draining node "+node+" leaves every Service with at least one", ns+"/web")
	o, err := p.c.kube.CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, drained := o.Labels[corev1.LabelNodeExcludeBalancers]; drained {
		t.Errorf("node %q is drained after a simulation", node)
	}
	p.says(t, 1, []string{"drain", p.c.edge.Name, "--simulate"}, "without any", ns+"/web")
	p.says(t, 4, []string{"explain", ns + "/nothing"})
}

// plans lets the plugin foresee the address of a Service, and looks whether it
// comes true.
func (p plugin) plans(t *testing.T, ns string) {
	t.Helper()
	next := lab.Service(ns, "next")
	next.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}
	manifest, err := yaml.Marshal(next)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "next.yaml")
	if err := os.WriteFile(file, manifest, 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, _ := p.says(t, 0, []string{"plan", "-f", file, "-o", "json"})
	var plan report.Plan
	if err := json.Unmarshal([]byte(stdout), &plan); err != nil {
		t.Fatalf("plan: %v in:\n%s", err, stdout)
	}
	if len(plan.Services) != 1 || len(plan.Services[0].Addresses) == 0 {
		t.Fatalf("plan has the Services %+v, want next with an address", plan.Services)
	}
	got := p.c.serve(t, next)[0].String()
	if want := plan.Services[0].Addresses[0].Address; got != want {
		t.Errorf("the Service got %s, planned was %s", got, want)
	}
	p.c.delete(t, ns, "next")
	eventually(t, 10*time.Second, func() error {
		services, err := p.c.kube.CoreV1().Services(ns).List(t.Context(), metav1.ListOptions{})
		if err == nil && len(services.Items) > 1 {
			err = errors.New("the Service is still there")
		}
		return err
	})
}

// fallsBack wants one line that has every reason, and what the objects tell.
func (p plugin) fallsBack(t *testing.T, ns string, address netip.Addr, reasons ...string) {
	t.Helper()
	for _, args := range [][]string{{"status", "--namespace", ns, "--all"}, {"explain", ns + "/web"}} {
		_, stderr := p.says(t, 0, args, "from the objects in the cluster", address.String())
		if !strings.HasPrefix(stderr, "without the leader: ") || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%v: stderr is %q, want one line that begins with %q", args, stderr, "without the leader: ")
		}
		for _, reason := range reasons {
			if !strings.Contains(stderr, reason) {
				t.Errorf("%v: stderr is %q, want %q in it", args, stderr, reason)
			}
		}
	}
}

// isTurnedAway wants the API server's refusal and its exit code.
func (p plugin) isTurnedAway(t *testing.T, ns string) {
	for _, args := range [][]string{{"status"}, {"explain", ns + "/web"}, {"drain", "node/" + p.c.Nodes[0].Name}, {"support-bundle", "--file", filepath.Join(t.TempDir(), "b.tar.gz")}} {
		stdout, stderr := p.says(t, 3, args)
		if stdout != "" || !strings.Contains(stderr, "forbidden") {
			t.Errorf("%v: printed %q and %q, want nothing but who is forbidden what", args, stdout, stderr)
		}
	}
}

// bundles makes a support bundle and looks for secrets in it.
func (p plugin) bundles(t *testing.T, ns string) {
	canary := "canary-of-the-secret"
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "canary"}, StringData: map[string]string{"password": canary}}
	if _, err := p.c.kube.CoreV1().Secrets(ns).Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(filepath.Join(p.c.EdgePKI(), lab.ClusterName+".key"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "bundle.tar.gz")
	if _, stderr := p.says(t, 0, []string{"support-bundle", "--file", file}); stderr != "" {
		t.Errorf("the supporter's rights do not suffice for everything: %s", stderr)
	}
	files := untar(t, file)
	for _, name := range []string{"version.txt", "status.yaml", "services.yaml", "edges.yaml", "addresspools.yaml", "nodes.yaml", "lease.yaml",
		"manager/deployments.yaml", "manager/configmaps.yaml", "manager/logs/kube-system/" + p.c.leader(t).Name + "/controller-manager.log"} {
		if len(files["bundle/"+name]) == 0 {
			t.Errorf("bundle has no %s", name)
		}
	}
	pem := bytes.Split(bytes.TrimSpace(key), []byte("\n"))
	for name, content := range files {
		for _, secret := range []string{canary, base64.StdEncoding.EncodeToString([]byte(canary)), "PRIVATE KEY", "kind: Secret\n",
			string(pem[1]), base64.StdEncoding.EncodeToString(key)[:60]} {
			if strings.Contains(content, secret) {
				t.Errorf("%s has a secret in it: %s", name, secret)
			}
		}
	}
}

func untar(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	gz, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(gz); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(data)
	}
}

// findsNextLeader kills the leader: nobody mistakes what its kubelet starts in its
// place for it, and who leads next is asked.
func (p plugin) findsNextLeader(t *testing.T, ns string, address netip.Addr) {
	before, _ := p.status(t, ns)
	t.Cleanup(func() { p.c.ensureCCM(t) })
	if err := p.c.leader(t).Kill(); err != nil {
		t.Fatal(err)
	}
	p.fallsBack(t, ns, address)
	eventually(t, 30*time.Second, func() error {
		s, stderr := p.status(t, ns)
		if !strings.Contains(stderr, "the certificate there is not the one that the Lease names; nothing was sent to it") {
			return fmt.Errorf("a successor in the same pod is taken for the leader %s: status is from %q, stderr: %s", before.Leader, s.Leader, stderr)
		}
		return nil
	})
	// Other tests wait until the Lease has expired.
	leases := p.c.kube.CoordinationV1().Leases(lab.ReleaseNamespace)
	if _, err := leases.Patch(t.Context(), lab.ManagerName, types.MergePatchType, []byte(`{"spec":{"holderIdentity":""}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error {
		s, stderr := p.status(t, ns)
		if s.Leader == "" || s.Leader == before.Leader || s.Remark != "" {
			return fmt.Errorf("no other leader answers: status is from %q, was from %q; stderr: %s", s.Leader, before.Leader, stderr)
		}
		return nil
	})
	eventually(t, 10*time.Second, func() error {
		s, stderr := p.status(t, ns)
		if len(s.Services) != 1 || s.Services[0].Up != len(p.c.Nodes) || s.Leader == "" {
			return fmt.Errorf("the next leader tells of the Services %+v, want web with %d nodes up; stderr: %s", s.Services, len(p.c.Nodes), stderr)
		}
		return nil
	})
}
