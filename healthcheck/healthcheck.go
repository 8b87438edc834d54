// Package healthcheck finds out which members can take traffic.
//
// A [Checker] is given the whole set of [Target]s with Set, probes each of them
// on a schedule while Run runs, and keeps one [Result] per target. It imports
// nothing of eclusa, never logs, and decides nothing about traffic: what a state
// means for a load balancer is the caller's affair.
//
// # Verdicts
//
// A target is probed once per interval, counted from when probes were due. After
// a failure the next probes follow 250 ms after the start of the one before, or
// at once when that took longer, until there is a verdict: with the default
// interval of 1 s, timeout of 500 ms and three failures, a member that goes silent
// is Down after 1 s + 3 × 500 ms at the latest, one that refuses after 1.5 s. Two
// successes, the second 250 ms after the first, bring it Up again. A target that
// is new is Up after its first success. HTTP 503 is an answer: the target is
// Draining at once, whatever it was before. So is gRPC's NOT_SERVING, which servers
// say while they start and from the moment that they shut down. Hint makes a target
// be probed at the fast pace before its time, when traffic to it has failed.
//
// Faults of the machine itself (no descriptors, no memory, no local port, no
// route, a firewall that forbids it, a timeout of a probe that started or was
// noticed late because the processor was busy or the machine suspended) say
// nothing about the member: the probe is repeated and [Stats] counts it.
//
// # Load
//
// New targets are probed at once, at the rate of the budget, and then spread over
// their intervals. A budget of probes per second holds whatever happens. Regular
// intervals are stretched to fit into nine tenths of it; probes on the way to a
// verdict are not.
//
// There is one heap of targets and a set of workers that grows with need, no
// goroutine or timer per target: 100,000 targets take 110 bytes each.
// Probes block their worker, so that members which never answer could take them
// all and delay the verdict on others. They cannot: the budget limits how fast
// workers are taken and the timeout how long, and up to the default timeout there
// are enough workers for every single probe of the budget to time out (beyond
// 2,048 probes per second only if Options.Workers says so). Probes with longer
// timeouts share three quarters of the workers among themselves, and
// wait in a line apart when that is not enough.
package healthcheck

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Protocol says how a target is asked.
type Protocol string

// The protocols that a Spec can name.
const (
	TCP   Protocol = "tcp"   // the connection is accepted
	HTTP  Protocol = "http"  // a GET is answered with a 2xx status
	HTTPS Protocol = "https" // HTTP over TLS; the certificate is not verified, since members are addressed by IP
	GRPC  Protocol = "grpc"  // grpc.health.v1.Health/Check says SERVING, over HTTP/2 without TLS
	None  Protocol = "none"  // nobody asks; a Checker leaves such targets out
)

// Spec says how to check. It is comparable: two equal specs of one address are
// one target. The zero value of each field asks for its default, which
// WithDefaults fills in.
type Spec struct {
	Protocol Protocol `json:"protocol"`
	// Path is the request target of http and https. For grpc it is the name of the
	// service that is asked about, empty for the server as a whole.
	Path               string   `json:"path,omitempty"`
	Interval           Duration `json:"interval,omitzero"`
	Timeout            Duration `json:"timeout,omitzero"`
	UnhealthyThreshold int      `json:"unhealthyThreshold,omitempty"` // consecutive failures until Down
	HealthyThreshold   int      `json:"healthyThreshold,omitempty"`   // consecutive successes until Up again
}

// Defaults of a Spec, see WithDefaults.
const (
	DefaultInterval           = Duration(time.Second)
	DefaultTimeout            = Duration(500 * time.Millisecond)
	DefaultUnhealthyThreshold = 3
	DefaultHealthyThreshold   = 2
	DefaultPath               = "/healthz"
)

