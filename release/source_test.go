package release

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// checkout makes a repository with one commit and returns a function that runs
// git in it.
func checkout(t *testing.T, dir string) func(args ...string) {
	t.Helper()
	t.Setenv("VERSION", "")
	t.Setenv("SOURCE_DATE_EPOCH", "")
	run := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=t", "-c", "user.email=t@example.test"}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_COMMITTER_DATE=2026-01-02T03:04:05Z", "GIT_AUTHOR_DATE=2026-01-02T03:04:05Z", "GIT_CONFIG_GLOBAL=/dev/null")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	run("init", "-q")
	write(t, filepath.Join(dir, "file"), "one")
	run("add", ".")
	run("commit", "-qm", "one")
	return run
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestReadSource(t *testing.T) {
	dir := t.TempDir()
	run := checkout(t, dir)
	read := func() Source {
		t.Helper()
		s, err := ReadSource(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := read()
	if len(s.Revision) != 40 || s.Version != s.Revision[:12] || !s.Time.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) {
		t.Errorf("without a tag: got %+v; want the beginning of the commit as its version, and its time", s)
	}
	run("tag", "v1.2.3")
	run("tag", "unrelated")
	if s = read(); s.Version != "v1.2.3" {
		t.Errorf("on a tag: got %q; want v1.2.3", s.Version)
	}
	run("commit", "-qm", "two", "--allow-empty")
	if s = read(); s.Version != "v1.2.3-1-g"+s.Revision[:12] {
		t.Errorf("behind a tag: got %q", s.Version)
	}
	write(t, filepath.Join(dir, "file"), "two")
	if s = read(); !strings.HasSuffix(s.Version, "-dirty") || !strings.HasSuffix(s.Revision, "-dirty") {
		t.Errorf("changed: got %q and %q; want it said of both", s.Version, s.Revision)
	}
	t.Setenv("VERSION", "v9")
	t.Setenv("SOURCE_DATE_EPOCH", "86400")
	if s = read(); s.Version != "v9" || s.Time.Unix() != 86400 {
		t.Errorf("told otherwise: got %+v", s)
	}
	if s, err := ReadSource(t.Context(), t.TempDir()); err != nil || s.Version != "v9" || s.Revision != "unknown" {
		t.Errorf("outside a checkout, told everything: got %+v, %v", s, err)
	}
	t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
	if _, err := ReadSource(t.Context(), dir); err == nil || !strings.Contains(err.Error(), `SOURCE_DATE_EPOCH: "yesterday"`) {
		t.Errorf("wrong time: got %v; want it named", err)
	}
	t.Setenv("SOURCE_DATE_EPOCH", "")
	if _, err := ReadSource(t.Context(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "VERSION and SOURCE_DATE_EPOCH must be set") {
		t.Errorf("outside a checkout: got %v; want what to set", err)
	}
}

// TestPackageVersion has versions in their order.
func TestPackageVersion(t *testing.T) {
	at := func(version string, day int) Source {
		return Source{Version: version, Time: time.Date(2026, 1, day, 0, 0, 0, 0, time.UTC)}
	}
	versions := []struct {
		source Source
		want   string
	}{
		{at("0123456789ab", 1), "0.0.0~20260101000000.g0123456789ab"},
		{at("0023456789ab-dirty", 2), "0.0.0~20260102000000.g0023456789ab+dirty"},
		{at("v0.0.0", 3), "0.0.0"},
		{at("v1.2.3-rc.1", 4), "1.2.3~rc.1"},
		{at("v1.2.3-rc.1-2-g0123456789ab", 5), "1.2.3~rc.1+2.g0123456789ab"},
		{at("v1.2.3-rc.2", 6), "1.2.3~rc.2"},
		{at("v1.2.3", 7), "1.2.3"},
		{at("v1.2.3-9-g0123456789ab", 8), "1.2.3+9.g0123456789ab"},
		{at("v1.2.3-10-g0023456789ab-dirty", 9), "1.2.3+10.g0023456789ab+dirty"},
		{at("v1.2.4", 10), "1.2.4"},
	}
	for _, v := range versions {
		if got := v.source.packageVersion(); got != v.want {
			t.Errorf("%q: got %q; want %q", v.source.Version, got, v.want)
		}
	}
	need(t, "dpkg")
	for i := range versions[1:] {
		a, b := versions[i].want+"-1", versions[i+1].want+"-1"
		if err := exec.Command("dpkg", "--compare-versions", a, "lt", b).Run(); err != nil {
			t.Errorf("dpkg does not think that %s is older than %s: %v", a, b, err)
		}
	}
}

// need skips a test whose tool is missing, and fails it where that must not be.
func need(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is missing: %v", tool, err)
			}
			t.Skipf("%s is missing: %v", tool, err)
		}
	}
}
