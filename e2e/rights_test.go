package e2e

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/eclusa-lb/eclusa/lab"
)

// The manager has the rights of the chart and no others, and nothing that it asks
// for is refused: from its start over the life of a Service of either kind, with a
// pool that is deleted while it is in use.
func TestRightsOfTheChartSuffice(t *testing.T) {
	c := inLab(t)
	ns := c.namespace(t)
	c.deploy(t, ns, "web", 1)
	audit := c.audit(t)
	c.restartCCM(t)

	pools := c.dynamic.Resource(schema.GroupVersionResource{Group: "eclusa.io", Version: "v1alpha1", Resource: "addresspools"})
	pool := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "eclusa.io/v1alpha1", "kind": "AddressPool",
		"metadata": map[string]any{"name": "rights"},
		"spec":     map[string]any{"addresses": []any{"172.30.0.252-172.30.0.253"}, "autoAssign": false},
	}}
	if _, err := pools.Create(t.Context(), pool, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, class := range map[string]*string{"stock": nil, "class": ptr("eclusa.io/edge")} {
		s := lab.Service(ns, name)
		s.Spec.Selector = map[string]string{"app": "web"}
		s.Spec.LoadBalancerClass = class
		s.Annotations = map[string]string{"eclusa.io/address-pool": "rights"}
		answers(t, c.client, netip.AddrPortFrom(c.serve(t, s)[0], 80))
	}
	if err := pools.Delete(t.Context(), "rights", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"stock", "class"} {
		c.update(t, ns, name, func(s *corev1.Service) { s.Spec.Ports[0].Port = 8000 })
		answers(t, c.client, netip.AddrPortFrom(c.addresses(t, ns, name)[0], 8000))
		if _, err := pools.Get(t.Context(), "rights", metav1.GetOptions{}); err != nil {
			t.Fatalf("the pool in use: %v", err)
		}
		c.delete(t, ns, name)
	}
	eventually(t, 20*time.Second, func() error {
		_, err := pools.Get(t.Context(), "rights", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("the pool is still there, though nobody uses it: %w", err)
	})

	c.strangerIsRefused(t, ns)
	used := audit.requests(t)
	for _, r := range used {
		if r.ResponseStatus.Code == http.StatusForbidden || r.ResponseStatus.Code == http.StatusUnauthorized {
			t.Errorf("refused with %d: %s", r.ResponseStatus.Code, r)
		}
	}
	for _, must := range []string{"patch services/status", "patch eclusa.io/addresspools", "patch eclusa.io/edges/status",
		"update coordination.k8s.io/leases", "get namespaces", "create events",
		"create authentication.k8s.io/tokenreviews", "create authorization.k8s.io/subjectaccessreviews"} {
		if !slices.ContainsFunc(used, func(r request) bool { return r.String() == must }) {
			t.Errorf("nobody has asked for %q: the audit log is not that of the managers", must)
		}
	}
	c.quietLogs(t)
	t.Logf("%d requests; rights that they did not need: %s", len(used), strings.Join(c.unused(t, used), ", "))
}

// strangerIsRefused asks for metrics with a token that gives no right to them: the
// manager has the API server judge both.
func (c *cluster) strangerIsRefused(t *testing.T, ns string) {
	t.Helper()
	token, err := c.kube.CoreV1().ServiceAccounts(ns).CreateToken(t.Context(), "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	client := c.ControlPlane.HTTPClient()
	client.Transport = &http.Transport{
		DialContext: c.ControlPlane.DialContext, DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // it is the manager's own
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+c.leader(t).Address.String()+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token.Status.Token)
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("metrics for a stranger: %s, want 403", resp.Status)
	}
}

// quietLogs looks for the word by which the API server refuses.
func (c *cluster) quietLogs(t *testing.T) {
	t.Helper()
	replicas, err := c.Manager.Replicas(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(replicas) != lab.ManagerReplicas {
		t.Errorf("%d managers run, want %d", len(replicas), lab.ManagerReplicas)
	}
	for _, r := range replicas {
		text, err := r.Log()
		if err != nil || !strings.Contains(text, "starting") {
			t.Errorf("log of %s: %v; want its start in it:\n%s", r.Name, err, text)
		}
		for line := range strings.Lines(text) {
			if strings.Contains(strings.ToLower(line), "forbidden") {
				t.Errorf("%s: %s", r.Name, line)
			}
		}
	}
}

// unused are the rights of the chart's roles that no request needed.
func (c *cluster) unused(t *testing.T, used []request) []string {
	t.Helper()
	role, err := c.kube.RbacV1().ClusterRoles().Get(t.Context(), lab.ManagerName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	local, err := c.kube.RbacV1().Roles(lab.ReleaseNamespace).Get(t.Context(), lab.ManagerName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, rule := range append(slices.Clone[[]rbacv1.PolicyRule](role.Rules), local.Rules...) {
		for _, resource := range rule.Resources {
			for _, verb := range rule.Verbs {
				right := verb + " " + strings.TrimPrefix(rule.APIGroups[0]+"/"+resource, "/")
				if !slices.ContainsFunc(used, func(r request) bool { return r.String() == right }) {
					all = append(all, right)
				}
			}
		}
	}
	return all
}

// A request is what the API server's audit log says of one.
type request struct {
	Verb           string
	RequestURI     string
	ObjectRef      *struct{ APIGroup, Resource, Subresource string }
	ResponseStatus struct{ Code int32 }
}

// String is the right that the request needs: verb, group, resource.
func (r request) String() string {
	if r.ObjectRef == nil {
		return r.Verb + " " + r.RequestURI
	}
	var parts []string
	for _, p := range []string{r.ObjectRef.APIGroup, r.ObjectRef.Resource, r.ObjectRef.Subresource} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return r.Verb + " " + strings.Join(parts, "/")
}

// An auditLog is the rest of the API server's audit log from a moment on.
type auditLog struct {
	file string
	from int64
}

func (c *cluster) audit(t *testing.T) auditLog {
	t.Helper()
	info, err := os.Stat(c.AuditLog())
	if err != nil {
		t.Fatal(err)
	}
	return auditLog{c.AuditLog(), info.Size()}
}

func (a auditLog) requests(t *testing.T) []request {
	t.Helper()
	f, err := os.Open(a.file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Seek(a.from, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	var all []request
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatalf("audit log: %v: %s", err, lines.Text())
		}
		all = append(all, r)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}
