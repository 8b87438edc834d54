package edge

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

var sameConfig = cmp.Options{cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})}

func TestStateRoundTrip(t *testing.T) {
	config := testConfig(7, 3, 3)
	l := config.LoadBalancers["u1"]
	l.Members = map[lb.NodeName]lb.Member{} // nobody, which is not the same as nil
	config.LoadBalancers["u1"] = l
	h, data, err := newHeld(&held{}, config, "i.1")
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeState(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(config, got.config, sameConfig...); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
	if got.config.LoadBalancers["u1"].Members == nil || got.config.LoadBalancers["u2"].Members != nil {
		t.Error("members: an empty set and none are not told apart")
	}
	if got.digest != h.digest || got.epoch != "i.1" || !got.strange.empty() {
		t.Errorf("got digest %q, epoch %q, strange %+v; want %q, i.1 and nothing strange", got.digest, got.epoch, got.strange, h.digest)
	}
}

func TestDamagedState(t *testing.T) {
	_, data, err := newHeld(&held{}, testConfig(7, 3, 3), "i.1")
	if err != nil {
		t.Fatal(err)
	}
	for i := range data {
		damaged := bytes.Clone(data)
		damaged[i] ^= 1
		h, err := decodeState(damaged)
		if err == nil && (h.config.Revision != 7 || len(h.config.LoadBalancers) != 3) {
			t.Fatalf("byte %d changed: a damaged configuration was accepted", i)
		}
		// Only the line's end is of no account.
		if _, err := decodeState(data[:i]); err == nil && i < len(data)-1 {
			t.Fatalf("the first %d bytes were accepted", i)
		}
	}
}

// newer turns a state file into one of a newer version of the program.
func newer(t *testing.T, data []byte, change func(config map[string]any)) []byte {
	t.Helper()
	var r record
	var config map[string]any
	if err := errors.Join(json.Unmarshal(data, &r), json.Unmarshal(r.Config, &config)); err != nil {
		t.Fatal(err)
	}
	change(config)
	raw, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	r.Schema, r.Config, r.Digest = "v2", raw, digestOf(raw)
	data, err = json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestNewerStateIsKeptAndNotServedByHalf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t)
		epoch := b.claim("prod")
		b.set("prod", epoch, testConfig(1, 4, 2))
		b.stop()
		path := filepath.Join(b.dir, "clusters", "prod", configName)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data = newer(t, data, func(config map[string]any) {
			lbs := config["loadBalancers"].(map[string]any)
			lbs["u1"].(map[string]any)["mirror"] = "u2"
			lbs["u3"].(map[string]any)["listeners"] = "all"
			config["nodes"].(map[string]any)["n1"].(map[string]any)["rack"] = 7
			config["policies"] = []any{"x"}
		})
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}

		b.open()
		b.run()
		defer b.stop()
		table := b.table("what can be understood", func(lb.Table) bool { return true })
		if len(table.Routes) != 2 {
			t.Errorf("routes: got %d; want 2", len(table.Routes))
		}
		s := b.status("prod", "told", func(s lb.Status) bool { return len(s.LoadBalancers) == 4 })
		for uid, want := range map[lb.UID]string{"u1": "mirror", "u3": "listeners"} {
			got := s.LoadBalancers[uid]
			if got.Applied || len(got.Problems) != 1 || got.Problems[0].Type != "unsupported" || !strings.Contains(got.Problems[0].Detail, want) {
				t.Errorf("status of %s: got %+v; want unsupported because of %q", uid, got, want)
			}
		}
		// A write that leaves them as they are keeps them; one that changes them
		// replaces them.
		held, _, err := b.edge.Cluster("prod").Config(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held.Revision = 2
		b.set("prod", epoch, held)
		data, err = os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{`"mirror":"u2"`, `"rack":7`, `"policies":["x"]`, `"schema":"v2"`} {
			if !bytes.Contains(data, []byte(want)) {
				t.Errorf("after a write that changes nothing of it, the file lacks %s", want)
			}
		}
		b.set("prod", epoch, testConfig(3, 4, 2))
		b.status("prod", "u3 is served", func(s lb.Status) bool { return s.LoadBalancers["u3"].Applied })
	})
}

