package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

func TestProxyHeaderBytes(t *testing.T) {
	v4, f4 := netip.MustParseAddrPort("198.51.100.7:51234"), netip.MustParseAddrPort("192.0.2.1:443")
	v6, f6 := netip.MustParseAddrPort("[2001:db8::7]:51234"), netip.MustParseAddrPort("[2001:db8:1::1]:443")
	const signature = "\r\n\r\n\x00\r\nQUIT\n"
	for _, c := range []struct {
		version       lb.ProxyProtocol
		client, front netip.AddrPort
		want          string
	}{
		{lb.ProxyV1, v4, f4, "PROXY TCP4 198.51.100.7 192.0.2.1 51234 443\r\n"},
		{lb.ProxyV1, v6, f6, "PROXY TCP6 2001:db8::7 2001:db8:1::1 51234 443\r\n"},
		{lb.ProxyV2, v4, f4, signature + "\x21\x11\x00\x0c\xc6\x33\x64\x07\xc0\x00\x02\x01\xc8\x22\x01\xbb"},
		{lb.ProxyV2, v6, f6, signature + "\x21\x21\x00\x24" +
			"\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x07" +
			"\x20\x01\x0d\xb8\x00\x01" + strings.Repeat("\x00", 9) + "\x01" + "\xc8\x22\x01\xbb"},
	} {
		if got, err := proxyHeader(c.version, c.client, c.front); err != nil || string(got) != c.want {
			t.Errorf("header %s of %s at %s: got %q, %v; want %q", c.version, c.client, c.front, got, err, c.want)
		}
	}
}

// FuzzProxyHeader: every header can be read back, and is not longer than the room
// that is counted for it.
func FuzzProxyHeader(f *testing.F) {
	f.Add([]byte{198, 51, 100, 7}, []byte{192, 0, 2, 1}, uint16(1), uint16(65535), true)
	f.Add(bytes.Repeat([]byte{255}, 16), bytes.Repeat([]byte{254}, 16), uint16(65535), uint16(1), false)
	f.Fuzz(func(t *testing.T, client, front []byte, clientPort, frontPort uint16, first bool) {
		c, ok := netip.AddrFromSlice(client)
		d, ok2 := netip.AddrFromSlice(front)
		if !ok || !ok2 || c.Unmap().BitLen() != d.Unmap().BitLen() {
			return
		}
		version := lb.ProxyV2
		if first {
			version = lb.ProxyV1
		}
		from, to := netip.AddrPortFrom(c.Unmap(), clientPort), netip.AddrPortFrom(d.Unmap(), frontPort)
		header, err := proxyHeader(version, from, to)
		if err != nil || len(header) > 107 {
			t.Fatalf("header %s of %s at %s: got %d bytes, %v", version, from, to, len(header), err)
		}
		got, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(append(header, "rest"...))))
		if err != nil || got.SourceAddr.String() != from.String() || got.DestinationAddr.String() != to.String() {
			t.Errorf("read back: got %+v, %v; want %s and %s", got, err, from, to)
		}
	})
}

// TestHeaderTakesTheFirstBytesAlong: what the client has sent before the dial is
// over goes out in the segment of the header.
func TestHeaderTakesTheFirstBytesAlong(t *testing.T) {
	sent := make(chan struct{})
	p := newPlace(t, Options{Control: func(_, address string, _ syscall.RawConn) error {
		if strings.HasSuffix(address, ":31080") {
			<-sent // the dial waits for the client
		}
		return nil
	}}, lb.TCP, 1)
	r := p.table.Routes[p.front]
	r.ProxyProtocol = lb.ProxyV1
	p.table.Routes[p.front] = r
	l, err := net.Listen("tcp", netip.AddrPortFrom(p.backends()[0].Addr, 31080).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p.set()
	c, err := p.dial()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "first bytes"); err != nil {
		t.Fatal(err)
	}
	close(sent)
	m, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	want := "PROXY TCP4 " + strings.ReplaceAll(c.LocalAddr().String(), ":"+port(c.LocalAddr()), "") + " " + p.front.Addr.String() + " " + port(c.LocalAddr()) + " 8080\r\nfirst bytes"
	_ = m.SetDeadline(time.Now().Add(10 * time.Second))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(m, got); err != nil || string(got) != want {
		t.Errorf("the member read %q, %v; want %q", got, err, want)
	}
	if n := segments(t, m); n != 1 {
		t.Errorf("segments with data: got %d; want one for header and first bytes", n)
	}
}

func port(a net.Addr) string {
	_, p, _ := net.SplitHostPort(a.String())
	return p
}

// segments returns how many segments with data a connection has received.
func segments(t *testing.T, c net.Conn) uint32 {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var n uint32
	if err := raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO); err == nil {
			n = info.Data_segs_in
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}
