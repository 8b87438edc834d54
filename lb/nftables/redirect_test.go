package nftables

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// directRedirects: a client on the members' link, whose way to the load balancer leads
// through this machine, is not told to go there by itself.
func directRedirects(r *directRig) {
	r.bridge(1, clientLink)
	f := r.add(lb.TCP)
	r.withFirst(f)
	redirect := byte(5)
	if r.family == lb.IPv6 {
		redirect = 137
	}
	told := r.rawSocket(r.client, r.icmp())
	c := r.dial(f)
	for range 10 {
		r.mustAsk(c)
	}
	// The kernel tells before it forwards, so whatever it had to say is there.
	_ = told.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	for b := make([]byte, 2000); ; {
		_, from, err := told.ReadFrom(b)
		if err != nil {
			break
		}
		if b[0] == redirect {
			r.Fatalf("%s has told the client of another way", from)
		}
	}
}

// bridge makes one of this machine's links, until the test ends.
func (r *directRig) bridge(links ...int) {
	r.Helper()
	lan := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "lan"}}
	join := func() error {
		if err := netlink.LinkAdd(lan); err != nil {
			return err
		}
		for _, n := range links {
			port, err := netlink.LinkByName(fmt.Sprintf("d%d", n))
			if err != nil {
				return err
			}
			if err := netlink.LinkSetMaster(port, lan); err != nil {
				return err
			}
			if err := r.move(n, port, lan); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(lan)
	}
	r.Cleanup(func() {
		r.forget() // the engine's routes would go with the link
		if err := netlink.LinkDel(lan); err != nil {
			r.Error(err)
		}
		for _, n := range links {
			port, err := netlink.LinkByName(fmt.Sprintf("d%d", n))
			if err == nil {
				err = r.move(n, nil, port)
			}
			if err != nil {
				r.Error(err)
			}
		}
		r.askAgain()
	})
	if err := join(); err != nil {
		r.Fatalf("bridge: %v", err)
	}
	r.askAgain()
}

// askAgain has everybody ask for the hardware addresses of others, which have changed.
func (r *directRig) askAgain() {
	r.Helper()
	for _, ns := range append(slices.Clone(r.nodes), r.client, r.edge) {
		if err := r.within(ns, func() error {
			return exec.CommandContext(context.Background(), "ip", "neighbour", "flush", "all").Run()
		}); err != nil {
			r.Errorf("forget neighbours: %v", err)
		}
	}
}

// move takes the addresses of this machine on a link from one interface to another.
func (r *directRig) move(link int, from, to netlink.Link) error {
	for _, f := range []lb.Family{lb.IPv4, lb.IPv6} {
		addr := &netlink.Addr{IPNet: ipNetIn(rigAddr(f, link, 1))}
		if f == lb.IPv6 {
			addr.Flags = unix.IFA_F_NODAD
		}
		if from != nil {
			if err := netlink.AddrDel(from, addr); err != nil {
				return err
			}
		}
		if err := netlink.AddrAdd(to, addr); err != nil {
			return err
		}
	}
	return nil
}
