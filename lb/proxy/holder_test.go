package proxy

import (
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

func TestHolderIsNamed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := l.Addr().(*net.TCPAddr).AddrPort()
	h := &holders{}
	got := h.explain(lb.Frontend{Addr: at.Addr(), Port: at.Port(), Protocol: lb.TCP}, unix.EADDRINUSE).Error()
	if !strings.Contains(got, at.String()) {
		t.Errorf("explanation: got %q; want it to name %s", got, at)
	}
	// The search has little time, which a machine with many processes may use up.
	if pid := strconv.Itoa(os.Getpid()); !strings.Contains(got, "pid "+pid) && !strings.Contains(got, "another process") {
		t.Errorf("explanation: got %q; want it to name pid %s", got, pid)
	}
}

func TestLowPortIsExplained(t *testing.T) {
	err := (&holders{}).explain(lb.Frontend{Addr: netip.MustParseAddr("192.0.2.1"), Port: 80, Protocol: lb.TCP}, unix.EACCES)
	for _, want := range []string{"tcp 192.0.2.1:80", "CAP_NET_BIND_SERVICE", "ip_unprivileged_port_start"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("explanation: got %q; want %q in it", err, want)
		}
	}
}

const procNetTCP = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000000000000000 100 0 0 10 0
   1: 0100007F:0051 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0000000000000000 100 0 0 10 0
`

func TestParseSockets(t *testing.T) {
	got := parseSockets(strings.NewReader(procNetTCP), true)
	want := boundSocket{netip.MustParseAddrPort("127.0.0.1:80"), "4711"}
	if len(got) != 1 || got[0] != want {
		t.Errorf("listening sockets: got %v; want %v alone", got, want)
	}
	six, ok := parseProcAddr("B80D01200000000000000000010000000:1F90"[:32] + ":1F90")
	if !ok || six.Port() != 8080 || !six.Addr().Is6() {
		t.Errorf("IPv6 address: got %v, %v; want one with port 8080", six, ok)
	}
}

func FuzzParseSockets(f *testing.F) {
	f.Add(procNetTCP)
	f.Add("x 00000000000000000000000001000000:0050 y 0A 1 2 3 4 5 6")
	f.Fuzz(func(t *testing.T, text string) {
		for _, s := range parseSockets(strings.NewReader(text), false) {
			if !s.local.Addr().IsValid() {
				t.Errorf("parsed %v; want a valid address", s)
			}
		}
	})
}
