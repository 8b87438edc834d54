package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lab/ledger"
)

// Process is a program that the lab runs on one of its hosts. It can be ended
// and started again any number of times, with the same arguments. All methods
// are safe for concurrent use.
type Process struct {
	// Name is unique in the lab, such as kubelet-1.
	Name string
	// Host is where it runs.
	Host *Host
	// Args are the program and its arguments. Changed, they count from the
	// next Start on.
	Args []string
	// Env are the variables that it gets besides PATH and HOME.
	Env []string

	lab  *Lab
	role role

	mu  sync.Mutex
	run ledger.Process // the last one started
}

// Start starts the process if it does not run.
func (p *Process) Start() error {
	if err := p.start(); err != nil {
		return fmt.Errorf("start %q: %w", p.Name, err)
	}
	return p.lab.save()
}

func (p *Process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run.Running() {
		return nil
	}
	if !p.Host.Alive() {
		return fmt.Errorf("host %q is down", p.Host.Name)
	}
	log, err := os.OpenFile(p.LogPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(p.Args[0], p.Args[1:]...)
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin:/usr/bin:/bin", "HOME=/root",
	}, p.Env...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	// A session of its own: signals of the terminal stay with the lab.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := p.Host.space().Start(cmd); err != nil {
		return err
	}
	// Not waited for yet, so its number is still its own.
	if p.run, err = ledger.Find(cmd.Process.Pid); err != nil {
		return err
	}
	go reap(cmd)
	return nil
}

// reap takes note of the end of a child. It ends with the process, which ends
// with the lab.
func reap(cmd *exec.Cmd) { _ = cmd.Wait() }

// Stop asks the process to end (SIGTERM) and waits until it has. It is killed
// when ctx ends first, and then ctx's error is returned.
func (p *Process) Stop(ctx context.Context) error {
	if err := p.Signal(unix.SIGTERM); err != nil {
		return nil // it is not there
	}
	if err := p.gone(ctx); err != nil {
		return errors.Join(fmt.Errorf("stop %q: %w", p.Name, err), p.Kill())
	}
	return nil
}

// Kill ends the process at once (SIGKILL).
func (p *Process) Kill() error {
	if err := p.Signal(unix.SIGKILL); err != nil {
		return nil // it is not there
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := p.gone(ctx); err != nil {
		return fmt.Errorf("kill %q: %w", p.Name, err)
	}
	return nil
}

// Freeze stops the process where it stands (SIGSTOP): its sockets stay open
// and nothing answers.
func (p *Process) Freeze() error { return p.Signal(unix.SIGSTOP) }

// Thaw lets a frozen process go on.
func (p *Process) Thaw() error { return p.Signal(unix.SIGCONT) }

// Restart is Stop and Start.
func (p *Process) Restart(ctx context.Context) error {
	if err := p.Stop(ctx); err != nil {
		return err
	}
	return p.Start()
}

// Signal sends a signal; an error when the process does not run.
func (p *Process) Signal(s unix.Signal) error {
	run := p.current()
	if !run.Running() {
		return fmt.Errorf("signal %q: it does not run", p.Name)
	}
	if err := unix.Kill(run.PID, s); err != nil {
		return fmt.Errorf("signal %q: %w", p.Name, err)
	}
	return nil
}

// Running reports whether the process is there.
func (p *Process) Running() bool { return p.current().Running() }

// PID is the number of the last process started, as seen from outside the lab;
// 0 before the first Start.
func (p *Process) PID() int { return p.current().PID }

func (p *Process) current() ledger.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.run
}

// gone waits until the process is not there any more.
func (p *Process) gone(ctx context.Context) error {
	for run := p.current(); run.Running(); {
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// LogPath is the file with the output of all its runs.
func (p *Process) LogPath() string { return p.lab.logPath(p.Name) }

// RSS is the memory of the process in bytes.
func (p *Process) RSS() (int64, error) { return rss(p.PID()) }

func rss(pid int) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	return parseRSS(string(data))
}

// parseRSS reads the resident set from /proc/PID/status.
func parseRSS(status string) (int64, error) {
	for line := range strings.Lines(status) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" && f[2] == "kB" {
			kb, err := strconv.ParseInt(f[1], 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("process status: no resident set")
}

func (p *Process) state() processState {
	return processState{Name: p.Name, Host: p.Host.Name, Role: p.role, Args: p.Args, Env: p.Env, Run: p.current()}
}

// tail is the end of the process's log, for error messages.
func (p *Process) tail() string {
	const most = 2000
	f, err := os.Open(p.LogPath())
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, size-most), io.SeekStart)
	}
	data, _ := io.ReadAll(io.LimitReader(f, most))
	return string(bytes.TrimSpace(data))
}

// kill ends any process that the ledger knows and waits for it.
func kill(p ledger.Process) error {
	for deadline := time.Now().Add(20 * time.Second); p.Running(); {
		_ = unix.Kill(p.PID, unix.SIGKILL)
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d does not end", p.PID)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil
}

// pause waits, or returns ctx's error when that ends first.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
