package nftables

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// cutConnections is how many connections the member that dies has. The target is
// told for 1,000, which ECLUSA_CUT_CONNECTIONS=1000 makes.
func cutConnections(t testing.TB) int {
	n, err := strconv.Atoi(os.Getenv("ECLUSA_CUT_CONNECTIONS"))
	if err != nil {
		return 100
	}
	t.Logf("%d connections", n)
	return n
}

// TestCuts checks when connections that were cut have their turn.
func TestCuts(t *testing.T) {
	start := time.Now()
	var q cuts[int]
	for n := range 5 {
		q.add(cut[int]{what: n, at: start})
	}
	q.add(cut[int]{what: 5, at: start, tries: len(provokeAfter)}) // of another process, and done
	due := func(after time.Duration, most int) (which []int) {
		for _, c := range q.due(start.Add(after), most) {
			which = append(which, c.what)
		}
		return which
	}
	for _, c := range []struct {
		after time.Duration
		most  int
		want  []int
	}{
		{0, 3, []int{0, 1, 2}},
		{0, 3, []int{3, 4}},
		{0, 3, nil},
		{time.Second, 4, []int{0, 1, 2, 3}},
		{time.Second, 4, []int{4}},
		{time.Second, 4, nil},
		{3 * time.Second, 5, []int{0, 1, 2, 3, 4}},
		{3 * time.Second, 5, nil},
	} {
		if got := due(c.after, c.most); !slices.Equal(got, c.want) {
			t.Errorf("after %s, at most %d: got %v; want %v", c.after, c.most, got, c.want)
		}
	}
	if !q.empty() || len(q.all()) > 0 {
		t.Errorf("got %v left; want none", q.all())
	}
}

// cutHangsNobody: when a member dies silently every one of its clients is reset,
// also those that wait for an answer and send nothing, with sockets in TIME_WAIT on
// the node.
func cutHangsNobody(b *bench) {
	b.cut()
}

// cutWithKeptSources: likewise where members see the clients' addresses.
func cutWithKeptSources(b *bench) {
	b.begin(Options{KeepSources: true})
	b.from = b.net.Client(b.family) // members know the way to such
	b.cut()
}

// cutBesideClusterProxy: likewise where the settings of the kernel are not the
// engine's to change.
func cutBesideClusterProxy(b *bench) {
	for _, s := range settings {
		if s.without == nil {
			was := s.read()
			b.Cleanup(func() { _ = os.WriteFile(s.path(), []byte(was.have), 0o644) })
			if err := os.WriteFile(s.path(), []byte(map[string]string{"0": "1", "1": "0"}[s.want]), 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(clusterProxyPort)))
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	b.begin(Options{})
	b.cut()
	for _, s := range settings {
		if s.without == nil && s.read().right() {
			b.Errorf("setting %s beside kube-proxy: is %s; want it left alone", s.dotted(), s.want)
		}
	}
}

// cut lets a member with many connections die, and a few clients come all the
// while, as the edge lets them.
func (b *bench) cut() {
	connections := cutConnections(b)
	m, other := b.member(), b.member()
	f := b.add(lb.TCP, m, other)
	b.set()
	for range 2 * connections {
		c, _ := b.dial(f)
		_, _ = io.WriteString(c, "quit\n")
		_, _ = io.Copy(io.Discard, c)
		_ = c.Close()
	}
	// All of them go to the member that is about to die.
	b.state(f, 1, lb.Draining)
	b.set()
	var waiting []net.Conn
	for i := range connections {
		c, _ := b.dial(f)
		if i%2 == 0 {
			if _, err := io.WriteString(c, "wait\n"); err != nil {
				b.Fatal(err)
			}
		}
		waiting = append(waiting, c)
	}
	b.state(f, 1, lb.Active)
	b.set()
	b.net.Silence(b, netip.AddrPortFrom(m, targetPort))

	start := time.Now()
	b.state(f, 0, lb.Dead)
	b.set()
	set := time.Since(start)
	failed := b.newcomers(f, 200)
	hung, last := b.allReset(waiting, start)
	b.Logf("%d connections: Set in %s, the last one reset %s after it began, %d hung; of 200 that came then %d failed", connections, set, last, hung, failed)
	if hung > 0 {
		b.Errorf("connections of the dead member: %d of %d not reset within %s", hung, connections, cutWithin)
	}
	if failed > 0 {
		b.Errorf("new connections after the detection: %d of 200 failed; want none", failed)
	}
}

// cutWithin is when every connection must have been reset. It allows for one packet
// lost.
const cutWithin = 3 * time.Second

// allReset waits until all connections are reset.
func (b *bench) allReset(waiting []net.Conn, start time.Time) (hung int, last time.Duration) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, c := range waiting {
		wg.Go(func() {
			_ = c.SetReadDeadline(start.Add(cutWithin))
			_, err := c.Read(make([]byte, 1))
			took := time.Since(start)
			mu.Lock()
			defer mu.Unlock()
			last = max(last, took)
			if !isReset(err) {
				hung++
			}
		})
	}
	wg.Wait()
	return hung, last
}

// newcomers lets new clients come, and returns how many are not served.
func (b *bench) newcomers(f lb.Frontend, n int) (failed int) {
	for range n {
		ctx, cancel := context.WithTimeout(b.Context(), time.Second)
		c, err := b.net.Dial(ctx, b.from, f)
		cancel()
		if err == nil {
			_ = c.SetDeadline(time.Now().Add(time.Second))
			_, err = io.ReadFull(c, make([]byte, 1))
			_ = c.Close()
		}
		if err != nil {
			if failed++; failed <= 3 {
				b.Logf("newcomer: %v", err)
			}
		}
	}
	return failed
}

// cutLosesOneSYN: a client whose SYN went to the dead member just before it was
// known to be dead is served when it sends it again.
func cutLosesOneSYN(b *bench) {
	const clients = 20
	m, other := b.member(), b.member()
	f := b.add(lb.TCP, m, other)
	b.state(f, 1, lb.Draining)
	b.set()
	b.net.Silence(b, netip.AddrPortFrom(m, targetPort))
	b.state(f, 1, lb.Active)
	var wg sync.WaitGroup
	took := make([]time.Duration, clients)
	errs := make([]error, clients)
	for i := range clients {
		wg.Go(func() {
			start := time.Now()
			var c net.Conn
			if c, errs[i] = b.net.Dial(b.Context(), netip.Addr{}, f); errs[i] == nil {
				took[i] = time.Since(start)
				_ = c.Close()
			}
		})
	}
	half := func() (n int) {
		_ = b.engine.tracking.flows(func(w *flow) {
			if w.state == tcpSynSent {
				n++
			}
		})
		return n
	}
	b.eventually("all have sent their SYN", func() bool {
		b.engine.mu.Lock()
		defer b.engine.mu.Unlock()
		return half() == clients
	})
	b.state(f, 0, lb.Dead)
	b.set()
	wg.Wait()
	for i := range clients {
		// The kernel sends a SYN again after a second.
		if errs[i] != nil || took[i] > 1900*time.Millisecond {
			b.Errorf("client %d whose first SYN was lost: got %v after %s; want it served by its second", i, errs[i], took[i])
		}
	}
	if err := errors.Join(errs...); err != nil {
		b.Fatal(err)
	}
}
