package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/version"
)

func TestBuildInfo(t *testing.T) {
	creds, err := newCredentials(writePair(t, t.TempDir(), "prod", time.Now().Add(time.Hour)), nil, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(&collector{&leader{creds: creds}})
	want := "# HELP eclusa_ccm_build_info Always 1; the labels tell what runs.\n# TYPE eclusa_ccm_build_info gauge\n" +
		fmt.Sprintf("eclusa_ccm_build_info{goversion=%q,revision=%q,version=%q} 1\n", version.Go(), version.Revision(), version.Number())
	if err := testutil.GatherAndCompare(r, strings.NewReader(want), "eclusa_ccm_build_info"); err != nil {
		t.Error(err)
	}
}
