package healthcheck

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// hole returns an address of the loopback that answers nothing: the queue of its
// listener is full, and the kernel drops what comes.
func hole(t testing.TB) netip.AddrPort {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("socket: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatalf("bind: %v", err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatalf("listen: %v", err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatalf("getsockname: %v", err)
	}
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(name.(*syscall.SockaddrInet4).Port))
	for range 20 {
		conn, err := net.DialTimeout("tcp", addr.String(), 100*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	t.Fatalf("%v: still accepts connections with a full queue", addr)
	return addr
}

// TestProbesLeaveNothingBehind looks for connections of probes in the kernel's
// table after they were made.
func TestProbesLeaveNothingBehind(t *testing.T) {
	plain := serve(t, stay)
	web := serve(t, func(c net.Conn) { say("HTTP/1.1 200 OK\r\n\r\n")(c); stay(c) })
	rpc := healthServer(t, nil)
	c := New(Options{})
	for range 20 {
		for spec, addr := range map[Spec]netip.AddrPort{{Protocol: TCP}: plain, {Protocol: HTTP, Path: "/"}: web, {Protocol: GRPC}: rpc} {
			if err := c.probers[spec.Protocol].Probe(t.Context(), addr, spec); err != nil {
				t.Fatalf("%s probe: %v", spec.Protocol, err)
			}
		}
	}
	var left []string
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); <-time.After(20 * time.Millisecond) {
		if left = connections(t, plain, web, rpc); len(left) == 0 {
			return
		}
	}
	t.Errorf("connections after 60 probes: %q; want none", left)
}

// connections lists what the kernel has of an address besides its listener, also
// in TIME_WAIT.
func connections(t *testing.T, addrs ...netip.AddrPort) (found []string) {
	t.Helper()
	f, err := os.Open("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	const listen = "0A"
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		for _, addr := range addrs {
			port := fmt.Sprintf(":%04X", addr.Port())
			if len(fields) > 3 && fields[3] != listen && (strings.HasSuffix(fields[1], port) || strings.HasSuffix(fields[2], port)) {
				found = append(found, strings.Join(fields[1:4], " "))
			}
		}
	}
	return found
}

// TestRealBlackHolesDelayNobody is the virtual test of that name with sockets: 500
// probes each second that never hear anything, and a server that hangs and wakes.
func TestRealBlackHolesDelayNobody(t *testing.T) {
	if testing.Short() {
		t.Skip("takes ten seconds")
	}
	var hangs atomic.Bool
	good := Target{serve(t, func(c net.Conn) {
		if hangs.Load() {
			stay(c)
			return
		}
		say("HTTP/1.1 200 OK\r\n\r\n")(c)
	}), Spec{Protocol: HTTP}.WithDefaults()}
	set := map[Target]Result{good: {}}
	for i, dead := 0, hole(t); i < 500; i++ {
		// Specs that differ make targets of one address differ.
		set[Target{dead, Spec{UnhealthyThreshold: 1 + i%5, HealthyThreshold: 1 + i/5}.WithDefaults()}] = Result{}
	}
	c := New(Options{})
	c.Set(set)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	ended := make(chan error)
	go func() { ended <- c.Run(ctx) }()
	defer func() {
		cancel()
		<-ended
	}()
	for i, want := range []State{Up, Down, Up, Down, Up} {
		hangs.Store(want == Down)
		took := waitFor(ctx, t, c, good, want)
		t.Logf("%v after %v; stats %+v", want, took, c.Stats())
		if most := 3500 * time.Millisecond; i > 0 && took > most {
			t.Errorf("got %v after %v; want at most %v (2.5s, and time to be scheduled)", want, took, most)
		}
	}
}

// waitFor returns how long a target took to reach a state.
func waitFor(ctx context.Context, t *testing.T, c *Checker, target Target, want State) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		if r, _ := c.Result(target); r.State == want {
			return time.Since(began)
		}
		select {
		case <-c.Changed():
		case <-ctx.Done():
			r, _ := c.Result(target)
			t.Fatalf("%v: got %+v; want %v", target, r, want)
		}
	}
}
