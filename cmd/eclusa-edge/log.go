package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// newLogger returns the program's logger, which writes to standard error, and its
// level, which may be changed while it is in use.
func newLogger(c LogConfig) (*zap.Logger, zap.AtomicLevel, error) {
	level, err := zapcore.ParseLevel(c.Level)
	if err != nil {
		return nil, zap.AtomicLevel{}, fmt.Errorf("log.level: %w", err)
	}
	z := zap.NewProductionConfig()
	z.Level = zap.NewAtomicLevelAt(level)
	z.Encoding = c.Format
	z.Sampling = nil // every line means something, and floods are held back at their source
	z.DisableCaller = true
	z.DisableStacktrace = true
	z.EncoderConfig.TimeKey = "time"
	z.EncoderConfig.EncodeTime = zapcore.ISO8601TimeEncoder
	z.EncoderConfig.EncodeDuration = zapcore.StringDurationEncoder
	log, err := z.Build()
	return log, z.Level, err
}

// logLevels are those that can be asked for.
var logLevels = []string{"debug", "info", "warn", "error"}

// logLevelPath is where the level is read and changed on the management listener.
const logLevelPath = "/log-level"

// withLogLevel answers for logLevelPath and leaves everything else to next. GET
// returns the level; PUT changes it, until the program ends, and is for whoever
// is on this machine: the listener asks nobody who they are.
func withLogLevel(next http.Handler, level zap.AtomicLevel, log *zap.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != logLevelPath {
			next.ServeHTTP(w, r)
			return
		}
		switch r.Method {
		case http.MethodGet, http.MethodHead:
		case http.MethodPut:
			if !local(r) {
				http.Error(w, "the level of logging is changed from this machine only: send the request to a loopback address, and not from a browser", http.StatusForbidden)
				return
			}
			text, err := io.ReadAll(io.LimitReader(r.Body, 64))
			wanted := strings.TrimSpace(string(text))
			if err != nil || !slices.Contains(logLevels, wanted) {
				http.Error(w, fmt.Sprintf("%q is no level: the body must be one of %s", wanted, strings.Join(logLevels, ", ")), http.StatusBadRequest)
				return
			}
			was := level.String()
			parsed, _ := zapcore.ParseLevel(wanted) // one of logLevels
			level.SetLevel(parsed)
			log.Warn("the level of logging was changed", zap.String("was", was), zap.String("is", wanted))
		default:
			w.Header().Set("Allow", "GET, HEAD, PUT")
			http.Error(w, "GET tells the level of logging, PUT changes it", http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = fmt.Fprintln(w, level) // whoever asked is gone otherwise
	})
}

// local says whether a request comes from this machine and was not sent by a page
// in a browser there.
func local(r *http.Request) bool {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil || r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != "" {
		return false
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}
