package rest

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// fuzzHandler returns a function that sends a request as cluster "prod" to an
// edge that holds a small configuration, and checks what every answer must be.
func fuzzHandler(f *testing.F) func(t *testing.T, method, target, contentType string, body []byte) (*httptest.ResponseRecorder, *lbtest.FakeBalancer) {
	leaf := newAuthority(f, "CA").clusterCert(f, "prod").Leaf
	state := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: [][]*x509.Certificate{{leaf}}}
	return func(t *testing.T, method, target, contentType string, body []byte) (*httptest.ResponseRecorder, *lbtest.FakeBalancer) {
		balancer := lbtest.NewFakeBalancer("edge-1")
		epoch, err := balancer.Claim(t.Context(), lb.Claim{ClusterUID: "u"})
		if err != nil {
			t.Fatal(err)
		}
		receipt, err := balancer.Set(t.Context(), lb.Write{Epoch: epoch, Config: bigConfig(2, 2)})
		if err != nil {
			t.Fatal(err)
		}
		h := NewHandler(HandlerOptions{Balancer: func(lb.Cluster) lb.Balancer { return balancer }, MaxBody: 1 << 20})
		r := httptest.NewRequest(method, "/", bytes.NewReader(body))
		r.URL.Path, r.URL.RawQuery, _ = strings.Cut(target, "?")
		r.TLS = state
		if method == http.MethodGet {
			r.Body, r.ContentLength = http.NoBody, 0
		}
		r.Header = http.Header{"Content-Type": {contentType}, HeaderEpoch: {string(epoch)}, "If-Match": {entityTag(receipt.Digest)}}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code >= 500 {
			t.Errorf("got status %d %q; want no internal error", w.Code, w.Body)
		}
		if w.Code >= 400 {
			if p := decodeProblem(w.Code, w.Header().Get("Content-Type"), w.Body.Bytes()); !strings.HasPrefix(p.Type, typePrefix) {
				t.Errorf("got status %d with %q; want a problem document with a type of ours", w.Code, w.Body)
			}
		}
		return w, balancer
	}
}

func addConfigs(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 5 {
		a := randomConfig(r)
		b := mutate(r, a)
		patch, err := Diff(a, b)
		if err != nil {
			f.Fatal(err)
		}
		whole, err := encodeConfig(b)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(patch)
		f.Add(whole)
	}
	f.Add([]byte(`{"revision":1,"loadBalancers":{"u1":{"foo":1}}}`))
	f.Add([]byte(`{"nodes":{"node-000.example.com":null},"pools":null}`))
	f.Add([]byte(`{"confirmedRemovals":["nodes/a"],"config":{"revision":2}}`))
	f.Add([]byte(`{"confirmedRemovals":[],"mergePatch":{"revision":2}}`))
}

func FuzzPut(f *testing.F) {
	addConfigs(f)
	send := fuzzHandler(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, contentType := range []string{TypeJSON, TypeWrite} {
			w, b := send(t, http.MethodPut, configPath, contentType, body)
			checkHeld(t, w.Code, b)
		}
	})
}

func FuzzPatch(f *testing.F) {
	addConfigs(f)
	send := fuzzHandler(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, contentType := range []string{TypeMergePatch, TypeWrite} {
			w, b := send(t, http.MethodPatch, configPath, contentType, body)
			checkHeld(t, w.Code, b)
		}
	})
}

// checkHeld: what was accepted can be read back by a client.
func checkHeld(t *testing.T, status int, b *lbtest.FakeBalancer) {
	t.Helper()
	if status != http.StatusOK {
		return
	}
	text, err := encodeConfig(b.Held())
	if err != nil {
		t.Fatalf("what was accepted cannot be encoded: %v", err)
	}
	if _, err := lb.DecodeConfig(text); err != nil {
		t.Errorf("what was accepted, %s, cannot be read: %v", text, err)
	}
}

func FuzzClaim(f *testing.F) {
	f.Add([]byte(`{"clusterUID":"u","leaseUID":"l","leaseTransitions":3,"holder":"h"}`))
	f.Add([]byte(`{"leaseTransitions":1e2,"extra":[]}`))
	send := fuzzHandler(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		send(t, http.MethodPost, "/v1/clusters/prod/lease", TypeJSON, body)
	})
}

func FuzzPollQuery(f *testing.F) {
	f.Add("after=1.2&wait=30s")
	f.Add("wait=0s")
	f.Add("after=%22&after=")
	f.Fuzz(func(t *testing.T, query string) {
		after, wait, err := parsePoll(query)
		if err != nil && !errors.Is(err, lb.ErrInvalid) {
			t.Errorf("got %v; want an ErrInvalid", err)
		}
		if err == nil && (wait < 0 || wait > MaxWait || after != "" && !validToken(string(after))) {
			t.Errorf("got %q and %s; want a token and at most %s", after, wait, MaxWait)
		}
	})
}

