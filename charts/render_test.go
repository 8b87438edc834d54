package charts

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"

	"github.com/google/go-cmp/cmp"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestGolden renders every variant with both versions of Helm.
func TestGolden(t *testing.T) {
	chart := fixed(t)
	versions := helms(t)
	for name, values := range variants(t) {
		t.Run(name, func(t *testing.T) {
			golden := filepath.Join("testdata", "golden", name+".yaml")
			for _, h := range versions {
				out, err := h.template(t, chart, values)
				if err != nil {
					t.Fatalf("%s: %v", h.name, err)
				}
				got := strings.Join(documents(out), "\n---\n") + "\n"
				if *update && h == versions[0] {
					if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				if diff := cmp.Diff(read(t, golden), got); diff != "" {
					t.Errorf("%s differs from %s (-want +got), -update rewrites it:\n%s", h.name, golden, diff)
				}
			}
		})
	}
}

// documents splits a YAML stream, without what is empty and without blank lines at
// the ends, in which the versions of Helm differ.
func documents(stream string) []string {
	var all []string
	for d := range strings.SplitSeq("\n"+stream, "\n---\n") {
		if d = strings.TrimSpace(d); d != "" {
			all = append(all, d)
		}
	}
	return all
}

func TestLint(t *testing.T) {
	for _, h := range helms(t) {
		for name, values := range variants(t) {
			if out, err := h.run(t, "lint", "--strict", "--values", values, "eclusa"); err != nil {
				t.Errorf("%s lint --strict with %s: %v\n%s", h.name, name, err, out)
			}
		}
	}
}

// kinds are the types of all objects that the chart makes, for a strict look at
// each. Those of the Prometheus operator are looked at by TestMonitoring.
var kinds = map[string]func() any{
	"ServiceAccount":      func() any { return new(corev1.ServiceAccount) },
	"Secret":              func() any { return new(corev1.Secret) },
	"ConfigMap":           func() any { return new(corev1.ConfigMap) },
	"Service":             func() any { return new(corev1.Service) },
	"Deployment":          func() any { return new(appsv1.Deployment) },
	"DaemonSet":           func() any { return new(appsv1.DaemonSet) },
	"PodDisruptionBudget": func() any { return new(policyv1.PodDisruptionBudget) },
	"ClusterRole":         func() any { return new(rbacv1.ClusterRole) },
	"ClusterRoleBinding":  func() any { return new(rbacv1.ClusterRoleBinding) },
	"Role":                func() any { return new(rbacv1.Role) },
	"RoleBinding":         func() any { return new(rbacv1.RoleBinding) },
	"AddressPool":         func() any { return new(v1alpha1.AddressPool) },
	"Edge":                func() any { return new(v1alpha1.Edge) },
	"ServiceMonitor":      nil,
	"PrometheusRule":      nil,
}

// TestObjectsAreOfTheirTypes decodes every object strictly: a key that the API does
// not know, or one given twice, is an error.
func TestObjectsAreOfTheirTypes(t *testing.T) {
	seen := map[string]bool{}
	for name, values := range variants(t) {
		for _, d := range render(t, values) {
			var o struct {
				Kind     string `json:"kind"`
				Metadata struct {
					Name string `json:"name"`
				} `json:"metadata"`
			}
			if err := yaml.Unmarshal([]byte(d), &o); err != nil {
				t.Fatalf("%s: %v\n%s", name, err, d)
			}
			make, known := kinds[o.Kind]
			seen[o.Kind] = true
			switch {
			case !known:
				t.Errorf("%s: %s %q: the test does not know this kind", name, o.Kind, o.Metadata.Name)
			case make != nil:
				if err := yaml.UnmarshalStrict([]byte(d), make()); err != nil {
					t.Errorf("%s: %s %q: %v", name, o.Kind, o.Metadata.Name, err)
				}
			}
		}
	}
	for kind := range kinds {
		if !seen[kind] {
			t.Errorf("no variant makes a %s", kind)
		}
	}
}

// render renders the chart as it is with the values in a file.
func render(t *testing.T, values string) []string {
	t.Helper()
	out, err := helms(t)[1].template(t, "eclusa", values)
	if err != nil {
		t.Fatal(err)
	}
	return documents(out)
}

// find decodes the one object of a kind and name.
func find[T any](t *testing.T, documents []string, kind, name string) *T {
	t.Helper()
	for _, d := range documents {
		if strings.Contains(d, "\nkind: "+kind+"\n") && strings.Contains(d, "\n  name: "+name+"\n") {
			o := new(T)
			if err := yaml.Unmarshal([]byte(d), o); err != nil {
				t.Fatal(err)
			}
			return o
		}
	}
	t.Fatalf("%s %q is not there", kind, name)
	return nil
}

// TestPods looks at what a golden file would let slip by: that no pod is more than
// it must be.
func TestPods(t *testing.T) {
	objects := render(t, variants(t)["daemonset"])
	deployment := find[appsv1.Deployment](t, objects, "Deployment", "eclusa-cloud-controller-manager")
	edges := find[appsv1.DaemonSet](t, objects, "DaemonSet", "eclusa-edge")
	plain := filepath.Join(t.TempDir(), "plain.yaml")
	write(t, plain, strings.Replace(read(t, variants(t)["daemonset"]), "      mode: interface\n      interface: eth0\n", "      mode: none\n", 1))
	for name, spec := range map[string]corev1.PodSpec{"Deployment": deployment.Spec.Template.Spec, "DaemonSet": edges.Spec.Template.Spec} {
		if p := spec.SecurityContext.SeccompProfile; p == nil || p.Type != corev1.SeccompProfileTypeRuntimeDefault {
			t.Errorf("%s: seccomp profile %v, want RuntimeDefault", name, p)
		}
		for _, c := range spec.Containers {
			s := c.SecurityContext
			if !*s.ReadOnlyRootFilesystem || *s.AllowPrivilegeEscalation || len(s.Capabilities.Drop) != 1 || s.Capabilities.Drop[0] != "ALL" {
				t.Errorf("%s: security context %+v, want a read-only root file system, no escalation, all capabilities dropped", name, s)
			}
			if c.LivenessProbe == nil || c.ReadinessProbe == nil || c.Resources.Requests.Memory().IsZero() {
				t.Errorf("%s: lacks a probe or a request of memory", name)
			}
		}
	}
	if pod := deployment.Spec.Template.Spec; !*pod.SecurityContext.RunAsNonRoot || pod.HostNetwork || len(pod.Containers[0].SecurityContext.Capabilities.Add) > 0 {
		t.Error("Deployment: is root, in the Node's network or has capabilities")
	}
	for values, want := range map[string][]corev1.Capability{
		plain:                    {"NET_BIND_SERVICE"},
		variants(t)["daemonset"]: {"NET_BIND_SERVICE", "NET_ADMIN", "NET_RAW"}, // for announce.mode interface
		variants(t)["kernel"]:    {"NET_BIND_SERVICE", "NET_ADMIN", "NET_RAW"}, // for engine nftables
	} {
		edges := find[appsv1.DaemonSet](t, render(t, values), "DaemonSet", "eclusa-edge")
		if got := edges.Spec.Template.Spec.Containers[0].SecurityContext.Capabilities.Add; !cmp.Equal(got, want) {
			t.Errorf("DaemonSet of %s: capabilities %v, want %v", values, got, want)
		}
	}
}

// TestMonitoring compares what becomes of the alerts and dashboards of the chart
// with their files.
func TestMonitoring(t *testing.T) {
	objects := render(t, variants(t)["all"])
	alerts := find[struct {
		Spec map[string]any `json:"spec"`
	}](t, objects, "PrometheusRule", "eclusa")
	var want map[string]any
	if err := yaml.UnmarshalStrict([]byte(read(t, "eclusa/files/alerts.yaml")), &want); err != nil {
		t.Fatal(err)
	}
	if _, ok := want["groups"].([]any); !ok || len(want) != 1 {
		t.Errorf("files/alerts.yaml: must have the key groups and no other")
	}
	if diff := cmp.Diff(want, alerts.Spec); diff != "" {
		t.Errorf("PrometheusRule (-want +got):\n%s", diff)
	}
	dashboards := find[corev1.ConfigMap](t, objects, "ConfigMap", "eclusa-dashboards")
	files, err := filepath.Glob("eclusa/files/dashboards/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if got := dashboards.Data[filepath.Base(f)]; !bytes.Equal(bytes.TrimSpace([]byte(got)), bytes.TrimSpace([]byte(read(t, f)))) {
			t.Errorf("dashboard %s is not as in its file", f)
		}
	}
	if len(dashboards.Data) != len(files) {
		t.Errorf("%d dashboards in the ConfigMap, want %d", len(dashboards.Data), len(files))
	}
}

