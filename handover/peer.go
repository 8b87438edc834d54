package handover

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// peer is the process at the other end.
type peer struct {
	pid int
	fd  int // of the process, so that its number is not another one's; -1 is none
}

// lookAt returns the process at the other end, and refuses those of other users
// than root, this process's, and those that are trusted.
func lookAt(c *net.UnixConn, trusted ...int) (peer, error) {
	nobody := peer{fd: -1}
	raw, err := c.SyscallConn()
	if err != nil {
		return nobody, err
	}
	var cred *unix.Ucred
	var sockErr error
	if err := raw.Control(func(fd uintptr) {
		cred, sockErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nobody, err
	}
	if sockErr != nil {
		return nobody, os.NewSyscallError("getsockopt peercred", sockErr)
	}
	if me := os.Geteuid(); cred.Uid != 0 && int(cred.Uid) != me && !slices.Contains(trusted, int(cred.Uid)) {
		return nobody, fmt.Errorf("process %d belongs to user %d; it must be user %d as this one, or root", cred.Pid, cred.Uid, me)
	}
	p := peer{pid: int(cred.Pid), fd: -1}
	_ = p.open() // without it the process cannot be killed, which kill says
	return p, nil
}

// ownerFor returns whom root trusts in a directory beside itself: the user that it
// belongs to, who may do there what it likes anyway.
func ownerFor(euid int, dir string) []int {
	var info unix.Stat_t
	if euid != 0 || unix.Stat(dir, &info) != nil {
		return nil
	}
	return []int{int(info.Uid)}
}

// open takes hold of the process.
func (p *peer) open() error {
	if p.pid <= 0 {
		return errors.New("the process is in another namespace of processes")
	}
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	p.fd = fd
	return nil
}

// kill ends the process if it can be reached.
func (p *peer) kill() error {
	if p.fd < 0 {
		return fmt.Errorf("process %d cannot be reached from here", p.pid)
	}
	return os.NewSyscallError("pidfd_send_signal", unix.PidfdSendSignal(p.fd, unix.SIGKILL, nil, 0))
}

func (p *peer) close() {
	if p.fd >= 0 {
		_ = unix.Close(p.fd)
		p.fd = -1
	}
}
