package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// A listener is systemd's end of the socket.
type listener struct {
	*net.UnixConn
	t *testing.T
}

func listen(t *testing.T, path string) listener {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return listener{conn, t}
}

// next returns the lines of the next message, nil if there is none within the
// time.
func (l listener) next(within time.Duration) []string {
	l.t.Helper()
	if err := l.SetReadDeadline(time.Now().Add(within)); err != nil {
		l.t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := l.Read(buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	if err != nil {
		l.t.Fatal(err)
	}
	return strings.Split(string(buf[:n]), "\n")
}

func environment(vars ...string) func(string) string {
	return func(name string) string {
		for _, v := range vars {
			if value, ok := strings.CutPrefix(v, name+"="); ok {
				return value
			}
		}
		return ""
	}
}

func TestSupervisorIsTold(t *testing.T) {
	for _, path := range []string{filepath.Join(t.TempDir(), "notify"), fmt.Sprintf("@eclusa-test-%d", os.Getpid())} {
		l := listen(t, path)
		s, err := newSupervisor(environment("NOTIFY_SOCKET="+path, "WATCHDOG_USEC=120000000"), zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		s.pulse(false)
		if got := l.next(time.Second); !slices.Equal(got, []string{"WATCHDOG=1"}) {
			t.Errorf("%s: alive and not serving: got %q; want WATCHDOG=1 alone", path, got)
		}
		s.pulse(true)
		if got := l.next(time.Second); !slices.Equal(got, []string{"READY=1", "STATUS=Serving"}) {
			t.Errorf("%s: serving: got %q; want READY=1 and no second WATCHDOG=1 so soon", path, got)
		}
		s.pulse(true)
		if got := l.next(10 * time.Millisecond); got != nil {
			t.Errorf("%s: serving on: got %q; want nothing so soon", path, got)
		}
		s.told = s.told.Add(-pulseInterval)
		s.pulse(true)
		if got := l.next(time.Second); !slices.Equal(got, []string{"WATCHDOG=1"}) {
			t.Errorf("%s: serving on, later: got %q; want WATCHDOG=1", path, got)
		}
		s.stopping(30 * time.Second)
		if got := l.next(time.Second); !slices.Contains(got, "STOPPING=1") || !slices.Contains(got, "EXTEND_TIMEOUT_USEC=45000000") {
			t.Errorf("%s: stopping: got %q; want STOPPING=1 and 45 s for 30 s of draining", path, got)
		}
	}
}

func TestNobodyIsTold(t *testing.T) {
	s, err := newSupervisor(environment(), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	s.pulse(true)
	s.stopping(time.Second)

	// A socket that nobody reads any more costs a warning, not the edge, and not
	// one for each round.
	core, logs := observer.New(zap.WarnLevel)
	gone := filepath.Join(t.TempDir(), "gone")
	s, err = newSupervisor(environment("NOTIFY_SOCKET="+gone, "WATCHDOG_USEC=120000000"), zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		s.pulse(true)
	}
	if got := logs.FilterMessageSnippet("could not be told").Len(); got != 1 {
		t.Errorf("in vain: got %d warnings; want 1", got)
	}
	l := listen(t, gone)
	s.silence = time.Time{}
	s.pulse(true)
	if got := l.next(time.Second); !slices.Contains(got, "READY=1") {
		t.Errorf("heard after all: got %q; want READY=1", got)
	}
}

func TestSupervisorEnvironment(t *testing.T) {
	for _, c := range []struct {
		vars []string
		want string // in the error, else in a warning
	}{
		{[]string{"NOTIFY_SOCKET=relative"}, `NOTIFY_SOCKET: "relative": must be an absolute path`},
		{[]string{"NOTIFY_SOCKET=/x", "WATCHDOG_USEC=soon"}, `WATCHDOG_USEC: "soon": must be a number`},
		{[]string{"NOTIFY_SOCKET=/x", "WATCHDOG_USEC=-1"}, `WATCHDOG_USEC: "-1": must be a number`},
		{[]string{"NOTIFY_SOCKET=/x", "WATCHDOG_USEC=30000000"}, "raise WatchdogSec"},
	} {
		core, logs := observer.New(zap.WarnLevel)
		_, err := newSupervisor(environment(c.vars...), zap.New(core))
		got := fmt.Sprint(err)
		for _, e := range logs.All() {
			got += e.Message
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%v: got %q; want %q", c.vars, got, c.want)
		}
	}
}

// The whole program, as systemd sees it.
func TestProgramUnderSystemd(t *testing.T) {
	w := newWorld(t)
	w.pki()
	socket := filepath.Join(t.TempDir(), "notify")
	l := listen(t, socket)
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", "120000000")
	p := w.start()
	var told []string
	for !slices.Contains(told, "READY=1") {
		message := l.next(10 * time.Second)
		if message == nil {
			t.Fatalf("not ready within 10s; told so far %q", told)
		}
		told = append(told, message...)
	}
	if !slices.Contains(told, "WATCHDOG=1") {
		t.Errorf("told %q; want a WATCHDOG=1 among them", told)
	}
	r, err := http.Get("http://" + mgmtAddr + "/readyz")
	w.must(err)
	r.Body.Close()
	if r.StatusCode != http.StatusOK {
		t.Errorf("READY=1 was told while /readyz answers %s", r.Status)
	}

	// A reload makes another process the main one, and this one ends in silence.
	w.must(p.Process.Signal(syscall.SIGHUP))
	successor := 0
	for successor == 0 {
		message := l.next(20 * time.Second)
		if message == nil {
			t.Fatal("MAINPID= was not told after SIGHUP")
		}
		for _, state := range message {
			if pid, ok := strings.CutPrefix(state, "MAINPID="); ok {
				successor, err = strconv.Atoi(pid)
				w.must(err)
			}
		}
	}
	t.Cleanup(func() { _ = syscall.Kill(successor, syscall.SIGKILL) })
	w.eventually(10*time.Second, func() error {
		if err := syscall.Kill(p.Process.Pid, 0); !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("process %d is still there after SIGHUP, kill says %v", p.Process.Pid, err) //nolint:errorlint // it may be nil
		}
		return nil
	})
	w.ready()
	w.must(syscall.Kill(successor, syscall.SIGTERM))
	stopping := 0
	for message := l.next(10 * time.Second); message != nil; message = l.next(time.Second) {
		if slices.Contains(message, "STOPPING=1") {
			stopping++
		}
	}
	if stopping != 1 {
		t.Errorf("STOPPING=1 was told %d times; want once, by the successor", stopping)
	}
}

func TestWrongConfigurationExitsWithItsOwnCode(t *testing.T) {
	w := newWorld(t)
	w.yaml = "name: UPPER\n"
	p := w.start()
	_ = p.wait(t, 10*time.Second)
	if got := p.ProcessState.ExitCode(); got != exitUsage {
		t.Errorf("exit code: got %d; want %d", got, exitUsage)
	}
}
