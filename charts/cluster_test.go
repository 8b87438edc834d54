package charts

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// A cluster is an API server that only answers what Helm asks before it writes
// anything: what kinds there are, and what a few objects are like.
type cluster struct {
	server *httptest.Server
	kinds  map[string][]resource // by group and version
	// objects are those that there are, by path; all others are not found.
	objects map[string]any
}

// resource is a kind as discovery tells it.
type resource struct {
	Name       string   `json:"name"`
	Kind       string   `json:"kind"`
	Namespaced bool     `json:"namespaced"`
	Verbs      []string `json:"verbs"`
}

func kind(name, kind string, namespaced bool) resource {
	return resource{name, kind, namespaced, []string{"get", "list"}}
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{
		kinds: map[string][]resource{
			"v1":                           {kind("secrets", "Secret", true), kind("services", "Service", true), kind("configmaps", "ConfigMap", true), kind("serviceaccounts", "ServiceAccount", true), kind("namespaces", "Namespace", false)},
			"apps/v1":                      {kind("deployments", "Deployment", true), kind("daemonsets", "DaemonSet", true)},
			"policy/v1":                    {kind("poddisruptionbudgets", "PodDisruptionBudget", true)},
			"rbac.authorization.k8s.io/v1": {kind("clusterroles", "ClusterRole", false), kind("clusterrolebindings", "ClusterRoleBinding", false), kind("roles", "Role", true), kind("rolebindings", "RoleBinding", true)},
			"apiextensions.k8s.io/v1":      {kind("customresourcedefinitions", "CustomResourceDefinition", false)},
			"eclusa.io/v1alpha1":           {kind("addresspools", "AddressPool", false), kind("edges", "Edge", false)},
		},
		objects: map[string]any{},
	}
	for _, kinds := range []string{"api/v1/namespaces/kube-system/secrets Secret v1", "apis/eclusa.io/v1alpha1/addresspools AddressPool eclusa.io/v1alpha1", "apis/eclusa.io/v1alpha1/edges Edge eclusa.io/v1alpha1"} {
		f := strings.Fields(kinds)
		c.objects["/"+f[0]] = map[string]any{"apiVersion": f[2], "kind": f[1] + "List", "metadata": map[string]any{}, "items": []any{}}
	}
	c.server = httptest.NewServer(http.HandlerFunc(c.answer))
	t.Cleanup(c.server.Close)
	return c
}

func (c *cluster) answer(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		c.reply(w, http.StatusMethodNotAllowed, status(http.StatusMethodNotAllowed, "MethodNotAllowed"))
		return
	}
	path := r.URL.Path
	version := strings.TrimPrefix(strings.TrimPrefix(path, "/apis/"), "/api/")
	kinds, known := c.kinds[version]
	object, exists := c.objects[path]
	switch {
	case path == "/version":
		c.reply(w, http.StatusOK, map[string]any{"major": "1", "minor": "37", "gitVersion": "v1.37.2"})
	case path == "/api":
		c.reply(w, http.StatusOK, map[string]any{"kind": "APIVersions", "versions": []string{"v1"}})
	case path == "/apis":
		c.reply(w, http.StatusOK, c.groups())
	case known:
		c.reply(w, http.StatusOK, map[string]any{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": kinds})
	case exists:
		c.reply(w, http.StatusOK, object)
	default:
		c.reply(w, http.StatusNotFound, status(http.StatusNotFound, "NotFound"))
	}
}

func (c *cluster) reply(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}

func status(code int, reason string) map[string]any {
	return map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason}
}

