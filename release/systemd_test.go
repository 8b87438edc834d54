package release

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestUnderSystemd lives through an edge's life as a service under a real systemd,
// in namespaces of its own: what the unit forbids must not be what the edge needs.
func TestUnderSystemd(t *testing.T) {
	m := newMachine(t)
	need(t, "/lib/systemd/systemd", "pivot_root")
	if err := os.RemoveAll(filepath.Join(m.dir, "upper", "usr")); err != nil { // the systemctl that only takes notes
		t.Fatal(err)
	}
	for _, d := range []string{"upper", "upper/etc/systemd/system"} {
		if err := os.MkdirAll(filepath.Join(m.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(m.dir, "upper", "scenario.sh"), string(read(t, "testdata/scenario.sh")))
	holder := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(m.dir, "upper", "usr", "local", "bin", "holder"), "./testdata/holder")
	holder.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := holder.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	output := m.boot()
	for _, want := range []string{
		"enabled at first: disabled, inactive",
		"started: running, Serving",
		"runs with CapEff: 0000000000003400 CapBnd: 0000000000003400 NoNewPrivs: 1 Seccomp: 2 as eclusa-edge", // bits 10, 12 and 13
		"state: eclusa-edge 700",
		"upgraded: running, another process: yes, 0 restarts",
		"the process of before: gone, running",
		"reload of a wrong configuration: refused, running",
		"killed, with a wrong configuration: failed, status 78, 1 restart",
		"killed: active, 1 restart",
		"stopped: success, status 0",
		"killed while one drains, reloads 1: active, 1 restarts",
		"killed while one drains, reloads 2: active, 2 restarts",
		"hung: Watchdog timeout (limit 8s)! SIGABRT: abort, active, 3 restarts",
		"its address: 192.0.2.130/32",
		"stopped while one drains: in peace, success",
		"removed: inactive, 0 addresses",
		"the end",
	} {
		if !strings.Contains(output, "\n"+want+"\n") {
			t.Errorf("the edge's life lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(output)
	}
}

// boot starts systemd and returns what the scenario has printed.
func (m *machine) boot() string {
	t := m.t
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	script, err := filepath.Abs("testdata/boot.sh")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, "sh", "-c",
		`echo $$ >"$1/cgroup.procs" && exec unshare --mount --pid --net --uts --ipc --cgroup --fork --kill-child sh "$2" "$3" "$4"`,
		"sh", controlGroup(t), script, m.dir, m.packages)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if _, err := os.Stat(filepath.Join(m.dir, "upper", "done")); err == nil {
				cancel() // systemd never ends by itself
			}
		case err := <-ended:
			output, readErr := os.ReadFile(filepath.Join(m.dir, "upper", "output"))
			if readErr != nil {
				t.Fatalf("systemd: %v\n%s", err, said.String())
			}
			return string(output)
		}
	}
}

// controlGroup makes a group that systemd can take for the root of all groups.
func controlGroup(t *testing.T) string {
	t.Helper()
	var top string
	for line := range strings.Lines(string(read(t, "/proc/mounts"))) {
		if f := strings.Fields(line); f[2] == "cgroup2" {
			top = f[1]
		}
	}
	if top == "" {
		if os.Getenv("CI") == "true" {
			t.Fatal("control groups of version 2 are not mounted")
		}
		t.Skip("control groups of version 2 are not mounted")
	}
	dir, err := os.MkdirTemp(top, "eclusa-release-test-") //nolint:usetesting // a group is made nowhere else
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var groups []string
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				groups = append(groups, path)
			}
			return nil
		})
		for i := len(groups) - 1; i >= 0; i-- {
			emptied(t, groups[i])
		}
	})
	return dir
}

// emptied removes a group once its processes have ended.
func emptied(t *testing.T, group string) {
	for deadline := time.Now().Add(5 * time.Second); ; {
		err := os.Remove(group)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("control group left behind: %v", err)
			return
		}
		time.Sleep(10 * time.Millisecond) // poll
	}
}
