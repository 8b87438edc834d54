package proxy

import (
	"testing"

	"go.uber.org/zap/zaptest"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

func newTestEngine(t *testing.T) lb.Engine {
	e := New(Options{Log: zaptest.NewLogger(t)})
	t.Cleanup(func() {
		if n := e.panics.Load(); n > 0 {
			t.Errorf("panics: got %d; want none", n)
		}
	})
	return e
}

func TestEngineOnLoopback(t *testing.T) {
	lbtest.TestEngine(t, newTestEngine, lbtest.Loopback())
}

func TestEngineInNamespaces(t *testing.T) {
	lbtest.InNamespaces(t, func(n lbtest.Network) { lbtest.TestEngine(t, newTestEngine, n) })
}
