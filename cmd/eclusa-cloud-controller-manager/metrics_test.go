package main

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/eclusa-lb/eclusa/configfile"
	"github.com/eclusa-lb/eclusa/monitoring"
	"github.com/eclusa-lb/eclusa/version"
)

func TestBuildInfo(t *testing.T) {
	creds, err := newCredentials(writePair(t, t.TempDir(), "prod", time.Now().Add(time.Hour)), nil, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	want := "# HELP eclusa_ccm_build_info Always 1; the labels tell what runs.\n# TYPE eclusa_ccm_build_info gauge\n" +
		fmt.Sprintf("eclusa_ccm_build_info{goversion=%q,revision=%q,version=%q} 1\n", version.Go(), version.Revision(), version.Number())
	c := &collector{func() bool { return true }, creds, 0}
	if err := testutil.CollectAndCompare(c, strings.NewReader(want), "eclusa_ccm_build_info"); err != nil {
		t.Error(err)
	}
}

var update = flag.Bool("update", false, "rewrite the golden files")

// TestExposition writes down the metrics that the program adds to the provider's.
func TestExposition(t *testing.T) {
	dir := t.TempDir()
	files := writePair(t, dir, "prod", time.Now().Add(time.Hour))
	creds, err := newCredentials(files, nil, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{func() bool { return true }, creds, PortRange("30000-32767").size()}
	text, faults := monitoring.Inspect(c)
	for _, err := range faults {
		t.Error(err)
	}
	if err := monitoring.Golden("testdata/metrics.txt", text, *update); err != nil {
		t.Error(err)
	}
}

// TestChartExposesWhatAlertsAskFor configures the program with the cloud.yaml that
// the chart makes, and finds every metric that an alert asks it for.
func TestChartExposesWhatAlertsAskFor(t *testing.T) {
	manifests, err := os.ReadFile("../../charts/testdata/golden/all.yaml")
	if err != nil {
		t.Fatal(err)
	}
	cloud := ""
	for doc := range strings.SplitSeq(string(manifests), "\n---\n") {
		var m corev1.ConfigMap
		if strings.Contains(doc, "\nkind: ConfigMap\n") && yaml.Unmarshal([]byte(doc), &m) == nil && m.Data["cloud.yaml"] != "" {
			cloud = m.Data["cloud.yaml"]
		}
	}
	dir := t.TempDir()
	files := writePair(t, dir, "prod", time.Now().Add(time.Hour))
	var own Config
	if complaints := configfile.Decode([]byte(cloud), &own); len(complaints) > 0 {
		t.Fatalf("the chart's cloud.yaml is %q: %v", cloud, complaints)
	}
	creds, err := newCredentials(files, nil, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	text, _ := monitoring.Inspect(&collector{func() bool { return true }, creds, own.NodePortRange.size()})
	provided, err := os.ReadFile("../../provider/testdata/metrics.txt")
	if err != nil {
		t.Fatal(err)
	}
	alerts, err := os.ReadFile("../../charts/eclusa/files/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	asked := regexp.MustCompile(`\beclusa_ccm_[a-z_]+`).FindAllString(string(alerts), -1)
	if len(asked) < 20 {
		t.Errorf("the alerts ask for %d metrics: the test looks at the wrong place", len(asked))
	}
	for _, name := range asked {
		if !strings.Contains(text+string(provided), "# TYPE "+name+" ") {
			t.Errorf("an alert asks for %s, which a manager of the chart does not expose", name)
		}
	}
}

// What the program tells of certificates follows the files, without anybody who
// connects to an edge.
func TestMetricsFollowCertificates(t *testing.T) {
	dir, until := t.TempDir(), time.Now().Add(time.Hour).Truncate(time.Second)
	files := writePair(t, dir, "prod", until)
	age(t, files)
	creds, err := newCredentials(files, nil, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{func() bool { return false }, creds, 0}
	want := func(until time.Time) string {
		name := "eclusa_ccm_certificate_expiry_timestamp_seconds"
		return fmt.Sprintf("# HELP %[1]s %[2]s\n# TYPE %[1]s gauge\n%[1]s{certificate=\"client\",subject=\"prod\"} %[3]d\n%[1]s{certificate=\"edge-ca\",subject=\"prod\"} %[3]d\n"+
			"# HELP eclusa_ccm_leading 1 while this process leads, else 0.\n# TYPE eclusa_ccm_leading gauge\neclusa_ccm_leading 0\n", name, expiryHelp, until.Unix())
	}
	names := []string{"eclusa_ccm_certificate_expiry_timestamp_seconds", "eclusa_ccm_leading", "eclusa_ccm_node_ports"}
	if err := testutil.CollectAndCompare(c, strings.NewReader(want(until)), names...); err != nil {
		t.Error(err)
	}
	writePair(t, dir, "prod", until.Add(time.Hour))
	if err := testutil.CollectAndCompare(c, strings.NewReader(want(until.Add(time.Hour))), names...); err != nil {
		t.Error(err)
	}
}
