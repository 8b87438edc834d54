package rest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// calls names requests as "METHOD type".
func calls(requests []recorded) []string {
	var names []string
	for _, r := range requests {
		names = append(names, strings.TrimSpace(r.method+" "+r.contentType))
	}
	return names
}

const (
	aGet   = "GET"
	aPut   = "PUT " + TypeJSON
	aPatch = "PATCH " + TypeMergePatch
)

// checkCalls compares the requests since the last check.
func (b *testbed) checkCalls(what string, want ...string) []recorded {
	b.t.Helper()
	seen := b.seen()
	if got := calls(seen); !slices.Equal(got, want) {
		b.t.Errorf("%s: got requests %q; want %q", what, got, want)
	}
	return seen
}

// mustSet sets and checks that the edge holds it.
func (b *testbed) mustSet(c *Client, w lb.Write) lb.Receipt {
	b.t.Helper()
	r, err := c.Set(b.t.Context(), w)
	if err != nil {
		b.t.Fatalf("Set: %v", err)
	}
	if diff := cmp.Diff(w.Config, b.balance.Held(), compareAddrs); diff != "" {
		b.t.Fatalf("held after Set (-want +got):\n%s", diff)
	}
	return r
}

func TestSetSendsTheSmallestRequest(t *testing.T) {
	b := listen(t, nil)
	c := b.client(nil)
	epoch := b.claim(c)
	b.seen()
	from, to := nodeEvent(bigConfig(300, 500))

	first := b.mustSet(c, lb.Write{Epoch: epoch, Config: from})
	seen := b.checkCalls("first", aGet, aPut)
	if got := seen[len(seen)-1].header.Get("If-None-Match"); got != "*" {
		t.Errorf("first: got If-None-Match %q; want *", got)
	}
	if again := b.mustSet(c, lb.Write{Epoch: epoch, Config: from}); again != first {
		t.Errorf("again: got %+v; want %+v", again, first)
	}
	b.checkCalls("nothing changed")

	second := b.mustSet(c, lb.Write{Epoch: epoch, Config: to})
	seen = b.checkCalls("node event", aPatch)
	if n := seen[0].size; n <= 0 || n >= 1000 {
		t.Errorf("node event: got a body of %d bytes; want less than 1000", n)
	}
	if got := seen[0].header.Get("If-Match"); got != entityTag(first.Digest) {
		t.Errorf("node event: got If-Match %q; want %q", got, entityTag(first.Digest))
	}
	if second.Digest == first.Digest || !second.Durable {
		t.Errorf("node event: got %+v; want another digest, durable", second)
	}

	// Nearly everything changes: the whole is cheaper.
	all := bigConfig(300, 500)
	all.Revision = 9
	for uid, l := range all.LoadBalancers {
		l.Name, l.Listeners, l.ClaimTime = "x", nil, time.Time{}
		l.HealthCheck.Path, l.HealthCheck.Port = "/", 1
		all.LoadBalancers[uid] = l
	}
	all.Nodes, all.Pools = nil, nil
	b.mustSet(c, lb.Write{Epoch: epoch, Config: all})
	b.checkCalls("everything", aPut)
}

