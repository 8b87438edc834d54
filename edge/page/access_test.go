package page

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func withToken(token string) Access { return Access{Token: func() []byte { return []byte(token) }} }

func TestAccess(t *testing.T) {
	verified := func(r *http.Request) {
		r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{}}}}
	}
	unverified := func(r *http.Request) { r.TLS = &tls.ConnectionState{} }
	none := func(*http.Request) {}
	for _, c := range []struct {
		name   string
		access Access
		change func(*http.Request)
		want   int
		text   string // in the answer
	}{
		{"nobody by default", Access{}, none, 403, "management.tokenFile"},
		{"an empty token opens nothing", withToken(""), header("Authorization", "Bearer "), 403, "management.tokenFile"},
		{"open", Access{Open: true}, none, 200, ""},
		{"open, localhost", Access{Open: true}, header("Host", "localhost:9980"), 200, ""},
		{"open, IPv6", Access{Open: true}, header("Host", "[::1]:9980"), 200, ""},
		{"open, the name of somebody else", Access{Open: true}, header("Host", "rebound.example:9980"), 421, "localhost"},
		{"open, no host", Access{Open: true}, header("Host", ""), 421, "localhost"},
		{"a browser without a session", withToken(testToken), none, 303, ""},
		{"a program without a token", withToken(testToken), header("Accept", "*/*"), 401, "Bearer TOKEN"},
		{"the token", withToken(testToken), header("Authorization", "Bearer "+testToken), 200, ""},
		{"the token, under any name", withToken(testToken), func(r *http.Request) {
			r.Host = "edge-1.example"
			r.Header.Set("Authorization", "Bearer "+testToken)
		}, 200, ""},
		{"a wrong token", withToken(testToken), header("Authorization", "Bearer "+testToken+"x"), 401, "wrong"},
		{"a part of the token", withToken(testToken), header("Authorization", "Bearer "+testToken[:8]), 401, "wrong"},
		{"another scheme", withToken(testToken), header("Authorization", "Basic "+testToken), 401, "wrong"},
		{"the token in the address", withToken(testToken), func(r *http.Request) { r.URL.RawQuery = "token=" + testToken }, 303, ""},
		{"a certificate", Access{Certificate: true}, verified, 200, ""},
		{"a certificate that nobody asked for", withToken(testToken), verified, 303, ""},
		{"TLS without a certificate", Access{Certificate: true}, unverified, 403, ""},
		{"a made-up session", withToken(testToken), header("Cookie", sessionCookie+"=9999999999.AAAA"), 303, ""},
		{"a session without signature", withToken(testToken), header("Cookie", sessionCookie+"=9999999999"), 303, ""},
		{"a session signed with nothing", withToken(""), header("Cookie", sessionCookie+"="+(&guard{Access: withToken("")}).session(noon.Add(time.Hour))), 403, ""},
	} {
		for _, path := range []string{"/", "/status.json", "/load-balancer?cluster=prod&uid=prod-1"} {
			p := newPage(t, demo(), c.access)
			w := ask(p, "GET", path, c.change)
			if w.Code != c.want || !strings.Contains(w.Body.String(), c.text) {
				t.Errorf("%s: %s: got %d %.80q; want %d with %q", c.name, path, w.Code, w.Body, c.want, c.text)
			}
			if w.Code != 200 && strings.Contains(w.Body.String(), "shop/web") {
				t.Errorf("%s: %s: tells of load balancers", c.name, path)
			}
		}
	}
}

// submit sends the login form.
func submit(p *Page, token string, changes ...func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest("POST", "/login", strings.NewReader("token="+queryEscape(token)))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.RemoteAddr = "192.0.2.7:4711"
	for _, change := range changes {
		change(r)
	}
	w := httptest.NewRecorder()
	p.handler().ServeHTTP(w, r)
	return w
}

