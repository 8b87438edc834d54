package main

import (
	"bytes"
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
	"go.uber.org/zap/zaptest/observer"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// kernelWorld brings up nodes and an edge with the engine "nftables".
func kernelWorld(t *testing.T) (*world, *program, lb.Balancer, lb.Epoch) {
	t.Helper()
	w := newWorld(t)
	w.yaml += "engine: nftables\nnftables: {sourceAddresses: [10.0.0.64/30]}\n"
	w.onEdge("10.0.0.64/32", "10.0.0.65/32", "10.0.0.66/32", "10.0.0.67/32")
	w.pki()
	for i, a := range []string{"10.0.0.11", "10.0.0.12", "10.0.0.13"} {
		w.node(a, fmt.Sprintf("n%d", i+1))
	}
	p := w.start()
	t.Cleanup(func() {
		_ = p.Process.Kill()
		<-p.ended
		if err := execute("--cleanup", "--config", w.config()); err != nil {
			t.Error(err)
		}
	})
	w.ready()
	c := w.client("prod", "prod")
	epoch := w.claim(c, 1)
	w.set(c, epoch, service(1))
	w.serves(vip)
	return w, p, c, epoch
}

// onEdge adds addresses to the edge's machine.
func (w *world) onEdge(addrs ...string) {
	w.t.Helper()
	w.up("eth0", addrs...)
}

// TestKernelServesOn: traffic goes on while the program is stopped, and the next
// one takes over; --cleanup ends it.
func TestKernelServesOn(t *testing.T) {
	w, p, c, epoch := kernelWorld(t)
	if err := execute("--cleanup", "--config", w.config()); err == nil || !strings.Contains(err.Error(), "another edge uses it") {
		t.Errorf("--cleanup while the edge runs: got %v; want a refusal", err)
	}
	w.must(p.Process.Signal(syscall.SIGTERM))
	w.must(p.wait(t, 5*time.Second))
	w.serves(vip)

	second := w.start()
	w.ready()
	w.serves(vip)
	w.set(c, epoch, service(2))
	w.must(second.Process.Signal(syscall.SIGTERM))
	w.must(second.wait(t, 5*time.Second))

	w.must(execute("--cleanup", "--config", w.config()))
	if page, err := w.get(vip); err == nil {
		t.Errorf("after --cleanup: got an answer of %q; want none", page)
	}
	if err := w.addrs("eth0", vip); err == nil {
		t.Error("the address is still there after --cleanup")
	}
	tables, err := exec.CommandContext(t.Context(), "nft", "list", "tables").CombinedOutput()
	if err != nil || strings.Contains(string(tables), "eclusa") {
		t.Errorf("tables after --cleanup: got %q, %v; want none of eclusa", tables, err)
	}
}

// TestKernelDeadNode: a node that dies without a word gets no connection once the
// checks have noticed.
func TestKernelDeadNode(t *testing.T) {
	w, _, c, _ := kernelWorld(t)
	w.inNodes(func() { w.unaddress("eth1", "10.0.0.12/24") })
	w.status(c, func(s lb.Status) bool { return s.Checks["http:10256/healthz"]["n2"].State == healthcheck.Down })
	w.eventually(2*time.Second, func() error {
		for range 20 {
			page, err := w.get(vip)
			if err != nil {
				return err
			}
			if page == "n2" {
				return errors.New("the dead node has answered")
			}
		}
		return nil
	})
}

// TestKernelUpgrade: a second process takes over while connections are served.
func TestKernelUpgrade(t *testing.T) {
	w, first, c, epoch := kernelWorld(t)
	second := w.start()
	w.must(first.wait(t, 10*time.Second))
	w.serves(vip)
	w.set(c, epoch, service(2))
	w.must(second.Process.Signal(syscall.SIGTERM))
	w.must(second.wait(t, 5*time.Second))
}

// engine changes the configured engine.
func (w *world) engine(from, to string) {
	w.yaml = strings.Replace(w.yaml, "engine: "+from+"\n", "engine: "+to+"\n", 1)
}

// TestProxyAfterKernel: with another engine the program serves in place of the
// kernel, of which nothing is left, and connections through that are reset.
func TestProxyAfterKernel(t *testing.T) {
	w, p, _, _ := kernelWorld(t)
	open := w.open(vip)
	w.must(p.Process.Signal(syscall.SIGTERM))
	w.must(p.wait(t, 5*time.Second))
	w.engine(engineNftables, engineProxy)
	var out bytes.Buffer
	c, err := readConfig(w.config())
	w.must(err)
	if err := checkEngine(&out, c); err != nil || !strings.Contains(out.String(), "The kernel still serves") {
		t.Errorf("--check-engine: got %v and %s; want told that the kernel still serves", err, out.String())
	}
	if !noted(c) {
		t.Error("the state directory does not say that the kernel serves")
	}

	second := w.start()
	w.ready()
	w.replaced(c, open)
	w.must(second.Process.Signal(syscall.SIGTERM))
	w.must(second.wait(t, 5*time.Second))
}

// TestProxyReplacesKernel: a process with the other engine takes over from one that
// runs; who comes meanwhile is served.
func TestProxyReplacesKernel(t *testing.T) {
	w, p, c, epoch := kernelWorld(t)
	open := w.open(vip)
	w.engine(engineNftables, engineProxy)
	second := w.start()
	for serving := true; serving; {
		w.serves(vip)
		select {
		case <-p.ended:
			w.must(p.err)
			serving = false
		default:
		}
	}
	config, err := readConfig(w.config())
	w.must(err)
	w.replaced(config, open)
	w.set(c, epoch, service(2))
	w.serves(vip)
	// There is no way back while it runs.
	w.engine(engineProxy, engineNftables)
	third := w.start()
	if err := third.wait(t, 5*time.Second); err == nil {
		t.Error("a process with the engine nftables has taken over from one with the proxy; want it refused")
	}
	w.serves(vip)
	w.must(second.Process.Signal(syscall.SIGTERM))
	w.must(second.wait(t, 5*time.Second))
}

// open opens a connection that waits.
func (w *world) open(addr string) net.Conn {
	w.t.Helper()
	var c net.Conn
	var err error
	w.inNodes(func() { c, err = net.DialTimeout("tcp", addr, 2*time.Second) })
	w.must(err)
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// replaced checks that the program serves in place of the kernel, through which a
// connection was open.
func (w *world) replaced(c Config, open net.Conn) {
	w.t.Helper()
	w.serves(vip)
	w.must(open.SetReadDeadline(time.Now().Add(5 * time.Second)))
	if _, err := open.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		w.t.Errorf("a connection through the kernel: got %v; want a reset", err)
	}
	tables, err := exec.CommandContext(w.t.Context(), "nft", "list", "tables").CombinedOutput()
	if err != nil || strings.Contains(string(tables), "eclusa") {
		w.t.Errorf("tables beside the engine proxy: got %q, %v; want none of eclusa", tables, err)
	}
	if noted(c) {
		w.t.Error("the state directory says that the kernel serves still")
	}
}

// TestKernelCannotBeReplaced: who may not end what the kernel does does not start
// beside it, and "auto" does not choose another engine then. Both name what helps.
func TestKernelCannotBeReplaced(t *testing.T) {
	w, p, _, _ := kernelWorld(t)
	w.must(p.Process.Signal(syscall.SIGTERM))
	w.must(p.wait(t, 5*time.Second))
	self, err := os.Executable()
	w.must(err)
	before := engineNftables
	for _, c := range []struct {
		engine, without string
		want            []string
	}{
		{engineProxy, "-net_admin,-net_raw", []string{"--cleanup", "CAP_NET_ADMIN", filepath.Join(w.dir, "state", "kernel")}},
		{engineProxy, "-net_raw", []string{"--cleanup", "CAP_NET_RAW"}},
		{engineAuto, "-net_raw", []string{"--cleanup", "cannot work here any more", "CAP_NET_RAW"}},
		{engineAuto, "-net_admin", []string{"--cleanup", "cannot work here any more", "CAP_NET_ADMIN"}},
	} {
		w.engine(before, c.engine)
		before = c.engine
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		cmd := exec.CommandContext(ctx, "setpriv", "--bounding-set="+c.without, self, "--config", w.config())
		cmd.Env = append(os.Environ(), envProgram+"=1")
		out, err := cmd.CombinedOutput()
		cancel()
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != exitFailed {
			t.Errorf("engine %s without %s: got %v; want exit code %d", c.engine, c.without, err, exitFailed)
		}
		for _, s := range c.want {
			if !strings.Contains(string(out), s) {
				t.Errorf("engine %s without %s: got\n%s\nwant %q in it", c.engine, c.without, out, s)
			}
		}
		w.serves(vip)
	}
	config, err := readConfig(w.config())
	w.must(err)
	w.must(execute("--cleanup", "--config", w.config()))
	if noted(config) {
		t.Error("after --cleanup the state directory says that the kernel serves")
	}
}

func TestCheckEngine(t *testing.T) {
	if os.Getenv(envIsolated) == "" || os.Getuid() != 0 {
		lbtest.Lacking(t, "a network namespace is needed")
	}
	c := DefaultConfig()
	for engine, want := range map[string]string{engineProxy: "needs nothing", engineNftables: "ok        nftables: the kernel takes tables", engineAuto: "engine auto: would choose nftables"} {
		c.Engine = engine
		var out bytes.Buffer
		if err := checkEngine(&out, c); err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("--check-engine with engine %s: got %v and\n%s\nwant %q in it", engine, err, out.String(), want)
		}
	}
}

