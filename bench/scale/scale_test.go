package main

import (
	"os"
	"testing"
)

// TestMain plays the part for which a size starts this program again.
func TestMain(m *testing.M) {
	if os.Getenv(insideVariable) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A small size of each engine comes to figures.
func TestSmall(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, for a network namespace")
		}
		t.Skip("needs root, for a network namespace")
	}
	var all []result
	for _, s := range []size{{"proxy", 20, 4}, {"proxy", 40, 8}, {"nftables", 20, 4}} {
		r, err := outside(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		if r.Served != s.Services || r.Load <= 0 || r.Health <= 0 || r.Start <= 0 || r.Node <= 0 || r.Service <= 0 || r.Memory <= 0 {
			t.Errorf("got %+v; want %d Services served, and a figure for everything", r, s.Services)
		}
		all = append(all, r)
	}
	if err := tell(all, t.TempDir()); err != nil {
		t.Error(err)
	}
}
