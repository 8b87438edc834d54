package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/rest"
)

// Load balancers that cannot be served are told with object, field and value;
// everything else is served.
func TestRefusedLoadBalancers(t *testing.T) {
	w, _, c, epoch := started(t)
	config := service(2)
	add := func(uid lb.UID, change func(*lb.LoadBalancer)) {
		l := service(2).LoadBalancers["u1"]
		l.Name, l.ClaimTime = "default/"+string(uid), time.Unix(2, 0)
		l.Addresses = []netip.Addr{netip.MustParseAddr("10.0.0.130")}
		change(&l)
		config.LoadBalancers[uid] = l
	}
	addr := func(l *lb.LoadBalancer, a string) { l.Addresses = []netip.Addr{netip.MustParseAddr(a)} }
	add("outside", func(l *lb.LoadBalancer) { addr(l, "10.0.0.193") }) // the other cluster's
	add("own", func(l *lb.LoadBalancer) { addr(l, edgeAddr) })
	add("sctp", func(l *lb.LoadBalancer) { l.Listeners[0].Protocol = lb.SCTP })
	add("later", func(l *lb.LoadBalancer) { addr(l, "10.0.0.129") })
	add("no-pool", func(l *lb.LoadBalancer) { addr(l, "10.0.0.131"); l.Pool = "none" })
	add("port-zero", func(l *lb.LoadBalancer) { addr(l, "10.0.0.132"); l.Listeners[0].Port = 0 })
	config.Nodes["loop"] = lb.Node{Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}
	config.Nodes["edge"] = lb.Node{Addresses: []netip.Addr{netip.MustParseAddr(edgeAddr)}}
	config.Nodes["vip"] = lb.Node{Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.129")}}
	config.Nodes["far"] = lb.Node{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	for _, n := range []lb.NodeName{"loop", "edge", "vip", "far"} {
		config.Pools["all"][n] = lb.Member{}
	}
	w.set(c, epoch, config)
	s := w.status(c, func(s lb.Status) bool { return s.Revision == 2 })
	for uid, want := range map[lb.UID]string{
		"outside":   "invalid addresses[0] 10.0.0.193",
		"own":       "invalid addresses[0] 10.0.0.1",
		"sctp":      "unsupported listeners[0].protocol sctp",
		"later":     "address-held listeners[0] default/web",
		"no-pool":   "not-found pool none",
		"port-zero": "invalid listeners[0].port 0",
	} {
		var got string
		for _, p := range s.LoadBalancers[uid].Problems {
			got += fmt.Sprintf("%s %s %s\n", p.Type, p.Field, p.Detail)
		}
		for _, part := range strings.Fields(want) {
			if !strings.Contains(got, part) {
				t.Errorf("%s: got %q; want it to name %q", uid, got, part)
			}
		}
		if s.LoadBalancers[uid].Applied {
			t.Errorf("%s: got applied", uid)
		}
	}
	if !s.LoadBalancers["u1"].Applied {
		t.Errorf("u1: got %+v; want applied", s.LoadBalancers["u1"])
	}
	members := s.Checks["http:10256/healthz"]
	for node, want := range map[lb.NodeName]string{"loop": "127.0.0.1", "edge": edgeAddr, "vip": "10.0.0.129", "far": "192.0.2.1"} {
		if m := members[node]; m.State != healthcheck.Down || !strings.Contains(m.Error, want) {
			t.Errorf("node %s: got %+v; want it not used because of %s", node, m, want)
		}
	}
	w.serves(vip)
}

// status follows the status until ok is true of it.
func (w *world) status(c lb.Balancer, ok func(lb.Status) bool) lb.Status {
	w.t.Helper()
	var s lb.Status
	w.eventually(10*time.Second, func() error {
		d, err := c.Status(w.t.Context(), s.Cursor)
		if err != nil {
			return err
		}
		if s.Apply(d); !ok(s) {
			return fmt.Errorf("the status is %+v", s)
		}
		return nil
	})
	return s
}

// A listener must not take the place of the edge's own.
func TestReservedListeners(t *testing.T) {
	w := newWorld(t)
	w.pki()
	w.yaml = strings.Replace(edgeYAML, "drainTimeout", "shareHostAddress: true\ndrainTimeout", 1)
	w.yaml = strings.Replace(w.yaml, "10.0.0.128/26", "10.0.0.128/26, 10.0.0.1/32", 1)
	w.start()
	w.ready()
	c := w.client("prod", "prod")
	w.set(c, w.claim(c, 1), service(1, func(l *lb.LoadBalancer) {
		l.Addresses = []netip.Addr{netip.MustParseAddr(edgeAddr)}
		l.Listeners = append(l.Listeners, lb.Listener{Protocol: lb.TCP, Port: 7443, TargetPort: 30443})
	}))
	s := w.status(c, func(s lb.Status) bool { return s.Revision == 1 })
	got := fmt.Sprintf("%+v", s.LoadBalancers["u1"])
	if !strings.Contains(got, "the API of the edge") || !strings.Contains(got, "listeners[1]") {
		t.Errorf("got %s; want listeners[1] refused because of the API", got)
	}
}

func TestRefusedRequests(t *testing.T) {
	w, _, c, epoch := started(t)
	_, digest, err := c.Config(t.Context())
	w.must(err)
	whole, err := json.Marshal(service(2))
	w.must(err)
	for name, request := range map[string]struct {
		body io.Reader
		want string
	}{
		"unknown field": {strings.NewReader(`{"revision":2,"loadBalancers":{"u1":{"colour":"red"}}}`), "colour"},
		"truncated":     {bytes.NewReader(whole[:len(whole)/2]), "urn:eclusa:problem:invalid"},
		"100 MB":        {io.LimitReader(zeros{}, 100<<20), "urn:eclusa:problem:exhausted"},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://"+apiAddr+"/v1/clusters/prod/config", request.body)
		w.must(err)
		r.Header.Set("Content-Type", rest.TypeJSON)
		r.Header.Set(rest.HeaderEpoch, string(epoch))
		r.Header.Set("If-Match", `"`+string(digest)+`"`)
		answer, err := w.raw("prod").Do(r)
		w.must(err)
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || answer.StatusCode < 400 || answer.StatusCode >= 500 || !strings.Contains(string(body), request.want) {
			t.Errorf("%s: got %s %s (%v); want a problem that names %q", name, answer.Status, body, err, request.want)
		}
		t.Logf("%s: %s", name, body)
	}

	// Nobody speaks for another, and a stranger for nobody.
	dev := w.client("dev", "dev")
	if _, err := dev.Info(t.Context()); err != nil {
		t.Errorf("another cluster's own certificate: %v", err)
	}
	if _, _, err := w.client("dev", "prod").Config(t.Context()); err == nil || !strings.Contains(err.Error(), "dev") {
		t.Errorf("dev asking about prod: got %v; want a refusal that names dev", err)
	}
	if _, err := w.client("stranger", "stranger").Info(t.Context()); err == nil || !strings.Contains(err.Error(), "stranger") {
		t.Errorf("a cluster that the edge does not serve: got %v; want a refusal", err)
	}
	if _, err := w.client("edge-1", "prod").Info(t.Context()); err == nil {
		t.Error("a server's certificate used by a client: got nil; want a refusal")
	}

	// Epochs, limits and removals.
	if _, err := c.Set(t.Context(), lb.Write{Epoch: "old.1", Config: service(2)}); !errors.Is(err, lb.ErrStaleEpoch) {
		t.Errorf("stale epoch: got %v; want ErrStaleEpoch", err)
	}
	many := service(1)
	for i := range 5 {
		many.LoadBalancers[lb.UID(fmt.Sprint("x", i))] = many.LoadBalancers["u1"]
	}
	if _, err := dev.Set(t.Context(), lb.Write{Epoch: w.claim(dev, 1), Config: many}); !errors.Is(err, lb.ErrExhausted) || !strings.Contains(err.Error(), "3") {
		t.Errorf("six load balancers where three are allowed: got %v; want ErrExhausted naming the limit", err)
	}
	w.set(c, epoch, many)
	_, err = c.Set(t.Context(), lb.Write{Epoch: epoch, Config: lb.Config{Revision: 9, Nodes: many.Nodes, Pools: many.Pools}})
	held, ok := errors.AsType[*lb.RemovalHeldError](err)
	if !ok || len(held.Keys) != 6 {
		t.Errorf("removal of all: got %v; want six removals held", err)
	}
	w.serves(vip)
}

// zeros is a body without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A restored cluster is refused until the operator of the edge says otherwise.
func TestAcceptAnotherCluster(t *testing.T) {
	w, _, c, epoch := started(t)
	other := lb.Claim{ClusterUID: "restored", LeaseUID: "new", Holder: "ccm-0"}
	_, err := c.Claim(t.Context(), other)
	if !errors.Is(err, lb.ErrConflict) || !strings.Contains(err.Error(), "eclusa-edge cluster accept prod") {
		t.Fatalf("another cluster: got %v; want ErrConflict that says what to do", err)
	}
	if err := execute("cluster", "accept", "prdo", "--config", w.config()); err == nil || !strings.Contains(err.Error(), `did you mean "prod"?`) {
		t.Errorf("a wrong name: got %v; want the right one proposed", err)
	}
	w.must(execute("cluster", "accept", "prod", "--config", w.config()))
	if _, err := c.Claim(t.Context(), other); err != nil {
		t.Errorf("after accept: %v", err)
	}
	if _, err := c.Set(t.Context(), lb.Write{Epoch: epoch, Config: service(2)}); !errors.Is(err, lb.ErrStaleEpoch) {
		t.Errorf("the former leader: got %v; want ErrStaleEpoch", err)
	}
}

// What stands in the way of a start is named.
func TestStartRefuses(t *testing.T) {
	w, _, _, _ := started(t)
	for name, c := range map[string]struct{ from, to, want string }{
		"state directory in use": {"name: edge-1", "name: edge-2", `another edge uses it; stop that one, or give this one a stateDir of its own: the other process says: this is the edge "edge-1"`},
		"port in use":            {"DIR/state", "DIR/other", "api.listen"},
		"certificate missing":    {"edge-1.crt", "missing.crt", "api.certFile"},
		"no such interface":      {"interface: eth0", "interface: eth9", `announce.interface: interface "eth9"`},
	} {
		w.yaml = strings.ReplaceAll(edgeYAML, c.from, c.to)
		if err := execute("--config", w.config()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v; want an error with %q", name, err, c.want)
		}
	}
}

// A certificate of the right CA and name, with another key than the pinned one,
// is refused.
func TestPinnedKeys(t *testing.T) {
	w := newWorld(t)
	w.pki()
	pin := pinOf(readCert(t, filepath.Join(w.dir, "prod.crt")))
	w.yaml = strings.Replace(edgeYAML, "{name: prod,", "{name: prod, keyPins: ["+pin.String()+"],", 1)
	w.start()
	w.ready()
	if _, err := w.client("prod", "prod").Info(t.Context()); err != nil {
		t.Errorf("with the pinned key: %v", err)
	}
	w.must(execute("pki", "cluster", "--dir", w.dir, "--name", "prod", "--force"))
	if _, err := w.client("prod", "prod").Info(t.Context()); err == nil || !strings.Contains(err.Error(), "pinned") {
		t.Errorf("with another key: got %v; want a refusal that tells of the pins", err)
	}
}
