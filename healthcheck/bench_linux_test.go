package healthcheck

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestMemory bounds what 100,000 targets take, results and schedule included.
func TestMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's bookkeeping is measured too")
	}
	const n, most = 100_000, 11 << 20 // of which Go makes twice as much before it collects garbage
	set := whole(targets(n, Spec{Interval: sec(10)}))
	before := heapBytes()
	c := New(Options{Budget: 10_000})
	c.Set(set)
	got := heapBytes() - before
	runtime.KeepAlive(set)
	t.Logf("%d targets: %.1f MB, %d bytes each", n, float64(got)/(1<<20), got/n)
	if got > most {
		t.Errorf("got %d bytes; want at most %d", got, most)
	}
	runtime.KeepAlive(c)
}

func heapBytes() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkSchedule is what a probe costs besides the asking, with 100,000
// targets. Each op is a probe.
func BenchmarkSchedule(b *testing.B) {
	var left atomic.Int64
	left.Store(int64(b.N))
	done := make(chan struct{})
	instant := ProberFunc(func(context.Context, netip.AddrPort, Spec) error {
		if left.Add(-1) == 0 {
			close(done)
		}
		return nil
	})
	c := New(Options{Budget: 1 << 30, Probers: map[Protocol]Prober{TCP: instant}})
	c.Set(whole(targets(100_000, Spec{Interval: MinInterval})))
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error)
	b.ReportAllocs()
	go func() { ended <- c.Run(ctx) }()
	<-done
	cancel()
	<-ended
}

// BenchmarkChecker probes 100,000 targets every ten seconds over TCP, for as many
// seconds as -benchtime asks for (use 20x), and reports the rate, the lag and the
// memory that it needs.
func BenchmarkChecker(b *testing.B) {
	const n = 100_000
	port := acceptElsewhere(b)
	set := make(map[Target]Result, n)
	for i := range n {
		ip := netip.AddrFrom4([4]byte{127, byte(1 + i>>16), byte(i >> 8), byte(i)}) // all of 127.0.0.0/8 is this machine
		set[Target{netip.AddrPortFrom(ip, port), Spec{Interval: sec(10)}.WithDefaults()}] = Result{}
	}
	c := New(Options{Budget: 12_000, Workers: 128})
	c.Set(set)
	clear(set)
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error)
	go func() { ended <- c.Run(ctx) }()
	for deadline := time.Now().Add(2 * time.Minute); up(c) < n; <-time.After(time.Second) {
		if time.Now().After(deadline) {
			b.Fatalf("after 2 minutes: got %d of %d targets up", up(c), n)
		}
	}
	b.ResetTimer()
	cpu, probes, began := cpuTime(), c.Stats().Probes, time.Now()
	for range b.N {
		<-time.After(time.Second)
	}
	took := time.Since(began)
	cpu = cpuTime() - cpu
	s := c.Stats()
	probes = s.Probes - probes
	b.ReportMetric(float64(probes)/took.Seconds(), "probes/s")
	b.ReportMetric(float64(cpu.Microseconds())/float64(max(probes, 1)), "cpu-µs/probe")
	b.ReportMetric(float64(s.LagP99.Microseconds())/1000, "lag-p99-ms")
	b.ReportMetric(float64(heapBytes())/(1<<20), "live-MB")
	b.ReportMetric(float64(s.OwnErrors), "own-errors")
	if got := up(c); got != n {
		b.Errorf("got %d of %d targets up", got, n)
	}
	cancel()
	<-ended
}

// up counts the targets that are.
func up(c *Checker) (n int) {
	for _, r := range c.Results() {
		if r.State == Up {
			n++
		}
	}
	return n
}

// BenchmarkProbers is one probe after the other, of each kind.
func BenchmarkProbers(b *testing.B) {
	c := New(Options{})
	web := serve(b, say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
	for protocol, addr := range map[Protocol]netip.AddrPort{TCP: accept(b), HTTP: web, HTTPS: tlsServer(b, nil, nil)} {
		b.Run(string(protocol), func(b *testing.B) {
			spec := Spec{Protocol: protocol}.WithDefaults()
			k := &kind{spec: spec, prober: c.probers[protocol]}
			b.ReportAllocs()
			for b.Loop() {
				if f := ask(b.Context(), addr, k); f != nil && protocol != HTTPS {
					b.Fatal(f)
				}
			}
		})
	}
}

// BenchmarkSet replaces a set of 100,000 by one in which a single target differs.
func BenchmarkSet(b *testing.B) {
	for _, n := range []int{1000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			ts := targets(n+2, Spec{})
			sets := [2]map[Target]Result{whole(ts[:n+1]), whole(ts[:n], ts[n+1:])}
			c := New(Options{})
			i := 0
			for b.Loop() {
				c.Set(sets[i%2])
				i++
			}
		})
	}
}

// accept listens on every address of the loopback interface, and on no other, and
// closes what comes.
func accept(t testing.TB) netip.AddrPort {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		failed := error(nil)
		err := c.Control(func(fd uintptr) { failed = syscall.BindToDevice(int(fd), "lo") })
		return cmp.Or(err, failed)
	}}
	l, err := config.Listen(t.Context(), "tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatalf("listen on the loopback interface: %v", err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go acceptAll(l)
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), l.Addr().(*net.TCPAddr).AddrPort().Port())
}

func acceptAll(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_ = conn.Close()
	}
}

// serverVariable is set in the process that acceptElsewhere starts.
const serverVariable = "HEALTHCHECK_BENCHMARK_SERVER"

// TestServer is no test: it is the other process of BenchmarkChecker.
func TestServer(t *testing.T) {
	if os.Getenv(serverVariable) == "" {
		t.Skip("only BenchmarkChecker runs this, in a process of its own")
	}
	fmt.Println("port", accept(t).Port())
	_, _ = io.Copy(io.Discard, os.Stdin) // until the benchmark ends
}

// acceptElsewhere is accept in a process of its own, so that its work is not
// measured. It returns the port.
func acceptElsewhere(b *testing.B) (port uint16) {
	b.Helper()
	server := exec.Command(os.Args[0], "-test.run=^TestServer$")
	server.Env = append(os.Environ(), serverVariable+"=1")
	stop, err1 := server.StdinPipe()
	out, err2 := server.StdoutPipe()
	if err := cmp.Or(err1, err2, server.Start()); err != nil {
		b.Fatalf("start the server: %v", err)
	}
	b.Cleanup(func() {
		_ = stop.Close()
		_ = server.Wait()
	})
	if _, err := fmt.Fscanf(out, "port %d\n", &port); err != nil {
		b.Fatalf("read the server's port: %v", err)
	}
	return port
}

// cpuTime returns the processor time that this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
