package healthcheck_test

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/eclusa-lb/eclusa/healthcheck"
)

// A Checker with a Prober of our own, of which one member is about to go.
func ExampleChecker() {
	node1, node2 := netip.MustParseAddrPort("192.0.2.1:10256"), netip.MustParseAddrPort("192.0.2.2:10256")
	prober := func(_ context.Context, addr netip.AddrPort, _ healthcheck.Spec) error {
		if addr == node2 {
			return &healthcheck.Failure{Reason: healthcheck.HTTPStatus, Text: "HTTP 503", Draining: true}
		}
		return nil
	}
	c := healthcheck.New(healthcheck.Options{Probers: map[healthcheck.Protocol]healthcheck.Prober{
		healthcheck.HTTP: healthcheck.ProberFunc(prober),
	}})

	spec := healthcheck.Spec{Protocol: healthcheck.HTTP}.WithDefaults()
	t1, t2 := healthcheck.Target{Addr: node1, Spec: spec}, healthcheck.Target{Addr: node2, Spec: spec}
	c.Set(map[healthcheck.Target]healthcheck.Result{t1: {}, t2: {}})

	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- c.Run(ctx) }()
	if err := c.WaitFirst(ctx); err != nil {
		fmt.Println(err)
	}
	for _, t := range []healthcheck.Target{t1, t2} {
		r, _ := c.Result(t)
		fmt.Printf("%v: %v %q\n", t, r.State, r.Error)
	}
	cancel()
	<-ended
	// Output:
	// http://192.0.2.1:10256/healthz: up ""
	// http://192.0.2.2:10256/healthz: draining "HTTP 503"
}
