package provider

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// rig is a Fleet in a synctest bubble, with a fake edge behind every endpoint.
type rig struct {
	t     *testing.T
	fleet *Fleet
	edges map[string]*lbtest.FakeBalancer // by endpoint

	mu      sync.Mutex
	events  []string // "edge reason: message"
	dialled []EdgeSpec
	lease   error              // what Claim returns
	claims  int                // how often the Lease was read
	list    map[string]bool    // keys that the API server still has
	listErr error              // what ConfirmRemovals returns
	lists   int                // how often it was asked
	done    chan error         // what Run returned
	stop    context.CancelFunc // ends Run
	wanted  map[string]Wanted  // what was last Set
}

func newRig(t *testing.T, endpoints ...string) *rig {
	t.Helper()
	r := &rig{t: t, edges: make(map[string]*lbtest.FakeBalancer), done: make(chan error, 1), list: make(map[string]bool)}
	for _, e := range endpoints {
		r.edges[e] = lbtest.NewFakeBalancer(e)
	}
	r.fleet = NewFleet(FleetOptions{
		Dial: func(s EdgeSpec) (lb.Balancer, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.dialled = append(r.dialled, s)
			if b, ok := r.edges[s.Endpoint]; ok {
				return b, nil
			}
			return nil, fmt.Errorf("no edge at %q", s.Endpoint)
		},
		Claim: func(context.Context) (lb.Claim, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.claims++
			return lb.Claim{ClusterUID: "cluster", LeaseUID: "lease", LeaseTransitions: 1, Holder: "me"}, r.lease
		},
		ConfirmRemovals: func(_ context.Context, keys []string) ([]string, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.lists++
			var gone []string
			for _, k := range keys {
				if !r.list[k] {
					gone = append(gone, k)
				}
			}
			return gone, r.listErr
		},
		Event: func(edge, _, reason, message string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, edge+" "+reason+": "+message)
		},
		Log: zap.NewNop(),
	})
	ctx, cancel := context.WithCancel(t.Context())
	r.stop = cancel
	go func() { r.done <- r.fleet.Run(ctx) }()
	t.Cleanup(cancel)
	return r
}

// set wants the configuration of one edge, whose endpoint is its name unless
// change says otherwise.
func (r *rig) set(name string, c lb.Config, change ...func(*Wanted)) {
	w := Wanted{EdgeSpec: EdgeSpec{Name: name, Endpoint: name}, Config: c}
	for _, f := range change {
		f(&w)
	}
	if r.wanted == nil {
		r.wanted = make(map[string]Wanted)
	}
	r.wanted[name] = w
	r.fleet.Set(r.wanted)
}

// with changes what the fakes answer.
func (r *rig) with(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

func paused(w *Wanted)  { w.Paused = true }
func drained(w *Wanted) { w.Drain = true }
func released(token string) func(*Wanted) {
	return func(w *Wanted) { w.ReleaseRemovals = token }
}
func keeping(uids ...lb.UID) func(*Wanted) {
	return func(w *Wanted) {
		w.Keep = map[lb.UID]Kept{}
		for _, u := range uids {
			w.Keep[u] = Kept{Addresses: config(0, 100, 0).LoadBalancers[u].Addresses, NodePorts: []uint16{30080}}
		}
	}
}

// settle lets everything happen that needs no time, and then d.
func (r *rig) settle(d time.Duration) EdgeState {
	synctest.Wait()
	if d > 0 {
		time.Sleep(d) // in the bubble: virtual time
		synctest.Wait()
	}
	return r.fleet.State()["a"]
}

func (r *rig) happened(reason string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []string
	for _, e := range r.events {
		if _, what, _ := strings.Cut(e, " "); strings.HasPrefix(what, reason+":") {
			found = append(found, e)
		}
	}
	return found
}

func (r *rig) holds(edge string, want lb.Config) {
	r.t.Helper()
	if d := compare(want, r.edges[edge].Held()); !d.empty() || want.Revision != r.edges[edge].Held().Revision {
		r.t.Errorf("edge %q holds revision %d, differing in %s; want revision %d exactly", edge, r.edges[edge].Held().Revision, d, want.Revision)
	}
}

// config makes a configuration with so many load balancers, and nodes in one
// pool.
func config(revision uint64, loadBalancers, nodes int) lb.Config {
	c := lb.Config{Revision: revision, Nodes: map[lb.NodeName]lb.Node{}, Pools: map[lb.PoolName]lb.Pool{"all": {}}, LoadBalancers: map[lb.UID]lb.LoadBalancer{}}
	for i := range nodes {
		name := lb.NodeName(fmt.Sprintf("node-%03d", i))
		c.Nodes[name] = lb.Node{Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}}
		c.Pools["all"][name] = lb.Member{}
	}
	for i := range loadBalancers {
		c.LoadBalancers[uid(i)] = lb.LoadBalancer{
			Name:      fmt.Sprintf("default/s-%d", i),
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})},
			Listeners: []lb.Listener{{Protocol: lb.TCP, Port: 80, TargetPort: 30080}},
			Pool:      "all",
		}
	}
	return c
}

func uid(i int) lb.UID { return lb.UID(fmt.Sprintf("uid-%03d", i)) }

func revisions(ws []lb.Write) []uint64 {
	var out []uint64
	for _, w := range ws {
		out = append(out, w.Config.Revision)
	}
	return out
}

