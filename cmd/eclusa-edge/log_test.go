package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func TestLogLevelIsChanged(t *testing.T) {
	level := zap.NewAtomicLevelAt(zapcore.InfoLevel)
	core, lines := observer.New(level)
	log := zap.New(core)
	h := withLogLevel(http.NotFoundHandler(), level, log)
	for _, test := range []struct {
		name, method, path, body, from, origin string
		code                                   int
		want                                   string
		level                                  zapcore.Level // afterwards
	}{
		{"read", "GET", "/log-level", "", "192.0.2.7:1", "", 200, "info", zapcore.InfoLevel},
		{"change", "PUT", "/log-level", "debug\n", "127.0.0.1:1", "", 200, "debug", zapcore.DebugLevel},
		{"change over IPv6", "PUT", "/log-level", "warn", "[::1]:1", "", 200, "warn", zapcore.WarnLevel},
		{"from elsewhere", "PUT", "/log-level", "debug", "192.0.2.7:1", "", 403, "from this machine only", zapcore.WarnLevel},
		{"from a browser", "PUT", "/log-level", "debug", "127.0.0.1:1", "http://example.com", 403, "not from a browser", zapcore.WarnLevel},
		{"no level", "PUT", "/log-level", "loud", "127.0.0.1:1", "", 400, `"loud" is no level: the body must be one of debug, info, warn, error`, zapcore.WarnLevel},
		{"a level that would silence all", "PUT", "/log-level", "fatal", "127.0.0.1:1", "", 400, "is no level", zapcore.WarnLevel},
		{"too long", "PUT", "/log-level", strings.Repeat("x", 1000), "127.0.0.1:1", "", 400, "is no level", zapcore.WarnLevel},
		{"another method", "DELETE", "/log-level", "", "127.0.0.1:1", "", 405, "PUT changes it", zapcore.WarnLevel},
		{"another path", "GET", "/metrics", "", "127.0.0.1:1", "", 404, "not found", zapcore.WarnLevel},
	} {
		r := httptest.NewRequest(test.method, test.path, strings.NewReader(test.body))
		r.RemoteAddr = test.from
		if test.origin != "" {
			r.Header.Set("Origin", test.origin)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != test.code || !strings.Contains(w.Body.String(), test.want) || level.Level() != test.level {
			t.Errorf("%s: got %d %q and level %s; want %d %q and %s", test.name, w.Code, w.Body, level, test.code, test.want, test.level)
		}
	}
	log.Info("left out")
	level.SetLevel(zapcore.DebugLevel)
	log.Debug("let through")
	var said []string
	for _, l := range lines.All() {
		said = append(said, l.Message)
	}
	if got := strings.Join(said, ", "); got != "the level of logging was changed, the level of logging was changed, let through" {
		t.Errorf("logged: %s", got)
	}
}
