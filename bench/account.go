package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lab/ledger"
)

// account is a control group that tells how much memory the kernel has for its
// processes.
type account struct {
	dir string
	v2  bool
}

func newAccount(name string) (*account, error) {
	all, err := ledger.Hierarchies()
	if err != nil {
		return nil, err
	}
	for _, h := range all {
		a := &account{filepath.Join(h.Root, name), h.V2}
		if h.V2 {
			_ = os.WriteFile(filepath.Join(h.Root, "cgroup.subtree_control"), []byte("+memory"), 0o644)
		}
		if err := os.Mkdir(a.dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		if _, err := a.read(); err == nil {
			return a, nil
		}
		if err := a.close(); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("no control group has an account of the kernel's memory: the controller \"memory\" is needed, of either version")
}

func (a *account) add(pid int) error {
	if err := os.WriteFile(filepath.Join(a.dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return fmt.Errorf("control group of process %d: %w", pid, err)
	}
	return nil
}

func (a *account) read() (int64, error) {
	if a.v2 {
		text, err := os.ReadFile(filepath.Join(a.dir, "memory.stat"))
		if err != nil {
			return 0, err
		}
		for line := range bytes.Lines(text) {
			if rest, ok := bytes.CutPrefix(line, []byte("kernel ")); ok {
				return strconv.ParseInt(string(bytes.TrimSpace(rest)), 10, 64)
			}
		}
		return 0, errors.New("no line \"kernel\"")
	}
	text, err := os.ReadFile(filepath.Join(a.dir, "memory.kmem.usage_in_bytes"))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
}

func (a *account) kernel() int64 {
	n, _ := a.read()
	return n
}

// close removes the group. The kernel refuses for a moment after the last process
// has ended.
func (a *account) close() error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Rmdir(a.dir)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
	}
}
