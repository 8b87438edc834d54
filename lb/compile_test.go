package lb_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"sigs.k8s.io/yaml"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// scenario is the section input.yaml of a golden file. What it leaves out is
// filled in by a host that can do everything and policies that allow what
// documentation uses.
type scenario struct {
	Host struct {
		Capabilities      []lb.Capability   `json:"capabilities"`
		OwnAddresses      []netip.Addr      `json:"ownAddresses"`
		ShareOwnAddresses bool              `json:"shareOwnAddresses"`
		Reserved          map[string]string `json:"reserved"` // by "tcp 0.0.0.0:8443"
	} `json:"host"`
	Policies map[lb.Cluster]lb.Policy       `json:"policies"`
	Configs  map[lb.Cluster]json.RawMessage `json:"configs"`
	// Health is by "cluster/node" or "cluster/node/check": a state or "dead".
	// Nodes that are not in it are up.
	Health map[string]string `json:"health"`
}

func (s scenario) input(t *testing.T) lb.Input {
	t.Helper()
	in := lb.Input{
		Host: lb.Host{
			Capabilities: s.Host.Capabilities, OwnAddresses: s.Host.OwnAddresses,
			ShareOwnAddresses: s.Host.ShareOwnAddresses, Reserved: map[lb.Frontend]string{},
		},
		Policies: s.Policies,
		Configs:  map[lb.Cluster]lb.Config{},
		Health: func(c lb.Cluster, check lb.HealthCheck, node lb.NodeName) lb.MemberHealth {
			key := fmt.Sprintf("%s/%s", c, node)
			return memberHealth(t, s.Health[key+"/"+string(check.ID())], s.Health[key])
		},
	}
	if in.Host.Capabilities == nil {
		in.Host.Capabilities = allCapabilities
	}
	for text, holder := range s.Host.Reserved {
		protocol, addr, _ := strings.Cut(text, " ")
		a := netip.MustParseAddrPort(addr)
		in.Host.Reserved[lb.Frontend{Addr: a.Addr(), Port: a.Port(), Protocol: lb.Protocol(protocol)}] = holder
	}
	if in.Policies == nil {
		in.Policies = map[lb.Cluster]lb.Policy{}
	}
	for cluster, raw := range s.Configs {
		c, err := lb.DecodeConfig(raw)
		if err != nil {
			t.Fatalf("cluster %q: %v", cluster, err)
		}
		in.Configs[cluster] = c
		if _, ok := in.Policies[cluster]; !ok {
			in.Policies[cluster] = lb.Policy{
				AddressRanges: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")},
				NodeRanges:    []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8"), netip.MustParsePrefix("192.0.2.0/24")},
			}
		}
	}
	return in
}

func memberHealth(t *testing.T, texts ...string) lb.MemberHealth {
	for _, text := range texts {
		if text == "dead" {
			return lb.MemberHealth{State: healthcheck.Down, Dead: true}
		}
		if text == "ending" {
			return lb.MemberHealth{State: healthcheck.Draining, Ending: true}
		}
		var state healthcheck.State
		if text == "" {
			continue
		}
		if err := state.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		return lb.MemberHealth{State: state}
	}
	return lb.MemberHealth{State: healthcheck.Up}
}

func TestCompile(t *testing.T) {
	files, err := filepath.Glob("testdata/compile/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("golden files: got %d, %v; want some", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if len(archive.Files) == 0 || archive.Files[0].Name != "input.yaml" {
				t.Fatal("the first section must be input.yaml")
			}
			var s scenario
			if err := yaml.UnmarshalStrict(archive.Files[0].Data, &s); err != nil {
				t.Fatal(err)
			}
			got := describe(lb.Compile(s.input(t)))
			if *update {
				archive.Files = append(archive.Files[:1], txtar.File{Name: "outcome.txt", Data: []byte(got)})
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if len(archive.Files) != 2 || archive.Files[1].Name != "outcome.txt" {
				t.Fatal("the second and last section must be outcome.txt; run with -update")
			}
			if diff := cmp.Diff(strings.Split(string(archive.Files[1].Data), "\n"), strings.Split(got, "\n")); diff != "" {
				t.Errorf("outcome differs (-want +got), run with -update if it is right:\n%s", diff)
			}
		})
	}
}

