package lab

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// processGroup keeps a terminal's Ctrl-C from reaching a child directly.
var processGroup = &syscall.SysProcAttr{Setpgid: true}

// own are the programs of this module that every lab needs, as package paths. Like
// eclusa's they are static, since they are alone in their images.
var own = []string{"./lab/anchor", "./lab/workload", "./lab/pause"}

const (
	edgeProgram = "eclusa-edge"
	ccmProgram  = "eclusa-cloud-controller-manager"
)

// Version is what eclusa says of itself in a lab.
const Version = "lab"

// buildOwn builds the programs of this module that the lab runs and copies them
// into dir, where a later build for another lab does not touch them.
func buildOwn(ctx context.Context, n *narrator, o Options, dir string) error {
	src, err := source()
	if err != nil {
		return err
	}
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	// One place per checkout: go build leaves alone what has not changed.
	kept := filepath.Join(cache, fmt.Sprintf("own-%x", sha256.Sum256([]byte(src)))[:16])
	if err := os.MkdirAll(kept, 0o755); err != nil {
		return err
	}
	unlock, err := lock(ctx, filepath.Join(kept, ".lock"))
	if err != nil {
		return err
	}
	defer unlock()
	from := map[string]string{}
	pkgs := slices.Clone(own)
	for name, file := range map[string]string{edgeProgram: o.EdgeBinary, ccmProgram: o.CCMBinary} {
		switch {
		case o.NoEclusa:
		case file != "":
			from[name] = file
		default:
			pkgs = append(pkgs, "./cmd/"+name)
		}
	}
	for _, pkg := range pkgs {
		name := filepath.Base(pkg)
		from[name] = filepath.Join(kept, name)
	}
	args := append([]string{"build", "-v", "-ldflags", "-s -w -X " + modulePath + "/version.number=" + Version, "-o", kept + "/"}, pkgs...)
	if err := runCompiler(n, static(goCommand(ctx, src, args...)), "eclusa and the lab's own programs"); err != nil {
		return fmt.Errorf("build eclusa and the lab's own programs: %w", err)
	}
	for name, file := range from {
		if err := copyFile(file, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(dst, src); err != nil {
		dst.Close()
		return err
	}
	return dst.Close()
}
