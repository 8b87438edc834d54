package main

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// Five thousand load balancers come through the whole program: one write, all
// addresses on the interface, all listeners open, all told as applied; then a
// change of one node, and a restart.
func TestFiveThousand(t *testing.T) {
	if testing.Short() {
		t.Skip("takes many seconds")
	}
	const n = 5000
	w := newWorld(t)
	w.pki()
	w.yaml = strings.Replace(edgeYAML, "10.0.0.128/26", "10.128.0.0/16", 1)
	w.node("10.0.0.11", "n1")
	p := w.start()
	w.ready()
	c := w.client("prod", "prod")
	epoch := w.claim(c, 1)
	config := service(1)
	one := config.LoadBalancers["u1"]
	config.LoadBalancers = make(map[lb.UID]lb.LoadBalancer, n)
	for i := range n {
		l := one
		l.Name = fmt.Sprintf("default/s%d", i)
		l.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 128, byte(i >> 8), byte(i)})}
		config.LoadBalancers[lb.UID(fmt.Sprintf("00000000-0000-4000-8000-%012d", i))] = l
	}
	applied := func(revision uint64) func(lb.Status) bool {
		return func(s lb.Status) bool {
			if s.Revision != revision || len(s.LoadBalancers) != n {
				return false
			}
			for _, l := range s.LoadBalancers {
				if !l.Applied {
					return false
				}
			}
			return true
		}
	}
	start := time.Now()
	w.set(c, epoch, config)
	wrote := time.Since(start)
	w.status(c, applied(1))
	t.Logf("%d load balancers: written in %s, applied in %s", n, wrote, time.Since(start))

	changed := config
	changed.Revision = 2
	changed.Nodes = map[lb.NodeName]lb.Node{"n1": config.Nodes["n1"], "n2": config.Nodes["n2"], "n3": {Addresses: config.Nodes["n3"].Addresses, Draining: true}}
	start = time.Now()
	w.set(c, epoch, changed)
	wrote = time.Since(start)
	w.status(c, applied(2))
	t.Logf("one node drains: written in %s, applied in %s", wrote, time.Since(start))
	t.Logf("memory: %d MB", p.resident(t)>>20)

	w.must(p.Process.Kill())
	_ = p.wait(t, 5*time.Second)
	start = time.Now()
	w.start()
	last := netip.AddrFrom4([4]byte{10, 128, byte((n - 1) >> 8), byte((n - 1) & 0xff)})
	route(w, "10.128.0.0/16")
	w.eventually(20*time.Second, func() error { _, err := w.get(last.String() + ":80"); return err })
	t.Logf("after a kill, served %s after the start", time.Since(start))
}

// resident returns the program's memory in bytes.
func (p *program) resident(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(data))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}
