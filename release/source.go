// Package release makes what people install: OCI images of the programs, and
// Debian and RPM packages of the edge, with a bill of materials and checksums
// beside them.
//
// What it makes depends on the commit and the Go version alone: not on the
// machine, the folder, the time or the user. So anybody can check that a release
// is what its source says. Neither Docker nor a registry is needed.
package release

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// A Source is a checkout that a release is made from.
type Source struct {
	Dir string // the root of the module
	// Version is the tag, such as "v1.2.3"; for a commit after it such as
	// "v1.2.3-4-g0123456789ab", and its hash alone if there is no tag. With
	// "-dirty" behind it if files have been changed.
	Version  string
	Revision string // the commit; with "-dirty" as well
	// Time is the commit's, which everything made gets as its time.
	Time time.Time
}

// ReadSource asks git about the checkout in dir. The environment variables VERSION
// and SOURCE_DATE_EPOCH (in seconds since 1970) say otherwise if they are set;
// with both, the source need not be a checkout.
func ReadSource(ctx context.Context, dir string) (Source, error) {
	s := Source{Dir: dir, Version: os.Getenv("VERSION")}
	epoch := os.Getenv("SOURCE_DATE_EPOCH")
	var err error
	if s.Revision, err = git(ctx, dir, "rev-parse", "HEAD"); err != nil {
		if s.Version == "" || epoch == "" {
			return Source{}, fmt.Errorf("%w: outside a checkout the variables VERSION and SOURCE_DATE_EPOCH must be set", err)
		}
		s.Revision = "unknown"
	}
	if s.Version == "" {
		// The length is fixed, since git's own grows with the number of commits
		// that a clone happens to have.
		if s.Version, err = git(ctx, dir, "describe", "--tags", "--match", "v[0-9]*", "--always", "--dirty", "--abbrev=12"); err != nil {
			return Source{}, err
		}
	}
	if strings.HasSuffix(s.Version, "-dirty") {
		s.Revision += "-dirty"
	}
	if epoch == "" {
		if epoch, err = git(ctx, dir, "log", "-1", "--format=%ct"); err != nil {
			return Source{}, err
		}
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil || seconds < 0 {
		return Source{}, fmt.Errorf("variable SOURCE_DATE_EPOCH: %q: must be a number of seconds since 1970", epoch)
	}
	s.Time = time.Unix(seconds, 0).UTC()
	return s, nil
}

func git(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		if exit, ok := err.(*exec.ExitError); ok { //nolint:errorlint // Output returns it bare
			return "", fmt.Errorf("git %s: %w: %s", args[0], err, strings.TrimSpace(string(exit.Stderr)))
		}
		return "", fmt.Errorf("git %s: %w", args[0], err)
	}
	return strings.TrimSpace(string(out)), nil
}

// described splits what git describe says: tag, pre-release, commits since.
var described = regexp.MustCompile(`^v(\d+\.\d+\.\d+)(?:-([0-9A-Za-z.]+))??(?:-(\d+)-g([0-9a-f]+))?$`)

// packageVersion returns the version as Debian and RPM compare it: pre-releases
// come before their release, commits after a tag behind it and in order, and a
// commit without any tag before every release.
func (s Source) packageVersion() string {
	version, dirty := strings.CutSuffix(s.Version, "-dirty")
	var out string
	if m := described.FindStringSubmatch(version); m != nil {
		out = m[1]
		if m[2] != "" {
			out += "~" + m[2]
		}
		if m[3] != "" {
			out += "+" + m[3] + ".g" + m[4]
		}
	} else {
		safe := regexp.MustCompile(`[^0-9A-Za-z.+~]+`).ReplaceAllString(version, ".")
		out = "0.0.0~" + s.Time.Format("20060102150405") + ".g" + safe
	}
	if dirty {
		out += "+dirty"
	}
	return out
}

// Tag returns the version as a tag of an image, which may not have a "+".
func (s Source) Tag() string { return strings.ReplaceAll(s.Version, "+", "-") }
