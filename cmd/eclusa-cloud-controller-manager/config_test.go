package main

import (
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

const files = "client: {certFile: a, keyFile: b, caFile: c}\n"

func TestReference(t *testing.T) {
	c := defaultConfig()
	if complaints := configfile.Decode([]byte(reference), &c); len(complaints) > 0 {
		t.Fatalf("the reference is wrong: %v", complaints)
	}
	want := Config{
		ClusterName: "production",
		Client: ClientConfig{
			CertFile: "/etc/eclusa/client/tls.crt", KeyFile: "/etc/eclusa/client/tls.key", CAFile: "/etc/eclusa/client/ca.crt",
		},
		NodeAddressTypes: []string{"InternalIP", "ExternalIP"},
		NodePortRange:    "30000-32767",
	}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("the reference means something else (-want +got):\n%s", diff)
	}
}

// TestReferenceIsComplete finds every key of Config in the reference, with a
// comment directly above it.
func TestReferenceIsComplete(t *testing.T) {
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(reference), &doc); err != nil {
		t.Fatal(err)
	}
	complete(t, doc.Content[0], reflect.TypeFor[Config](), "")
}

func complete(t *testing.T, n *yaml.Node, of reflect.Type, prefix string) {
	t.Helper()
	found := make(map[string]*yaml.Node)
	for i := 0; i+1 < len(n.Content); i += 2 {
		found[n.Content[i].Value] = n.Content[i+1]
		if n.Content[i].HeadComment == "" {
			t.Errorf("key %s%s has no comment", prefix, n.Content[i].Value)
		}
	}
	for i := range of.NumField() {
		key := of.Field(i).Tag.Get("yaml")
		value, ok := found[key]
		if !ok {
			t.Errorf("key %s%s is missing", prefix, key)
			continue
		}
		if f := of.Field(i).Type; f.Kind() == reflect.Struct {
			complete(t, value, f, prefix+key+".")
		}
	}
}

func TestReadConfigComplains(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"nothing", "", `1: client.certFile: missing; it must name the file with the certificate that ` + "`eclusa-edge pki cluster`" + ` makes`},
		{"no key file", "client:\n  certFile: a\n  caFile: c\n", "1: client.keyFile: missing"},
		{"empty key file", "client:\n  certFile: a\n  keyFile:\n  caFile: c\n", "3: client.keyFile: missing"},
		{"unknown key", files + "clustername: x\n", `2: clustername: unknown key; did you mean "clusterName"?`},
		{"unknown key below", "client:\n  certFile: a\n  keyfil: b\n  caFile: c\n", `3: client.keyfil: unknown key; did you mean "keyFile"?`},
		{"nothing like it", files + "zzz: 1\n", "2: zzz: unknown key; known here are clusterName, client, nodeAddressTypes, drainCordonedNodes, nodePortRange"},
		{"twice", files + "clusterName: a\nclusterName: b\n", "3: clusterName: given twice; the first is on line 2"},
		{"number", files + "clusterName: 17\n", `2: clusterName: must be a single text; write it as "17"`},
		{"block for text", files + "clusterName: {a: b}\n", "2: clusterName: must be a single text"},
		{"text for block", "client: yes\n", "1: client: must be a block with the keys certFile, keyFile, caFile"},
		{"text for list", files + "nodeAddressTypes: InternalIP\n", "2: nodeAddressTypes: must be a list"},
		{"empty list", files + "nodeAddressTypes: []\n", "2: nodeAddressTypes: missing; it must name InternalIP or ExternalIP or both"},
		{"wrong type", files + "nodeAddressTypes:\n  - InternalIP\n  - externalip\n", `4: nodeAddressTypes[1]: "externalip": must be InternalIP or ExternalIP`},
		{"type twice", files + "nodeAddressTypes: [InternalIP, InternalIP]\n", `2: nodeAddressTypes[1]: "InternalIP": is in the list already`},
		{"range of one", files + "nodePortRange: \"30000\"\n", `2: nodePortRange: "30000": must be the first and the last port, such as 30000-32767`},
		{"range upside down", files + "nodePortRange: 32767-30000\n", `2: nodePortRange: "32767-30000": must be`},
		{"range beyond", files + "nodePortRange: 30000-65536\n", `2: nodePortRange: "30000-65536": must be`},
		{"alias", "clusterName: &a x\n" + files + "nodeAddressTypes: *a\n", "3: nodeAddressTypes: aliases are not allowed"},
		{"no YAML", files + "a: [\n", "is not YAML"},
		{"tab", files + "\tclusterName: x\n", "is not YAML: found character that cannot start any token"},
		{"not a block", "- a\n", "1: must be a block with the keys clusterName, client, nodeAddressTypes, drainCordonedNodes, nodePortRange"},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "cloud.yaml")
			if err := os.WriteFile(file, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := readConfig(file)
			if err == nil {
				t.Fatal("no complaint")
			}
			if got := err.Error(); !strings.Contains(got, test.want) || !strings.HasPrefix(got, file+":") {
				t.Errorf("got %q, want it to begin with the file and to have %q", got, test.want)
			}
		})
	}
}

func TestReadConfigComplainsOfAll(t *testing.T) {
	c := defaultConfig()
	complaints := configfile.Decode([]byte("nodeAddressTypes: [A, B]\nclusterName: 1\nx: y\n"), &c)
	if len(complaints) != 7 { // two types, a number, an unknown key, three files
		t.Errorf("%d complaints: %v; want 7", len(complaints), complaints)
	}
}

func TestReadConfigWithoutFile(t *testing.T) {
	if _, err := readConfig(filepath.Join(t.TempDir(), "none")); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("missing file: %v", err)
	}
}

func TestReadConfigDefaults(t *testing.T) {
	c := defaultConfig()
	complaints := configfile.Decode([]byte(files), &c)
	if len(complaints) > 0 || fmt.Sprint(c.nodeAddressTypes()) != "[InternalIP ExternalIP]" {
		t.Errorf("complaints %v, types %v; want none and the defaults", complaints, c.nodeAddressTypes())
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(reference))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("client: {certFile: !!binary x}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := defaultConfig()
		complaints := configfile.Decode(data, &c)
		if len(complaints) == 0 && (c.Client.CertFile == "" || len(c.NodeAddressTypes) == 0) {
			t.Errorf("no complaint about %q, read as %+v", data, c)
		}
	})
}
