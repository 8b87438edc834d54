package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sync/errgroup"
)

// Images that every node has.
const (
	// WorkloadImage is the test application: HTTP on 8080, TCP echo on
	// 7000, UDP echo on 7001. See package lab/workload.
	WorkloadImage = "eclusa.local/workload:lab"
	// PauseImage holds the namespaces of a pod.
	PauseImage = "eclusa.local/pause:lab"
)

// WriteImage makes an image of one static program and writes it to file as an
// OCI archive, which containerd and others import. Neither a registry nor
// Docker is needed. The program is the image's entry point.
func WriteImage(file, ref, program string) error {
	img, err := image(program)
	if err != nil {
		return fmt.Errorf("image %q: %w", ref, err)
	}
	dir, err := os.MkdirTemp(filepath.Dir(file), ".image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	oci, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	err = oci.AppendImage(img, layout.WithAnnotations(map[string]string{
		"io.containerd.image.name":          ref,
		"org.opencontainers.image.ref.name": ref,
	}))
	if err != nil {
		return fmt.Errorf("image %q: %w", ref, err)
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	w := tar.NewWriter(f)
	return errors.Join(w.AddFS(os.DirFS(dir)), w.Close(), f.Close())
}

func image(program string) (v1.Image, error) {
	name := "/" + path.Base(program)
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return oneFile(program, name) })
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config.Entrypoint = []string{name}
	return mutate.ConfigFile(img, config)
}

// oneFile is a tar archive with the program alone.
func oneFile(program, name string) (io.ReadCloser, error) {
	data, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err = w.WriteHeader(&tar.Header{Name: name[1:], Mode: 0o755, Size: int64(len(data)), Typeflag: tar.TypeReg})
	if err != nil {
		return nil, err
	}
	_, err = w.Write(data)
	return io.NopCloser(&b), errors.Join(err, w.Close())
}

// Import gives an image archive to all nodes.
func (l *Lab) Import(ctx context.Context, archive string) error {
	var g errgroup.Group
	for _, n := range l.Nodes {
		g.Go(func() error { return n.Import(ctx, archive) })
	}
	return g.Wait()
}

// Import gives an image archive to the node. It waits for the container runtime
// of a node that has just started.
func (n *Node) Import(ctx context.Context, archive string) error {
	if err := n.listening(ctx); err != nil {
		return err
	}
	out, err := n.Command(ctx, "ctr", "-n", "k8s.io", "images", "import", archive).CombinedOutput()
	if err != nil {
		return fmt.Errorf("import %q into %q: %w: %s", filepath.Base(archive), n.Name, err, bytes.TrimSpace(out))
	}
	return nil
}

// importOwn gives every node the images that the lab itself needs.
func (l *Lab) importOwn(ctx context.Context) error {
	if err := os.MkdirAll(l.path("image"), 0o755); err != nil {
		return err
	}
	for name, ref := range map[string]string{"pause": PauseImage, "workload": WorkloadImage} {
		archive := l.path("image", name+".tar")
		if err := WriteImage(archive, ref, l.bin(name)); err != nil {
			return err
		}
		if err := l.Import(ctx, archive); err != nil {
			return err
		}
	}
	return nil
}
