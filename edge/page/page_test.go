package page

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/edge"
	"github.com/eclusa-lb/eclusa/lb"
)

// ask asks a page, as a browser does unless a change says otherwise.
func ask(p *Page, method, path string, changes ...func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	r.Host = "127.0.0.1:9980"
	r.Header.Set("Accept", "text/html")
	for _, change := range changes {
		change(r)
	}
	w := httptest.NewRecorder()
	p.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "other") })).ServeHTTP(w, r)
	return w
}

func header(name, value string) func(*http.Request) {
	return func(r *http.Request) {
		if r.Header.Set(name, value); name == "Host" {
			r.Host = value
		}
	}
}

func TestJSON(t *testing.T) {
	s := demo()
	s.view.Clusters[1].Status.LoadBalancers["staging-1"] = lb.LoadBalancerStatus{Problems: []lb.Problem{{
		Type: "address-held", Field: "listeners[0]", Detail: `tcp 203.0.113.80:80: held by "shop/web" of cluster "prod"`,
	}}}
	s.view.Clusters[0].Held = &edge.HeldWrite{At: noon.Add(-time.Minute), Keys: []string{"loadBalancers/gone", "loadBalancers/prod-2", "nodes/worker-1"}, Largest: 6}
	p := newPage(t, s, Access{Open: true})
	p.remember(s)
	p.happened()
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, ask(p, "GET", "/status.json?state=problems&limit=2").Body.Bytes(), "", " "); err != nil {
		t.Fatal(err)
	}
	got := pretty.Bytes()
	const golden = "testdata/status.json"
	if *update {
		if err := os.WriteFile(golden, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("status.json has changed; -update rewrites it (-want +got):\n%s", d)
	}
}

func TestJSONQueries(t *testing.T) {
	p := newPage(t, thousands(300), Access{Open: true})
	for _, c := range []struct {
		query       string
		status      int
		matched, in int
		first       string
	}{
		{"", 200, 300, 300, "team-0/svc-0"},
		{"?limit=10&offset=295", 200, 300, 5, "team-9/svc-29"},
		{"?offset=9999", 200, 300, 0, ""},
		{"?q=svc-12", 200, 11, 11, "team-0/svc-120"},
		{"?q=TEAM-3+svc-3", 200, 1, 1, "team-3/svc-3"},
		{"?q=100.64.1.7", 200, 1, 1, "team-3/svc-263"},
		{"?limit=-1", 400, 0, 0, ""},
		{"?offset=x", 400, 0, 0, ""},
		{"?q=" + strings.Repeat("x", maxQuery), 414, 0, 0, ""},
	} {
		w := ask(p, "GET", "/status.json"+c.query)
		if w.Code != c.status {
			t.Errorf("%s: got %d %s; want %d", c.query, w.Code, w.Body, c.status)
		}
		if w.Code != 200 {
			continue
		}
		var s Status
		if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil {
			t.Fatal(err)
		}
		first := ""
		if len(s.LoadBalancers) > 0 {
			first = s.LoadBalancers[0].Name
		}
		if s.Matched != c.matched || len(s.LoadBalancers) != c.in || first != c.first || s.Totals.LoadBalancers.Total != 300 {
			t.Errorf("%s: got %d of %d, first %q; want %d of %d, first %q", c.query, len(s.LoadBalancers), s.Matched, first, c.in, c.matched, c.first)
		}
	}
}

// Whatever names are made of, they cannot become markup, and every answer
// forbids the browser all that the page does not need.
func TestAnswersAreSafe(t *testing.T) {
	s := hostile()
	p := newPage(t, s, Access{Open: true})
	p.remember(s)
	p.events.add(Event{noon, "warn", hostileName, []Field{{hostileName, hostileName}}}, true)
	for path, status := range map[string]int{
		"/": 200, "/?q=" + queryEscape(hostileName): 200, detailPath(hostileName): 200, "/status.json": 200, "/assets/live.js": 200, "/login": 303,
		"/load-balancer": 404, "/assets/../page.go": 307, "/assets/overview.html": 404, "/assets/": 404,
	} {
		w := ask(p, "GET", path)
		if w.Code != status {
			t.Errorf("%.60s: got %d; want %d", path, w.Code, status)
		}
		if body := w.Body.String(); path != "/assets/live.js" && (strings.Contains(body, "<script>") || strings.Contains(body, "<img")) {
			t.Errorf("%.60s: a name has become markup", path)
		}
		if w.Code == 307 {
			continue // the mux cleans the path before anybody sees it
		}
		for name, want := range map[string]string{
			"Content-Security-Policy": "default-src 'none'", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY",
		} {
			if got := w.Header().Get(name); !strings.Contains(got, want) {
				t.Errorf("%.60s: %s: got %q; want %q", path, name, got, want)
			}
		}
		if csp := w.Header().Get("Content-Security-Policy"); strings.Contains(csp, "unsafe") || strings.Contains(csp, "*") || !strings.Contains(csp, "frame-ancestors 'none'") {
			t.Errorf("%.60s: got policy %q", path, csp)
		}
	}
	if body := ask(p, "GET", "/").Body.String(); strings.Contains(body, " style=") || strings.Contains(body, " onclick=") || strings.Contains(body, "http://") || strings.Contains(body, "https://") {
		t.Error("the page has inline code or leads to others")
	}
}