// Limits of a Spec, enforced by Validate.
const (
	MinInterval  = Duration(100 * time.Millisecond)
	MaxInterval  = Duration(10 * time.Minute)
	MinTimeout   = Duration(10 * time.Millisecond)
	MaxTimeout   = Duration(30 * time.Second)
	MaxThreshold = 100
	MaxPath      = 1024 // bytes
	MaxService   = 253  // bytes of a gRPC service's name
)

// WithDefaults returns s with every field that is zero set to its default:
// protocol tcp, interval 1 s (or the timeout if that is longer), timeout 500 ms
// (or the interval if that is shorter), 3 failures until Down, 2 successes until
// Up, path /healthz for http and https. Protocol none has none.
func (s Spec) WithDefaults() Spec {
	if s.Protocol == None {
		return s
	}
	if s.Protocol == "" {
		s.Protocol = TCP
	}
	if s.Path == "" && (s.Protocol == HTTP || s.Protocol == HTTPS) {
		s.Path = DefaultPath
	}
	if s.Interval == 0 {
		s.Interval = max(DefaultInterval, s.Timeout)
	}
	if s.Timeout == 0 {
		s.Timeout = min(DefaultTimeout, s.Interval)
	}
	if s.UnhealthyThreshold == 0 {
		s.UnhealthyThreshold = DefaultUnhealthyThreshold
	}
	if s.HealthyThreshold == 0 {
		s.HealthyThreshold = DefaultHealthyThreshold
	}
	return s
}

// Validate returns everything that is wrong with s, each complaint as
// "field: value: what would be right"; nil when s can be used. Fields that are
// zero stand for their defaults and are right.
func (s Spec) Validate() []string {
	var bad []string
	complain := func(field string, value any, right string) {
		bad = append(bad, fmt.Sprintf("%s: %v: %s", field, value, right))
	}
	s = s.WithDefaults()
	switch s.Protocol {
	case None:
		if s != (Spec{Protocol: None}) {
			complain("protocol", quote(string(None)), "must come alone: path, interval, timeout and thresholds mean nothing where nobody is asked")
		}
		return bad
	case TCP:
		if s.Path != "" {
			complain("path", quote(s.Path), "must be empty for protocol tcp")
		}
	case HTTP, HTTPS:
		if right := pathFault(s.Path); right != "" {
			complain("path", quote(s.Path), right)
		}
	case GRPC:
		if right := serviceFault(s.Path); right != "" {
			complain("path", quote(s.Path), right)
		}
	default:
		complain("protocol", quote(string(s.Protocol)), "must be tcp, http, https, grpc or none")
	}
	if s.Interval < MinInterval || s.Interval > MaxInterval {
		complain("interval", s.Interval, fmt.Sprintf("must be from %v to %v", MinInterval, MaxInterval))
	}
	switch {
	case s.Timeout < MinTimeout || s.Timeout > MaxTimeout:
		complain("timeout", s.Timeout, fmt.Sprintf("must be from %v to %v", MinTimeout, MaxTimeout))
	case s.Timeout > s.Interval:
		complain("timeout", s.Timeout, fmt.Sprintf("must not be longer than the interval, %v", s.Interval))
	}
	if s.UnhealthyThreshold < 1 || s.UnhealthyThreshold > MaxThreshold {
		complain("unhealthyThreshold", s.UnhealthyThreshold, fmt.Sprintf("must be from 1 to %d", MaxThreshold))
	}
	if s.HealthyThreshold < 1 || s.HealthyThreshold > MaxThreshold {
		complain("healthyThreshold", s.HealthyThreshold, fmt.Sprintf("must be from 1 to %d", MaxThreshold))
	}
	return bad
}