func TestLogin(t *testing.T) {
	token := testToken
	p := newPage(t, demo(), Access{Token: func() []byte { return []byte(token) }})
	now := noon
	p.now = func() time.Time { return now }
	core, logs := observer.New(zap.InfoLevel)
	p.guard.log = zap.New(core)

	w := submit(p, testToken)
	if w.Code != http.StatusSeeOther || len(w.Result().Cookies()) != 1 {
		t.Fatalf("got %d; want a session", w.Code)
	}
	c := w.Result().Cookies()[0]
	if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Secure || strings.Contains(c.Value, testToken) {
		t.Errorf("got cookie %q; want one that no script and no other site can use", c.Raw)
	}
	session := header("Cookie", c.Name+"="+c.Value)
	if w := ask(p, "GET", "/", session); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "Log out") {
		t.Errorf("with the session: got %d; want the page with a way out", w.Code)
	}
	if now = noon.Add(sessionFor); ask(p, "GET", "/", session).Code != http.StatusSeeOther {
		t.Error("the session does not end")
	}
	if now, token = noon, "another token that is long"; ask(p, "GET", "/", session).Code != http.StatusSeeOther {
		t.Error("a new token does not end the session")
	}
	if w := submit(p, "another token that is long", func(r *http.Request) { r.TLS = &tls.ConnectionState{} }); !w.Result().Cookies()[0].Secure {
		t.Error("over TLS: the cookie is sent in the clear too")
	}
	for _, site := range []string{"cross-site", "same-site"} {
		if w := submit(p, token, header("Sec-Fetch-Site", site)); w.Code != http.StatusForbidden {
			t.Errorf("a form on another site (%s): got %d; want 403", site, w.Code)
		}
	}
	if w := submit(p, strings.Repeat("x", maxForm)); w.Code != http.StatusBadRequest {
		t.Errorf("a huge form: got %d; want 400", w.Code)
	}
	r := httptest.NewRequest("POST", "/logout", nil)
	w = httptest.NewRecorder()
	p.handler().ServeHTTP(w, r)
	if got := w.Result().Cookies(); w.Code != http.StatusSeeOther || len(got) != 1 || got[0].MaxAge >= 0 {
		t.Errorf("logging out: got %d with %v; want the session gone", w.Code, got)
	}

	last := 0
	for range 50 {
		last = submit(p, "wrong").Code
	}
	if last != http.StatusTooManyRequests {
		t.Errorf("after fifty wrong tokens: got %d; want 429", last)
	}
	if got := submit(p, token).Code; got != http.StatusTooManyRequests {
		t.Errorf("the right token after too many wrong ones: got %d; want 429, or guessing is not slowed down", got)
	}
	if submit(p, token, func(r *http.Request) { r.RemoteAddr = "192.0.2.8:4711" }).Code != http.StatusSeeOther {
		t.Error("wrong tokens of others keep out who knows the right one")
	}
	now = now.Add(2 * time.Second)
	if submit(p, token).Code != http.StatusSeeOther {
		t.Error("whoever has waited is not let in")
	}
	for _, e := range logs.All() {
		if text := e.Message + " " + stringOf(e.ContextMap()); strings.Contains(text, token) || strings.Contains(text, testToken) {
			t.Errorf("the log tells the token: %s", text)
		}
	}
	if n := logs.FilterMessage(wrongToken).Len(); n != 1 {
		t.Errorf("got %d lines about wrong tokens of one address; want 1", n)
	}
}

func guess(p *Page, from, token string) int {
	return ask(p, "GET", "/status.json", func(r *http.Request) {
		r.RemoteAddr = from
		r.Header.Set("Authorization", "Bearer "+token)
	}).Code
}

// Guessing is slow, whatever part of a network it comes from, and costs neither
// memory nor what the page shows.
func TestGuessing(t *testing.T) {
	events := NewEvents()
	p := newPage(t, demo(), withToken(testToken))
	now := noon
	p.now = func() time.Time { return now }
	p.guard.log = events.Watch(zap.NewNop())
	p.guard.log.Error("worth seeing")
	tried := 0
	for i := range 1000 {
		if guess(p, fmt.Sprintf("[2001:db8::%x]:1", i), "wrong") == http.StatusUnauthorized {
			tried++
		}
	}
	if tried != wrongBurst {
		t.Errorf("%d of 1000 guesses from one network were looked at; want %d", tried, wrongBurst)
	}
	if got := guess(p, "[2001:db8::1]:1", testToken); got != http.StatusTooManyRequests {
		t.Errorf("the right guess at last: got %d; want 429", got)
	}
	for i := range 3 * maxSources {
		guess(p, fmt.Sprintf("10.%d.%d.1:1", i>>8, i&255), "wrong")
	}
	if n := len(p.guard.failures.sources); n > maxSources+1 {
		t.Errorf("%d addresses are remembered; want %d at most", n, maxSources)
	}
	if got := guess(p, "192.0.2.1:1", testToken); got != http.StatusTooManyRequests {
		t.Errorf("among too many addresses: got %d; want 429", got)
	}
	if now = now.Add(time.Minute); guess(p, "[2001:db8::1]:1", testToken) != http.StatusOK || guess(p, "192.0.2.1:1", testToken) != http.StatusOK {
		t.Error("a minute later the right token is not taken")
	}
	shown := 0
	for _, e := range events.Last(10 * maxEvents) {
		if e.Text == "worth seeing" {
			shown++
		}
	}
	if shown != 1 {
		t.Error("guesses have pushed an error off the page")
	}
}
