package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/edge"
	"github.com/eclusa-lb/eclusa/handover"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/rest"
)

// envTaker makes the test binary a process that begins to take over and stops at
// a step.
const envTaker = "ECLUSA_TEST_TAKER"

// takeUntil asks an edge for its place and waits for its end at a step. The value
// is "step directory".
func takeUntil(value string) {
	step, dir, _ := strings.Cut(value, " ")
	reached := func(at string) {
		if at == step {
			fmt.Println("reached")
			select {}
		}
	}
	c, err := handover.Dial(context.Background(), filepath.Join(dir, "state"))
	if err != nil {
		panic(err)
	}
	reached("connected")
	t, err := c.Take(handover.Hello{Edge: "edge-1", Version: "test", Engine: "proxy"})
	if err != nil {
		panic(err)
	}
	reached("estate")
	err = t.Adopt(context.Background(), func(_ context.Context, receive func() ([]byte, []int, error)) error {
		for {
			if _, _, err := receive(); err != nil {
				break
			}
			reached("parcel")
		}
		reached("end")
		return nil
	})
	if err != nil {
		panic(err)
	}
	reached("go")
	panic("no such step: " + step)
}

// upgradable starts an edge under load, whose log goes to a file, with more lines
// of configuration.
func upgradable(t *testing.T, more ...string) (*world, *program, *rest.Client, lb.Epoch, *load) {
	t.Helper()
	w := newWorld(t)
	w.yaml = strings.ReplaceAll(w.yaml, "drainTimeout: 2s", strings.Join(append(more, "drainTimeout: 2s", "upgradeDrainTimeout: 1m"), "\n"))
	path := filepath.Join(w.dir, "log")
	var err error
	w.log, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	w.must(err)
	t.Cleanup(func() {
		w.log.Close()
		text, _ := os.ReadFile(path)
		t.Logf("log of all processes:\n%s", text)
	})
	w.pki()
	for i, a := range []string{"10.0.0.11", "10.0.0.12", "10.0.0.13"} {
		w.node(a, fmt.Sprintf("n%d", i+1))
	}
	w.echoes()
	p := w.start()
	w.ready()
	c := w.client("prod", "prod")
	epoch := w.claim(c, 1)
	w.set(c, epoch, loadService(1))
	w.serves(vip)
	w.status(c, func(s lb.Status) bool { return s.Checks["http:10256/healthz"]["n3"].State.String() == "up" })
	return w, p, c, epoch, w.startLoad()
}

// owner returns the process that serves; it is ended with the test.
func (w *world) owner() int {
	w.t.Helper()
	var pid int
	w.eventually(5*time.Second, func() error {
		c, err := handover.Dial(w.t.Context(), filepath.Join(w.dir, "state"))
		if err != nil {
			return err
		}
		defer c.Close()
		pid = c.PID()
		return nil
	})
	w.t.Cleanup(func() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		w.eventually(5*time.Second, func() error { // or the next test talks to it
			if runs(pid) {
				return fmt.Errorf("process %d still runs", pid)
			}
			return nil
		})
	})
	return pid
}

