package proxy

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// The benchmarks use bare system calls for clients and members, so that what is
// measured, allocations above all, is the engine's.

// rawMember accepts connections in a thread of its own and hands each to serve.
func rawMember(b *testing.B, p *place, serve func(fd int)) {
	b.Helper()
	at := netip.AddrPortFrom(p.backends()[0].Addr, 31080)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err := unix.Bind(fd, sockaddrOf(at)); err != nil {
		b.Fatal(err)
	}
	if err := unix.Listen(fd, 1024); err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, _, err := unix.Accept(fd)
			if err != nil {
				return
			}
			serve(c)
		}
	})
	b.Cleanup(func() {
		_ = unix.Shutdown(fd, unix.SHUT_RD)
		wg.Wait()
		unix.Close(fd)
	})
}

func rawDial(b *testing.B, to unix.Sockaddr) int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Connect(fd, to)
	}
	if err != nil {
		b.Fatal(err)
	}
	return fd
}

// BenchmarkConnection is one connection with one request and one answer.
func BenchmarkConnection(b *testing.B) { benchmarkConnection(b, 0, func(*lb.Route) {}) }

// BenchmarkConnectionPROXY is the same with a PROXY header.
func BenchmarkConnectionPROXY(b *testing.B) {
	benchmarkConnection(b, 28, func(r *lb.Route) { r.ProxyProtocol = lb.ProxyV2 })
}

// BenchmarkConnectionSticky is the same with affinity.
func BenchmarkConnectionSticky(b *testing.B) {
	benchmarkConnection(b, 0, func(r *lb.Route) { r.AffinityFor = time.Hour })
}

// benchmarkConnection is for members that get a header of some bytes.
func benchmarkConnection(b *testing.B, header int, change func(*lb.Route)) {
	p := newPlace(b, Options{}, lb.TCP, 1)
	r := p.table.Routes[p.front]
	change(&r)
	p.table.Routes[p.front] = r
	p.set()
	answer := make([]byte, 256)
	rawMember(b, p, func(fd int) {
		for n := 0; n < header+64; {
			got, err := unix.Read(fd, answer)
			if n += got; err != nil || got == 0 {
				break
			}
		}
		_, _ = unix.Write(fd, answer[:64])
		unix.Close(fd)
	})
	to := sockaddrOf(netip.AddrPortFrom(p.front.Addr, p.front.Port))
	request := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		fd := rawDial(b, to)
		if _, err := unix.Write(fd, request); err != nil {
			b.Fatal(err)
		}
		for n := 1; n > 0; {
			var err error
			if n, err = unix.Read(fd, request); err != nil {
				b.Fatal(err)
			}
		}
		unix.Close(fd)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conns/s")
}

