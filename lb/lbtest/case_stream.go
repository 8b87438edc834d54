package lbtest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// raw opens a connection to a service whose member does not greet.
func (r *rig) raw(s *service) *net.TCPConn {
	r.Helper()
	c, err := r.net.Dial(r.context(), netip.Addr{}, s.Frontend)
	if err != nil {
		r.Fatalf("connect to %s: %v", s.Frontend, err)
	}
	r.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(2 * patience))
	return c.(*net.TCPConn)
}

// halfClose: each side can end its direction and go on receiving.
func halfClose(r *rig) {
	s := r.service(r.members(1, func(m *node, c net.Conn) {
		mode := make([]byte, 1)
		if _, err := io.ReadFull(c, mode); err != nil {
			return
		}
		if mode[0] == 'l' { // ends last
			b, _ := io.ReadAll(c)
			fmt.Fprintf(c, "got %d bytes", len(b))
			return
		}
		_, _ = io.WriteString(c, "from the member")
		_ = c.(*net.TCPConn).CloseWrite()
		b, _ := io.ReadAll(c)
		m.seen <- string(b)
	})...)
	r.set()
	c := r.raw(s)
	_, _ = io.WriteString(c, "f")
	if b, err := io.ReadAll(c); err != nil || string(b) != "from the member" {
		r.Fatalf("read to the end: got %q, %v; want what the member sent", b, err)
	}
	for range 3 { // each in its own segment
		if _, err := io.WriteString(c, "after the end "); err != nil {
			r.Fatal(err)
		}
	}
	_ = c.CloseWrite()
	r.saw("after the end after the end after the end ")

	c = r.raw(s)
	_, _ = io.WriteString(c, "l")
	_, _ = c.Write(make([]byte, 100_000))
	_ = c.CloseWrite()
	if b, err := io.ReadAll(c); err != nil || string(b) != "got 100000 bytes" {
		r.Errorf("answer after the client's end: got %q, %v; want 100000 bytes counted", b, err)
	}
}

// saw waits for a report of the first member of the case.
func (r *rig) saw(want string) {
	r.Helper()
	select {
	case got := <-r.started[0].seen:
		if got != want {
			r.Errorf("the member saw %q; want %q", got, want)
		}
	case <-time.After(patience):
		r.Errorf("the member saw nothing within %s; want %q", patience, want)
	}
}

// largeTransfers sends much in both directions at once and compares sums.
func largeTransfers(r *rig) {
	const size = 48 << 20
	sums := make(chan [sha256.Size]byte, 1)
	s := r.service(r.members(1, func(_ *node, c net.Conn) {
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _ = io.Copy(struct{ io.Writer }{c}, io.LimitReader(rand.NewChaCha8([32]byte{2}), size))
			_ = c.(*net.TCPConn).CloseWrite()
		})
		sums <- sum(c)
		wg.Wait()
	})...)
	r.set()
	c := r.raw(s)
	_ = c.SetDeadline(time.Now().Add(6 * patience))
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if _, err := io.Copy(struct{ io.Writer }{c}, io.LimitReader(rand.NewChaCha8([32]byte{1}), size)); err != nil {
			r.Errorf("send: %v", err)
		}
		_ = c.CloseWrite()
	})
	want := func(seed byte) [sha256.Size]byte {
		return sum(io.LimitReader(rand.NewChaCha8([32]byte{seed}), size))
	}
	if sum(c) != want(2) {
		r.Errorf("the client received other bytes than the member sent")
	}
	if <-sums != want(1) {
		r.Errorf("the member received other bytes than the client sent")
	}
}

func sum(from io.Reader) [sha256.Size]byte {
	h := sha256.New()
	_, _ = io.Copy(h, from)
	return [sha256.Size]byte(h.Sum(nil))
}

