package rest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

const configPath = "/v1/clusters/prod/config"

// claimed starts an edge that holds revision 1, and returns the epoch and the
// entity tag.
func claimed(t *testing.T, change func(*HandlerOptions)) (b *testbed, epoch, tag string) {
	t.Helper()
	b = listen(t, change)
	e, err := b.balance.Claim(t.Context(), lb.Claim{ClusterUID: "u", LeaseUID: "l"})
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.balance.Set(t.Context(), lb.Write{Epoch: e, Config: lb.Config{Revision: 1}})
	if err != nil {
		t.Fatal(err)
	}
	return b, string(e), entityTag(r.Digest)
}

func TestRefusals(t *testing.T) {
	b, epoch, tag := claimed(t, nil)
	const typed, patch, put, status = "Content-Type", http.MethodPatch, http.MethodPut, "/v1/clusters/prod/status"
	for _, c := range []struct {
		name, method, path, body string
		header                   []string
		status                   int
		kind, want               string
	}{
		{"unknown path", "GET", "/v2/info", "", nil, 404, "not-found", "/v2/info"},
		{"method of info", "POST", "/v1/info", "{}", nil, 405, "invalid", `"POST"`},
		{"method of lease", "GET", "/v1/clusters/prod/lease", "", nil, 405, "invalid", "POST"},
		{"method of config", "DELETE", configPath, "", nil, 405, "invalid", "GET, PATCH, PUT"},
		{"method of status", "HEAD", status, "", nil, 405, "", ""},
		{"body of a GET", "GET", configPath, "{}", nil, 400, "invalid", "body"},
		{"PUT without type", put, configPath, "{}", nil, 415, "invalid", TypeJSON},
		{"PUT of text", put, configPath, "{}", []string{typed, "text/plain"}, 415, "invalid", "text/plain"},
		{"PUT of a patch", put, configPath, "{}", []string{typed, TypeMergePatch}, 415, "invalid", TypeMergePatch},
		{"PATCH of JSON", patch, configPath, "{}", []string{typed, TypeJSON}, 415, "invalid", TypeMergePatch},
		{"compressed", put, configPath, "{}", []string{typed, TypeJSON, "Content-Encoding", "gzip"}, 415, "invalid", "gzip"},
		{"PUT unconditional", put, configPath, "{}", []string{typed, TypeJSON, HeaderEpoch, epoch}, 428, "invalid", "If-None-Match"},
		{"PATCH unconditional", patch, configPath, "{}", []string{typed, TypeMergePatch, HeaderEpoch, epoch}, 428, "invalid", "If-Match"},
		{"PATCH that creates", patch, configPath, "{}", []string{typed, TypeMergePatch, HeaderEpoch, epoch, "If-None-Match", "*"}, 428, "invalid", "If-Match"},
		{"no epoch", put, configPath, "{}", []string{typed, TypeJSON, "If-Match", tag}, 428, "invalid", HeaderEpoch},
		{"two conditions", put, configPath, "{}", []string{typed, TypeJSON, HeaderEpoch, epoch, "If-Match", tag, "If-None-Match", "*"}, 400, "invalid", "2 preconditions"},
		{"any base", put, configPath, "{}", []string{typed, TypeJSON, HeaderEpoch, epoch, "If-Match", "*"}, 400, "invalid", "entity tag"},
		{"weak tag", put, configPath, "{}", []string{typed, TypeJSON, HeaderEpoch, epoch, "If-Match", "W/" + tag}, 400, "invalid", "entity tag"},
		{"stale epoch", put, configPath, `{"revision":2}`, []string{typed, TypeJSON, HeaderEpoch, "0.0", "If-Match", tag}, 409, "stale-epoch", `"0.0"`},
		{"stale epoch of a patch", patch, configPath, `{"revision":2}`, []string{typed, TypeMergePatch, HeaderEpoch, "0.0", "If-Match", tag}, 409, "stale-epoch", `"0.0"`},
		{"other base", put, configPath, `{"revision":2}`, []string{typed, TypeJSON, HeaderEpoch, epoch, "If-Match", `"abc"`}, 412, "base-differs", "abc"},
		{"other base of a patch", patch, configPath, `{"revision":2}`, []string{typed, TypeMergePatch, HeaderEpoch, epoch, "If-Match", `"abc"`}, 412, "base-differs", "abc"},
		{"exists", put, configPath, `{"revision":2}`, []string{typed, TypeJSON, HeaderEpoch, epoch, "If-None-Match", "*"}, 412, "base-differs", "already"},
		{"older revision", put, configPath, `{"revision":0}`, []string{typed, TypeJSON, HeaderEpoch, epoch, "If-Match", tag}, 409, "conflict", "revision"},
		{"truncated JSON", put, configPath, `{"revision":`, []string{typed, TypeJSON, HeaderEpoch, epoch, "If-Match", tag}, 400, "invalid", "revision"},
		{"unknown field", put, configPath, `{"loadBalancers":{"u1":{"foo":1}}}`, []string{typed, TypeJSON, HeaderEpoch, epoch, "If-Match", tag}, 400, "invalid", `loadBalancers["u1"]`},
		{"unknown field of a patch", patch, configPath, `{"loadBalancers":{"u1":{"foo":1}}}`, []string{typed, TypeMergePatch, HeaderEpoch, epoch, "If-Match", tag}, 400, "invalid", `"foo"`},
		{"envelope without patch", patch, configPath, `{"confirmedRemovals":[]}`, []string{typed, TypeWrite, HeaderEpoch, epoch, "If-Match", tag}, 400, "invalid", "mergePatch"},
		{"envelope of the other kind", patch, configPath, `{"config":{}}`, []string{typed, TypeWrite, HeaderEpoch, epoch, "If-Match", tag}, 400, "invalid", "config"},
		{"envelope of numbers", put, configPath, `{"confirmedRemovals":[1],"config":{}}`, []string{typed, TypeWrite, HeaderEpoch, epoch, "If-Match", tag}, 400, "invalid", "confirmedRemovals"},
		{"claim of text", "POST", "/v1/clusters/prod/lease", "{}", []string{typed, "text/plain"}, 415, "invalid", TypeJSON},
		{"claim with unknown field", "POST", "/v1/clusters/prod/lease", `{"ClusterUID":"u"}`, []string{typed, TypeJSON}, 400, "invalid", `"ClusterUID"`},
		{"claim of a wrong type", "POST", "/v1/clusters/prod/lease", `{"leaseTransitions":"1"}`, []string{typed, TypeJSON}, 400, "invalid", "leaseTransitions"},
		{"claim of another cluster", "POST", "/v1/clusters/prod/lease", `{"clusterUID":"v"}`, []string{typed, TypeJSON}, 409, "conflict", "pinned"},
		{"claim too large", "POST", "/v1/clusters/prod/lease", `{"holder":"` + strings.Repeat("x", maxClaim) + `"}`, []string{typed, TypeJSON}, 413, "exhausted", "larger than"},
		{"wait too long", "GET", status + "?wait=61s", "", nil, 400, "invalid", "61s"},
		{"wait of nothing", "GET", status + "?wait=soon", "", nil, 400, "invalid", "soon"},
		{"negative wait", "GET", status + "?wait=-1s", "", nil, 400, "invalid", "-1s"},
		{"unknown parameter", "GET", status + "?before=1", "", nil, 400, "invalid", "before"},
		{"two cursors", "GET", status + "?after=1&after=2", "", nil, 400, "invalid", "after"},
		{"broken query", "GET", status + "?after=%zz", "", nil, 400, "invalid", "query"},
		{"odd cursor", "GET", status + "?after=%22", "", nil, 400, "invalid", "after"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.t = t
			resp, p := b.ask(c.method, c.path, c.body, c.header...)
			if resp.StatusCode != c.status {
				t.Errorf("got status %d %q; want %d", resp.StatusCode, p.Detail, c.status)
			}
			if c.kind != "" && (p.Type != typePrefix+c.kind || p.Status != c.status || p.Title == "") {
				t.Errorf("got problem %+v; want type %q with status and title", p, typePrefix+c.kind)
			}
			if !strings.Contains(p.Detail, c.want) {
				t.Errorf("got detail %q; want %q in it", p.Detail, c.want)
			}
			switch c.status {
			case 405:
				if resp.Header.Get("Allow") == "" {
					t.Error("no Allow in the answer")
				}
			case 415:
				if resp.Header.Get("Accept")+resp.Header.Get("Accept-Patch") == "" {
					t.Error("neither Accept nor Accept-Patch in the answer")
				}
			}
		})
	}
	if got := b.balance.Held().Revision; got != 1 {
		t.Errorf("after all refusals: revision %d is held; want 1", got)
	}
}

