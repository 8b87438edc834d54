package rest

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/eclusa-lb/eclusa/lb"
)

// wide returns a configuration of three load balancers with so many listeners each.
func wide(revision uint64, listeners int) lb.Config {
	c := bigConfig(3, 3)
	c.Revision = revision
	for uid, l := range c.LoadBalancers {
		l.Listeners = nil
		for i := range listeners {
			l.Listeners = append(l.Listeners, lb.Listener{Name: fmt.Sprintf("port-%d", i), Protocol: lb.TCP, Port: uint16(1024 + i), TargetPort: uint16(30000 + i%2768)}) //nolint:gosec // small
		}
		c.LoadBalancers[uid] = l
	}
	return c
}

// A load balancer with thousands of listeners is written whole, and changed with a
// patch that holds nothing but it.
func TestThousandsOfListeners(t *testing.T) {
	b := listen(t, nil)
	c := b.client(nil)
	epoch := b.claim(c)
	b.seen()
	config := wide(1, lb.MaxListeners)
	b.mustSet(c, lb.Write{Epoch: epoch, Config: config})
	requests := b.seen()
	if size := requests[len(requests)-1].size; size > 3<<20 {
		t.Errorf("whole configuration: got %d bytes; want at most 3 MiB", size)
	}
	next := config
	next.Revision, next.LoadBalancers = 2, maps.Clone(config.LoadBalancers)
	for uid, l := range config.LoadBalancers {
		l.Listeners = append(l.Listeners[:5:5], l.Listeners[6:]...)
		next.LoadBalancers[uid] = l
		break
	}
	b.mustSet(c, lb.Write{Epoch: epoch, Config: next})
	patch := b.checkCalls("one listener less", aPatch)
	t.Logf("three times %d listeners: %d bytes whole, %d bytes to take one away", lb.MaxListeners, requests[len(requests)-1].size, patch[0].size)
}

// Beyond the edge's limits the write is refused, and the error says which.
func TestTooLargeConfigurations(t *testing.T) {
	b := listen(t, func(o *HandlerOptions) { o.MaxBody = 64 << 10 })
	c := b.client(nil)
	epoch := b.claim(c)
	b.mustSet(c, lb.Write{Epoch: epoch, Config: wide(1, 100)})
	_, err := c.Set(t.Context(), lb.Write{Epoch: epoch, Config: wide(2, 1000)})
	if !errors.Is(err, lb.ErrExhausted) || !strings.Contains(err.Error(), "body: larger than 65536 bytes") {
		t.Errorf("3000 listeners where the body may have 64 KiB: got %v; want ErrExhausted that names the limit", err)
	}
	b.mustSet(c, lb.Write{Epoch: epoch, Config: wide(3, 101)})
}