func FuzzApplyPatch(f *testing.F) {
	addConfigs(f)
	f.Fuzz(func(t *testing.T, patch []byte) {
		base := bigConfig(2, 3)
		got, err := ApplyPatch(base, patch)
		if err != nil {
			if !errors.Is(err, lb.ErrInvalid) && !errors.Is(err, lb.ErrExhausted) {
				t.Errorf("got %v; want an ErrInvalid or ErrExhausted", err)
			}
			return
		}
		back, err := Diff(base, got)
		if err != nil {
			t.Fatalf("Diff: %v", err)
		}
		again, err := ApplyPatch(base, back)
		if err != nil {
			t.Fatalf("ApplyPatch of %s: %v", back, err)
		}
		if diff := cmp.Diff(got, again, compareAddrs); diff != "" {
			t.Errorf("patch %s: (-want +got):\n%s", back, diff)
		}
	})
}

// FuzzClientAnswers gives a client any answer to each call.
func FuzzClientAnswers(f *testing.F) {
	f.Add(200, TypeJSON, `"abc"`, []byte(`{"cursor":"1.2","full":true,"revision":3,"durable":true,"loadBalancers":{"u":null,"v":{"applied":true}},"checks":{"c":{"members":{"n":{"state":"up","since":"2026-01-01T00:00:00Z"}}}},"later":1}`))
	f.Add(200, TypeJSON, ``, []byte(`{"revision":1}`))
	f.Add(200, TypeJSON, ``, []byte(`{"digest":"d","durable":true}`))
	f.Add(204, "", "", []byte(nil))
	f.Add(409, TypeProblem, "", []byte(`{"type":"urn:eclusa:problem:removal-held","keys":["a"],"largest":-1}`))
	f.Add(307, "text/html", "", []byte(`<a>`))
	f.Fuzz(func(t *testing.T, status int, contentType, tag string, body []byte) {
		if status < 200 || status > 599 || status == 429 || status == 503 {
			return // is no final answer, or is asked again
		}
		c, err := NewClient(ClientOptions{
			Endpoint: "https://edge:1", ServerName: "edge", Cluster: "prod",
			Certificate: func() (*tls.Certificate, error) { return nil, nil },
			RootCAs:     func() (*x509.CertPool, error) { return nil, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		c.http.HTTPClient.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			w := httptest.NewRecorder()
			w.Header().Set("Content-Type", contentType)
			w.Header().Set("ETag", tag)
			w.WriteHeader(status)
			w.Write(body)
			resp := w.Result()
			resp.Request = r
			return resp, nil
		})
		ctx := t.Context()
		_, infoErr := c.Info(ctx)
		epoch, claimErr := c.Claim(ctx, lb.Claim{})
		_, _, configErr := c.Config(ctx)
		_, statusErr := c.Status(ctx, "1.2")
		_, setErr := c.Set(ctx, lb.Write{Epoch: "1.1", Config: bigConfig(1, 1)})
		if claimErr == nil && !validToken(string(epoch)) {
			t.Errorf("Claim: got epoch %q; want one that can be sent", epoch)
		}
		for _, err := range []error{infoErr, claimErr, configErr, statusErr, setErr} {
			if err == nil {
				continue
			}
			if strings.ContainsAny(err.Error(), "\n\r\x00\x1b") {
				t.Errorf("got %q; want one line without control characters", err)
			}
			if held, ok := errors.AsType[*lb.RemovalHeldError](err); ok && held == nil {
				t.Error("got a nil RemovalHeldError")
			}
		}
	})
}

// roundTrip is an http.RoundTripper.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// FuzzProblem decodes any problem and sends it through the table and back.
func FuzzProblem(f *testing.F) {
	for _, k := range kinds {
		p, _ := problemOf(k.err)
		text, err := json.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(k.status, text)
	}
	f.Add(500, []byte(`{"type":"about:blank","requestID":"x"}`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		p := decodeProblem(status, TypeProblem, body)
		err := errorOf("call", p)
		if strings.ContainsAny(err.Error(), "\n\r\x00\x1b") {
			t.Errorf("got %q; want one line without control characters", err)
		}
		again, ok := problemOf(err)
		if ok != (kindOf(err) != nil) {
			t.Errorf("%+v became %+v, %v; want a problem for a kind only", p, again, ok)
		}
		if ok && again.Type != p.Type {
			t.Errorf("type %q became %q", p.Type, again.Type)
		}
	})
}
