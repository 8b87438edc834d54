package release

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// WriteImage makes an image of one platform and writes it to archive under the
// name ref: what the lab needs to give its nodes a program that is built already.
func WriteImage(archive, ref string, i Image) error {
	img, err := i.Make()
	if err != nil {
		return fmt.Errorf("image %q: %w", ref, err)
	}
	_, err = writeArchive(archive, ref, i.Time, func(p layout.Path, o layout.Option) (v1.Hash, error) {
		digest, err := img.Digest()
		return digest, errors.Join(err, p.AppendImage(img, o))
	})
	return err
}

// WriteIndex makes one image of each platform and writes them to archive as one
// image of several platforms under the name ref. It returns the digest by which a
// registry will know it.
func WriteIndex(archive, ref string, annotations map[string]string, images ...Image) (v1.Hash, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	var made time.Time
	for _, i := range images {
		img, err := i.Make()
		if err != nil {
			return v1.Hash{}, fmt.Errorf("image %q for %s: %w", ref, i.Platform, err)
		}
		made = i.Time
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        img,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: i.Platform.OS, Architecture: i.Platform.Arch}},
		})
	}
	index, ok := mutate.Annotations(index, annotations).(v1.ImageIndex)
	if !ok {
		return v1.Hash{}, errors.New("annotating an index has not made an index")
	}
	return writeArchive(archive, ref, made, func(p layout.Path, o layout.Option) (v1.Hash, error) {
		digest, err := index.Digest()
		return digest, errors.Join(err, p.AppendIndex(index, o))
	})
}

// writeArchive writes what add adds to a layout of the OCI as a tar archive, which
// containerd, podman and skopeo read.
func writeArchive(archive, ref string, t time.Time, add func(layout.Path, layout.Option) (v1.Hash, error)) (digest v1.Hash, err error) {
	dir, err := os.MkdirTemp(filepath.Dir(archive), ".image-")
	if err != nil {
		return v1.Hash{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	oci, err := layout.Write(dir, empty.Index)
	if err != nil {
		return v1.Hash{}, err
	}
	digest, err = add(oci, layout.WithAnnotations(map[string]string{
		"io.containerd.image.name":          ref, // containerd before 2.0 looks here alone
		"org.opencontainers.image.ref.name": ref,
	}))
	if err != nil {
		return v1.Hash{}, fmt.Errorf("image %q: %w", ref, err)
	}
	files, err := readFiles(dir)
	if err != nil {
		return v1.Hash{}, err
	}
	if t.IsZero() {
		t = time.Unix(0, 0)
	}
	f, err := os.Create(archive)
	if err != nil {
		return v1.Hash{}, err
	}
	return digest, errors.Join(writeTar(f, t, files), f.Close())
}

// readFiles reads a folder in the order of the names.
func readFiles(dir string) ([]file, error) {
	var files []file
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		if d.IsDir() {
			files = append(files, file{name: name + "/", mode: 0o755})
			return nil
		}
		data, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		files = append(files, file{name: name, mode: 0o644, data: data})
		return err
	})
	return files, err
}
