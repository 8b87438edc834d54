package lb_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eclusa-lb/eclusa/lb"
)

var comparers = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

// Every field that encoding/json writes comes back.
func TestDecodeConfigReadsEveryField(t *testing.T) {
	want := filled[lb.Config]()
	got := decode(t, encode(t, want))
	if diff := cmp.Diff(want, got, comparers); diff != "" {
		t.Errorf("configuration that went through JSON differs (-want +got):\n%s", diff)
	}
}

func TestDecodeConfigLarge(t *testing.T) {
	want := large(200, 50)
	if diff := cmp.Diff(want, decode(t, encode(t, want)), comparers); diff != "" {
		t.Errorf("configuration that went through JSON differs (-want +got):\n%s", diff)
	}
}

func encode(t testing.TB, c lb.Config) []byte {
	t.Helper()
	data, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func decode(t testing.TB, data []byte) lb.Config {
	t.Helper()
	c, err := lb.DecodeConfig(data)
	if err != nil {
		t.Fatalf("decode %.200s: %v", data, err)
	}
	return c
}

// inLoadBalancer puts fields into the load balancer "u".
func inLoadBalancer(fields string) string {
	return fmt.Sprintf(`{"loadBalancers":{"u":{%s}}}`, fields)
}

func TestDecodeConfigTellsNilFromEmpty(t *testing.T) {
	for _, test := range []struct {
		text string
		want lb.Config
	}{
		{`{}`, lb.Config{}},
		{` { } `, lb.Config{}},
		{`{"nodes":{},"pools":{},"loadBalancers":{}}`, lb.Config{}},
		{`{"pools":{"a":{},"b":null}}`, lb.Config{Pools: map[lb.PoolName]lb.Pool{"a": {}, "b": nil}}},
		{`{"nodes":{"n":{"addresses":null}}}`, lb.Config{Nodes: map[lb.NodeName]lb.Node{"n": {}}}},
		{`{"nodes":{"n":{"addresses":[""]}}}`, lb.Config{Nodes: map[lb.NodeName]lb.Node{"n": {Addresses: []netip.Addr{{}}}}}},
		{inLoadBalancer(`"members":{}`), lb.Config{LoadBalancers: map[lb.UID]lb.LoadBalancer{"u": {Members: map[lb.NodeName]lb.Member{}}}}},
		{inLoadBalancer(`"members":null,"affinity":null,"listeners":null,"sourceRanges":[]`), lb.Config{LoadBalancers: map[lb.UID]lb.LoadBalancer{"u": {}}}},
		{inLoadBalancer(`"name":"\u00e9\ud83d\ude00\n\/\\\""`), lb.Config{LoadBalancers: map[lb.UID]lb.LoadBalancer{"u": {Name: "é😀\n/\\\""}}}},
	} {
		if diff := cmp.Diff(test.want, decode(t, []byte(test.text)), comparers); diff != "" {
			t.Errorf("%s differs (-want +got):\n%s", test.text, diff)
		}
	}
}

func TestDecodeConfigRefuses(t *testing.T) {
	for _, test := range []struct {
		text string
		want string // what the error says, without its place in bytes
	}{
		{``, `the top level: the text ends here: must be an object`},
		{`null`, `the top level: null: must be an object`},
		{`[]`, `the top level: a list: must be an object`},
		{`{} {}`, `the top level: an object: nothing may follow the end of the value`},
		{"{}\x00", "the top level: \x00: nothing may follow the end of the value"},
		{`{`, `the top level: the text ends here: must be a key in double quotes`},
		{`{"revision":1,}`, `the top level: ',' before '}': must stand between two elements only`},
		{`{"revision" 1}`, `the top level: 1: must be ':' after the key`},
		{`{revision:1}`, `the top level: revision: must be a key in double quotes`},
		{`{"revision":1 "nodes":{}}`, `the top level: "nodes": must be ',' or '}'`},
		{`{"Revision":1}`, `the top level: unknown field "Revision": must be one of revision, nodes, pools, loadBalancers`},
		{`{"revision":1,"revision":1}`, `revision: the key is there twice: keep one`},
		{`{"revision":-1}`, `revision: -1: must be a whole number from 0 to 18446744073709551615`},
		{`{"revision":1.0}`, `revision: 1.0: must be a whole number from 0 to 18446744073709551615`},
		{`{"revision":1e3}`, `revision: 1e3: must be a whole number from 0 to 18446744073709551615`},
		{`{"revision":01}`, `revision: 01: must be a whole number from 0 to 18446744073709551615`},
		{`{"revision":18446744073709551616}`, `revision: 18446744073709551616: must be a whole number from 0 to 18446744073709551615`},
		{`{"revision":"1"}`, `revision: "1": must be a whole number from 0 to 18446744073709551615`},
		{`{"revision":null}`, `revision: null: must be a whole number from 0 to 18446744073709551615`},
		{`{"nodes":{"a":{"addresses":["10.0.0.1"]},"a":{}}}`, `nodes["a"]: the key is there twice: keep one`},
		{`{"nodes":{"a":null}}`, `nodes["a"]: null: must be an object`},
		{`{"nodes":{"a":{"addresses":["10.0.0.1","10.0.0.256"]}}}`, `nodes["a"].addresses[1]: "10.0.0.256": must be an IP address such as "192.0.2.1" or "2001:db8::1"`},
		{`{"nodes":{"a":{"addresses":"10.0.0.1"}}}`, `nodes["a"].addresses: "10.0.0.1": must be a list`},
		{`{"nodes":{"a":{"draining":"yes"}}}`, `nodes["a"].draining: "yes": must be true or false`},
		{`{"nodes":{"a":{"weight":3000000000}}}`, `nodes["a"].weight: 3000000000: must be a whole number from -2147483648 to 2147483647`},
		{`{"pools":{"p":["a"]}}`, `pools["p"]: a list: must be an object`},
		{`{"pools":{"p":{"n":{"weight":1}}}}`, `pools["p"]["n"]: unknown field "weight": nothing may stand here`},
		{`{"pools":{"p":{"n":true}}}`, `pools["p"]["n"]: true: must be an empty object`},
		{inLoadBalancer(`"sourceRange":[]`), `loadBalancers["u"]: unknown field "sourceRange": must be one of name, claimTime, addresses, listeners, forwarding, pool, members, memberFamilies, healthCheck, failOpen, sourceRanges, algorithm, affinity, connectTimeout, idleTimeout, udpIdleTimeout, drainTimeout, maxConnections, onUnhealthy`},
		{inLoadBalancer(`"listeners":[{},{"port":65536}]`), `loadBalancers["u"].listeners[1].port: 65536: must be a whole number from 0 to 65535`},
		{inLoadBalancer(`"listeners":[{"port":80,"port":80}]`), `loadBalancers["u"].listeners[0].port: the key is there twice: keep one`},
		{inLoadBalancer(`"idleTimeout":"10"`), `loadBalancers["u"].idleTimeout: "10": must be a number with unit such as "500ms" or "10s"`},
		{inLoadBalancer(`"idleTimeout":10`), `loadBalancers["u"].idleTimeout: 10: must be text in double quotes`},
		{inLoadBalancer(`"claimTime":"yesterday"`), `loadBalancers["u"].claimTime: "yesterday": must be a time such as "2006-01-02T15:04:05Z"`},
		{inLoadBalancer(`"sourceRanges":["10.0.0.0/33"]`), `loadBalancers["u"].sourceRanges[0]: "10.0.0.0/33": must be an address range such as "192.0.2.0/24" or "2001:db8::/32"`},
		{inLoadBalancer(`"affinity":{"time":"1s"}`), `loadBalancers["u"].affinity: unknown field "time": must be one of timeout`},
		{inLoadBalancer(`"name":"` + "\n" + `"`), `loadBalancers["u"].name: text: control character 0x0a must be written as \u000a`},
		{inLoadBalancer(`"name":"\n` + "\n" + `"`), `loadBalancers["u"].name: text: control character 0x0a must be written as \u000a`},
		{inLoadBalancer(`"name":"` + "\xff" + `"`), `loadBalancers["u"].name: text: must be valid UTF-8`},
		{inLoadBalancer(`"name":"\n` + "\xff" + `"`), `loadBalancers["u"].name: text: must be valid UTF-8`},
		{inLoadBalancer(`"name":"\x"`), `loadBalancers["u"].name: text: "\\x" is no escape`},
		{inLoadBalancer(`"name":"\u12g4"`), `loadBalancers["u"].name: text: "\\u12g4" is no escape`},
		{inLoadBalancer(`"name":"\ud800"`), `loadBalancers["u"].name: text: half of a surrogate pair stands alone`},
		{inLoadBalancer(`"name":"\ud800\u0041"`), `loadBalancers["u"].name: text: half of a surrogate pair stands alone`},
		{`{"nodes":{"a`, `nodes: text: the closing double quote is missing`},
		{`{"nodes":{"a\`, `nodes: text: the closing double quote is missing`},
		{`{"nodes":{"a\"`, `nodes: text: the closing double quote is missing`},
	} {
		t.Run(test.text, func(t *testing.T) {
			_, err := lb.DecodeConfig([]byte(test.text))
			if !errors.Is(err, lb.ErrInvalid) {
				t.Fatalf("got %v; want an ErrInvalid", err)
			}
			before, after, _ := strings.Cut(err.Error(), " (byte ")
			_, after, _ = strings.Cut(after, ")")
			if got, want := before+after, "configuration: "+test.want+": invalid"; got != want {
				t.Errorf("error:\n got %s\nwant %s", got, want)
			}
		})
	}
}

// A truncated text is refused wherever it ends.
func TestDecodeConfigRefusesEveryTruncation(t *testing.T) {
	data := encode(t, filled[lb.Config]())
	for n := range len(data) {
		if _, err := lb.DecodeConfig(data[:n]); !errors.Is(err, lb.ErrInvalid) {
			t.Fatalf("the first %d bytes of %s: got %v; want an ErrInvalid", n, data, err)
		}
	}
}

func TestDecodeConfigBoundsWhatTextUnfoldsTo(t *testing.T) {
	text := inLoadBalancer(`"listeners":[{}` + strings.Repeat(`,{}`, 200_000) + `]`)
	if _, err := lb.DecodeConfig([]byte(text)); !errors.Is(err, lb.ErrExhausted) {
		t.Errorf("got %v; want an ErrExhausted", err)
	}
	deep := strings.Repeat(`{"nodes":`, 1_000_000)
	if _, err := lb.DecodeConfig([]byte(deep)); !errors.Is(err, lb.ErrInvalid) {
		t.Errorf("got %v; want an ErrInvalid", err)
	}
}

func FuzzDecodeConfig(f *testing.F) {
	f.Add(encode(f, filled[lb.Config]()))
	f.Add(encode(f, large(2, 2)))
	f.Add(encode(f, small()))
	f.Add([]byte(inLoadBalancer(`"members":{},"affinity":null,"name":"\ud83d\ude00"`)))
	f.Add([]byte(`{"nodes":{"a":{"addresses":["fe80::1%eth0",""]}},"pools":{"p":null}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := lb.DecodeConfig(data)
		if err != nil {
			if !errors.Is(err, lb.ErrInvalid) && !errors.Is(err, lb.ErrExhausted) {
				t.Fatalf("got %v; want an ErrInvalid or ErrExhausted", err)
			}
			if c.Nodes != nil || c.Pools != nil || c.LoadBalancers != nil || len(err.Error()) > 4096 {
				t.Fatalf("got %d bytes of error and %+v; want a bounded error and no configuration", len(err.Error()), c)
			}
			return
		}
		if !json.Valid(data) {
			t.Fatalf("%q was read though it is not JSON", data)
		}
		again := decode(t, encode(t, c))
		if diff := cmp.Diff(c, again, comparers); diff != "" {
			t.Fatalf("decoding what was encoded differs (-first +second):\n%s", diff)
		}
		for _, complaint := range c.Validate() {
			if complaint.Path() == "" || complaint.Problem.Detail == "" || complaint.Problem.Type == "" {
				t.Fatalf("complaint %+v does not say what it is about", complaint)
			}
		}
	})
}
