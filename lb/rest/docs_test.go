package rest

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eclusa-lb/eclusa/lb"
)

// example is a request with its answer, as documented.
type example struct {
	name    string
	request *http.Request
	status  int // of the answer, as header and body
	header  http.Header
	body    string
}

// readExamples takes the pairs of blocks marked "http" out of the documentation.
func readExamples(t *testing.T) []example {
	t.Helper()
	text, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for i, part := range strings.Split(string(text), "```") {
		if block, ok := strings.CutPrefix(part, "http\n"); ok && i%2 == 1 {
			blocks = append(blocks, block)
		}
	}
	if len(blocks)%2 != 0 || len(blocks) < 20 {
		t.Fatalf("got %d examples; want pairs of a request and its answer", len(blocks))
	}
	var examples []example
	for i := 0; i < len(blocks); i += 2 {
		e := example{name: strings.SplitN(blocks[i], "\n", 2)[0]}
		if e.request, err = http.ReadRequest(withLength(blocks[i])); err != nil {
			t.Fatalf("%s: %v", blocks[i], err)
		}
		resp, err := http.ReadResponse(withLength(blocks[i+1]), e.request)
		if err != nil {
			t.Fatalf("%s: %v", blocks[i+1], err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatalf("%s: %v", blocks[i+1], err)
		}
		e.status, e.header, e.body = resp.StatusCode, resp.Header, string(body)
		examples = append(examples, e)
	}
	return examples
}

// withLength makes a message as people write it one that can be parsed.
func withLength(block string) *bufio.Reader {
	head, body, found := strings.Cut(block, "\n\n")
	head = strings.TrimSpace(head)
	if found {
		head += "\nContent-Length: " + strconv.Itoa(len(body))
	}
	return bufio.NewReader(strings.NewReader(strings.ReplaceAll(head, "\n", "\r\n") + "\r\n\r\n" + body))
}

// documented is the edge that the documentation talks to. What it answers is
// decoded from the documented answers.
type documented struct {
	t        *testing.T
	examples []example
}

// answerTo decodes the documented answer to the nth request for a path.
func (d documented) answerTo(path string, n int, v any) {
	d.t.Helper()
	for _, e := range d.examples {
		if e.request.Method == http.MethodGet && e.request.URL.Path == path {
			if n == 0 {
				dec := json.NewDecoder(strings.NewReader(e.body))
				dec.DisallowUnknownFields()
				if err := dec.Decode(v); err != nil {
					d.t.Errorf("%s: %v", e.name, err)
				}
				return
			}
			n--
		}
	}
	d.t.Errorf("no example %d for %s", n, path)
}

func (d documented) Info(context.Context) (info lb.Info, err error) {
	d.answerTo("/v1/info", 0, &info)
	return info, nil
}

func (d documented) Claim(context.Context, lb.Claim) (lb.Epoch, error) { return "d41f.8", nil }

func (d documented) Config(context.Context) (lb.Config, lb.Digest, error) {
	for _, e := range d.examples {
		if e.request.Method == http.MethodGet && e.request.URL.Path == configPath {
			c, err := lb.DecodeConfig([]byte(e.body))
			return c, "9b1c5e2a", err
		}
	}
	return lb.Config{}, "", nil
}

func (d documented) Set(_ context.Context, w lb.Write) (lb.Receipt, error) {
	if w.Epoch != "d41f.8" {
		return lb.Receipt{}, fmt.Errorf("set with epoch %q: the current one is %q: %w", w.Epoch, "d41f.8", lb.ErrStaleEpoch)
	}
	if w.Base != "9b1c5e2a" || w.Config.Revision != 42 {
		d.t.Errorf("set of revision %d on base %q; want 42 on 9b1c5e2a", w.Config.Revision, w.Base)
	}
	keys := []string{"nodes/node-a", "nodes/node-b", "nodes/node-c", "nodes/node-d"}
	if len(w.Config.Nodes) == 0 && !cmp.Equal(w.ConfirmedRemovals, keys) {
		return lb.Receipt{}, &lb.RemovalHeldError{Keys: keys, Largest: 6}
	}
	return lb.Receipt{Digest: "0e77a4f1", Durable: true}, nil
}

func (d documented) Status(ctx context.Context, after lb.Cursor) (delta lb.StatusDelta, err error) {
	switch after {
	case "":
		d.answerTo("/v1/clusters/prod/status", 0, &delta)
	case "d41f.112":
		d.answerTo("/v1/clusters/prod/status", 1, &delta)
	default:
		<-ctx.Done()
		err = ctx.Err()
	}
	return delta, err
}

func TestDocumentedExamples(t *testing.T) {
	d := documented{t, readExamples(t)}
	leaf := newAuthority(t, "CA").clusterCert(t, "prod").Leaf
	for _, e := range d.examples {
		t.Run(e.name, func(t *testing.T) {
			d := documented{t, d.examples}
			h := NewHandler(HandlerOptions{Balancer: func(lb.Cluster) lb.Balancer { return d }})
			e.request.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: [][]*x509.Certificate{{leaf}}}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, e.request)
			if w.Code != e.status {
				t.Errorf("got status %d %q; want %d", w.Code, w.Body, e.status)
			}
			for _, name := range []string{"Content-Type", "ETag"} {
				if got, want := w.Header().Get(name), e.header.Get(name); got != want {
					t.Errorf("%s: got %q; want %q", name, got, want)
				}
			}
			if e.body == "" {
				if w.Body.Len() > 0 {
					t.Errorf("got body %q; want none", w.Body)
				}
				return
			}
			if diff := cmp.Diff(plainJSON(t, []byte(e.body)), plainJSON(t, w.Body.Bytes())); diff != "" {
				t.Errorf("body (-documented +got):\n%s", diff)
			}
		})
	}
}

// TestDocumentedProblems: the table of problems is the one of the code.
func TestDocumentedProblems(t *testing.T) {
	text, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range kinds {
		if row := fmt.Sprintf("| `%s` | %d |", k.name, k.status); !strings.Contains(string(text), row) {
			t.Errorf("docs/protocol.md: no row %q", row)
		}
	}
}
