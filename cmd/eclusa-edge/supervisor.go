package main

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/edge"
)

const (
	// notifyTimeout is how long the program waits to be listened to. An edge must
	// go on when systemd does not.
	notifyTimeout = time.Second
	// notifySilence is how long nothing is tried after that was in vain.
	notifySilence = 10 * time.Second
	// pulseInterval is how often systemd is told that all is well, at most.
	pulseInterval = time.Second
	// stopSlack is what stopping takes beside draining.
	stopSlack = serverTimeout + 10*time.Second
)

// A supervisor is who has started the program and wants to hear from it: systemd,
// by the protocol of sd_notify(3). Without an address its methods do nothing.
type supervisor struct {
	addr     *net.UnixAddr
	watchdog bool
	log      *zap.Logger

	// The loop that decides has these to itself.
	ready   bool
	told    time.Time
	silence time.Time // until when nothing is tried

	succeeded atomic.Bool // another process speaks from now on
}

// newSupervisor learns from the environment whom to tell.
func newSupervisor(getenv func(string) string, log *zap.Logger) (*supervisor, error) {
	s := &supervisor{log: log}
	path := getenv("NOTIFY_SOCKET")
	if path == "" {
		return s, nil
	}
	if path[0] != '/' && path[0] != '@' {
		return nil, fmt.Errorf("environment variable NOTIFY_SOCKET: %q: must be an absolute path, or begin with @", path)
	}
	s.addr = &net.UnixAddr{Net: "unixgram", Name: path}
	interval := getenv("WATCHDOG_USEC")
	if interval == "" {
		return s, nil
	}
	// WATCHDOG_PID is not looked at: it names the first of several programs when
	// one hands over to the next, and nobody else is given our environment.
	usec, err := strconv.ParseInt(interval, 10, 64)
	if err != nil || usec <= 0 {
		return nil, fmt.Errorf("environment variable WATCHDOG_USEC: %q: must be a number of microseconds", interval)
	}
	s.watchdog = true
	if d := time.Duration(usec) * time.Microsecond; d < edge.Patience {
		log.Warn("systemd may kill an edge that is well: its watchdog is more impatient than a large configuration allows; raise WatchdogSec",
			zap.Duration("watchdog", d), zap.Duration("atLeast", edge.Patience))
	}
	return s, nil
}

// pulse tells that the loop that decides is alive and, once, that the edge serves.
// It is called by that loop and nobody else: a ticker would go on ticking in an
// edge that hangs.
func (s *supervisor) pulse(serving bool) {
	now := time.Now()
	if now.Before(s.silence) {
		return
	}
	var states []string
	if serving && !s.ready {
		states = append(states, "READY=1", "STATUS=Serving")
	}
	if s.watchdog && now.Sub(s.told) >= pulseInterval {
		s.told = now
		states = append(states, "WATCHDOG=1")
	}
	if len(states) == 0 {
		return
	}
	if !s.notify(states...) {
		s.silence = now.Add(notifySilence)
		return
	}
	s.ready = s.ready || serving
}

// stopping tells that the edge drains, and how long that may take, which
// systemd's own limit need not know then.
func (s *supervisor) stopping(drain time.Duration) {
	s.notify("STOPPING=1", "STATUS=Draining", fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", (drain+stopSlack).Microseconds()))
}

// succeed tells that another process is the main one from now on. This one is
// silent then: its end is not that of the service.
func (s *supervisor) succeed(pid int) {
	s.notify(fmt.Sprintf("MAINPID=%d", pid))
	s.succeeded.Store(true)
}

// notify sends states, and returns whether they have arrived or nobody wants them.
func (s *supervisor) notify(states ...string) bool {
	if s.addr == nil || s.succeeded.Load() {
		return true
	}
	if err := s.send(strings.Join(states, "\n")); err != nil {
		s.log.Warn("systemd could not be told how the edge is", zap.Strings("states", states), zap.Error(err))
		return false
	}
	return true
}

func (s *supervisor) send(message string) error {
	conn, err := net.DialUnix("unixgram", nil, s.addr)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // a datagram is sent or not, whatever closing says
	if err := conn.SetWriteDeadline(time.Now().Add(notifyTimeout)); err != nil {
		return err
	}
	_, err = conn.Write([]byte(message))
	return err
}
