package main

import (
	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/proxy"
)

// newEngine returns the configured engine. dialFailed is told of members that
// could not be reached.
func newEngine(c Config, log *zap.Logger, dialFailed func(lb.Owner, lb.CheckID, lb.NodeName, error)) lb.Engine {
	return proxy.New(proxy.Options{
		Log:                  log,
		DialTimeout:          c.Proxy.DialTimeout.D(),
		MaxConnections:       c.Proxy.MaxConnections,
		UDPSessions:          c.Proxy.UDPSessionsPerFrontend,
		UDPSessionsPerSource: c.Proxy.UDPSessionsPerSource,
		OnDialError:          dialFailed,
	})
}