// runs tells whether a process runs; one that has ended may not be waited for yet.
func runs(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

// logged counts how often the log says something.
func (w *world) logged(text string) int {
	w.t.Helper()
	all, err := os.ReadFile(filepath.Join(w.dir, "log"))
	w.must(err)
	return strings.Count(string(all), text)
}

// Three upgrades in a row, each asked for in another way, lose nothing: no
// connection, no datagram, no flow's member, no right to write.
func TestThreeUpgradesUnderLoad(t *testing.T) {
	w, first, c, epoch, l := upgradable(t)
	pids := []int{first.Process.Pid}
	if got := w.owner(); got != pids[0] {
		t.Fatalf("who serves: got process %d; want %d", got, pids[0])
	}
	for i, upgrade := range []func(){
		func() { w.must(execute("upgrade", "--config", w.config())) },
		func() { w.must(syscall.Kill(pids[1], syscall.SIGUSR2)) },
		func() { w.start() }, // as another pod would
	} {
		start := time.Now()
		upgrade()
		w.eventually(10*time.Second, func() error {
			if pid := w.owner(); pid == pids[i] {
				return fmt.Errorf("process %d serves still", pid)
			}
			return nil
		})
		pids = append(pids, w.owner())
		t.Logf("upgrade %d: process %d serves after %s", i+1, pids[i+1], time.Since(start))
		w.ready()
		l.hold() // for the next process of before to keep
		l.more()
		l.clean(fmt.Sprintf("upgrade %d", i+1))
		// The leader of before need not claim again, and the addresses have stayed.
		w.eventually(5*time.Second, func() error {
			_, err := c.Set(t.Context(), lb.Write{Epoch: epoch, Config: loadService(uint64(i + 2))})
			return err
		})
		w.status(c, func(s lb.Status) bool { return s.Revision == uint64(i+2) && s.LoadBalancers["u1"].Applied })
		w.must(w.addrs("eth0", vip))
	}
	for i, pid := range pids {
		if !runs(pid) {
			t.Errorf("process %d of upgrade %d has ended, with connections of before", pid, i)
		}
	}
	t.Logf("%d connections, %d requests on %d long connections, %d datagrams of %d flows", l.connections.Load(), l.requests.Load(), longConns, l.datagrams.Load(), udpClients)
	// The processes of before end with their last connections.
	l.hangUp()
	w.must(first.wait(t, 10*time.Second))
	for _, pid := range pids[1:3] {
		w.eventually(10*time.Second, func() error {
			if runs(pid) {
				return fmt.Errorf("process %d still runs", pid)
			}
			return nil
		})
	}
	l.short()
	l.clean("after the end of the processes of before")
}

// Whatever becomes of a new process before it serves, the running one serves as if
// nothing had happened, and says what it was.
func TestUpgradesThatFail(t *testing.T) {
	w, p, c, epoch, l := upgradable(t)
	good := w.yaml
	for _, bad := range []struct{ name, from, to, want string }{
		{"wrong configuration", "announce:", "anounce:", "unknown key"},
		{"certificate missing", "edge-1.crt", "missing.crt", "missing.crt: no such file or directory"},
		{"another state directory", "stateDir: DIR/state", "stateDir: DIR/log", "make the state directory"},
		{"another name", "name: edge-1", "name: edge-2", `gives nothing to "edge-2"`},
		{"port in use", "10.0.0.1:7443", "10.0.0.1:7444", "api.listen"},
	} {
		w.yaml = strings.Replace(good, bad.from, bad.to, 1)
		if bad.name == "port in use" {
			w.hold("10.0.0.1:7444")
		}
		w.config()
		before := w.logged("the upgrade came to nothing")
		w.must(p.Process.Signal(syscall.SIGUSR2))
		w.eventually(10*time.Second, func() error {
			if n := w.logged("the upgrade came to nothing"); n == before {
				return errors.New("the upgrade is under way")
			}
			return nil
		})
		if w.logged(bad.want) == 0 {
			t.Errorf("%s: the log does not say %q", bad.name, bad.want)
		}
		if got := w.owner(); got != p.Process.Pid {
			t.Fatalf("%s: process %d serves; want %d", bad.name, got, p.Process.Pid)
		}
	}
	w.yaml = strings.Replace(good, "edge-1.crt", "missing.crt", 1)
	if err := execute("upgrade", "--config", w.config()); err == nil || !strings.Contains(err.Error(), "serves as before") {
		t.Errorf("upgrade that fails: got %v; want an error that says that the edge serves as before", err)
	}
	w.yaml = good
	w.config()
	l.more()
	l.clean("new processes that end early")

	for i, step := range []string{"connected", "estate", "parcel", "end", "go"} {
		w.killTaker(step)
		l.more()
		l.clean("killed after " + step)
		w.eventually(5*time.Second, func() error {
			_, err := c.Set(t.Context(), lb.Write{Epoch: epoch, Config: loadService(uint64(i + 2))})
			return err
		})
	}
	// And then one that does not fail.
	w.must(execute("upgrade", "--config", w.config()))
	if got := w.owner(); got == p.Process.Pid {
		t.Error("the process of before serves after an upgrade")
	}
	l.more()
	l.clean("an upgrade after all")
}

// hold opens a port, as another program would.
func (w *world) hold(addr string) {
	w.t.Helper()
	l, err := net.Listen("tcp", addr)
	w.must(err)
	w.t.Cleanup(func() { l.Close() })
}

// killTaker kills a process that takes over as soon as it has reached a step.
func (w *world) killTaker(step string) {
	w.t.Helper()
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), envTaker+"="+step+" "+w.dir)
	c.Stderr = w.log
	out, err := c.StdoutPipe()
	w.must(err)
	w.must(c.Start())
	line := make([]byte, len("reached\n"))
	_, err = out.Read(line)
	w.must(err)
	w.must(c.Process.Kill())
	_ = c.Wait()
}

