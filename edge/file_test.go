package edge

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// envCrash makes the test binary save a file and kill itself at a step.
const envCrash = "ECLUSA_TEST_CRASH"

func TestMain(m *testing.M) {
	if where := os.Getenv(envCrash); where != "" {
		crash(where)
	}
	if where := os.Getenv(envCrashEdge); where != "" {
		crashEdge(where)
	}
	os.Exit(m.Run())
}

// crash saves "new" over "old" and dies without any clean-up at the given step.
func crash(where string) {
	at, path, _ := strings.Cut(where, "|")
	f := file{path: path, before: func(s step) error {
		if string(s) == at {
			return syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		return nil
	}}
	_ = f.save([]byte("new"))
	select {} // the signal is on its way
}

// whole accepts only contents that a save was given.
func whole(into *string) func([]byte) error {
	return func(data []byte) error {
		if *into = string(data); *into != "old" && *into != "new" && *into != "older" {
			return fmt.Errorf("%q: nobody has saved that", data)
		}
		return nil
	}
}

func TestKilledBetweenAnyTwoSteps(t *testing.T) {
	for _, at := range steps {
		t.Run(string(at), func(t *testing.T) {
			f := file{path: filepath.Join(t.TempDir(), "state")}
			for _, data := range []string{"older", "old"} {
				if err := f.save([]byte(data)); err != nil {
					t.Fatal(err)
				}
			}
			c := exec.Command(os.Args[0])
			c.Env = append(os.Environ(), envCrash+"="+string(at)+"|"+f.path)
			err := c.Run()
			if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("the process ended with %v; want SIGKILL", err)
			}
			var got string
			generation, err := f.load(whole(&got))
			if generation != current || err != nil {
				t.Fatalf("load: got generation %d, %v; want the current one", generation, err)
			}
			wantNew := at == stepSyncDir || at == stepDone
			if wantNew != (got == "new") || !wantNew && got != "old" {
				t.Errorf("after a crash before %q: got %q", at, got)
			}
			// The next save is not in the way of what the crash has left.
			if err := f.save([]byte("new")); err != nil {
				t.Fatal(err)
			}
			if generation, err := f.load(whole(&got)); generation != current || err != nil || got != "new" {
				t.Errorf("save after the crash: got %q, generation %d, %v; want new", got, generation, err)
			}
		})
	}
}

func TestFailingSteps(t *testing.T) {
	for _, at := range steps {
		t.Run(string(at), func(t *testing.T) {
			f := file{path: filepath.Join(t.TempDir(), "state")}
			if err := f.save([]byte("old")); err != nil {
				t.Fatal(err)
			}
			f.before = func(s step) error {
				if s == at {
					return unix.EIO
				}
				return nil
			}
			if err := f.save([]byte("new")); !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), f.path) {
				t.Errorf("save: got %v; want EIO with the path", err)
			}
			var got string
			if generation, err := f.load(whole(&got)); generation != current || err != nil {
				t.Errorf("load: got generation %d, %v; want the current one", generation, err)
			}
		})
	}
}

func TestDamagedFiles(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"truncated": func(path string) error { return os.Truncate(path, 1) },
		"empty":     func(path string) error { return os.Truncate(path, 0) },
		"corrupt":   func(path string) error { return os.WriteFile(path, []byte("nwe"), 0o600) },
		"gone":      os.Remove,
		"directory": func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
	} {
		t.Run(name, func(t *testing.T) {
			f := file{path: filepath.Join(t.TempDir(), "state")}
			for _, data := range []string{"old", "new"} {
				if err := f.save([]byte(data)); err != nil {
					t.Fatal(err)
				}
			}
			if err := damage(f.path); err != nil {
				t.Fatal(err)
			}
			var got string
			if generation, err := f.load(whole(&got)); generation != previous || got != "old" || err == nil {
				t.Errorf("got %q of generation %d, %v; want old of the previous one and the reason", got, generation, err)
			}
			if err := damage(f.previous()); err != nil {
				t.Fatal(err)
			}
			generation, err := f.load(whole(&got))
			if generation != none || (err == nil) != (name == "gone") {
				t.Errorf("both damaged: got generation %d, %v; want none", generation, err)
			}
		})
	}
}

// On a full disk the old content survives, and no rubbish keeps the disk full.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("mount a small file system: %v", err)
		}
		t.Skipf("mount a small file system: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	f := file{path: filepath.Join(dir, "state")}
	if err := f.save([]byte("old")); err != nil {
		t.Fatal(err)
	}
	if err := f.save(bytes.Repeat([]byte("x"), 1<<20)); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("save of more than there is room for: got %v; want ENOSPC", err)
	}
	var got string
	if generation, err := f.load(whole(&got)); generation != current || err != nil || got != "old" {
		t.Errorf("load: got %q of generation %d, %v; want old", got, generation, err)
	}
	if err := f.save([]byte("new")); err != nil {
		t.Errorf("save of a little: %v", err)
	}
}
