package proxy

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// stall opens a connection whose member sends size bytes that nobody reads, and
// returns when everything between the two is full.
func stall(t *testing.T, p *place, size int64) net.Conn {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(p.backends()[0].Addr, 31080).String())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		// Much at once: a member that makes its bytes slower than they are passed on
		// is no bulk.
		w := bufio.NewWriterSize(c, 4<<20)
		_, _ = io.Copy(struct{ io.Writer }{w}, io.LimitReader(rand.NewChaCha8([32]byte{1}), size))
		_ = w.Flush()
		c.Close()
	})
	t.Cleanup(func() { p.shut(); l.Close(); wg.Wait() })
	c, err := p.dial()
	if err != nil {
		t.Fatal(err)
	}
	last, same := uint64(0), 0
	eventually(t, "the flow has stopped", func() bool {
		if m := p.counters().Members; len(m) > 0 && m[0].BytesOut > 0 {
			if same++; m[0].BytesOut != last {
				same = 0
			}
			last = m[0].BytesOut
		}
		return same >= 20
	})
	return c
}

// TestStalledCopy stalls a flow that must copy, since there are no descriptors for
// pipes: what was read and not taken is kept, and nothing is read beyond it.
func TestStalledCopy(t *testing.T) {
	const size = 16 << 20
	p := newPlace(t, Options{Loops: 1}, lb.TCP, 1)
	p.engine.files.limit = 3
	p.set()
	c := stall(t, p, size)
	want, got := sha256.New(), sha256.New()
	_, _ = io.CopyN(want, rand.NewChaCha8([32]byte{1}), size)
	// Slowly at first, so that the rest goes out in pieces.
	for range 50 {
		if _, err := io.CopyN(got, c, 10000); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Millisecond)
	}
	if _, err := io.Copy(got, c); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		t.Error("the client got other bytes than the member sent")
	}
	if pipes := len(p.engine.loops[0].pipes); pipes != 0 {
		t.Errorf("pipes: got %d; want none without descriptors", pipes)
	}
}

// TestStalledSpliceIsCut ends a connection while bytes are in its pipe: the pipe
// must not be used again.
func TestStalledSpliceIsCut(t *testing.T) {
	p := newPlace(t, Options{Loops: 1}, lb.TCP, 1)
	p.set()
	c := stall(t, p, 1<<40)
	if used := p.engine.files.used.Load(); used != 5 {
		t.Errorf("descriptors: got %d; want 5 with a listener, a connection and a pipe", used)
	}
	for id, g := range p.table.Groups {
		b := g.Backends[0]
		b.State = lb.Dead
		p.table.Groups[id] = lb.Group{Backends: []lb.Backend{b}}
	}
	p.set()
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client of a dead member: got %v; want a reset", err)
	}
	if used := p.engine.files.used.Load(); used != 1 {
		t.Errorf("descriptors after the cut: got %d; want the listener's", used)
	}
}

// TestSpliceIsUsedAndGivesItsPipeBack: a bulk flow goes through a pipe, and holds
// none while it waits.
func TestSpliceIsUsedAndGivesItsPipeBack(t *testing.T) {
	p := newPlace(t, Options{Loops: 1}, lb.TCP, 1)
	p.set()
	p.echo(0)
	c, err := p.dial()
	if err != nil {
		t.Fatal(err)
	}
	block := bytes.Repeat([]byte("0123456789abcdef"), 1<<19)
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = c.Write(block) })
	got := make([]byte, len(block))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, block) {
		t.Fatalf("echo of %d bytes: %v; want the same bytes", len(block), err)
	}
	wg.Wait()
	idle := make(chan int)
	p.engine.loops[0].post(func(l *loop) { idle <- len(l.pipes) })
	if got := <-idle; got == 0 {
		t.Error("idle pipes after a bulk transfer: got none; want at least one that was used")
	}
	if err := again(c, "small again"); err != nil {
		t.Error(err)
	}
}

// TestDeadWhileDialling: a connection that waits for a member's answer goes on to
// another one as soon as the member is known to be dead.
func TestDeadWhileDialling(t *testing.T) {
	p := newPlace(t, Options{DialTimeout: time.Minute, DialBudget: time.Minute}, lb.TCP, 2)
	lbtest.Loopback().Silence(t, netip.AddrPortFrom(p.backends()[0].Addr, 31080))
	p.echo(1)
	both := p.backends()
	group := p.table.Routes[p.front].Group
	p.table.Groups[group] = lb.Group{Backends: both[:1]}
	p.set()
	c, err := p.dial()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is dialling", func() bool { return p.counters().Active == 1 })
	next := append([]lb.Backend(nil), both...)
	next[0].State = lb.Dead
	p.table.Groups[group] = lb.Group{Backends: next}
	p.set()
	if err := again(c, "hello"); err != nil {
		t.Error(err)
	}
	for _, m := range p.counters().Members {
		if m.DialErrors != 0 {
			t.Errorf("dial errors of %s: got %d; want none, since nobody waited long enough", m.Node, m.DialErrors)
		}
	}
}

// TestBurstToRefusingMember: of datagrams that come together the first tells that
// the member's port is closed, and the others reach another member.
func TestBurstToRefusingMember(t *testing.T) {
	p := newPlace(t, Options{Loops: 1}, lb.UDP, 2)
	p.set()
	p.echo(1)
	refused := false
	for range 2 { // one of two clients gets the member that refuses
		c, err := p.dial()
		if err != nil {
			t.Fatal(err)
		}
		gate := make(chan struct{})
		p.engine.loops[0].post(func(*loop) { <-gate })
		for range 3 {
			if _, err := c.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
		}
		close(gate)
		got := 0
		for b := make([]byte, 10); got < 2; got++ {
			if _, err := c.Read(b); err != nil {
				t.Fatalf("answers to a burst of three: got %d, then %v; want two at least", got, err)
			}
		}
	}
	for _, m := range p.counters().Members {
		refused = refused || m.DialErrors > 0
	}
	if !refused {
		t.Error("dial errors: got none; want those of the member that refuses")
	}
}

// TestUDPAtTheLimitOfTheEngine: a new client makes the frontend's oldest session
// go when the engine has no room.
func TestUDPAtTheLimitOfTheEngine(t *testing.T) {
	p := newPlace(t, Options{MaxConnections: 3}, lb.UDP, 1)
	p.set()
	p.echo(0)
	testEviction(t, p)
}

// TestUDPDialFails: a member that cannot even be connected to is passed over.
func TestUDPDialFails(t *testing.T) {
	var bad string
	p := newPlace(t, Options{Control: func(_, address string, _ syscall.RawConn) error {
		if address == bad {
			return unix.EHOSTUNREACH
		}
		return nil
	}}, lb.UDP, 2)
	bad = netip.AddrPortFrom(p.backends()[0].Addr, 31080).String()
	p.set()
	p.echo(1)
	for range 4 {
		if _, err := p.ask("hello"); err != nil {
			t.Error(err)
		}
	}
	if got := p.counters().Accepted; got != 4 {
		t.Errorf("sessions: got %d; want 4", got)
	}
}
