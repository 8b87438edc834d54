package edge

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// maxState is the largest state file that is read, in bytes.
const maxState = 1 << 30

// A record is a cluster's state file.
type record struct {
	// Schema is that of Config; a newer program may have written a newer one.
	Schema string `json:"schema"`
	// Epoch is the one under which Config was written.
	Epoch lb.Epoch `json:"epoch"`
	// Digest is the SHA-256 of Config as it stands in the file.
	Digest lb.Digest       `json:"digest"`
	Config json.RawMessage `json:"config"`
}

// held is what an edge holds for a cluster. It is immutable; the zero value is
// what a cluster has that never wrote.
type held struct {
	config lb.Config
	digest lb.Digest
	epoch  lb.Epoch
	// written is when, zero if that was before the edge started.
	written time.Time
	// strange are the entries that a newer program wrote and this one does not
	// understand wholly.
	strange strange
}

// strange keeps entries as they were read, so that writing them again loses
// nothing of what this program does not know.
type strange struct {
	schema        string
	loadBalancers map[lb.UID]oddity[lb.LoadBalancer]
	nodes         map[lb.NodeName]oddity[lb.Node]
	top           map[string]json.RawMessage
}

// An oddity is an entry with something in it that this program does not know.
type oddity[V any] struct {
	raw   json.RawMessage
	known V    // what could be understood
	read  bool // known has a meaning
	why   string
}

// digestOf returns the digest of a configuration as it is saved.
func digestOf(canonical []byte) lb.Digest {
	sum := sha256.Sum256(canonical)
	return lb.Digest(hex.EncodeToString(sum[:]))
}

// newHeld returns what is held after a write, and how it is saved. What this
// program does not understand of the entries that the write leaves as they are
// is kept.
func newHeld(before *held, config lb.Config, epoch lb.Epoch) (*held, []byte, error) {
	h := &held{config: config, epoch: epoch, strange: before.strange.keep(config)}
	canonical, err := h.canonical()
	if err != nil {
		return nil, nil, fmt.Errorf("encode the configuration: %w", err)
	}
	h.digest = digestOf(canonical)
	data, err := h.encode(canonical)
	return h, data, err
}

// encode returns the state file.
func (h *held) encode(canonical []byte) ([]byte, error) {
	schema := lb.Schema
	if h.strange.schema != "" && !h.strange.empty() {
		schema = h.strange.schema
	}
	head, err := json.Marshal(record{Schema: schema, Epoch: h.epoch, Digest: h.digest, Config: json.RawMessage("0")})
	if err != nil {
		return nil, fmt.Errorf("encode the state: %w", err)
	}
	// The configuration goes in as it is: passing it through the encoder once
	// more would cost as much as everything else together.
	var b bytes.Buffer
	b.Grow(len(head) + len(canonical) + 1)
	b.Write(bytes.TrimSuffix(head, []byte("0}")))
	b.Write(canonical)
	b.WriteString("}\n")
	return b.Bytes(), nil
}

// canonical returns the JSON of the whole configuration, the same for the same
// content.
func (h *held) canonical() ([]byte, error) {
	if h.strange.empty() {
		return json.Marshal(h.config)
	}
	lbs, err := overlay(h.config.LoadBalancers, h.strange.loadBalancers)
	if err != nil {
		return nil, err
	}
	nodes, err := overlay(h.config.Nodes, h.strange.nodes)
	if err != nil {
		return nil, err
	}
	whole := maps.Clone(h.strange.top)
	if whole == nil {
		whole = make(map[string]json.RawMessage)
	}
	var errs []error
	put := func(name string, v any) {
		raw, err := json.Marshal(v)
		errs = append(errs, err)
		whole[name] = raw
	}
	put("revision", h.config.Revision)
	put("nodes", nodes)
	put("pools", h.config.Pools)
	put("loadBalancers", lbs)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return json.Marshal(whole)
}

// overlay returns the JSON of entries, those that are odd as they were read.
func overlay[K ~string, V any](entries map[K]V, odd map[K]oddity[V]) (map[K]json.RawMessage, error) {
	out := make(map[K]json.RawMessage, len(entries)+len(odd))
	for k, v := range entries {
		if _, ok := odd[k]; ok {
			continue
		}
		raw, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		out[k] = raw
	}
	for k, o := range odd {
		out[k] = o.raw
	}
	return out, nil
}

