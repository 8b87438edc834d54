package main

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// started brings up nodes and an edge that serves the load balancer of service.
func started(t *testing.T) (*world, *program) {
	t.Helper()
	w := newWorld(t)
	w.pki()
	for i, a := range []string{"10.0.0.11", "10.0.0.12", "10.0.0.13"} {
		w.node(a, fmt.Sprintf("n%d", i+1))
	}
	p := w.start()
	w.ready()
	c := w.client("prod", "prod")
	epoch := w.claim(c, 1)
	if _, err := c.Set(t.Context(), lb.Write{Epoch: epoch, Config: service(1)}); err != nil {
		t.Fatal(err)
	}
	w.serves("10.0.0.129:80")
	return w, p
}

// serves waits until all three nodes have answered through the load balancer.
func (w *world) serves(addr string) time.Duration {
	w.t.Helper()
	seen := make(map[string]bool)
	return w.eventually(5*time.Second, func() error {
		page, err := w.get(addr)
		if err != nil {
			return err
		}
		if seen[page] = true; len(seen) < 3 {
			return fmt.Errorf("only %v have answered", seen)
		}
		return nil
	})
}

func TestServe(t *testing.T) {
	w, p := started(t)
	if err := p.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := p.wait(t, 5*time.Second); err != nil {
		t.Errorf("after the first signal: %v; want a clean end", err)
	}
	if _, err := w.get("10.0.0.129:80"); err == nil {
		t.Error("a connection was taken after the end")
	}
}
