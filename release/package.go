package release

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Packagers are the kinds of packages that there are.
var Packagers = []string{"deb", "rpm"}

// maintainer stands in the packages.
const maintainer = "eclusa maintainers <maintainers@eclusa.io>"

// Package packs the edge's program, built for a platform, with everything around
// it, and returns the file, which is put into dir. release/nfpm has what is
// packed, and says where it goes.
func Package(ctx context.Context, s Source, packager string, p Platform, program, dir string) (string, error) {
	stage, err := os.MkdirTemp("", "eclusa-package-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(stage) //nolint:errcheck // nothing to do about a temporary folder
	if err := s.stage(stage, program); err != nil {
		return "", fmt.Errorf("package %s for %s: %w", packager, p, err)
	}
	// In a folder of its own, so that the one file in it is what was made.
	out := filepath.Join(stage, "out")
	if err := os.Mkdir(out, 0o700); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "tool", "nfpm", "package", "--config", "nfpm.yaml", "--packager", packager, "--target", out)
	cmd.Dir = filepath.Join(s.Dir, "release", "nfpm")
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=readonly", "GOWORK=off",
		"STAGE="+stage, "ARCH="+p.Arch, "VERSION="+s.packageVersion(), "MAINTAINER="+maintainer,
		fmt.Sprintf("SOURCE_DATE_EPOCH=%d", s.Time.Unix()))
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("package %s for %s: %w\n%s", packager, p, err, text)
	}
	made, err := filepath.Glob(filepath.Join(out, "*."+packager))
	if err != nil {
		return "", err
	}
	if len(made) != 1 {
		return "", fmt.Errorf("package %s for %s: nfpm has made %d files, want one", packager, p, len(made))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // what is released is for everybody
		return "", err
	}
	file := filepath.Join(dir, filepath.Base(made[0]))
	return file, copyFile(made[0], file, 0o644)
}

// stage puts into dir what nfpm.yaml takes from ${STAGE}: what does not lie in
// release/nfpm as it goes into a package.
func (s Source) stage(dir, program string) error {
	if err := copyFile(program, filepath.Join(dir, Edge.Name), 0o755); err != nil {
		return err
	}
	license, err := os.ReadFile(filepath.Join(s.Dir, "LICENSE"))
	if err != nil {
		return err
	}
	reference, err := os.ReadFile(filepath.Join(s.Dir, "cmd", Edge.Name, "reference.yaml"))
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"LICENSE":             license,
		"reference.yaml":      reference,
		"changelog.Debian.gz": compressed(s.changelog()),
	}
	pages, err := fs.Glob(os.DirFS(s.Dir), "release/nfpm/generated/man/*")
	if err != nil {
		return err
	}
	for _, page := range pages {
		data, err := os.ReadFile(filepath.Join(s.Dir, page))
		if err != nil {
			return err
		}
		files[filepath.Join("man", filepath.Base(page)+".gz")] = compressed(data)
	}
	if err := os.Mkdir(filepath.Join(dir, "man"), 0o700); err != nil {
		return err
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil { //nolint:gosec // what is packed is for everybody
			return err
		}
	}
	return nil
}

// changelog is what Debian wants one for: the version and its time. What has
// changed is in the history of the source.
func (s Source) changelog() []byte {
	return fmt.Appendf(nil, "%s (%s-1) unstable; urgency=medium\n\n  * Release of %s, commit %s.\n\n -- %s  %s\n",
		Edge.Name, s.packageVersion(), s.Version, s.Revision, maintainer, s.Time.Format(time.RFC1123Z))
}

// compressed is gzip without a name and a time.
func compressed(data []byte) []byte {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		panic("release: gzip does not know its own best level: " + err.Error())
	}
	_, _ = w.Write(data) // to memory
	_ = w.Close()
	return b.Bytes()
}

func copyFile(from, to string, mode fs.FileMode) error {
	data, err := os.ReadFile(from) //nolint:gosec // both paths come from whoever makes the release
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, mode) //nolint:gosec // as above
}
