package lbtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// insideEnv tells a test process that it is the one in the namespace.
const insideEnv = "ECLUSA_LBTEST_INSIDE"

// InNamespaces calls run with a network of three namespaces joined by veth pairs:
// clients, the engine's machine, and nodes. It starts the test anew in a process
// of its own, since the threads of a process that has begun cannot all move. It
// needs no root where user namespaces are allowed; where they are not the test is
// skipped, or fails if the environment variable CI is true.
func InNamespaces(t *testing.T, run func(n Network)) {
	t.Helper()
	if os.Getenv(insideEnv) != "" {
		n, err := newNamespaces()
		if err != nil {
			t.Fatalf("make namespaces: %v", err)
		}
		if err := n.settle(); err != nil {
			t.Fatal(err)
		}
		run(n)
		return
	}
	verbose := "-test.v=" + strconv.FormatBool(testing.Verbose())
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.timeout=10m", verbose)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if _, ran := errors.AsType[*exec.ExitError](err); err != nil && !ran {
		if os.Getenv("CI") == "true" {
			t.Fatalf("start in a network namespace: %v", err)
		}
		t.Skipf("network namespaces are needed: %v", err)
	}
	t.Logf("in namespaces:\n%s", out)
	if err != nil {
		t.Errorf("in namespaces: %v", err)
	}
}

// Each place has a range of addresses that are local to it as a whole, and each
// link a small subnet.
var ranges = map[string]map[lb.Family]netip.Prefix{
	"client": {lb.IPv4: netip.MustParsePrefix("10.201.0.0/16"), lb.IPv6: netip.MustParsePrefix("fd00:201::/64")},
	"vip":    {lb.IPv4: netip.MustParsePrefix("198.18.0.0/16"), lb.IPv6: netip.MustParsePrefix("fd00:518::/64")},
	"node":   {lb.IPv4: netip.MustParsePrefix("10.202.0.0/16"), lb.IPv6: netip.MustParsePrefix("fd00:202::/64")},
}

var links = map[string]map[lb.Family][2]netip.Prefix{
	"client": {
		lb.IPv4: {netip.MustParsePrefix("10.203.1.1/30"), netip.MustParsePrefix("10.203.1.2/30")},
		lb.IPv6: {netip.MustParsePrefix("fd00:203:1::1/64"), netip.MustParsePrefix("fd00:203:1::2/64")},
	},
	"node": {
		lb.IPv4: {netip.MustParsePrefix("10.203.2.1/30"), netip.MustParsePrefix("10.203.2.2/30")},
		lb.IPv6: {netip.MustParsePrefix("fd00:203:2::1/64"), netip.MustParsePrefix("fd00:203:2::2/64")},
	},
}

// namespaces is the network of InNamespaces. The engine's machine is the
// namespace of the process.
type namespaces struct {
	edge, client, node netns.NsHandle
	families           []lb.Family
	given              atomic.Uint32
}

func newNamespaces() (*namespaces, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	n := &namespaces{families: []lb.Family{lb.IPv4}}
	var err error
	if n.edge, err = netns.Get(); err != nil {
		return nil, err
	}
	if _, err := os.Stat("/proc/sys/net/ipv6"); err == nil {
		n.families = append(n.families, lb.IPv6)
	}
	if err := n.prepare("vip"); err != nil {
		return nil, err
	}
	for place, handle := range map[string]*netns.NsHandle{"client": &n.client, "node": &n.node} {
		if *handle, err = netns.New(); err != nil {
			return nil, fmt.Errorf("new namespace: %w", err)
		}
		err := n.prepare(place)
		if back := netns.Set(n.edge); back != nil {
			return nil, back
		}
		if err == nil {
			err = n.join(place, *handle)
		}
		if err != nil {
			return nil, fmt.Errorf("namespace of %ss: %w", place, err)
		}
	}
	return n, nil
}

// prepare makes a range of addresses local to the namespace of the thread.
func (n *namespaces) prepare(place string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	for _, f := range n.families {
		if f == lb.IPv6 {
			// Addresses of a range are not configured one by one, and none is in doubt.
			for file, value := range map[string]string{"ip_nonlocal_bind": "1", "conf/default/accept_dad": "0", "conf/all/accept_dad": "0"} {
				if err := os.WriteFile("/proc/sys/net/ipv6/"+file, []byte(value), 0o644); err != nil {
					return err
				}
			}
		}
		local := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: ipNet(ranges[place][f]), Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: unix.RT_SCOPE_HOST}
		if f == lb.IPv6 {
			local.Scope = unix.RT_SCOPE_UNIVERSE
		}
		if err := netlink.RouteAdd(local); err != nil {
			return fmt.Errorf("local range %s: %w", local.Dst, err)
		}
	}
	return nil
}

