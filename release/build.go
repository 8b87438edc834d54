package release

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const module = "github.com/eclusa-lb/eclusa"

// A Platform is what a program runs on, in Go's words.
type Platform struct{ OS, Arch string }

// ParsePlatform reads "linux/amd64".
func ParsePlatform(s string) (Platform, error) {
	os, arch, ok := strings.Cut(s, "/")
	if !ok || os == "" || arch == "" {
		return Platform{}, fmt.Errorf("platform %q: must be an operating system and an architecture, such as linux/amd64", s)
	}
	return Platform{os, arch}, nil
}

// String returns "linux/amd64".
func (p Platform) String() string { return p.OS + "/" + p.Arch }

// A Program is one that is released.
type Program struct {
	Name        string
	Title       string
	Description string
}

// The programs that have an image. Their packages are in cmd/.
var (
	Edge = Program{
		"eclusa-edge", "eclusa edge",
		"The external load balancer of Kubernetes clusters: owns the addresses of LoadBalancer Services, takes traffic on their standard ports, checks the nodes' health and forwards to node ports",
	}
	Manager = Program{
		"eclusa-cloud-controller-manager", "eclusa cloud-controller-manager",
		"Gives Kubernetes Services of type LoadBalancer their addresses and has eclusa's edges serve them",
	}
)

// Build compiles the programs for a platform, static and reproducible, and
// returns their files in the order of the programs. They are put into a folder
// of the platform's in dir.
func Build(ctx context.Context, s Source, p Platform, dir string, programs ...Program) ([]string, error) {
	dir, err := filepath.Abs(filepath.Join(dir, p.OS+"_"+p.Arch))
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // what is released is for everybody
		return nil, err
	}
	var files, pkgs []string
	for _, program := range programs {
		name := program.Name
		if p.OS == "windows" {
			name += ".exe"
		}
		files = append(files, filepath.Join(dir, name))
		pkgs = append(pkgs, "./cmd/"+program.Name)
	}
	// The version comes from us and not from what Go notes down itself, which
	// depends on the kind of checkout: in a git worktree it finds none.
	flags := fmt.Sprintf("-s -w -X %s/version.number=%s -X %[1]s/version.revision=%[3]s", module, s.Version, s.Revision)
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", dir + string(filepath.Separator)}
	cmd := exec.CommandContext(ctx, "go", append(args, pkgs...)...)
	cmd.Dir = s.Dir
	// Whatever else the user has set for Go must not find its way into a release.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+p.OS, "GOARCH="+p.Arch,
		"GOFLAGS=-mod=readonly", "GOWORK=off", "GOEXPERIMENT=", "GOAMD64=v1", "GOARM64=v8.0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build %s for %s: %w\n%s", strings.Join(pkgs, " "), p, err, out)
	}
	return files, nil
}
