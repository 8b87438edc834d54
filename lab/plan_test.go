package lab

import (
	"net/netip"
	"strings"
	"testing"
)

func TestPlan(t *testing.T) {
	o, err := Options{Name: "t", Dir: t.TempDir(), Nodes: maxNodes, Edges: maxEdges, Clients: maxClients}.defaulted()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[netip.Addr]string{}
	for _, r := range []string{PoolRange4, PoolRange6} {
		from, to, _ := strings.Cut(r, "-")
		for a := netip.MustParseAddr(from); ; a = a.Next() {
			seen[a] = "the pool"
			if a == netip.MustParseAddr(to) {
				break
			}
		}
	}
	for _, s := range []subnet{lan, wan} {
		v4, v6 := s.addrs(router)
		seen[v4], seen[v6] = s.name, s.name
	}
	for _, p := range plan(o) {
		v4, v6 := p.subnet.addrs(p.number)
		for _, a := range []netip.Addr{v4, v6} {
			if other, ok := seen[a]; ok {
				t.Errorf("%s has address %s of %s", p.name, a, other)
			}
			seen[a] = p.name
		}
		if p.kind == nodeKind && !netip.MustParsePrefix("fd00:30::/119").Contains(v6) {
			t.Errorf("%s: %s is not among the node ranges of the edges", p.name, v6)
		}
		// The name is also that of a network device.
		if len(p.name) > 15 {
			t.Errorf("%s: too long", p.name)
		}
	}
	if got, want := seen[netip.MustParseAddr("fd00:30::21")], "node-1"; got != want {
		t.Errorf("fd00:30::21: got %q, want %q", got, want)
	}
}

func TestPodCIDRs(t *testing.T) {
	all4, all6 := netip.MustParsePrefix(podCIDR4), netip.MustParsePrefix(podCIDR6)
	seen := map[netip.Prefix]bool{}
	for i := range maxNodes {
		cidrs := podCIDRs(Options{}, i)
		if len(cidrs) != 2 || !all4.Contains(cidrs[0].Addr()) || !all6.Contains(cidrs[1].Addr()) {
			t.Errorf("node %d: got %v, want one of %s and one of %s", i+1, cidrs, all4, all6)
		}
		for _, c := range cidrs {
			if seen[c] || c != c.Masked() {
				t.Errorf("node %d: %s is another node's or has bits beyond its length", i+1, c)
			}
			seen[c] = true
		}
	}
	if got := podCIDRs(Options{SingleStack: true}, 0); len(got) != 1 || !got[0].Addr().Is4() {
		t.Errorf("single stack: got %v, want one IPv4 range", got)
	}
}

func TestOptions(t *testing.T) {
	dir := t.TempDir()
	o, err := Options{Dir: dir}.defaulted()
	if err != nil {
		t.Fatal(err)
	}
	if o.Nodes != 2 || o.Edges != 1 || o.Clients != 1 || o.Dir != dir || !validName.MatchString(o.Name) {
		t.Errorf("defaults: got %+v", o)
	}
	o, err = Options{Dir: dir, Nodes: -1, Edges: -1, Clients: -1}.defaulted()
	if err != nil || o.Nodes != 0 || o.Edges != 0 || o.Clients != 0 {
		t.Errorf("negative numbers: got %+v, %v; want none of each", o, err)
	}
	for _, bad := range []Options{{Name: "A"}, {Name: "a/b"}, {Name: "../x"}, {Nodes: maxNodes + 1}, {Edges: maxEdges + 1}} {
		bad.Dir = dir
		if _, err := bad.defaulted(); err == nil {
			t.Errorf("%+v: no error", bad)
		}
	}
}