// zeros is a body of any size.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestBodyOf100MB(t *testing.T) {
	const most = 4 << 20
	b, epoch, tag := claimed(t, func(o *HandlerOptions) { o.MaxBody = most })
	for _, length := range []int64{100 << 20, -1} {
		t.Run(fmt.Sprintf("length %d", length), func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://"+b.addr+configPath, io.LimitReader(zeros{}, 100<<20))
			if err != nil {
				t.Fatal(err)
			}
			req.ContentLength = length
			for k, v := range map[string]string{"Content-Type": TypeJSON, HeaderEpoch: epoch, "If-Match": tag} {
				req.Header.Set(k, v)
			}
			resp, err := b.plain(b.cert).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, _ := io.ReadAll(resp.Body)
			p := decodeProblem(resp.StatusCode, resp.Header.Get("Content-Type"), text)
			if resp.StatusCode != 413 || p.Type != typePrefix+"exhausted" || !strings.Contains(p.Detail, fmt.Sprint(most)) {
				t.Errorf("got %d %+v; want 413 of type exhausted that names the limit", resp.StatusCode, p)
			}
		})
	}
	if resp, p := b.ask(http.MethodGet, configPath, ""); resp.StatusCode != 200 {
		t.Errorf("afterwards: got %d %q; want 200", resp.StatusCode, p.Detail)
	}
}

