package report

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// fakeSource answers what the test says.
type fakeSource struct {
	plan chan struct{} // a plan waits until it can receive, unless nil
	err  error
}

func (f fakeSource) Status(namespace string, all bool) Status {
	return Status{Services: []Service{{Namespace: namespace, Name: fmt.Sprint(all)}}}
}

func (f fakeSource) Explain(namespace, name string) (Explanation, error) {
	return Explanation{Namespace: namespace, Name: name}, f.err
}

func (f fakeSource) Plan(ctx context.Context, _ PlanRequest) (Plan, error) {
	if f.plan != nil {
		select {
		case <-f.plan:
		case <-ctx.Done():
		}
	}
	return Plan{}, f.err
}

func handlerOf(s Source) http.Handler {
	return Handler(HandlerOptions{Source: func() Source { return s }, Identity: "me", Leader: func() string { return "me" }, Version: "v1"})
}

func ask(t *testing.T, h http.Handler, method, target, body string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, target, strings.NewReader(body)))
	return w.Code, w.Body.String()
}

func TestHandlerAnswers(t *testing.T) {
	for _, test := range []struct {
		name, method, target, body string
		err                        error
		code                       int
		want                       string
	}{
		{"status", "GET", StatusPath + "?namespace=x&all=true", "", nil, 200, `"namespace":"x","name":"true"`},
		{"signed", "GET", StatusPath, "", nil, 200, `"leader":"me","version":"v1"`},
		{"explain", "GET", ExplainPath + "?namespace=x&name=y", "", nil, 200, `"namespace":"x","name":"y"`},
		{"explain nothing", "GET", ExplainPath + "?namespace=x", "", nil, 400, "namespace and name must be given"},
		{"not found", "GET", ExplainPath + "?namespace=x&name=y", "", fmt.Errorf("there is none: %w", ErrNotFound), 404, "there is none"},
		{"plan", "POST", PlanPath, `{"drain":{"edge":"e"}}`, nil, 200, `"origin"`},
		{"plan of nothing", "POST", PlanPath, "", nil, 400, "the request is empty"},
		{"unknown field", "POST", PlanPath, `{"x":1}`, nil, 400, `unknown field \"x\"`},
		{"two documents", "POST", PlanPath, `{} {}`, nil, 400, "there is more after its end"},
		{"no JSON", "POST", PlanPath, `[`, nil, 400, "reading the request"},
		{"too large", "POST", PlanPath, `{"objects":["` + strings.Repeat("x", MaxPlan) + `"]}`, nil, 413, "more than the 4194304 bytes"},
		{"too many objects", "POST", PlanPath, `{"objects":[` + strings.Repeat("1,", MaxObjects) + `1]}`, nil, 400, "objects: there are more than the 500"},
		{"no list", "POST", PlanPath, `{"objects":{}}`, nil, 400, "objects: must be a list"},
		{"wrong plan", "POST", PlanPath, `{}`, errors.New("objects: must be"), 400, "objects: must be"},
		{"wrong method", "POST", StatusPath, "", nil, 405, ""},
		{"unknown path", "GET", Prefix + "other", "", nil, 404, ""},
	} {
		code, body := ask(t, handlerOf(fakeSource{err: test.err}), test.method, test.target, test.body)
		if code != test.code || !strings.Contains(body, test.want) {
			t.Errorf("%s: got %d %.200s, want %d with %q", test.name, code, body, test.code, test.want)
		}
	}
}

// TestPlansWaitForEachOther lets one plan hang: another waits a few seconds and is
// refused, while status answers.
func TestPlansWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fakeSource{plan: make(chan struct{})}
		h := handlerOf(s)
		first := make(chan int, 1)
		go func() {
			code, _ := ask(t, h, "POST", PlanPath, `{}`)
			first <- code
		}()
		synctest.Wait()
		began := time.Now()
		if code, body := ask(t, h, "POST", PlanPath, `{}`); code != http.StatusTooManyRequests || time.Since(began) != patience {
			t.Errorf("the second plan got %d %s after %v, want 429 after %v", code, body, time.Since(began), patience)
		}
		if code, _ := ask(t, h, "GET", StatusPath, ""); code != http.StatusOK {
			t.Errorf("status got %d, want 200", code)
		}
		s.plan <- struct{}{}
		if code := <-first; code != http.StatusOK {
			t.Errorf("the first plan got %d, want 200", code)
		}
	})
}

// TestFewPlansAreInHand refuses a plan at once, before its request is read, while
// others are being read or wait: whoever may ask must not fill the leader's memory.
func TestFewPlansAreInHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fakeSource{plan: make(chan struct{})}
		h := handlerOf(s)
		codes := make(chan int, plans)
		slow, finish := io.Pipe()
		post := func(body io.Reader) int {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, PlanPath, body))
			return w.Code
		}
		go func() { codes <- post(slow) }()
		for range plans - 1 {
			go func() { codes <- post(strings.NewReader(`{}`)) }()
		}
		synctest.Wait()
		began := time.Now()
		unread := &countingReader{}
		for range 100 {
			if code := post(unread); code != http.StatusTooManyRequests {
				t.Fatalf("one more got %d, want 429", code)
			}
		}
		if d := time.Since(began); d != 0 || unread.n > 0 {
			t.Errorf("100 more were refused after %v and %d bytes, want at once and unread", d, unread.n)
		}
		s.plan <- struct{}{}
		s.plan <- struct{}{}
		_, _ = io.WriteString(finish, `{}`)
		_ = finish.Close()
		s.plan <- struct{}{}
		for range plans {
			if code := <-codes; code != http.StatusOK {
				t.Errorf("one of the first got %d, want 200", code)
			}
		}
	})
}

// countingReader counts what is read of an endless request.
type countingReader struct{ n int }

func (c *countingReader) Read(p []byte) (int, error) {
	c.n += len(p)
	return len(p), nil
}

func TestLevels(t *testing.T) {
	status := Status{ServiceCounts: map[Level]int{OK: 3, Problem: 0}}
	if got := status.Level(); got != OK {
		t.Errorf("level is %s, want ok", got)
	}
	status.Nodes = []Node{{Findings: []Finding{{Level: Notice}}}}
	if got := status.Level(); got != Notice {
		t.Errorf("level is %s, want notice", got)
	}
	status.ServiceCounts[Problem] = 1
	if got := status.Level(); got != Problem {
		t.Errorf("level is %s, want problem", got)
	}
	data, err := json.Marshal(status)
	if err != nil || !strings.Contains(string(data), `"serviceCounts":{"ok":3,"problem":1}`) {
		t.Errorf("as JSON it is %s (%v)", data, err)
	}
	services := []Service{{Name: "b"}, {Name: "c", Findings: []Finding{{Level: Notice}, {Level: Problem}}}, {Name: "a"}}
	SortServices(services)
	if got := services[0].Name + services[1].Name + services[2].Name; got != "cab" {
		t.Errorf("order is %s, want cab", got)
	}
}
