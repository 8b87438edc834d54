package release

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// programs is a folder for what is compiled once for all tests.
var programs string

func TestMain(m *testing.M) {
	code := 1
	dir, err := os.MkdirTemp("", "eclusa-release-test-")
	if err == nil {
		programs = dir
		code = m.Run()
		err = os.RemoveAll(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// compiled builds the edge for this machine.
var compiled = sync.OnceValues(func() (string, error) {
	s := source()
	files, err := Build(context.Background(), s, Platform{"linux", runtime.GOARCH}, programs, Edge)
	if err != nil {
		return "", err
	}
	return files[0], nil
})

// source is this checkout, as if it had a tag.
func source() Source {
	return Source{Dir: "..", Version: "v1.2.3", Revision: "0123456789abcdef0123456789abcdef01234567", Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
}

// edgeProgram returns the edge's executable and what it was built from.
func edgeProgram(t *testing.T) (Source, string) {
	t.Helper()
	file, err := compiled()
	if err != nil {
		t.Fatal(err)
	}
	return source(), file
}

// unpack unpacks an archive of images.
func unpack(t *testing.T, archive string, how ...validate.Option) (dir string, index *v1.IndexManifest, times []time.Time) {
	t.Helper()
	dir = t.TempDir()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		times = append(times, h.ModTime)
		if h.Typeflag == tar.TypeDir {
			continue
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, h.Name), string(data))
	}
	top, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(top, how...); err != nil {
		t.Fatalf("%s: %v", archive, err)
	}
	if index, err = top.IndexManifest(); err != nil {
		t.Fatal(err)
	}
	return dir, index, times
}

// contents are the files of all layers of an image.
func contents(t *testing.T, img v1.Image) map[string]*tar.Header {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]*tar.Header)
	for _, l := range layers {
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		for in := tar.NewReader(r); ; {
			h, err := in.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			files[h.Name] = h
		}
		r.Close()
	}
	return files
}

func TestIndex(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "eclusa-edge")
	write(t, program, "a program")
	s, ref := source(), "example.test/eclusa-edge:v1.2.3"
	var images []Image
	for _, arch := range []string{"amd64", "arm64"} {
		images = append(images, Image{Program: program, Platform: Platform{"linux", arch}, Labels: s.Labels(Edge), Time: s.Time})
	}
	archive := filepath.Join(dir, "image.tar")
	digest, err := WriteIndex(archive, ref, s.Labels(Edge), images...)
	if err != nil {
		t.Fatal(err)
	}
	unpacked, top, times := unpack(t, archive)
	if len(top.Manifests) != 1 || top.Manifests[0].Digest != digest || top.Manifests[0].MediaType != types.OCIImageIndex || top.Manifests[0].Annotations["io.containerd.image.name"] != ref {
		t.Fatalf("the archive has %+v; want one index %s with its name", top.Manifests, digest)
	}
	for _, at := range times {
		if !at.Equal(s.Time) {
			t.Errorf("time of a file in the archive: got %s; want the commit's", at)
		}
	}
	root, err := layout.ImageIndexFromPath(unpacked)
	if err != nil {
		t.Fatal(err)
	}
	index, err := root.ImageIndex(digest)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 2 || manifest.Annotations["org.opencontainers.image.version"] != "v1.2.3" {
		t.Fatalf("index: got %d images and annotations %v; want two and the version", len(manifest.Manifests), manifest.Annotations)
	}
	for i, arch := range []string{"amd64", "arm64"} {
		if got := manifest.Manifests[i].Platform.Architecture; got != arch {
			t.Errorf("image %d: got %s; want %s", i, got, arch)
		}
		img, err := index.Image(manifest.Manifests[i].Digest)
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, img, arch, s)
	}
}

func checkImage(t *testing.T, img v1.Image, arch string, s Source) {
	t.Helper()
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if c.OS != "linux" || c.Architecture != arch || !c.Created.Equal(s.Time) {
		t.Errorf("got %s/%s of %s; want linux/%s of %s", c.OS, c.Architecture, c.Created, arch, s.Time)
	}
	if c.Config.User != "65532:65532" || !slices.Equal(c.Config.Entrypoint, []string{"/eclusa-edge"}) {
		t.Errorf("got user %q and entry point %q", c.Config.User, c.Config.Entrypoint)
	}
	for label, want := range map[string]string{"version": s.Version, "revision": s.Revision, "licenses": "Apache-2.0", "source": "https://github.com/eclusa-lb/eclusa"} {
		if got := c.Config.Labels["org.opencontainers.image."+label]; got != want {
			t.Errorf("label %s: got %q; want %q", label, got, want)
		}
	}
	files := contents(t, img)
	for _, want := range []string{"eclusa-edge", "etc/passwd", "etc/group", certificates, "tmp/"} {
		h := files[want]
		if h == nil {
			t.Errorf("%s is missing", want)
			continue
		}
		if !h.ModTime.Equal(s.Time) || h.Uid != 0 || h.Gid != 0 {
			t.Errorf("%s: got %s, user %d, group %d; want the commit's time and root", want, h.ModTime, h.Uid, h.Gid)
		}
	}
	if got := files["eclusa-edge"].Mode; got != 0o755 {
		t.Errorf("the program has mode %o; want 755", got)
	}
	for name, h := range files {
		if h.Mode&0o4000 != 0 || h.Typeflag == tar.TypeReg && h.Mode&0o022 != 0 {
			t.Errorf("%s has mode %o: others may write it, or it gives away its owner's rights", name, h.Mode)
		}
	}
}

