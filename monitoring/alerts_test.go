package monitoring_test

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/eclusa-lb/eclusa/monitoring"
)

const (
	alertsFile     = "../charts/eclusa/files/alerts.yaml"
	alertsTestFile = "testdata/alerts.test.yaml"
	runbooks       = "https://github.com/eclusa-lb/eclusa/blob/main/docs/operations.md#"
)

// rule is an alert.
type rule struct {
	Alert       string
	Expr        string
	For         string
	Labels      map[string]string
	Annotations map[string]string
}

func readRules(t *testing.T) []rule {
	t.Helper()
	var doc struct {
		Groups []struct {
			Name  string
			Rules []rule
		}
	}
	data, err := os.ReadFile(alertsFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	var rules []rule
	for _, g := range doc.Groups {
		rules = append(rules, g.Rules...)
	}
	if len(rules) < 20 {
		t.Fatalf("%d alerts; the file is read wrongly", len(rules))
	}
	return rules
}

// installed skips the test without Prometheus, unless it must run.
func installed(t *testing.T) {
	t.Helper()
	if err := monitoring.Installed(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

func TestAlertRules(t *testing.T) {
	installed(t)
	for _, args := range [][]string{{"check", "rules", alertsFile}, {"test", "rules", alertsTestFile}} {
		if out, err := exec.CommandContext(t.Context(), "promtool", args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// TestAlertsAreTested finds for every alert a moment in which it fires in the
// unit tests, and one in which the same series do not make it fire.
func TestAlertsAreTested(t *testing.T) {
	var doc struct {
		Tests []struct {
			Name   string
			Checks []struct {
				Samples []struct{ Labels string } `yaml:"exp_samples"`
			} `yaml:"promql_expr_test"`
		}
	}
	data, err := os.ReadFile(alertsTestFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	tested := map[string]bool{}
	for _, test := range doc.Tests {
		fires, silent := map[string]bool{}, map[string]bool{}
		for _, c := range test.Checks {
			now := map[string]bool{}
			for _, s := range c.Samples {
				name := strings.TrimSuffix(strings.TrimPrefix(s.Labels, `{alertname="`), `"}`)
				now[name], fires[name] = true, true
			}
			for _, r := range readRules(t) {
				if !now[r.Alert] {
					silent[r.Alert] = true
				}
			}
		}
		for name := range fires {
			tested[name] = tested[name] || silent[name]
		}
	}
	for _, r := range readRules(t) {
		if !tested[r.Alert] {
			t.Errorf("alert %s: no unit test in %s in which it fires and before or after does not", r.Alert, alertsTestFile)
		}
		delete(tested, r.Alert)
	}
	for name := range tested {
		t.Errorf("the unit tests expect %q, which is no alert", name)
	}
}

// TestAlertsHelp checks what somebody reads who was just woken.
func TestAlertsHelp(t *testing.T) {
	operations, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	headings := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^#+ (Eclusa\w+)$`).FindAllSubmatch(operations, -1) {
		headings[string(m[1])] = true
	}
	for _, r := range readRules(t) {
		if !strings.HasPrefix(r.Alert, "Eclusa") || !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) {
			t.Errorf("alert %s: severity %q: want a name with Eclusa, and critical, warning or info", r.Alert, r.Labels["severity"])
		}
		for _, name := range []string{"summary", "description"} {
			if a := r.Annotations[name]; len(a) < 20 || strings.Contains(a, "\n") {
				t.Errorf("alert %s: %s: want one paragraph, got %q", r.Alert, name, a)
			}
		}
		if got, want := r.Annotations["runbook_url"], runbooks+strings.ToLower(r.Alert); got != want {
			t.Errorf("alert %s: runbook_url: %q, want %q", r.Alert, got, want)
		}
		if !headings[r.Alert] {
			t.Errorf("alert %s: docs/operations.md has no heading of that name", r.Alert)
		}
		delete(headings, r.Alert)
	}
	for name := range headings {
		t.Errorf("docs/operations.md explains %s, which is no alert", name)
	}
}
