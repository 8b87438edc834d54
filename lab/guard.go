package lab

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"syscall"

	"github.com/eclusa-lb/eclusa/lab/ledger"
)

// guard is the watcher process and the pipe by which it learns of our end.
type guard struct {
	process ledger.Process
	pipe    io.WriteCloser
	cmd     *exec.Cmd
}

func startGuard(anchor, dir string) (*guard, error) {
	cmd := exec.Command(anchor, "watch", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the watcher: %w", err)
	}
	p, err := ledger.Find(cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	return &guard{process: p, pipe: pipe, cmd: cmd}, nil
}

// dismiss ends the watcher without a clean-up. It may be repeated.
func (g *guard) dismiss() error {
	if g.cmd == nil {
		return nil
	}
	// It may have been killed already, by the clean-up that it waits for.
	_, _ = io.WriteString(g.pipe, "dismissed\n")
	g.pipe.Close()
	err := g.cmd.Wait()
	g.cmd = nil
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}