// TestServiceMonitorVerifies lets Prometheus verify whom it sends its token to as
// soon as there is a certificate that it can, and the controller serve with that.
func TestServiceMonitorVerifies(t *testing.T) {
	type monitor struct {
		Spec struct {
			Endpoints []struct {
				TLSConfig map[string]any `json:"tlsConfig"`
			} `json:"endpoints"`
		} `json:"spec"`
	}
	name := "eclusa-cloud-controller-manager"
	base := "metrics: {serviceMonitor: {enabled: true}}\n"
	serving := "controllerManager: {servingCertificate: {existingSecret: serving}}\n"
	for values, want := range map[string]map[string]any{
		base:           {"insecureSkipVerify": true},
		base + serving: {"ca": map[string]any{"secret": map[string]any{"name": "serving", "key": "ca.crt"}}, "serverName": name + "-metrics.kube-system.svc"},
	} {
		objects := render(t, writeValues(t, values))
		got := find[monitor](t, objects, "ServiceMonitor", name).Spec.Endpoints[0].TLSConfig
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: tlsConfig (-want +got):\n%s", values, diff)
		}
		pod := find[appsv1.Deployment](t, objects, "Deployment", name).Spec.Template.Spec
		args := strings.Join(pod.Containers[0].Args, " ")
		mounted := map[string]string{}
		for _, m := range pod.Containers[0].VolumeMounts {
			mounted[m.MountPath] = m.Name
		}
		for _, v := range pod.Volumes {
			if v.Secret != nil && mounted["/etc/eclusa/serving"] == v.Name {
				mounted["secret"] = v.Secret.SecretName
			}
		}
		has := strings.Contains(args, "--tls-cert-file=/etc/eclusa/serving/tls.crt --tls-private-key-file=/etc/eclusa/serving/tls.key") && mounted["secret"] == "serving"
		if has != (values != base) {
			t.Errorf("%s: arguments %q and mounts %v", values, args, mounted)
		}
	}
}
