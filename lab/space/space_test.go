package space

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// holder is a process in namespaces of its own.
func holder(t *testing.T) Space {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root to make namespaces")
		}
		t.Skip("needs root to make namespaces")
	}
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: Namespaces}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return Space{PID: cmd.Process.Pid}
}

func link(t *testing.T, path string) string {
	t.Helper()
	to, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// TestNet enters from many goroutines at once, and looks at the program's first
// thread, which must never leave home.
func TestNet(t *testing.T) {
	s := holder(t)
	home := link(t, "/proc/self/ns/net")
	var wait sync.WaitGroup
	for range 50 {
		wait.Go(func() {
			var inside string
			failed := errors.New("what f returns")
			err := s.Net(func() (err error) {
				if inside, err = os.Readlink("/proc/thread-self/ns/net"); err != nil {
					return err
				}
				return failed
			})
			if !errors.Is(err, failed) || inside == home || inside == "" {
				t.Errorf("inside %q, error %v; want another namespace than %q and f's own error", inside, err, home)
			}
			if self, err := os.Readlink("/proc/self/ns/net"); err != nil || self != home {
				t.Errorf("the program is in %q, %v; want %q", self, err, home)
			}
		})
	}
	wait.Wait()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		at, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/net")
		if err == nil && at != home {
			t.Errorf("thread %s is still in %q", task.Name(), at)
		}
	}
}

func TestNetOfNobody(t *testing.T) {
	s := holder(t)
	s.PID = 1 << 30
	if err := s.Net(func() error { return nil }); err == nil {
		t.Error("no error for a process that does not exist")
	}
	if err := s.Start(exec.Command("true")); err == nil {
		t.Error("started in the namespaces of a process that does not exist")
	}
}

// TestStart runs commands inside and checks that the program itself stays out.
func TestStart(t *testing.T) {
	s := holder(t)
	home := link(t, "/proc/self/ns/mnt")
	for range 20 {
		var out strings.Builder
		cmd := exec.Command("sh", "-c", "echo $$; hostname inside; hostname")
		cmd.Stdout = &out
		if err := s.Start(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		pid, host, _ := strings.Cut(out.String(), "\n")
		if host != "inside\n" || len(pid) > 3 {
			t.Errorf("got process number %q and host name %q, want a small one and %q", pid, host, "inside")
		}
		if at := link(t, "/proc/self/ns/mnt"); at != home {
			t.Fatalf("the program is in mounts %q, want %q", at, home)
		}
	}
	if name, err := os.Hostname(); err != nil || name == "inside" {
		t.Errorf("the machine is called %q, %v", name, err)
	}
}
