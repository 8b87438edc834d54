package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/eclusa-lb/eclusa/lab"
)

// TestChartObjects lets the real API server judge every object that the chart
// makes, with the values of its tests, and stores none of them.
func TestChartObjects(t *testing.T) {
	c := inLab(t)
	dir, err := lab.BuildHelm(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("../charts/testdata/values/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("found no values of the chart's tests: %v", err)
	}
	for _, values := range files {
		t.Run(filepath.Base(values), func(t *testing.T) {
			render := exec.CommandContext(t.Context(), filepath.Join(dir, "helm4"), "template", "eclusa", "../charts/eclusa",
				"--namespace", "kube-system", "--values", values,
				"--api-versions", "monitoring.coreos.com/v1/ServiceMonitor", "--api-versions", "monitoring.coreos.com/v1/PrometheusRule")
			manifests, err := render.Output()
			if err != nil {
				t.Fatal(err)
			}
			apply := exec.CommandContext(t.Context(), c.Kubectl(), "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-")
			apply.Stdin = strings.NewReader(withoutMonitoring(string(manifests)))
			if out, err := apply.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// withoutMonitoring leaves out the kinds of the Prometheus operator, which the
// lab has not.
func withoutMonitoring(manifests string) string {
	var kept []string
	for d := range strings.SplitSeq(manifests, "\n---\n") {
		if !strings.Contains(d, "apiVersion: monitoring.coreos.com/") {
			kept = append(kept, d)
		}
	}
	return strings.Join(kept, "\n---\n")
}
