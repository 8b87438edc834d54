// Package page shows people what an edge does: a status page that lives without
// a reload, works without JavaScript and asks nobody else for anything, and the
// same as JSON ([Status] is its schema).
//
// [Page.Run] samples what the engine counts and keeps five minutes of it, within
// the bounds that history.go states. Everything else is asked of the edge when
// somebody looks, at most once a second however many do.
package page

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/edge"
	"github.com/eclusa-lb/eclusa/lb"
)

// Source is what a page shows: an [edge.Edge].
type Source interface {
	View() edge.View
	Traffic() []lb.RouteCounters
}

var _ Source = (*edge.Edge)(nil)

// Options are what a Page is made of. Source and Log are required.
type Options struct {
	Source Source
	// Events are what happened; nil if nobody keeps them.
	Events *Events
	Access Access
	// Log gets who has logged in and who was refused.
	Log *zap.Logger
}

const (
	// freshness is how old what is shown may be.
	freshness = time.Second
	// idleAfter is when what was shown is forgotten, if nobody looks any more.
	idleAfter = time.Minute
	// maxRequests is how many requests are answered at once.
	maxRequests = 8
	// maxQuery is the longest query string that is read, in bytes.
	maxQuery = 2048
)

// Page is the status page of an edge. Make it with New.
type Page struct {
	source  Source
	events  *Events
	guard   *guard
	log     *zap.Logger
	history *history
	now     func() time.Time
	// One for each request under way. Those of strangers do not take the places
	// of those who may look.
	slots, strangers chan struct{}

	mu    sync.Mutex // guards what follows
	shown *snapshot
	// counters are what the engine said last to somebody who looked at a single
	// load balancer.
	counters   []lb.RouteCounters
	countersAt time.Time
}

// New returns a page. It starts nothing.
func New(o Options) (*Page, error) {
	if o.Source == nil || o.Log == nil {
		return nil, errors.New("page: source and log are required")
	}
	if o.Events == nil {
		o.Events = NewEvents()
	}
	p := &Page{
		source: o.Source, events: o.Events, log: o.Log, history: newHistory(),
		now: time.Now, slots: make(chan struct{}, maxRequests), strangers: make(chan struct{}, maxRequests),
	}
	p.guard = &guard{Access: o.Access, now: p.time, failures: newFailures(), log: o.Log}
	return p, nil
}

func (p *Page) time() time.Time { return p.now() }

// Run samples until ctx ends.
func (p *Page) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		start := time.Now()
		p.Sample()
		// A large machine must not spend itself on being watched.
		timer.Reset(max(sampleInterval, 50*time.Since(start)))
	}
}

// Sample takes one sample of what the engine counts, as Run does every two
// seconds.
func (p *Page) Sample() {
	now := p.now()
	p.history.add(now, p.source.Traffic())
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown != nil && now.Sub(p.shown.At) > idleAfter {
		p.shown = nil
	}
	if now.Sub(p.countersAt) > freshness {
		p.counters = nil
	}
}

// snapshot returns what there is to show, at most as old as freshness.
func (p *Page) snapshot() *snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := p.now(); p.shown == nil || now.Sub(p.shown.At) >= freshness || now.Before(p.shown.At) {
		p.shown = newSnapshot(now, p.source.View(), p.history, p.events)
	}
	return p.shown
}

// traffic returns the engine's counters, at most as old as freshness.
func (p *Page) traffic() []lb.RouteCounters {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := p.now(); p.counters == nil || now.Sub(p.countersAt) >= freshness {
		p.counters, p.countersAt = p.source.Traffic(), now
	}
	return p.counters
}

// Handler returns the page at "/", "/load-balancer", "/status.json", "/login",
// "/logout" and below "/assets/". Everything else is the affair of other.
func (p *Page) Handler(other http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", other)
	// A method in the pattern would send requests with another one to other.
	mux.Handle("/{$}", p.guard.protect(limit(p.slots, get(p.overview))))
	mux.Handle("/load-balancer", p.guard.protect(limit(p.slots, get(p.detail))))
	mux.Handle("/status.json", p.guard.protect(limit(p.slots, get(p.json))))
	mux.Handle("/login", limit(p.strangers, p.guard.login()))
	mux.Handle("/logout", limit(p.strangers, p.guard.logout()))
	mux.Handle("/assets/", limit(p.strangers, get(serveAsset)))
	return mux
}

// get refuses what only looks.
func get(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, r.Method+": only GET and HEAD are possible here", http.StatusMethodNotAllowed)
			return
		}
		h(w, r)
	}
}

// limit sets the headers that every answer has, and bounds how many requests are
// answered at once.
func limit(slots chan struct{}, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		secure(w.Header())
		if len(r.URL.RawQuery) > maxQuery {
			http.Error(w, "the query is too long", http.StatusRequestURITooLong)
			return
		}
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			w.Header().Set("Retry-After", "5")
			http.Error(w, "too many are looking at this page; try again in a few seconds", http.StatusServiceUnavailable)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// secure forbids a browser everything that the page does not need.
func secure(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
	h.Set("Cache-Control", "no-store")
}
