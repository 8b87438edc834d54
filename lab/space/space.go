// Package space enters Linux namespaces. A Space is known by the process that
// holds it open; nothing is mounted or named anywhere, so that a space is gone
// with its last process.
//
// Entering changes the calling thread, which a Go program must take care of:
// Net changes only the network namespace and changes it back, so that the
// thread can be used again. Start and the child of Start live in all
// namespaces, and their thread is thrown away.
package space

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// Namespaces are the clone flags of those that a host has of its own.
const Namespaces = unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNS

// Space is the set of namespaces of one process.
type Space struct {
	// PID is the process that holds the namespaces, usually an anchor.
	PID int
}

// Net runs f on a thread inside the network namespace of s and returns its
// error. What f creates (sockets above all) stays in that namespace; a
// goroutine that f starts does not. Safe for concurrent use.
func (s Space) Net(f func() error) error {
	var err error
	offMain(func() { err = s.net(f) })
	return err
}

// net is called with the thread locked, and leaves one lock on it when it could
// not bring the thread back.
func (s Space) net(f func() error) error {
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer own.Close()
	if err := s.enterNet(); err != nil {
		return err
	}
	err = f()
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
		runtime.LockOSThread()
		return fmt.Errorf("leave the network namespace of process %d: %w", s.PID, back)
	}
	return err
}

// Start starts cmd in all namespaces of s: network, mounts, host name, IPC and
// process numbers. Paths in cmd are those of its mount namespace.
func (s Space) Start(cmd *exec.Cmd) error {
	var err error
	offMain(func() {
		// The runtime ends a thread whose goroutine ends locked: it cannot
		// come back from another mount namespace.
		runtime.LockOSThread()
		if err = s.Attach(); err == nil {
			err = cmd.Start()
		}
	})
	return err
}

// offMain runs f in a goroutine locked to a thread that is not the program's
// first. That one stands for the whole process in /proc/self, and would stay in
// foreign namespaces for good, since the runtime cannot end it.
func offMain(f func()) {
	done := make(chan struct{})
	go locked(f, done)
	<-done
}

func locked(f func(), done chan<- struct{}) {
	defer close(done)
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// Holding this thread, f gets another.
		offMain(f)
		runtime.UnlockOSThread()
		return
	}
	f()
	runtime.UnlockOSThread()
}

// Attach moves the calling thread, which must be locked to its goroutine for
// good, into all namespaces of s. Process numbers are those of s only for
// processes that the thread starts afterwards.
func (s Space) Attach() error {
	// Threads share their working directory and root; a mount namespace can
	// only be entered by one that does not.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare working directory: %w", err)
	}
	// One call enters all, so /proc may show another world in between.
	fd, err := unix.PidfdOpen(s.PID, 0)
	if err != nil {
		return fmt.Errorf("process %d: %w", s.PID, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, Namespaces); err != nil {
		return fmt.Errorf("enter the namespaces of process %d: %w", s.PID, err)
	}
	return nil
}

func (s Space) enterNet() error {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", s.PID))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the network namespace of process %d: %w", s.PID, err)
	}
	return nil
}
