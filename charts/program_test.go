package charts

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// buildPrograms builds ours and returns their directory.
func buildPrograms(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", dir+"/", "../cmd/eclusa-edge", "../cmd/eclusa-cloud-controller-manager").CombinedOutput()
	if err != nil {
		t.Fatalf("build the programs: %v\n%s", err, out)
	}
	return dir
}

// TestProgramsTakeTheirConfiguration lets the real programs check what the chart
// gives them: files and flags.
func TestProgramsTakeTheirConfiguration(t *testing.T) {
	bin, pki := buildPrograms(t), t.TempDir()
	edge, ccm := filepath.Join(bin, "eclusa-edge"), filepath.Join(bin, "eclusa-cloud-controller-manager")
	command(t, edge, "pki", "init", "--dir", pki)
	command(t, edge, "pki", "cluster", "--dir", pki, "--name", "prod")
	client := t.TempDir()
	for from, to := range map[string]string{"prod.crt": "tls.crt", "prod.key": "tls.key", "ca.crt": "ca.crt"} {
		write(t, filepath.Join(client, to), read(t, filepath.Join(pki, from)))
	}
	for name, values := range variants(t) {
		t.Run(name, func(t *testing.T) {
			objects := render(t, values)
			checkController(t, ccm, client, objects)
			checkEdges(t, edge, objects)
		})
	}
}

// checkController starts the controller with the arguments of the Deployment and
// the configuration of the ConfigMap, only to check them.
func checkController(t *testing.T, program, client string, objects []string) {
	t.Helper()
	config := t.TempDir()
	data := find[corev1.ConfigMap](t, objects, "ConfigMap", "eclusa-cloud-controller-manager").Data
	write(t, filepath.Join(config, "cloud.yaml"), strings.ReplaceAll(data["cloud.yaml"], "/etc/eclusa/client", client))
	pod := find[appsv1.Deployment](t, objects, "Deployment", "eclusa-cloud-controller-manager").Spec.Template.Spec
	args := []string{"--check-config"}
	for _, a := range pod.Containers[0].Args {
		a = strings.ReplaceAll(a, "/etc/eclusa/serving", client) // any pair will do
		args = append(args, strings.ReplaceAll(a, "/etc/eclusa/config", config))
	}
	if out := command(t, program, args...); !strings.Contains(out, `nothing to complain about, cluster "prod"`) {
		t.Errorf("the controller says %q", out)
	}
	mounted := map[string]bool{}
	for _, m := range pod.Containers[0].VolumeMounts {
		mounted[m.MountPath] = true
	}
	if !mounted["/etc/eclusa/client"] || !mounted["/etc/eclusa/config"] {
		t.Errorf("files are mounted at %v, and the arguments look elsewhere", mounted)
	}
}

// checkEdges starts the edge of each Node with its file, only to check it.
func checkEdges(t *testing.T, program string, objects []string) {
	t.Helper()
	if !strings.Contains(strings.Join(objects, "\n"), "\nkind: DaemonSet\n") {
		return
	}
	dir := t.TempDir()
	files := find[corev1.ConfigMap](t, objects, "ConfigMap", "eclusa-edge").Data
	pod := find[appsv1.DaemonSet](t, objects, "DaemonSet", "eclusa-edge").Spec.Template.Spec
	if len(files) == 0 {
		t.Error("no edge has a configuration")
	}
	for file, text := range files {
		write(t, filepath.Join(dir, file), text)
		args := []string{"--check-config"}
		for _, a := range pod.Containers[0].Args {
			a = strings.ReplaceAll(a, "$(NODE_NAME)", strings.TrimSuffix(file, ".yaml"))
			args = append(args, strings.ReplaceAll(a, "/etc/eclusa/config", dir))
		}
		if out := command(t, program, args...); !strings.Contains(out, "nothing to complain about") {
			t.Errorf("the edge says %q", out)
		}
	}
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", filepath.Base(name), args, err, out)
	}
	return string(out)
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
