package contender

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// haproxy is HAProxy in mode tcp, as its documentation recommends: one process, a
// thread for each processor, active checks, connections to members that do not
// answer sent elsewhere. Members change through the runtime API, for which every
// member has a slot.
type haproxy struct {
	buffer int // of a direction of a connection; 0 is the default
}

func (h haproxy) Name() string {
	if h.buffer > 0 {
		return "haproxy-buffers"
	}
	return "haproxy"
}

func (h haproxy) Title() string {
	if h.buffer > 0 {
		return fmt.Sprintf("HAProxy, tune.bufsize %d", h.buffer)
	}
	return "HAProxy"
}

func (haproxy) Version() (string, error) { return firstLine("haproxy", "-v") }

func (haproxy) Carries(p lb.Protocol) bool { return p == lb.TCP }

var haproxyConfiguration = template.Must(template.New("haproxy").Parse(`global
    maxconn {{.MaxConn}}
    stats socket {{.Socket}} mode 600 level admin
{{- if .Buffer}}
    tune.bufsize {{.Buffer}}
{{- end}}

defaults
    mode tcp
    balance roundrobin
    option redispatch
    retries 3
    timeout connect 500ms
    timeout client 1h
    timeout server 1h
    default-server check inter 1s fastinter 250ms fall 3 rise 2
{{range .Frontends}}
listen port-{{.Port}}
    bind {{$.VIP}}:{{.Port}}
{{- $target := .TargetPort}}
{{- range $i, $m := $.Members}}
    server n{{$i}} {{$m}}:{{$target}}
{{- end}}
{{end -}}
{{range .Others}}
listen other-{{.}}
    bind {{.}}:80
{{- range $i, $m := $.Members}}
    server n{{$i}} {{$m}}:8080 no-check track port-80/n{{$i}}
{{- end}}
{{end}}`))

// socket is where the runtime API listens.
func (haproxy) socket(dir string) string { return filepath.Join(dir, "haproxy.sock") }

func (h haproxy) Configuration(s Setup, dir string) (string, error) {
	most := 9500 // of 20,000 descriptors
	if s.Others > 0 {
		most = 2000
	}
	return render(haproxyConfiguration, map[string]any{
		"MaxConn": most, "Socket": h.socket(dir), "Buffer": h.buffer, "Frontends": tcpFrontends(), "VIP": VIP(0), "Members": s.Members, "Others": others(s),
	})
}

func (h haproxy) Start(_ context.Context, n *Network, s Setup, dir string) (Running, error) {
	r := &haproxyRunning{socket: h.socket(dir), members: s.Members}
	text, err := h.Configuration(s, dir)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return nil, err
	}
	if r.process, err = n.Edge.Start("haproxy", "-db", "-f", file); err != nil {
		return nil, err
	}
	if err := n.Client.Reach(netip.AddrPortFrom(VIP(0), RequestFrontend), startPatience); err != nil {
		complaints := r.process.Complaints()
		r.Stop()
		return nil, fmt.Errorf("haproxy: %w: %s", err, complaints)
	}
	return r, nil
}

type haproxyRunning struct {
	process *Process
	socket  string
	members []netip.Addr
}

func (r *haproxyRunning) Targets(port uint16) []netip.AddrPort { return vipTargets(port) }
func (r *haproxyRunning) PIDs() []int                          { return []int{r.process.PID()} }
func (r *haproxyRunning) Stop()                                { r.process.Stop() }

// Set gives the slots new addresses.
func (r *haproxyRunning) Set(_ context.Context, s Setup) error {
	if len(s.Members) != len(r.members) {
		return fmt.Errorf("haproxy: %d members for %d slots", len(s.Members), len(r.members))
	}
	var commands []string
	for i, m := range s.Members {
		if m == r.members[i] {
			continue
		}
		for _, f := range tcpFrontends() {
			commands = append(commands, fmt.Sprintf("set server port-%d/n%d addr %s", f.Port, i, m))
		}
	}
	if len(commands) == 0 {
		return nil
	}
	answer, err := r.command(strings.Join(commands, ";"))
	if err != nil {
		return err
	}
	if n := strings.Count(answer, "changed from"); n != len(commands) {
		return fmt.Errorf("haproxy: %d of %d changes: %q", n, len(commands), answer)
	}
	r.members = s.Members
	return nil
}

func (r *haproxyRunning) command(text string) (string, error) {
	c, err := net.DialTimeout("unix", r.socket, time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := fmt.Fprintln(c, text); err != nil {
		return "", err
	}
	var answer strings.Builder
	_, err = bufio.NewReader(c).WriteTo(&answer)
	return answer.String(), err
}

func tcpFrontends() (all []Frontend) {
	for _, f := range Frontends {
		if f.Protocol == lb.TCP {
			all = append(all, f)
		}
	}
	return all
}

func others(s Setup) (all []netip.Addr) {
	for i := range s.Others {
		all = append(all, VIP(1+i))
	}
	return all
}

func render(t *template.Template, data any) (string, error) {
	var b strings.Builder
	if err := t.Execute(&b, data); err != nil {
		return "", err
	}
	return b.String(), nil
}

// firstLine is what a program says of itself.
func firstLine(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line), nil
}
