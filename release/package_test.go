package release

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// packages are made once for all tests: the Debian package of two versions, and
// one for RPM.
var packages = sync.OnceValues(func() (made [3]string, err error) {
	program, err := compiled()
	if err != nil {
		return made, err
	}
	s := source()
	for i, p := range []struct{ packager, version string }{{"deb", s.Version}, {"deb", "v1.2.4"}, {"rpm", s.Version}} {
		s.Version = p.version
		if made[i], err = Package(context.Background(), s, p.packager, Platform{"linux", runtime.GOARCH}, program, programs); err != nil {
			return made, err
		}
	}
	return made, nil
})

func packaged(t *testing.T) [3]string {
	t.Helper()
	made, err := packages()
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// output runs a tool and returns what it prints.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, errs.String())
	}
	return string(out)
}

// installed are the files that every package has.
var installed = []string{
	"/etc/eclusa/edge.yaml",
	"/usr/bin/eclusa-edge",
	"/usr/lib/systemd/system/eclusa-edge.service",
	"/usr/lib/sysusers.d/eclusa-edge.conf",
	"/usr/share/bash-completion/completions/eclusa-edge",
	"/usr/share/doc/eclusa-edge/reference.yaml",
	"/usr/share/fish/vendor_completions.d/eclusa-edge.fish",
	"/usr/share/man/man8/eclusa-edge.8.gz",
	"/usr/share/man/man8/eclusa-edge-pki-cluster.8.gz",
}

// TestDebianPackage looks at what Debian's own checks would look at.
func TestDebianPackage(t *testing.T) {
	need(t, "dpkg-deb")
	deb := packaged(t)[0]
	if got := filepath.Base(deb); got != "eclusa-edge_1.2.3-1_"+runtime.GOARCH+".deb" {
		t.Errorf("name of the package: got %s", got)
	}
	for field, want := range map[string]string{
		"Package": "eclusa-edge", "Version": "1.2.3-1", "Architecture": runtime.GOARCH, "Section": "net", "Priority": "optional",
		"Maintainer": maintainer, "Depends": "passwd, util-linux", "Recommends": "systemd", "Homepage": "https://github.com/eclusa-lb/eclusa",
	} {
		if got := strings.TrimSpace(output(t, "dpkg-deb", "-f", deb, field)); got != want {
			t.Errorf("%s: got %q; want %q", field, got, want)
		}
	}
	synopsis, _, long := strings.Cut(output(t, "dpkg-deb", "-f", deb, "Description"), "\n")
	if len(synopsis) > 80 || strings.HasSuffix(synopsis, ".") || !long {
		t.Errorf("description %q: must be one short line without a full stop, and more below it", synopsis)
	}
	control := t.TempDir()
	output(t, "dpkg-deb", "-e", deb, control)
	if got := string(read(t, filepath.Join(control, "conffiles"))); got != "/etc/eclusa/edge.yaml\n" {
		t.Errorf("files that belong to the administrator: got %q", got)
	}
	root := t.TempDir()
	output(t, "dpkg-deb", "-x", deb, root)
	cmd := exec.Command("md5sum", "--check", "--strict", "--quiet", filepath.Join(control, "md5sums"))
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("md5sums: %v\n%s", err, out)
	}
	var names []string
	for line := range strings.Lines(output(t, "dpkg-deb", "-c", deb)) {
		f := strings.Fields(line)
		mode, owner, name := f[0], f[1], strings.TrimPrefix(f[5], ".")
		names = append(names, name)
		want := map[bool]string{true: "drwxr-xr-x", false: "-rw-r--r--"}[mode[0] == 'd']
		if name == "/usr/bin/eclusa-edge" {
			want = "-rwxr-xr-x"
		}
		if mode != want || owner != "root/root" {
			t.Errorf("%s: got mode %s of %s; want %s of root", name, mode, owner, want)
		}
	}
	for _, want := range append([]string{
		"/usr/share/doc/eclusa-edge/copyright", "/usr/share/doc/eclusa-edge/changelog.Debian.gz",
		"/usr/share/zsh/vendor-completions/_eclusa-edge",
	}, installed...) {
		if !slices.Contains(names, want) {
			t.Errorf("%s is missing", want)
		}
	}
}

func TestRPMPackage(t *testing.T) {
	need(t, "rpm")
	pkg := packaged(t)[2]
	query := func(args ...string) string {
		// A database of its own: the machine's need not exist.
		return output(t, "rpm", append([]string{"--dbpath", t.TempDir(), "-qp", "--nosignature"}, append(args, pkg)...)...)
	}
	if got := query("--qf", "%{NAME} %{VERSION} %{RELEASE} %{LICENSE} %{BUILDHOST} %{BUILDTIME}"); got != "eclusa-edge 1.2.3 1 Apache-2.0 localhost 1767323045" {
		t.Errorf("got %q", got)
	}
	names := strings.Fields(query("-l"))
	for _, want := range append([]string{"/usr/share/licenses/eclusa-edge/LICENSE", "/usr/share/zsh/site-functions/_eclusa-edge"}, installed...) {
		if !slices.Contains(names, want) {
			t.Errorf("%s is missing", want)
		}
	}
	if got := strings.TrimSpace(query("-c")); got != "/etc/eclusa/edge.yaml" {
		t.Errorf("files that belong to the administrator: got %q", got)
	}
	requires := query("--requires")
	for _, want := range []string{"shadow-utils", "util-linux"} {
		if !strings.Contains(requires, want) {
			t.Errorf("requires: got %q; want %s among it", requires, want)
		}
	}
	scripts := query("--scripts")
	for _, want := range []string{"postinstall scriptlet", "preuninstall scriptlet", "postuninstall scriptlet"} {
		if !strings.Contains(scripts, want) {
			t.Errorf("%s is missing", want)
		}
	}
}

// TestPackageIsReproducible makes packages twice, of a program that looks to be of
// different ages.
func TestPackageIsReproducible(t *testing.T) {
	for _, packager := range Packagers {
		var made [2][]byte
		for i := range made {
			program := filepath.Join(t.TempDir(), Edge.Name)
			write(t, program, "a program")
			if err := os.Chtimes(program, time.Time{}, time.Now().AddDate(0, 0, i)); err != nil {
				t.Fatal(err)
			}
			file, err := Package(t.Context(), source(), packager, Platform{"linux", "arm64"}, program, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			made[i] = read(t, file)
		}
		if !bytes.Equal(made[0], made[1]) {
			t.Errorf("%s: made twice, it differs", packager)
		}
	}
}

func TestPackageComplains(t *testing.T) {
	_, err := Package(t.Context(), source(), "tarball", Platform{"linux", "amd64"}, os.Args[0], t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "package tarball for linux/amd64") {
		t.Errorf("unknown packager: got %v; want it named", err)
	}
}
