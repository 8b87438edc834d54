package main

import (
	"flag"
	"testing"

	"go.uber.org/zap/zaptest"

	"github.com/eclusa-lb/eclusa/monitoring"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestExposition writes down the metrics that the program adds to the edge's.
func TestExposition(t *testing.T) {
	w := &world{t: t, dir: t.TempDir()}
	w.pki()
	id, err := newIdentity(APIConfig{CertFile: w.dir + "/edge-1.crt", KeyFile: w.dir + "/edge-1.key", ClientCAFile: w.dir + "/ca.crt"}, zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	text, faults := monitoring.Inspect(expiry{id})
	for _, err := range faults {
		t.Error(err)
	}
	if err := monitoring.Golden("testdata/metrics.txt", text, *update); err != nil {
		t.Error(err)
	}
}