// A disk that cannot be written stops nobody from changing their mind.
func TestUnwritableDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRig(t)
		b.run()
		defer b.stop()
		epoch := b.claim("prod")
		c := b.edge.clusters["prod"]
		c.turn <- struct{}{}
		c.configFile.before = func(s step) error {
			if s == stepSync {
				return unix.ENOSPC
			}
			return nil
		}
		<-c.turn
		if r := b.set("prod", epoch, testConfig(1, 1, 1)); r.Durable {
			t.Error("receipt: got durable; want not")
		}
		b.table("served all the same", func(t lb.Table) bool { return len(t.Routes) == 1 })
		s := b.status("prod", "told", func(s lb.Status) bool { return s.Revision == 1 })
		if s.Durable {
			t.Error("status: got durable; want not")
		}
		if got := strings.Join(b.edge.unreadiness(), "; "); !strings.Contains(got, "cannot be saved") {
			t.Errorf("readiness: got %q; want the reason", got)
		}
		// Claims must be durable or not at all.
		c.turn <- struct{}{}
		c.leaseFile.before = func(step) error { return unix.ENOSPC }
		<-c.turn
		if _, err := b.edge.Cluster("prod").Claim(t.Context(), testClaim); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("claim: got %v; want ENOSPC", err)
		}
		b.set("prod", epoch, testConfig(2, 1, 1)) // the epoch of before still holds

		c.turn <- struct{}{}
		c.configFile.before, c.leaseFile.before = nil, nil
		<-c.turn
		b.status("prod", "saved after all", func(s lb.Status) bool { return s.Durable })
		b.stop()
		b.open()
		if got, _, err := b.edge.Cluster("prod").Config(t.Context()); err != nil || got.Revision != 2 {
			t.Errorf("after a restart: got revision %d, %v; want 2", got.Revision, err)
		}
	})
}

func FuzzDecodeState(f *testing.F) {
	_, data, err := newHeld(&held{}, testConfig(7, 2, 2), "i.1")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"schema":"v1","digest":"","config":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := decodeState(data)
		if err != nil {
			return
		}
		// Whatever was accepted can be saved again and reads as the same.
		canonical, err := h.canonical()
		if err != nil {
			t.Fatal(err)
		}
		h.digest = digestOf(canonical)
		again, err := h.encode(canonical)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeState(again)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(h.config, got.config, sameConfig...); diff != "" {
			t.Errorf("saved and read again (-first +second):\n%s", diff)
		}
		h.servable()
	})
}

// FuzzDecodeConfig has the digest right, so that what lies behind it is reached.
func FuzzDecodeConfig(f *testing.F) {
	raw, err := json.Marshal(testConfig(7, 2, 2))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"nodes":{"n":{"addresses":["x"]}},"other":1,"loadBalancers":{"u":{"new":{}}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var h held
		if err := h.decodeConfig(raw); err != nil {
			return
		}
		canonical, err := h.canonical()
		if err != nil {
			t.Fatal(err)
		}
		var again held
		if err := again.decodeConfig(canonical); err != nil {
			t.Fatalf("%v\n%s", err, canonical)
		}
		if diff := cmp.Diff(h.config, again.config, sameConfig...); diff != "" {
			t.Errorf("(-first +second):\n%s", diff)
		}
	})
}

func FuzzDecodeHealth(f *testing.F) {
	f.Add([]byte(`{"schema":"v1","results":[{"addr":"10.0.0.1:1","spec":{"protocol":"tcp"},"state":"up","since":"2020-01-01T00:00:00Z","answered":true}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		results, err := decodeHealth(data)
		if err != nil {
			return
		}
		again, err := encodeHealth(results)
		if err != nil {
			t.Skip() // a duration or a state that has no text
		}
		if got, err := decodeHealth(again); err != nil || len(got) != len(results) {
			t.Errorf("saved and read again: got %d results, %v; want %d", len(got), err, len(results))
		}
	})
}
