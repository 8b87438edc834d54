package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lab"
)

// runOut uses up two pools, one wholly.
func (w watch) runOut(t *testing.T, ns string) {
	var names []string
	defer func() {
		for _, name := range names {
			w.c.delete(t, ns, name)
		}
	}()
	want := map[string]int{"full": 3, "near": 5}
	for pool, addresses := range map[string]string{"full": "172.30.0.192/31", "near": "172.30.0.194-172.30.0.199"} {
		w.c.makePool(t, pool, addresses, noSpare)
		for i := range want[pool] {
			s := lab.Service(ns, fmt.Sprintf("%s-%d", pool, i))
			s.Spec.Selector = map[string]string{"app": "web"}
			s.Annotations = map[string]string{"eclusa.io/address-pool": pool}
			w.c.create(t, s)
			names = append(names, s.Name)
			if i+1 < want[pool] {
				w.c.addresses(t, ns, s.Name) // so that it is the last that has to wait
			}
		}
	}
	w.fires(t, "EclusaPoolExhausted", "pool=full", "severity=warning")
	w.fires(t, "EclusaPoolNearlyFull", "pool=near")
	w.fires(t, "EclusaServicesWaiting")
	shows(t, w.columns(t), ns+" full-2 PoolExhausted")
	w.c.delete(t, ns, "full-0")
	w.resolves(t, "EclusaServicesWaiting")
	w.c.delete(t, ns, "full-1")
	w.resolves(t, "EclusaPoolExhausted")
	w.c.delete(t, ns, "near-0")
	w.resolves(t, "EclusaPoolNearlyFull")
}

// unusable makes a pool whose addresses are another's.
func (w watch) unusable(t *testing.T) {
	w.c.makePool(t, "overlapping", "172.30.0.245-172.30.0.252", noSpare)
	w.fires(t, "EclusaPoolUnusable", "pool=overlapping")
	shows(t, w.kubectl(t, "describe", "addresspool", "overlapping"), "Unusable", "default")
	w.c.reshape(t, "overlapping", map[string]any{"addresses": []any{"172.30.0.252/32"}})
	w.resolves(t, "EclusaPoolUnusable")
}

// fillNodePorts takes nearly all node ports that the lab has.
func (w watch) fillNodePorts(t *testing.T, ns string) {
	s := lab.Service(ns, "greedy")
	s.Spec.Type, s.Spec.Selector, s.Spec.Ports = corev1.ServiceTypeNodePort, nil, nil
	for i := range manyNodePorts * 92 / 100 {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", i), Port: int32(1 + i)})
	}
	w.c.create(t, s)
	w.fires(t, "EclusaNodePortsScarce")
	w.c.delete(t, ns, s.Name)
	w.resolves(t, "EclusaNodePortsScarce")
}

// refused asks for what no edge can do.
func (w watch) refused(t *testing.T, ns string) {
	s := lab.Service(ns, "refused")
	s.Spec.Ports[0].Protocol = corev1.ProtocolSCTP
	w.c.create(t, s)
	w.fires(t, "EclusaServicesRefused")
	shows(t, w.columns(t), ns+" refused Assigned Unsupported")
	shows(t, w.kubectl(t, "get", "service", "-n", ns, s.Name, "-o", "jsonpath={.status.conditions}"), "Unsupported", "sctp")
	w.c.delete(t, ns, s.Name)
	w.resolves(t, "EclusaServicesRefused")
}

// denied has a policy of the API server refuse the statuses of Services in a
// namespace, as one does that was written in haste. (Without the right to write
// them it is the same, but then nobody gets an address.)
func (w watch) denied(t *testing.T) {
	ns := w.c.namespace(t)
	const name = "no-status-in-haste"
	policies := w.c.kube.AdmissionregistrationV1()
	rule := admissionv1.NamedRuleWithOperations{RuleWithOperations: admissionv1.RuleWithOperations{
		Operations: []admissionv1.OperationType{admissionv1.Update},
		Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"services/status"}},
	}}
	policy := &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: admissionv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: &admissionv1.MatchResources{
			ResourceRules:     []admissionv1.NamedRuleWithOperations{rule},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: ns}},
		},
		Validations: []admissionv1.Validation{{Expression: "false", Message: "statuses are ours"}},
	}}
	if _, err := policies.ValidatingAdmissionPolicies().Create(t.Context(), policy, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	remove := func() error {
		err := policies.ValidatingAdmissionPolicies().Delete(context.Background(), name, metav1.DeleteOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	}
	t.Cleanup(func() {
		if err := remove(); err != nil {
			t.Error(err)
		}
	})
	binding := &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
		PolicyName: name, ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny},
	}}
	if _, err := policies.ValidatingAdmissionPolicyBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := policies.ValidatingAdmissionPolicyBindings().Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	s := lab.Service(ns, "denied")
	s.Spec.Type = corev1.ServiceTypeNodePort // for the moment that the API server takes to heed the policy
	w.c.create(t, s)
	eventually(t, 10*time.Second, func() error {
		try := metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}
		if _, err := w.c.kube.CoreV1().Services(ns).Patch(t.Context(), s.Name, types.MergePatchType, []byte(`{"status":{}}`), try, "status"); err == nil {
			return errors.New("the policy is not in force yet")
		}
		return nil
	})
	w.c.update(t, ns, s.Name, func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeLoadBalancer })
	w.fires(t, "EclusaStatusesNotWritten", "kind=Service")
	w.fires(t, "EclusaServicesWaiting") // what cannot be recorded is given to nobody
	shows(t, w.kubectl(t, "logs", "-n", lab.ReleaseNamespace, "-l", "app.kubernetes.io/component=controller-manager", "--prefix", "--tail=50"),
		"status cannot be written", ns+"/denied", name)
	if err := remove(); err != nil {
		t.Fatal(err)
	}
	w.c.addresses(t, ns, "denied")
	w.resolves(t, "EclusaStatusesNotWritten")
}

