package contender

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"text/template"

	"github.com/eclusa-lb/eclusa/lb"
)

// nginx is nginx's stream module, as its documentation recommends: a worker for
// each processor, each with listening sockets of its own. Members change through
// another configuration and a reload; there is no other way in the free version.
type nginx struct{}

func (nginx) Name() string             { return "nginx" }
func (nginx) Title() string            { return "nginx stream" }
func (nginx) Version() (string, error) { return firstLine("nginx", "-v") }
func (nginx) Carries(lb.Protocol) bool { return true }

const nginxModule = "/usr/lib/nginx/modules/ngx_stream_module.so"

var nginxConfiguration = template.Must(template.New("nginx").Parse(`load_module {{.Module}};
daemon off;
pid {{.Dir}}/nginx.pid;
error_log stderr error;
worker_processes auto;
worker_rlimit_nofile 20000;
events {
    worker_connections 20000;
}
stream {
    proxy_connect_timeout 500ms;
{{- range .Frontends}}
    upstream port-{{.Port}} {
{{- $target := .TargetPort}}
{{- range $.Members}}
        server {{.}}:{{$target}};
{{- end}}
    }
    server {
        listen {{$.VIP}}:{{.Port}}{{if eq .Protocol "udp"}} udp{{end}} reuseport;
        proxy_pass port-{{.Port}};
{{- if eq .Protocol "udp"}}
        proxy_timeout 30s;
{{- else}}
        proxy_timeout 1h;
{{- end}}
    }
{{- end}}
{{- range .Others}}
    server {
        listen {{.}}:80;
        proxy_pass port-80;
        proxy_timeout 1h;
    }
{{- end}}
}
`))

func (nginx) Configuration(s Setup, dir string) (string, error) {
	return render(nginxConfiguration, map[string]any{
		"Module": nginxModule, "Dir": dir, "Frontends": Frontends, "VIP": VIP(0), "Members": s.Members, "Others": others(s),
	})
}

func (nginx) Start(_ context.Context, n *Network, s Setup, dir string) (Running, error) {
	r := &nginxRunning{dir: dir}
	if err := r.configure(s); err != nil {
		return nil, err
	}
	var err error
	if r.process, err = n.Edge.Start("nginx", "-c", r.file(), "-e", "stderr"); err != nil {
		return nil, err
	}
	if err := n.Client.Reach(netip.AddrPortFrom(VIP(0), RequestFrontend), startPatience); err != nil {
		complaints := r.process.Complaints()
		r.Stop()
		return nil, fmt.Errorf("nginx: %w: %s", err, complaints)
	}
	return r, nil
}

type nginxRunning struct {
	process *Process
	dir     string
}

func (r *nginxRunning) file() string { return filepath.Join(r.dir, "nginx.conf") }

func (r *nginxRunning) configure(s Setup) error {
	text, err := nginx{}.Configuration(s, r.dir)
	if err != nil {
		return err
	}
	return os.WriteFile(r.file(), []byte(text), 0o644)
}

func (r *nginxRunning) Targets(port uint16) []netip.AddrPort { return vipTargets(port) }
func (r *nginxRunning) PIDs() []int                          { return []int{r.process.PID()} }

// Stop ends the master and its workers.
func (r *nginxRunning) Stop() {
	_ = r.process.cmd.Process.Signal(syscall.SIGTERM)
	_ = r.process.Wait()
}

// Set asks for a reload, which comes to be a little later.
func (r *nginxRunning) Set(_ context.Context, s Setup) error {
	if err := r.configure(s); err != nil {
		return err
	}
	return r.process.cmd.Process.Signal(syscall.SIGHUP)
}
