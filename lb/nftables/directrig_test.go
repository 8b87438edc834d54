package nftables

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// directRig is a client, this machine and two nodes, which have the load balancers'
// addresses for their own. The nodes are on links of this machine, and the client
// has another link to each of them.
type directRig struct {
	*testing.T
	net    lbtest.Network
	family lb.Family
	engine *Engine
	table  lb.Table

	edge, client netns.NsHandle
	nodes        []netns.NsHandle
}

var (
	rigOnce sync.Once
	rigMade *directRig
	errRig  error
)

// rigLinks are this machine's links, by the peer's name.
func rigAddr(f lb.Family, link, end int) netip.Prefix {
	if f == lb.IPv6 {
		return netip.MustParsePrefix(fmt.Sprintf("fd00:204:%d::%d/64", link, end))
	}
	return netip.MustParsePrefix(fmt.Sprintf("10.204.%d.%d/24", link, end))
}

func rigVIPs(f lb.Family) *net.IPNet {
	_, n, _ := net.ParseCIDR("198.18.0.0/16")
	if f == lb.IPv6 {
		_, n, _ = net.ParseCIDR("fd00:518::/64")
	}
	return n
}

const (
	clientLink = 9
	pastLink   = 20 // and more: between client and nodes
)

func makeDirectRig() (*directRig, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r := &directRig{}
	var err error
	if r.edge, err = netns.Get(); err != nil {
		return nil, err
	}
	if r.client, err = r.place(clientLink); err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	for i := range 2 {
		node, err := r.place(i + 1)
		if err != nil {
			return nil, fmt.Errorf("node %d: %w", i+1, err)
		}
		r.nodes = append(r.nodes, node)
		if err := r.wire(r.client, node, pastLink+i); err != nil {
			return nil, fmt.Errorf("between client and node %d: %w", i+1, err)
		}
	}
	return r, nil
}

// place makes a namespace with a link to this machine, by which it reaches all else.
// A node has the load balancers' addresses.
func (r *directRig) place(link int) (netns.NsHandle, error) {
	ns, err := netns.New()
	if err != nil {
		return ns, err
	}
	if err := netns.Set(r.edge); err != nil {
		return ns, err
	}
	if err := r.wire(r.edge, ns, link); err != nil {
		return ns, err
	}
	return ns, r.within(ns, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		for _, f := range []lb.Family{lb.IPv4, lb.IPv6} {
			if link != clientLink {
				local := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: rigVIPs(f), Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: unix.RT_SCOPE_HOST}
				if f == lb.IPv6 {
					local.Scope = unix.RT_SCOPE_UNIVERSE
				}
				if err := netlink.RouteAdd(local); err != nil {
					return fmt.Errorf("addresses of load balancers: %w", err)
				}
			}
			if err := netlink.RouteAdd(&netlink.Route{Gw: rigAddr(f, link, 1).Addr().AsSlice()}); err != nil {
				return fmt.Errorf("default route: %w", err)
			}
		}
		return os.WriteFile("/proc/sys/net/ipv6/ip_nonlocal_bind", []byte("1"), 0o644)
	})
}

// wire joins two namespaces; the first has the end 1.
func (r *directRig) wire(a, b netns.NsHandle, link int) error {
	name := fmt.Sprintf("d%d", link)
	return r.within(a, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name, PeerNamespace: netlink.NsFd(b)}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		if err := addressed(name, link, 1); err != nil {
			return err
		}
		return r.within(b, func() error { return addressed(name, link, 2) })
	})
}

func addressed(name string, link, end int) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/accept_dad", []byte("0"), 0o644)
	if err := netlink.LinkSetUp(l); err != nil {
		return err
	}
	for _, f := range []lb.Family{lb.IPv4, lb.IPv6} {
		p := rigAddr(f, link, end)
		addr := &netlink.Addr{IPNet: ipNetIn(p)}
		if f == lb.IPv6 {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, addr); err != nil {
			return err
		}
	}
	return nil
}

// within calls f on a thread in another namespace, and comes back to where it was.
func (r *directRig) within(ns netns.NsHandle, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := netns.Get()
	if err != nil {
		return err
	}
	defer before.Close()
	if err := netns.Set(ns); err != nil {
		return err
	}
	return errors.Join(f(), netns.Set(before))
}

func (r *directRig) node(i int) netip.Addr { return rigAddr(r.family, i+1, 2).Addr() }
func (r *directRig) self() netip.Addr      { return rigAddr(r.family, clientLink, 2).Addr() }

