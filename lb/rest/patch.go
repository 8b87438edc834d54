package rest

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/eclusa-lb/eclusa/lb"
)

// Members of a Config.
const (
	keyRevision      = "revision"
	keyNodes         = "nodes"
	keyPools         = "pools"
	keyLoadBalancers = "loadBalancers"
)

// Diff returns the RFC 7396 merge patch that turns from into to, "{}" when they
// mean the same. Equal inputs give equal bytes. Its size, and but for comparing
// the time it takes, grow with what changed. Instants are compared without
// their time zone.
func Diff(from, to lb.Config) ([]byte, error) {
	var w objectWriter
	if from.Revision != to.Revision {
		w.put(keyRevision, strconv.AppendUint(nil, to.Revision, 10))
	}
	if err := diffMap(&w, keyNodes, from.Nodes, to.Nodes, equalNode); err != nil {
		return nil, err
	}
	if err := diffMap(&w, keyPools, from.Pools, to.Pools, equalPool); err != nil {
		return nil, err
	}
	if err := diffMap(&w, keyLoadBalancers, from.LoadBalancers, to.LoadBalancers, equalLoadBalancer); err != nil {
		return nil, err
	}
	return w.bytes(), nil
}

// diffMap puts the changes of one collection, if there are any.
func diffMap[K ~string, V any](w *objectWriter, name string, from, to map[K]V, equal func(a, b V) bool) error {
	var changed []K
	for k, v := range to {
		if old, ok := from[k]; !ok || !equal(old, v) {
			changed = append(changed, k)
		}
	}
	for k := range from {
		if _, ok := to[k]; !ok {
			changed = append(changed, k)
		}
	}
	slices.Sort(changed)
	var entries objectWriter
	for _, k := range changed {
		patch, err := diffEntry(from, to, k)
		if err != nil {
			return fmt.Errorf("%s[%q]: %w", name, k, err)
		}
		if patch != nil {
			entries.put(string(k), patch)
		}
	}
	if !entries.empty() {
		w.put(name, entries.bytes())
	}
	return nil
}

// diffEntry returns the patch of one entry that is not the same in both, nil if
// they have the same JSON form nevertheless.
func diffEntry[K ~string, V any](from, to map[K]V, k K) (rawJSON, error) {
	is, ok := to[k]
	if !ok {
		return rawJSON("null"), nil
	}
	isRaw, err := encodeEntry(is)
	if err != nil {
		return nil, err
	}
	was, ok := from[k]
	if !ok {
		return diffJSON(nil, isRaw)
	}
	wasRaw, err := encodeEntry(was)
	if err != nil {
		return nil, err
	}
	patch, err := diffJSON(wasRaw, isRaw)
	if err != nil || string(patch) == "{}" {
		return nil, err
	}
	return patch, nil
}

// encodeEntry returns the JSON form of an entry, which is an object always: in
// a patch null would delete a pool that is nil.
func encodeEntry[V any](v V) (rawJSON, error) {
	raw, err := json.Marshal(v)
	if err == nil && isNull(raw) {
		raw = rawJSON("{}")
	}
	return raw, err
}

// encodeConfig returns the JSON form of a whole configuration.
func encodeConfig(c lb.Config) ([]byte, error) {
	cloned := false
	for name, p := range c.Pools {
		if p != nil {
			continue
		}
		if !cloned {
			c.Pools, cloned = maps.Clone(c.Pools), true
		}
		c.Pools[name] = lb.Pool{}
	}
	return json.Marshal(c)
}

// ApplyPatch returns base changed by an RFC 7396 merge patch, sharing all
// entries with base that the patch does not touch; base stays as it was. The
// result is read as strictly as by [lb.DecodeConfig]: what is wrong is
// ErrInvalid and named with its path.
func ApplyPatch(base lb.Config, patch []byte) (lb.Config, error) {
	if !utf8.Valid(patch) { // encoding/json would put something else in its place
		return lb.Config{}, fmt.Errorf("patch: is not valid UTF-8: %w", lb.ErrInvalid)
	}
	changes, err := parseObject("", patch)
	if err != nil {
		return lb.Config{}, err
	}
	next := base
	var touched objectWriter // a Config of only the entries that change, for the one strict decoder
	for _, m := range changes {
		value := m.value
		switch m.key {
		case keyRevision:
			next.Revision = 0
		case keyNodes:
			next.Nodes, value, err = patchMap(m.key, base.Nodes, value)
		case keyPools:
			next.Pools, value, err = patchMap(m.key, base.Pools, value)
		case keyLoadBalancers:
			next.LoadBalancers, value, err = patchMap(m.key, base.LoadBalancers, value)
		}
		if err != nil {
			return lb.Config{}, err
		}
		if !isNull(value) {
			touched.put(m.key, value)
		}
	}
	add, err := lb.DecodeConfig(touched.bytes())
	if err != nil {
		return lb.Config{}, err
	}
	if changes.get(keyRevision) != nil {
		next.Revision = add.Revision
	}
	// patchMap has cloned what is added to here.
	maps.Copy(next.Nodes, add.Nodes)
	maps.Copy(next.Pools, add.Pools)
	maps.Copy(next.LoadBalancers, add.LoadBalancers)
	next.Nodes, next.Pools, next.LoadBalancers = orNil(next.Nodes), orNil(next.Pools), orNil(next.LoadBalancers)
	return next, nil
}

// patchMap returns a copy of base without the entries that the patch deletes,
// and an object of those that it changes or adds, merged with what they were.
func patchMap[K ~string, V any](name string, base map[K]V, patch rawJSON) (map[K]V, rawJSON, error) {
	if !isObject(patch) { // null deletes all, anything else is for the decoder to refuse
		return map[K]V{}, patch, nil
	}
	changes, err := parseObject(name, patch)
	if err != nil || len(changes) == 0 {
		return base, rawJSON("null"), err
	}
	next := make(map[K]V, len(base)+len(changes))
	maps.Copy(next, base)
	var touched objectWriter
	for _, m := range changes {
		if isNull(m.value) {
			delete(next, K(m.key))
			continue
		}
		path := fmt.Sprintf("%s[%q]", name, m.key)
		var was rawJSON
		if old, ok := base[K(m.key)]; ok {
			if was, err = encodeEntry(old); err != nil {
				return nil, nil, fmt.Errorf("%s: %w", path, err)
			}
		}
		merged, err := mergeJSON(path, was, m.value, 1)
		if err != nil {
			return nil, nil, err
		}
		touched.put(m.key, merged)
	}
	return next, touched.bytes(), nil
}

func orNil[K comparable, V any](m map[K]V) map[K]V {
	if len(m) == 0 {
		return nil
	}
	return m
}
