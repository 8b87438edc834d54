package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/eclusa-lb/eclusa/lab"
)

var proxyEntries = append(append(
	both(entry{section: "The client's address", name: "PROXY protocol v1 and v2 to HAProxy"}, haproxy),
	both(entry{section: "The client's address", name: "PROXY protocol v1 and v2 to nginx"}, nginx)...),
	entry{section: "The client's address", name: "probes do not speak PROXY protocol", run: silentProbes},
	entry{section: "The client's address", name: "PROXY protocol over UDP is refused", run: proxyOverUDP},
	entry{section: "ipMode", name: "is true and pods come through the edge", run: ipMode},
)

// What the receivers answer: who the client is, and what it has connected to.
const (
	haproxyConfig = `defaults
  mode http
  timeout client 5s
  timeout server 5s
  timeout connect 5s
frontend proxied
  bind :::%[1]d v4v6 accept-proxy
  http-request return status 200 content-type text/plain lf-string "%%[src]:%%[src_port] to %%[dst]:%%[dst_port]\n"
frontend plain
  bind :::%[2]d v4v6
  http-request return status 200 content-type text/plain lf-string "plain\n"
`
	nginxConfig = `daemon off;
master_process off;
error_log stderr;
pid %[3]s/nginx.pid;
events {}
http {
  access_log off;
  client_body_temp_path %[3]s; proxy_temp_path %[3]s; fastcgi_temp_path %[3]s; uwsgi_temp_path %[3]s; scgi_temp_path %[3]s;
  server {
    listen [::]:%[1]d ipv6only=off proxy_protocol;
    return 200 "$proxy_protocol_addr:$proxy_protocol_port to $proxy_protocol_server_addr:$proxy_protocol_server_port\n";
  }
  server {
    listen [::]:%[2]d ipv6only=off;
    return 200 "plain\n";
  }
}
`
)

func haproxy(t *testing.T, s *stage, from caller) {
	receivers(t, s, from, haproxyConfig, "haproxy", "-db", "-f")
}

func nginx(t *testing.T, s *stage, from caller) {
	receivers(t, s, from, nginxConfig, "nginx", "-c")
}

// receivers runs the program on the network of a node, since it is in no image of
// the lab, and wants it to be told who the client is: per port, in both families
// and versions, and nothing on the port where it is off.
func receivers(t *testing.T, s *stage, from caller, config string, program ...string) {
	needProgram(t, program[0])
	proxied, plain := nextPorts(), nextPorts()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "config")
	if err := os.WriteFile(file, fmt.Appendf(nil, config, proxied, plain, dir), 0o644); err != nil {
		t.Fatal(err)
	}
	node := s.Nodes[0]
	s.runOn(t, node, append(program, file)...)

	o := s.standIn(t, "", node, proxied,
		ports("one 80/TCP 80", "two 81/TCP 81", fmt.Sprintf("off 82/TCP %d", plain)), annotated("proxy-protocol", "one=v1,81=v2"))
	for _, a := range o.addrs {
		for _, port := range []uint16{80, 81} {
			at := netip.AddrPortFrom(a, port)
			told(t, from, at)
		}
		eventually(t, 10*time.Second, func() error {
			text, err := from.get(t.Context(), netip.AddrPortFrom(a, 82))
			if err == nil && text != "plain\n" {
				err = fmt.Errorf("port 82 of %s answers %q", a, text)
			}
			return err
		})
	}
}

// told wants the receiver to know the client's address and port, and those that it
// connected to.
func told(t *testing.T, from caller, at netip.AddrPort) {
	t.Helper()
	var conn net.Conn
	var answer string
	eventually(t, 15*time.Second, func() (err error) {
		if conn, err = from.dial(t.Context(), "tcp", at); err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return err
		}
		if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
			return err
		}
		all, err := io.ReadAll(conn)
		_, answer, _ = strings.Cut(string(all), "\r\n\r\n")
		if err == nil && answer == "" {
			err = fmt.Errorf("no answer from %s", at)
		}
		return err
	})
	me := conn.LocalAddr().(*net.TCPAddr).AddrPort()
	plain := func(a netip.AddrPort) string { return fmt.Sprintf("%s:%d", a.Addr(), a.Port()) }
	if want := plain(me) + " to " + plain(at) + "\n"; answer != want {
		t.Errorf("%s: the receiver was told %q, want %q", at, answer, want)
	}
}