// half sends a request whose body does not come to its end, and returns the
// answer.
func half(t *testing.T, b *testbed, epoch, tag string, after func(io.Closer)) Problem {
	t.Helper()
	conn := b.raw(t)
	fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: edge\r\nContent-Type: %s\r\n%s: %s\r\nIf-Match: %s\r\nRecord: no\r\nContent-Length: 1000\r\n\r\n{\"revision\":",
		configPath, TypeJSON, HeaderEpoch, epoch, tag)
	after(closeWriter{conn.CloseWrite})
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !resp.Close {
		t.Error("the connection stays open")
	}
	return decodeProblem(resp.StatusCode, resp.Header.Get("Content-Type"), text)
}

type closeWriter struct{ f func() error }

func (c closeWriter) Close() error { return c.f() }

func TestTruncatedBody(t *testing.T) {
	b, epoch, tag := claimed(t, nil)
	p := half(t, b, epoch, tag, func(c io.Closer) { c.Close() })
	if p.Status != 400 || !strings.Contains(p.Detail, "truncated, 12 of 1000 bytes") {
		t.Errorf("got %+v; want 400 about 12 of 1000 bytes", p)
	}
}

func TestSlowBody(t *testing.T) {
	b, epoch, tag := claimed(t, func(o *HandlerOptions) { o.BodyTimeout = 200 * time.Millisecond })
	start := time.Now()
	p := half(t, b, epoch, tag, func(io.Closer) {})
	if p.Status != 408 || !strings.Contains(p.Detail, "only 12 bytes") {
		t.Errorf("got %+v; want 408 about 12 bytes", p)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("got the answer after %s; want it soon after 200ms", took)
	}
}

func TestTooManyRequests(t *testing.T) {
	b := listen(t, func(o *HandlerOptions) { o.RequestsPerSecond, o.Burst = 0.1, 3 })
	client := b.plain(b.cert)
	for i := range 4 {
		resp, p := b.askWith(client, http.MethodGet, "/v1/info", "")
		if i < 3 && resp.StatusCode != 200 {
			t.Errorf("request %d: got %d %q; want 200", i, resp.StatusCode, p.Detail)
		}
		if i == 3 && (resp.StatusCode != 429 || p.Type != typePrefix+"exhausted" || resp.Header.Get("Retry-After") != "10") {
			t.Errorf("request %d: got %d %+v, Retry-After %q; want 429 of type exhausted after 10", i, resp.StatusCode, p, resp.Header.Get("Retry-After"))
		}
	}
}

