package lbtest

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// shutdownDrains: new clients are turned away at once, the others go on until the
// context ends.
func shutdownDrains(r *rig) {
	s := r.service(r.members(1, greet)...)
	r.set()
	c := r.connect(s)
	ctx, cancel := context.WithTimeout(context.Background(), 2*soon)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.engine.Shutdown(ctx); err != nil {
			r.Errorf("Shutdown: %v", err)
		}
	})
	r.eventually("new clients are turned away", func() bool {
		c, err := r.net.Dial(r.context(), netip.Addr{}, s.Frontend)
		if err != nil {
			return true
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(soon / 10))
		_, _ = c.Write([]byte("hello"))
		_, err = c.Read(make([]byte, 100))
		return err != nil
	})
	if ctx.Err() == nil {
		c.mustAsk("the time to drain is not over")
	}
	wg.Wait()
	if err := c.ask("after the end"); err == nil {
		r.Errorf("a connection after Shutdown: still served; want it cut")
	}
	if _, err := r.engine.Set(r.context(), lb.Table{}); err == nil {
		r.Error("Set after Shutdown: got nil; want an error")
	}
}

// shutdownEarly: Shutdown does not wait when nobody is left.
func shutdownEarly(r *rig) {
	s := r.service(r.members(1, greet)...)
	r.set()
	c := r.connect(s)
	time.AfterFunc(soon/2, func() { c.Close() })
	start := time.Now()
	if err := r.engine.Shutdown(r.context()); err != nil {
		r.Errorf("Shutdown: %v", err)
	}
	if took := time.Since(start); took < soon/4 || took > patience/2 {
		r.Errorf("Shutdown took %s; want until the only client left, after %s", took, soon/2)
	}
}

// shutdownUnused: an engine that served nothing is shut down as well.
func shutdownUnused(r *rig) {
	if err := r.engine.Shutdown(r.context()); err != nil {
		r.Errorf("Shutdown: %v", err)
	}
	if _, err := r.engine.Set(r.context(), r.table()); err == nil {
		r.Error("Set after Shutdown: got nil; want an error")
	}
}

// hold opens a socket on a frontend in the engine's network, as another program
// would.
func hold(f lb.Frontend) (release func(), err error) {
	at := netip.AddrPortFrom(f.Addr, f.Port).String()
	if f.Protocol == lb.UDP {
		p, err := net.ListenPacket("udp", at)
		if err != nil {
			return nil, err
		}
		return sync.OnceFunc(func() { p.Close() }), nil
	}
	l, err := net.Listen("tcp", at)
	if err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { l.Close() }), nil
}
