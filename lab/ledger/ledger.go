// Package ledger remembers what a lab has made on the machine and takes it
// down again. The record is a file in the lab's directory, written before the
// thing it names is made, so that whoever finds the directory later can clean
// up completely after a lab that was killed.
//
// A lab makes four kinds of things outside its directory: holder processes
// (the first process of each host; all other processes, mounts and network
// devices live in their namespaces and end with them), control groups, and the
// watcher process that cleans up when the lab's owner dies.
package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const file = "ledger.json"

// Ledger is the record of one lab.
type Ledger struct {
	// Dir is the lab's directory, where the record itself lies.
	Dir string `json:"dir"`
	// Boot is the kernel's boot id: after a reboot no process of the record
	// is left, whatever its number.
	Boot string `json:"boot"`
	// Owner is the process that brought the lab up. Detached says that it
	// left the lab running on purpose.
	Owner    Process `json:"owner"`
	Detached bool    `json:"detached"`
	// Watcher cleans up when the owner dies without having done so.
	Watcher Process `json:"watcher"`
	// Holders are the first processes of the hosts.
	Holders []Process `json:"holders"`
	// Cgroups are paths relative to each control group hierarchy's root.
	Cgroups []string `json:"cgroups"`
	// Paths are removed with everything below them. The directory itself
	// is only removed when it is among them or empty afterwards.
	Paths []string `json:"paths"`
}

// New returns an empty record for the lab in dir, owned by this process.
func New(dir string) (*Ledger, error) {
	own, err := Find(os.Getpid())
	if err != nil {
		return nil, err
	}
	return &Ledger{Dir: dir, Boot: bootID(), Owner: own}, nil
}

// Read reads the record in dir; fs.ErrNotExist when there is none.
func Read(dir string) (*Ledger, error) {
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return nil, err
	}
	var l Ledger
	if err := json.Unmarshal(data, &l); err != nil {
		return nil, fmt.Errorf("ledger of lab %q: %w", dir, err)
	}
	if l.Dir != dir {
		return nil, fmt.Errorf("ledger of lab %q: it belongs to %q", dir, l.Dir)
	}
	return &l, nil
}

// Write saves the record: whole or not at all.
func (l *Ledger) Write() error {
	data, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	name := filepath.Join(l.Dir, file)
	if err := os.WriteFile(name+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// Running reports whether any host of the lab is still there.
func (l *Ledger) Running() bool {
	if l.Boot != bootID() {
		return false
	}
	for _, p := range l.Holders {
		if p.Running() {
			return true
		}
	}
	return false
}

// Clean takes down whatever the record in dir names: hosts with all their
// processes and mounts, the watcher, control groups, files. It may be repeated,
// also by several processes at once, and does what it can before it returns
// the first error. A directory without a record is left alone.
func Clean(dir string) error {
	l, err := Read(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if l.Boot == bootID() {
		if err := l.kill(); err != nil {
			return err
		}
	}
	return errors.Join(removeCgroups(l.Cgroups), l.removePaths())
}

// kill ends the holders, and with them everything in their namespaces.
func (l *Ledger) kill() error {
	ps := l.Holders
	if l.Watcher.PID != os.Getpid() {
		ps = append([]Process{l.Watcher}, ps...)
	}
	for _, p := range ps {
		if p.Running() {
			// A process that ended meanwhile is what was wanted.
			_ = unix.Kill(p.PID, unix.SIGKILL)
		}
	}
	deadline := time.Now().Add(20 * time.Second)
	for _, p := range ps {
		for p.Running() {
			if time.Now().After(deadline) {
				return fmt.Errorf("lab %q: process %d does not end", l.Dir, p.PID)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return nil
}

func (l *Ledger) removePaths() error {
	var first error
	for _, path := range l.Paths {
		if err := refuseMounts(path); err != nil {
			return err
		}
		if err := os.RemoveAll(path); err != nil && first == nil {
			first = err
		}
	}
	if first != nil {
		return first
	}
	if err := os.Remove(filepath.Join(l.Dir, file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Whatever the user keeps there stays.
	_ = os.Remove(l.Dir)
	return nil
}
