package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/eclusa-lb/eclusa/release"
)

// options are the flags that all commands have.
type options struct {
	platforms []string
	out       string
	programs  string
}

func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "release",
		Short: "Make images and packages of eclusa from this checkout",
		Long: `Make images and packages of eclusa from this checkout.

What is made depends on the commit and the Go version alone. The environment
variables VERSION and SOURCE_DATE_EPOCH say otherwise if they are set.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(newImageCommand(), newPackageCommand())
	return root
}

func (o *options) addFlags(c *cobra.Command, out string) {
	c.Flags().StringSliceVar(&o.platforms, "platform", []string{"linux/amd64", "linux/arm64"}, "the platforms to make it for")
	c.Flags().StringVar(&o.out, "out", out, "the folder to put it into")
	c.Flags().StringVar(&o.programs, "programs", "bin/release", "the folder to put the compiled programs into")
}

func newImageCommand() *cobra.Command {
	var o options
	var repository string
	c := &cobra.Command{
		Use:   "image",
		Short: "Make an image of each program, for several platforms",
		Long: `Make an image of each program, for several platforms, as an OCI archive that
containerd, podman and skopeo read:

  ctr -n k8s.io images import FILE
  skopeo copy --all oci-archive:FILE docker://REGISTRY/NAME:TAG`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return o.images(c.Context(), c.OutOrStdout(), repository, release.Edge, release.Manager)
		},
	}
	o.addFlags(c, filepath.Join("bin", "images"))
	c.Flags().StringVar(&repository, "repository", "ghcr.io/eclusa-lb", "where the images will be, without their own names")
	return c
}

func newPackageCommand() *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:   "package",
		Short: "Make Debian and RPM packages of the edge",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return o.packages(c.Context(), c.OutOrStdout()) },
	}
	o.addFlags(c, filepath.Join("bin", "packages"))
	return c
}

// A build is a program that was compiled for a platform.
type build struct {
	program  release.Program
	platform release.Platform
	file     string
}

// build compiles programs for all platforms, and returns them by platform.
func (o *options) build(ctx context.Context, w io.Writer, s release.Source, programs ...release.Program) ([]build, error) {
	var builds []build
	for _, name := range o.platforms {
		p, err := release.ParsePlatform(name)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(w, "compiling for %s\n", p)
		files, err := release.Build(ctx, s, p, o.programs, programs...)
		if err != nil {
			return nil, err
		}
		for i, f := range files {
			builds = append(builds, build{programs[i], p, f}) //nolint:gosec // Build returns a file for each program
		}
	}
	return builds, nil
}

func (o *options) images(ctx context.Context, w io.Writer, repository string, programs ...release.Program) error {
	s, err := o.start(ctx)
	if err != nil {
		return err
	}
	builds, err := o.build(ctx, w, s, programs...)
	if err != nil {
		return err
	}
	var made []string
	for _, program := range programs {
		var images []release.Image
		for _, b := range builds {
			if b.program != program {
				continue
			}
			images = append(images, release.Image{Program: b.file, Platform: b.platform, Labels: s.Labels(program), Time: s.Time})
			bill := filepath.Join(o.out, fmt.Sprintf("%s_%s_%s.cdx.json", program.Name, b.platform.OS, b.platform.Arch))
			if err := release.WriteSBOM(bill, b.file, s); err != nil {
				return err
			}
			made = append(made, bill)
		}
		file := filepath.Join(o.out, program.Name+".tar")
		ref := repository + "/" + program.Name + ":" + s.Tag()
		digest, err := release.WriteIndex(file, ref, s.Labels(program), images...)
		if err != nil {
			return err
		}
		made = append(made, file)
		fmt.Fprintf(w, "%s@%s\n", ref, digest)
	}
	return o.finish(w, made)
}

func (o *options) packages(ctx context.Context, w io.Writer) error {
	s, err := o.start(ctx)
	if err != nil {
		return err
	}
	builds, err := o.build(ctx, w, s, release.Edge)
	if err != nil {
		return err
	}
	var made []string
	for _, b := range builds {
		for _, packager := range release.Packagers {
			file, err := release.Package(ctx, s, packager, b.platform, b.file, o.out)
			if err != nil {
				return err
			}
			bill := file + ".cdx.json"
			if err := release.WriteSBOM(bill, b.file, s); err != nil {
				return err
			}
			made = append(made, file, bill)
		}
	}
	return o.finish(w, made)
}

// start finds the checkout around the working directory.
func (o *options) start(ctx context.Context) (release.Source, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return release.Source{}, fmt.Errorf("go env GOMOD: %w", err)
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil { //nolint:gosec // what is released is for everybody
		return release.Source{}, err
	}
	return release.ReadSource(ctx, filepath.Dir(strings.TrimSpace(string(out))))
}

// finish writes the checksums and tells what was made.
func (o *options) finish(w io.Writer, made []string) error {
	sums, err := release.WriteChecksums(o.out, made...)
	if err != nil {
		return err
	}
	for _, f := range append(made, sums) {
		info, err := os.Stat(f)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%8.1f MB  %s\n", float64(info.Size())/1e6, f)
	}
	return nil
}
