package lab

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestWriteImage reads an image back as the files of an archive.
func TestWriteImage(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "hello")
	if err := os.WriteFile(program, []byte("a program"), 0o755); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "image.tar")
	if err := WriteImage(archive, "example.test/hello:1", program); err != nil {
		t.Fatal(err)
	}
	files := untar(t, archive)
	index := string(files["index.json"])
	if !strings.Contains(index, `"io.containerd.image.name":"example.test/hello:1"`) && !strings.Contains(index, `"io.containerd.image.name": "example.test/hello:1"`) {
		t.Errorf("index.json: got\n%s\nwant the image's name", index)
	}
	config := slices.ContainsFunc(values(files), func(b []byte) bool { return bytes.Contains(b, []byte(`"Entrypoint":["/hello"]`)) })
	if _, ok := files["oci-layout"]; !ok || !config {
		t.Errorf("oci-layout there: %v, entry point there: %v; want both", ok, config)
	}
	left, _ := filepath.Glob(filepath.Join(dir, ".image-*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func untar(t *testing.T, archive string) map[string][]byte {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files := map[string][]byte{}
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func values(m map[string][]byte) (all [][]byte) {
	for _, v := range m {
		all = append(all, v)
	}
	return all
}
