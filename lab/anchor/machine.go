package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lab/space"
)

const (
	// stage is where a machine's file system is put together.
	stage = "/mnt"
	// systemd is the first program of a machine.
	systemd = "/lib/systemd/systemd"
)

// become makes this process, the first in its namespaces, the systemd of a
// machine. It says that the machine is set up before systemd starts anything.
func become(h space.Host, to io.WriteCloser) error {
	runtime.LockOSThread() // whose control groups are seen differently
	if _, err := os.Stat(systemd); err != nil {
		return fmt.Errorf("%w: install the Debian package systemd", err)
	}
	if err := ownGroups(h.Machine.Group); err != nil {
		return fmt.Errorf("control groups: %w", err)
	}
	if err := ownRoot(h); err != nil {
		return err
	}
	if _, err := io.WriteString(to, space.Ready); err != nil {
		return err
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return err
		}
	}
	signal.Reset() // what is ignored stays ignored otherwise
	// Whatever is enabled on this machine is not what the copy is for: no more
	// than the base of all services is started.
	return syscall.Exec(systemd, []string{systemd, "--system", "--unit=sysinit.target", "--show-status=false", "--log-level=warning"},
		[]string{"container=eclusa", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"})
}

// ownGroups makes a control group the root of those that this process sees.
func ownGroups(group string) error {
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte("0"), 0); err != nil {
		return err
	}
	return unix.Unshare(unix.CLONE_NEWCGROUP)
}

// A fileSystem is one that is mounted for a machine.
type fileSystem struct {
	kind, target, options string
	flags                 uintptr
}

// ownRoot makes a copy of the file system the root of this process. What is
// written goes to memory. What the kernel has only once is read-only.
func ownRoot(h space.Host) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	var kept []*os.File // as they are before anything covers them
	for _, dir := range h.Keep {
		f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		kept = append(kept, f)
	}
	if err := mountAll("", fileSystem{"tmpfs", stage, "mode=755", 0}); err != nil {
		return err
	}
	root := filepath.Join(stage, "root")
	for _, dir := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(stage, dir), 0o755); err != nil {
			return err
		}
	}
	const quiet = unix.MS_NOSUID | unix.MS_NODEV
	err := mountAll(root,
		fileSystem{"overlay", "/", "lowerdir=/,upperdir=" + stage + "/upper,workdir=" + stage + "/work", 0},
		fileSystem{"tmpfs", "/run", "mode=755", quiet},
		fileSystem{"tmpfs", "/tmp", "mode=1777", quiet},
		fileSystem{"proc", "/proc", "", quiet | unix.MS_NOEXEC},
		fileSystem{"sysfs", "/sys", "", quiet | unix.MS_NOEXEC | unix.MS_RDONLY},
		fileSystem{"cgroup2", "/sys/fs/cgroup", "", quiet | unix.MS_NOEXEC},
		fileSystem{"tmpfs", "/dev", "mode=755", unix.MS_NOSUID})
	if err != nil {
		return err
	}
	if err := makeDevices(filepath.Join(root, "dev")); err != nil {
		return err
	}
	for _, f := range kept {
		if err := bindReadOnly(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), filepath.Join(root, f.Name())); err != nil {
			return err
		}
	}
	if err := bindReadOnly(filepath.Join(root, "proc/sys"), filepath.Join(root, "proc/sys")); err != nil {
		return err
	}
	// Neither the name nor the disks of this machine are the copy's.
	for file, text := range map[string]string{"hostname": h.Name + "\n", "fstab": "", "crypttab": ""} {
		if err := os.WriteFile(filepath.Join(root, "etc", file), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return pivot(root)
}

func mountAll(root string, all ...fileSystem) error {
	for _, f := range all {
		if err := unix.Mount(f.kind, filepath.Join(root, f.target), f.kind, f.flags, f.options); err != nil {
			return fmt.Errorf("mount %s: %w", f.target, err)
		}
	}
	return nil
}

// bindReadOnly shows a directory in another place, where nothing can be changed.
func bindReadOnly(from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %q: %w", to, err)
	}
	if err := unix.Mount("", to, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("make %q read-only: %w", to, err)
	}
	return nil
}

// makeDevices fills /dev with what programs expect, none of which is hardware.
func makeDevices(dev string) error {
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		if err := makeDevice(filepath.Join(dev, name), 1, minor); err != nil {
			return err
		}
	}
	if err := makeDevice(filepath.Join(dev, "tty"), 5, 0); err != nil {
		return err
	}
	for _, name := range []string{"shm", "pts", "mqueue", "hugepages"} {
		if err := os.Mkdir(filepath.Join(dev, name), 0o755); err != nil {
			return err
		}
	}
	if err := mountAll(dev, fileSystem{"devpts", "/pts", "newinstance,ptmxmode=0666,mode=620", unix.MS_NOSUID | unix.MS_NOEXEC}); err != nil {
		return err
	}
	if err := os.Symlink("pts/ptmx", filepath.Join(dev, "ptmx")); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dev, "console"), nil, 0o600)
}

func makeDevice(file string, major, minor uint32) error {
	if err := unix.Mknod(file, unix.S_IFCHR, int(unix.Mkdev(major, minor))); err != nil {
		return &fs.PathError{Op: "mknod", Path: file, Err: err}
	}
	return os.Chmod(file, 0o666) // whatever the umask says
}

// pivot makes root the root, and forgets the one of before.
func pivot(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot root to %q: %w", root, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the former root: %w", err)
	}
	return os.Chdir("/")
}
