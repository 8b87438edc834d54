package healthcheck

import (
	"fmt"
	"time"
)

// State is the verdict on a target.
type State uint8

// The states of a target.
const (
	Unknown   State = iota // no verdict yet
	Up                     // takes traffic
	Draining               // answers, and asks for no new connections (HTTP 503, gRPC NOT_SERVING)
	Down                   // does not answer
	Unchecked              // takes traffic, and nobody asks: protocol none. A Checker has no such targets
)

var stateNames = [...]string{Unknown: "unknown", Up: "up", Draining: "draining", Down: "down", Unchecked: "unchecked"}

// Serves reports whether a target in this state takes traffic.
func (s State) Serves() bool { return s == Up || s == Unchecked }

// String returns the state's name, such as "up".
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// MarshalText returns the state's name; a number that is no state is an error.
func (s State) MarshalText() ([]byte, error) {
	if int(s) >= len(stateNames) {
		return nil, fmt.Errorf("state %d: must be from 0 to %d", uint8(s), len(stateNames)-1)
	}
	return []byte(stateNames[s]), nil
}

// UnmarshalText accepts exactly the names that MarshalText writes.
func (s *State) UnmarshalText(text []byte) error {
	for i, name := range stateNames {
		if name == string(text) {
			*s = State(i)
			return nil
		}
	}
	return fmt.Errorf("state %s: must be unknown, up, draining, down or unchecked", quote(string(text)))
}

// Reason is the class of a failure, small enough in number to be a metric's
// label. The empty Reason means that the last probe succeeded.
type Reason string

// The classes of failures.
const (
	Refused     Reason = "refused"     // the host answered with a reset to the connection attempt
	Timeout     Reason = "timeout"     // no answer, or none that was complete, within the timeout
	Reset       Reason = "reset"       // the connection was cut after it had been made
	Unreachable Reason = "unreachable" // no host at the address, or a router said so
	HTTPStatus  Reason = "http-status" // an HTTP answer other than 2xx
	GRPCStatus  Reason = "grpc-status" // a gRPC answer other than SERVING
	ProtocolErr Reason = "protocol"    // an answer that is not of the protocol
	TLSErr      Reason = "tls"         // the TLS handshake was refused
)

// Duration is a time.Duration that text formats write as people do, "500ms".
type Duration time.Duration

// D returns d as a time.Duration.
func (d Duration) D() time.Duration { return time.Duration(d) }

// String returns d in Go's notation, such as "1.5s".
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText writes d in Go's notation, which UnmarshalText reads back.
func (d Duration) MarshalText() ([]byte, error) {
	if d < 0 {
		return nil, fmt.Errorf("duration %v: must not be negative", d)
	}
	return []byte(d.String()), nil
}

// UnmarshalText reads Go's notation: a number and a unit, once or several times,
// such as "500ms" or "1m30s". A sign and a number without unit are errors.
func (d *Duration) UnmarshalText(text []byte) error {
	const most = 32 // longer than any duration that MarshalText writes
	fault := fmt.Errorf(`duration %s: must be a number with unit such as "500ms" or "10s"`, quote(string(text)))
	if len(text) == 0 || len(text) > most || (text[0] != '.' && (text[0] < '0' || text[0] > '9')) {
		return fault
	}
	v, err := time.ParseDuration(string(text))
	if err != nil || string(text) == "0" {
		return fault
	}
	*d = Duration(v)
	return nil
}
