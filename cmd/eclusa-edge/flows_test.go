package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Thousands of UDP flows, which many messages carry, keep their members and ports.
func TestUpgradeWithManyFlows(t *testing.T) {
	const flows = 5000
	w, _, _, _, l := upgradable(t, "proxy: {udpSessionsPerSource: 8192}")
	conns := make([]net.Conn, flows)
	w.inNodes(func() {
		for i := range conns {
			d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.IPv4(10, 0, 0, 200), Port: 22000 + i}}
			c, err := d.Dial("udp", "10.0.0.129:53")
			w.must(err)
			conns[i] = c
		}
	})
	members := make([]string, flows)
	ask := func(round string) (changed int) {
		buf := make([]byte, 1500)
		for i, c := range conns {
			w.must(c.SetDeadline(time.Now().Add(2 * time.Second)))
			question := fmt.Sprintf("%s-%d", round, i)
			_, err := io.WriteString(c, question)
			w.must(err)
			n, err := c.Read(buf)
			if err != nil {
				t.Fatalf("%s: flow %d: %v", round, i, err)
			}
			answer, from, _ := strings.Cut(string(buf[:n]), " ")
			if answer != question {
				t.Fatalf("%s: flow %d: got %q; want the answer to %q", round, i, answer, question)
			}
			if members[i] != "" && members[i] != from {
				changed++
			}
			members[i] = from
		}
		return changed
	}
	ask("before")
	w.must(execute("upgrade", "--config", w.config()))
	w.owner()
	if n := ask("after"); n > 0 {
		t.Errorf("%d of %d flows have another member or port after the upgrade", n, flows)
	}
	l.more()
	l.clean("the upgrade")
	for _, c := range conns {
		c.Close()
	}
	log, err := os.ReadFile(filepath.Join(w.dir, "log"))
	w.must(err)
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "withoutTraffic") {
			t.Log(line)
		}
	}
}