func TestMethodsAndTheRest(t *testing.T) {
	p := newPage(t, demo(), Access{Open: true})
	for path, want := range map[string]string{"/healthz": "other", "/metrics": "other", "/x": "other"} {
		if got := ask(p, "GET", path).Body.String(); got != want {
			t.Errorf("%s: got %q; want the handler beside the page", path, got)
		}
	}
	for _, path := range []string{"/", "/status.json", "/load-balancer", "/assets/style.css"} {
		if w := ask(p, "DELETE", path); w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") == "" {
			t.Errorf("DELETE %s: got %d; want 405", path, w.Code)
		}
		if w := ask(p, "HEAD", path+"?cluster=prod&uid=prod-1"); w.Code != http.StatusOK || w.Body.Len() > 0 {
			t.Errorf("HEAD %s: got %d with %d bytes; want 200 with none", path, w.Code, w.Body.Len())
		}
	}
	if got := ask(p, "GET", "/assets/style.css?v="+assetVersion).Header().Get("Cache-Control"); !strings.Contains(got, "immutable") {
		t.Errorf("an asset of this version: got %q; want it kept for ever", got)
	}
	if got := ask(p, "GET", "/assets/style.css?v=old").Header().Get("Cache-Control"); got != "no-cache" {
		t.Errorf("an asset of another version: got %q; want it asked for again", got)
	}
}

// A page that has not changed is not sent again.
func TestETag(t *testing.T) {
	s := demo()
	p := newPage(t, s, Access{Open: true})
	first := ask(p, "GET", "/")
	tag := first.Header().Get("ETag")
	if w := ask(p, "GET", "/", header("If-None-Match", tag)); w.Code != http.StatusNotModified || w.Body.Len() > 0 {
		t.Errorf("got %d with %d bytes; want 304 with none", w.Code, w.Body.Len())
	}
	s.view.Unready = []string{"the disk is full"}
	p.now = func() time.Time { return noon.Add(freshness) }
	if w := ask(p, "GET", "/", header("If-None-Match", tag)); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "the disk is full") {
		t.Errorf("got %d; want the page that has changed", w.Code)
	}
}

// What is shown is asked of the edge at most once a second, and forgotten when
// nobody looks.
func TestSnapshotIsShared(t *testing.T) {
	s := &countingSource{fakeSource: demo()}
	p := newPage(t, s, Access{Open: true})
	for range 5 {
		ask(p, "GET", "/")
		ask(p, "GET", "/status.json")
	}
	if s.views != 1 {
		t.Errorf("got %d views for ten requests in one second; want 1", s.views)
	}
	p.now = func() time.Time { return noon.Add(2 * idleAfter) }
	if p.Sample(); p.shown != nil {
		t.Error("what nobody looks at is kept")
	}
}

type countingSource struct {
	*fakeSource
	views int
}

func (s *countingSource) View() edge.View { s.views++; return s.fakeSource.View() }

// Too many clients are told to come later; those who were there first are served.
func TestTooManyRequests(t *testing.T) {
	p := newPage(t, demo(), Access{Open: true})
	for range maxRequests {
		p.slots <- struct{}{}
	}
	w := ask(p, "GET", "/")
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("got %d; want 503 with Retry-After", w.Code)
	}
	<-p.slots
	if w := ask(p, "GET", "/"); w.Code != http.StatusOK {
		t.Errorf("with a slot free: got %d; want 200", w.Code)
	}
}

// Run samples every two seconds and ends with its context.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := New(Options{Source: demo(), Log: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()
		time.Sleep(time.Minute + sampleInterval/2)
		if got := len(p.history.totals(time.Now()).points); got != 30 {
			t.Errorf("got %d points after a minute; want 30", got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// heap returns the bytes in use.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// The page costs an edge with 5,000 load balancers, all with traffic, no more
// memory than docs/status-page.md says.
func TestMemory(t *testing.T) {
	s := thousands(5000)
	p := newPage(t, s, Access{Open: true})
	before := heap()
	for at := noon.Add(-window); !at.After(noon); at = at.Add(sampleInterval) {
		s.pass(at, sampleInterval.Seconds())
		p.history.add(at, s.counters)
	}
	history := heap() - min(before, heap())
	ask(p, "GET", "/")
	shown := heap() - min(before, heap())
	t.Logf("5,000 load balancers: history %.1f MB, while somebody looks %.1f MB", float64(history)/1e6, float64(shown)/1e6)
	if history > 8<<20 || shown > 12<<20 {
		t.Errorf("got %d bytes of history and %d while somebody looks; want at most 8 and 12 MB", history, shown)
	}
	runtime.KeepAlive(s)
	runtime.KeepAlive(p)
}

// BenchmarkOverview is the page of an edge with 5,000 load balancers, asked of
// the edge anew each time.
func BenchmarkOverview(b *testing.B) {
	s := thousands(5000)
	p := newPage(b, s, Access{Open: true})
	p.remember(s)
	b.ReportAllocs()
	for b.Loop() {
		p.shown = nil
		if w := ask(p, "GET", "/"); w.Code != http.StatusOK {
			b.Fatal(w.Code)
		}
	}
}

// BenchmarkJSON is the same as JSON, whole.
func BenchmarkJSON(b *testing.B) {
	s := thousands(5000)
	p := newPage(b, s, Access{Open: true})
	p.remember(s)
	b.ReportAllocs()
	for b.Loop() {
		p.shown = nil
		n, err := io.Copy(io.Discard, bytes.NewReader(ask(p, "GET", "/status.json").Body.Bytes()))
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(n), "B/answer")
	}
}

// BenchmarkSample is one sample of 5,000 load balancers.
func BenchmarkSample(b *testing.B) {
	s := thousands(5000)
	p := newPage(b, s, Access{Open: true})
	p.remember(s)
	at := noon
	b.ReportAllocs()
	for b.Loop() {
		at = at.Add(sampleInterval)
		p.history.add(at, s.counters)
	}
}
