package handover

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// fakeGiver notes what becomes of it.
type fakeGiver struct {
	mu       sync.Mutex
	steps    []string
	pauseErr error
	parcels  int
	lock     *os.File
}

func (g *fakeGiver) note(step string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.steps = append(g.steps, step)
}

func (g *fakeGiver) did() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return strings.Join(g.steps, " ")
}

func (g *fakeGiver) Pause(context.Context) (Estate, []int, error) {
	g.note("pause")
	return Estate{Version: "v1", Files: []string{"lock"}, Digests: map[string]string{"prod": "d"}}, []int{int(g.lock.Fd())}, g.pauseErr
}

func (g *fakeGiver) HandOver(_ context.Context, send func([]byte, []int) error) error {
	g.note("handover")
	for range g.parcels {
		if err := send([]byte("parcel"), []int{int(g.lock.Fd()), int(g.lock.Fd())}); err != nil {
			return err
		}
	}
	return nil
}

func (g *fakeGiver) Resume()     { g.note("resume") }
func (g *fakeGiver) Release(int) { g.note("release") }

// meeting is a giver that listens.
type meeting struct {
	t     *testing.T
	dir   string
	giver *fakeGiver
	given chan error
	meets func(*Conn) // called with the giver's end first, unless it is nil
}

func meet(t *testing.T) *meeting {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("a-long-name-", 10)) // longer than the address of a socket
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Create(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	m := &meeting{t: t, dir: dir, giver: &fakeGiver{lock: lock, parcels: 3}, given: make(chan error, 1)}
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		l.Serve(t.Context(), func(ctx context.Context, c *Conn, _ Hello) {
			if m.meets != nil {
				m.meets(c)
			}
			m.given <- c.Give(ctx, m.giver)
		}, func(err error) { m.given <- err })
	})
	t.Cleanup(func() { l.Close(); wg.Wait(); lock.Close() })
	return m
}

