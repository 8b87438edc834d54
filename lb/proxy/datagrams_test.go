package proxy

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// TestDatagramsKeepTheirSizes passes on datagrams that can go together, and such that
// cannot, also where the kernel does not cut them.
func TestDatagramsKeepTheirSizes(t *testing.T) {
	sizes := []int{100, 100, 100, 40, 40, 900, 900, 0, 0, 7, 8, 8, 8, 1, 30000, 30000, 30000, 65507, 5}
	for _, c := range []struct {
		name      string
		noSum     int // without checksums the kernel refuses to cut
		connected bool
	}{
		{name: "connected", connected: true},
		{name: "to a name"},
		{name: "the kernel refuses", noSum: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			in, inAddr := loopbackUDP(t)
			from, _ := loopbackUDP(t)
			to, toAddr := loopbackUDP(t)
			for i, n := range sizes {
				b := make([]byte, n)
				for k := range b {
					b[k] = byte(i)
				}
				if err := unix.Sendto(from, b, 0, sockaddrOf(inAddr)); err != nil {
					t.Fatal(err)
				}
			}
			out, _ := loopbackUDP(t)
			if err := unix.SetsockoptInt(out, unix.SOL_SOCKET, unix.SO_NO_CHECK, c.noSum); err != nil {
				t.Fatal(err)
			}
			raw := rawSockaddr(toAddr)
			name := &raw
			if c.connected {
				name = nil
				if err := unix.Connect(out, sockaddrOf(toAddr)); err != nil {
					t.Fatal(err)
				}
			}
			d := newDatagrams()
			got, err := d.receive(in)
			if err != nil || got != len(sizes) {
				t.Fatalf("receive: got %d, %v; want %d", got, err, len(sizes))
			}
			for i := 0; i < got; {
				n, err := d.send(out, i, got, name)
				if err != nil {
					t.Fatalf("send from %d: %v", i, err)
				}
				i += n
			}
			var arrived []int
			b := make([]byte, 1<<16)
			for i := range sizes {
				n, _, err := unix.Recvfrom(to, b, 0)
				if err != nil {
					t.Fatalf("datagram %d: %v", i, err)
				}
				if n > 0 && (b[0] != byte(i) || b[n-1] != byte(i)) {
					t.Errorf("datagram %d: has bytes of datagrams %d and %d", i, b[0], b[n-1])
				}
				arrived = append(arrived, n)
			}
			if !slices.Equal(arrived, sizes) {
				t.Errorf("sizes: got %v; want %v", arrived, sizes)
			}
		})
	}
}

// TestTrainsAreLoadedTogether counts the messages that datagrams become.
func TestTrainsAreLoadedTogether(t *testing.T) {
	for _, c := range []struct{ sizes, want []int }{
		{[]int{10, 10, 10}, []int{3}},
		{[]int{10, 10, 4, 4}, []int{3, 1}},
		{[]int{10, 20, 20}, []int{1, 2}},
		{[]int{0, 0}, []int{1, 1}},
		{[]int{10, 0}, []int{1, 1}},
		{[]int{30000, 30000, 30000}, []int{2, 1}},
		{slices.Repeat([]int{10}, 150), []int{64, 64, 22}},
		{slices.Repeat([]int{10, 20}, 40), append([]int{1}, slices.Repeat([]int{2}, gramBatch-1)...)},
	} {
		d := newDatagrams()
		for i, n := range c.sizes {
			d.all = append(d.all, unix.Iovec{})
			d.all[i].SetLen(n)
		}
		n := len(d.load(0, len(c.sizes), nil, true))
		if got := d.lengths[:n]; !slices.Equal(got, c.want) {
			t.Errorf("trains of %v: got %v; want %v", c.sizes, got, c.want)
		}
	}
}

// TestJoinedDatagramsAreParted receives datagrams that the kernel hands over together.
func TestJoinedDatagramsAreParted(t *testing.T) {
	in, inAddr := loopbackUDP(t)
	from, _ := loopbackUDP(t)
	if err := unix.SetsockoptInt(in, unix.SOL_UDP, unix.UDP_GRO, 1); err != nil {
		lbtest.Lacking(t, "the kernel cannot join datagrams: %v", err)
	}
	joinDatagrams(in)
	var want []int
	sum := 0
	send := func(total, size int) {
		t.Helper()
		b := make([]byte, total)
		for i := range b {
			b[i] = byte(len(want) + i/size)
		}
		if err := unix.SetsockoptInt(from, unix.SOL_UDP, unix.UDP_SEGMENT, size); err != nil {
			t.Fatal(err)
		}
		if err := unix.Sendto(from, b, 0, sockaddrOf(inAddr)); err != nil {
			t.Fatal(err)
		}
		for ; total > size; total -= size {
			want = append(want, size)
		}
		want = append(want, total)
		sum++
	}
	send(64*50, 50)
	send(1000, 300)
	send(70, 100)
	send(60*1000, 1000)
	d := newDatagrams()
	got, err := d.receive(in)
	if err != nil || got != len(want) {
		t.Fatalf("receive: got %d datagrams, %v; want %d", got, err, len(want))
	}
	if d.message[got-1] != sum-1 {
		t.Errorf("messages: got %d; want %d, which tells that the kernel has joined some", d.message[got-1]+1, sum)
	}
	for i, n := range want {
		if d.size(i) != n {
			t.Errorf("datagram %d: has %d bytes; want %d", i, d.size(i), n)
			continue
		}
		b := unsafe.Slice(d.all[i].Base, n)
		if b[0] != byte(i) || b[n-1] != byte(i) {
			t.Errorf("datagram %d: has bytes of datagrams %d and %d", i, b[0], b[n-1])
		}
	}

	to, toAddr := loopbackUDP(t)
	raw := rawSockaddr(toAddr)
	for i := 0; i < got; {
		n, err := d.send(from, i, got, &raw)
		if err != nil {
			t.Fatalf("send from %d: %v", i, err)
		}
		i += n
	}
	b := make([]byte, 1<<16)
	for i, size := range want {
		n, _, err := unix.Recvfrom(to, b, 0)
		if err != nil || n != size || b[0] != byte(i) || b[n-1] != byte(i) {
			t.Fatalf("datagram %d: got %d bytes of %d, %v; want %d of its own", i, n, b[0], err, size)
		}
	}
}

// loopbackUDP returns a socket on a port of its own. It has room for all of a test.
func loopbackUDP(t *testing.T) (int, netip.AddrPort) {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	fd := int(f.Fd())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(5 * time.Second / time.Second)}); err != nil {
		t.Fatal(err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20)
	return fd, c.LocalAddr().(*net.UDPAddr).AddrPort()
}
