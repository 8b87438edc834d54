package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// program is one of those that the lab builds from their Go modules.
type program struct {
	name, pkg string
}

// programs are built in this order: the first pays for most of the packages
// that the others share.
var programs = []program{
	{"kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"},
	{"kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"},
	{"kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"},
	{"kubelet", "k8s.io/kubernetes/cmd/kubelet"},
	{"kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"},
	{"kubectl", "k8s.io/kubernetes/cmd/kubectl"},
	{"etcd", "go.etcd.io/etcd/server/v3"},
	{"loopback", "github.com/containernetworking/plugins/plugins/main/loopback"},
	{"ptp", "github.com/containernetworking/plugins/plugins/main/ptp"},
	{"host-local", "github.com/containernetworking/plugins/plugins/ipam/host-local"},
}

// Build makes sure that the programs of a Kubernetes cluster exist, and returns
// the directory that holds them. They are built from the versions pinned in
// lab/kubernetes/go.mod, once per Kubernetes and Go version, into the user's
// cache directory: about nine minutes on two cores the first time. Progress
// goes to w.
func Build(ctx context.Context, w io.Writer) (dir string, err error) {
	return build(ctx, narrate(w))
}

func build(ctx context.Context, n *narrator) (string, error) {
	src, err := source()
	if err != nil {
		return "", err
	}
	module := filepath.Join(src, "lab", "kubernetes")
	version, err := kubernetesVersion(module)
	if err != nil {
		return "", err
	}
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "kubernetes-"+version+"-"+runtime.Version())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if len(missing(dir)) == 0 {
		return dir, nil
	}
	unlock, err := lock(ctx, filepath.Join(dir, ".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	todo := missing(dir)
	if len(todo) > 0 {
		n.say("building %d programs of Kubernetes %s, this once, into %s", len(todo), version, dir)
	}
	for i, p := range todo {
		n.say("building %s (%d of %d)", p.name, i+1, len(todo))
		if err := buildProgram(ctx, n, module, version, dir, p); err != nil {
			return "", fmt.Errorf("build %q: %w", p.name, err)
		}
	}
	return dir, nil
}

// missing lists the programs that are not in dir yet. A file is complete when
// it has its name.
func missing(dir string) []program {
	var todo []program
	for _, p := range programs {
		if _, err := os.Stat(filepath.Join(dir, p.name)); err != nil {
			todo = append(todo, p)
		}
	}
	return todo
}

func buildProgram(ctx context.Context, n *narrator, module, version, dir string, p program) error {
	tmp := filepath.Join(dir, "."+p.name+".new")
	flags := "-s -w" +
		" -X k8s.io/component-base/version.gitVersion=" + version +
		" -X k8s.io/client-go/pkg/version.gitVersion=" + version
	cmd := static(goCommand(ctx, module, "build", "-v", "-ldflags", flags, "-o", tmp, p.pkg))
	if err := runCompiler(n, cmd, p.name); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, p.name))
}

// goCommand is the go tool with settings that do not depend on who calls it.
func goCommand(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOOS=linux", "GOFLAGS=-mod=readonly -buildvcs=false")
	// The compiler's processes go with the go tool.
	cmd.SysProcAttr = processGroup
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// static makes the command build programs that need no library. Packages that
// were compiled without it are compiled a second time.
func static(cmd *exec.Cmd) *exec.Cmd {
	cmd.Env = append(cmd.Env, "CGO_ENABLED=0")
	return cmd
}

// runCompiler runs a go build -v and says every fifteen seconds how many
// packages are done.
func runCompiler(n *narrator, cmd *exec.Cmd, what string) error {
	out, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	var done atomic.Int64
	ticking, stop := context.WithCancel(context.Background())
	go tick(ticking, n, what, &done)
	last := countPackages(out, &done)
	stop()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%w\n%s", err, strings.Join(last, "\n"))
	}
	return nil
}

func tick(ctx context.Context, n *narrator, what string, done *atomic.Int64) {
	t := time.NewTicker(15 * time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			n.say("still building %s, %d packages compiled", what, done.Load())
		}
	}
}

// countPackages counts the lines and keeps the last twenty, which hold the
// compiler's complaints if there are any.
func countPackages(r io.Reader, done *atomic.Int64) (last []string) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if !strings.HasPrefix(lines.Text(), "go: downloading") {
			done.Add(1)
		}
		if last = append(last, lines.Text()); len(last) > 20 {
			last = last[1:]
		}
	}
	return last
}

// kubernetesVersion reads the pinned version from the go.mod in dir.
func kubernetesVersion(dir string) (string, error) {
	name := filepath.Join(dir, "go.mod")
	data, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "k8s.io/kubernetes" {
			return f[1], nil
		}
	}
	return "", fmt.Errorf("%s: k8s.io/kubernetes is not required", name)
}

// source is the directory of the eclusa module, which holds what must be built.
func source() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if dir := filepath.Dir(filepath.Dir(file)); ok && filepath.IsAbs(file) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	// Built with -trimpath, or moved.
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", modulePath).Output()
	dir := strings.TrimSpace(string(out))
	if err != nil || dir == "" {
		return "", errors.New("the source of eclusa is not here: run the lab from a checkout of " + modulePath)
	}
	return dir, nil
}

const modulePath = "github.com/eclusa-lb/eclusa"

// cacheDir is where built programs are kept between labs.
func cacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "eclusa", "lab")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(dir)
}

// lock waits for the lock file, so that two labs never build the same thing at
// the same time.
func lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %q: %w", name, err)
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			f.Close()
			return nil, err
		}
	}
}