// past has nodes send answers to the client directly, or through this machine.
func (r *directRig) past(on bool) {
	r.Helper()
	for i, node := range r.nodes {
		way := &netlink.Route{Dst: ipNetOf(r.self()), Gw: rigAddr(r.family, pastLink+i, 1).Addr().AsSlice()}
		if err := r.within(node, func() error {
			if on {
				return netlink.RouteReplace(way)
			}
			return netlink.RouteDel(way)
		}); err != nil {
			r.Fatalf("way of answers: %v", err)
		}
		_ = r.within(r.client, func() error {
			return os.WriteFile(fmt.Sprintf("/proc/sys/net/ipv4/conf/d%d/rp_filter", pastLink+i), []byte("0"), 0o644)
		})
	}
}

func ipNetOf(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// add adds a route with both nodes as members, which serve it.
func (r *directRig) add(p lb.Protocol) lb.Frontend {
	r.Helper()
	f := r.net.Frontend(p, r.family)
	name := fmt.Sprintf("s%d", len(r.table.Routes))
	group := lb.GroupID{Cluster: "c", Name: name, Family: r.family}
	r.table.Routes[f] = lb.Route{
		Owner: lb.Owner{Cluster: "c", UID: lb.UID(name)}, Name: "test/" + name, Group: group, TargetPort: f.Port, Direct: true,
		Algorithm: lb.RoundRobin, IdleTimeout: time.Hour, DrainTimeout: time.Hour, ResetDead: true,
	}
	g := lb.Group{}
	for i := range r.nodes {
		g.Backends = append(g.Backends, lb.Backend{Node: lb.NodeName(fmt.Sprintf("n%d", i)), Addr: r.node(i), Weight: 1})
		r.listen(i, f)
	}
	r.table.Groups[group] = g
	return f
}

// listen serves a frontend on a node: it answers each line with the node's name and
// the address that it came from.
func (r *directRig) listen(node int, f lb.Frontend) {
	r.Helper()
	addr := netip.AddrPortFrom(f.Addr, f.Port).String()
	err := r.within(r.nodes[node], func() error {
		if f.Protocol == lb.UDP {
			p, err := net.ListenPacket("udp", addr)
			if err != nil {
				return err
			}
			r.Cleanup(func() { _ = p.Close() })
			go answerDatagrams(p, node)
			return nil
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		r.Cleanup(func() { _ = l.Close() })
		go answerStreams(l, node)
		return nil
	})
	if err != nil {
		r.Fatalf("node %d: %v", node, err)
	}
}

func answerDatagrams(p net.PacketConn, node int) {
	b := make([]byte, 2000)
	for {
		_, from, err := p.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = fmt.Fprintf(packetWriter{p, from}, "n%d %s\n", node, from)
		}
	}
}

type packetWriter struct {
	net.PacketConn
	to net.Addr
}

func (w packetWriter) Write(b []byte) (int, error) { return w.WriteTo(b, w.to) }

func answerStreams(l net.Listener, node int) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			for in := bufio.NewScanner(c); in.Scan(); {
				switch in.Text() {
				case "stream":
					answerStream(c, node)
					return
				case "vanish":
					_ = vanish(c)
					return
				}
				if _, err := fmt.Fprintf(c, "n%d %s\n", node, c.RemoteAddr()); err != nil {
					return
				}
			}
		}()
	}
}

// set sets the table and returns what is refused.
func (r *directRig) set() map[lb.Frontend]error {
	r.Helper()
	t := lb.Table{Routes: map[lb.Frontend]lb.Route{}, Groups: map[lb.GroupID]lb.Group{}}
	for f, route := range r.table.Routes {
		t.Routes[f] = route
	}
	for id, g := range r.table.Groups {
		t.Groups[id] = g
	}
	refused, err := r.engine.Set(r.Context(), t)
	if err != nil {
		r.Fatalf("Set: %v", err)
	}
	return refused
}

// mustSet sets the table, of which nothing must be refused.
func (r *directRig) mustSet() {
	r.Helper()
	if refused := r.set(); len(refused) > 0 {
		r.Fatalf("Set: got refused %v; want nothing", refused)
	}
}

func (r *directRig) state(f lb.Frontend, node int, s lb.BackendState) {
	id := r.table.Routes[f].Group
	g := r.table.Groups[id]
	g.Backends = append([]lb.Backend(nil), g.Backends...)
	g.Backends[node].State = s
	r.table.Groups[id] = g
}

func (r *directRig) change(f lb.Frontend, by func(*lb.Route)) {
	route := r.table.Routes[f]
	by(&route)
	r.table.Routes[f] = route
}

// dialled is a client's connection.
type dialled struct {
	net.Conn
	in *bufio.Reader
}

func (r *directRig) try(f lb.Frontend) (*dialled, error) { return r.tryFrom(0, f) }

