package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// loopback brings lo up and sets what every host wants, before it has any other
// device: addresses are used at once, without a second's test whether somebody
// else has them.
func (h *Host) loopback(sysctls map[string]string) error {
	return h.Do(func() error {
		all := map[string]string{
			"net/ipv6/conf/all/accept_dad":     "0",
			"net/ipv6/conf/default/accept_dad": "0",
			"net/ipv6/conf/all/accept_ra":      "0",
			"net/ipv6/conf/default/accept_ra":  "0",
			"net/ipv4/ping_group_range":        "0 2147483647",
		}
		for k, v := range sysctls {
			all[k] = v
		}
		for k, v := range all {
			err := os.WriteFile("/proc/sys/"+k, []byte(v), 0o644)
			if err != nil && (hasIPv6() || !strings.HasPrefix(k, "net/ipv6/")) {
				return fmt.Errorf("host %q: %w", h.Name, err)
			}
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
}

// forwarding are the settings of a router.
var forwarding = map[string]string{
	"net/ipv4/ip_forward":          "1",
	"net/ipv6/conf/all/forwarding": "1",
}

// makeFabric makes the host that joins the two subnets: a bridge for each, with
// the router's addresses, and no link to the machine outside.
func (l *Lab) makeFabric() error {
	if err := l.Fabric.loopback(forwarding); err != nil {
		return err
	}
	return l.Fabric.Do(func() error {
		for _, s := range []subnet{lan, wan} {
			v4, v6 := s.addrs(router)
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.HardwareAddr = s.name, hardwareAddr(v4)
			noSnooping := false
			bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &noSnooping}
			if err := netlink.LinkAdd(bridge); err != nil {
				return fmt.Errorf("bridge %q: %w", s.name, err)
			}
			if err := setAddrs(bridge, v4, v6); err != nil {
				return fmt.Errorf("bridge %q: %w", s.name, err)
			}
		}
		return nil
	})
}

// hardwareAddr is that of whoever has an address: a machine keeps its network card
// when it is booted anew, and a router when others are plugged in, so that nobody has
// to find out after seconds that packets go nowhere.
func hardwareAddr(v4 netip.Addr) net.HardwareAddr {
	const locallyAdministered = 0x02
	return append(net.HardwareAddr{locallyAdministered, 0}, v4.AsSlice()...)
}

// setAddrs gives the link its addresses in their subnets and brings it up.
func setAddrs(link netlink.Link, v4, v6 netip.Addr) error {
	for _, p := range []netip.Prefix{netip.PrefixFrom(v4, 24), netip.PrefixFrom(v6, 64)} {
		if p.Addr().Is6() && !hasIPv6() {
			continue
		}
		addr := &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("address %s: %w", p, err)
		}
	}
	return netlink.LinkSetUp(link)
}

// connect joins a host to its subnet: a cable whose one end is eth0 of the host
// and whose other end, in the fabric, has the host's name.
func (l *Lab) connect(h *Host, s subnet) error {
	err := l.Fabric.Do(func() error {
		// What is left of a former life of the host.
		if old, err := netlink.LinkByName(h.Name); err == nil {
			if err := netlink.LinkDel(old); err != nil {
				return err
			}
		}
		bridge, err := netlink.LinkByName(s.name)
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = h.Name
		attrs.MasterIndex = bridge.Attrs().Index
		cable := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerHardwareAddr: hardwareAddr(h.Addr4), PeerNamespace: netlink.NsPid(h.holder.PID)}
		if err := netlink.LinkAdd(cable); err != nil {
			return err
		}
		return netlink.LinkSetUp(cable)
	})
	if err != nil {
		return fmt.Errorf("connect host %q to the fabric: %w", h.Name, err)
	}
	err = h.Do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := setAddrs(eth0, h.Addr4, h.Addr6); err != nil {
			return err
		}
		v4, v6 := s.addrs(router)
		if err := addRoute(netip.MustParsePrefix("0.0.0.0/0"), v4); err != nil || !hasIPv6() {
			return err
		}
		return addRoute(netip.MustParsePrefix("::/0"), v6)
	})
	if err != nil {
		return fmt.Errorf("connect host %q: %w", h.Name, err)
	}
	return nil
}

// routePods lets every node, and through the fabric everybody else, reach the
// pods of each node. The node itself needs no route: its network plugin makes
// one for each pod. It may be repeated.
func (l *Lab) routePods() error {
	hosts := []*Host{l.Fabric}
	for _, n := range l.Nodes {
		hosts = append(hosts, n.Host)
	}
	for _, h := range hosts {
		if !h.Alive() {
			continue
		}
		err := h.Do(func() error {
			var errs []error
			for _, n := range l.Nodes {
				for _, cidr := range n.PodCIDRs {
					if n.Host != h {
						errs = append(errs, addRoute(cidr, n.via(cidr)))
					}
				}
			}
			return errors.Join(errs...)
		})
		if err != nil {
			return fmt.Errorf("routes to pods on %q: %w", h.Name, err)
		}
	}
	return nil
}

// via is the node's address of the same family.
func (n *Node) via(cidr netip.Prefix) netip.Addr {
	if cidr.Addr().Is4() {
		return n.Addr4
	}
	return n.Addr6
}

func addRoute(to netip.Prefix, via netip.Addr) error {
	err := netlink.RouteReplace(&netlink.Route{Dst: ipNet(to), Gw: net.IP(via.AsSlice())})
	if err != nil {
		return fmt.Errorf("route to %s through %s: %w", to, via, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: net.IP(p.Addr().AsSlice()), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// hasIPv6 reports whether the kernel can do IPv6 at all.
func hasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}
