package healthcheck

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestWithDefaults(t *testing.T) {
	tests := []struct {
		name     string
		in, want Spec
	}{
		{"empty", Spec{}, Spec{TCP, "", sec(1), ms(500), 3, 2}},
		{"http", Spec{Protocol: HTTP}, Spec{HTTP, "/healthz", sec(1), ms(500), 3, 2}},
		{"short interval", Spec{Interval: ms(200)}, Spec{TCP, "", ms(200), ms(200), 3, 2}},
		{"long timeout", Spec{Timeout: sec(4)}, Spec{TCP, "", sec(4), sec(4), 3, 2}},
		{"all given", Spec{HTTPS, "/x", sec(9), sec(8), 7, 6}, Spec{HTTPS, "/x", sec(9), sec(8), 7, 6}},
	}
	for _, tt := range tests {
		got := tt.in.WithDefaults()
		if got != tt.want {
			t.Errorf("%s: got %+v; want %+v", tt.name, got, tt.want)
		}
		if bad := got.Validate(); bad != nil {
			t.Errorf("%s: defaults are refused: %q", tt.name, bad)
		}
		if again := got.WithDefaults(); again != got {
			t.Errorf("%s: defaults of defaults: got %+v; want %+v", tt.name, again, got)
		}
	}
}

func TestValidate(t *testing.T) {
	tests := []struct {
		name string
		in   Spec
		want []string
	}{
		{"zero", Spec{}, nil},
		{"path with escapes and query", Spec{Protocol: HTTP, Path: "/a%20b?c=d"}, nil},
		{"unknown protocol", Spec{Protocol: "udp"}, []string{`protocol: "udp": must be tcp, http, https, grpc or none`}},
		{"tcp path", Spec{Protocol: TCP, Path: "/x"}, []string{`path: "/x": must be empty for protocol tcp`}},
		{"relative path", Spec{Protocol: HTTP, Path: "x"}, []string{`path: "x": must begin with "/"`}},
		{"second request line", Spec{Protocol: HTTP, Path: "/ HTTP/1.1\r\nX: y"}, []string{
			`path: "/ HTTP/1.1\r\nX: y": must be visible ASCII without "#"; write other characters as %XX`,
		}},
		{"grpc", Spec{Protocol: GRPC}, nil},
		{"grpc service", Spec{Protocol: GRPC, Path: "shop.v1.Cart"}, nil},
		{"grpc path", Spec{Protocol: GRPC, Path: "/healthz"}, []string{`path: "/healthz": must not begin with "/": it is the name of a service, not a path`}},
		{"grpc text", Spec{Protocol: GRPC, Path: "a b"}, []string{
			`path: "a b": must be the name of a gRPC service in visible ASCII such as "shop.v1.Cart", or empty for the whole server`,
		}},
		{"none", Spec{Protocol: None}, nil},
		{"none and more", Spec{Protocol: None, Interval: sec(1)}, []string{
			`protocol: "none": must come alone: path, interval, timeout and thresholds mean nothing where nobody is asked`,
		}},
		{"timeout over interval", Spec{Interval: ms(100), Timeout: ms(101)}, []string{
			"timeout: 101ms: must not be longer than the interval, 100ms",
		}},
		{"everything", Spec{"x", "/", 1, -1, -1, 101}, []string{
			`protocol: "x": must be tcp, http, https, grpc or none`,
			"interval: 1ns: must be from 100ms to 10m0s",
			"timeout: -1ns: must be from 10ms to 30s",
			"unhealthyThreshold: -1: must be from 1 to 100",
			"healthyThreshold: 101: must be from 1 to 100",
		}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, tt.in.Validate()); diff != "" {
			t.Errorf("%s: complaints (-want +got):\n%s", tt.name, diff)
		}
	}
	long := Spec{Protocol: HTTP, Path: "/" + strings.Repeat("x", MaxPath)}
	if bad := long.Validate(); len(bad) != 1 || !strings.Contains(bad[0], "longer than 1024 bytes") || len(bad[0]) > 200 {
		t.Errorf("long path: got %q; want one bounded complaint about 1024 bytes", bad)
	}
}

func TestClampedIsValid(t *testing.T) {
	for _, s := range []Spec{
		{Interval: 1, Timeout: MaxTimeout}, {Interval: -5}, {Interval: MaxInterval * 2, Timeout: MaxInterval},
		{UnhealthyThreshold: -1, HealthyThreshold: 1 << 20}, {Protocol: HTTP, Path: "\r\n"},
		{Protocol: GRPC, Path: "/x"}, {Protocol: None, Path: "/x"},
	} {
		if bad := s.WithDefaults().clamped().Validate(); bad != nil {
			t.Errorf("%+v clamped: %q", s, bad)
		}
	}
}

