package proxy

import (
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// Options configure an Engine. The zero value is usable.
type Options struct {
	// Log gets what an operator should know; nil is silence. Connections are
	// never logged one by one.
	Log *zap.Logger
	// DialTimeout bounds one attempt to reach a member, unless the route says so
	// itself (ConnectTimeout); 0 is 500 ms.
	DialTimeout time.Duration
	// DialBudget bounds all attempts of one connection, unless four times the
	// timeout of one is longer; 0 is two seconds.
	DialBudget time.Duration
	// DialAttempts is the largest number of members that a connection tries; 0
	// is three.
	DialAttempts int
	// MaxConnections bounds TCP connections and UDP sessions together. 0 derives
	// it from the limit on open files, of which a share stays free for probes,
	// the API and state. Listeners count against the same share.
	MaxConnections int
	// UDPSessions bounds the sessions of one UDP frontend; 0 is 8192. Beyond it
	// the session that was idle longest makes room.
	UDPSessions int
	// UDPSessionsPerSource bounds those of one client address; 0 is 1024.
	UDPSessionsPerSource int
	// AffinityClients bounds the clients that are remembered for routes with
	// affinity, over all frontends; 0 is 1,048,576, of 24 bytes each. The first 32 of
	// a frontend do not count, and it has 131,072 at most. Beyond that the one that was
	// away longest makes room, and goes by the hash of its address when it comes again.
	AffinityClients int
	// OnDialError, unless nil, is told that a member could not be reached: at
	// most four times a second per member, and never for faults of this machine.
	// It is called by the loops: it must not block, and must not call the Engine.
	OnDialError func(owner lb.Owner, check lb.CheckID, node lb.NodeName, err error)
	// Control, unless nil, is called on every socket before it is bound or
	// connected, as net.Dialer's and net.ListenConfig's fields of that name.
	Control func(network, address string, c syscall.RawConn) error
	// Loops is the number of event loops; 0 is one per processor that the program
	// may use, at most 32.
	Loops int
}

// The defaults of Options.
const (
	defaultDialTimeout   = 500 * time.Millisecond
	defaultDialBudget    = 2 * time.Second
	defaultDialAttempts  = 3
	defaultUDPSessions   = 8192
	defaultUDPPerSource  = 1024
	defaultAffinity      = 1 << 20
	fallbackFileLimit    = 1024
	minReservedFiles     = 128
	reservedFileFraction = 16
	maxLoops             = 32
)

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.DialTimeout <= 0 {
		o.DialTimeout = defaultDialTimeout
	}
	if o.DialBudget <= 0 {
		o.DialBudget = defaultDialBudget
	}
	if o.DialAttempts <= 0 {
		o.DialAttempts = defaultDialAttempts
	}
	if o.UDPSessions <= 0 {
		o.UDPSessions = defaultUDPSessions
	}
	if o.UDPSessionsPerSource <= 0 {
		o.UDPSessionsPerSource = defaultUDPPerSource
	}
	if o.AffinityClients <= 0 {
		o.AffinityClients = defaultAffinity
	}
	if o.Loops <= 0 {
		o.Loops = min(processors(), maxLoops)
	}
	return o
}

// fileShare returns how many descriptors the engine may use: the limit on open
// files without what is kept for the rest of the program.
func fileShare() int {
	limit := uint64(fallbackFileLimit)
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err == nil {
		limit = min(r.Cur, 1<<30)
	}
	n := int(limit)
	return max(n-max(minReservedFiles, n/reservedFileFraction), n/2)
}