func TestFleetSends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a", "b")
		r.edges["b"].Hold(lbtest.CallInfo) // an edge that never answers
		r.set("b", config(1, 1, 1))
		r.set("a", config(1, 2, 2))
		st := r.settle(0)
		r.holds("a", config(1, 2, 2))
		if !st.Connected || st.Problem != "" || !st.Known || st.Holds.Revision != 1 || st.Desired != 1 || st.Status.Revision != 1 || st.Info.Engine != "fake" {
			t.Errorf("state is %+v; want connected, known, revision 1", st)
		}
		if n := len(r.edges["a"].Claims()); n != 1 {
			t.Errorf("edge was claimed %d times, want once", n)
		}
		select {
		case <-r.fleet.Changed():
		default:
			t.Error("nobody was told that the state has changed")
		}
		// A new configuration must not wait for the long poll under way.
		time.Sleep(10 * time.Second)
		r.set("a", config(2, 3, 2))
		r.settle(0)
		r.holds("a", config(2, 3, 2))
		if st := r.fleet.State()["b"]; st.Connected || st.Known || st.Problem == "" {
			t.Errorf("state of the silent edge is %+v; want not connected, with a problem", st)
		}
		r.stop()
		if err := <-r.done; err != nil {
			t.Errorf("Run returned %v when its context ended, want nil", err)
		}
	})
}

func TestFleetSendsOnlyTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a")
		release := r.edges["a"].Hold(lbtest.CallSet)
		for i := uint64(1); i <= 5000; i++ {
			r.set("a", config(i, 1, 1))
			if i == 1 {
				synctest.Wait() // the first write hangs at the edge
			}
		}
		release()
		r.settle(0)
		if got := fmt.Sprint(revisions(r.edges["a"].Writes())); got != "[1 5000]" {
			t.Errorf("edge got revisions %s, want the first and the newest, [1 5000]", got)
		}
		// The very same again is no reason to write.
		same := r.wanted["a"].Config
		for range 100 {
			r.set("a", same)
			r.settle(0)
		}
		if n := r.edges["a"].Calls(lbtest.CallSet); n != 2 {
			t.Errorf("edge got %d writes, want no more than 2", n)
		}
	})
}

func TestFleetFollowsSpec(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a", "elsewhere")
		r.set("a", config(1, 1, 1))
		r.settle(0)
		move := func(w *Wanted) { w.Endpoint, w.ServerName = "elsewhere", "other" }
		r.set("a", config(2, 1, 1), move)
		r.settle(0)
		r.holds("a", config(1, 1, 1))
		r.holds("elsewhere", config(2, 1, 1))
		if n := len(r.dialled); n != 2 || r.dialled[1].ServerName != "other" {
			t.Errorf("dialled %v, want both places", r.dialled)
		}
		// An edge that nobody wants any more is let go and keeps what it holds.
		delete(r.wanted, "a")
		r.fleet.Set(r.wanted)
		r.settle(0)
		r.holds("elsewhere", config(2, 1, 1))
		if st := r.fleet.State(); len(st) != 0 {
			t.Errorf("state is %v, want none", st)
		}
		polls := r.edges["elsewhere"].Calls(lbtest.CallStatus)
		r.settle(5 * time.Minute)
		if now := r.edges["elsewhere"].Calls(lbtest.CallStatus); now != polls {
			t.Errorf("an edge that is gone was asked %d times more", now-polls)
		}
		// And it may come back.
		r.set("a", config(3, 1, 1), move)
		r.settle(0)
		r.holds("elsewhere", config(3, 1, 1))
	})
}

func TestFleetDialFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.set("a", config(1, 1, 1))
		if st := r.settle(0); !strings.Contains(st.Problem, `no edge at "a"`) {
			t.Errorf("problem is %q, want the reason why it cannot be dialled", st.Problem)
		}
		r.mu.Lock()
		r.edges["a"] = lbtest.NewFakeBalancer("a")
		r.mu.Unlock()
		r.settle(maxBackoff)
		r.holds("a", config(1, 1, 1))
	})
}

func TestFleetStateIsASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a")
		r.set("a", config(1, 3, 1))
		r.settle(0)
		before := r.fleet.State()
		kept, lbs := maps.Clone(before), len(before["a"].Status.LoadBalancers)
		r.set("a", config(2, 1, 1))
		r.settle(0)
		if before["a"].Desired != kept["a"].Desired || len(before["a"].Status.LoadBalancers) != lbs {
			t.Error("a snapshot changed after it was taken")
		}
		if now := r.fleet.State()["a"]; now.Desired != 2 || len(now.Status.LoadBalancers) != 1 {
			t.Errorf("desired %d with %d load balancers, want 2 with 1", now.Desired, len(now.Status.LoadBalancers))
		}
	})
}

// TestFleetUnderLoad has several callers at once, for the race detector.
func TestFleetUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		names := []string{"a", "b", "c", "d"}
		r := newRig(t, names...)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 500 {
					for _, st := range r.fleet.State() {
						_ = len(st.Status.LoadBalancers)
					}
					select {
					case <-r.fleet.Changed():
					default:
					}
				}
			})
		}
		for i := range 2000 {
			all := make(map[string]Wanted)
			for j, name := range names {
				if (i+j)%7 != 0 || i == 1999 {
					all[name] = Wanted{EdgeSpec: EdgeSpec{Name: name, Endpoint: name}, Config: config(uint64(i+1), 2, 1)}
				}
			}
			r.fleet.Set(all)
			if i%50 == 0 {
				r.edges[names[i/50%4]].Down(errors.New("cable pulled"))
				synctest.Wait()
				r.edges[names[i/50%4]].Down(nil)
			}
		}
		wg.Wait()
		r.settle(5 * time.Second)
		for _, name := range names {
			r.holds(name, config(2000, 2, 1))
		}
	})
}
