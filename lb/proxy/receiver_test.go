package proxy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

const nginxStream = "/usr/lib/nginx/modules/ngx_stream_module.so"

// A receiver is a real program that takes the PROXY protocol and tells what it saw.
type receiver struct {
	name    string
	needs   []string // files or commands, of the Debian packages of .ci/tools
	config  string   // with two addresses to listen on
	command func(config, dir string) []string
	// request is what a client says first; without it the receiver speaks first.
	request string
}

var receivers = []receiver{
	{
		name: "haproxy", needs: []string{"haproxy"},
		config: `
defaults
  mode http
  timeout connect 5s
  timeout client 5s
  timeout server 5s
frontend f
  bind %s accept-proxy
  bind %s accept-proxy
  http-request return status 200 content-type text/plain lf-string "saw %%[src] %%[src_port] %%[dst] %%[dst_port]\n"
`,
		command: func(config, _ string) []string { return []string{"haproxy", "-db", "-f", config} },
		request: "GET / HTTP/1.0\r\n\r\n",
	},
	{
		name: "nginx", needs: []string{"nginx", nginxStream},
		config: `
load_module ` + nginxStream + `;
daemon off;
master_process off;
pid nginx.pid;
error_log stderr;
events {}
stream {
  server {
    listen %s proxy_protocol;
    listen %s proxy_protocol;
    return "saw $proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port\n";
  }
}
`,
		command: func(config, dir string) []string {
			return []string{"nginx", "-p", dir, "-c", config, "-e", "stderr"}
		},
	},
}

// TestRealReceivers: HAProxy and nginx learn the client's address and port, and
// the frontend's, over all pairs of families and both versions; from HAProxy
// clients speak first, nginx speaks first itself.
func TestRealReceivers(t *testing.T) {
	for _, r := range receivers {
		t.Run(r.name, func(t *testing.T) {
			r.require(t)
			p := newPlace(t, Options{}, lb.TCP, 1)
			base := p.table.Routes[p.front]
			v4, v6 := p.backends()[0].Addr, netip.IPv6Loopback()
			at4, at6 := netip.AddrPortFrom(v4, 31080), freePort(t, v6)
			group6 := lb.GroupID{Name: "g6", Family: lb.IPv6}
			p.table.Groups[group6] = lb.Group{Backends: []lb.Backend{{Node: "n6", Addr: v6, Weight: 1}}}
			delete(p.table.Routes, p.front)
			for i, version := range []lb.ProxyProtocol{lb.ProxyV1, lb.ProxyV2} {
				for j, front := range []netip.Addr{p.front.Addr, v6} {
					for k, at := range []netip.AddrPort{at4, at6} {
						f := lb.Frontend{Addr: front, Port: 20000 + uint16(os.Getpid()%1000)*20 + uint16(i*4+j*2+k), Protocol: lb.TCP}
						route := base
						route.ProxyProtocol, route.TargetPort = version, at.Port()
						if at == at6 {
							route.Group = group6
						}
						p.table.Routes[f] = route
					}
				}
			}
			r.start(t, at4, at6)
			p.set()
			for f, route := range p.table.Routes {
				r.check(t, f, route)
			}
		})
	}
}

// require skips the test where the receiver is not installed, and fails in CI,
// where it must be.
func (r receiver) require(t *testing.T) {
	t.Helper()
	for _, need := range r.needs {
		_, err := exec.LookPath(need)
		if filepath.IsAbs(need) {
			_, err = os.Stat(need)
		}
		if err != nil && os.Getenv("CI") == "true" {
			t.Fatalf("%s is needed, which make tools installs: %v", need, err)
		} else if err != nil {
			t.Skipf("%s is needed, which make tools installs: %v", need, err)
		}
	}
}

// start starts the receiver and waits until it listens.
func (r receiver) start(t *testing.T, addrs ...netip.AddrPort) {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, r.name+".conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, r.config, addrs[0], addrs[1]), 0o600); err != nil {
		t.Fatal(err)
	}
	args := r.command(config, dir)
	ctx, cancel := context.WithCancel(context.Background())
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s said:\n%s", r.name, out.String())
		}
	})
	for _, a := range addrs {
		eventually(t, r.name+" listens on "+a.String(), func() bool {
			c, err := net.Dial("tcp", a.String())
			if err == nil {
				c.Close()
			}
			return err == nil
		})
	}
}

// check asks the receiver what it saw of a client of the frontend.
func (r receiver) check(t *testing.T, f lb.Frontend, route lb.Route) {
	t.Helper()
	front := netip.AddrPortFrom(f.Addr, f.Port)
	c, err := net.Dial("tcp", front.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(c, r.request)
	answer, err := io.ReadAll(c)
	client := netip.MustParseAddrPort(c.LocalAddr().String())
	want := fmt.Sprintf("saw %s %d %s %d\n", client.Addr(), client.Port(), front.Addr(), front.Port())
	if err != nil || !strings.HasSuffix(string(answer), want) {
		t.Errorf("PROXY %s from %s at %s to a member of %s: got %q, %v; want it to end with %q",
			route.ProxyProtocol, client, front, route.Group.Family, answer, err, want)
	}
}

func freePort(t *testing.T, a netip.Addr) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(a, 0).String())
	if err != nil {
		t.Skipf("IPv6 is needed: %v", err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}
