package page

import (
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// maxSources bounds the addresses that are remembered for wrong tokens. Those that
	// find no room share one limit.
	maxSources = 1024
	// wrongBurst and one each wrongEvery is how many wrong tokens an address may send.
	wrongBurst = 10
	wrongEvery = time.Second
	// wrongTold is how often a line tells of wrong tokens of the same address.
	wrongTold = time.Hour
	// wrongToken is what it says.
	wrongToken = "somebody with a wrong token was not let in to the status page"
)

// failures limits wrong tokens by the address that they come from: a token is not
// even looked at when there were too many, be it the right one.
type failures struct {
	mu      sync.Mutex // guards what follows
	sources map[netip.Prefix]*source
	total   uint64
}

// source is an address from which wrong tokens have come.
type source struct {
	limit *rate.Limiter
	told  time.Time
}

func newFailures() *failures { return &failures{sources: make(map[netip.Prefix]*source)} }

// exhausted tells whether a request's token must not be looked at.
func (f *failures) exhausted(r *http.Request, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := sourceOf(r)
	s := f.sources[key]
	if s == nil && len(f.sources) >= maxSources {
		s = f.sources[netip.Prefix{}]
	}
	return s != nil && s.limit.TokensAt(now) < 1
}

// note notes a wrong token. It returns how many there were, and whether to tell.
func (f *failures) note(r *http.Request, now time.Time) (total uint64, tell bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := sourceOf(r)
	if f.sources[key] == nil && len(f.sources) >= maxSources {
		f.forget(now)
	}
	if f.sources[key] == nil && len(f.sources) >= maxSources {
		key = netip.Prefix{}
	}
	s := f.sources[key]
	if s == nil {
		s = &source{limit: rate.NewLimiter(rate.Every(wrongEvery), wrongBurst)}
		f.sources[key] = s
	}
	s.limit.AllowN(now, 1)
	f.total++
	tell = s.told.IsZero() || now.Sub(s.told) >= wrongTold
	if tell {
		s.told = now
	}
	return f.total, tell
}

// forget makes room: whoever has waited long enough begins anew.
func (f *failures) forget(now time.Time) {
	for key, s := range f.sources {
		if s.limit.TokensAt(now) >= wrongBurst {
			delete(f.sources, key)
		}
	}
}

// sourceOf returns where a request comes from. A network of IPv6 counts as one
// address: whoever has one has them all.
func sourceOf(r *http.Request) netip.Prefix {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Prefix{}
	}
	a, bits := from.Addr().Unmap().WithZone(""), 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // the length fits
	return p
}
