package edge

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/eclusa-lb/eclusa/lb"
)

func TestClaims(t *testing.T) {
	claim := lb.Claim{ClusterUID: "c", LeaseUID: "l1", LeaseTransitions: 5, Holder: "a"}
	with := func(change func(*lb.Claim)) lb.Claim { c := claim; change(&c); return c }
	for _, c := range []struct {
		name  string
		claim lb.Claim
		err   error // nil: accepted
		say   string
	}{
		{"the same again", claim, nil, ""},
		{"more transitions", with(func(c *lb.Claim) { c.LeaseTransitions, c.Holder = 6, "b" }), nil, ""},
		{"fewer transitions", with(func(c *lb.Claim) { c.LeaseTransitions = 4 }), lb.ErrStaleEpoch, `"a" has claimed with 5`},
		{"equal transitions of another", with(func(c *lb.Claim) { c.Holder = "b" }), lb.ErrStaleEpoch, `"a" has claimed with as many`},
		{"another Lease", with(func(c *lb.Claim) { c.LeaseUID, c.LeaseTransitions, c.Holder = "l2", 0, "b" }), nil, ""},
		{"a Lease that was replaced", with(func(c *lb.Claim) { c.LeaseUID = "l0" }), lb.ErrStaleEpoch, `its Lease "l0" was replaced by Lease "l1"`},
		{"another cluster", with(func(c *lb.Claim) { c.ClusterUID = "d" }), lb.ErrConflict, `pinned to UID "c"`},
		{"no cluster", with(func(c *lb.Claim) { c.ClusterUID = "" }), lb.ErrInvalid, "clusterUID is empty"},
		{"no Lease", with(func(c *lb.Claim) { c.LeaseUID = "" }), lb.ErrInvalid, "leaseUID is empty"},
		{"no holder", with(func(c *lb.Claim) { c.Holder = "" }), lb.ErrInvalid, "holder is empty"},
		{"negative transitions", with(func(c *lb.Claim) { c.LeaseTransitions = -1 }), lb.ErrInvalid, "is negative"},
		{"a long holder", with(func(c *lb.Claim) { c.Holder = strings.Repeat("x", 1000) }), lb.ErrInvalid, "longer than 512"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := lease{Instance: "i", Counter: 7, ClusterUID: "c", LeaseUID: "l1", LeaseTransitions: 5, Holder: "a", Superseded: []string{"l0"}}
			next, err := l.claimed("prod", c.claim)
			if c.err == nil {
				if err != nil || next.epoch() != "i.8" {
					t.Errorf("got epoch %q, %v; want i.8", next.epoch(), err)
				}
				return
			}
			if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.say) {
				t.Errorf("got %v; want %v with %q", err, c.err, c.say)
			}
		})
	}
}

func TestSupersededLeasesAreBounded(t *testing.T) {
	l := newLease()
	for i := range 20 {
		var err error
		l, err = l.claimed("prod", lb.Claim{ClusterUID: "c", LeaseUID: fmt.Sprint(i), Holder: "a"})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(l.Superseded) != maxSuperseded || l.Superseded[maxSuperseded-1] != "18" {
		t.Errorf("superseded: got %v; want the last %d", l.Superseded, maxSuperseded)
	}
}

// A lost lease file must not bring back epochs that were given out.
func TestLostLeaseMakesANewInstance(t *testing.T) {
	f := file{path: filepath.Join(t.TempDir(), leaseName)}
	first := newLease()
	for _, transitions := range []int64{1, 2} {
		var err error
		first, err = first.claimed("prod", lb.Claim{ClusterUID: "c", LeaseUID: "l", LeaseTransitions: transitions, Holder: "a"})
		if err != nil {
			t.Fatal(err)
		}
		if err := first.save(f); err != nil {
			t.Fatal(err)
		}
	}
	var again lease
	if err := again.load(f); err != nil || again.epoch() != first.epoch() {
		t.Fatalf("load: got %q, %v; want %q", again.epoch(), err, first.epoch())
	}
	// The last claim is damaged: the one before still pins the cluster.
	if err := os.WriteFile(f.path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := again.load(f); err == nil || again.ClusterUID != "c" || again.LeaseTransitions != 1 {
		t.Errorf("load of the previous: got %+v, %v; want the pin and transitions of the first claim, and an error", again, err)
	}
	if again.Instance == first.Instance || again.epoch() != "" {
		t.Errorf("load of the previous: got epoch %q of instance %q; want none of another than %q", again.epoch(), again.Instance, first.Instance)
	}
	for _, path := range []string{f.path, f.previous()} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := again.load(f); err != nil || again.ClusterUID != "" || again.Instance == first.Instance {
		t.Errorf("load of nothing: got %+v, %v; want a new lease", again, err)
	}
}

func TestAccept(t *testing.T) {
	b := newRig(t)
	if _, err := Accept(b.dir, "prod"); !errors.Is(err, lb.ErrNotFound) {
		t.Errorf("before any claim: got %v; want ErrNotFound", err)
	}
	if _, err := Accept(b.dir, "../x"); err == nil {
		t.Error("with a path for a name: got nil; want an error")
	}
	old := b.claim("prod")
	other := lb.Claim{ClusterUID: "restored", LeaseUID: "new", Holder: "x"}
	prod := b.edge.Cluster("prod")
	if _, err := prod.Claim(t.Context(), other); !errors.Is(err, lb.ErrConflict) {
		t.Fatalf("another cluster: got %v; want ErrConflict", err)
	}
	pinned, err := Accept(b.dir, "prod")
	if err != nil || pinned != "cluster" {
		t.Fatalf("accept: got %q, %v; want cluster", pinned, err)
	}
	epoch, err := prod.Claim(t.Context(), other)
	if err != nil || epoch == old {
		t.Fatalf("after accept: got %q, %v; want a new epoch", epoch, err)
	}
	if _, err := prod.Claim(t.Context(), testClaim); !errors.Is(err, lb.ErrConflict) {
		t.Errorf("the former cluster: got %v; want ErrConflict", err)
	}
}

func FuzzDecodeLease(f *testing.F) {
	f.Add([]byte(`{"schema":"v1","instance":"i","counter":3,"clusterUID":"c","superseded":["a"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := decodeLease(data)
		if err == nil && l.Instance == "" {
			t.Error("a lease without instance was accepted")
		}
	})
}