func (c *cluster) groups() any {
	var groups []any
	for gv := range c.kinds {
		if group, version, ok := strings.Cut(gv, "/"); ok {
			v := map[string]any{"groupVersion": gv, "version": version}
			groups = append(groups, map[string]any{"name": group, "versions": []any{v}, "preferredVersion": v})
		}
	}
	return map[string]any{"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
}

// put lets an object be there.
func (c *cluster) put(path, manifest string) {
	var o map[string]any
	if err := yaml.Unmarshal([]byte(manifest), &o); err != nil {
		panic(err)
	}
	c.objects[path] = o
}

// install goes as far as Helm goes without writing, and returns what it would
// have written and told.
func (c *cluster) install(t *testing.T, h helm, release string, args ...string) (string, error) {
	t.Helper()
	config := filepath.Join(t.TempDir(), "kubeconfig")
	write(t, config, fmt.Sprintf(`
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
users: [{name: u, user: {}}]
current-context: c
`, c.server.URL))
	args = append([]string{"install", release, "eclusa", "--namespace", "kube-system", "--kubeconfig", config,
		"--dry-run=server", "--disable-openapi-validation"}, args...)
	return h.run(t, args...)
}

const rolePath = "/apis/rbac.authorization.k8s.io/v1/clusterroles/eclusa-cloud-controller-manager"

// role is what a release of the name leaves in the cluster.
func role(release, namespace string) string {
	return `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: eclusa-cloud-controller-manager
  labels: {app.kubernetes.io/managed-by: Helm}
  annotations: {meta.helm.sh/release-name: ` + release + `, meta.helm.sh/release-namespace: ` + namespace + `}
`
}

func TestSecondRelease(t *testing.T) {
	for _, h := range helms(t) {
		c := newCluster(t)
		c.put(rolePath, role("first", "lb"))
		want := `eclusa is in this cluster already, as release "first" in namespace "lb"`
		if _, err := c.install(t, h, "second"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", h.name, err, want)
		}
		c.put(rolePath, role("first", "kube-system"))
		if _, err := c.install(t, h, "first"); err != nil {
			t.Errorf("%s: what the same release has left: %v", h.name, err)
		}
	}
}

func TestOldDefinitions(t *testing.T) {
	const path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/edges.eclusa.io"
	for _, h := range helms(t) {
		c := newCluster(t)
		current := read(t, "eclusa/crds/eclusa.io_edges.yaml")
		c.put(path, current)
		if _, err := c.install(t, h, "eclusa"); err != nil {
			t.Errorf("%s: with the chart's own definitions: %v", h.name, err)
		}
		old := c.objects[path].(map[string]any)
		properties := dig(old, "spec", "versions", 0, "schema", "openAPIV3Schema", "properties").(map[string]any)
		delete(dig(properties, "spec", "properties").(map[string]any), "paused")
		delete(dig(properties, "status", "properties", "conditions", "items", "properties").(map[string]any), "reason")
		_, err := c.install(t, h, "eclusa")
		want := `"edges.eclusa.io" is older than this chart and lacks v1alpha1.spec.paused, v1alpha1.status.conditions[].reason.`
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "kubectl apply --server-side") {
			t.Errorf("%s: got %v, want %q and what to do", h.name, err, want)
		}
	}
}

// dig goes down blocks by key and lists by index.
func dig(v any, path ...any) any {
	for _, step := range path {
		switch s := step.(type) {
		case string:
			v = v.(map[string]any)[s]
		case int:
			v = v.([]any)[s]
		}
	}
	return v
}

func TestMonitoringIsFound(t *testing.T) {
	for _, h := range helms(t) {
		c := newCluster(t)
		_, err := c.install(t, h, "eclusa", "--set", "alerts.enabled=true")
		if want := "alerts.enabled: this cluster has no PrometheusRules"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", h.name, err, want)
		}
		c.kinds["monitoring.coreos.com/v1"] = []resource{kind("prometheusrules", "PrometheusRule", true), kind("servicemonitors", "ServiceMonitor", true)}
		if _, err := c.install(t, h, "eclusa", "--set", "alerts.enabled=true,metrics.serviceMonitor.enabled=true"); err != nil {
			t.Errorf("%s: with the Prometheus operator: %v", h.name, err)
		}
	}
}

