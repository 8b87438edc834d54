package release

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestWriteChecksums(t *testing.T) {
	need(t, "sha256sum")
	dir := t.TempDir()
	a, b := filepath.Join(dir, "b file"), filepath.Join(dir, "a")
	write(t, a, "one")
	write(t, b, "two")
	if _, err := WriteChecksums(dir, a, b); err != nil {
		t.Fatal(err)
	}
	check := func() (string, error) {
		cmd := exec.Command("sha256sum", "--check", "--strict", checksumsFile)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := check(); err != nil || out != "a: OK\nb file: OK\n" {
		t.Errorf("sha256sum --check: got %q, %v; want both, in order", out, err)
	}
	write(t, b, "three")
	if out, err := check(); err == nil || !strings.Contains(out, "a: FAILED") {
		t.Errorf("a changed file: got %q, %v; want it found", out, err)
	}
	if _, err := WriteChecksums(dir, filepath.Join(t.TempDir(), "c")); err == nil {
		t.Error("a file that is not there: got no error")
	}
}