// describe writes an outcome for people to review.
func describe(o lb.Outcome) string {
	var b bytes.Buffer
	line := func(indent int, format string, args ...any) {
		fmt.Fprintf(&b, "%s%s\n", strings.Repeat("  ", indent), fmt.Sprintf(format, args...))
	}
	line(0, "ROUTES")
	byFrontend := func(f, g lb.Frontend) int {
		return strings.Compare(fmt.Sprint(f.Addr, f.Protocol, f.Port), fmt.Sprint(g.Addr, g.Protocol, g.Port))
	}
	for _, f := range slices.SortedFunc(maps.Keys(o.Table.Routes), byFrontend) {
		r := o.Table.Routes[f]
		line(1, "%s -> %s, port %d", f, groupText(r.Group), r.TargetPort)
		line(2, "for %s %s, %s", r.Owner.Cluster, r.Name, strings.Join(settings(r), ", "))
	}
	line(0, "GROUPS")
	byText := func(g, h lb.GroupID) int { return strings.Compare(groupText(g), groupText(h)) }
	for _, id := range slices.SortedFunc(maps.Keys(o.Table.Groups), byText) {
		g := o.Table.Groups[id]
		remark := ""
		switch {
		case g.FailingOpen:
			remark = ", failing open"
		case g.LastResort:
			remark = ", last resort"
		case len(g.Backends) == 0:
			remark = ", empty"
		}
		line(1, "%s%s", groupText(id), remark)
		for _, m := range g.Backends {
			line(2, "%s %s %s, weight %d, by %s", m.Node, m.Addr, m.State, m.Weight, m.Check)
		}
	}
	line(0, "LOAD BALANCERS")
	byOwner := func(p, q lb.Owner) int {
		return strings.Compare(fmt.Sprint(p.Cluster, p.UID), fmt.Sprint(q.Cluster, q.UID))
	}
	for _, owner := range slices.SortedFunc(maps.Keys(o.LoadBalancers), byOwner) {
		status := o.LoadBalancers[owner]
		verdict := "not applied"
		switch {
		case status.Applied:
			verdict = "applied"
		case status.Partial:
			verdict = "applied in part"
		}
		line(1, "%s %s: %s", owner.Cluster, owner.UID, verdict)
		for _, p := range status.Problems {
			line(2, "%s: %s: %s", p.Type, p.Field, p.Detail)
		}
	}
	describeNodes(line, "NODES REFUSED", o.Nodes)
	describeNodes(line, "NODES WITH FEWER ADDRESSES", o.NodeWarnings)
	line(0, "CHECKS")
	for _, cluster := range slices.Sorted(maps.Keys(o.Checks)) {
		for _, id := range slices.Sorted(maps.Keys(o.Checks[cluster])) {
			check := o.Checks[cluster][id]
			line(1, "%s %s", cluster, id)
			for _, node := range slices.Sorted(maps.Keys(check.Members)) {
				substitute := "no substitute"
				if port := check.Substitute[node]; port != 0 {
					substitute = fmt.Sprintf("substitute port %d", port)
				}
				if check.Direct[node] {
					substitute += ", direct"
				}
				line(2, "%s at %s, %s", node, netip.AddrPortFrom(check.Members[node], check.HealthCheck.Port), substitute)
			}
		}
	}
	return b.String()
}

func describeNodes(line func(int, string, ...any), title string, all map[lb.Cluster]map[lb.NodeName]lb.Problem) {
	line(0, "%s", title)
	for _, cluster := range slices.Sorted(maps.Keys(all)) {
		for _, node := range slices.Sorted(maps.Keys(all[cluster])) {
			p := all[cluster][node]
			line(1, "%s %s: %s: %s: %s", cluster, node, p.Type, p.Field, p.Detail)
		}
	}
}

func groupText(id lb.GroupID) string {
	return fmt.Sprintf("[%s %s %s]", id.Cluster, id.Name, id.Family)
}

func settings(r lb.Route) []string {
	all := []string{string(r.Algorithm)}
	if r.Direct {
		all = append(all, "direct")
	}
	all = append(all, "idle "+r.IdleTimeout.String(), "drain "+r.DrainTimeout.String())
	if r.ProxyProtocol != lb.ProxyOff {
		all = append(all, "proxy protocol "+string(r.ProxyProtocol))
	}
	if r.AffinityFor > 0 {
		all = append(all, "affinity "+r.AffinityFor.String())
	}
	if r.MaxConnections > 0 {
		all = append(all, fmt.Sprintf("at most %d connections", r.MaxConnections))
	}
	if len(r.SourceRanges) > 0 {
		all = append(all, fmt.Sprintf("only from %s", r.SourceRanges))
	}
	if r.ResetDead {
		all = append(all, "reset dead")
	}
	return all
}
