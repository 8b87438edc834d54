package healthcheck

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
)

// Failure is what went wrong with a probe. A Prober that returns one says itself
// how it is to be judged; other errors are classified by what they wrap.
type Failure struct {
	Reason Reason
	Text   string // for people; the Checker cuts it to MaxError bytes

	// Draining says that the member answered, and asks for no new connections.
	Draining bool
	// Own says that this machine is at fault (no descriptors, no memory, no
	// route): the probe is repeated and does not count.
	Own bool
}

// Error returns the text.
func (f *Failure) Error() string { return f.Text }

// ownFaults are the errors of this machine, whatever the member does. A network
// that is unreachable is among them: no route is a fault of the routing table,
// while a dead member on a network that is there shows as host unreachable.
var ownFaults = []syscall.Errno{
	syscall.EMFILE, syscall.ENFILE, // descriptors
	syscall.ENOBUFS, syscall.ENOMEM, // memory
	syscall.EADDRNOTAVAIL, syscall.EADDRINUSE, // ports and addresses
	syscall.ENETUNREACH, syscall.ENETDOWN, syscall.EAFNOSUPPORT, // routes and links
	syscall.EPERM, syscall.EACCES, // firewall, prohibited route
}

// classify turns a probe's error into a Failure. The texts leave out the
// address, which everyone who reads a Result knows.
func classify(err error) *Failure {
	if f, ok := errors.AsType[*Failure](err); ok {
		return f
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return classifyErrno(errno)
	}
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return &Failure{Reason: Timeout, Text: "no answer in time"}
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return &Failure{Reason: Timeout, Text: "no answer in time"}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &Failure{Reason: ProtocolErr, Text: "connection closed before the answer was complete"}
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return &Failure{Reason: TLSErr, Text: op.Err.Error()} // an alert, also one after the handshake
	}
	return &Failure{Reason: ProtocolErr, Text: printable([]byte(err.Error()), MaxError)}
}

// inTime gives a timeout its text: how far the probe had come.
func (f *Failure) inTime(what string, spec Spec) *Failure {
	if f.Reason == Timeout {
		f.Text = what + " within " + spec.Timeout.String()
	}
	return f
}

func classifyErrno(errno syscall.Errno) *Failure {
	for _, own := range ownFaults {
		if errno == own {
			return &Failure{Own: true, Text: errno.Error()}
		}
	}
	f := &Failure{Text: errno.Error()}
	switch errno {
	case syscall.ECONNREFUSED:
		f.Reason = Refused
	case syscall.ETIMEDOUT:
		f.Reason = Timeout
	case syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED:
		f.Reason = Reset
	default: // EHOSTUNREACH, EHOSTDOWN, ENOPROTOOPT and whatever else ICMP can say
		f.Reason = Unreachable
	}
	return f
}

// classifyTLS is classify for an error of the handshake: what is no fault of the
// connection is one of TLS.
func classifyTLS(err error) *Failure {
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return &Failure{Reason: TLSErr, Text: "the answer to the TLS handshake is not TLS"}
	}
	f := classify(err)
	if f.Reason == ProtocolErr {
		f.Reason = TLSErr
	}
	return f
}

// printable returns at most most bytes of s with everything that is not visible
// ASCII or a single space replaced, so that what a stranger sent can stand in a
// log, a terminal and a status.
func printable(s []byte, most int) string {
	out := make([]byte, 0, min(len(s), most))
	for _, b := range s {
		if len(out) == most {
			break
		}
		switch {
		case b > ' ' && b < 0x7f:
			out = append(out, b)
		case b == ' ', b == '\t', b == '\r', b == '\n':
			if len(out) > 0 && out[len(out)-1] != ' ' {
				out = append(out, ' ')
			}
		default:
			out = append(out, '.')
		}
	}
	if n := len(out); n > 0 && out[n-1] == ' ' {
		out = out[:n-1]
	}
	return string(out)
}
