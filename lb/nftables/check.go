package nftables

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// Item is one thing that the engine needs, or that an operator should know.
type Item struct {
	// Name says what it is about.
	Name string
	// Missing tells that the engine cannot serve like this.
	Missing bool
	// Doubtful tells that it serves less well than it could.
	Doubtful bool
	// Detail is what was found and, if anything is wrong, what would be right.
	Detail string
}

// Check finds out whether the engine can work here, and changes nothing: the
// kernel is asked what it would say of a table with every feature.
func Check(o Options) []Item {
	e := New(o)
	items := e.checkRules()
	items = append(items, checkRaw(), checkBuffer())
	if slices.ContainsFunc(items, func(i Item) bool { return i.Missing }) {
		return items // the rest depends on them
	}
	neighbour, kept := checkNeighbour()
	items = append(items, neighbour...)
	for _, s := range settings {
		items = append(items, checkSetting(s.read(), kept || o.KeepSysctls))
	}
	items = append(items, checkMarks(o.Direct)...)
	items = append(items, checkTracking())
	items = append(items, e.checkSources()...)
	if o.Direct {
		items = append(items, checkSteering()...)
	}
	return append(items, checkOthers(o.Direct)...)
}

// checkNeighbour tells whether settings are left alone because of kube-proxy.
func checkNeighbour() (items []Item, kept bool) {
	s, err := dial()
	if err != nil {
		return nil, false
	}
	defer s.close()
	if who := clusterProxy(s); who != "" {
		return []Item{{Name: "kube-proxy", Doubtful: true, Detail: who + "; the engine leaves the kernel's settings alone then. " + besideClusterProxy}}, true
	}
	return nil, false
}

// checkRules lets the kernel judge a table with every feature.
func (e *Engine) checkRules() []Item {
	const name = "nftables"
	fault := func(err error) []Item {
		detail := err.Error()
		if errors.Is(err, unix.EPERM) {
			detail = fmt.Sprintf("%v: the program needs the capability CAP_NET_ADMIN in its network namespace", err)
		}
		return []Item{{Name: name, Missing: true, Detail: detail}}
	}
	s, err := dial()
	if err != nil {
		return fault(err)
	}
	defer s.close()
	if err := s.flows(func(*flow) {}); err != nil {
		return fault(fmt.Errorf("%w: the kernel needs nf_conntrack and nf_conntrack_netlink", err))
	}
	p, err := s.present()
	if err != nil {
		return fault(err)
	}
	e.rules = s
	defer func() { e.rules = nil }()
	e.numbers.recall(nil)
	next := e.plan(everyFeature(), nil, time.Time{}).next
	w, err := e.difference(next, p, true)
	if err == nil {
		err = s.try(w)
	}
	if err != nil {
		return fault(fmt.Errorf("the kernel refuses the engine's table: %w (it needs the modules nf_tables, nft_ct, nft_nat, nft_masq, nft_numgen, nft_hash, nft_reject_inet, nft_connlimit; Linux 5.10 or later)", err))
	}
	return []Item{{Name: name, Detail: "the kernel takes tables with everything that the engine uses"}}
}

// everyFeature is a table for which the engine uses all that it may use.
func everyFeature() lb.Table {
	t := lb.Table{Routes: make(map[lb.Frontend]lb.Route), Groups: make(map[lb.GroupID]lb.Group)}
	for _, f := range []struct{ vip, member, ranges string }{{"192.0.2.1", "192.0.2.2", "192.0.2.0/24"}, {"2001:db8::1", "2001:db8::2", "2001:db8::/32"}} {
		vip := netip.MustParseAddr(f.vip)
		group := lb.GroupID{Cluster: "check", Name: f.vip, Family: lb.FamilyOf(vip)}
		t.Groups[group] = lb.Group{Backends: []lb.Backend{{Node: "n", Addr: netip.MustParseAddr(f.member), Weight: 1}}}
		for i, p := range []lb.Protocol{lb.TCP, lb.UDP} {
			for port, affinity := range []time.Duration{0, time.Hour} {
				t.Routes[lb.Frontend{Addr: vip, Port: uint16(port + 1), Protocol: p}] = lb.Route{
					Owner: lb.Owner{Cluster: "check", UID: lb.UID(f.vip)}, Group: group, TargetPort: uint16(i + 1), AffinityFor: affinity,
					SourceRanges: []netip.Prefix{netip.MustParsePrefix(f.ranges)}, MaxConnections: 100, IdleTimeout: time.Hour,
				}
			}
		}
		t.Routes[lb.Frontend{Addr: vip, Port: 9, Protocol: lb.TCP}] = lb.Route{
			Owner: lb.Owner{Cluster: "check", UID: "direct"}, Group: group, TargetPort: 9, Direct: true,
			SourceRanges: []netip.Prefix{netip.MustParsePrefix(f.ranges)}, IdleTimeout: time.Hour, AffinityFor: time.Hour,
		}
	}
	return t
}

func checkRaw() Item {
	const name = "raw sockets"
	r, err := openRaw()
	if err != nil {
		return Item{Name: name, Missing: true, Detail: fmt.Sprintf("%v: the program needs the capability CAP_NET_RAW, to reset connections of members that are gone", err)}
	}
	r.close()
	return Item{Name: name, Detail: "can be opened, so that connections of members that are gone can be reset"}
}