// columns is the manual's first look at all Services, with single spaces.
func (w watch) columns(t *testing.T) func() string {
	return func() string {
		var lines []string
		for line := range strings.Lines(w.runbook(t, "custom-columns", "")) {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
		return strings.Join(lines, "\n")
	}
}

// makePool makes a pool, for the Services that name it only, until the test ends.
func (c *cluster) makePool(t *testing.T, name, addresses string, edges map[string]any) {
	t.Helper()
	spec := map[string]any{"addresses": []any{addresses}, "autoAssign": false}
	if edges != nil {
		spec["edgeSelector"] = edges
	}
	o := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": v1alpha1.GroupVersion.String(), "kind": v1alpha1.AddressPoolKind, "metadata": map[string]any{"name": name}, "spec": spec,
	}}
	if _, err := c.dynamic.Resource(v1alpha1.AddressPoolResource).Create(t.Context(), o, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.dynamic.Resource(v1alpha1.AddressPoolResource).Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// reshape changes the spec of a pool.
func (c *cluster) reshape(t *testing.T, pool string, spec map[string]any) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"spec": spec})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.dynamic.Resource(v1alpha1.AddressPoolResource).Patch(context.Background(), pool, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// taken lets another program of the edge's machine listen where a Service wants.
func (w watch) taken(t *testing.T, ns string) {
	other, err := w.c.edge.Listen(t.Context(), "tcp4", "0.0.0.0:8099")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	s := lab.Service(ns, "taken")
	s.Spec.Selector = map[string]string{"app": "web"}
	s.Spec.Ports[0].Port = 8099
	w.c.create(t, s)
	defer w.c.delete(t, ns, s.Name)
	w.fires(t, "EclusaFrontendsRefused")
	shows(t, w.onEdge(t, "ss", "-lntup"), "0.0.0.0:8099")
	shows(t, w.onEdge(t, "tail", w.c.edge.Process.LogPath()), "the engine cannot serve an address and port")
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	w.resolves(t, "EclusaFrontendsRefused")
}

// expires gives the edge a certificate that is good for ten days, then one for two,
// and then its own again.
func (w watch) expires(t *testing.T) {
	dir := w.c.EdgePKI()
	kept := map[string][]byte{}
	for _, kind := range []string{".key", ".crt"} {
		file := filepath.Join(dir, w.c.edge.Name+kind)
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		kept[file] = data
	}
	restore := func() {
		for _, file := range slices.Sorted(maps.Keys(kept)) {
			if err := os.WriteFile(file, kept[file], 0o600); err != nil {
				t.Error(err)
			}
		}
	}
	defer restore()
	instance := "instance=" + w.c.edge.Management().String()
	w.c.certify(t, w.c.edge.Name, "--valid-for", "240h", "--force")
	w.fires(t, "EclusaCertificateExpiresSoon", "severity=warning", instance)
	w.c.certify(t, w.c.edge.Name, "--valid-for", "48h", "--force")
	w.fires(t, "EclusaCertificateExpires", "severity=critical", instance)
	w.resolves(t, "EclusaCertificateExpiresSoon", instance)
	restore()
	w.resolves(t, "EclusaCertificateExpires", instance)
}

// nodesDown cuts a node off, and then takes the other from the Service as well.
func (w watch) nodesDown(t *testing.T, ns string) {
	leader := w.c.leader(t)
	n := slices.IndexFunc(w.c.Nodes, func(n *lab.Node) bool { return n.Host != leader.Host })
	cut, other := w.c.Nodes[n], w.c.Nodes[1-n]
	w.c.cut(t, cut)
	w.fires(t, "EclusaNodeDown", "node="+cut.Name, "cluster="+lab.ClusterName)
	if err := other.KubeProxy.Freeze(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := other.KubeProxy.Thaw(); err != nil {
			t.Error(err)
		}
		w.c.heal(t, cut)
		w.c.untilUp(t, other.Name)
	}()
	w.fires(t, "EclusaServiceDown", "cluster="+lab.ClusterName, "load_balancer="+ns+"/web", "severity=critical")
	w.fires(t, "EclusaServicesWithoutBackends")
	shows(t, w.columns(t), ns+" web Assigned Programmed NoneHealthy")
}