// The process of before is needed for its connections only: killed, it takes those
// with it and nothing else.
func TestFormerProcessIsKilled(t *testing.T) {
	w, p, c, epoch, l := upgradable(t)
	w.must(execute("upgrade", "--config", w.config()))
	next := w.owner()
	l.more()
	l.clean("the upgrade")
	l.hangUp()
	w.must(p.Process.Kill())
	_ = p.wait(t, 5*time.Second)
	l.short()
	l.clean("the process of before is killed")
	w.set(c, epoch, loadService(2))
	// The lock is the new one's.
	if err := execute("withdraw", "--config", w.config()); err == nil || !strings.Contains(err.Error(), "another edge uses it") {
		t.Errorf("withdraw while the new process serves: got %v; want a refusal", err)
	}
	// And that one is killed as well: the next start serves from the files.
	w.must(syscall.Kill(next, syscall.SIGKILL))
	w.eventually(5*time.Second, func() error {
		if runs(next) {
			return errors.New("it runs still")
		}
		return nil
	})
	w.start()
	w.eventually(5*time.Second, func() error { _, err := w.get(vip); return err })
}

// A process that drains after an upgrade obeys the signal to stop as ever, and once
// only: systemd sends it twice.
func TestFormerProcessIsAskedToStop(t *testing.T) {
	w, p, _, _, l := upgradable(t)
	w.must(execute("upgrade", "--config", w.config()))
	w.owner()
	start := time.Now()
	w.must(p.Process.Signal(syscall.SIGTERM))
	w.eventually(5*time.Second, func() error {
		if w.logged("asked to stop; open connections may end") == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	// Until the handler of the first one has done its work this proves nothing, so
	// it is sent again and again.
	for range 20 {
		w.must(p.Process.Signal(syscall.SIGTERM))
		time.Sleep(20 * time.Millisecond) // poll
	}
	if err := p.wait(t, 10*time.Second); err != nil || time.Since(start) < time.Second {
		t.Errorf("asked to stop with open connections: got %v after %s; want a clean end after the drain timeout of 2s", err, time.Since(start))
	}
	l.short()
}

// The one that takes over may take as long as a round of work may, and whoever
// starts it waits longer.
func TestPatienceOfHandOvers(t *testing.T) {
	if handover.ServingTimeout < edge.Patience || upgradeTimeout <= handover.ServingTimeout {
		t.Errorf("got %s for the first table and %s for an upgrade; want at least %s, and more", handover.ServingTimeout, upgradeTimeout, edge.Patience)
	}
}

// The first process of a container does not start another one: that would be
// ended with it.
func TestFirstProcessStartsNone(t *testing.T) {
	u := &upgrades{first: true, program: "/bin/false", log: zap.NewNop(), released: make(chan struct{})}
	if o := u.upgrade(t.Context()); !strings.Contains(o.Error, "start a second container") {
		t.Errorf("got %+v; want an error that says what to do instead", o)
	}
}

// A disk that is not well for a while does not end upgrades for good.
func TestUpgradesAreToBeHadAgain(t *testing.T) {
	w, p, _, _, l := upgradable(t)
	l.end()
	state := filepath.Join(w.dir, "state")
	block := filepath.Join(state, "upgrade.sock.new")
	w.must(os.MkdirAll(filepath.Join(block, "x"), 0o700)) // no new socket can be made there
	fail := func() {
		t.Helper()
		c, err := handover.Dial(t.Context(), state)
		w.must(err)
		defer c.Close() // the new process ends
		_, err = c.Take(handover.Hello{Edge: "edge-1", Version: "test", Engine: "proxy"})
		w.must(err)
	}
	fail()
	w.eventually(10*time.Second, func() error {
		if w.logged("upgrades of the running edge are not possible") == 0 {
			return errors.New("the socket was not opened again yet")
		}
		return nil
	})
	fail() // the old socket is listened to meanwhile
	w.must(os.RemoveAll(block))
	w.eventually(10*time.Second, func() error {
		if w.logged("upgrades of the running edge are possible again") == 0 {
			return errors.New("the socket was not opened again yet")
		}
		return nil
	})
	w.must(execute("upgrade", "--config", w.config()))
	if got := w.owner(); got == p.Process.Pid {
		t.Error("the process of before serves after an upgrade")
	}
}