func TestTooManyAtOnce(t *testing.T) {
	b := listen(t, func(o *HandlerOptions) { o.MaxCalls, o.MaxPolls = 1, 1 })
	for _, c := range []struct {
		call lbtest.Call
		path string
	}{{lbtest.CallConfig, configPath}, {lbtest.CallStatus, "/v1/clusters/prod/status"}} {
		release := b.balance.Hold(c.call)
		first := make(chan int, 1)
		client := b.plain(b.cert)
		go func() {
			resp, err := client.Get("https://" + b.addr + c.path)
			if err != nil {
				first <- 0
				return
			}
			resp.Body.Close()
			first <- resp.StatusCode
		}()
		waitCalls(t, b, c.call, 1)
		if resp, p := b.ask(http.MethodGet, c.path, ""); resp.StatusCode != 429 || resp.Header.Get("Retry-After") == "" {
			t.Errorf("second %s: got %d %q; want 429 with Retry-After", c.call, resp.StatusCode, p.Detail)
		}
		release()
		if got := <-first; got != 200 {
			t.Errorf("first %s: got %d; want 200", c.call, got)
		}
	}
}

// waitCalls waits until the balancer was called so often.
func waitCalls(t *testing.T, b *testbed, call lbtest.Call, n int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); b.balance.Calls(call) < n; {
		if time.Now().After(deadline) {
			t.Fatalf("%s was called %d times; want %d", call, b.balance.Calls(call), n)
		}
		time.Sleep(time.Millisecond) // poll
	}
}

func TestInternalErrorStaysInTheLog(t *testing.T) {
	b := listen(t, nil)
	b.balance.FailNext(lbtest.CallInfo, errors.New("disk /dev/sda1 on fire"))
	resp, p := b.ask(http.MethodGet, "/v1/info", "")
	if resp.StatusCode != 500 || p.Detail != "internal error" || p.RequestID == "" {
		t.Errorf("got %d %+v; want 500, internal error and a request ID", resp.StatusCode, p)
	}
	found := b.logs.FilterField(logField("requestID", p.RequestID)).All()
	if len(found) != 1 || !strings.Contains(fmt.Sprint(found[0].ContextMap()["error"]), "on fire") {
		t.Errorf("log for request %q: got %v; want one entry with the reason", p.RequestID, found)
	}
}

func TestSlowBalancer(t *testing.T) {
	b := listen(t, func(o *HandlerOptions) { o.CallTimeout = 50 * time.Millisecond })
	defer b.balance.Hold(lbtest.CallConfig)()
	resp, p := b.ask(http.MethodGet, configPath, "")
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("got %d %q; want 503 with Retry-After", resp.StatusCode, p.Detail)
	}
}

// busy is an error that passes by itself.
type busy struct{ error }

func (busy) Temporary() bool { return true }

func TestTemporaryErrors(t *testing.T) {
	b := listen(t, nil)
	b.balance.FailNext(lbtest.CallConfig, fmt.Errorf("set: %w", busy{errors.New("another process serves")}))
	resp, p := b.ask(http.MethodGet, configPath, "")
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !strings.Contains(p.Detail, "another process serves") {
		t.Errorf("got %d %q; want 503 with Retry-After and the reason", resp.StatusCode, p.Detail)
	}
}

func TestConcurrentFirstWrites(t *testing.T) {
	b := listen(t, nil)
	e, err := b.balance.Claim(t.Context(), lb.Claim{ClusterUID: "u"})
	if err != nil {
		t.Fatal(err)
	}
	const n = 6
	statuses := make(chan int, n)
	for range n {
		client := b.plain(b.cert)
		go func() {
			req, _ := http.NewRequestWithContext(context.WithoutCancel(t.Context()), http.MethodPut, "https://"+b.addr+configPath, strings.NewReader(`{"revision":1}`))
			for k, v := range map[string]string{"Content-Type": TypeJSON, HeaderEpoch: string(e), "If-None-Match": "*"} {
				req.Header.Set(k, v)
			}
			resp, err := client.Do(req)
			if err != nil {
				statuses <- 0
				return
			}
			resp.Body.Close()
			statuses <- resp.StatusCode
		}()
	}
	got := map[int]int{}
	for range n {
		got[<-statuses]++
	}
	if got[200] != 1 || got[412] != n-1 {
		t.Errorf("answers by status: got %v; want one 200 and %d 412", got, n-1)
	}
}