// join joins the namespace of the thread, the engine's, with another.
func (n *namespaces) join(place string, other netns.NsHandle) error {
	here, there := place+"0", "edge0"
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: here}, PeerName: there, PeerNamespace: netlink.NsFd(other)}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	if err := n.connect(here, place, 0, place); err != nil {
		return err
	}
	// Nodes know the way to clients too, for engines that leave their addresses.
	behind := []string{"vip"}
	if place == "node" {
		behind = append(behind, "client")
	}
	if err := netns.Set(other); err != nil {
		return err
	}
	err := n.connect(there, place, 1, behind...)
	if back := netns.Set(n.edge); back != nil {
		return back
	}
	return err
}

// connect gives a link its address, and the way to what is behind it.
func (n *namespaces) connect(link, place string, side int, behind ...string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return err
	}
	for _, f := range n.families {
		ends := links[place][f]
		own, peer := ends[side], ends[1-side]
		flags := 0
		if f == lb.IPv6 {
			flags = unix.IFA_F_NODAD
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: own.Addr().AsSlice(), Mask: net.CIDRMask(own.Bits(), own.Addr().BitLen())}, Flags: flags}
		if err := netlink.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("address %s: %w", own, err)
		}
		for _, place := range behind {
			way := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(ranges[place][f]), Gw: peer.Addr().AsSlice()}
			if err := netlink.RouteAdd(way); err != nil {
				return fmt.Errorf("route to %s: %w", way.Dst, err)
			}
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// settle waits until packets flow, since the kernel takes up to a second to bring
// new links into use.
func (n *namespaces) settle() error {
	for _, f := range n.families {
		for _, way := range []struct {
			from netns.NsHandle
			to   netip.Addr
		}{{n.edge, n.Member(f)}, {n.client, n.address("vip", f)}} {
			var err error
			if !poll(func() bool {
				err = n.within(way.from, func() error {
					ctx, cancel := context.WithTimeout(context.Background(), soon)
					defer cancel()
					_, err := dial(ctx, netip.Addr{}, lb.Frontend{Addr: way.to, Port: 9, Protocol: lb.TCP})
					return err
				})
				return errors.Is(err, unix.ECONNREFUSED)
			}) {
				return fmt.Errorf("reach %s: got %v; want that nobody listens", way.to, err) //nolint:errorlint // it may be nil
			}
		}
	}
	return nil
}

// within calls f on a thread in another namespace.
func (n *namespaces) within(ns netns.NsHandle, f func() error) error {
	runtime.LockOSThread()
	if err := netns.Set(ns); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err := f()
	if back := netns.Set(n.edge); back != nil {
		return back // the thread stays locked, and ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}

func (n *namespaces) Addresses(f lb.Family) int {
	for _, have := range n.families {
		if have == f {
			return 1 << 15
		}
	}
	return 0
}

// address returns another address of a place.
func (n *namespaces) address(place string, f lb.Family) netip.Addr {
	i := n.given.Add(1)
	b := ranges[place][f].Addr().AsSlice()
	b[len(b)-2], b[len(b)-1] = byte(i>>8), byte(i)
	a, _ := netip.AddrFromSlice(b)
	return a
}

func (n *namespaces) Member(f lb.Family) netip.Addr { return n.address("node", f) }
func (n *namespaces) Client(f lb.Family) netip.Addr { return n.address("client", f) }

func (n *namespaces) Frontend(p lb.Protocol, f lb.Family) lb.Frontend {
	return lb.Frontend{Addr: n.address("vip", f), Port: 80, Protocol: p}
}

func (n *namespaces) Listen(a netip.AddrPort) (l net.Listener, err error) {
	err = n.within(n.node, func() (err error) {
		l, err = net.Listen("tcp", a.String())
		return err
	})
	return l, err
}

func (n *namespaces) ListenPacket(a netip.AddrPort) (p net.PacketConn, err error) {
	err = n.within(n.node, func() (err error) {
		p, err = net.ListenPacket("udp", a.String())
		return err
	})
	return p, err
}

func (n *namespaces) Dial(ctx context.Context, from netip.Addr, to lb.Frontend) (c net.Conn, err error) {
	err = n.within(n.client, func() (err error) {
		c, err = dial(ctx, from, to)
		return err
	})
	return c, err
}

// Silence drops what arrives for the member on its node.
func (n *namespaces) Silence(t testing.TB, a netip.AddrPort) {
	t.Helper()
	hole := &netlink.Route{
		Dst:   ipNet(netip.PrefixFrom(a.Addr(), a.Addr().BitLen())),
		Type:  unix.RTN_BLACKHOLE,
		Table: unix.RT_TABLE_LOCAL,
	}
	if err := n.within(n.node, func() error { return netlink.RouteAdd(hole) }); err != nil {
		t.Fatalf("silence %s: %v", a, err)
	}
	t.Cleanup(func() {
		if err := n.within(n.node, func() error { return netlink.RouteDel(hole) }); err != nil {
			t.Errorf("end the silence of %s: %v", a, err)
		}
	})
}