// BenchmarkRequest is a request and an answer on an open connection.
func BenchmarkRequest(b *testing.B) {
	p := newPlace(b, Options{}, lb.TCP, 1)
	p.set()
	rawMember(b, p, func(fd int) {
		buffer := make([]byte, 64)
		for n := 1; n > 0; n, _ = unix.Read(fd, buffer) {
			_, _ = unix.Write(fd, buffer[:min(n, 64)])
		}
		unix.Close(fd)
	})
	fd := rawDial(b, sockaddrOf(netip.AddrPortFrom(p.front.Addr, p.front.Port)))
	defer unix.Close(fd)
	buffer := make([]byte, 64)
	_, _ = unix.Read(fd, buffer)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := unix.Write(fd, buffer); err != nil {
			b.Fatal(err)
		}
		if _, err := unix.Read(fd, buffer); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBulk is one stream from member to client.
func BenchmarkBulk(b *testing.B) {
	p := newPlace(b, Options{}, lb.TCP, 1)
	p.set()
	block := make([]byte, 256<<10)
	rawMember(b, p, func(fd int) {
		for {
			if _, err := unix.Write(fd, block); err != nil {
				unix.Close(fd)
				return
			}
		}
	})
	fd := rawDial(b, sockaddrOf(netip.AddrPortFrom(p.front.Addr, p.front.Port)))
	buffer := make([]byte, 256<<10)
	b.SetBytes(int64(len(buffer)))
	b.ReportAllocs()
	for b.Loop() {
		for n := 0; n < len(buffer); {
			got, err := unix.Read(fd, buffer[n:])
			if err != nil {
				b.Fatal(err)
			}
			n += got
		}
	}
	unix.Close(fd)
}

// BenchmarkIdleConnections reports what an open connection on which nothing moves
// costs the program, without what it costs the kernel.
func BenchmarkIdleConnections(b *testing.B) {
	const count = 2000
	for b.Loop() {
		p := newPlace(b, Options{}, lb.TCP, 1)
		p.set()
		var mu sync.Mutex
		var fds []int
		rawMember(b, p, func(fd int) {
			mu.Lock()
			defer mu.Unlock()
			fds = append(fds, fd)
		})
		to := sockaddrOf(netip.AddrPortFrom(p.front.Addr, p.front.Port))
		before := inUse()
		for range count {
			fd := rawDial(b, to)
			if _, err := unix.Write(fd, []byte("x")); err != nil {
				b.Fatal(err)
			}
			mu.Lock()
			fds = append(fds, fd)
			mu.Unlock()
		}
		eventually(b, "all are connected", func() bool {
			m := p.counters().Members
			return len(m) > 0 && m[0].BytesIn == count
		})
		b.ReportMetric(float64(inUse()-before)/count, "B/conn")
		p.shut()
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
}

// inUse returns the memory of heap and stacks after garbage was collected.
func inUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// BenchmarkDatagram is a datagram and its answer in one session.
func BenchmarkDatagram(b *testing.B) {
	p := newPlace(b, Options{}, lb.UDP, 1)
	p.set()
	p.echo(0)
	c, err := p.ask("x")
	if err != nil {
		b.Fatal(err)
	}
	_ = c.SetDeadline(time.Time{})
	b.ReportAllocs()
	for b.Loop() {
		if err := again(c, "0123456789"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSet changes the state of one member of a group that 1,000 routes share.
func BenchmarkSet(b *testing.B) {
	p := newPlace(b, Options{}, lb.TCP, 100)
	for i := range 999 {
		f := p.front
		f.Port += uint16(i + 1)
		r := p.table.Routes[p.front]
		r.Name = fmt.Sprint(i)
		p.table.Routes[f] = r
	}
	p.set()
	tables := [2]lb.Table{p.table, {Routes: p.table.Routes, Groups: map[lb.GroupID]lb.Group{}}}
	for id, g := range p.table.Groups {
		other := append([]lb.Backend(nil), g.Backends...)
		other[7].State = lb.Draining
		tables[1].Groups[id] = lb.Group{Backends: other}
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := p.engine.Set(context.Background(), tables[i%2]); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPick chooses among 100 members.
func BenchmarkPick(b *testing.B) {
	weights := make([]int, 100)
	for i := range weights {
		weights[i] = 1
	}
	client := netip.MustParseAddr("198.51.100.7")
	for name, r := range map[string]lb.Route{
		"round-robin":       {Algorithm: lb.RoundRobin},
		"least-connections": {Algorithm: lb.LeastConnections},
		"affinity":          {AffinityFor: time.Hour},
		"two-choices":       {Algorithm: lb.RandomTwoChoices},
		"source-hash":       {Algorithm: lb.SourceHash},
	} {
		b.Run(name, func(b *testing.B) {
			fe, _ := picker(r, weights...)
			b.ReportAllocs()
			for b.Loop() {
				fe.pick(1, client, nil).active.Add(-1)
			}
		})
	}
}

// BenchmarkPorts opens and closes 2,000 ports of one load balancer with 1,024
// source ranges, and reports what an open one costs the program.
func BenchmarkPorts(b *testing.B) {
	const ports = 2000
	for _, proto := range []lb.Protocol{lb.TCP, lb.UDP} {
		b.Run(string(proto), func(b *testing.B) {
			p := newPlace(b, Options{}, proto, 10)
			r := p.table.Routes[p.front]
			for i := range 1024 {
				r.SourceRanges = append(r.SourceRanges, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
			}
			for i := range ports {
				f := p.front
				f.Port = uint16(10000 + i)
				p.table.Routes[f] = r
			}
			empty := lb.Table{}
			var opened, again, closed time.Duration
			set := func(t lb.Table, took *time.Duration) {
				start := time.Now()
				if refused, err := p.engine.Set(context.Background(), t); err != nil || len(refused) > 0 {
					b.Fatal(refused, err)
				}
				*took += time.Since(start)
			}
			set(empty, &closed) // makes the loops
			var n, before int64
			for b.Loop() {
				if n == 0 {
					before = inUse()
				}
				set(p.table, &opened)
				if n == 0 { // what is left of former rounds would count less
					n = inUse() - before
				}
				set(p.table, &again)
				set(empty, &closed)
			}
			b.ReportMetric(opened.Seconds()*1e3/float64(b.N), "ms/open")
			b.ReportMetric(again.Seconds()*1e3/float64(b.N), "ms/same")
			b.ReportMetric(closed.Seconds()*1e3/float64(b.N), "ms/close")
			b.ReportMetric(float64(n)/ports, "B/port")
		})
	}
}
