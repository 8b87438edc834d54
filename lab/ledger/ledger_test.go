package ledger

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestClean(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lab")
	for _, sub := range []string{"mine/deep", "users"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	p, err := Find(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	l, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	// The number of this very process with another's start time: it must
	// survive.
	l.Holders = []Process{p, {PID: os.Getpid(), Started: l.Owner.Started + 1}}
	l.Paths = []string{filepath.Join(dir, "mine"), filepath.Join(dir, "never made")}
	if err := l.Write(); err != nil {
		t.Fatal(err)
	}
	if !l.Running() {
		t.Error("the lab does not run, want it running")
	}
	if err := Clean(dir); err != nil {
		t.Fatal(err)
	}
	<-ended
	if p.Running() {
		t.Errorf("process %d still runs", p.PID)
	}
	if _, err := os.Stat(filepath.Join(dir, "users")); err != nil {
		t.Errorf("what the lab did not make is gone: %v", err)
	}
	for _, gone := range []string{"mine", file} {
		if _, err := os.Stat(filepath.Join(dir, gone)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: got %v, want it gone", gone, err)
		}
	}
	if err := Clean(dir); err != nil {
		t.Errorf("a second Clean: %v", err)
	}
}

func TestReadRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := Read(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty directory: got %v, want fs.ErrNotExist", err)
	}
	for _, bad := range []string{"", "{", `{"dir": "/somewhere/else", "paths": ["/etc"]}`} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Clean(dir); err == nil {
			t.Errorf("ledger %q: cleaned without an error", bad)
		}
	}
}

// TestForeignBoot keeps a ledger from before a reboot from killing processes
// that have the old numbers.
func TestForeignBoot(t *testing.T) {
	dir := t.TempDir()
	l, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	l.Boot = "another"
	l.Holders = []Process{l.Owner}
	if err := l.Write(); err != nil {
		t.Fatal(err)
	}
	if l.Running() {
		t.Error("the lab runs, want it dead with its boot")
	}
	if err := Clean(dir); err != nil {
		t.Fatal(err)
	}
}

func TestParseStat(t *testing.T) {
	for line, dead := range map[string]bool{
		"42 (a ) (strange) name) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 7 0 987654 1 2 3\n": false,
		"42 (x) Z 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 2 3\n":                  true,
		"42 (first thread gone) Z 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 2 0 987654 1 2 3\n":  false,
	} {
		s, err := parseStat([]byte(line))
		if err != nil || s.started != 987654 || s.dead() != dead {
			t.Errorf("%q: got %+v, %v; want start 987654, dead %v", line, s, err, dead)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("42 (x) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 2 3\n"))
	f.Add([]byte("42 (x)"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := parseStat(data)
		if err == nil && s.state == 0 {
			t.Error("no error and no state")
		}
	})
}

func TestParseHierarchies(t *testing.T) {
	const mounts = `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:4 - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/with\040blank rw,relatime - cgroup2 cgroup2 rw
nonsense
`
	want := []Hierarchy{{Root: "/sys/fs/cgroup/cpu"}, {Root: "/sys/fs/cgroup/with blank", V2: true}}
	if diff := cmp.Diff(want, parseHierarchies(mounts)); diff != "" {
		t.Errorf("hierarchies (-want +got):\n%s", diff)
	}
}

func TestRemoveCgroupsRefuses(t *testing.T) {
	for _, bad := range []string{"", "..", "../x", "/", "/etc", ".", "a/.."} {
		if err := removeCgroups([]string{bad}); err == nil {
			t.Errorf("group %q: removed without an error", bad)
		}
	}
}

func FuzzParseMount(f *testing.F) {
	f.Add("32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:4 - cgroup cgroup rw,cpu")
	f.Add(" - ")
	f.Fuzz(func(t *testing.T, line string) {
		if point, kind, ok := parseMount(line); ok && (kind == "" || point == "") {
			t.Errorf("%q: ok without point %q or kind %q", line, point, kind)
		}
	})
}
