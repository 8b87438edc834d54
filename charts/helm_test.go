package charts

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lab"
)

// A helm is one version of Helm.
type helm struct {
	name string // helm3 or helm4
	file string
}

// built are the programs of the run: Helm from its modules, and ours.
var built struct {
	once sync.Once
	dir  string
	err  error
}

// helms returns Helm 3 and Helm 4, built when that has not been done yet.
func helms(t *testing.T) []helm {
	t.Helper()
	built.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 14*time.Minute)
		defer cancel()
		built.dir, built.err = lab.BuildHelm(ctx, os.Stderr)
	})
	if built.err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("build Helm: %v", built.err)
		}
		t.Skipf("Helm cannot be built here: %v", built.err)
	}
	return []helm{
		{"helm3", filepath.Join(built.dir, "helm3")},
		{"helm4", filepath.Join(built.dir, "helm4")},
	}
}

// run runs Helm without any configuration of the user's, and returns what it
// wrote to standard output. Its error has what it wrote to standard error.
func (h helm) run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	home := t.TempDir()
	var out, complaints bytes.Buffer
	cmd := exec.CommandContext(t.Context(), h.file, args...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "KUBECONFIG=" + filepath.Join(home, "none"),
		"HELM_CACHE_HOME=" + home, "HELM_CONFIG_HOME=" + home, "HELM_DATA_HOME=" + home,
	}
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%w: %s", err, strings.TrimSpace(complaints.String()))
	}
	return out.String(), nil
}

// monitoring tells helm template of a cluster with the Prometheus operator.
var monitoring = []string{
	"--api-versions", "monitoring.coreos.com/v1/ServiceMonitor",
	"--api-versions", "monitoring.coreos.com/v1/PrometheusRule",
}

// template renders a chart with the values in a file.
func (h helm) template(t *testing.T, chart, values string, more ...string) (string, error) {
	t.Helper()
	args := append([]string{"template", "eclusa", chart, "--namespace", "kube-system", "--values", values}, monitoring...)
	return h.run(t, append(args, more...)...)
}

// variants are the files with values that the tests render, by name.
func variants(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("testdata/values/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 5 {
		t.Fatalf("found %d files in testdata/values, want five at least", len(files))
	}
	all := map[string]string{}
	for _, f := range files {
		all[strings.TrimSuffix(filepath.Base(f), ".yaml")] = f
	}
	return all
}

// fixed returns a copy of the chart whose alerts and dashboards are those of
// testdata, so that what is rendered does not change with each of them.
func fixed(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "eclusa")
	if err := os.CopyFS(dir, os.DirFS("eclusa")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "files")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(dir, "files"), os.DirFS("testdata/files")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// writeValues writes values into a file of their own.
func writeValues(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// read returns a file, or nothing if there is none.
func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return string(data)
}
