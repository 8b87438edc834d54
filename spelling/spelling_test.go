package spelling

import (
	"strings"
	"testing"
)

func TestNearest(t *testing.T) {
	known := []string{"name", "stateDir", "management", "announce", "upgradeDrainTimeout"}
	for _, c := range []struct{ name, want string }{
		{"nam", "name"},
		{"statedir", "stateDir"},
		{"mangement", "management"},
		{"anounce", "announce"},
		{"announcer", "announce"},
		{"drainTimeoutOfUpgrade", ""}, // many changes, though fewer than half
		{"xyzzy", ""},
		{"n", ""}, // a single letter says nothing
		{"", ""},
		{strings.Repeat("name", 1<<20), ""},
	} {
		if got := Nearest(c.name, known); got != c.want {
			t.Errorf("Nearest(%.30q) = %q; want %q", c.name, got, c.want)
		}
	}
}

func TestHint(t *testing.T) {
	known := []string{"prod", "test"}
	if got, want := Hint("prdo", known), `did you mean "prod"?`; got != want {
		t.Errorf("got %q; want %q", got, want)
	}
	if got, want := Hint("staging", known), "known here are prod, test"; got != want {
		t.Errorf("got %q; want %q", got, want)
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"abc", "abc", 0},
		{"abc", "abd", 1}, {"abc", "ac", 1}, {"abc", "abxc", 1}, {"kitten", "sitting", 3}, {"ab", "ba", 2},
	} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("distance(%q, %q) = %d; want %d", c.a, c.b, got, c.want)
		}
	}
}