// TestCheckEngineWithoutRights: the check names what is missing, fails if the engine
// was asked for, and says what "auto" would choose.
func TestCheckEngineWithoutRights(t *testing.T) {
	w := newWorld(t)
	w.pki()
	self, err := os.Executable()
	w.must(err)
	for engine, want := range map[string][]string{
		engineNftables: {"missing   nftables: ", "CAP_NET_ADMIN", "CAP_NET_RAW", `the engine "nftables" cannot work here`},
		engineAuto:     {"missing   nftables: ", "CAP_NET_ADMIN", "engine auto: would choose proxy"},
	} {
		yaml := w.yaml
		w.yaml += "engine: " + engine + "\n"
		cmd := exec.CommandContext(t.Context(), "setpriv", "--bounding-set=-all", self, "--check-engine", "--config", w.config())
		w.yaml = yaml
		cmd.Env = append(os.Environ(), envProgram+"=1")
		out, err := cmd.CombinedOutput()
		if (err != nil) != (engine == engineNftables) {
			t.Errorf("--check-engine with engine %s: got %v; want an error of nftables only", engine, err)
		}
		for _, s := range want {
			if !strings.Contains(string(out), s) {
				t.Errorf("--check-engine with engine %s: got\n%s\nwant %q in it", engine, out, s)
			}
		}
	}
}

func TestChooseEngine(t *testing.T) {
	if os.Getenv(envIsolated) == "" || os.Getuid() != 0 {
		lbtest.Lacking(t, "a network namespace is needed")
	}
	logs, seen := observer.New(zap.InfoLevel)
	c := DefaultConfig()
	c.Engine = engineAuto
	c, err := chooseEngine(c, zap.New(logs))
	if err != nil || c.Engine != engineNftables {
		t.Errorf("auto with every right: got %s, %v; want nftables", c.Engine, err)
	}
	if entries := seen.All(); len(entries) != 1 || entries[0].ContextMap()["reason"] == "" {
		t.Errorf("log of the choice: got %v; want one line that says why", entries)
	}
	c.Engine = engineProxy
	if c, err = chooseEngine(c, zap.NewNop()); err != nil || c.Engine != engineProxy {
		t.Errorf("proxy: got %s, %v; want it left alone", c.Engine, err)
	}
}
