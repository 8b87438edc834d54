package main

import (
	"bufio"
	"io"
	"net"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// Connections of a load balancer that was removed end in peace, also when the edge
// is upgraded meanwhile.
func TestUpgradeWhileALoadBalancerDrains(t *testing.T) {
	w, _, c, epoch, l := upgradable(t)
	l.end()
	var conn net.Conn
	var err error
	w.inNodes(func() { conn, err = net.DialTimeout("tcp", "10.0.0.129:7000", 2*time.Second) })
	w.must(err)
	defer conn.Close()
	r := bufio.NewReader(conn)
	ping := func(when string) {
		t.Helper()
		_ = conn.SetDeadline(time.Now().Add(3 * time.Second))
		_, err := io.WriteString(conn, "x\n")
		if err == nil {
			_, err = r.ReadString('\n')
		}
		if err != nil {
			t.Errorf("%s: the connection that is open: %v", when, err)
		}
		if err := w.addrs("eth0", vip); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	ping("before")
	config := loadService(2)
	config.LoadBalancers = map[lb.UID]lb.LoadBalancer{}
	w.set(c, epoch, config)
	leaving := func(s lb.Status) bool { return s.Revision == 2 && len(s.LoadBalancers["u1"].Leaving) == 1 }
	w.status(c, leaving)
	ping("removed")
	w.must(execute("upgrade", "--config", w.config()))
	w.owner()
	w.ready()
	w.status(c, leaving)
	// Longer than the new process needs to look at addresses again.
	for until := time.Now().Add(1500 * time.Millisecond); time.Now().Before(until); { // poll
		time.Sleep(100 * time.Millisecond) // poll
		ping("upgraded")
		if t.Failed() {
			return
		}
	}
}
