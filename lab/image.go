package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/eclusa-lb/eclusa/release"
)

// Images that every node has.
const (
	// WorkloadImage is the test application: HTTP on 8080, HTTPS on 8443, TCP
	// echo on 7000, UDP echo on 7001. See package lab/workload.
	WorkloadImage = "eclusa.local/workload:lab"
	// PauseImage holds the namespaces of a pod.
	PauseImage = "eclusa.local/pause:lab"
)

// WriteImage makes an image of one static program, which is the image's entry
// point, and writes it to file for [Lab.Import].
func WriteImage(file, ref, program string) error {
	return release.WriteImage(file, ref, release.Image{
		Program: program, Platform: release.Platform{OS: "linux", Arch: runtime.GOARCH}, Fast: true,
	})
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
	images := map[string]string{"pause": PauseImage, "workload": WorkloadImage}
	if !l.Options.NoEclusa {
		images[ccmProgram] = ManagerImage
	}
	for name, ref := range images {
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
