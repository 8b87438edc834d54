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
// verbosity is klog's own.
func (o *logOptions) build(verbosity int) (*zap.Logger, error) {
	level, err := zapcore.ParseLevel(o.level)
	if err != nil || level > zapcore.ErrorLevel {
		return nil, &usageError{fmt.Errorf("--log-level: %q: must be debug, info, warn or error", o.level)}
	}
	if o.format != "json" && o.format != "console" {
		return nil, &usageError{fmt.Errorf("--log-format: %q: must be json or console", o.format)}
	}
	log, err := o.config(level).Build()
	if err != nil {
		return nil, fmt.Errorf("building the logger: %w", err)
	}
	// logr's verbosity n is zap's level -n: what -v lets through must not be
	// stopped here, nor may it turn on our own debug lines.
	klogLevel := level
	if level <= zapcore.InfoLevel {
		klogLevel = zapcore.Level(-min(max(verbosity, 0), 127))
	}
	libraries, err := o.config(klogLevel).Build()
	if err != nil {
		return nil, fmt.Errorf("building the logger of klog: %w", err)
	}
	klog.SetLoggerWithOptions(zapr.NewLogger(libraries.Named("kubernetes")), klog.ContextualLogger(true))
	return log, nil
}

func (o *logOptions) config(level zapcore.Level) zap.Config {
	c := zap.NewProductionConfig()
	c.Level = zap.NewAtomicLevelAt(level)
	c.Encoding = o.format
	c.Sampling = nil // every line means something, and floods are held back at their source
	c.DisableCaller = true
	c.DisableStacktrace = true
	c.EncoderConfig.TimeKey = "time"
	c.EncoderConfig.EncodeTime = zapcore.ISO8601TimeEncoder
	c.EncoderConfig.EncodeDuration = zapcore.StringDurationEncoder
	return c
}
