package provider

import (
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// confirmMissing is how often the API server is asked about an object that is
// missing.
const confirmMissing = 5 * time.Second

// missing keeps objects that an informer shows no more until the API server
// itself has said that they are gone: an informer that suddenly shows nothing
// must take nothing away. It belongs to one goroutine.
type missing[T object] struct {
	// matters says whether the absence of an object would have consequences.
	matters func(T) bool
	last    map[types.UID]T
	asked   map[types.UID]time.Time
	gone    map[types.UID]bool
}

// fill returns the objects together with those that are missing, and of these
// the ones that the API server is to be asked about now.
func (m *missing[T]) fill(objects []T, now time.Time) (all, ask []T) {
	present := make(map[types.UID]bool, len(objects))
	last := make(map[types.UID]T, len(m.last))
	for _, o := range objects {
		present[o.GetUID()] = true
		if m.matters(o) {
			last[o.GetUID()] = o
		}
	}
	asked := make(map[types.UID]time.Time)
	for uid, o := range m.last {
		if present[uid] || m.gone[uid] {
			continue
		}
		last[uid], asked[uid] = o, m.asked[uid]
		objects = append(objects, o)
		if now.Sub(asked[uid]) >= confirmMissing {
			asked[uid] = now
			ask = append(ask, o)
		}
	}
	m.last, m.asked, m.gone = last, asked, nil
	return objects, ask
}

// saw takes an answer of the API server about an object: what it is now, or
// nothing.
func (m *missing[T]) saw(uid types.UID, now T, there bool) {
	if _, ok := m.last[uid]; !ok {
		return
	}
	if there && now.GetUID() == uid {
		m.last[uid] = now
		return
	}
	if m.gone == nil {
		m.gone = map[types.UID]bool{}
	}
	m.gone[uid] = true
}
