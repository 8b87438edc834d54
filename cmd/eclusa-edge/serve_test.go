package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/rest"
)

const vip = "10.0.0.129:80"

// started brings up nodes and an edge that serves the load balancer of service.
func started(t *testing.T) (*world, *program, *rest.Client, lb.Epoch) {
	t.Helper()
	w := newWorld(t)
	w.pki()
	for i, a := range []string{"10.0.0.11", "10.0.0.12", "10.0.0.13"} {
		w.node(a, fmt.Sprintf("n%d", i+1))
	}
	p := w.start()
	w.ready()
	c := w.client("prod", "prod")
	epoch := w.claim(c, 1)
	w.set(c, epoch, service(1))
	w.serves(vip)
	return w, p, c, epoch
}

func (w *world) set(c lb.Balancer, epoch lb.Epoch, config lb.Config) {
	w.t.Helper()
	if _, err := c.Set(w.t.Context(), lb.Write{Epoch: epoch, Config: config}); err != nil {
		w.t.Fatal(err)
	}
}

// serves waits until all three nodes have answered through the load balancer.
func (w *world) serves(addr string) time.Duration {
	w.t.Helper()
	seen := make(map[string]bool)
	return w.eventually(5*time.Second, func() error {
		page, err := w.get(addr)
		if err != nil {
			return err
		}
		if seen[page] = true; len(seen) < 3 {
			return fmt.Errorf("only %v have answered", seen)
		}
		return nil
	})
}

func TestFirstSignalDrains(t *testing.T) {
	w, p, _, _ := started(t)
	var conn net.Conn
	var err error
	w.inNodes(func() { conn, err = net.Dial("tcp", vip) })
	w.must(err)
	defer conn.Close()
	w.must(w.halfRequest(conn))
	w.must(p.Process.Signal(syscall.SIGTERM))
	w.eventually(time.Second, func() error {
		if _, err := w.get(vip); err == nil {
			return errors.New("new connections are still taken")
		}
		return nil
	})
	// What was under way is answered, and the program ends with it.
	if _, err := io.WriteString(conn, "\r\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.Contains(string(answer), "200 OK") {
		t.Errorf("the connection from before: got %q, %v; want its answer", answer, err)
	}
	if err := p.wait(t, 5*time.Second); err != nil {
		t.Errorf("after the first signal: %v; want a clean end", err)
	}
}

// halfRequest sends all of a request but its last line.
func (w *world) halfRequest(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	_, err := io.WriteString(conn, "GET / HTTP/1.0\r\n")
	return err
}

func TestDrainEndsAndSecondSignalKills(t *testing.T) {
	w, p, _, _ := started(t)
	hang := func() net.Conn {
		var conn net.Conn
		var err error
		w.inNodes(func() { conn, err = net.Dial("tcp", vip) })
		w.must(err)
		w.must(w.halfRequest(conn))
		return conn
	}
	conn := hang()
	defer conn.Close()
	start := time.Now()
	w.must(p.Process.Signal(os.Interrupt))
	if err := p.wait(t, 10*time.Second); err != nil || time.Since(start) < 2*time.Second {
		t.Errorf("with a connection that goes on: got %v after %s; want a clean end after the drain timeout of 2s", err, time.Since(start))
	}

	p = w.start()
	w.ready()
	w.serves(vip)
	conn = hang()
	defer conn.Close()
	w.must(p.Process.Signal(os.Interrupt))
	w.eventually(time.Second, func() error {
		if _, err := w.get(vip); err == nil {
			return errors.New("new connections are still taken")
		}
		return nil
	})
	start = time.Now()
	w.must(p.Process.Signal(os.Interrupt))
	if err := p.wait(t, 5*time.Second); err == nil || time.Since(start) > time.Second {
		t.Errorf("second signal: got %v after %s; want the program killed at once", err, time.Since(start))
	}
}

// A killed edge serves again within one second, before anyone has talked to it.
func TestServesFromItsOwnState(t *testing.T) {
	w, p, c, epoch := started(t)
	w.must(p.Process.Kill())
	if err := p.wait(t, 5*time.Second); err == nil {
		t.Error("killed: got a clean end")
	}
	start := time.Now()
	p = w.start()
	w.eventually(5*time.Second, func() error { _, err := w.get(vip); return err })
	took := time.Since(start)
	t.Logf("served %s after the start of the process", took)
	if took > time.Second {
		t.Errorf("served %s after the start; want at most 1s", took)
	}
	// The leader of before need not claim again.
	w.set(c, epoch, service(2))

	// With its state deleted the edge says so, by an epoch that is stale.
	w.must(p.Process.Kill())
	_ = p.wait(t, 5*time.Second)
	w.must(os.RemoveAll(filepath.Join(w.dir, "state")))
	w.start()
	w.ready()
	if _, err := c.Set(t.Context(), lb.Write{Epoch: epoch, Config: service(3)}); !errors.Is(err, lb.ErrStaleEpoch) {
		t.Errorf("after the loss of the state: got %v; want ErrStaleEpoch", err)
	}
	w.set(c, w.claim(c, 1), service(3))
	w.serves(vip)
}