// checkBuffer tells how much may be sent to the kernel at once, which a table is.
func checkBuffer() Item {
	const (
		name = "send buffer"
		// enough is more than the largest table takes.
		enough = 32 << 20
	)
	s, err := dial()
	if err != nil {
		return Item{Name: name, Doubtful: true, Detail: err.Error()}
	}
	defer s.close()
	forced := s.allow(enough)
	size, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	switch {
	case err != nil:
		return Item{Name: name, Doubtful: true, Detail: err.Error()}
	case size < enough:
		return Item{Name: name, Doubtful: true, Detail: fmt.Sprintf("may have %d kB (%v), and the kernel gets a table in one piece, with about 1 kB for each address and port; %s", size>>10, forced, largerBuffers)}
	}
	return Item{Name: name, Detail: fmt.Sprintf("may have %d kB, so that the kernel gets a table in one piece", size>>10)}
}

func checkSetting(f finding, kept bool) Item {
	i := Item{Name: f.dotted(), Detail: f.have}
	switch {
	case f.right():
		return i
	case f.absent():
		i.Detail = "is not in this kernel, and not needed then"
		return i
	case f.err != nil:
		i.Detail = f.err.Error()
	case kept:
		i.Detail = fmt.Sprintf("is %q and should be %q, since %s; the engine leaves it alone", f.have, f.want, f.why)
	case unix.Access(f.path(), unix.W_OK) != nil:
		i.Detail = fmt.Sprintf("is %q and should be %q, since %s; the program may not set it", f.have, f.want, f.why)
	default:
		i.Detail = fmt.Sprintf("is %q and will be set to %q when the engine starts, since %s", f.have, f.want, f.why)
		return i
	}
	i.Missing = f.without == v4
	i.Doubtful = !i.Missing
	if f.without == v6 {
		i.Detail += "; load balancers' IPv6 addresses are refused until then"
	}
	return i
}

// checkTracking tells how many connections the kernel may know.
func checkTracking() Item {
	const enough = 100_000
	i := Item{Name: "connection tracking"}
	read := func(name string) (int, error) {
		b, err := os.ReadFile(filepath.Join("/proc/sys/net/netfilter", name))
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(string(b)))
	}
	most, err := read("nf_conntrack_max")
	var used int
	if err == nil {
		used, err = read("nf_conntrack_count")
	}
	switch {
	case err != nil:
		i.Doubtful, i.Detail = true, err.Error()
	case most < enough:
		i.Doubtful = true
		i.Detail = fmt.Sprintf("%d of at most %d connections; a connection counts for two minutes after its end, so raise net.netfilter.nf_conntrack_max of the machine to %d or more", used, most, enough)
	default:
		i.Detail = fmt.Sprintf("%d of at most %d connections (net.netfilter.nf_conntrack_max)", used, most)
	}
	return i
}

// checkSources tells what members see as the source of connections.
func (e *Engine) checkSources() []Item {
	here := make(map[netip.Addr]bool)
	if all, err := net.InterfaceAddrs(); err == nil {
		for _, a := range all {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				here[p.Addr().Unmap()] = true
			}
		}
	}
	var items []Item
	if e.opts.KeepSources {
		return []Item{{Name: "source addresses", Detail: "members see the clients' addresses; every answer must come by way of this machine, so it must be the members' way to all clients"}}
	}
	for _, v := range versions {
		i := Item{Name: "source addresses of " + string(v.family)}
		var elsewhere []string
		for _, a := range e.sources[v] {
			if !here[a] {
				elsewhere = append(elsewhere, a.String())
			}
		}
		switch {
		case len(e.sources[v]) < enoughSources:
			i.Doubtful, i.Detail = true, fewSources(len(e.sources[v]))
		case len(elsewhere) > 0:
			i.Doubtful = true
			i.Detail = fmt.Sprintf("%s: not on an interface of this machine; members must have a route for them that leads here", strings.Join(elsewhere, ", "))
		default:
			i.Detail = fmt.Sprintf("%d, all on this machine", len(e.sources[v]))
		}
		items = append(items, i)
	}
	return items
}

const (
	// enoughSources are so many source addresses that they are not worth a word.
	enoughSources = 8
	// perSource is how many new connections a second one source address bears to
	// one port of one member: its 64,000 ports, each of which the member keeps for a
	// minute.
	perSource = 1000
)

// fewSources says what it costs to have so few source addresses; nothing if they
// are enough.
func fewSources(n int) string {
	const instead = "Give the edge 8 to 32 of each family in nftables.sourceAddresses, on the interface that leads to the members or routed here: each adds as much"
	switch {
	case n >= enoughSources:
		return ""
	case n == 0:
		return fmt.Sprintf("none: members see one address of this machine as the source of all connections, and refuse more than about %d new ones a second to one port of one member, since the same ports come back too soon. %s", perSource, instead)
	}
	return fmt.Sprintf("%d: members refuse more than about %d new connections a second to one port of one member, since the same ports come back too soon. %s", n, n*perSource, instead)
}