func (m *meeting) dial() *Conn {
	m.t.Helper()
	c, err := Dial(m.t.Context(), m.dir)
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

// take takes everything that comes and counts it.
func take(n *int) func(context.Context, func() ([]byte, []int, error)) error {
	return func(_ context.Context, receive func() ([]byte, []int, error)) error {
		for {
			data, files, err := receive()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			closeAll(files)
			if string(data) != "parcel" || len(files) != 2 {
				return errors.New("not what was sent")
			}
			*n++
		}
	}
}

func TestHandOver(t *testing.T) {
	m := meet(t)
	c := m.dial()
	taker, err := c.Take(Hello{Edge: "edge-1"})
	if err != nil {
		t.Fatal(err)
	}
	lock := taker.File("lock")
	if lock == nil || taker.Version != "v1" || taker.Digests["prod"] != "d" || taker.PID() != os.Getpid() {
		t.Errorf("estate: got %+v from process %d, lock %v; want the giver's", taker.Estate, taker.PID(), lock)
	}
	a, _ := lock.Stat()
	if b, _ := m.giver.lock.Stat(); !os.SameFile(a, b) {
		t.Error("the lock is another file")
	}
	lock.Close()
	n := 0
	if err := taker.Adopt(t.Context(), take(&n)); err != nil || n != 3 {
		t.Fatalf("Adopt: got %d parcels, %v; want 3", n, err)
	}
	if got := m.giver.did(); got != "pause handover" {
		t.Errorf("after go: the giver did %q; want it to wait", got)
	}
	if err := taker.Serving(); err != nil {
		t.Error(err)
	}
	if err := <-m.given; err != nil || m.giver.did() != "pause handover release" {
		t.Errorf("the giver did %q, %v; want it released", m.giver.did(), err)
	}
	if info, err := os.Stat(filepath.Join(m.dir, socketName)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: got mode %v, %v; want 0600", info.Mode(), err)
	}
}

// A taker that ends at any step leaves the giver as the one that serves.
func TestTakerEnds(t *testing.T) {
	unwilling := errors.New("no memory")
	for _, c := range []struct {
		name string
		take func(*Conn) error // ends the connection, or has it ended
		want string            // what the giver did
		why  string
	}{
		{"after the estate", func(c *Conn) error {
			_, err := c.Take(Hello{})
			return err
		}, "pause resume", "EOF"},
		{"with a reason", func(c *Conn) error {
			taker, err := c.Take(Hello{})
			if err == nil {
				taker.Fail(unwilling)
			}
			return err
		}, "pause resume", "no memory"},
		{"between parcels", func(c *Conn) error {
			taker, err := c.Take(Hello{})
			if err != nil {
				return err
			}
			err = taker.Adopt(context.Background(), func(_ context.Context, receive func() ([]byte, []int, error)) error {
				_, files, err := receive()
				closeAll(files)
				return errors.Join(err, unwilling)
			})
			taker.Fail(err)
			return nil
		}, "pause handover resume", "no memory"},
		{"after go", func(c *Conn) error {
			taker, err := c.Take(Hello{})
			if err != nil {
				return err
			}
			n := 0
			return taker.Adopt(context.Background(), take(&n))
		}, "pause handover resume", "ended before it served"},
		{"after go with a reason", func(c *Conn) error {
			taker, err := c.Take(Hello{})
			if err != nil {
				return err
			}
			n := 0
			err = taker.Adopt(context.Background(), take(&n))
			taker.Fail(unwilling)
			return err
		}, "pause handover resume", "no memory"},
		{"without sense", func(c *Conn) error {
			if _, err := c.Take(Hello{}); err != nil {
				return err
			}
			return c.send(message{kind: kindServing})
		}, "pause resume", `got "serving"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := meet(t)
			conn := m.dial()
			if err := c.take(conn); err != nil {
				t.Fatal(err)
			}
			conn.Close()
			err := <-m.given
			if err == nil || !strings.Contains(err.Error(), c.why) {
				t.Errorf("got %v; want an error with %q", err, c.why)
			}
			if got := m.giver.did(); got != c.want {
				t.Errorf("the giver did %q; want %q", got, c.want)
			}
		})
	}
}

// A taker that cannot be killed and comes to serve after all, however late, is the
// only one that serves.
func TestTakerServesLate(t *testing.T) {
	m := meet(t)
	overdue := make(chan struct{})
	m.meets = func(c *Conn) {
		c.peer.close()
		c.peer = peer{fd: -1} // as one in another namespace of processes
		c.patience = 20 * time.Millisecond
		time.AfterFunc(10*c.patience, func() { close(overdue) })
	}
	taker, err := m.dial().Take(Hello{})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := taker.Adopt(t.Context(), take(&n)); err != nil {
		t.Fatal(err)
	}
	<-overdue
	if got := m.giver.did(); got != "pause handover" {
		t.Errorf("while it may still come to serve: the giver did %q; want it to wait", got)
	}
	if err := taker.Serving(); err != nil {
		t.Error(err)
	}
	if err := <-m.given; err != nil || m.giver.did() != "pause handover release" {
		t.Errorf("the giver did %q, %v; want it released", m.giver.did(), err)
	}
}

// One that was killed does not serve, whatever it has sent before that.
func TestTakerIsKilledLate(t *testing.T) {
	m := meet(t)
	victim := exec.Command("sleep", "1000")
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	m.meets = func(c *Conn) {
		c.peer.close()
		c.peer = peer{pid: victim.Process.Pid}
		if err := c.peer.open(); err != nil {
			t.Error(err)
		}
		c.patience = 20 * time.Millisecond
	}
	taker, err := m.dial().Take(Hello{})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := taker.Adopt(t.Context(), take(&n)); err != nil {
		t.Fatal(err)
	}
	if err := victim.Wait(); err == nil {
		t.Error("a taker that hangs was not killed")
	}
	_ = taker.Serving()
	if err := <-m.given; err == nil || !strings.Contains(err.Error(), "was killed") || m.giver.did() != "pause handover resume" {
		t.Errorf("the giver did %q, %v; want it to go on", m.giver.did(), err)
	}
}

// What the giver refuses reaches the taker with its reason.
func TestGiverRefuses(t *testing.T) {
	m := meet(t)
	m.giver.pauseErr = errors.New("the disk is full")
	_, err := m.dial().Take(Hello{})
	if refused, ok := errors.AsType[*RefusedError](err); !ok || refused.Reason != "the disk is full" {
		t.Errorf("got %v; want the giver's reason", err)
	}
	<-m.given
	if got := m.giver.did(); got != "pause" {
		t.Errorf("the giver did %q; want no more than pause", got)
	}
	c := m.dial()
	if err := c.sendJSON(kindHello, Hello{Protocols: []int{98, 99}, Version: "v9"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.expect(kindEstate); err == nil || !strings.Contains(err.Error(), `version "v9" speaks the hand-over protocols [98 99], and the running edge [1]`) {
		t.Errorf("an unknown protocol: got %v; want both versions named", err)
	}
	<-m.given
}

// A giver that ends in the middle is known to the taker.
func TestGiverEnds(t *testing.T) {
	m := meet(t)
	taker, err := m.dial().Take(Hello{})
	if err != nil {
		t.Fatal(err)
	}
	err = taker.Adopt(t.Context(), func(_ context.Context, receive func() ([]byte, []int, error)) error {
		_, files, err := receive()
		closeAll(files)
		if err != nil {
			return err
		}
		_ = taker.conn.unix.CloseRead() // as if the other one were gone
		for err == nil {
			_, files, err = receive()
			closeAll(files)
		}
		return err
	})
	if err == nil || errors.Is(err, io.EOF) {
		t.Errorf("got %v; want an error that is no regular end", err)
	}
	taker.conn.Close()
	<-m.given
}

// A process that hangs can be killed.
func TestKill(t *testing.T) {
	c := exec.Command("sleep", "1000")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	p := peer{pid: c.Process.Pid, fd: -1}
	if err := p.kill(); err == nil {
		t.Error("a process that cannot be reached was killed")
	}
	if err := p.open(); err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if err := p.kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err == nil {
		t.Error("the process ended by itself; want it killed")
	}
}

func TestDialNobody(t *testing.T) {
	dir := t.TempDir()
	if _, err := Dial(t.Context(), dir); !errors.Is(err, ErrNobody) {
		t.Errorf("got %v; want ErrNobody", err)
	}
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := Dial(t.Context(), dir); !errors.Is(err, ErrNobody) {
		t.Errorf("a socket that nobody listens on: got %v; want ErrNobody", err)
	}
}

// Root talks to an edge that runs as the owner of its state directory, and to no
// other user's.
func TestRootDials(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	const owner, stranger = 65533, 65534
	for _, c := range []struct {
		name   string
		server int
		ok     bool
	}{
		{"the owner", owner, true},
		{"somebody else", stranger, false},
	} {
		dir := t.TempDir()
		if err := errors.Join(os.Chown(dir, owner, -1), os.Chmod(dir, 0o777)); err != nil {
			t.Fatal(err)
		}
		for d := filepath.Dir(dir); d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
			if err := os.Chmod(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		l := listenAs(t, dir, c.server)
		served := make(chan struct{})
		go func() {
			defer close(served)
			l.Serve(t.Context(), func(_ context.Context, c *Conn, h Hello) { _ = c.Tell(Outcome{PID: 1, Version: h.Version}) }, func(error) {})
		}()
		conn, err := Dial(t.Context(), dir)
		if (err == nil) != c.ok {
			t.Errorf("%s: got %v; want success: %v", c.name, err, c.ok)
		}
		if err == nil {
			if o, err := conn.AskUpgrade(t.Context(), Hello{Version: "v2"}); err != nil || o.Version != "v2" {
				t.Errorf("%s: got %+v, %v; want an answer", c.name, o, err)
			}
			conn.Close()
		}
		l.Close()
		<-served
	}
}

// listenAs returns a listener that belongs to another user.
func listenAs(t *testing.T, dir string, uid int) *Listener {
	t.Helper()
	type result struct {
		l   *Listener
		err error
	}
	made := make(chan result)
	go func() {
		// The thread ends with the goroutine, and with it that it is another user's.
		runtime.LockOSThread()
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			made <- result{nil, errno}
			return
		}
		l, err := Listen(dir)
		made <- result{l, err}
	}()
	r := <-made
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.l
}
