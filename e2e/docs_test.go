package e2e

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/eclusa-lb/eclusa/lab"
)

// Users type what the documentation shows, so every example that is marked for the
// lab is typed, in the order of its page, one shell for a page and machine, and what
// it prints is compared with what the page shows. CONTRIBUTING.md tells the marks.
//
// A newcomer begins with the quickstart and goes on to the pages about installing,
// on the lab that the quickstart brings up; meanwhile an operator goes through the
// other pages on the lab of the other tests.
func TestExamples(t *testing.T) {
	c := inLab(t)
	r := &reader{examples: readExamples(t), typed: map[int]bool{}}
	programs := buildForPeople(t, c)
	t.Run("people", func(t *testing.T) {
		t.Run("newcomer", func(t *testing.T) {
			t.Parallel()
			newcomer{r, t.TempDir()}.run(t)
		})
		t.Run("operator", func(t *testing.T) {
			t.Parallel()
			for _, page := range []string{"docs/troubleshooting.md", "docs/status-page.md", "docs/reference/kubectl-eclusa.md", "docs/migration.md", "docs/operations.md"} {
				t.Run(filepath.Base(page), func(t *testing.T) { r.operate(t, c, programs, page) })
			}
		})
	})
	if !t.Failed() {
		r.complete(t)
	}
}

// A reader has all examples, and knows which of them have been typed.
type reader struct {
	examples []example
	mu       sync.Mutex
	typed    map[int]bool
}

// take returns the examples of a page, or of one of its sections.
func (r *reader) take(t *testing.T, page string, sections ...string) (taken []example) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, e := range r.examples {
		for _, s := range append(sections, "")[:max(1, len(sections))] {
			if e.page == page && (s == "" || s == e.section) {
				taken, r.typed[i] = append(taken, e), true
			}
		}
	}
	if len(taken) == 0 {
		t.Errorf("%s has no examples %q for the lab", page, sections)
	}
	return taken
}

// complete complains about examples that nobody has typed.
func (r *reader) complete(t *testing.T) {
	t.Helper()
	for i, e := range r.examples {
		if !r.typed[i] {
			t.Errorf("%s is marked for the lab, and its page or section is not among those that this test types", e)
		}
	}
}

