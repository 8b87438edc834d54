package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lab/ledger"
)

// cgroup is the control group of the whole lab, below the root of each
// hierarchy; each node has one below it, in which kubelet makes its own.
func (o Options) cgroup() string { return "eclusa-lab-" + o.Name }

// makeCgroup makes a control group in every hierarchy, which is what kubelet
// wants of its cgroupRoot: with cgroup v1 it must exist in all of them, also
// in those without a controller.
func makeCgroup(name string) error {
	hs, err := ledger.Hierarchies()
	if err != nil {
		return err
	}
	if len(hs) == 0 {
		return errors.New("no control group hierarchy is mounted: kubelet needs cgroup v1 or v2 below /sys/fs/cgroup")
	}
	for _, h := range hs {
		dir := h.Root
		for part := range strings.SplitSeq(name, "/") {
			if h.V2 {
				enableControllers(dir)
			}
			dir = filepath.Join(dir, part)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			if err := inheritCpuset(dir); err != nil {
				return fmt.Errorf("control group %q: %w", dir, err)
			}
		}
	}
	return nil
}

// enableControllers passes the controllers of a v2 group on to the groups below
// it. One that refuses (in use by v1, or by processes of a container's root
// group) is left out; kubelet names it if it cannot do without.
func enableControllers(dir string) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return
	}
	for c := range strings.FieldsSeq(string(data)) {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644)
	}
}

// inheritCpuset fills in what a new v1 cpuset group lacks: no process can enter
// it before.
func inheritCpuset(dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		file := filepath.Join(dir, name)
		have, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) || len(strings.TrimSpace(string(have))) > 0 {
			continue
		}
		if err != nil {
			return err
		}
		want, err := os.ReadFile(filepath.Join(filepath.Dir(dir), name))
		if err != nil {
			// A v2 root group has none, and a v2 child inherits by itself.
			continue
		}
		if err := os.WriteFile(file, want, 0o644); err != nil && !errors.Is(err, unix.ENOSPC) {
			return err
		}
	}
	return nil
}