// slowReader stalls a reader so that everything between is full, and then reads
// everything; another connection is not held up meanwhile.
func slowReader(r *rig) {
	const size = 24 << 20
	s := r.service(r.members(1, func(_ *node, c net.Conn) {
		b := make([]byte, 1)
		if _, err := io.ReadFull(c, b); err != nil || b[0] == 'e' {
			_, _ = io.WriteString(c, "echo")
			return
		}
		_, _ = io.Copy(struct{ io.Writer }{c}, io.LimitReader(rand.NewChaCha8([32]byte{3}), size))
	})...)
	r.set()
	slow := r.raw(s)
	_ = slow.SetReadBuffer(64 << 10)
	_, _ = slow.Write([]byte("s"))
	full := func() uint64 {
		if m := r.counters(s).Members; len(m) > 0 {
			return m[0].BytesOut
		}
		return 0
	}
	last := uint64(0)
	r.eventually("the slow reader has stopped the flow", func() bool {
		pause(20 * time.Millisecond)
		now := full()
		stopped := now > 0 && now == last
		last = now
		return stopped
	})
	for range 5 {
		c := r.raw(s)
		_, _ = c.Write([]byte("e"))
		if b, err := io.ReadAll(c); err != nil || string(b) != "echo" {
			r.Errorf("beside a slow reader: got %q, %v; want an answer", b, err)
		}
	}
	if sum(slow) != sum(io.LimitReader(rand.NewChaCha8([32]byte{3}), size)) {
		r.Errorf("the slow reader received other bytes than the member sent")
	}
}

// manySmall opens many short connections with payloads of all kinds of sizes.
func manySmall(r *rig) {
	s := r.service(r.members(min(2, r.net.Addresses(r.family)), func(_ *node, c net.Conn) {
		_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
	})...)
	r.set()
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(w)))
			for i := range 100 {
				if err := r.echoOnce(s, rnd); err != nil {
					r.Errorf("worker %d, connection %d: %v", w, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func (r *rig) echoOnce(s *service, rnd *rand.Rand) error {
	conn, err := r.net.Dial(r.context(), netip.Addr{}, s.Frontend)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	sent := make([]byte, 1<<rnd.IntN(18)+rnd.IntN(100))
	for i := range sent {
		sent[i] = byte(rnd.Uint32())
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		_, _ = conn.Write(sent)
		_ = conn.(*net.TCPConn).CloseWrite()
	})
	got, err := io.ReadAll(conn)
	if err == nil && !bytes.Equal(got, sent) {
		err = fmt.Errorf("got %d bytes back; want the %d that were sent", len(got), len(sent))
	}
	return err
}

// resetPasses: a reset of one side reaches the other as a reset.
func resetPasses(r *rig) {
	s := r.service(r.members(1, func(m *node, c net.Conn) {
		b := make([]byte, 1)
		if _, err := io.ReadFull(c, b); err == nil && b[0] == 'r' {
			_ = c.(*net.TCPConn).SetLinger(0)
			return
		}
		m.seen <- "a byte"
		_, err := c.Read(b)
		m.seen <- fmt.Sprint(errors.Is(err, syscall.ECONNRESET))
		if errors.Is(err, io.EOF) {
			<-r.done // stays open, silently
		}
	})...)
	r.set()
	c := r.raw(s)
	_, _ = c.Write([]byte("r"))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		r.Errorf("after the member's reset: got %v; want a reset", err)
	}
	c = r.raw(s)
	_, _ = c.Write([]byte("x"))
	r.saw("a byte")
	_ = c.SetLinger(0)
	c.Close()
	r.saw("true")

	// The client has ended its direction, so only the reset itself tells that it is
	// gone: nobody reads from it any more, and nobody writes.
	c = r.raw(s)
	_, _ = c.Write([]byte("x"))
	_ = c.CloseWrite()
	r.saw("a byte")
	r.saw("false")
	_ = c.SetLinger(0)
	c.Close()
	r.eventually("nothing is left of the connections", func() bool { return r.counters(s).Active == 0 })
}

// idleTimeoutTCP: a connection goes on while something moves in either direction,
// and is ended after nothing has.
func idleTimeoutTCP(r *rig) {
	s := r.service(r.members(1, greet)...)
	s.route.IdleTimeout = soon
	r.set()
	c := r.connect(s)
	for start := time.Now(); time.Since(start) < 3*soon; {
		c.mustAsk("it is not idle")
		pause(soon / 8)
	}
	start := time.Now()
	_ = c.ended()
	if took := time.Since(start); took < soon/2 || took > soon+3*time.Second*raceFactor {
		r.Errorf("ended after %s; want about the idle timeout, %s", took, soon)
	}
}