func TestAuthorities(t *testing.T) {
	var n int
	for data := authorities(); len(data) > 0; n++ {
		block, rest := pem.Decode(data)
		if block == nil {
			t.Fatalf("%d bytes are not PEM", len(data))
		}
		if c, err := x509.ParseCertificate(block.Bytes); err != nil || !c.IsCA {
			t.Errorf("certificate %d: got %v; want one of an authority", n, err)
		}
		data = rest
	}
	if n < 50 {
		t.Errorf("got %d certificates; want those that Mozilla trusts", n)
	}
}

// The program of an image for the lab is not compiled again nor compressed, and
// arrives under its name.
func TestWriteImage(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "hello")
	write(t, program, "a program")
	archive, ref := filepath.Join(dir, "image.tar"), "eclusa.local/hello:lab"
	if err := WriteImage(archive, ref, Image{Program: program, Platform: Platform{"linux", "amd64"}, Fast: true}); err != nil {
		t.Fatal(err)
	}
	// The thorough way of validating takes every layer to be compressed.
	unpacked, top, _ := unpack(t, archive, validate.Fast)
	if len(top.Manifests) != 1 || top.Manifests[0].MediaType != types.OCIManifestSchema1 || top.Manifests[0].Annotations["io.containerd.image.name"] != ref {
		t.Fatalf("got %+v; want one image with its name", top.Manifests)
	}
	img, err := layout.Path(unpacked).Image(top.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range m.Layers {
		if l.MediaType != types.OCIUncompressedLayer {
			t.Errorf("layer: got %s; want it as it is", l.MediaType)
		}
	}
	if h := contents(t, img)["hello"]; h == nil || h.Size != int64(len("a program")) {
		t.Errorf("the program: got %+v", h)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".image-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := WriteImage(archive, ref, Image{Program: filepath.Join(dir, "none")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a program: got %v; want it named", err)
	}
}

// A program that needs libraries would end as "no such file or directory", which
// tells nobody why.
func TestImageRefusesWhatIsNotStatic(t *testing.T) {
	_, static := edgeProgram(t)
	if _, err := (Image{Program: static, Platform: Platform{"linux", runtime.GOARCH}, Fast: true}).Make(); err != nil {
		t.Error(err)
	}
	_, err := Image{Program: "/bin/sh", Platform: Platform{"linux", runtime.GOARCH}}.Make()
	if err == nil || !strings.Contains(err.Error(), `program "/bin/sh": is not static`) || !strings.Contains(err.Error(), "CGO_ENABLED=0") {
		t.Errorf("with libraries: got %v; want it refused by name", err)
	}
}

// TestReproducible builds the same source in two folders, and images of what came
// out, and compares every byte.
func TestReproducible(t *testing.T) {
	program := Program{Name: "hello"}
	s := source()
	var executables, archives [2][]byte
	var digests [2]v1.Hash
	for i := range 2 {
		s.Dir = t.TempDir()
		write(t, filepath.Join(s.Dir, "go.mod"), "module "+module+"\n\ngo 1.26.0\n")
		write(t, filepath.Join(s.Dir, "version", "version.go"), "package version\n\nvar number, revision string\n\nfunc String() string { return number + revision }\n")
		write(t, filepath.Join(s.Dir, "cmd", "hello", "main.go"), "package main\n\nimport (\n\t\"fmt\"\n\t\""+module+"/version\"\n)\n\nfunc main() { fmt.Println(version.String()) }\n")
		files, err := Build(t.Context(), s, Platform{"linux", runtime.GOARCH}, t.TempDir(), program)
		if err != nil {
			t.Fatal(err)
		}
		// As if the second was built a day later.
		if err := os.Chtimes(files[0], time.Time{}, time.Now().AddDate(0, 0, i)); err != nil {
			t.Fatal(err)
		}
		archive := filepath.Join(t.TempDir(), "image.tar")
		if digests[i], err = WriteIndex(archive, "example.test/hello:1", s.Labels(program),
			Image{Program: files[0], Platform: Platform{"linux", "amd64"}, Labels: s.Labels(program), Time: s.Time}); err != nil {
			t.Fatal(err)
		}
		executables[i], archives[i] = read(t, files[0]), read(t, archive)
	}
	if !bytes.Equal(executables[0], executables[1]) {
		t.Error("the executables differ")
	}
	if digests[0] != digests[1] {
		t.Errorf("the images differ: %s and %s", digests[0], digests[1])
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("the archives differ")
	}
	if !bytes.Contains(executables[0], []byte(s.Revision)) || !bytes.Contains(executables[0], []byte(s.Version)) {
		t.Error("the executable does not know its version")
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