func TestSpecJSON(t *testing.T) {
	spec := Spec{HTTP, "/healthz", ms(1500), ms(500), 3, 2}
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"protocol":"http","path":"/healthz","interval":"1.5s","timeout":"500ms","unhealthyThreshold":3,"healthyThreshold":2}`
	if string(text) != want {
		t.Errorf("got %s; want %s", text, want)
	}
	var back Spec
	if err := json.Unmarshal(text, &back); err != nil || back != spec {
		t.Errorf("read back: got %+v, %v; want %+v", back, err, spec)
	}
	if text, _ = json.Marshal(Spec{Protocol: TCP}); string(text) != `{"protocol":"tcp"}` {
		t.Errorf("short spec: got %s; want only the protocol", text)
	}
	for _, bad := range []string{`1`, `"1"`, `""`, `" 1s"`, `"-1s"`, `"+1s"`, `"1 s"`, `"0"`, `"1h1x"`, `"999999999h"`, `"` + strings.Repeat("0", 40) + `1s"`} {
		if err := json.Unmarshal([]byte(`{"interval":`+bad+`}`), &back); err == nil {
			t.Errorf("interval %s: was accepted as %v", bad, back.Interval)
		}
	}
}

func TestStateText(t *testing.T) {
	for s, want := range map[State]string{Unknown: "unknown", Up: "up", Draining: "draining", Down: "down", Unchecked: "unchecked"} {
		text, err := s.MarshalText()
		if err != nil || string(text) != want || s.String() != want {
			t.Errorf("state %d: got %q, %v; want %q", uint8(s), text, err, want)
		}
		var back State
		if err := back.UnmarshalText(text); err != nil || back != s {
			t.Errorf("read %q: got %v, %v; want %v", text, back, err, s)
		}
	}
	if _, err := State(5).MarshalText(); err == nil {
		t.Error("state 5 was written")
	}
	var s State
	if err := s.UnmarshalText([]byte("UP")); err == nil {
		t.Error(`state "UP" was read`)
	}
}

func TestTargetString(t *testing.T) {
	if got, want := (Target{netip.MustParseAddrPort("192.0.2.1:80"), Spec{Protocol: GRPC, Path: "a.B"}}).String(), "grpc://192.0.2.1:80/a.B"; got != want {
		t.Errorf("got %s; want %s", got, want)
	}
	target := Target{netip.MustParseAddrPort("[2001:db8::1]:10256"), Spec{Protocol: HTTP, Path: "/healthz"}}
	if got, want := target.String(), "http://[2001:db8::1]:10256/healthz"; got != want {
		t.Errorf("got %s; want %s", got, want)
	}
}

func FuzzDuration(f *testing.F) {
	for _, s := range []string{"1s", "1.5h", "100ms", "1h2m3s", "-1s", "0", "1", "", ".5s", "9223372036854775807ns"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var d Duration
		if d.UnmarshalText([]byte(s)) != nil {
			return
		}
		if d < 0 {
			t.Fatalf("%q: read as %v", s, d)
		}
		text, err := d.MarshalText()
		if err != nil {
			t.Fatalf("%q: write back: %v", s, err)
		}
		var back Duration
		if err := back.UnmarshalText(text); err != nil || back != d {
			t.Fatalf("%q: read %v, wrote %q, read %v, %v", s, d, text, back, err)
		}
	})
}

func FuzzState(f *testing.F) {
	f.Add("up")
	f.Add("state(4)")
	f.Fuzz(func(t *testing.T, s string) {
		var v State
		if v.UnmarshalText([]byte(s)) == nil && v.String() != s {
			t.Fatalf("%q: read as %v", s, v)
		}
	})
}

func FuzzSpec(f *testing.F) {
	f.Add([]byte(`{"protocol":"http","path":"/x","interval":"1s","timeout":"500ms","unhealthyThreshold":3,"healthyThreshold":2}`))
	f.Add([]byte(`{"protocol":"tcp","path":"/ x"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var s Spec
		if json.Unmarshal(text, &s) != nil {
			return
		}
		if bad := s.WithDefaults().clamped(); s.Validate() == nil && bad != s.WithDefaults() {
			t.Fatalf("%+v is valid, and changed to %+v", s, bad)
		}
		if s.Validate() != nil || s.Protocol != HTTP && s.Protocol != HTTPS {
			return
		}
		request := string(appendRequest(nil, netip.MustParseAddrPort("192.0.2.1:1"), s.Path))
		if n := strings.Count(request, "\r\n"); n != 6 || strings.Count(request, "\n") != 6 {
			t.Fatalf("path %q: the request has %d lines: %q", s.Path, n, request)
		}
	})
}

func sec(n int) Duration { return Duration(time.Duration(n) * time.Second) }
func ms(n int) Duration  { return Duration(time.Duration(n) * time.Millisecond) }
