package rest

import "go.uber.org/zap"

// retryLog makes zap the logger of retryablehttp. All of it is for debugging:
// what fails is returned to the caller, who knows what it means.
type retryLog struct{ log *zap.SugaredLogger }

func (l retryLog) Error(msg string, keysAndValues ...any) { l.log.Debugw(msg, keysAndValues...) }
func (l retryLog) Warn(msg string, keysAndValues ...any)  { l.log.Debugw(msg, keysAndValues...) }
func (l retryLog) Info(msg string, keysAndValues ...any)  { l.log.Debugw(msg, keysAndValues...) }
func (l retryLog) Debug(msg string, keysAndValues ...any) { l.log.Debugw(msg, keysAndValues...) }
