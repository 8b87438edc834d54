package provider

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"github.com/eclusa-lb/eclusa/lb"
)

// difference is how what an edge holds differs from what it was given.
type difference struct {
	loadBalancers, nodes, pools counts
}

// counts are the entries of one collection that differ.
type counts struct {
	missing, changed, extra int
}

// compare tells how holds differs from given, whatever their revisions.
func compare(given, holds lb.Config) difference {
	return difference{
		loadBalancers: compareMaps(given.LoadBalancers, holds.LoadBalancers),
		nodes:         compareMaps(given.Nodes, holds.Nodes),
		pools:         compareMaps(given.Pools, holds.Pools),
	}
}

func compareMaps[K comparable, V any](given, holds map[K]V) counts {
	var c counts
	if sameMap(given, holds) {
		return c
	}
	for k, g := range given {
		h, ok := holds[k]
		switch {
		case !ok:
			c.missing++
		case !equal(g, h):
			c.changed++
		}
	}
	for k := range holds {
		if _, ok := given[k]; !ok {
			c.extra++
		}
	}
	return c
}

// equal compares two values as they travel, since on its way an empty list may
// become none and a time lose its location.
func equal[V any](a, b V) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// sameMap says whether both are one and the same map.
func sameMap[K comparable, V any](a, b map[K]V) bool {
	return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
}

func (d difference) empty() bool { return d == difference{} }

// String returns the difference as "load balancers: 3 missing, 1 changed; nodes:
// 2 extra".
func (d difference) String() string {
	var parts []string
	for _, p := range []struct {
		of string
		counts
	}{{"load balancers", d.loadBalancers}, {"nodes", d.nodes}, {"pools", d.pools}} {
		var what []string
		for _, n := range []struct {
			n    int
			what string
		}{{p.missing, "missing"}, {p.changed, "changed"}, {p.extra, "extra"}} {
			if n.n > 0 {
				what = append(what, fmt.Sprintf("%d %s", n.n, n.what))
			}
		}
		if len(what) > 0 {
			parts = append(parts, p.of+": "+strings.Join(what, ", "))
		}
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, "; ")
}
