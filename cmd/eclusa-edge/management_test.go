package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"go.uber.org/zap/zaptest/observer"

	"github.com/eclusa-lb/eclusa/edge/page"
)

const testToken = "0123456789abcdef0123456789abcdef"

// On loopback the page is there without further ado, and shows what the edge
// really does.
func TestStatusPageOnLoopback(t *testing.T) {
	w, _, _, _ := started(t)
	w.serves(vip)
	w.eventually(10*time.Second, func() error {
		r, err := http.Get("http://" + mgmtAddr + "/status.json")
		if err != nil {
			return err
		}
		defer r.Body.Close()
		var s page.Status
		if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
			return err
		}
		if len(s.LoadBalancers) != 1 || s.LoadBalancers[0].Name != "default/web" || s.LoadBalancers[0].Members.Up == 0 || s.Clusters[1].AppliedRevision != 1 {
			return fmt.Errorf("got %+v; want default/web with its members", s)
		}
		if len(s.Events) == 0 || s.Totals.ConnectionsPerSecond == 0 && s.Totals.ActiveConnections == 0 {
			return fmt.Errorf("got %d events and %+v; want events, and the connection that was made", len(s.Events), s.Totals)
		}
		return nil
	})
}

// Beyond loopback the page wants a token or a client certificate, and what
// machines ask for stays open.
func TestStatusPageBeyondLoopback(t *testing.T) {
	w := newWorld(t)
	w.pki()
	w.must(os.WriteFile(filepath.Join(w.dir, "token"), []byte(testToken+"\n"), 0o600))
	w.yaml += "management: {listen: \"10.0.0.1:9980\", tokenFile: DIR/token, certFile: DIR/edge-1.crt, keyFile: DIR/edge-1.key, clientCAFile: DIR/ca.crt}\n"
	w.start()
	stranger := w.raw("prod") // that has the CA
	stranger.Transport.(*http.Transport).TLSClientConfig.Certificates = nil
	get := func(c *http.Client, path, token string) (int, string) {
		t.Helper()
		r, err := http.NewRequest(http.MethodGet, "https://10.0.0.1:9980"+path, nil)
		w.must(err)
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		answer, err := c.Do(r)
		w.must(err)
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		w.must(err)
		return answer.StatusCode, string(body)
	}
	w.eventually(10*time.Second, func() error {
		r, err := stranger.Get("https://10.0.0.1:9980/readyz")
		if err != nil {
			return err
		}
		return r.Body.Close()
	})
	for _, c := range []struct {
		name        string
		client      *http.Client
		path, token string
		want        int
	}{
		{"health", stranger, "/healthz", "", 200},
		{"metrics", stranger, "/metrics", "", 200},
		{"nobody", stranger, "/status.json", "", 401},
		{"a wrong token", stranger, "/status.json", testToken + "x", 401},
		{"the token", stranger, "/status.json", testToken, 200},
		{"a certificate", w.raw("prod"), "/status.json", "", 200},
	} {
		code, body := get(c.client, c.path, c.token)
		if code != c.want || code != 200 && strings.Contains(body, "prod") {
			t.Errorf("%s: got %d %.200s; want %d", c.name, code, body, c.want)
		}
	}
}

func TestTokenFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for text, want := range map[string]string{
		"":                              "has 0 characters and must have at least 16",
		"short\n":                       "has 5 characters and must have at least 16",
		testToken + "\n" + testToken:    "more than one word",
		strings.Repeat("x", maxToken+1): "is longer than 1024 bytes",
	} {
		write(text)
		if _, err := newToken(file, zaptest.NewLogger(t)); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "management.tokenFile") {
			t.Errorf("%.20q: got %v; want an error with %q", text, err, want)
		}
	}
	if _, err := newToken(file+".missing", zaptest.NewLogger(t)); err == nil || !strings.Contains(err.Error(), "management.tokenFile") {
		t.Errorf("no file: got %v; want an error that names the key", err)
	}

	write(testToken + "\n")
	core, logs := observer.New(zap.InfoLevel)
	token, err := newToken(file, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	token.now = func() time.Time { now = now.Add(lookInterval); return now }
	if got := string(token.current()); got != testToken {
		t.Errorf("got %q; want the token without the line's end", got)
	}
	write("bad")
	if got := string(token.current()); got != testToken || logs.FilterMessageSnippet("stays in use").Len() != 1 {
		t.Errorf("a file that cannot be used: got %q; want the token of before, and a line in the log", got)
	}
	write("another-" + testToken)
	if got := string(token.current()); got != "another-"+testToken {
		t.Errorf("another file: got %q; want its token", got)
	}
	for _, e := range logs.All() {
		if strings.Contains(e.Message+fmt.Sprint(e.ContextMap()), testToken) {
			t.Errorf("the log tells the token: %v", e)
		}
	}
}