// runOn runs a program on the node until the test ends, and shows what it says if
// that failed.
func (s *stage) runOn(t *testing.T, node *lab.Node, argv ...string) {
	t.Helper()
	var out bytes.Buffer
	cmd := node.Command(cleanup(t), argv...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s says:\n%s", argv[0], out.String())
		}
	})
}

// receiverPorts counts the ports that stand-ins listen on, so that entries do not
// meet on a node.
var receiverPorts struct {
	sync.Mutex
	last uint16
}

func nextPorts() uint16 {
	receiverPorts.Lock()
	defer receiverPorts.Unlock()
	receiverPorts.last++
	return 9100 + receiverPorts.last
}

// needProgram skips the test without the program, but in CI fails it.
func needProgram(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err == nil {
		return
	}
	if _, err := os.Stat("/usr/sbin/" + name); err == nil {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("needs %s: run make tools", name)
	}
	t.Skipf("needs %s: run make tools", name)
}

// silentProbes listens itself where the edge probes and where it connects, and
// looks at what comes.
func silentProbes(t *testing.T, s *stage) {
	node, port := s.Nodes[1], nextPorts()
	listener, err := node.Listen(t.Context(), "tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		t.Fatal(err)
	}
	came := make(chan string, 1000)
	go record(listener, came)
	t.Cleanup(func() { listener.Close() })
	o := s.standIn(t, "", node, port, annotated("proxy-protocol", "v2", "health-check-protocol", "tcp", "health-check-interval", "200ms", "health-check-timeout", "200ms"))
	eventually(t, 15*time.Second, func() error {
		conn, err := fromOutside.of(s).dial(t.Context(), "tcp", o.at(80))
		if err == nil {
			_, err = io.WriteString(conn, "hello")
			conn.Close()
		}
		return err
	})
	const signature = "\r\n\r\n\x00\r\nQUIT\n"
	probes, clients := 0, 0
	for deadline := time.After(15 * time.Second); probes < 5 || clients < 1; {
		select {
		case text := <-came:
			switch {
			case text == "":
				probes++
			case strings.HasPrefix(text, signature) && strings.HasSuffix(text, "hello"):
				clients++
			default:
				t.Fatalf("somebody sent %q, want nothing from a probe, and the header and hello from the client", text)
			}
		case <-deadline:
			t.Fatalf("%d probes and %d clients came, want five and one", probes, clients)
		}
	}
}

// record tells what each connection sends.
func record(l net.Listener, came chan<- string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			data, _ := io.ReadAll(conn)
			came <- string(data)
		}()
	}
}

func proxyOverUDP(t *testing.T, s *stage) {
	o := s.serve(t, "", ports("web 80/TCP http", "dns 53/UDP udp-echo"), annotated("proxy-protocol", "dns=v2"))
	o.warns(t, "eclusa.io/proxy-protocol", "dns", "TCP")
	fromOutside.of(s).answers(t, "tcp", o.at(80))
	fromOutside.of(s).answers(t, "udp", o.at(53))
}

// With ipMode VIP, kube-proxy would send a pod's connection past the edge, without
// the header that HAProxy waits for.
func ipMode(t *testing.T, s *stage) {
	o := s.serve(t, "", dualStack)
	for _, in := range o.get(t).Status.LoadBalancer.Ingress {
		if in.IPMode == nil || *in.IPMode != corev1.LoadBalancerIPModeProxy {
			t.Errorf("ipMode of %s is %v, want Proxy: connections end at the edge", in.IP, in.IPMode)
		}
	}
	for _, a := range o.addrs {
		before := o.metric(t, "eclusa_edge_connections_total", "load_balancer", o.ns+"/"+o.name)
		got := fromPod.of(s).answers(t, "tcp", netip.AddrPortFrom(a, 80))
		if client, err := netip.ParseAddrPort(got.client); err != nil || client.Addr() == s.inside.Addr4 || client.Addr() == s.inside.Addr6 {
			t.Errorf("%s: the pod sees the other pod itself, %s; it did not come through the edge", a, got.client)
		}
		if now := o.metric(t, "eclusa_edge_connections_total", "load_balancer", o.ns+"/"+o.name); now <= before {
			t.Errorf("%s: the edge has counted no connection of the pod: %v, before %v", a, now, before)
		}
	}
}
