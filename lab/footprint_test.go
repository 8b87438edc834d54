package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lab/ledger"
)

// footprint is everything by which a lab is found on the machine: others may
// come and go at the same time.
type footprint struct {
	dir, cgroup string
	spaces      map[string]string // process, network and mount namespaces, to their hosts
	taken       uint64            // when, as start times of processes are counted
}

func footprints(t *testing.T, l *Lab) footprint {
	t.Helper()
	f := footprint{dir: l.Options.Dir, cgroup: l.Options.cgroup(), spaces: map[string]string{}}
	for _, h := range append(l.Hosts(), l.Fabric) {
		for _, kind := range []string{"pid", "net", "mnt"} {
			id, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", h.holder.PID, kind))
			if err != nil {
				t.Fatal(err)
			}
			f.spaces[id] = h.Name
		}
	}
	f.taken = now(t)
	if found := f.find(t); len(found) < 2*len(f.spaces)/3 {
		t.Fatalf("found only %d things of a running lab: %q", len(found), found)
	}
	return f
}

// gone fails the test when anything is left of the lab, after the moment that
// the machine needs to bury the dead.
func (f footprint) gone(t *testing.T) {
	t.Helper()
	err := until(context.Background(), 5*time.Second, func(context.Context) error {
		if left := f.find(t); len(left) > 0 {
			return errors.New(strings.Join(left, "\n"))
		}
		return nil
	})
	if err != nil {
		t.Errorf("the lab left behind:\n%v", err)
	}
}

// find lists what there is of the lab: processes in its namespaces and such that
// name its directory, mounts, control groups, files.
func (f footprint) find(t *testing.T) []string {
	t.Helper()
	all := f.processes()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, f.dir) {
			all = append(all, "mount "+line)
		}
	}
	hs, err := ledger.Hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hs {
		if g := filepath.Join(h.Root, f.cgroup); exists(g) {
			all = append(all, "control group "+g)
		}
	}
	if exists(f.dir) {
		all = append(all, "directory "+f.dir)
	}
	return all
}

func (f footprint) processes() []string {
	var all []string
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		cmdline, err := os.ReadFile(p + "/cmdline")
		if err != nil || filepath.Base(p) == fmt.Sprint(os.Getpid()) {
			continue
		}
		what := "process " + filepath.Base(p) + " " + strings.ReplaceAll(string(cmdline), "\x00", " ")
		if strings.Contains(what, f.dir) && !strings.Contains(what, "-test.") {
			all = append(all, what)
			continue
		}
		for _, kind := range []string{"pid", "net", "mnt"} {
			// Unreadable when it has just ended.
			id, _ := os.Readlink(p + "/ns/" + kind)
			// The kernel gives the numbers of dead namespaces to new ones,
			// whose processes are younger.
			if host, ok := f.spaces[id]; ok && f.older(p) {
				all = append(all, what+", on "+host)
				break
			}
		}
	}
	return all
}

// older reports whether the process in /proc/PID was there when the footprint
// was taken.
func (f footprint) older(proc string) bool {
	pid, err := strconv.Atoi(filepath.Base(proc))
	if err != nil {
		return false
	}
	p, err := ledger.Find(pid)
	return err == nil && p.Started <= f.taken
}

// now is the start time of a process that starts now.
func now(t *testing.T) uint64 {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := ledger.Find(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return p.Started
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// settings are those of the machine that kubelet would change, and its network
// devices that have a name of a lab's.
func settings(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for name := range kubeletSysctls {
		value, _ := os.ReadFile("/proc/sys/" + name)
		all[name] = string(value)
	}
	for _, p := range plan(Options{Nodes: 2, Edges: 1, Clients: 1}) {
		all["device "+p.name] = fmt.Sprint(exists("/sys/class/net/" + p.name))
	}
	return all
}