// A node that dies without a word costs no new connection.
func TestDeadNode(t *testing.T) {
	w, _, c, epoch := started(t)
	w.inNodes(func() { w.unaddress("eth1", "10.0.0.12/24") })
	start := time.Now()
	for time.Since(start) < 4*time.Second {
		page, err := w.get(vip)
		if err != nil {
			t.Fatalf("%s after the death of a node: %v", time.Since(start), err)
		}
		if page == "n2" {
			t.Fatal("the dead node has answered")
		}
	}
	w.status(c, func(s lb.Status) bool { return s.Checks["http:10256/healthz"]["n2"].Dead })
	w.set(c, epoch, service(2)) // and the API goes on working
}

// Addresses stay after the end of the program, until they are withdrawn.
func TestWithdraw(t *testing.T) {
	w, p, _, _ := started(t)
	w.must(w.addrs("eth0", vip))
	if err := execute("withdraw", "--config", w.config()); err == nil || !strings.Contains(err.Error(), "another edge uses it") {
		t.Errorf("while the edge runs: got %v; want a refusal", err)
	}
	w.must(p.Process.Signal(os.Interrupt))
	w.must(p.wait(t, 5*time.Second))
	w.must(w.addrs("eth0", vip))
	w.must(execute("withdraw", "--config", w.config()))
	if err := w.addrs("eth0", vip); err == nil {
		t.Error("the address is still there after withdraw")
	}
}

// addrs returns an error unless the interface has the address of addrPort.
func (w *world) addrs(name, addrPort string) error {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	addrs, err := i.Addrs()
	if err != nil {
		return err
	}
	want, _, _ := net.SplitHostPort(addrPort)
	for _, a := range addrs {
		if strings.HasPrefix(a.String(), want+"/") {
			return nil
		}
	}
	return fmt.Errorf("%s has not %s but %v", name, want, addrs)
}

func TestUDP(t *testing.T) {
	w, _, c, epoch := started(t)
	var echo net.PacketConn
	var err error
	w.inNodes(func() { echo, err = net.ListenPacket("udp", "10.0.0.11:30053") })
	w.must(err)
	defer echo.Close()
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := echo.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = echo.WriteTo(append([]byte("echo "), buf[:n]...), from)
		}
	}()
	config := service(2, func(l *lb.LoadBalancer) {
		l.Listeners = append(l.Listeners, lb.Listener{Protocol: lb.UDP, Port: 53, TargetPort: 30053})
		l.Members = map[lb.NodeName]lb.Member{"n1": {}}
	})
	w.set(c, epoch, config)
	var conn net.Conn
	w.inNodes(func() { conn, err = net.Dial("udp", "10.0.0.129:53") })
	w.must(err)
	defer conn.Close()
	buf := make([]byte, 1500)
	w.eventually(5*time.Second, func() error {
		if err := conn.SetDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			return err
		}
		if _, err := conn.Write([]byte("hello")); err != nil {
			return err
		}
		n, err := conn.Read(buf)
		if err == nil && string(buf[:n]) != "echo hello" {
			err = fmt.Errorf("answer %q", buf[:n])
		}
		return err
	})
}

// A renewed certificate is used without a restart, and one of a new CA too.
func TestCertificatesAreReadAgain(t *testing.T) {
	w, _, c, epoch := started(t)
	old := w.client("prod", "prod")
	for _, args := range [][]string{
		{"pki", "init", "--dir", w.dir, "--force", "--name", "second"},
		{"pki", "edge", "--dir", w.dir, "--name", "edge-1", "--host", edgeAddr, "--force"},
		{"pki", "cluster", "--dir", w.dir, "--name", "prod", "--force"},
	} {
		w.must(execute(args...))
	}
	c.Close()
	renewed := w.client("prod", "prod")
	w.eventually(5*time.Second, func() error {
		_, err := renewed.Set(t.Context(), lb.Write{Epoch: epoch, Config: service(2)})
		return err
	})
	if _, err := old.Info(t.Context()); err == nil {
		t.Error("a certificate of the former CA is still accepted")
	}
	// Files that cannot be used leave what is in use alone.
	w.must(os.WriteFile(filepath.Join(w.dir, "edge-1.crt"), []byte("rubbish"), 0o600))
	for start := time.Now(); time.Since(start) < lookInterval+200*time.Millisecond; {
		if _, err := renewed.Info(t.Context()); err != nil {
			t.Fatalf("with a rubbish certificate in the file: %v", err)
		}
		renewed.Close()                   // the next call needs a handshake
		time.Sleep(20 * time.Millisecond) // poll
	}
}
