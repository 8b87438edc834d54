package edge

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Management returns the handler of the management listener:
//
//   - /healthz answers 200 while the loop that decides is alive;
//   - /readyz answers 200 while the edge serves what it was told and has saved
//     it, and otherwise 503 with the reasons, one a line;
//   - /metrics has the metrics of [Edge.Registry].
func (e *Edge) Management() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, e.illness()) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { answer(w, e.unreadiness()) })
	mux.Handle("GET /metrics", promhttp.HandlerFor(e.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, ErrorHandling: promhttp.ContinueOnError}))
	return mux
}

func answer(w http.ResponseWriter, reasons []string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	text := "ok"
	if len(reasons) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
		text = strings.Join(reasons, "\n")
	}
	_, _ = fmt.Fprintln(w, text)
}

// illness returns why the program should be restarted.
func (e *Edge) illness() []string {
	beat := e.stats.snapshot().lastBeat
	if beat.IsZero() || time.Since(beat) < Patience {
		return nil
	}
	return []string{fmt.Sprintf("the loop that decides has done nothing for %s", time.Since(beat).Round(time.Second))}
}

// unreadiness returns why the edge does not do all that it should.
func (e *Edge) unreadiness() []string {
	reasons := e.illness()
	f := e.stats.snapshot()
	if !e.ready.Load() {
		reasons = append(reasons, "no table is in force yet")
	}
	if f.engineErr != nil {
		reasons = append(reasons, fmt.Sprintf("the engine does not take the table: %v", f.engineErr))
	}
	if f.announceErr != nil {
		reasons = append(reasons, fmt.Sprintf("addresses cannot be announced: %v", f.announceErr))
	}
	for _, name := range slices.Sorted(maps.Keys(e.clusters)) {
		c := e.clusters[name]
		if c.unsaved.Load() {
			reasons = append(reasons, fmt.Sprintf("the configuration of cluster %q is served but cannot be saved", name))
		}
		if c.lost.Load() {
			reasons = append(reasons, fmt.Sprintf("the state of cluster %q was lost and it has not written since", name))
		}
	}
	return reasons
}
