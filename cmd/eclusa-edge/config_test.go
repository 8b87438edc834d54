package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/eclusa-lb/eclusa/configfile"
)

// example are the keys of the reference that have no default.
var example = []string{
	"name", "api.listen", "api.certFile", "api.keyFile", "api.clientCAFile",
	"clusters[0].name", "clusters[0].addressRanges", "clusters[0].nodeRanges",
}

func TestReferenceIsCompleteAndTellsTheDefaults(t *testing.T) {
	got := DefaultConfig()
	for _, c := range configfile.Decode([]byte(reference), &got) {
		t.Errorf("reference.yaml: %s", c)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(reference), &doc); err != nil {
		t.Fatal(err)
	}
	inFile := make(map[string]bool)
	leaves(doc.Content[0], "", inFile)
	want := DefaultConfig()
	want.Clusters = make([]ClusterConfig, 1)
	want.Clusters[0].SetDefaults()
	values := make(map[string][2]string)
	compare(reflect.ValueOf(got), reflect.ValueOf(want), "", values)
	for key, v := range values {
		if !inFile[key] {
			t.Errorf("reference.yaml lacks the key %s", key)
		}
		isExample := false
		for _, e := range example {
			isExample = isExample || e == key
		}
		if !isExample && v[0] != v[1] {
			t.Errorf("reference.yaml says %s: %s; the default is %s", key, v[0], v[1])
		}
		if isExample && v[0] == v[1] {
			t.Errorf("reference.yaml has no example for the required key %s", key)
		}
	}
}

// leaves gathers the keys of a document that hold values.
func leaves(n *yaml.Node, key string, into map[string]bool) {
	if n.Kind == yaml.SequenceNode && len(n.Content) > 0 && n.Content[0].Kind == yaml.MappingNode {
		for i, item := range n.Content {
			leaves(item, fmt.Sprintf("%s[%d]", key, i), into)
		}
		return
	}
	if n.Kind != yaml.MappingNode {
		into[key] = true
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		leaves(n.Content[i+1], strings.TrimPrefix(key+"."+n.Content[i].Value, "."), into)
	}
}

// compare gathers the values of two configurations by key.
func compare(a, b reflect.Value, key string, into map[string][2]string) {
	switch {
	case a.Kind() == reflect.Struct && a.Type().PkgPath() == reflect.TypeFor[Config]().PkgPath():
		for i := range a.NumField() {
			compare(a.Field(i), b.Field(i), strings.TrimPrefix(key+"."+a.Type().Field(i).Tag.Get("yaml"), "."), into)
		}
	case a.Kind() == reflect.Slice && a.Type().Elem() == reflect.TypeFor[ClusterConfig]():
		compare(a.Index(0), b.Index(0), key+"[0]", into)
	default:
		into[key] = [2]string{fmt.Sprint(a.Interface()), fmt.Sprint(b.Interface())}
	}
}

const good = `name: edge-1
api:
  listen: 10.0.0.1:7443
  certFile: /a.crt
  keyFile: /a.key
  clientCAFile: /ca.crt
clusters:
- name: prod
  addressRanges: [10.1.0.0/24]
  nodeRanges: [10.2.0.0/24]
`

