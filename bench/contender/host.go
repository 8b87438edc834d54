package contender

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lab/space"
)

// RoleVariable tells a process that was started again what it is; see [Role].
const RoleVariable = "ECLUSA_BENCH_ROLE"

// Role is what a process of the benchmark is for.
type Role struct {
	// Name is "hold", "serve", "load" or "engine".
	Name string
	// Argument is the role's own affair.
	Argument json.RawMessage `json:",omitempty"`
}

// Host is a machine of the network: a namespace that a process holds open.
type Host struct {
	// Name is the host's name for people.
	Name string
	space.Space
	holder *Process
}

func newHost(name string) (*Host, error) {
	p, err := startRole(Role{Name: "hold"}, func(cmd *exec.Cmd) error {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNET
		return cmd.Start()
	})
	if err != nil {
		return nil, fmt.Errorf("namespace of %s: %w", name, err)
	}
	return &Host{Name: name, Space: space.Space{PID: p.PID()}, holder: p}, nil
}

// Process is a process in a host's namespace. It ends when its standard input is
// closed or, if it is a foreign program, is killed.
type Process struct {
	cmd   *exec.Cmd
	input io.WriteCloser
	// Lines is its standard output.
	Lines *bufio.Reader

	complaints lockedText
	once       sync.Once
	ended      error
}

// lockedText keeps the end of what a process has to say.
type lockedText struct {
	mu   sync.Mutex
	text []byte
}

func (t *lockedText) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if over := len(t.text) - 4<<10; over > 0 {
		t.text = t.text[over:]
	}
	return len(p), nil
}

func (t *lockedText) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.text))
}

// PID is the number of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Complaints returns the end of its standard error.
func (p *Process) Complaints() string { return p.complaints.String() }

// Tell writes a line to the process.
func (p *Process) Tell(v any) error { return json.NewEncoder(p.input).Encode(v) }

// Hear reads a line of JSON from it.
func (p *Process) Hear(v any) error {
	line, err := p.Lines.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("%s: %w: %s", p.cmd.Args[0], err, p.Complaints())
	}
	return json.Unmarshal(line, v)
}

// Ready waits until the process says so.
func (p *Process) Ready() error {
	line, err := p.Lines.ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "ready" {
		return fmt.Errorf("%s: said %q instead of \"ready\": %w: %s", p.cmd.Args[0], line, err, p.Complaints())
	}
	return nil
}

// EndInput tells the process to come to an end by itself.
func (p *Process) EndInput() { p.input.Close() }

// Wait waits for its end.
func (p *Process) Wait() error {
	p.once.Do(func() {
		if p.ended = p.cmd.Wait(); p.ended != nil {
			p.ended = fmt.Errorf("%s: %w: %s", p.cmd.Args[0], p.ended, p.Complaints())
		}
	})
	return p.ended
}

// Stop ends the process, and is silent about how.
func (p *Process) Stop() {
	p.input.Close()
	_ = p.cmd.Process.Kill()
	_ = p.Wait()
}

// Start starts a program in the host's namespace.
func (h *Host) Start(name string, args ...string) (*Process, error) {
	return start(exec.Command(name, args...), h.start)
}

// StartRole starts this program again in the host's namespace.
func (h *Host) StartRole(r Role) (*Process, error) { return startRole(r, h.start) }

func (h *Host) start(cmd *exec.Cmd) error { return h.Net(cmd.Start) }

// Run runs a program in the host's namespace to its end and returns what it prints.
func (h *Host) Run(input, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(input)
	var out strings.Builder
	var complaints lockedText
	cmd.Stdout, cmd.Stderr = &out, &complaints
	err := h.Net(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, complaints.String())
	}
	return out.String(), nil
}

func startRole(r Role, begin func(*exec.Cmd) error) (*Process, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = r.Name
	cmd.Env = append(os.Environ(), RoleVariable+"="+string(text))
	return start(cmd, begin)
}

func start(cmd *exec.Cmd, begin func(*exec.Cmd) error) (*Process, error) {
	p := &Process{cmd: cmd}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = &p.complaints
	out, err1 := cmd.StdoutPipe()
	in, err2 := cmd.StdinPipe()
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	p.input, p.Lines = in, bufio.NewReader(out)
	if err := begin(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Args[0], err)
	}
	return p, nil
}
