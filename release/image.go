package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// User is the number of the user that programs in images run as, and of its group.
const User = 65532

// An Image says what an image is made of.
type Image struct {
	// Program is the file of a static executable. In the image it lies in the root
	// folder, and is what is started.
	Program string
	// Platform is that of the program.
	Platform Platform
	// Labels describe the image.
	Labels map[string]string
	// Time is when everything in the image was made; the zero time is 1970.
	Time time.Time
	// Fast leaves the layers as they are, for images that go no further than this
	// machine: compressing takes longer than everything else.
	Fast bool
}

// Labels returns what registries show about an image of a program.
func (s Source) Labels(p Program) map[string]string {
	return map[string]string{
		"org.opencontainers.image.title":         p.Title,
		"org.opencontainers.image.description":   p.Description,
		"org.opencontainers.image.version":       s.Version,
		"org.opencontainers.image.revision":      s.Revision,
		"org.opencontainers.image.created":       s.Time.Format(time.RFC3339),
		"org.opencontainers.image.source":        "https://" + module,
		"org.opencontainers.image.documentation": "https://" + module + "/tree/main/docs",
		"org.opencontainers.image.licenses":      "Apache-2.0",
		"org.opencontainers.image.vendor":        "eclusa",
	}
}

// Make makes the image: the program on a base that has certificates of the public
// certificate authorities, a user without privileges, and nothing else.
func (i Image) Make() (v1.Image, error) {
	if i.Time.IsZero() {
		i.Time = time.Unix(0, 0)
	}
	base, err := i.layer(baseFiles())
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(i.Program)
	if err != nil {
		return nil, err
	}
	if needs := interpreter(data); needs != "" {
		return nil, fmt.Errorf("program %q: is not static, and its %s is not in the image; build it with CGO_ENABLED=0", i.Program, needs)
	}
	name := filepath.Base(i.Program)
	program, err := i.layer([]file{{name: name, mode: 0o755, data: data}})
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), base, program)
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = i.Platform.OS, i.Platform.Arch
	config.Created = v1.Time{Time: i.Time.UTC()}
	config.History = []v1.History{
		{Created: config.Created, CreatedBy: "certificates and user"},
		{Created: config.Created, CreatedBy: name},
	}
	config.Config = v1.Config{
		User:       fmt.Sprintf("%d:%d", User, User),
		Env:        []string{"PATH=/", "SSL_CERT_FILE=/" + certificates},
		Entrypoint: []string{"/" + name},
		WorkingDir: "/",
		Labels:     i.Labels,
	}
	return mutate.ConfigFile(img, config)
}

// interpreter returns the loader that an executable needs, "" if none.
func interpreter(program []byte) string {
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return ""
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			name, err := io.ReadAll(p.Open())
			if err != nil {
				return "loader"
			}
			return strings.TrimRight(string(name), "\x00")
		}
	}
	return ""
}

// A file is one in a layer; a folder if its name ends with a slash.
type file struct {
	name string
	mode int64
	data []byte
}

func (i Image) layer(files []file) (v1.Layer, error) {
	var b bytes.Buffer
	if err := writeTar(&b, i.Time, files); err != nil {
		return nil, err
	}
	if i.Fast {
		return static.NewLayer(b.Bytes(), types.OCIUncompressedLayer), nil
	}
	return tarball.LayerFromOpener(
		func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(gzip.BestCompression), tarball.WithCompressedCaching)
}

// writeTar writes an archive that depends on nothing but what it is given.
func writeTar(w io.Writer, t time.Time, files []file) error {
	out := tar.NewWriter(w)
	for _, f := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.data)), ModTime: t, Format: tar.FormatUSTAR}
		if strings.HasSuffix(f.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := out.WriteHeader(h); err != nil {
			return fmt.Errorf("file %q: %w", f.name, err)
		}
		if _, err := out.Write(f.data); err != nil {
			return fmt.Errorf("file %q: %w", f.name, err)
		}
	}
	return out.Close()
}