// TestNotes looks at what is told after an installation.
func TestNotes(t *testing.T) {
	for _, h := range helms(t) {
		c := newCluster(t)
		notes := c.notes(t, h)
		for _, want := range []string{
			"kubectl --namespace kube-system rollout status deployment/eclusa-cloud-controller-manager\n  kubectl get edges,addresspools\n",
			"eclusa-edge pki cluster --dir pki --name NAME --secret --secret-name eclusa-client --namespace kube-system | kubectl apply -f -",
			"it does not initialise Nodes",
			"No edges are in the values", "No address pools are in the values",
			"helm uninstall eclusa --namespace kube-system",
			"finalizers hold them in Terminating",
			"  kubectl eclusa status\n",
		} {
			if !strings.Contains(notes, want) {
				t.Errorf("%s: the notes lack %q:\n%s", h.name, want, notes)
			}
		}
		c.put("/api/v1/namespaces/kube-system/secrets/eclusa-client", "{apiVersion: v1, kind: Secret, metadata: {name: eclusa-client}}")
		c.objects["/apis/eclusa.io/v1alpha1/addresspools"] = map[string]any{
			"apiVersion": "eclusa.io/v1alpha1", "kind": "AddressPoolList", "metadata": map[string]any{}, "items": []any{
				pool("old", "eclusa"), pool("default", "eclusa"), pool("foreign", "other"),
			},
		}
		notes = c.notes(t, h, "--set", "addressPools.default.addresses={192.0.2.0/24}", "--set", "edges.edge-1.endpoint=https://192.0.2.10:7443")
		if want := "AddressPool old is no longer in the values but still in the cluster"; strings.Count(notes, "no longer in the values") != 1 || !strings.Contains(notes, want) {
			t.Errorf("%s: want %q and no other:\n%s", h.name, want, notes)
		}
		for _, not := range []string{"pki cluster", "No edges", "No address pools"} {
			if strings.Contains(notes, not) {
				t.Errorf("%s: the notes say %q, and nothing is missing:\n%s", h.name, not, notes)
			}
		}
	}
}

// TestNotesOfUninstalling has the upgrade before the deletions, which it would
// undo, and nothing of it where no edges run on Nodes.
func TestNotesOfUninstalling(t *testing.T) {
	for _, h := range helms(t) {
		c := newCluster(t)
		args := []string{"--set", "serviceAccount.name=other", "--namespace", "balancers", "--values", variants(t)["daemonset"]}
		notes := c.notes(t, h, args...)
		at := -1
		for _, step := range []string{"  helm upgrade eclusa ... --set edge.keepOnUninstall=false\n  kubectl delete service NAME", "  kubectl delete addresspools --all\n  kubectl delete edges --all", "  helm uninstall eclusa"} {
			i := strings.Index(notes, step)
			if i <= at {
				t.Errorf("%s: %q is at %d, want it after %d:\n%s", h.name, step, i, at, notes)
			}
			at = i
		}
		if want := "kubectl eclusa status --lease-namespace balancers --manager-service-account other\n"; !strings.Contains(notes, want) {
			t.Errorf("%s: the notes lack %q:\n%s", h.name, want, notes)
		}
		if notes := c.notes(t, h); strings.Contains(notes, "keepOnUninstall") {
			t.Errorf("%s: there are no edges on Nodes, and the notes have:\n%s", h.name, notes)
		}
	}
}

func (c *cluster) notes(t *testing.T, h helm, args ...string) string {
	t.Helper()
	out, err := c.install(t, h, "eclusa", args...)
	if err != nil {
		t.Fatalf("%s: %v", h.name, err)
	}
	_, notes, found := strings.Cut(out, "NOTES:")
	if !found {
		t.Fatalf("%s: there are no notes:\n%s", h.name, out)
	}
	return notes
}

func pool(name, release string) any {
	return map[string]any{"apiVersion": "eclusa.io/v1alpha1", "kind": "AddressPool", "metadata": map[string]any{
		"name": name, "annotations": map[string]any{"meta.helm.sh/release-name": release, "meta.helm.sh/release-namespace": "kube-system"},
	}}
}
