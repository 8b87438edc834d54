package traffic

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Kind is a way of making load.
type Kind string

// The kinds.
const (
	// Requests sends a request on each kept connection as soon as the answer to the
	// one before is there.
	Requests Kind = "requests"
	// Connections opens a connection, asks once, waits for answer and end, and opens
	// the next.
	Connections Kind = "connections"
	// Bulk receives what the nodes send.
	Bulk Kind = "bulk"
	// Echo keeps a number of datagrams under way on each socket.
	Echo Kind = "echo"
	// Flood sends datagrams as fast as the machine takes them.
	Flood Kind = "flood"
	// SteadyRequests and SteadyConnections come at a fixed rate, whatever becomes of
	// those before.
	SteadyRequests    Kind = "steady-requests"
	SteadyConnections Kind = "steady-connections"
	// Idle opens connections, asks once on each, and keeps them until the standard
	// input ends.
	Idle Kind = "idle"
	// Watch is users who notice: kept connections that ask all the time and short
	// ones, each error counted, until the standard input ends.
	Watch Kind = "watch"
)

// Spec is one load.
type Spec struct {
	Kind Kind
	// To are where connections and datagrams go, in turn.
	To []netip.AddrPort
	// Width is the number of connections or sockets.
	Width int
	// Window is how many datagrams of a socket are under way.
	Window int
	// Rate is how many requests or connections begin in a second, Brief how many
	// connections of a [Watch] do, if it is not to keep Window of them going.
	Rate, Brief int
	// Warm goes before Time, which is measured.
	Warm, Time time.Duration
	// Patience is how long an answer may take.
	Patience time.Duration
}

// Result is what became of a load.
type Result struct {
	// Done are the answered requests, connections or datagrams of the measured time,
	// Bytes what was received in it.
	Done, Bytes int64
	// All are those of the whole run, with what went before the measured time.
	All, AllBytes int64
	Seconds       float64
	// Failed are those that got an error, a wrong answer, or none in time.
	Failed int64
	// Failures says how many failed why.
	Failures map[string]int64 `json:",omitempty"`
	// Nodes counts the answers by node.
	Nodes map[byte]int64 `json:",omitempty"`
	// Latency has the quantiles in microseconds.
	Latency *Latency `json:",omitempty"`
	// Begun is when the load began, LastLost when the last of the connections began
	// that were not to have an answer, LastSlow when the last of those began that had
	// one after more than [Slow], or none.
	Begun, LastLost, LastSlow time.Time

	nodes [256]int64
}

// Slow is a time within which a connection is answered on a network like this, unless
// something was tried in vain before.
const Slow = 250 * time.Millisecond

// Latency are quantiles in microseconds.
type Latency struct{ P50, P90, P99, P999, Max float64 }

// Run makes the load and returns what became of it.
func Run(s Spec) (*Result, error) {
	if len(s.To) == 0 || s.Width < 1 {
		return nil, fmt.Errorf("load %q: no targets or no width", s.Kind)
	}
	if s.Patience == 0 {
		s.Patience = 3 * time.Second
	}
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // or timers are a little late
	switch s.Kind {
	case Requests:
		return runRequests(s)
	case Connections:
		return runConnections(s)
	case Bulk:
		return runBulk(s)
	case Echo:
		return runEcho(s)
	case Flood:
		return runFlood(s)
	case SteadyRequests:
		return runSteadyRequests(s)
	case SteadyConnections:
		return runSteadyConnections(s)
	case Idle:
		return runIdle(s)
	case Watch:
		return runWatch(s)
	}
	return nil, fmt.Errorf("load %q: unknown kind", s.Kind)
}

// end ends the process: whoever started it is gone, or has read what it wanted.
func end() {
	p, err := os.FindProcess(os.Getpid())
	if err == nil {
		_ = p.Kill()
	}
}

// clock splits a run into warm-up and measured time.
type clock struct {
	start, from, until time.Time
}

func startClock(s Spec) clock {
	now := time.Now()
	return clock{now, now.Add(s.Warm), now.Add(s.Warm + s.Time)}
}

// fail counts a failure of what began at a time.
func (r *Result) fail(why string, began time.Time) {
	if began.After(r.LastLost) {
		r.LastLost = began
	}
	if began.After(r.LastSlow) {
		r.LastSlow = began
	}
	if r.Failures == nil {
		r.Failures = make(map[string]int64)
	}
	r.Failures[why]++
	r.Failed++
}

// kept counts a failure of a connection that had been open.
func (r *Result) kept(why string) { r.fail(why, time.Time{}) }

// finish fills in what was counted in a form that costs less.
func (r *Result) finish(c clock) *Result {
	r.Begun = c.start
	r.Seconds = time.Since(c.from).Seconds()
	for node, n := range r.nodes {
		if n == 0 {
			continue
		}
		if r.Nodes == nil {
			r.Nodes = make(map[byte]int64)
		}
		r.Nodes[byte(node)] = n
	}
	return r
}

func quantiles(d []time.Duration) *Latency {
	if len(d) == 0 {
		return nil
	}
	slices.Sort(d)
	at := func(q float64) float64 {
		return float64(d[min(int(q*float64(len(d))), len(d)-1)].Nanoseconds()) / 1000
	}
	return &Latency{at(.5), at(.9), at(.99), at(.999), at(1)}
}
