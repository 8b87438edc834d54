package contender

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/bench/traffic"
)

// Nodes is how many nodes a network has.
const Nodes = 3

// Network is a client, an edge and three nodes, joined by veth pairs. The client
// has a way to each node past the edge as well, for what there is without a load
// balancer.
type Network struct {
	Client, Edge *Host
	Nodes        []*Host
	// Servers are the processes that answer on the nodes.
	Servers []*Process
}

var (
	vipRange    = netip.MustParsePrefix("198.18.0.0/16")
	sourceRange = netip.MustParsePrefix("10.74.0.0/24")
)

// VIP is the address of the load balancer number i.
func VIP(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 18, byte(i / 250), byte(1 + i%250)})
}

// Sources are the n addresses that an edge may use for connections to nodes.
func Sources(n int) (all []netip.Addr) {
	for i := range n {
		all = append(all, netip.AddrFrom4([4]byte{10, 74, 0, byte(1 + i)}))
	}
	return all
}

// NodeAddr is the address of a node as the edge sees it, i from 0.
func NodeAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 72, byte(1 + i), 2}) }

// DirectAddr is its address as the client sees it past the edge.
func DirectAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 73, byte(1 + i), 2}) }

// NewNetwork makes a network with servers on the nodes. Close takes it away.
func NewNetwork() (*Network, error) {
	n := &Network{}
	if err := n.build(); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

func (n *Network) build() error {
	var err error
	if n.Client, err = newHost("client"); err != nil {
		return err
	}
	if n.Edge, err = newHost("edge"); err != nil {
		return err
	}
	for i := range Nodes {
		h, err := newHost(fmt.Sprintf("node %d", i+1))
		if err != nil {
			return err
		}
		n.Nodes = append(n.Nodes, h)
	}
	for _, h := range append([]*Host{n.Client, n.Edge}, n.Nodes...) {
		if err := h.Net(prepare); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	if err := n.join(n.Edge, n.Client, netip.MustParsePrefix("10.71.0.1/24")); err != nil {
		return err
	}
	if err := n.Client.Net(func() error {
		// One client stands for many: it has all ports, and takes them again at once.
		err1 := write("net/ipv4/ip_local_port_range", "1024 65000")
		err2 := write("net/ipv4/tcp_tw_reuse", "1")
		return errors.Join(err1, err2, defaultRoute(netip.MustParseAddr("10.71.0.1")))
	}); err != nil {
		return err
	}
	for i, h := range n.Nodes {
		gateway := NodeAddr(i).Prev()
		if err := n.join(n.Edge, h, netip.PrefixFrom(gateway, 24)); err != nil {
			return err
		}
		if err := n.join(n.Client, h, netip.PrefixFrom(DirectAddr(i).Prev(), 24)); err != nil {
			return err
		}
		if err := h.Net(func() error { return defaultRoute(gateway) }); err != nil {
			return err
		}
	}
	if err := n.Edge.Net(prepareEdge); err != nil {
		return fmt.Errorf("edge: %w", err)
	}
	return n.serve()
}

func (n *Network) serve() error {
	for i, h := range n.Nodes {
		argument, err := json.Marshal(i + 1)
		if err != nil {
			return err
		}
		p, err := h.StartRole(Role{Name: "serve", Argument: argument})
		if err != nil {
			return err
		}
		n.Servers = append(n.Servers, p)
		if err := p.Ready(); err != nil {
			return err
		}
	}
	// New links take up to a second until packets flow.
	for i := range Nodes {
		for _, way := range []struct {
			from *Host
			to   netip.Addr
		}{{n.Edge, NodeAddr(i)}, {n.Client, DirectAddr(i)}} {
			if err := way.from.Reach(netip.AddrPortFrom(way.to, traffic.RequestPort), 5*time.Second); err != nil {
				return err
			}
		}
	}
	return nil
}

// Reach connects from the host until somebody answers.
func (h *Host) Reach(to netip.AddrPort, patience time.Duration) error {
	deadline := time.Now().Add(patience)
	for {
		err := h.Net(func() error {
			c, err := net.DialTimeout("tcp", to.String(), time.Second)
			if err == nil {
				c.Close()
			}
			return err
		})
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("reach %s from the %s: %w", to, h.Name, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Silence makes a node swallow what is sent to it, i from 0, as a machine that has
// lost its power does, until the returned function is called.
func (n *Network) Silence(i int) (restore func() error, err error) {
	hole := &netlink.Route{Dst: ipNet(netip.PrefixFrom(NodeAddr(i), 32)), Type: unix.RTN_BLACKHOLE, Table: unix.RT_TABLE_LOCAL}
	if err := n.Nodes[i].Net(func() error { return netlink.RouteReplace(hole) }); err != nil {
		return nil, fmt.Errorf("silence node %d: %w", i+1, err)
	}
	return func() error {
		return n.Nodes[i].Net(func() error {
			l, err := netlink.LinkByName("edge")
			if err != nil {
				return err
			}
			return netlink.RouteReplace(&netlink.Route{
				Dst: hole.Dst, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: unix.RT_SCOPE_HOST,
				LinkIndex: l.Attrs().Index, Src: hole.Dst.IP,
			})
		})
	}, nil
}

// manyRange holds the addresses of nodes that a single one stands for.
var manyRange = netip.MustParsePrefix("10.80.0.0/14")

// ManyAddr is the address of one of many nodes, i from 0.
func ManyAddr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 80 + byte(i>>16), byte(i >> 8), byte(i)})
}

// Multiply has the first node stand for up to 262,144 nodes.
func (n *Network) Multiply() error {
	if err := n.Nodes[0].Net(func() error { return localRange(manyRange) }); err != nil {
		return err
	}
	return n.Edge.Net(func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: ipNet(manyRange), Gw: NodeAddr(0).AsSlice()})
	})
}

