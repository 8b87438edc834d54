package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// load is traffic of several kinds through the load balancer of loadService. Any
// error counts.
type load struct {
	w    *world
	stop chan struct{}
	wg   sync.WaitGroup

	connections, requests, datagrams atomic.Int64

	mu     sync.Mutex
	errs   []error
	long   []net.Conn
	longer sync.WaitGroup // those who use them
}

// The load.
const (
	longConns  = 20
	udpClients = 40
	pacing     = 5 * time.Millisecond
)

// loadService serves HTTP, an echo over TCP, and an echo over UDP.
func loadService(revision uint64) lb.Config {
	return service(revision, func(l *lb.LoadBalancer) {
		l.Listeners = append(l.Listeners,
			lb.Listener{Protocol: lb.TCP, Port: 7000, TargetPort: 30070},
			lb.Listener{Protocol: lb.UDP, Port: 53, TargetPort: 30053})
	})
}

// echoes serves the echoes of all nodes.
func (w *world) echoes() {
	w.t.Helper()
	for i, a := range []string{"10.0.0.11", "10.0.0.12", "10.0.0.13"} {
		var l net.Listener
		var p net.PacketConn
		var err, udpErr error
		w.inNodes(func() {
			l, err = net.Listen("tcp", a+":30070")
			p, udpErr = net.ListenPacket("udp", a+":30053")
		})
		w.must(errors.Join(err, udpErr))
		w.t.Cleanup(func() { l.Close(); p.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
			}
		}()
		go func() {
			buf := make([]byte, 1500)
			for {
				n, from, err := p.ReadFrom(buf)
				if err != nil {
					return
				}
				// The member sees the port of the flow: the same one for ever.
				_, _ = p.WriteTo(fmt.Appendf(nil, "%s n%d %s", buf[:n], i+1, from), from)
			}
		}()
	}
}

// startLoad begins the traffic and returns when all of it flows.
func (w *world) startLoad() *load {
	w.t.Helper()
	l := &load{w: w, stop: make(chan struct{})}
	for range longConns {
		l.hold()
	}
	for i := range udpClients {
		var c net.Conn
		var err error
		w.inNodes(func() {
			d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.IPv4(10, 0, 0, 200), Port: 20000 + i}}
			c, err = d.Dial("udp", "10.0.0.129:53")
		})
		w.must(err)
		l.wg.Go(func() { defer c.Close(); l.ask(c) })
	}
	for range 4 {
		l.wg.Go(l.fetch)
	}
	w.t.Cleanup(func() { l.end() })
	w.eventually(5*time.Second, func() error {
		if l.connections.Load() < 20 || l.requests.Load() < 2*longConns || l.datagrams.Load() < 2*udpClients {
			return errors.New("the load does not flow yet")
		}
		return nil
	})
	return l
}

// hold opens one more long connection.
func (l *load) hold() {
	l.w.t.Helper()
	var c net.Conn
	var err error
	l.w.inNodes(func() { c, err = net.DialTimeout("tcp", "10.0.0.129:7000", 2*time.Second) })
	l.w.must(err)
	l.mu.Lock()
	l.long = append(l.long, c)
	l.mu.Unlock()
	l.longer.Go(func() { l.talk(c) })
}

func (l *load) failed(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.errs = append(l.errs, fmt.Errorf(format, args...))
}

// pace waits a little, and reports whether to go on.
func (l *load) pace() bool {
	select {
	case <-l.stop:
		return false
	case <-time.After(pacing):
		return true
	}
}

// fetch opens one connection after the other.
func (l *load) fetch() {
	for l.pace() {
		if _, err := l.w.get(vip); err != nil {
			l.failed("new connection: %w", err)
		}
		l.connections.Add(1)
	}
}

// talk sends and reads lines on a connection that stays open.
func (l *load) talk(c net.Conn) {
	r := bufio.NewReader(c)
	for n := 0; l.pace(); n++ {
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		line := fmt.Sprintf("line %d\n", n)
		_, err := io.WriteString(c, line)
		var got string
		if err == nil {
			got, err = r.ReadString('\n')
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil && got != line {
			err = fmt.Errorf("got %q; want %q", got, line)
		}
		if err != nil {
			l.failed("long connection %s: %w", c.LocalAddr(), err)
			return
		}
		l.requests.Add(1)
	}
}

// ask sends a datagram and waits for its answer, again and again: all must come
// from the same member, through the same flow.
func (l *load) ask(c net.Conn) {
	buf := make([]byte, 1500)
	member := ""
	for n := 0; l.pace(); n++ {
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		question := fmt.Sprintf("q%d", n)
		_, err := io.WriteString(c, question)
		size := 0
		if err == nil {
			size, err = c.Read(buf)
		}
		answer, from, _ := strings.Cut(string(buf[:size]), " ")
		switch {
		case err != nil:
			l.failed("datagram %d from %s: %w", n, c.LocalAddr(), err)
		case answer != question:
			l.failed("datagram %d from %s: got the answer to %s", n, c.LocalAddr(), answer)
		case member != "" && member != from:
			l.failed("flow %s: went from member and port %s to %s", c.LocalAddr(), member, from)
		}
		if err == nil {
			member = from
		}
		l.datagrams.Add(1)
	}
}

// clean fails the test if anything went wrong so far.
func (l *load) clean(when string) {
	l.w.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, err := range l.errs[:min(5, len(l.errs))] {
		l.w.t.Errorf("%s: %v", when, err)
	}
	if n := len(l.errs); n > 5 {
		l.w.t.Errorf("%s: and %d more errors", when, n-5)
	}
	l.errs = nil
}

// hangUp ends the long connections.
func (l *load) hangUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range slices.Clone(l.long) {
		c.Close()
	}
	l.long = nil
}

// end stops all traffic.
func (l *load) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.wg.Wait()
	l.longer.Wait()
	l.hangUp()
}

// more waits until there was more traffic of every kind.
func (l *load) more() {
	l.w.t.Helper()
	l.flows(2 * longConns)
}

// short is more without the long connections.
func (l *load) short() {
	l.w.t.Helper()
	l.flows(0)
}

func (l *load) flows(requests int64) {
	l.w.t.Helper()
	c, r, d := l.connections.Load(), l.requests.Load(), l.datagrams.Load()
	l.w.eventually(10*time.Second, func() error {
		if l.connections.Load() < c+20 || l.requests.Load() < r+requests || l.datagrams.Load() < d+2*udpClients {
			return errors.New("the load does not flow")
		}
		return nil
	})
}
