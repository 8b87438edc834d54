package release

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lab/ledger"
	"github.com/eclusa-lb/eclusa/lab/space"
)

// TestUnderSystemd lives through an edge's life as a service under a real systemd,
// in namespaces of its own: what the unit forbids must not be what the edge needs.
func TestUnderSystemd(t *testing.T) {
	t.Parallel()
	needRoot(t)
	need(t, "dpkg", "ip", "/lib/systemd/systemd")
	packages, tools := filepath.Dir(packaged(t)[0]), t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", tools+"/", "../lab/anchor", "./testdata/holder")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	write(t, filepath.Join(tools, "scenario.sh"), string(read(t, "testdata/scenario.sh")))
	anchor := filepath.Join(tools, "anchor")
	machine := boot(t, anchor, packages, tools)

	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, anchor, "enter", strconv.Itoa(machine), "sh", "-ex", filepath.Join(tools, "scenario.sh"), packages, filepath.Join(tools, "holder"))
	cmd.WaitDelay = 5 * time.Second // if the holder is not ended
	said, err := cmd.CombinedOutput()
	if err != nil {
		t.Error(err)
	}
	output := string(said)
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

// boot starts a systemd on a copy of this machine, in namespaces of its own, which
// sees the folders, and returns its process.
func boot(t *testing.T, anchor string, folders ...string) int {
	t.Helper()
	desc, err := json.Marshal(space.Host{Name: "edge", Keep: folders, Machine: &space.Machine{Group: controlGroup(t)}})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(anchor, "hold")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: space.Namespaces}
	cmd.Stdin = bytes.NewReader(desc)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // a systemd never ends by itself
		_ = cmd.Wait()
	})
	if said, err := io.ReadAll(out); err != nil || string(said) != space.Ready {
		_ = cmd.Wait()
		t.Fatalf("machine: %v\n%s", err, complaint.String())
	}
	return cmd.Process.Pid
}

// controlGroup makes a group that systemd can take for the root of all groups.
func controlGroup(t *testing.T) string {
	t.Helper()
	hs, err := ledger.Hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(hs, func(h ledger.Hierarchy) bool { return h.V2 })
	if i < 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("control groups of version 2 are not mounted")
		}
		t.Skip("control groups of version 2 are not mounted")
	}
	dir, err := os.MkdirTemp(hs[i].Root, "eclusa-release-test-") //nolint:usetesting // a group is made nowhere else
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