// Close ends all processes of the network, and with them the network.
func (n *Network) Close() {
	for _, p := range n.Servers {
		p.Stop()
	}
	for _, h := range append([]*Host{n.Client, n.Edge}, n.Nodes...) {
		if h != nil {
			h.holder.Stop()
		}
	}
}

func write(name, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644)
}

// PrepareEdge makes the thread's new namespace that of an edge without links.
func PrepareEdge() error { return errors.Join(prepare(), prepareEdge()) }

func prepareEdge() error {
	return errors.Join(write("net/ipv4/ip_forward", "1"), localRange(vipRange), localRange(sourceRange))
}

// prepare brings a new namespace to what a server is like.
func prepare() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	for _, s := range [][2]string{
		{"net/ipv4/conf/all/rp_filter", "0"}, {"net/ipv4/conf/default/rp_filter", "0"},
		{"net/core/somaxconn", "4096"},
	} {
		if err := write(s[0], s[1]); err != nil {
			return err
		}
	}
	// The machine's own choice need not be one for links without a pace; where it
	// does not let namespaces have cubic, reno is the same as long as nothing is lost.
	if err := write("net/ipv4/tcp_congestion_control", "cubic"); err != nil {
		return write("net/ipv4/tcp_congestion_control", "reno")
	}
	return nil
}

// join joins two hosts. The prefix has the address of the first, the second gets
// the one after.
func (n *Network) join(a, b *Host, p netip.Prefix) error {
	name := func(h *Host) string {
		if len(h.Name) > 5 && h.Name[:4] == "node" {
			return "node" + h.Name[5:]
		}
		return h.Name
	}
	var peer int
	err := b.Net(func() error {
		var err error
		peer, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(peer)
	err = a.Net(func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name(b)}, PeerName: name(a), PeerNamespace: netlink.NsFd(peer)}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		return address(name(b), p)
	})
	if err == nil {
		err = b.Net(func() error { return address(name(a), netip.PrefixFrom(p.Addr().Next(), p.Bits())) })
	}
	if err != nil {
		return fmt.Errorf("join %s and %s: %w", a.Name, b.Name, err)
	}
	return nil
}

func address(link string, p netip.Prefix) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(p)}); err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

func defaultRoute(gateway netip.Addr) error {
	return netlink.RouteAdd(&netlink.Route{Gw: gateway.AsSlice()})
}

// localRange makes all addresses of a range the machine's own.
func localRange(p netip.Prefix) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: ipNet(p), Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: unix.RT_SCOPE_HOST})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
