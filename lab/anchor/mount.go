package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lab/space"
)

// mount gives the host its view of the file system. It runs in a mount
// namespace of its own, so nothing of it is seen outside.
func mount(h space.Host) error {
	// Unmounts outside reach in, so that the host pins nothing; what the
	// host mounts stays inside. Pods expect shared mounts.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts slaves: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	if err := dropNamespaces(); err != nil {
		return err
	}
	if h.Var != "" {
		if err := ownVar(h); err != nil {
			return err
		}
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// Only files of /proc can cover files of /proc for the programs of this
	// host while the machine's own settings stay as they are.
	for path, file := range h.Cover {
		if _, err := os.Stat(path); os.IsNotExist(err) {
			continue
		}
		if err := bind(file, path); err != nil {
			return err
		}
	}
	return nil
}

// dropNamespaces forgets the named network namespaces that came along with the
// copy of the mounts: they could not be deleted outside as long as they are
// mounted here.
func dropNamespaces() error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		front, back, _ := strings.Cut(line, " - ")
		f := strings.Fields(front)
		if len(f) > 4 && strings.HasPrefix(back, "nsfs ") {
			// Gone already is as good.
			_ = unix.Unmount(f[4], unix.MNT_DETACH)
		}
	}
	return nil
}

// ownVar gives the host a /var and a /run of its own, which hold all that
// containerd, kubelet and the network plugins keep. The directories in Keep
// stay where they are, even below those two.
func ownVar(h space.Host) error {
	var kept []*os.File
	for _, dir := range h.Keep {
		f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		kept = append(kept, f)
	}
	if err := bind(h.Var, "/var"); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if err := os.Mkdir("/run/lock", 0o755); err != nil {
		return err
	}
	for _, f := range kept {
		var was, is unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &was); err != nil {
			return err
		}
		if unix.Stat(f.Name(), &is) == nil && is.Ino == was.Ino && is.Dev == was.Dev {
			continue
		}
		if err := os.MkdirAll(f.Name(), 0o755); err != nil {
			return err
		}
		if err := bind(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), f.Name()); err != nil {
			return err
		}
	}
	return nil
}

func bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %q on %q: %w", from, filepath.Clean(to), err)
	}
	return nil
}
