package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/eclusa-lb/eclusa/lab/ledger"
	"github.com/eclusa-lb/eclusa/lab/space"
)

// hostFiles is what a host sees of the file system beyond the machine's own.
type hostFiles struct {
	// ownVar gives it a /var and a /run of its own, kept below the lab's
	// directory and still there when the host is booted again.
	ownVar bool
	// cover are kernel settings, below /proc/sys, that programs on the host
	// find set already.
	cover map[string]string
	// machine gives it a systemd, and a copy of the whole file system that is
	// gone with the host. The above does not count then.
	machine bool
}

// power boots a host of the plan and connects it.
func (l *Lab) power(h *Host, p place) error {
	var files hostFiles
	sysctls := map[string]string{}
	switch {
	case p.kind == nodeKind:
		files = hostFiles{ownVar: true, cover: kubeletSysctls}
		sysctls = forwarding
	case h.machine:
		files = hostFiles{machine: true}
	}
	if err := l.boot(h, files); err != nil {
		return err
	}
	if err := h.loopback(sysctls); err != nil {
		return err
	}
	return l.connect(h, p.subnet)
}

// boot starts the host's first process in new namespaces and waits until it
// has set the host up.
func (l *Lab) boot(h *Host, files hostFiles) error {
	desc, err := l.describe(h, files)
	if err != nil {
		return err
	}
	cmd := exec.Command(l.bin("anchor"), "hold")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: space.Namespaces}
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("host %q: %w", h.Name, err)
	}
	// Until it has its description the process ends when we do. So it is in
	// the ledger before it is able to outlive us.
	if h.holder, err = ledger.Find(cmd.Process.Pid); err == nil {
		err = l.record(func(b *ledger.Ledger) { b.Holders = append(b.Holders, h.holder) })
	}
	if err == nil {
		_, err = in.Write(desc)
	}
	in.Close()
	if err != nil {
		_ = cmd.Process.Kill()
		return fmt.Errorf("host %q: %w", h.Name, err)
	}
	said, err := io.ReadAll(out)
	if err != nil || string(said) != space.Ready {
		_ = cmd.Wait()
		return fmt.Errorf("host %q: %s", h.Name, strings.TrimSpace(complaint.String()))
	}
	go reap(cmd)
	return nil
}

func (l *Lab) describe(h *Host, files hostFiles) ([]byte, error) {
	d := space.Host{Name: h.Name}
	dir := l.path("host", h.Name)
	if files.machine {
		group, err := l.machineGroup(h)
		if err != nil {
			return nil, fmt.Errorf("host %q: %w", h.Name, err)
		}
		d.Machine = &space.Machine{Group: group}
		d.Keep = []string{l.Options.Dir}
	}
	if files.ownVar {
		d.Var = filepath.Join(dir, "var")
		d.Keep = []string{l.Options.Dir, l.Options.LogDir, l.programs}
		if err := makeVar(d.Var); err != nil {
			return nil, err
		}
	}
	for name, value := range files.cover {
		file := filepath.Join(dir, "proc", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return nil, err
		}
		if d.Cover == nil {
			d.Cover = map[string]string{}
		}
		d.Cover["/proc/sys/"+name] = file
	}
	return json.Marshal(d)
}

// makeVar fills a host's /var with what programs expect to find there.
func makeVar(dir string) error {
	for _, sub := range []string{"lib/kubelet", "lib/containerd", "lib/cni", "log/pods", "log/containers", "tmp", "cache"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{"run": "/run", "lock": "/run/lock"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil && !os.IsExist(err) {
			return err
		}
	}
	return nil
}

// until calls f, every few milliseconds at first, until it returns nil. When that
// takes longer than limit, it returns f's last error, or that of the whole ctx if
// it has ended.
func until(whole context.Context, limit time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(whole, limit)
	defer cancel()
	wait := 20 * time.Millisecond
	var last error
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		// The error of a call that ran into the limit says less than the
		// one before.
		if last == nil || ctx.Err() == nil {
			last = err
		}
		if pause(ctx, wait) != nil {
			if whole.Err() != nil {
				return whole.Err()
			}
			return last
		}
		wait = min(wait*5/4, 200*time.Millisecond)
	}
}
