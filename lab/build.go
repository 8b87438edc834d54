package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// program is one of those that the lab builds from their Go modules. Its module
// is the folder under lab/ whose go.mod pins its version.
type program struct {
	name, module, pkg string
}

// bundle are programs that are built together and kept in one directory.
type bundle struct {
	name     string // for people and, in lower case, in the directory's name
	programs []program
}

// kubernetesBundle are the programs of a cluster. They are built in this order: the
// first pays for most of the packages that the others share.
var kubernetesBundle = bundle{"Kubernetes", []program{
	{"kube-apiserver", "kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver"},
	{"kube-controller-manager", "kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager"},
	{"kube-scheduler", "kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler"},
	{"kubelet", "kubernetes", "k8s.io/kubernetes/cmd/kubelet"},
	{"kube-proxy", "kubernetes", "k8s.io/kubernetes/cmd/kube-proxy"},
	{"kubectl", "kubernetes", "k8s.io/kubernetes/cmd/kubectl"},
	{"etcd", "kubernetes", "go.etcd.io/etcd/server/v3"},
	{"loopback", "kubernetes", "github.com/containernetworking/plugins/plugins/main/loopback"},
	{"ptp", "kubernetes", "github.com/containernetworking/plugins/plugins/main/ptp"},
	{"host-local", "kubernetes", "github.com/containernetworking/plugins/plugins/ipam/host-local"},
}}

// helmBundle are the versions of Helm that the chart is installed with.
var helmBundle = bundle{"Helm", []program{
	{"helm3", "helm3", "helm.sh/helm/v3/cmd/helm"},
	{"helm4", "helm4", "helm.sh/helm/v4/cmd/helm"},
}}

// Build makes sure that the programs of a Kubernetes cluster exist, and returns
// the directory that holds them. They are built from the versions pinned in
// lab/kubernetes/go.mod, once per Kubernetes and Go version, into the user's
// cache directory: about nine minutes on two cores the first time. Progress
// goes to w.
func Build(ctx context.Context, w io.Writer) (dir string, err error) {
	return build(ctx, narrate(w), kubernetesBundle)
}

// BuildHelm does the same for Helm, in the versions pinned in lab/helm3/go.mod
// and lab/helm4/go.mod: the directory holds helm3 and helm4. It takes about three
// minutes the first time. A lab needs helm4 alone.
func BuildHelm(ctx context.Context, w io.Writer) (dir string, err error) {
	return build(ctx, narrate(w), helmBundle)
}

// build makes sure that the programs of the bundle exist, or only those named.
func build(ctx context.Context, n *narrator, b bundle, only ...string) (string, error) {
	src, err := source()
	if err != nil {
		return "", err
	}
	versions, err := b.versions(src)
	if err != nil {
		return "", err
	}
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, strings.ToLower(b.name)+"-"+strings.Join(versions, "-")+"-"+runtime.Version())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if len(b.missing(dir, only)) == 0 {
		return dir, nil
	}
	unlock, err := lock(ctx, filepath.Join(dir, ".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	todo := b.missing(dir, only)
	if len(todo) > 0 {
		if versions, err = (bundle{programs: todo}).versions(src); err != nil {
			return "", err
		}
		n.say("building %s of %s %s, this once, into %s", count(len(todo), "program", "programs"), b.name, strings.Join(versions, " and "), dir)
	}
	for i, p := range todo {
		n.say("building %s (%d of %d)", p.name, i+1, len(todo))
		if err := p.build(ctx, n, src, dir); err != nil {
			return "", fmt.Errorf("build %q: %w", p.name, err)
		}
	}
	return dir, nil
}

// versions are those of the bundle's modules: of each the one of its first
// program.
func (b bundle) versions(src string) (all []string, err error) {
	seen := map[string]bool{}
	for _, p := range b.programs {
		if seen[p.module] {
			continue
		}
		seen[p.module] = true
		version, err := p.version(src)
		if err != nil {
			return nil, err
		}
		all = append(all, version)
	}
	return all, nil
}

// missing lists the programs that are not in dir yet, of those named if any are.
// A file is complete when it has its name.
func (b bundle) missing(dir string, only []string) []program {
	var todo []program
	for _, p := range b.programs {
		if len(only) > 0 && !slices.Contains(only, p.name) {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, p.name)); err != nil {
			todo = append(todo, p)
		}
	}
	return todo
}

func (p program) build(ctx context.Context, n *narrator, src, dir string) error {
	flags, err := p.linkerFlags(src)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, "."+p.name+".new")
	cmd := static(goCommand(ctx, filepath.Join(src, "lab", p.module), "build", "-v", "-ldflags", flags, "-o", tmp, p.pkg))
	if err := runCompiler(n, cmd, p.name); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, p.name))
}

// linkerFlags give the program its version. Without it Kubernetes calls itself
// v0.0.0-master, and Helm 3 takes every cluster for Kubernetes 1.20 that it
// cannot ask.
func (p program) linkerFlags(src string) (string, error) {
	version, err := p.version(src)
	if err != nil {
		return "", err
	}
	set := map[string]string{}
	switch p.module {
	case "helm3":
		client, err := pinned(src, p.module, "k8s.io/client-go")
		if err != nil {
			return "", err
		}
		major, minor := "1", strings.Split(client, ".")[1] // v0.37.2 belongs to Kubernetes 1.37
		for _, pkg := range []string{"pkg/lint/rules", "pkg/chartutil"} {
			set["helm.sh/helm/v3/"+pkg+".k8sVersionMajor"] = major
			set["helm.sh/helm/v3/"+pkg+".k8sVersionMinor"] = minor
		}
		set["helm.sh/helm/v3/internal/version.version"] = version
	case "helm4":
		set["helm.sh/helm/v4/internal/version.version"] = version
	default:
		set["k8s.io/component-base/version.gitVersion"] = version
		set["k8s.io/client-go/pkg/version.gitVersion"] = version
	}
	flags := "-s -w"
	for _, name := range slices.Sorted(maps.Keys(set)) {
		flags += " -X " + name + "=" + set[name]
	}
	return flags, nil
}

// version is the one of the program that its module pins.
func (p program) version(src string) (string, error) { return pinned(src, p.module, p.pkg) }

// pinned reads from the go.mod of a module under lab/ the version of the module
// that pkg belongs to.
func pinned(src, module, pkg string) (string, error) {
	name := filepath.Join(src, "lab", module, "go.mod")
	data, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(strings.TrimPrefix(line, "require "))
		if len(f) >= 2 && strings.HasPrefix(pkg+"/", f[0]+"/") && strings.HasPrefix(f[1], "v") {
			return f[1], nil
		}
	}
	return "", fmt.Errorf("%s: no module of %s is required", name, pkg)
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
