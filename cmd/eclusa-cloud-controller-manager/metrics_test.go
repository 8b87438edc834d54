package main

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"

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