// buildForPeople returns a folder with what people have in their PATH: kubectl and
// Helm, and those of our programs that are theirs.
func buildForPeople(t *testing.T, c *cluster) string {
	t.Helper()
	dir := t.TempDir()
	kubernetes, err := lab.Build(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	for name, program := range map[string]string{
		"kubectl": filepath.Join(kubernetes, "kubectl"), "helm": c.helms(t)["helm4"],
		"eclusa-edge": c.edge.Process.Args[0], "kubectl-eclusa": buildPlugin(t),
	} {
		if err := os.Symlink(program, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// environment is that of a person's shell. PATH begins with those that stand in for
// what a lab has not, see testdata/machine.
func environment(t *testing.T, path []string, variables ...string) []string {
	t.Helper()
	machine, err := filepath.Abs("testdata/machine")
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	path = append(append(path, machine), os.Getenv("PATH"))
	return append(append(os.Environ(), "PATH="+strings.Join(path, ":"), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8",
		"HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home), variables...)
}

// outside is the command that runs others on the first client.
func outside(t *testing.T, l *lab.Lab) string {
	return "CLIENT=" + strings.Join(l.Client().Command(t.Context()).Args, " ")
}

// typeAll types examples on the operator's machine and on the edge, whose shells
// are opened when they are needed.
func typeAll(t *testing.T, examples []example, operator, edge func() *exec.Cmd) {
	t.Helper()
	shells := map[bool]*terminal{}
	for _, e := range examples {
		if shells[e.edge] == nil {
			shell := operator
			if e.edge {
				shell = edge
			}
			shells[e.edge] = openTerminal(t, shell())
		}
		shells[e.edge].enter(t, e)
	}
}

// operate types a page on the shared lab, in a namespace with a Service "web" that
// is served.
func (r *reader) operate(t *testing.T, c *cluster, programs, page string) {
	ns := c.namespace(t)
	c.deploy(t, ns, "web", 2)
	address := c.serve(t, lab.Service(ns, "web"))[0]
	answers(t, c.client, netip.AddrPortFrom(address, 80))
	c.condition(t, ns, "web", "BackendsHealthy", metav1.ConditionTrue)
	if page == "docs/operations.md" {
		c.prepareOperations(t, ns)
	}
	env := environment(t, []string{programs}, outside(t, c.Lab), "KUBECONFIG="+c.kubeconfigIn(t, ns), "EDGE_LOG="+c.edge.Process.LogPath())
	shell := func(h *lab.Host, argv []string) *exec.Cmd {
		cmd := commandOf(t.Context(), append([]string{"nsenter", "--net=" + h.NetNS(), "unshare", "--mount", "--propagation", "private"}, argv...))
		cmd.Env = env
		return cmd
	}
	typeAll(t, r.take(t, page),
		func() *exec.Cmd { return shell(c.ControlPlane.Host, inCopy(t.TempDir(), t.TempDir(), bash...)) },
		func() *exec.Cmd { return shell(c.edge.Host, bash) })
}

// prepareOperations makes a pool "old" with a Service that has an address of it,
// and lets nothing be left of what the page does.
func (c *cluster) prepareOperations(t *testing.T, ns string) {
	t.Helper()
	const old = "{apiVersion: eclusa.io/v1alpha1, kind: AddressPool, metadata: {name: old}, spec: {addresses: [172.30.0.192/29], autoAssign: false}}"
	if err := c.Apply(t.Context(), []byte(old)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := poll(ctx, 20*time.Second, func() error { return c.withoutServices(ctx, ns) }); err != nil {
			t.Error(err)
		}
		for _, args := range [][]string{
			{"addresspool", "old", "new"}, {"clusterrole,clusterrolebinding", "log-levels"},
			{"serviceaccount", "log-levels", "-n", lab.ReleaseNamespace},
		} {
			t.Log(c.kubectl(ctx, append([]string{"delete", "--ignore-not-found"}, args...)...))
		}
		c.ensureCCM(t) // draining a node has moved one
	})
	s := lab.Service(ns, "of-old-pool")
	s.Annotations = map[string]string{"eclusa.io/address-pool": "old"}
	s.Spec.Selector = map[string]string{"app": "web"}
	c.serve(t, s)
}

// kubeconfigIn is an administrator's, whose namespace is that one.
func (c *cluster) kubeconfigIn(t *testing.T, ns string) string {
	t.Helper()
	config, err := clientcmd.LoadFromFile(c.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range config.Contexts {
		k.Namespace = ns
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, file); err != nil {
		t.Fatal(err)
	}
	return file
}

// newcomersLab is where `make up` has its lab.
const newcomersLab = "/var/tmp/eclusa-lab-eclusa"

// A newcomer has a checkout and nothing else, and lets the quickstart bring a lab
// up. For the part about a cluster of one's own, and for the page about installing,
// this lab is that cluster, after eclusa was removed from it as the chart's README
// says.
type newcomer struct {
	*reader
	dir string
}

func (n newcomer) run(t *testing.T) {
	if _, err := os.Stat(newcomersLab); err == nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("there is a lab in %s already", newcomersLab)
		}
		t.Skipf("there is a lab in %s already: this test types make up, and make down, and would end it", newcomersLab)
	}
	t.Cleanup(func() {
		if t.Failed() {
			tellLogs(t, filepath.Join(newcomersLab, "log"))
		}
		if err := lab.Clean(newcomersLab); err != nil {
			t.Error(err)
		}
	})
	// One platform suffices, and two cores can build two things at once.
	build := []string{"PLATFORMS=linux/amd64", "MAKEFLAGS=--jobs=2 --no-print-directory"}
	env := environment(t, nil, build...)
	first := openTerminal(t, n.shell(t, t.TempDir(), env))
	for _, e := range n.take(t, "docs/quickstart.md", "On this machine: a real cluster in network namespaces") {
		first.enter(t, e)
	}

	l, err := lab.Open(newcomersLab)
	if err != nil {
		t.Fatal(err)
	}
	n.prepare(t, l)
	home := filepath.Join(n.dir, "edge", "home")
	checkout, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	env = environment(t, []string{newcomersLab, filepath.Join(checkout, "bin")}, append(build, outside(t, l), "EDGE_HOME="+home)...)
	t.Run("README.md of the chart", func(t *testing.T) { n.farewell(t, l, env, "Upgrade", "Uninstall") })
	// The edge of the lab is off its machine, which is to become another one.
	if err := l.Edges[0].Process.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, page := range []struct {
		name     string
		sections []string
	}{{"quickstart.md", []string{"With your own cluster"}}, {"installation.md", nil}} {
		t.Run(page.name, func(t *testing.T) {
			if err := os.RemoveAll(filepath.Join(n.dir, "edge")); err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(home, 0o700); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if t.Failed() {
					n.tell(t, l)
				}
			})
			typeAll(t, n.take(t, "docs/"+page.name, page.sections...),
				func() *exec.Cmd { return n.shell(t, t.TempDir(), env) },
				func() *exec.Cmd { return edgeShell(t, l, filepath.Join(n.dir, "edge")) })
			if page.name != "installation.md" { // whose lab goes down anyway
				n.farewell(t, l, env, "Uninstall")
			}
		})
	}
	for _, e := range n.take(t, "docs/quickstart.md", "Take it down") {
		first.enter(t, e)
	}
}

// farewell types how eclusa is taken out of a cluster, and takes its application
// out as well.
func (n newcomer) farewell(t *testing.T, l *lab.Lab, env []string, sections ...string) {
	t.Helper()
	dir := t.TempDir()
	n.put(t, l.Values(), filepath.Join(dir, "upper", "values.yaml"))
	typeAll(t, n.take(t, "charts/eclusa/README.md", sections...), func() *exec.Cmd { return n.shell(t, dir, env) }, nil)
	if out, err := exec.CommandContext(t.Context(), l.Kubectl(), "delete", "deployment", "web").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// edgeShell is a shell on a fresh machine in the place of the lab's edge.
func edgeShell(t *testing.T, l *lab.Lab, dir string) *exec.Cmd {
	cmd := commandOf(t.Context(), append([]string{"nsenter", "--net=" + l.Edges[0].NetNS()}, onMachine(dir, bash...)...))
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}
	return cmd
}

// shell is that of the newcomer, in a copy of the checkout; what was built is in all
// copies.
func (n newcomer) shell(t *testing.T, dir string, env []string) *exec.Cmd {
	t.Helper()
	argv := inCopy(dir, filepath.Join(n.dir, "bin"), bash...)
	cmd := commandOf(t.Context(), append([]string{"unshare", "--mount", "--propagation", "private"}, argv...))
	cmd.Env = env
	return cmd
}

func (n newcomer) put(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// prepare makes of the lab what the pages about installing take for granted: a
// machine with the address 192.0.2.10 in front of the cluster, and images that nodes
// could pull from elsewhere.
func (n newcomer) prepare(t *testing.T, l *lab.Lab) {
	t.Helper()
	for ref, program := range map[string]string{
		"docker.io/nginxinc/nginx-unprivileged:1.29":              "workload",
		"registry.example.com/eclusa-cloud-controller-manager:v1": lab.ManagerName,
	} {
		image := filepath.Join(n.dir, program+".tar")
		if err := lab.WriteImage(image, ref, filepath.Join(newcomersLab, "bin", program)); err != nil {
			t.Fatal(err)
		}
		if err := l.Import(t.Context(), image); err != nil {
			t.Fatal(err)
		}
	}
	for _, cmd := range []*exec.Cmd{
		l.Edges[0].Command(t.Context(), "ip", "address", "add", "192.0.2.10/24", "dev", "eth0"),
		l.Fabric.Command(t.Context(), "ip", "address", "add", "192.0.2.1/24", "dev", "lan"),
	} {
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
		}
	}
}

// tell logs what somebody who has to find the fault will want to see.
func (n newcomer) tell(t *testing.T, l *lab.Lab) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, args := range [][]string{{"get", "pods,services,edges,addresspools", "-A", "-o", "wide"}, {"describe", "services,edges,addresspools"},
		{"logs", "-n", lab.ReleaseNamespace, "-l", "app.kubernetes.io/component=controller-manager", "--tail=30", "--prefix"}} {
		out, err := exec.CommandContext(ctx, l.Kubectl(), args...).CombinedOutput()
		t.Logf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// tellLogs logs the ends of all logs in a folder.
func tellLogs(t *testing.T, dir string) {
	files, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		t.Error(err)
	}
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil {
			t.Logf("the end of %s:\n%s", filepath.Base(file), data[max(0, len(data)-2000):])
		}
	}
}
