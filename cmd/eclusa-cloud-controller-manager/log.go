package main

import (
	"fmt"

	"github.com/go-logr/zapr"
	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/klog/v2"
)

// logOptions are how and how much is logged, to standard error.
type logOptions struct {
	format string
	level  string
}

func (o *logOptions) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.format, "log-format", "json", `How log lines look: "json" for machines, "console" for people.`)
	fs.StringVar(&o.level, "log-level", "info", `From which level on lines are logged: debug, info, warn or error. The libraries of Kubernetes log at info as much as -v says.`)
}

// build returns the program's logger and lets klog log through it as well.
// verbosity is klog's own. Both may be changed later through the levels.
func (o *logOptions) build(verbosity int) (*zap.Logger, *logLevels, error) {
	level, err := parseLogLevel(o.level)
	if err != nil {
		return nil, nil, &usageError{fmt.Errorf("--log-level: %w", err)}
	}
	if o.format != "json" && o.format != "console" {
		return nil, nil, &usageError{fmt.Errorf("--log-format: %q: must be json or console", o.format)}
	}
	l := &logLevels{program: zap.NewAtomicLevel(), libraries: zap.NewAtomicLevel(), verbosity: verbosity}
	l.set(level)
	log, err := o.config(l.program).Build()
	if err != nil {
		return nil, nil, fmt.Errorf("building the logger: %w", err)
	}
	libraries, err := o.config(l.libraries).Build()
	if err != nil {
		return nil, nil, fmt.Errorf("building the logger of klog: %w", err)
	}
	klog.SetLoggerWithOptions(zapr.NewLogger(libraries.Named("kubernetes")), klog.ContextualLogger(true))
	return log, l, nil
}

func parseLogLevel(text string) (zapcore.Level, error) {
	level, err := zapcore.ParseLevel(text)
	if err != nil || level > zapcore.ErrorLevel {
		return 0, fmt.Errorf("%q: must be debug, info, warn or error", text)
	}
	return level, nil
}

func (o *logOptions) config(level zap.AtomicLevel) zap.Config {
	c := zap.NewProductionConfig()
	c.Level = level
	c.Encoding = o.format
	c.Sampling = nil // every line means something, and floods are held back at their source
	c.DisableCaller = true
	c.DisableStacktrace = true
	c.EncoderConfig.TimeKey = "time"
	c.EncoderConfig.EncodeTime = zapcore.ISO8601TimeEncoder
	c.EncoderConfig.EncodeDuration = zapcore.StringDurationEncoder
	return c
}