func TestComplaints(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"nothing", good, ""},
		{"unknown key", good + "mangement: {}\n", `11: mangement: unknown key; did you mean "management"?`},
		{"unknown key far from all", good + "xyzzy: 1\n", `11: xyzzy: unknown key; known here are name, stateDir, api,`},
		{"unknown key in a cluster", good + "  nodeRange: []\n", `11: clusters[0].nodeRange: unknown key; did you mean "nodeRanges"?`},
		{"doubled key", good + "name: other\n", "11: name: given twice; the first is on line 1"},
		{"no YAML", "name: [a\n", "1: is not YAML: "},
		{"wrong kind", good + "health: 3\n", "11: health: must be a block with the keys probesPerSecond"},
		{"wrong number", good + "health: {probesPerSecond: many}\n", `11: health.probesPerSecond: "many": must be a whole number`},
		{"number out of range", good + "health: {probesPerSecond: 0}\n", "11: health.probesPerSecond: 0: must be from 1 to 1000000"},
		{"wrong truth", good + "shareHostAddress: maybe\n", `11: shareHostAddress: "maybe": must be true or false`},
		{"wrong duration", good + "drainTimeout: 30\n", `11: drainTimeout: duration "30": must be a number with unit`},
		{"wildcard API", strings.Replace(good, "10.0.0.1:7443", "0.0.0.0:7443", 1), "3: api.listen: 0.0.0.0:7443: a wildcard address would make it reachable"},
		{"wildcard management", good + "management: {listen: '[::]:9980'}\n", "11: management.listen: [::]:9980: a wildcard address"},
		{"same listener twice", good + "management: {listen: 10.0.0.1:7443}\n", "11: management.listen: 10.0.0.1:7443: is the address of api.listen too"},
		{"listener without port", strings.Replace(good, "10.0.0.1:7443", "10.0.0.1", 1), `3: api.listen: "10.0.0.1": must be an address and a port`},
		{"host name", strings.Replace(good, "10.0.0.1:7443", "localhost:7443", 1), `3: api.listen: "localhost:7443": must be an address and a port`},
		{"no clusters", good[:strings.Index(good, "clusters:")], "clusters: missing"},
		{"no ranges", strings.Replace(good, "  nodeRanges: [10.2.0.0/24]\n", "", 1), "8: clusters[0].nodeRanges: missing"},
		{"single address", strings.Replace(good, "10.2.0.0/24", "10.2.0.1", 1), "10: clusters[0].nodeRanges[0]: \"10.2.0.1\": must be a range such as 192.0.2.0/24; for this single address write 10.2.0.1/32"},
		{"host bits", strings.Replace(good, "10.2.0.0/24", "10.2.0.1/24", 1), "10: clusters[0].nodeRanges[0]: 10.2.0.1/24: has bits beyond its length; did you mean 10.2.0.0/24?"},
		{"same name twice", good + "- {name: prod, addressRanges: [10.3.0.0/24], nodeRanges: [10.2.0.0/24]}\n", `11: clusters[1].name: "prod": clusters[0] on line 8 has this name already`},
		{"overlap", good + "- {name: dev, addressRanges: [10.1.0.128/25], nodeRanges: [10.2.0.0/24]}\n", `11: clusters[1].addressRanges[0]: 10.1.0.128/25 of cluster "dev": overlaps 10.1.0.0/24 of cluster "prod" on line 9; separate them, or list 10.1.0.128/25 in sharedRanges of both`},
		{"overlap shared by one", good + "- {name: dev, addressRanges: [10.1.0.128/25], sharedRanges: [10.1.0.128/25], nodeRanges: [10.2.0.0/24]}\n", `overlaps 10.1.0.0/24 of cluster "prod"`},
		{"overlap shared by both", strings.Replace(good, "  nodeRanges", "  sharedRanges: [10.1.0.128/25]\n  nodeRanges", 1) + "- {name: dev, addressRanges: [10.1.0.128/25], sharedRanges: [10.1.0.128/25], nodeRanges: [10.2.0.0/24]}\n", ""},
		{"shared outside", good + "  sharedRanges: [10.9.0.0/24]\n", "11: clusters[0].sharedRanges[0]: 10.9.0.0/24: does not lie within any of the cluster's addressRanges"},
		{"wrong pin", good + "  keyPins: [abc]\n", `11: clusters[0].keyPins[0]: "abc": must be the SHA-256 of a public key`},
		{"pins", good + "  keyPins: [" + strings.Repeat("ab", 32) + ", q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=]\n", ""},
		{"wrong name", strings.Replace(good, "edge-1", "Edge_1", 1), `1: name: "Edge_1": must be lower-case letters`},
		{"relative path", strings.Replace(good, "/ca.crt", "ca.crt", 1), `6: api.clientCAFile: "ca.crt": must be an absolute path`},
		{"relative token file", good + "management:\n  tokenFile: token\n", `12: management.tokenFile: "token": must be an absolute path`},
		{"certificate without key", good + "management: {certFile: /m.crt}\n", "11: management.keyFile: missing; certFile needs the key"},
		{"key without certificate", good + "management: {keyFile: /m.key}\n", "11: management.certFile: missing; keyFile needs its certificate"},
		{"client certificates without HTTPS", good + "management:\n  listen: 10.0.0.1:9980\n  clientCAFile: /ca.crt\n", `13: management.clientCAFile: "/ca.crt": client certificates need HTTPS; set certFile and keyFile too`},
		{"HTTPS with both", good + "management: {tokenFile: /token, certFile: /m.crt, keyFile: /m.key, clientCAFile: /ca.crt}\n", ""},
		{"interface without name", good + "announce: {mode: interface}\n", "11: announce.interface: missing"},
		{"interface without mode", good + "announce: {interface: eth0}\n", `11: announce.interface: "eth0": has no meaning with mode "none"`},
		{"unknown mode", good + "announce: {mode: bgp}\n", `11: announce.mode: "bgp": must be none or interface`},
		{"unknown engine", good + "engine: ipvs\n", `11: engine: "ipvs": must be proxy or nftables or auto`},
		{"sources", good + "engine: nftables\nnftables: {sourceAddresses: [10.1.0.16/28, \"fd00::10/124\"]}\n", ""},
		{"overlapping sources", good + "nftables: {sourceAddresses: [10.1.0.16/28, 10.1.0.17/32]}\n", "11: nftables.sourceAddresses[1]: 10.1.0.17/32: overlaps 10.1.0.16/28"},
		{"too many sources", good + "nftables: {sourceAddresses: [10.0.0.0/16]}\n", "11: nftables.sourceAddresses: 1 ranges hold more than 256 addresses"},
		{"sources on loopback", good + "nftables: {sourceAddresses: [127.0.0.8/29]}\n", "11: nftables.sourceAddresses[0]: 127.0.0.8/29: must be addresses that members can answer"},
		{"sources without translation", good + "nftables: {sourceNAT: false, sourceAddresses: [10.1.0.16/28]}\n", "11: nftables.sourceAddresses: have no meaning without nftables.sourceNAT"},
		{"alias", good + "management: &a {listen: 127.0.0.1:1}\nlog: *a\n", "12: log: aliases are not allowed"},
		{"empty key keeps the default", good + "log:\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := DefaultConfig()
			var got []string
			for _, complaint := range configfile.Decode([]byte(c.text), &config) {
				got = append(got, complaint.String())
			}
			if c.want == "" && len(got) > 0 || c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)) {
				t.Errorf("complaints: got %q; want %q", got, c.want)
			}
		})
	}
}

func TestAllComplaintsAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "edge.yaml")
	if err := os.WriteFile(path, []byte("nam: x\nengine: ipvs\nclusters:\n- {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := readConfig(path)
	if err == nil {
		t.Fatal("got nil; want complaints")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 10 {
		t.Errorf("got %d complaints; want 10:\n%v", len(lines), err)
	}
	for _, l := range lines {
		if !strings.HasPrefix(l, path+":") {
			t.Errorf("complaint %q does not begin with the file", l)
		}
	}
}

func TestCommandPrintsTheReference(t *testing.T) {
	var out bytes.Buffer
	c := newCommand()
	c.SetArgs([]string{"config", "reference"})
	c.SetOut(&out)
	if err := c.Execute(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(reference, out.String()); diff != "" {
		t.Error(diff)
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(reference))
	f.Add([]byte(good))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("? [a]\n: b\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		config := DefaultConfig()
		for _, c := range configfile.Decode(data, &config) {
			if c.Text == "" {
				t.Errorf("a complaint without text: %+v", c)
			}
		}
	})
}
