package healthcheck

import (
	"io"
	"log"
	"strings"
	"testing"
)

// quiet is a logger for servers whose clients are rude on purpose.
func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

func TestParseResponseByteByByte(t *testing.T) {
	const answer = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\nTransfer: x\r\n\r\ngone"
	decided := 0
	for i := range len(answer) + 1 {
		r, done, err := parseResponse([]byte(answer[:i]))
		if err != nil {
			t.Fatalf("%q: %v", answer[:i], err)
		}
		if !done {
			continue
		}
		if decided++; r.status != 503 || !strings.HasPrefix("gone", string(r.body)) || r.excerpted() != (i == len(answer)) {
			t.Errorf("%q: got %+v, excerpted %v; want 503 with the body so far", answer[:i], r, r.excerpted())
		}
	}
	if decided != len("gone")+1 {
		t.Errorf("decided after %d prefixes; want after all that have the whole header", decided)
	}
}

func TestParseResponseFull(t *testing.T) {
	tests := []struct {
		name   string
		answer string
		status int // 0: refused
	}{
		{"header that does not end", "HTTP/1.1 200 OK\r\nX: ", 200},
		{"status line that does not end", "HTTP/1.1 200 ", 0},
		{"interim without end", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 300), 0},
		{"bare line feeds", "HTTP/1.1 200 OK\nA: b\n\n", 200},
		{"lower case", "http/1.1 200 OK\r\n\r\n", 0},
		{"another version", "HTTP/2 200\r\n\r\n", 0},
		{"four digits", "HTTP/1.1 2000\r\n\r\n", 0},
		{"status below 100", "HTTP/1.1 099 x\r\n\r\n", 0},
		{"two digits", "HTTP/1.1 20\r\n\r\n", 0},
	}
	for _, tt := range tests {
		full := tt.answer + strings.Repeat("x", maxResponse)
		r, done, err := parseResponse([]byte(full[:maxResponse]))
		if tt.status == 0 && err == nil {
			t.Errorf("%s: got %+v; want an error", tt.name, r)
		}
		if tt.status != 0 && (err != nil || !done || r.status != tt.status) {
			t.Errorf("%s: got %+v, %v, %v; want %d", tt.name, r, done, err, tt.status)
		}
	}
}

// FuzzParseResponse checks that an answer that arrives in pieces is judged like
// one that arrives whole, and that every error is fit to be shown.
func FuzzParseResponse(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), 5)
	f.Add([]byte("HTTP/1.1 103 x\r\n\r\nHTTP/1.1 503 x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n"), 40)
	f.Add([]byte("HTTP/1.0 301\n\n\x00\x1b[1m"), 16)
	f.Add([]byte("SSH-2.0-OpenSSH\r\n"), 3)
	f.Fuzz(func(t *testing.T, whole []byte, cut int) {
		whole = whole[:min(len(whole), maxResponse)]
		part := whole[:min(max(cut, 0), len(whole))]
		r1, done1, err1 := parseResponse(part)
		r2, done2, err2 := parseResponse(whole)
		switch {
		case err1 != nil && err2 == nil:
			t.Fatalf("%q is refused (%v), but with more, %q, it is not", part, err1, whole)
		case done1 && (err2 != nil || !done2 || r1.status != r2.status):
			t.Fatalf("%q has status %d, but with more, %q, it is %+v, %v, %v", part, r1.status, whole, r2, done2, err2)
		case len(whole) == maxResponse && !done2 && err2 == nil:
			t.Fatalf("no conclusion from %d bytes", maxResponse)
		}
		if err2 != nil {
			fit(t, err2.Error())
		} else if bad := r2.failure(); done2 && bad != nil {
			fit(t, bad.Text)
			if bad.Draining != (r2.status == 503) {
				t.Fatalf("status %d: got draining %v", r2.status, bad.Draining)
			}
		}
	})
}

func fit(t *testing.T, text string) {
	t.Helper()
	if len(text) > MaxError || text != printable([]byte(text), MaxError) {
		t.Fatalf("error %q: want at most %d printable bytes", text, MaxError)
	}
}
