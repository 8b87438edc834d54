package main

import (
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/klog/v2"
)

func TestLogLevelsAreChanged(t *testing.T) {
	log, levels, err := (&logOptions{format: "json", level: "info"}).build(0)
	if err != nil {
		t.Fatal(err)
	}
	defer klog.ClearLogger()
	e := levels.endpoint(zap.NewNop())
	for _, test := range []struct {
		name, method, path, body string
		code                     int
		want                     string
		debug, verbose           bool // afterwards: our debug lines, and klog's of verbosity 4
	}{
		{"read", "GET", "program", "", 200, "info", false, false},
		{"read the libraries'", "GET", "kubernetes", "", 200, "0", false, false},
		{"debug is ours alone", "PUT", "program", "debug", 200, "debug", true, false},
		{"verbosity is theirs alone", "PUT", "kubernetes", "4\n", 200, "4", true, true},
		{"warn silences both", "PUT", "program", "warn", 200, "warn", false, false},
		{"info brings both back", "PUT", "program", "info", 200, "info", false, true},
		{"no level", "PUT", "program", "loud", 400, `"loud": must be debug, info, warn or error`, false, true},
		{"no verbosity", "PUT", "kubernetes", "-1", 400, `"-1": must be a number from 0 to 10`, false, true},
		{"another path", "PUT", "edge", "debug", 404, "/eclusa/log-level/program", false, true},
		{"another method", "POST", "program", "debug", 405, "PUT changes it", false, true},
		{"verbosity back", "PUT", "kubernetes", "0", 200, "0", false, false},
	} {
		w := httptest.NewRecorder()
		e.handler.ServeHTTP(w, httptest.NewRequest(test.method, e.prefix+test.path, strings.NewReader(test.body)))
		if w.Code != test.code || !strings.Contains(w.Body.String(), test.want) {
			t.Errorf("%s: got %d %q; want %d %q", test.name, w.Code, w.Body, test.code, test.want)
		}
		if debug := log.Core().Enabled(zapcore.DebugLevel); debug != test.debug {
			t.Errorf("%s: our debug lines: %v, want %v", test.name, debug, test.debug)
		}
		if verbose := klog.Background().V(4).Enabled(); verbose != test.verbose {
			t.Errorf("%s: the libraries' lines of verbosity 4: %v, want %v", test.name, verbose, test.verbose)
		}
	}
}