// clamped returns s within the limits, for a caller that did not Validate.
func (s Spec) clamped() Spec {
	if s.Protocol == None {
		return Spec{Protocol: None}
	}
	s.Interval = min(max(s.Interval, MinInterval), MaxInterval)
	s.Timeout = min(max(s.Timeout, MinTimeout), MaxTimeout, s.Interval)
	s.UnhealthyThreshold = min(max(s.UnhealthyThreshold, 1), MaxThreshold)
	s.HealthyThreshold = min(max(s.HealthyThreshold, 1), MaxThreshold)
	switch {
	case s.Protocol == TCP, s.Protocol == GRPC && serviceFault(s.Path) != "":
		s.Path = ""
	case s.Protocol != GRPC && pathFault(s.Path) != "":
		s.Path = DefaultPath
	}
	return s
}

// compareSpec orders specs, in no order that means anything.
func compareSpec(a, b Spec) int {
	return cmp.Or(
		cmp.Compare(a.Protocol, b.Protocol),
		cmp.Compare(a.Path, b.Path),
		cmp.Compare(a.Interval, b.Interval),
		cmp.Compare(a.Timeout, b.Timeout),
		cmp.Compare(a.UnhealthyThreshold, b.UnhealthyThreshold),
		cmp.Compare(a.HealthyThreshold, b.HealthyThreshold),
	)
}

// pathFault says what would be a right path, or nothing if p is one. The path
// goes into the request line as it is, so nothing may end or extend that line.
func pathFault(p string) string {
	if !strings.HasPrefix(p, "/") {
		return `must begin with "/"`
	}
	if len(p) > MaxPath {
		return fmt.Sprintf("must not be longer than %d bytes", MaxPath)
	}
	for i := range len(p) {
		if p[i] <= ' ' || p[i] >= 0x7f || p[i] == '#' {
			return `must be visible ASCII without "#"; write other characters as %XX`
		}
	}
	return ""
}

// serviceFault says what would be a right name of a gRPC service, or nothing if
// name is one or empty. Servers may register any text; what people use is visible.
func serviceFault(name string) string {
	if len(name) > MaxService {
		return fmt.Sprintf("must not be longer than %d bytes", MaxService)
	}
	for i := range len(name) {
		if name[i] <= ' ' || name[i] >= 0x7f {
			return `must be the name of a gRPC service in visible ASCII such as "shop.v1.Cart", or empty for the whole server`
		}
	}
	if strings.HasPrefix(name, "/") {
		return `must not begin with "/": it is the name of a service, not a path`
	}
	return ""
}

// quote bounds and quotes a value for a complaint.
func quote(s string) string {
	const most = 64
	if len(s) > most {
		return fmt.Sprintf("%q...", s[:most])
	}
	return fmt.Sprintf("%q", s)
}

// Target is an address and how to check it. It is comparable: equal targets are
// one target and are probed once, however many load balancers use it.
type Target struct {
	Addr netip.AddrPort
	Spec Spec
}

// String returns the target as people write it, such as
// http://192.0.2.1:10256/healthz.
func (t Target) String() string {
	return string(t.Spec.Protocol) + "://" + t.Addr.String() + t.Spec.Suffix()
}

// Suffix returns what stands behind the port where a check is named: the path, or
// a slash and the name of the gRPC service.
func (s Spec) Suffix() string {
	if s.Protocol == GRPC && s.Path != "" {
		return "/" + s.Path
	}
	return s.Path
}

// Result is what is known about a target.
type Result struct {
	State State
	Since time.Time // when State was entered

	// Answered is set once a probe has succeeded, or was answered by a 503 or by
	// NOT_SERVING, and stays set: a target that never answered may be one that is not meant to.
	Answered bool

	// Reason is the class of the last failure and Error its text, such as
	// `connection refused` or `HTTP 503 "no local endpoints"`, of at most
	// MaxError bytes. Both are empty when the last probe succeeded.
	Reason Reason
	Error  string

	Latency  time.Duration // of the last probe that succeeded, to the microsecond
	Failures int           // consecutive; a success sets it to zero
	Checked  time.Time     // when the last probe that counted ended; zero: never
}

// MaxError is the largest length of Result.Error in bytes.
const MaxError = 160