// tryFrom dials from a port of the client; 0 is any.
func (r *directRig) tryFrom(port int, f lb.Frontend) (*dialled, error) {
	var c net.Conn
	err := r.within(r.client, func() (err error) {
		ctx, cancel := context.WithTimeout(r.Context(), patience)
		defer cancel()
		var d net.Dialer
		if port > 0 {
			d.LocalAddr = &net.TCPAddr{Port: port}
		}
		c, err = d.DialContext(ctx, string(f.Protocol), netip.AddrPortFrom(f.Addr, f.Port).String())
		return err
	})
	if err != nil {
		return nil, err
	}
	r.Cleanup(func() { _ = c.Close() })
	return &dialled{c, bufio.NewReader(c)}, nil
}

func (r *directRig) dial(f lb.Frontend) *dialled {
	r.Helper()
	c, err := r.try(f)
	if err != nil {
		r.Fatalf("dial %s: %v", f, err)
	}
	return c
}

// ask sends a line and returns the node that answers and the address it has seen.
func (c *dialled) ask(wait time.Duration) (node, from string, err error) {
	_ = c.SetDeadline(time.Now().Add(wait))
	if _, err := fmt.Fprintln(c, "who"); err != nil {
		return "", "", err
	}
	line, err := c.in.ReadString('\n')
	node, from, _ = strings.Cut(strings.TrimSpace(line), " ")
	return node, from, err
}

// mustAsk returns the node that answers.
func (r *directRig) mustAsk(c *dialled) string {
	r.Helper()
	node, from, err := c.ask(patience)
	if err != nil {
		r.Fatalf("ask: %v", err)
	}
	if from != c.LocalAddr().String() {
		r.Errorf("%s has seen the client at %s; want %s", node, from, c.LocalAddr())
	}
	return node
}

// on returns a connection that a node has.
func (r *directRig) on(node int, f lb.Frontend) *dialled {
	r.Helper()
	for range 100 {
		c := r.dial(f)
		if r.mustAsk(c) == fmt.Sprintf("n%d", node) {
			return c
		}
	}
	r.Fatalf("none of 100 connections went to node %d", node)
	return nil
}

func (r *directRig) eventually(what string, ok func() bool) {
	r.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) { // poll
		if time.Now().After(end) {
			r.Fatalf("%s: not within %s", what, patience)
		}
	}
}

func (r *directRig) begin() {
	if r.engine != nil {
		if err := r.engine.Shutdown(r.Context()); err != nil {
			r.Fatal(err)
		}
	}
	r.engine = New(Options{Log: zaptest.NewLogger(r), Direct: true})
}

// ip runs the program ip for the family, and returns what it prints.
func (r *directRig) ip(arguments string) string {
	r.Helper()
	return listing(r, append([]string{"ip", r.flag()}, strings.Fields(arguments)...)...)
}

func (r *directRig) flag() string {
	if r.family == lb.IPv6 {
		return "-6"
	}
	return "-4"
}

// TestDirect checks routes whose packets are routed as they are.
func TestDirect(t *testing.T) {
	inNamespaces(t, func(n lbtest.Network) {
		for _, c := range slices.Concat(directCases, directFlowCases) {
			t.Run(c.name, func(t *testing.T) {
				for _, f := range []lb.Family{lb.IPv4, lb.IPv6} {
					t.Run(string(f), func(t *testing.T) {
						if n.Addresses(f) == 0 {
							lbtest.Lacking(t, "the network has no %s", f)
						}
						c.run(newDirectRig(t, n, f))
					})
				}
			})
		}
	})
}

func newDirectRig(t *testing.T, n lbtest.Network, f lb.Family) *directRig {
	rigOnce.Do(func() { rigMade, errRig = makeDirectRig() })
	if errRig != nil {
		t.Fatalf("make namespaces: %v", errRig)
	}
	r := *rigMade
	r.T, r.net, r.family = t, n, f
	r.table = lb.Table{Routes: map[lb.Frontend]lb.Route{}, Groups: map[lb.GroupID]lb.Group{}}
	t.Cleanup(func() {
		if t.Failed() {
			for _, command := range []string{"nft list table inet eclusa", "ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all"} {
				out, err := exec.Command("sh", "-c", command).CombinedOutput()
				t.Logf("%s: %v\n%s", command, err, out)
			}
		}
		r.forget()
	})
	r.begin()
	return &r
}

// forget ends the engine, with everything that it has in the kernel.
func (r *directRig) forget() {
	r.Helper()
	_ = r.engine.Shutdown(context.Background())
	if _, err := Cleanup(r.engine.log); err != nil {
		r.Error(err)
	}
}
