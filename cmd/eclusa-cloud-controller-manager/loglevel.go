package main

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/component-base/logs"
)

// logLevels are how much is logged, by ourselves and by the libraries of
// Kubernetes. They may be changed concurrently.
type logLevels struct {
	program, libraries zap.AtomicLevel

	mu        sync.Mutex // orders changes
	verbosity int        // of the libraries, as -v
}

// set changes the program's level. Above info it is that of the libraries too.
func (l *logLevels) set(level zapcore.Level) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.program.SetLevel(level)
	l.adjust()
}

// adjust brings the libraries' level in line. Callers hold mu. logr's verbosity n
// is zap's level -n: what -v lets through must not be stopped here, nor may it
// turn on our own debug lines.
func (l *logLevels) adjust() {
	level := l.program.Level()
	if level <= zapcore.InfoLevel {
		level = zapcore.Level(-min(max(l.verbosity, 0), 127))
	}
	l.libraries.SetLevel(level)
}

// setVerbosity changes how much the libraries log.
func (l *logLevels) setVerbosity(text string) error {
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > 10 {
		return fmt.Errorf("%q: must be a number from 0 to 10, as for -v", text)
	}
	// klog has a threshold of its own before the logger's.
	if _, err := logs.GlogSetter(text); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.verbosity = n
	l.adjust()
	return nil
}

// logLevelPrefix is below which the levels are read and changed on the secure
// port.
const logLevelPrefix = "/eclusa/log-level/"

// endpoint returns the handler of the levels: program has ours, kubernetes the
// verbosity of the libraries. GET tells, PUT changes until the program ends; who
// may do so is the business of the authorization in front.
func (l *logLevels) endpoint(log *zap.Logger) endpoint {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		of := strings.TrimPrefix(r.URL.Path, logLevelPrefix)
		if of != "program" && of != "kubernetes" {
			http.Error(w, "there are "+logLevelPrefix+"program and "+logLevelPrefix+"kubernetes", http.StatusNotFound)
			return
		}
		switch r.Method {
		case http.MethodGet, http.MethodHead:
		case http.MethodPut:
			text, err := io.ReadAll(io.LimitReader(r.Body, 64))
			if err == nil {
				err = l.put(of, strings.TrimSpace(string(text)))
			}
			if err != nil {
				http.Error(w, "body "+err.Error(), http.StatusBadRequest)
				return
			}
			log.Warn("the level of logging was changed", zap.String("of", of), zap.String("is", l.get(of)))
		default:
			w.Header().Set("Allow", "GET, HEAD, PUT")
			http.Error(w, "GET tells the level of logging, PUT changes it", http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = fmt.Fprintln(w, l.get(of)) // whoever asked is gone otherwise
	})
	return endpoint{logLevelPrefix, handler}
}

func (l *logLevels) put(of, text string) error {
	if of == "kubernetes" {
		return l.setVerbosity(text)
	}
	level, err := parseLogLevel(text)
	if err == nil {
		l.set(level)
	}
	return err
}

func (l *logLevels) get(of string) string {
	if of == "program" {
		return l.program.String()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return strconv.Itoa(l.verbosity)
}