func TestSetByAnotherClient(t *testing.T) {
	b := listen(t, nil)
	old := b.client(nil)
	oldEpoch := b.claim(old)
	from, to := nodeEvent(bigConfig(5, 200))
	b.mustSet(old, lb.Write{Epoch: oldEpoch, Config: from})

	next := b.client(nil)
	epoch := b.claim(next)
	b.seen()
	b.mustSet(next, lb.Write{Epoch: epoch, Config: to})
	b.checkCalls("new leader", aGet, aPatch)

	from.Revision = 8
	_, err := old.Set(t.Context(), lb.Write{Epoch: oldEpoch, Config: from})
	if !errors.Is(err, lb.ErrStaleEpoch) {
		t.Errorf("old leader: got %v; want ErrStaleEpoch", err)
	}
	if _, err := old.Status(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	from.Revision = 1 // what it knows to be there
	if _, err = old.Set(t.Context(), lb.Write{Epoch: oldEpoch, Config: from}); !errors.Is(err, lb.ErrStaleEpoch) {
		t.Errorf("old leader without a change: got %v; want ErrStaleEpoch", err)
	}
	if _, err = old.Set(t.Context(), lb.Write{Config: from}); !errors.Is(err, lb.ErrStaleEpoch) {
		t.Errorf("without a claim: got %v; want ErrStaleEpoch", err)
	}
}

// TestNewEpochAsksAgain: what was acknowledged in another epoch is not taken for
// granted.
func TestNewEpochAsksAgain(t *testing.T) {
	b := listen(t, nil)
	c := b.client(nil)
	w := lb.Write{Epoch: b.claim(c), Config: bigConfig(2, 2)}
	b.mustSet(c, w)
	w.Epoch = b.claim(c)
	b.seen()
	b.mustSet(c, w)
	if seen := b.checkCalls("new epoch", aPatch); string(seen[0].body) != "{}" {
		t.Errorf("got the patch %q; want an empty one", seen[0].body)
	}
	b.mustSet(c, w)
	b.checkCalls("again")
}

func TestSetFindsDrift(t *testing.T) {
	b := listen(t, nil)
	c := b.client(nil)
	w := lb.Write{Epoch: b.claim(c), Config: bigConfig(5, 5)}
	b.mustSet(c, w)
	drifted := bigConfig(4, 5)
	if err := b.balance.Drift(drifted); err != nil {
		t.Fatal(err)
	}
	b.seen()
	changed := w
	changed.Config.Revision = 2
	b.mustSet(c, changed)
	b.checkCalls("drift met by a change", aPatch, aGet, aPatch)

	if err := b.balance.Drift(drifted); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	b.seen()
	b.mustSet(c, changed)
	b.checkCalls("drift told by the status", aPatch, aGet, aPatch)

	if err := b.balance.Drift(drifted); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Config(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.seen()
	b.mustSet(c, changed)
	b.checkCalls("drift found by reading back", aPatch, aGet, aPatch)
}

func TestSetAfterLostState(t *testing.T) {
	b := listen(t, nil)
	c := b.client(nil)
	w := lb.Write{Epoch: b.claim(c), Config: bigConfig(5, 5)}
	b.mustSet(c, w)
	b.balance.LoseState()
	if _, err := c.Status(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Set(t.Context(), w); !errors.Is(err, lb.ErrStaleEpoch) {
		t.Errorf("old epoch: got %v; want ErrStaleEpoch", err)
	}
	w.Epoch = b.claim(c)
	b.mustSet(c, w)
}

func TestSetWithBase(t *testing.T) {
	b := listen(t, nil)
	c := b.client(nil)
	from, to := nodeEvent(bigConfig(5, 200))
	epoch := b.claim(c)
	first := b.mustSet(c, lb.Write{Epoch: epoch, Config: from})
	if _, err := c.Set(t.Context(), lb.Write{Epoch: epoch, Config: to, Base: "other"}); !errors.Is(err, lb.ErrBaseDiffers) {
		t.Errorf("other base: got %v; want ErrBaseDiffers", err)
	}
	if _, err := c.Set(t.Context(), lb.Write{Epoch: epoch, Config: to, Base: "no\ntoken"}); !errors.Is(err, lb.ErrBaseDiffers) {
		t.Errorf("impossible base: got %v; want ErrBaseDiffers", err)
	}
	b.mustSet(c, lb.Write{Epoch: epoch, Config: to, Base: first.Digest})
	if err := b.balance.Drift(from); err != nil {
		t.Fatal(err)
	}
	b.seen()
	to.Revision++
	if _, err := c.Set(t.Context(), lb.Write{Epoch: epoch, Config: to, Base: c.known.digest}); !errors.Is(err, lb.ErrBaseDiffers) {
		t.Errorf("drifted base: got %v; want ErrBaseDiffers", err)
	}
	b.checkCalls("drifted base", aPatch)
}

func TestRemovalGuardAcrossTheNetwork(t *testing.T) {
	b := listen(t, nil)
	b.balance.GuardRemovals()
	c := b.client(nil)
	w := lb.Write{Epoch: b.claim(c), Config: bigConfig(10, 2)}
	b.mustSet(c, w)
	w.Config = bigConfig(1, 2)
	_, err := c.Set(t.Context(), w)
	held, ok := errors.AsType[*lb.RemovalHeldError](err)
	if !ok || len(held.Keys) != 9 || held.Largest != 10 {
		t.Fatalf("got %v; want a RemovalHeldError of 9 keys", err)
	}
	w.ConfirmedRemovals = held.Keys
	b.seen()
	b.mustSet(c, w)
	b.checkCalls("confirmed", "PATCH "+TypeWrite)
	writes := b.balance.Writes()
	if diff := cmp.Diff(held.Keys, writes[len(writes)-1].ConfirmedRemovals); diff != "" {
		t.Errorf("confirmed keys (-want +got):\n%s", diff)
	}

	// The same with a PUT, and more keys than a header holds.
	w.Config, w.ConfirmedRemovals = bigConfig(1500, 2), nil
	b.mustSet(c, w)
	w.Config = lb.Config{Revision: 5, Pools: map[lb.PoolName]lb.Pool{"x": {}}}
	if _, err = c.Set(t.Context(), w); !errors.Is(err, lb.ErrRemovalHeld) {
		t.Fatalf("got %v; want ErrRemovalHeld", err)
	}
	if held, ok = errors.AsType[*lb.RemovalHeldError](err); !ok || len(held.Keys) != 1500 {
		t.Fatalf("got %v; want 1500 keys", err)
	}
	w.ConfirmedRemovals = held.Keys
	b.seen()
	b.mustSet(c, w)
	b.checkCalls("confirmed", "PUT "+TypeWrite)
}

// TestSetOverNewerConfig: the edge holds fields that this version cannot read.
func TestSetOverNewerConfig(t *testing.T) {
	b := listen(t, nil)
	var got recorded
	c := b.client(b.answering(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", TypeJSON)
		w.Header().Set("ETag", `"abc"`)
		if r.Method == http.MethodGet {
			io.WriteString(w, `{"revision":4,"tunnels":{}}`)
			return
		}
		got = recorded{method: r.Method, header: r.Header}
		io.WriteString(w, `{"digest":"def","durable":false,"more":1}`)
	}))
	receipt, err := c.Set(t.Context(), lb.Write{Epoch: "1.1", Config: lb.Config{Revision: 5}})
	if err != nil || receipt != (lb.Receipt{Digest: "def"}) {
		t.Errorf("got %+v, %v; want digest def, not durable", receipt, err)
	}
	if got.method != http.MethodPut || got.header.Get("If-Match") != `"abc"` {
		t.Errorf("got %s with If-Match %q; want a PUT on abc", got.method, got.header.Get("If-Match"))
	}
	if _, _, err := c.Config(t.Context()); err == nil || !strings.Contains(err.Error(), "tunnels") {
		t.Errorf("Config: got %v; want an error that names the field", err)
	}
}

// TestSetWithLostAnswer: the edge has written, but the answer never came.
func TestSetWithLostAnswer(t *testing.T) {
	b := listen(t, nil)
	var mu sync.Mutex
	lose := 0
	c := b.client(b.answering(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		lost := lose > 0 && r.Method != http.MethodGet
		if lost {
			lose--
		}
		mu.Unlock()
		if lost {
			b.server.Handler.ServeHTTP(discard{http.Header{}}, r)
			panic(http.ErrAbortHandler)
		}
		b.server.Handler.ServeHTTP(w, r)
	}))
	w := lb.Write{Epoch: b.claim(c), Config: bigConfig(3, 3)}
	b.mustSet(c, w)
	lose = 1
	w.Config = bigConfig(4, 3)
	b.mustSet(c, w)
	if got := len(b.balance.Writes()); got < 2 || got > 3 {
		t.Errorf("got %d writes; want 2, or 3 with an empty one", got)
	}
	lose = 10 // more than all attempts
	w.Config = bigConfig(5, 3)
	if _, err := c.Set(t.Context(), w); err == nil {
		t.Error("without any answer: got no error; want one")
	}
	lose = 0
	b.seen()
	w.Config = bigConfig(4, 3)
	b.mustSet(c, w) // what was acknowledged last; the edge holds something newer
}

// discard is an answer that nobody gets.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}

func TestSetReportsDurability(t *testing.T) {
	b := listen(t, nil)
	c := b.client(nil)
	b.balance.SetDurable(false)
	w := lb.Write{Epoch: b.claim(c), Config: bigConfig(1, 1)}
	if r := b.mustSet(c, w); r.Durable {
		t.Errorf("got %+v; want it not durable", r)
	}
	if _, err := c.Status(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	b.balance.SetDurable(true)
	if r := b.mustSet(c, w); !r.Durable {
		t.Errorf("after a repair: got %+v; want it durable", r)
	}
}

// TestSetRandomWalk drives two clients over a changing configuration, with
// drift and lost epochs, and looks only at what the edge holds in the end.
func TestSetRandomWalk(t *testing.T) {
	b := listen(t, func(o *HandlerOptions) { o.RequestsPerSecond, o.Burst = 1e6, 1e6 })
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	clients := []*Client{b.client(nil), b.client(nil)}
	config := lb.Config{}
	for i := range 60 {
		c := clients[r.IntN(2)]
		epoch := b.claim(c)
		for range 1 + r.IntN(3) {
			next := mutate(r, config)
			next.Revision = config.Revision + uint64(r.IntN(2))
			config = next
			if r.IntN(5) == 0 {
				drifted := randomConfig(r)
				drifted.Revision = 0
				if err := b.balance.Drift(drifted); err != nil {
					t.Fatal(err)
				}
			}
			if r.IntN(3) == 0 {
				if _, err := c.Status(t.Context(), ""); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := c.Set(t.Context(), lb.Write{Epoch: epoch, Config: config}); err != nil {
				t.Fatalf("seed %d, round %d: %v", seed, i, err)
			}
			held := b.balance.Held()
			if _, err := c.Status(t.Context(), ""); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Set(t.Context(), lb.Write{Epoch: epoch, Config: config}); err != nil {
				t.Fatalf("seed %d, round %d: %v", seed, i, err)
			}
			if diff := cmp.Diff(config, b.balance.Held(), compareAddrs); diff != "" {
				before, _ := json.Marshal(held)
				t.Fatalf("seed %d, round %d: held (-want +got):\n%s\nbefore: %s", seed, i, diff, before)
			}
		}
	}
}

func TestConcurrentSets(t *testing.T) {
	b := listen(t, nil)
	c := b.client(nil)
	epoch := b.claim(c)
	base := bigConfig(3, 3)
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	for i := range 8 {
		wg.Go(func() {
			config := base
			config.LoadBalancers = maps.Clone(base.LoadBalancers)
			config.LoadBalancers[lb.UID(fmt.Sprint(i))] = lb.LoadBalancer{Name: "x"}
			_, err := c.Set(context.WithoutCancel(t.Context()), lb.Write{Epoch: epoch, Config: config})
			errs <- err
		})
	}
	wg.Wait()
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	release := b.balance.Hold(lbtest.CallSet)
	defer release()
	go c.Set(context.WithoutCancel(t.Context()), lb.Write{Epoch: epoch, Config: base})
	waitCalls(t, b, lbtest.CallSet, 9)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Set(ctx, lb.Write{Epoch: epoch, Config: base}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("behind another Set: got %v; want DeadlineExceeded", err)
	}
}
