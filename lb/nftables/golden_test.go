package nftables

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"net/netip"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// goldenVersion is the version of nft whose output the golden files are.
const goldenVersion = "v1.0.6"

// TestGolden compares what nft lists of fixed tables, so that a reviewer can read
// the rules. The listing can be loaded again, as operators do at boot.
func TestGolden(t *testing.T) {
	inNamespaces(t, func(lbtest.Network) {
		if v := run(t, "nft", "--version"); !strings.Contains(v, goldenVersion) {
			if os.Getenv("CI") == "true" {
				t.Fatalf("nft is %s; the golden files are those of %s", v, goldenVersion)
			}
			t.Skipf("nft is %s and words rules in another way than %s", v, goldenVersion)
		}
		for name, c := range goldenTables() {
			t.Run(name, func(t *testing.T) {
				e := New(c.options)
				defer func() {
					_ = e.Shutdown(t.Context())
					if _, err := Cleanup(e.log); err != nil {
						t.Error(err)
					}
				}()
				if refused, err := e.Set(t.Context(), c.table); err != nil || len(refused) > 0 {
					t.Fatalf("Set: got refused %v, error %v; want neither", refused, err)
				}
				got := []byte(run(t, "nft", "list", "table", "inet", TableName))
				compareGolden(t, filepath.Join("testdata", name+".nft"), got)
				if c.unloadable {
					return
				}
				load := exec.Command("nft", "-c", "-f", "-")
				load.Stdin = bytes.NewReader(append([]byte("delete table inet "+TableName+"\n"), got...))
				if out, err := load.CombinedOutput(); err != nil {
					t.Errorf("nft does not load what it lists: %v\n%s", err, out)
				}
			})
		}
	})
}

func compareGolden(t *testing.T, file string, got []byte) {
	t.Helper()
	if os.Getenv("UPDATE_GOLDEN") != "" || *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got; UPDATE_GOLDEN=1 rewrites it):\n%s", file, diff)
	}
}

type goldenTable struct {
	options Options
	table   lb.Table
	// unloadable says that nft lists what it cannot read: it has no words for the
	// addresses that ICMP messages quote.
	unloadable bool
}

func goldenTables() map[string]goldenTable {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	group := func(name string, f lb.Family) lb.GroupID { return lb.GroupID{Cluster: "prod", Name: name, Family: f} }
	nodes, local, six := group("nodes http:10256/healthz", lb.IPv4), group("8c1f", lb.IPv4), group("nodes http:10256/healthz", lb.IPv6)
	plain := lb.Route{
		Owner: lb.Owner{Cluster: "prod", UID: "5d1c"}, Name: "default/web", Group: nodes, TargetPort: 31080,
		Algorithm: lb.RoundRobin, IdleTimeout: time.Hour, DrainTimeout: time.Minute, ResetDead: true,
	}
	dns := plain
	dns.Owner.UID, dns.Name, dns.TargetPort, dns.IdleTimeout = "77aa", "kube-system/dns", 30053, 30*time.Second
	full := plain
	full.Owner.UID, full.Name, full.Group, full.TargetPort = "8c1f", "shop/cart", local, 32443
	full.AffinityFor, full.MaxConnections = 3*time.Hour, 1000
	full.SourceRanges = []netip.Prefix{prefix("10.0.0.0/8"), prefix("10.1.0.0/16"), prefix("203.0.113.7/32"), prefix("2001:db8:1::/48")}
	sixth := plain
	sixth.Group, sixth.Algorithm = six, lb.SourceHash
	direct := plain
	direct.TargetPort, direct.Direct = 80, true
	directDNS := dns
	directDNS.TargetPort, directDNS.Direct, directDNS.AffinityFor = 53, true, 3*time.Hour
	directDNS.SourceRanges = []netip.Prefix{prefix("10.0.0.0/8"), prefix("2001:db8:1::/48")}
	directSix := directDNS
	directSix.Group = six
	return map[string]goldenTable{
		// Its nodes are on a link of the network of the tests.
		"direct": {unloadable: true, table: lb.Table{
			Routes: map[lb.Frontend]lb.Route{
				{Addr: addr("192.0.2.10"), Port: 80, Protocol: lb.TCP}:     direct,
				{Addr: addr("192.0.2.11"), Port: 53, Protocol: lb.UDP}:     directDNS,
				{Addr: addr("2001:db8:9::11"), Port: 53, Protocol: lb.UDP}: directSix,
			},
			Groups: map[lb.GroupID]lb.Group{
				nodes: {Backends: []lb.Backend{{Node: "a", Addr: addr("10.203.2.2"), Weight: 1}}},
				six:   {Backends: []lb.Backend{{Node: "a", Addr: addr("fd00:203:2::2"), Weight: 1}}},
			},
		}},
		"plain": {table: lb.Table{
			Routes: map[lb.Frontend]lb.Route{
				{Addr: addr("192.0.2.10"), Port: 80, Protocol: lb.TCP}: plain,
			},
			Groups: map[lb.GroupID]lb.Group{nodes: {Backends: []lb.Backend{
				{Node: "a", Addr: addr("198.51.100.1"), Weight: 1}, {Node: "b", Addr: addr("198.51.100.2"), Weight: 1, State: lb.Dead},
			}}},
		}},
		"everything": {
			options: Options{SourceAddresses: []netip.Addr{addr("198.51.100.250"), addr("198.51.100.251"), addr("2001:db8:2::250")}},
			table: lb.Table{
				Routes: map[lb.Frontend]lb.Route{
					{Addr: addr("192.0.2.12"), Port: 443, Protocol: lb.TCP}:    full,
					{Addr: addr("2001:db8:9::10"), Port: 80, Protocol: lb.TCP}: sixth,
				},
				Groups: map[lb.GroupID]lb.Group{
					local: {Backends: []lb.Backend{{Node: "b", Addr: addr("198.51.100.2"), Weight: 1}}},
					six:   {Backends: []lb.Backend{{Node: "a", Addr: addr("2001:db8:2::1"), Weight: 1}}},
				},
			},
		},
		"datagrams": {table: lb.Table{
			Routes: map[lb.Frontend]lb.Route{{Addr: addr("192.0.2.11"), Port: 53, Protocol: lb.UDP}: dns},
			Groups: map[lb.GroupID]lb.Group{nodes: {}},
		}},
	}
}
