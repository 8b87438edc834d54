package link

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"
)

// isolate moves the test into a network namespace of its own, with a pair of
// interfaces, "edge" and "peer". The test's goroutine keeps its thread.
func isolate(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	// Never unlocked: the thread ends with the goroutine, and so does the namespace.
	ns, err := netns.New()
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("make a network namespace: %v", err)
		}
		t.Skipf("needs root to make a network namespace: %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "edge"}, PeerName: "peer"}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"lo", "edge", "peer"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(l); err != nil {
			t.Fatal(err)
		}
	}
	own := mustAddr(t, "192.0.2.2/24")
	own6 := mustAddr(t, "2001:db8::2/64")
	own6.Flags = unix.IFA_F_NODAD
	for _, a := range []*netlink.Addr{own, own6} {
		if err := netlink.AddrAdd(linkOf(t, "edge"), a); err != nil {
			t.Fatal(err)
		}
	}
}

func mustAddr(t testing.TB, s string) *netlink.Addr {
	t.Helper()
	a, err := netlink.ParseAddr(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func linkOf(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// on returns the single addresses of an interface, sorted.
func on(t testing.TB, name string) []netip.Addr {
	t.Helper()
	list, err := netlink.AddrList(linkOf(t, name), netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	var addrs []netip.Addr
	for _, a := range list {
		addr, _ := netip.AddrFromSlice(a.IP)
		if ones, bits := a.Mask.Size(); ones == bits {
			addrs = append(addrs, addr.Unmap())
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}

func addrs(s ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func newAnnouncer(t testing.TB, dir string) *Announcer {
	t.Helper()
	a, err := New(Options{Interface: "edge", StateFile: filepath.Join(dir, "announced.json"), Log: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func same(t testing.TB, what string, got, want []netip.Addr) {
	t.Helper()
	compare := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if diff := cmp.Diff(want, got, compare, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestSetAddsAndRemovesItsOwnOnly(t *testing.T) {
	isolate(t)
	foreign := mustAddr(t, "192.0.2.77/32")
	if err := netlink.AddrAdd(linkOf(t, "edge"), foreign); err != nil {
		t.Fatal(err)
	}
	a := newAnnouncer(t, t.TempDir())
	want := addrs("192.0.2.77", "192.0.2.128", "192.0.2.129", "2001:db8:1::1")
	for range 2 { // the second time changes nothing
		if err := a.Set(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		same(t, "on the interface", on(t, "edge"), want)
		same(t, "held", a.Held(), want[1:])
	}
	if err := a.Set(t.Context(), addrs("192.0.2.129")); err != nil {
		t.Fatal(err)
	}
	same(t, "after a smaller set", on(t, "edge"), addrs("192.0.2.77", "192.0.2.129"))
	if err := netlink.AddrDel(linkOf(t, "edge"), mustAddr(t, "192.0.2.129/32")); err != nil {
		t.Fatal(err)
	}
	if err := a.Set(t.Context(), addrs("192.0.2.129")); err != nil {
		t.Fatal(err)
	}
	same(t, "after somebody removed one", on(t, "edge"), addrs("192.0.2.77", "192.0.2.129"))
	if err := a.Withdraw(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, "after Withdraw", on(t, "edge"), addrs("192.0.2.77"))
	same(t, "held after Withdraw", a.Held(), nil)
}

func TestAddressesOutliveTheProgram(t *testing.T) {
	isolate(t)
	dir := t.TempDir()
	both := addrs("192.0.2.128", "2001:db8:1::1")
	if err := newAnnouncer(t, dir).Set(t.Context(), both); err != nil {
		t.Fatal(err)
	}
	a := newAnnouncer(t, dir)
	same(t, "held after a restart", a.Held(), both)
	// The record is lost; the marks are still there.
	if err := os.RemoveAll(filepath.Join(dir, "announced.json")); err != nil {
		t.Fatal(err)
	}
	a = newAnnouncer(t, dir)
	same(t, "held after the record was lost", a.Held(), both)
	if err := a.Set(t.Context(), both[:1]); err != nil {
		t.Fatal(err)
	}
	same(t, "on the interface", on(t, "edge"), both[:1])
}

func TestAnotherInterfaceIsLeft(t *testing.T) {
	isolate(t)
	dir := t.TempDir()
	if err := newAnnouncer(t, dir).Set(t.Context(), addrs("192.0.2.128")); err != nil {
		t.Fatal(err)
	}
	a, err := New(Options{Interface: "peer", StateFile: filepath.Join(dir, "announced.json"), Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Set(t.Context(), addrs("192.0.2.128")); err != nil {
		t.Fatal(err)
	}
	same(t, "on the former interface", on(t, "edge"), nil)
	same(t, "on the new interface", on(t, "peer"), addrs("192.0.2.128"))
}

func TestErrorsNameTheAddress(t *testing.T) {
	isolate(t)
	a := newAnnouncer(t, t.TempDir())
	err := a.Set(t.Context(), addrs("192.0.2.128", "224.0.0.1", "ff02::5"))
	var partial *Error
	if !errors.As(err, &partial) {
		t.Fatalf("Set: got %v; want an Error", err)
	}
	failed := partial.FailedAddresses()
	if failed[netip.MustParseAddr("ff02::5")] == nil || failed[netip.MustParseAddr("192.0.2.128")] != nil {
		t.Errorf("failed: got %v; want ff02::5 and not 192.0.2.128", failed)
	}
	if !slices.Contains(on(t, "edge"), netip.MustParseAddr("192.0.2.128")) {
		t.Error("an address was not added because another one could not be")
	}
	if _, err := New(Options{Interface: "nowhere", StateFile: filepath.Join(t.TempDir(), "a"), Log: zap.NewNop()}); err == nil {
		t.Error("New with an interface that does not exist: got nil; want an error")
	}
}

// Connections of the edge itself must not come from a load balancer's address:
// nodes would answer to whichever edge has it by then.
func TestAddressesAreNoSources(t *testing.T) {
	isolate(t)
	a := newAnnouncer(t, t.TempDir())
	// The machine's own address comes after the load balancer's, as after a
	// renewal of its lease.
	if err := netlink.AddrDel(linkOf(t, "edge"), mustAddr(t, "192.0.2.2/24")); err != nil {
		t.Fatal(err)
	}
	if err := a.Set(t.Context(), addrs("192.0.2.1", "192.0.2.128", "2001:db8::128")); err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(linkOf(t, "edge"), mustAddr(t, "192.0.2.2/24")); err != nil {
		t.Fatal(err)
	}
	gateway := &netlink.Route{LinkIndex: linkOf(t, "edge").Attrs().Index, Gw: net.IPv4(192, 0, 2, 254)}
	if err := netlink.RouteAdd(gateway); err != nil {
		t.Fatal(err)
	}
	for to, want := range map[string]string{"192.0.2.9": "192.0.2.2", "198.51.100.1": "192.0.2.2", "2001:db8::9": "2001:db8::2"} {
		// Connecting a datagram socket sends nothing; it only picks the source.
		c, err := net.Dial("udp", net.JoinHostPort(to, "9"))
		if err != nil {
			t.Fatal(err)
		}
		got := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().String()
		c.Close()
		if got != want {
			t.Errorf("source of a connection to %s: got %s; want %s", to, got, want)
		}
	}
}

func TestNeighboursAreTold(t *testing.T) {
	isolate(t)
	peer := linkOf(t, "peer")
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, int(swap(unix.ETH_P_ALL)))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: swap(unix.ETH_P_ALL), Ifindex: peer.Attrs().Index}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		t.Fatal(err)
	}
	a := newAnnouncer(t, t.TempDir())
	if err := a.Set(t.Context(), addrs("192.0.2.128", "2001:db8::128")); err != nil {
		t.Fatal(err)
	}
	mac := linkOf(t, "edge").Attrs().HardwareAddr
	want := map[string]string{
		string(arpFrame(mac, netip.MustParseAddr("192.0.2.128"))):             "ARP",
		string(advertisementFrame(mac, netip.MustParseAddr("2001:db8::128"))): "advertisement",
	}
	buf := make([]byte, 2048)
	for len(want) > 0 {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			t.Fatalf("waiting for %v: %v", want, err)
		}
		delete(want, string(buf[:n]))
	}
}

func TestChecksum(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	frame := advertisementFrame(mac, netip.MustParseAddr("2001:db8::1"))
	message := frame[54:]
	if got := checksum(netip.MustParseAddr("2001:db8::1"), allNodes, message); got != 0 {
		t.Errorf("checksum over a message with its checksum: got %#x; want 0", got)
	}
}

func TestFiveThousand(t *testing.T) {
	isolate(t)
	a := newAnnouncer(t, t.TempDir())
	a.o.Log = zap.NewNop()
	var many []netip.Addr
	for i := range 5000 {
		many = append(many, netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}))
	}
	for _, step := range []struct {
		what  string
		addrs []netip.Addr
	}{{"add", many}, {"same", many}, {"remove", nil}} {
		start, before := time.Now(), processorTime(t)
		if err := a.Set(t.Context(), step.addrs); err != nil {
			t.Fatal(err)
		}
		took := processorTime(t) - before
		t.Logf("%s 5,000 addresses: %s, %s of a processor", step.what, time.Since(start), took)
		if took > 2*time.Second {
			t.Errorf("%s 5,000 addresses took %s of a processor; want at most 2s", step.what, took)
		}
		if got := len(on(t, "edge")); got != len(step.addrs) {
			t.Errorf("%s: got %d addresses; want %d", step.what, got, len(step.addrs))
		}
	}
}

// processorTime is what the test has used so far: on a machine that is busy with
// other tests the clock says little.
func processorTime(t testing.TB) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add([]byte(`{"eth0":["192.0.2.1","2001:db8::1"]}`))
	f.Add([]byte(`{"eth0":[""]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := decodeRecord(data)
		for o := range all {
			if err == nil && !o.addr.IsValid() {
				t.Errorf("%q: an invalid address was accepted", data)
			}
		}
	})
}
