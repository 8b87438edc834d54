package ledger

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Hierarchy is one mounted control group hierarchy.
type Hierarchy struct {
	// Root is where it is mounted.
	Root string
	// V2 tells the unified hierarchy from the old ones.
	V2 bool
}

// Hierarchies returns the control group hierarchies of the machine.
func Hierarchies() ([]Hierarchy, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseHierarchies(string(data)), nil
}

func parseHierarchies(mountinfo string) []Hierarchy {
	var hs []Hierarchy
	for line := range strings.Lines(mountinfo) {
		point, kind, ok := parseMount(line)
		if ok && (kind == "cgroup" || kind == "cgroup2") {
			hs = append(hs, Hierarchy{Root: point, V2: kind == "cgroup2"})
		}
	}
	return hs
}

// parseMount reads the mount point and file system type from a line of
// mountinfo.
func parseMount(line string) (point, kind string, ok bool) {
	front, back, ok := strings.Cut(line, " - ")
	f, b := strings.Fields(front), strings.Fields(back)
	if !ok || len(f) < 5 || len(b) < 1 {
		return "", "", false
	}
	return unescape.Replace(f[4]), b[0], true
}

// unescape undoes how the kernel writes blanks in mount points.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// removeCgroups removes each group with those below it from every hierarchy.
// The kernel refuses for a moment after the last process ended.
func removeCgroups(groups []string) error {
	hs, err := Hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range hs {
		for _, g := range groups {
			if !filepath.IsLocal(g) || filepath.Clean(g) == "." {
				errs = append(errs, fmt.Errorf("control group %q: not a name below the root", g))
				continue
			}
			errs = append(errs, removeCgroup(filepath.Join(h.Root, g)))
		}
	}
	return errors.Join(errs...)
}

func removeCgroup(dir string) error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		err := removeTree(dir)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// removeTree removes directories only: the files in a control group are not
// really there.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

// refuseMounts keeps a removal from reaching into file systems that somebody
// has mounted below path.
func refuseMounts(path string) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		point, _, ok := parseMount(line)
		if ok && (point == path || strings.HasPrefix(point, path+"/")) {
			return fmt.Errorf("remove %q: %q is mounted there", path, point)
		}
	}
	return nil
}