func (s strange) empty() bool {
	return len(s.loadBalancers) == 0 && len(s.nodes) == 0 && len(s.top) == 0
}

// keep returns those oddities that a new configuration leaves as they are: the
// writer has read what this program understands of them, and sent it back.
func (s strange) keep(c lb.Config) strange {
	if s.empty() {
		return strange{}
	}
	return strange{
		schema:        s.schema,
		loadBalancers: unchanged(s.loadBalancers, c.LoadBalancers),
		nodes:         unchanged(s.nodes, c.Nodes),
		top:           s.top,
	}
}

func unchanged[K comparable, V any](odd map[K]oddity[V], entries map[K]V) map[K]oddity[V] {
	out := make(map[K]oddity[V])
	for k, o := range odd {
		if v, ok := entries[k]; ok && o.read && reflect.DeepEqual(v, o.known) {
			out[k] = o
		}
	}
	return out
}

// decodeState reads a state file, of this program or a newer one.
func decodeState(data []byte) (*held, error) {
	if len(data) > maxState {
		return nil, fmt.Errorf("%d bytes are more than a state file can have", len(data))
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, err
	}
	if r.Schema == "" {
		return nil, errors.New("names no schema")
	}
	if got := digestOf(r.Config); got != r.Digest {
		return nil, fmt.Errorf("was damaged: the digest is %.12s and should be %.12s", got, r.Digest)
	}
	h := &held{digest: r.Digest, epoch: r.Epoch, strange: strange{schema: r.Schema}}
	if err := h.decodeConfig(r.Config); err != nil {
		return nil, err
	}
	return h, nil
}

func (h *held) decodeConfig(raw []byte) error {
	var top map[string]json.RawMessage
	if err := json.Unmarshal(raw, &top); err != nil {
		return err
	}
	var err error
	for name, value := range top {
		var e error
		switch name {
		case "revision":
			e = json.Unmarshal(value, &h.config.Revision)
		case "pools":
			e = json.Unmarshal(value, &h.config.Pools)
		case "nodes":
			h.config.Nodes, h.strange.nodes, e = entries[lb.NodeName, lb.Node](value)
		case "loadBalancers":
			h.config.LoadBalancers, h.strange.loadBalancers, e = entries[lb.UID, lb.LoadBalancer](value)
		default:
			if h.strange.top == nil {
				h.strange.top = make(map[string]json.RawMessage)
			}
			h.strange.top[name] = value
		}
		if e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", name, e))
		}
	}
	return err
}

// entries reads a collection. Entries with something unknown in them are among
// the first result as far as they can be understood, and in the second one.
func entries[K ~string, V any](raw []byte) (map[K]V, map[K]oddity[V], error) {
	var all map[K]json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, nil, err
	}
	out := make(map[K]V, len(all))
	var odd map[K]oddity[V]
	for k, value := range all {
		v, err := strictly[V](value)
		if err == nil {
			out[k] = v
			continue
		}
		o := oddity[V]{raw: value, why: strings.TrimPrefix(err.Error(), "json: ")}
		o.read = json.Unmarshal(value, &o.known) == nil
		if o.read {
			out[k] = o.known
		}
		if odd == nil {
			odd = make(map[K]oddity[V])
		}
		odd[k] = o
	}
	return out, odd, nil
}

func strictly[V any](raw []byte) (V, error) {
	var v V
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return v, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return v, errors.New("more than one value")
	}
	return v, nil
}

// servable returns the configuration without the load balancers that this
// program understands by half only, and what to tell of those.
func (h *held) servable() (lb.Config, map[lb.UID]lb.LoadBalancerStatus) {
	odd := h.strange.loadBalancers
	if len(odd) == 0 {
		return h.config, nil
	}
	c := h.config
	c.LoadBalancers = maps.Clone(c.LoadBalancers)
	refused := make(map[lb.UID]lb.LoadBalancerStatus, len(odd))
	for _, uid := range slices.Sorted(maps.Keys(odd)) {
		delete(c.LoadBalancers, uid)
		refused[uid] = lb.LoadBalancerStatus{Problems: []lb.Problem{{
			Type:   "unsupported",
			Detail: fmt.Sprintf("it was saved by a newer version of the edge (schema %s) and uses what this one does not know: %s", h.strange.schema, odd[uid].why),
		}}}
	}
	return c, refused
}
