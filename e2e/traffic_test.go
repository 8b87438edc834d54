package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lab"
)

// An answer is what the workload says of itself and of its client.
type answer struct{ pod, node, client string }

var hello = regexp.MustCompile(`^hello from (\S+) on (\S+), you are (\S+)\n$`)

// get fetches the workload's greeting through a connection of its own, as a
// client outside does. It gives up after two seconds.
func get(ctx context.Context, from *lab.Host, at netip.AddrPort) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at.String()+"/", nil)
	if err != nil {
		return answer{}, err
	}
	resp, err := from.HTTPClient().Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return answer{}, err
	}
	m := hello.FindStringSubmatch(string(body))
	if m == nil {
		return answer{}, fmt.Errorf("status %s, body %q is no greeting", resp.Status, body)
	}
	return answer{pod: m[1], node: m[2], client: m[3]}, nil
}

// answers waits until the address answers, and returns who did.
func answers(t *testing.T, from *lab.Host, at netip.AddrPort) answer {
	t.Helper()
	var a answer
	eventually(t, 15*time.Second, func() (err error) {
		a, err = get(t.Context(), from, at)
		return err
	})
	return a
}

// askUDP sends one datagram and returns the answer.
func askUDP(ctx context.Context, from *lab.Host, at netip.AddrPort, payload string) (string, error) {
	conn, err := from.DialContext(ctx, "udp", at.String())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return "", err
	}
	if _, err := conn.Write([]byte(payload)); err != nil {
		return "", err
	}
	buf := make([]byte, 2048)
	n, err := conn.Read(buf)
	return string(buf[:n]), err
}

// A load is a steady stream of new connections from outside, each with one
// request.
type load struct {
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu       sync.Mutex
	started  time.Time
	latency  []time.Duration
	slowest  time.Time // when the slowest was begun
	failures []failure
	nodes    map[string]int
}

// A failure is a request of a load that got no answer.
type failure struct {
	begun time.Time
	text  string
}

// startLoad opens perSecond new connections a second until stop is called.
func startLoad(ctx context.Context, from *lab.Host, at netip.AddrPort, perSecond int) *load {
	ctx, cancel := context.WithCancel(ctx)
	l := &load{cancel: cancel, started: time.Now(), nodes: make(map[string]int)}
	l.done.Add(1)
	go l.run(ctx, from, at, perSecond)
	return l
}

func (l *load) run(ctx context.Context, from *lab.Host, at netip.AddrPort, perSecond int) {
	defer l.done.Done()
	tick := time.NewTicker(time.Second / time.Duration(perSecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.done.Add(1)
			go l.once(from, at)
		}
	}
}

// once is not ended by stop: what was begun has to come to its end.
func (l *load) once(from *lab.Host, at netip.AddrPort) {
	defer l.done.Done()
	begun := time.Now()
	a, err := get(context.Background(), from, at)
	took := time.Since(begun)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		text := fmt.Sprintf("begun at %.3fs, after %.3fs: %v", begun.Sub(l.started).Seconds(), took.Seconds(), err)
		l.failures = append(l.failures, failure{begun, text})
		return
	}
	l.nodes[a.node]++
	if took > worst(l.latency) {
		l.slowest = begun
	}
	l.latency = append(l.latency, took)
}

// made is how many requests have come to their end so far.
func (l *load) made() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.latency) + len(l.failures)
}

// end ends the load and waits for the requests under way.
func (l *load) end() {
	l.cancel()
	l.done.Wait()
}

// stop ends the load, waits for the requests under way, and fails the test if
// any failed.
func (l *load) stop(t *testing.T) {
	t.Helper()
	l.end()
	if len(l.latency)+len(l.failures) == 0 {
		t.Error("the load made no request")
		return
	}
	t.Logf("load: %d requests in %.1f s answered by %v, %d failed, median %s, worst %s, begun after %.1f s", len(l.latency)+len(l.failures),
		time.Since(l.started).Seconds(), l.nodes, len(l.failures), median(l.latency).Round(100*time.Microsecond), worst(l.latency).Round(100*time.Microsecond),
		l.slowest.Sub(l.started).Seconds())
	for i, f := range l.failures {
		if i == 10 {
			t.Errorf("... and %d failures more", len(l.failures)-i)
			break
		}
		t.Errorf("request %s", f.text)
	}
}

// fewFailed fails the test if more than one in a thousand requests failed, of a load
// that has ended.
func (l *load) fewFailed(t *testing.T) {
	t.Helper()
	all, failed := len(l.latency)+len(l.failures), len(l.failures)
	for _, f := range l.failures {
		t.Logf("failed: %s", f.text)
	}
	if all == 0 || failed*1000 > all {
		t.Errorf("%d of %d connections failed, want 0.1 %% at most", failed, all)
	}
}

// A talk is one long connection to the echo port, with a word every 50 ms.
type talk struct {
	conn net.Conn
	pod  string
	done chan error
	stop context.CancelFunc
}

// startTalk connects and begins to talk.
func startTalk(t *testing.T, from *lab.Host, at netip.AddrPort) *talk {
	t.Helper()
	return caller{host: from}.talk(t, at)
}

func (c caller) talk(t *testing.T, at netip.AddrPort) *talk {
	t.Helper()
	conn, r, pod := c.quiet(t, at)
	ctx, cancel := context.WithCancel(context.Background())
	k := &talk{conn: conn, pod: pod, done: make(chan error, 1), stop: cancel}
	go k.run(ctx, r)
	t.Cleanup(func() { cancel(); conn.Close() })
	return k
}

// quiet connects to the echo port, is greeted by a pod, and says nothing.
func (c caller) quiet(t *testing.T, at netip.AddrPort) (conn net.Conn, r *bufio.Reader, pod string) {
	t.Helper()
	eventually(t, 15*time.Second, func() (err error) {
		if conn, err = c.dial(t.Context(), "tcp", at); err != nil {
			return err
		}
		if err := conn.SetDeadline(time.Now().Add(15 * time.Second)); err != nil {
			return err
		}
		r = bufio.NewReader(conn)
		if pod, err = r.ReadString('\n'); err != nil {
			conn.Close()
		}
		return err
	})
	t.Cleanup(func() { conn.Close() })
	return conn, r, strings.TrimSpace(pod)
}

func (k *talk) run(ctx context.Context, r *bufio.Reader) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			k.done <- nil
			return
		case <-tick.C:
		}
		if err := k.say(r, fmt.Sprintf("word %d\n", i)); err != nil {
			k.done <- fmt.Errorf("word %d: %w", i, err)
			return
		}
	}
}

func (k *talk) say(r *bufio.Reader, word string) error {
	if err := k.conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(k.conn, word); err != nil {
		return err
	}
	echo, err := r.ReadString('\n')
	if err == nil && echo != word {
		err = fmt.Errorf("sent %q, got %q", word, echo)
	}
	return err
}

// end ends the talk and returns what broke it before, if anything did.
func (k *talk) end() error {
	k.stop()
	err := <-k.done
	k.conn.Close()
	return err
}

// excuse forgets the failures of requests that were begun before the moment: a
// connection that is open to a node when it dies may break with it.
func (l *load) excuse(t *testing.T, before time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.failures)
	l.failures = slices.DeleteFunc(l.failures, func(f failure) bool { return f.begun.Before(before) })
	t.Logf("%d requests were open to the node when it died", n-len(l.failures))
}

func median(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(d))
	return s[len(s)/2]
}

func worst(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	return slices.Max(d)
}
