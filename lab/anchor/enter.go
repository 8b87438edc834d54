package main

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lab/space"
)

// enter runs argv inside all namespaces of a process and ends with its exit
// code. The command dies with this process, which exec.CommandContext can kill
// where it could not reach into another process namespace.
func enter(pid int, argv []string) error {
	dir, err := os.Getwd()
	if err != nil {
		dir = "/"
	}
	own, err := os.Executable()
	if err != nil {
		return err
	}
	// The command is leashed to the thread that forks it.
	runtime.LockOSThread()
	if err := (space.Space{PID: pid}).Attach(); err != nil {
		return err
	}
	if _, err := os.Stat(dir); err != nil {
		dir = "/"
	}
	cmd := exec.Command(own, append([]string{"leash"}, argv...)...)
	cmd.Dir = dir
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// The terminal sends its signals to the command as well; others are
	// passed on.
	signal.Ignore(syscall.SIGINT, syscall.SIGQUIT)
	passed := make(chan os.Signal, 4)
	signal.Notify(passed, syscall.SIGTERM, syscall.SIGHUP)
	if err := cmd.Start(); err != nil {
		return err
	}
	go pass(passed, cmd.Process)
	return cmd.Wait()
}

// leash runs argv in place of this program, and lets the kernel kill it when
// its parent, in the process namespace outside, dies. SysProcAttr.Pdeathsig
// cannot do that: it takes a parent in another namespace for a dead one.
func leash(argv []string) error {
	runtime.LockOSThread()
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	if os.Getppid() != 0 {
		return errors.New("the parent is gone")
	}
	return syscall.Exec(path, argv, os.Environ())
}

// pass ends with the program.
func pass(from <-chan os.Signal, to *os.Process) {
	for s := range from {
		_ = to.Signal(s)
	}
}
